"""The miniature data set: synthetic chest radiographs and reports that say exactly what is drawn.

The project makes it itself, so that training, testing and the demo run with nothing downloaded. It says nothing about
patients. Study i depends on (seed, i) alone: a larger set begins with the studies of the smaller one.

    python -m data.miniature_set --out data/miniature --studies 600 --seed 0 --image_size 256

text.py samples what a study shows and words its report, drawing.py draws it, this file writes
the set.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from data import scene_graphs
from data.miniature_set.drawing import VIEWS, draw
from data.miniature_set.graphs import box_of, graph_of
from data.miniature_set.text import DrawnStudy, label_vector, sample, study_id
from data.scene_graphs import count_attributes, make_layout, write_rows
from modules.artefact import manifest_path, write_json
from modules.errors import InputError, entry
from modules.progress import tracked
from modules.text.labels import CHEXPERT_14

KIND = "miniature chest radiographs"
VERSION = 7                                    # raise it when the same parameters give other files
MASK_SIZE = 64                                 # truth masks are MASK_SIZE x MASK_SIZE, frontal view
LEAST_STUDIES = 8                              # fewer leave a split empty
NAMES = ("annotation.json", "images", "labels.csv", "truth.json", "truth_masks.npz",
         "scene_graphs.jsonl", "scene_graphs.jsonl.json", "manifest.json")


def small_mask(mask) -> np.ndarray:
    """The truth mask as bool [MASK_SIZE, MASK_SIZE]: a cell counts when a third of it is covered."""
    image = Image.fromarray(mask).resize((MASK_SIZE, MASK_SIZE), Image.Resampling.BOX)
    return np.asarray(image) > 0.33


def png(image: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG", compress_level=4)
    return held.getvalue()


def write_study(study: DrawnStudy, images: Path, image_size: int) -> dict:
    """Draws both views into images/<id>/; returns what the tables need to know of the study."""
    folder = images / study.id
    folder.mkdir()
    found = [asdict(finding) | {"boxes": {}} for finding in study.findings]
    packed = np.zeros((len(CHEXPERT_14), MASK_SIZE * MASK_SIZE // 8), np.uint8)
    hashes = []
    for number, view in enumerate(VIEWS):
        image, masks = draw(study, view, image_size)
        data = png(image)
        (folder / f"{number}.png").write_bytes(data)
        hashes.append(hashlib.sha256(data).hexdigest())
        for row, mask in zip(found, masks):
            row["boxes"][view] = box_of(mask)
            if view == "frontal" and mask is not None:
                packed[CHEXPERT_14.index(row["label"])] |= np.packbits(small_mask(mask).ravel())
        if view == "frontal":
            graph = graph_of(study, masks, image_size)
    return {"found": found, "masks": packed, "hashes": hashes, "graph": graph}


def write_set(folder: Path, *, studies: int, seed: int, image_size: int, progress: bool) -> dict:
    """Writes all files of a set into the empty `folder`; the manifest last. Returns the manifest."""
    images = folder / "images"
    images.mkdir()
    chosen = [sample(seed, index) for index in range(studies)]
    # Threads: numpy and PNG writing leave the interpreter free, and no start method of processes has to be right.
    with ThreadPoolExecutor(cores()) as pool:
        records = pool.map(lambda study: write_study(study, images, image_size), chosen)
        drawn = list(tracked(records, total=studies, desc="drawing studies", hidden=not progress))

    annotation: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for study in chosen:
        paths = [f"{study.id}/{number}.png" for number in range(len(VIEWS))]
        row = {"id": study.id, "report": study.report, "image_path": paths, "split": study.split}
        annotation[study.split].append(row)
    (folder / "annotation.json").write_text(json.dumps(annotation, indent=1) + "\n")

    vectors = [label_vector(list(study.findings)) for study in chosen]
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["split", "id", *CHEXPERT_14])
        table.writerows([study.split, study.id, *vector.values()] for study, vector in zip(chosen, vectors))

    truth = {study.id: record["found"] for study, record in zip(chosen, drawn)}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    np.savez_compressed(folder / "truth_masks.npz", ids=np.array([study.id for study in chosen]),
                        labels=np.array(CHEXPERT_14), masks=np.stack([record["masks"] for record in drawn]))

    write_graphs(folder / "scene_graphs.jsonl", [record["graph"] for record in drawn])
    hashes = {name: hash_file(folder / name) for name in NAMES if (folder / name).is_file()}
    hashes["images"] = hashlib.sha256("".join(h for record in drawn for h in record["hashes"]).encode()).hexdigest()
    manifest = {
        "kind": KIND,
        "about": "synthetic images and reports, drawn by this program; not patients, not for medical use",
        **parameters(studies, seed, image_size),
        "command": f"python -m data.miniature_set --studies {studies} --seed {seed} --image_size {image_size}",
        "views": dict(enumerate(VIEWS)),
        "splits": {split: len(rows) for split, rows in annotation.items()},
        "labels": {label: sum(vector[label] for vector in vectors) for label in CHEXPERT_14},
        "sha256": hashes,
    }
    manifest = json.loads(json.dumps(manifest))                         # as it will be read: keys are text
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def write_graphs(path: Path, rows: list[dict]) -> None:
    """The scene graphs of the set and their manifest; the same parameters give the same bytes, so it has no date."""
    layout = make_layout(count_attributes(rows), 1)
    with open(path, "w", encoding="utf-8") as file:
        counted = write_rows(file, rows, layout)
    manifest = {"what": scene_graphs.WHAT, "format": scene_graphs.FORMAT, **layout.state(), "boxes_from": "truth",
                "attributes_from": "truth", "counted": counted, "sha256": hash_file(path)}  # fmt: skip
    write_json(manifest_path(path), manifest)


def parameters(studies: int, seed: int, image_size: int) -> dict:
    return {"version": VERSION, "studies": studies, "seed": seed, "image_size": image_size}


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read_manifest(root: Path) -> dict | None:
    """The manifest of a miniature set, or None where there is none that can be read as such."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def whole(root: Path, manifest: dict) -> bool:
    """True when every file of the set is there with the bytes that the manifest names."""
    try:
        ids = map(study_id, range(manifest["studies"]))
        paths = [root / "images" / name / f"{number}.png" for name in ids for number in range(len(VIEWS))]
        found = {name: hash_file(root / name) for name in manifest["sha256"] if name != "images"}
        found["images"] = hashlib.sha256("".join(map(hash_file, paths)).encode()).hexdigest()
    except (OSError, KeyError):
        return False
    return found == manifest["sha256"]


def keep(out: Path, wanted: dict) -> dict | None:
    """The manifest of the set in `out` if it is the wanted one and whole, None if `out` is absent or empty.

    Raises InputError when `out` holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest is None:
        what = "something that is not a whole miniature set"
    elif {key: manifest.get(key) for key in wanted} != wanted:
        what = "a miniature set of " + ", ".join(f"{key} {manifest.get(key)}" for key in wanted)
    elif not whole(out, manifest):
        what = "a miniature set with missing or changed files"
    else:
        return manifest
    raise InputError(f"--out {out} holds {what}: pass --overwrite to replace it, or another --out")


def build(out: Path, *, studies: int = 600, seed: int = 0, image_size: int = 256, overwrite: bool = False,
          progress: bool = True) -> dict:
    """Makes the miniature set under `out` and returns its manifest; a set that is already there is kept.

    studies: how many, at least LEAST_STUDIES; image_size: pixels of a side, at least 64; seed: 0 or more.
    The files appear all at once: they are written beside `out` and renamed. The same parameters give the same bytes.
    Raises InputError for a bad parameter, or when `out` holds something else and `overwrite` is not given.
    """
    out = Path(out)
    for name, value, least in (("studies", studies, LEAST_STUDIES), ("image_size", image_size, 64), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"--{name} {value}: must be {least} or more")
    wanted = parameters(studies, seed, image_size)
    if not overwrite:
        manifest = keep(out, wanted)
        if manifest:
            if progress:
                print(f"{out}: kept, it already holds this set of {studies} studies")
            return manifest
    elif out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - set(NAMES)):
        raise InputError(f"--overwrite: {out} holds files that are no part of a miniature set; choose another --out")

    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.{os.getpid()}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        manifest = write_set(work, studies=studies, seed=seed, image_size=image_size, progress=progress)
        if overwrite:
            shutil.rmtree(out, ignore_errors=True)
        try:
            work.rename(out)
        except OSError:                                                 # another process was faster
            manifest = keep(out, wanted) or manifest
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if progress:
        print(f"{out}: {studies} studies, {manifest['splits']}")
    return manifest


def load_truth(root: Path) -> dict[str, list[dict]]:
    """What is drawn in each study of the set under `root`: id -> findings (an empty list: normal).

    A finding has label, kind, side, place, size, severity (None: does not apply), boxes {view: [x0, y0, x1, y1] in
    fractions, or None: not seen in that view} and mask, bool [MASK_SIZE, MASK_SIZE] of the label in the frontal view
    (the effusions of both sides share one). Raises InputError when `root` holds no miniature set.
    """
    root = Path(root)
    if read_manifest(root) is None:
        raise InputError(f"{root}: no miniature data set; make it with python -m data.miniature_set --out {root}")
    truth = json.loads((root / "truth.json").read_text())
    with np.load(root / "truth_masks.npz") as held:
        row, column = ({name: at for at, name in enumerate(held[key].tolist())} for key in ("ids", "labels"))
        masks = held["masks"]
    for name, found in truth.items():
        for finding in found:
            bits = np.unpackbits(masks[row[name], column[finding["label"]]])
            finding["mask"] = bits.reshape(MASK_SIZE, MASK_SIZE).astype(bool)
    return truth


@entry
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.miniature_set", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/miniature"), help="folder of the set")
    parser.add_argument("--studies", type=int, default=600, help="number of studies, two images each")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other studies")
    parser.add_argument("--image_size", type=int, default=256, help="pixels of an image's side")
    parser.add_argument("--overwrite", action="store_true", help="replace the set that --out holds")
    build(**vars(parser.parse_args(argv)))
