"""Stores of ADM masks: one packed row per image, or the authors' tree of .npy files; reading, making, importing.

A store is a folder: masks.bits (packed bits, one row per image), sums.npy (the checksum of each row together with its
image's path, compared when the mask is read), images.json, manifest.json. It is made in `.<name>.unfinished` beside its
place and renamed when whole.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.image_cache import fingerprint
from modules.artefact import (
    ANOTHER_WAY,
    checksum,
    differences,
    make_manifest,
    read_json,
    read_manifest,
    refuse_or_keep,
    remove_leftovers,
    sha256,
    write_atomic,
    write_json,
)
from modules.errors import InputError
from modules.nets.adm import SIDE, apply_mask
from modules.progress import tracked

FLUSH_SECONDS = 5.0
UNFINISHED, WHOLE = "unfinished adm masks", "adm masks"
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # bits set in each byte


class MaskStore:
    """Masks by image path (as in the annotation): our packed store, or the authors' tree of .npy files."""

    def get(self, image: str) -> np.ndarray:
        """bool [side, side]. Raises InputError when the image has no mask."""
        raise NotImplementedError

    def has(self, image: str) -> bool:
        raise NotImplementedError

    def digest(self, images: list[str]) -> str:
        """Changes with the masks of these images."""
        raise NotImplementedError


class MaskTree(MaskStore):
    """`<root>/<image path without ending>.npy`, boolean arrays, as released (images300_array/)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def _path(self, image: str) -> Path:
        return self.root / Path(image).with_suffix(".npy")

    def has(self, image: str) -> bool:
        return self._path(image).is_file()

    def digest(self, images: list[str]) -> str:
        return fingerprint(self.root, [str(Path(image).with_suffix(".npy")) for image in images])

    def get(self, image: str) -> np.ndarray:
        path = self._path(image)
        try:
            mask = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, zipfile.BadZipFile) as error:
            raise InputError(f"ADM mask {path} cannot be read: {error or type(error).__name__}") from error
        if mask.ndim != 2 or mask.dtype != bool:
            raise InputError(f"ADM mask {path}: expected a boolean image, found {mask.dtype} {mask.shape}")
        return mask


class PackedMasks(MaskStore):
    """Folder with `masks.bits` (one row of packed bits per image, memory-mapped), `images.json` and a manifest."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        manifest = read_manifest(self.root)
        if not manifest or manifest.get("what") != WHOLE:
            raise InputError(f"{root} is not a mask store: its manifest.json is missing or says something else")
        damaged = InputError(f"mask store {root} is damaged: remove it and generate it again")
        try:
            self.side, digests = manifest["side"], manifest["sha256"]
            if any(sha256(self.root / name) != digests[name] for name in ("images.json", "sums.npy")):
                raise damaged
            images = read_json(self.root / "images.json")
            shape = (len(images), row_bytes(self.side))
            if os.path.getsize(self.root / "masks.bits") != shape[0] * shape[1]:
                raise InputError(f"{root}: masks.bits does not hold {len(images)} masks; generate the store again")
            self.bits = np.memmap(self.root / "masks.bits", np.uint8, "r", shape=shape)
        except (KeyError, TypeError, AttributeError, OSError) as error:
            raise damaged from error
        self.sums = np.load(self.root / "sums.npy", allow_pickle=False)
        self.manifest = manifest
        self.rows = {image: row for row, image in enumerate(images)}

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "bits"}  # a worker maps the file itself

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.bits = np.memmap(self.root / "masks.bits", np.uint8, "r", shape=(len(self.rows), row_bytes(self.side)))

    def has(self, image: str) -> bool:
        return image in self.rows

    def digest(self, images: list[str]) -> str:
        return sha256(self.root)

    def get(self, image: str) -> np.ndarray:
        if image not in self.rows:
            raise InputError(f"{self.root} has no mask of {image}; it was made from another set of images")
        row = self.rows[image]
        if checksum(image, self.bits[row]) != self.sums[row]:
            raise InputError(f"mask store {self.root} is damaged at the mask of {image}: remove it and generate it again")
        bits = np.unpackbits(self.bits[row], count=self.side * self.side)
        return bits.astype(bool).reshape(self.side, self.side)


def row_sums(images: list[str], rows: np.ndarray) -> np.ndarray:
    """uint32 [N]: the checksum of each image's path and packed row."""
    return np.array([checksum(image, row) for image, row in zip(images, rows)], dtype=np.uint32)


def row_bytes(side: int) -> int:
    """Bytes of one packed mask."""
    return -(-side * side // 8)


def open_masks(path: str | Path) -> MaskStore:
    """Our packed store (a folder with a manifest) or the authors' .npy tree. Raises InputError when there is neither."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no ADM masks at {path}; make them with knowledge/generate_adm.py, or pass --no-adm")
    return PackedMasks(path) if (path / "manifest.json").is_file() else MaskTree(path)


@dataclass(frozen=True)
class MaskRule:
    """(image path, image) -> its masked view, by the masks of a store; see apply_mask."""

    masks: MaskStore
    theta: float
    gamma: float
    beta: float = 1.0

    def __call__(self, path: str, image: Image.Image) -> Image.Image:
        return apply_mask(image, self.masks.get(path), theta=self.theta, gamma=self.gamma, beta=self.beta)



def packed(masks: np.ndarray) -> np.ndarray:
    """bool [N, side, side] -> uint8 [N, row_bytes(side)], as PackedMasks reads them."""
    return np.packbits(masks.reshape(len(masks), -1), axis=1)


class StoreWriter:
    """A mask store in the making, in `.<name>.unfinished` beside `out`; continues one of the same inputs.

    inputs: what the masks depend on, plain JSON values. images: one row each, in this order. side: of a mask.
    """

    def __init__(self, out: str | Path, inputs: dict, images: list[str], side: int = SIDE) -> None:
        self.out, self.inputs, self.images, self.side = Path(out), inputs, images, side
        self.folder = self.out.with_name(f".{self.out.name}.unfinished")
        self.width = row_bytes(side)
        self.done, self.message = 0, ""
        self.broken: dict[str, str] = {}
        self.flushed = time.monotonic()
        remove_leftovers(self.out)
        self._continue_or_start()
        self.file = open(self.folder / "masks.bits.partial", "r+b")
        self.file.seek(self.done * self.width)

    def _continue_or_start(self) -> None:
        found = self._progress()
        if found and not (changed := differences(found["inputs"], self.inputs)):
            self.done, self.broken = found["done"], dict(found["broken"])
            os.truncate(self.folder / "masks.bits.partial", self.done * self.width)
            self.message = f"continuing {self.folder} after {self.done} of {len(self.images)} masks"
            return
        if self.folder.exists():
            why = f"it belongs to other inputs: {'; '.join(changed)}" if found else "it cannot be read"
            self.message = f"{self.folder} is not continued ({why}); starting anew"
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True)
            (self.folder / "masks.bits.partial").touch()
        except OSError as error:
            raise InputError(f"--out: cannot write beside {self.out}: {error}") from error
        self._note()

    def _progress(self) -> dict | None:
        """The progress noted in the folder, if it can be trusted."""
        try:
            found = read_manifest(self.folder) if self.folder.is_dir() else None
            size = (self.folder / "masks.bits.partial").stat().st_size if found else 0
            fits = found and found["what"] == UNFINISHED and size >= found["done"] * self.width and "inputs" in found
        except (InputError, OSError, KeyError, TypeError):
            return None
        return found if found and fits and isinstance(found.get("broken"), dict) else None

    def _note(self) -> None:
        facts = {"inputs": self.inputs, "done": self.done, "broken": self.broken}
        write_json(self.folder / "manifest.json", {"what": UNFINISHED, **facts})
        self.flushed = time.monotonic()

    def add(self, rows: np.ndarray, wrong: dict[int, str] | None = None) -> None:
        """Append packed masks [n, row_bytes]; wrong: rows without a mask, by place. Noted on disk every few seconds."""
        try:
            self.file.write(rows.tobytes())
            self.broken |= {self.images[self.done + place]: text for place, text in (wrong or {}).items()}
            self.done += len(rows)
            if time.monotonic() - self.flushed > FLUSH_SECONDS:
                self.flush()
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 2**20
            need = (len(self.images) - self.done) * self.width / 2**20
            raise InputError(
                f"cannot write {self.folder} ({error.strerror}): {free:,.0f} MiB are free, {need:,.0f} are still needed; "
                "make room and run the command again, it goes on from here"
            ) from error

    def flush(self) -> None:
        """Everything added so far outlives a kill."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._note()

    def close(self) -> None:
        """Note what is there and let go of the file."""
        if not self.file.closed:
            self.flush()
            self.file.close()

    def finish(self, **facts) -> dict:
        """Name the folder `out`, in place of what stood there; facts go into the manifest. Returns the manifest.

        Images noted as broken are left out. InputError when masks are missing.
        """
        self.close()
        if self.done != len(self.images):
            raise InputError(f"{self.folder} holds {self.done} of {len(self.images)} masks")
        partial, bits = self.folder / "masks.bits.partial", self.folder / "masks.bits"
        kept = [image for image in self.images if image not in self.broken]
        if self.broken:
            every = np.memmap(partial, np.uint8, "r", shape=(len(self.images), self.width))
            with open(bits, "wb") as file:
                for image, row in zip(self.images, every):
                    if image not in self.broken:
                        file.write(row.tobytes())
            partial.unlink()
        else:
            os.replace(partial, bits)
        text = json.dumps(kept, ensure_ascii=False)
        write_atomic(self.folder / "images.json", lambda path: path.write_text(text, encoding="utf-8"))
        rows = np.memmap(bits, np.uint8, "r", shape=(len(kept), self.width)) if kept else np.empty((0, self.width))
        sums = row_sums(kept, rows)
        write_atomic(self.folder / "sums.npy", lambda path: _save_array(path, sums))
        shares = kept_shares(bits, self.side)
        manifest = make_manifest(
            WHOLE,
            side=self.side,
            images=len(kept),
            left_out=self.broken,
            mean_kept_share=round(float(shares.mean()), 4) if len(shares) else None,
            empty_masks=int((shares == 0).sum()),
            inputs=self.inputs,
            sha256={name: sha256(self.folder / name) for name in ("masks.bits", "sums.npy", "images.json")},
            command=" ".join(sys.argv),
            **facts,
        )
        write_json(self.folder / "manifest.json", manifest)
        old = self.out.with_name(f".{self.out.name}.{os.getpid()}.tmp")
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.folder, self.out)
        shutil.rmtree(old, ignore_errors=True)
        return manifest


def _save_array(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)


def kept_shares(bits: Path, side: int) -> np.ndarray:
    """Share of True pixels of every mask in a file of packed rows, float [N]."""
    width = row_bytes(side)
    count = bits.stat().st_size // width
    if not count:
        return np.zeros(0)
    rows = np.memmap(bits, np.uint8, "r", shape=(count, width))
    return np.concatenate([ONES[rows[at : at + 4096]].sum(1) for at in range(0, count, 4096)]) / side**2


def kept_store(out: Path, inputs: dict, *, keep: bool = False) -> dict | None:
    """Manifest of the store in `out` if it was made from these inputs, None where nothing is; else InputError.

    keep: a store of the same images is accepted, and how its inputs differ is printed.
    """
    if not out.exists():
        return None
    manifest = (read_manifest(out) if out.is_dir() else None) or {}
    if manifest.get("what") != WHOLE:
        raise InputError(f"--out {out} stands there already and is no mask store of ours; {ANOTHER_WAY}")
    refuse_or_keep(out, manifest.get("inputs", {}), inputs, keep=keep, fixed=("images_sha256", "splits", "side"))
    PackedMasks(out)  # its file has the size that its list asks for
    return manifest


def print_store(out: Path, manifest: dict) -> None:
    """One line about a finished store."""
    size = os.path.getsize(out / "masks.bits")
    print(
        f"{out}: {manifest['images']} masks, {size / 2**20:,.1f} MiB, mean kept share {manifest['mean_kept_share']}, "
        f"{manifest['empty_masks']} empty, {len(manifest['left_out'])} left out"
    )


def check_room(out: Path, need: int) -> None:
    """InputError when the disk has less room than the store will take."""
    place = next(folder for folder in (out, *out.parents, Path(".")) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < need * 1.05:
        raise InputError(f"--out {out}: the masks take {need / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free there")


def export_tree(store: PackedMasks, root: str | Path) -> int:
    """Write every mask of a store as <root>/<image path>.npy, the authors' layout; returns how many."""
    root = Path(root)
    taken: dict[Path, str] = {}
    for image in store.rows:
        path = Path(image).with_suffix(".npy")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{store.root}: image {image} leaves the folder it belongs to")
        if taken.setdefault(path, image) != image:
            raise InputError(f"{image} and {taken[path]} would share the file {path}")
    for image in tracked(store.rows, desc="writing .npy files"):
        path = root / Path(image).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary := path.with_name(f".{path.name}.{os.getpid()}.tmp"), "wb") as file:
            np.save(file, store.get(image))
        os.replace(temporary, path)
    return len(store.rows)


def import_tree(args, images: list[str]) -> dict:
    """Pack the .npy tree --import_tree into the store --out; returns its manifest.

    InputError when images have no mask (all in one message; --skip_broken goes on without) or masks differ in size.
    """
    tree, out = MaskTree(args.import_tree), Path(args.out)
    if not tree.root.is_dir():
        raise InputError(f"--import_tree: no folder {tree.root}")
    missing = [image for image in images if not tree.has(image)]
    if missing and (not args.skip_broken or len(missing) == len(images)):
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        hint = "" if len(missing) == len(images) else "; pass --skip_broken to go on without"
        raise InputError(f"--import_tree {tree.root} has no mask for {len(missing)} of {len(images)} images{hint}: {shown}")
    present = [image for image in images if tree.has(image)]
    digest = hashlib.sha256()
    for image in present:
        path = tree.root / Path(image).with_suffix(".npy")
        digest.update(f"{image} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    inputs = {"tree": str(tree.root.resolve()), "files_sha256": digest.hexdigest()}
    manifest = None if args.overwrite else kept_store(out, inputs)
    if manifest:
        print(f"{out}: kept, it was packed from this tree")
        return manifest
    shape = tree.get(present[0]).shape
    if shape[0] != shape[1]:
        raise InputError(f"--import_tree {tree.root}: masks of {shape} pixels are not square")
    check_room(out, len(present) * row_bytes(shape[0]))
    store = StoreWriter(out, inputs, present, shape[0])
    if store.message:
        print(store.message)
    try:
        for image in tracked(present[store.done :], desc="packing"):
            mask = tree.get(image)
            if mask.shape != shape:
                raise InputError(f"--import_tree: the mask of {image} has {mask.shape} pixels, that of {present[0]} {shape}")
            store.add(packed(mask[None]))
    finally:
        store.close()
    manifest = store.finish(rule="imported", dataset=args.dataset_name, without_mask=missing)
    print_store(out, manifest)
    return manifest
