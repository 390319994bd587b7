"""Decoded, resized images of one split, kept as uint8 and memory-mapped: an image is decoded once, not at every epoch.

A cache is a folder: pixels.bin (one record after another, grey images in one channel), table.npy (offset, height,
width, channels, CRC-32 per record) and manifest.json (which files, their sizes and dates, the resize, what could not be
read). It is written under another name and renamed when whole. When a file has changed, or the cache is torn, it is made
anew. Building it decodes every image, so it takes the place of --image_check full.
"""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import open_image
from modules.artefact import write_json
from modules.errors import InputError

VERSION = 1
WORKERS = 8


class ImageCache:
    """Images by their path below the image folder: `cache.get("a/0.png")` is the decoded, resized image."""

    def __init__(self, folder: str | Path) -> None:
        """Open a whole cache; see open_cache. Raises InputError when its parts do not fit together."""
        folder = Path(folder)
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.table = np.load(folder / "table.npy")
            self.pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"image cache {folder} cannot be read: {error}") from error
        rows = [path for path in self.manifest["images"] if path not in self.manifest["broken"]]
        self.place = {path: row for row, path in enumerate(rows)}
        sizes = self.table[:, 1:4].prod(axis=1)
        whole = len(rows) == len(self.table) and sizes.sum() + 1 == len(self.pixels)
        some = range(0, len(rows), max(1, len(rows) // 64))
        if not whole or any(zlib.crc32(self._record(row)) != self.table[row, 4] for row in some):
            raise InputError(f"image cache {folder} is torn")

    def _record(self, row: int) -> np.ndarray:
        start, height, width, channels, _ = self.table[row].tolist()
        pixels = self.pixels[start : start + height * width * channels]
        return pixels.reshape((height, width, channels) if channels > 1 else (height, width))

    def get(self, path: str) -> Image.Image:
        """The image of a path, grey (mode L) where its channels are equal, else RGB.

        KeyError for one that the cache was not made of or could not read.
        """
        return Image.fromarray(np.ascontiguousarray(self._record(self.place[path])))


def open_cache(folder, image_dir, paths: list[str], resize: Callable, *, name: str, progress: bool = True) -> ImageCache:
    """The cache of `paths` (relative to image_dir) in `folder`, made where there is none, or a stale or torn one.

    resize: image -> image, named by `name`. What cannot be read is listed in manifest["broken"], path -> reason.
    """
    folder, paths = Path(folder), list(dict.fromkeys(paths))
    wanted = {"version": VERSION, "resize": name, "files_sha256": fingerprint(image_dir, paths)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits for the first one's cache
        if folder.is_dir():
            try:
                cache = ImageCache(folder)
                if wanted.items() <= cache.manifest.items():
                    return cache
                print(f"image cache {folder}: images or settings have changed, making it anew")
            except InputError as error:
                print(f"{error}: making it anew")
            shutil.rmtree(folder)
        build_cache(folder, image_dir, paths, resize, wanted, progress=progress)
    return ImageCache(folder)


def fingerprint(image_dir, paths: list[str]) -> str:
    """Changes with any path, file size or date of change; a missing file counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = os.stat(f"{image_dir}/{path}")
            digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        except FileNotFoundError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()


def build_cache(folder: Path, image_dir, paths, resize, wanted: dict, *, progress: bool) -> None:
    """Decode `paths` into a new cache. InputError when the disk is full; nothing is left of the attempt then."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed attempt
    unfinished.mkdir(parents=True)
    table, broken, offset = [], {}, 0
    try:
        with open(unfinished / "pixels.bin", "wb") as file, ThreadPoolExecutor(WORKERS) as pool:
            read = lambda path: _read(f"{image_dir}/{path}", resize)  # noqa: E731
            bar = tqdm(total=len(paths), desc="image cache", disable=None if progress else True, leave=False)
            for start in range(0, len(paths), 16 * WORKERS):  # few images at a time: the memory stays small
                some = list(islice(paths, start, start + 16 * WORKERS))
                for path, (pixels, reason) in zip(some, pool.map(read, some)):
                    bar.update()
                    if reason:
                        broken[path] = reason
                        continue
                    file.write(pixels.tobytes())
                    channels = pixels.shape[2] if pixels.ndim == 3 else 1
                    table.append((offset, *pixels.shape[:2], channels, zlib.crc32(pixels)))
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
    write_json(unfinished / "manifest.json", {**wanted, "images": paths, "broken": broken, "bytes": offset})
    unfinished.rename(folder)


def _read(path: str, resize) -> tuple[np.ndarray | None, str | None]:
    try:
        pixels = np.asarray(resize(open_image(path)))
    except InputError as error:
        return None, str(error)
    grey = (pixels[..., :1] == pixels).all()
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels), None
