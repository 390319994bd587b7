"""Decoded, resized images of one split, kept as uint8 and memory-mapped: an image is decoded once, not at every epoch.

A cache is a folder: pixels.bin (one record after another, grey images in one channel), table.npy (offset, height,
width, channels, checksum per record) and manifest.json (which files, their sizes and dates, the resize, what could not be
read, the checksums of the table and of all this). It is written under another name and renamed when whole. When a file has
changed, or the cache is damaged, it is made anew; an image that turns out damaged later is decoded again. Building it
decodes every image, so it takes the place of --image_check full.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import PLAIN, Reading, open_image
from modules.artefact import checksum, read_json, write_json
from modules.errors import InputError
from modules.progress import tracked

VERSION = 2
PARTS = {"pixels.bin", "table.npy", "manifest.json"}
WORKERS = 8
log = logging.getLogger(__name__)


class ImageCache:
    """Images by their path below the image folder: `cache.get("a/0.png")` is the decoded, resized image."""

    def __init__(self, folder: str | Path) -> None:
        """Open a whole cache; see open_cache. Raises InputError when its parts do not fit together."""
        self.folder = folder = Path(folder)
        self.manifest = read_json(folder / "manifest.json")
        try:
            table = (folder / "table.npy").read_bytes()
            whole = self.manifest.pop("checksum") == _sum_of(self.manifest) and self.manifest["table"] == checksum(
                table
            )
            whole = whole and (folder / "pixels.bin").stat().st_size == self.manifest["bytes"] + 1
        except (OSError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"image cache {folder} cannot be read: {error}") from error
        if not whole:
            raise InputError(f"image cache {folder} is damaged")
        self.table = np.load(io.BytesIO(table), allow_pickle=False)
        self.pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")
        rows = [path for path in self.manifest["images"] if path not in self.manifest["broken"]]
        self.place = {path: row for row, path in enumerate(rows)}
        if any(self._record(row) is None for row in range(0, len(rows), max(1, len(rows) // 64))):
            raise InputError(f"image cache {folder} is damaged")

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "pixels"}  # a worker maps the file itself

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.pixels = np.memmap(self.folder / "pixels.bin", np.uint8, "r")

    def _record(self, row: int) -> np.ndarray | None:
        """Pixels of a row, None where they are not those that were written."""
        start, height, width, channels, wanted = self.table[row].tolist()
        pixels = self.pixels[start : start + height * width * channels]
        if checksum(pixels) != wanted:
            return None
        return pixels.reshape((height, width, channels) if channels > 1 else (height, width))

    def get(self, path: str) -> Image.Image | None:
        """The image of a path, grey (mode L) where its channels are equal, else RGB.

        None for one whose bytes on the disk are damaged: the next start makes the cache anew. KeyError for one that the
        cache was not made of or could not read.
        """
        pixels = self._record(self.place[path])
        if pixels is None:
            log.warning(
                "image cache %s is damaged at %s: decoding it again, the next start makes it anew", self.folder, path
            )
            with contextlib.suppress(OSError):  # where it may only be read, it is checked again
                (self.folder / "manifest.json").unlink()
            return None
        return Image.fromarray(np.ascontiguousarray(pixels))


def open_cache(
    folder, image_dir, paths: list[str], resize: Callable, *, name: str, reading: Reading = PLAIN, progress: bool = True
) -> ImageCache:
    """The cache of `paths` (relative to image_dir) in `folder`, made where there is none, or a stale or torn one.

    resize: image -> image, named by `name`; reading: how files are opened. What cannot be read is listed in
    manifest["broken"], path -> reason.
    """
    folder, paths = Path(folder), list(dict.fromkeys(paths))
    wanted = {"version": VERSION, "resize": name + reading.name, "files_sha256": fingerprint(image_dir, paths)}
    with locked(folder):
        if folder.is_dir():
            try:
                cache = ImageCache(folder)
                if wanted.items() <= cache.manifest.items():
                    return cache
                print(f"image cache {folder}: images or settings have changed, making it anew")
            except InputError as error:
                print(f"{error}: making it anew")
            _remove(folder)
        build_cache(folder, image_dir, paths, resize, wanted, reading=reading, progress=progress)
    return ImageCache(folder)


@contextlib.contextmanager
def locked(folder: Path):
    """A second run waits for the first one's cache; one that may only be read needs no lock."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_name(folder.name + ".lock"), "w")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not folder.is_dir():
            raise
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(folder: Path) -> None:
    """Remove a cache. InputError when something else stands in its place."""
    foreign = [path.name for path in folder.iterdir() if path.name not in PARTS and path.suffix != ".tmp"]
    if foreign:
        raise InputError(
            f"{folder} is no image cache (it holds {', '.join(sorted(foreign)[:3])}): choose another --knowledge_dir, or move it"
        )
    shutil.rmtree(folder)


def _sum_of(manifest: dict) -> int:
    return checksum(json.dumps(manifest, ensure_ascii=False))


def fingerprint(image_dir, paths: list[str], *, dates: bool = True) -> str:
    """Changes with any path, file size or date of change (dates=False: not with these); a missing file counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = os.stat(f"{image_dir}/{path}")
            date = facts.st_mtime_ns if dates else ""
            digest.update(f"{path}\0{facts.st_size}\0{date}\n".encode())
        except (OSError, ValueError) as error:  # missing, or a path that no file can have
            digest.update(f"{path}\0{type(error).__name__}\n".encode())
    return digest.hexdigest()


def build_cache(folder: Path, image_dir, paths, resize, wanted: dict, *, reading: Reading, progress: bool) -> None:
    """Decode `paths` into a new cache. InputError when the disk is full; nothing is left of the attempt then."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    if unfinished.is_dir():  # of a killed attempt
        _remove(unfinished)
    unfinished.mkdir(parents=True)
    table, broken, offset = [], {}, 0
    try:
        with open(unfinished / "pixels.bin", "wb") as file, ThreadPoolExecutor(WORKERS) as pool:
            read = lambda path: _read(f"{image_dir}/{path}", resize, reading)  # noqa: E731
            bar = tracked(total=len(paths), desc="image cache", hidden=not progress)
            for start in range(0, len(paths), 16 * WORKERS):  # few images at a time: the memory stays small
                some = list(islice(paths, start, start + 16 * WORKERS))
                for path, (pixels, reason) in zip(some, pool.map(read, some)):
                    bar.update()
                    if pixels is None:
                        broken[path] = reason
                        continue
                    file.write(pixels.tobytes())
                    channels = pixels.shape[2] if pixels.ndim == 3 else 1
                    table.append((offset, *pixels.shape[:2], channels, checksum(pixels)))
                    offset += pixels.size
            file.write(b"\0")  # an empty file cannot be mapped
            bar.close()
        np.save(unfinished / "table.npy", np.array(table, dtype=np.int64).reshape(-1, 5))
    except OSError as error:
        shutil.rmtree(unfinished)
        free = shutil.disk_usage(folder.parent).free / 2**20
        raise InputError(
            f"image cache {folder} cannot be written ({error}); {free:,.0f} MiB are free there. Choose another folder with "
            "--knowledge_dir, or go on without it: --no-image_cache"
        ) from error
    facts = {**wanted, "images": paths, "broken": broken, "bytes": offset}
    facts["table"] = checksum((unfinished / "table.npy").read_bytes())
    write_json(unfinished / "manifest.json", {**facts, "checksum": _sum_of(facts)})
    unfinished.rename(folder)


def _read(path: str, resize, reading: Reading) -> tuple[np.ndarray | None, str | None]:
    try:
        pixels = np.asarray(resize(open_image(path, reading)))
    except InputError as error:
        return None, str(error)
    grey = (pixels[..., :1] == pixels).all()
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels), None
