"""How fast studies come from the disk: decoded at every epoch, from the image cache, and as published with .npy masks.

    python -m benchmarks.data_loading --dataset_name iu_xray --data_dir data/iu_xray [--masks] [--out results/loading.json]

Measures data.batches.StudyDataset in this process, one study after another, without augmentation and with --augment; what
--num_workers adds comes on top. --masks adds the masked view: from a packed store, and as published from one 300 x 300
boolean .npy file per image, both made here from random maps. The cache's disk and building time are extrapolated to
MIMIC-CXR's 377,110 images.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import add_shared, interleaved, ratio, report
from data.batches import StudyDataset
from data.image_cache import open_cache
from data.images import Augmentation
from data.studies import read_annotation
from models import SYSTEMS
from modules.flags import parse
from modules.nets.adm import apply_mask

MIMIC_IMAGES = 377_110
SIDE = 300


class NpyMasks:
    """The published way: one boolean array per image, read whole."""

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self.files = {path: folder / f"{number}.npy" for number, path in enumerate(paths)}
        draw = np.random.default_rng(0)
        for file in self.files.values():
            coarse = draw.random((10, 10)) > 0.5
            np.save(file, np.kron(coarse, np.ones((SIDE // 10, SIDE // 10), dtype=bool)))

    def __call__(self, path: str, image):
        return apply_mask(image, np.load(self.files[path]), theta=0.4, gamma=0.4, beta=1.0)


class PackedMasks(NpyMasks):
    """The same masks as one bit per pixel in one array, as modules.nets.adm stores them."""

    def __init__(self, published: NpyMasks) -> None:
        self.rows = {path: np.packbits(np.load(file)) for path, file in published.files.items()}

    def __call__(self, path: str, image):
        mask = np.unpackbits(self.rows[path], count=SIDE * SIDE).reshape(SIDE, SIDE).astype(bool)
        return apply_mask(image, mask, theta=0.4, gamma=0.4, beta=1.0)


def go_through(made: StudyDataset) -> None:
    for number in range(len(made)):
        made[number]


def open_all(made: StudyDataset, paths: list[str]) -> None:
    for path in paths:
        made._image(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset_name", default="iu_xray")
    parser.add_argument("--data_dir")
    parser.add_argument("--studies", type=int, default=300, help="studies of the training split, from its start [300]")
    parser.add_argument("--augment", default="none", choices=Augmentation.KINDS)
    parser.add_argument("--masks", action="store_true", help="the masked view too")
    add_shared(parser)
    args = parser.parse_args()
    words = ["--dataset_name", args.dataset_name] + (["--data_dir", args.data_dir] if args.data_dir else [])
    flags = parse(words, "train", systems=SYSTEMS)
    studies = read_annotation(flags.ann_path)["train"][: args.studies]
    paths = [path for study in studies for path in study.images[: flags.max_views]]
    needs = {"images", "masked_images"} if args.masks else {"images"}
    sizes = Augmentation(args.augment, SIDE)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        start = time.perf_counter()
        cache = open_cache(folder / "cache", flags.image_dir, paths, sizes.resize, name=sizes.name)
        built = time.perf_counter() - start
        (folder / "npy").mkdir()
        published = NpyMasks(folder / "npy", paths)
        shared = {"needs": needs, "image_size": SIDE, "max_views": flags.max_views, "augment": args.augment}
        sets = {
            "decoded every time": StudyDataset(studies, flags.image_dir, mask_rule=published, **shared),
            "from the cache": StudyDataset(studies, flags.image_dir, mask_rule=PackedMasks(published), cache=cache, **shared),
        }
        device = torch.device("cpu")
        taken = interleaved({name: partial(go_through, made) for name, made in sets.items()}, args.repeats, device)

        # without what comes after: augmentation, masks and conversion to float
        alone = interleaved({name: partial(open_all, made, paths) for name, made in sets.items()}, args.repeats, device)
    rows = [(f"{name}, studies per second", len(studies) / min(values), "/s") for name, values in taken.items()]
    rows += [(f"{name}, images alone", len(paths) / min(values), "/s") for name, values in alone.items()]
    rows += [
        ("cache / decoding, studies", ratio(taken, "decoded every time", "from the cache"), "times"),
        ("cache / decoding, images alone", ratio(alone, "decoded every time", "from the cache"), "times"),
        ("building the cache", len(paths) / built, "images/s"),
        ("cache, MIMIC-CXR", cache.manifest["bytes"] / len(paths) * MIMIC_IMAGES / 1e9, "GB"),
        ("building it, MIMIC-CXR, images of this size", MIMIC_IMAGES / len(paths) * built / 3600, "h"),
    ]
    report(f"loading {len(studies)} studies of {args.dataset_name}, {SIDE} pixels", rows, args, device)


if __name__ == "__main__":
    main()
