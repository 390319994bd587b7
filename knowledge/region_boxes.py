"""Boxes of the 29 regions for images that nobody marked: by an atlas or by a trained detector.

    python -m knowledge.region_boxes fit --scene_graphs FILE --out atlas.json     medians over annotated images
    python -m knowledge.region_boxes show --image front.png --out boxes.png       an image with its boxes (--atlas, --detector)
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.images import PLAIN, Reading, open_image, square, to_tensor
from data.region_atlas import atlas_by_hand, find_thorax, fit_atlas, place_atlas, read_atlas
from data.scene_graphs import clean_box, manifest_of, read_rows
from modules.artefact import sha256, write_atomic, write_json
from modules.errors import InputError, entry
from modules.nets.region_detector import WHAT, RegionDetector
from modules.safe_pickle import load_pickle
from modules.text.regions import REGIONS

AT_ONCE = 32  # images that a detector sees together
PRESENT = 0.5  # a detector's box counts when its presence exceeds this
Found = tuple[list[str], list[list[float]], list[float]]  # of an image: regions, boxes in fractions, scores
COLOURS = ("#ff5050", "#50dc50", "#50a0ff", "#ffd700", "#ff70ff", "#40e0e0", "#ffa040")


def read_detector(path: str | Path) -> dict:
    """State of a detector that train_region_detector wrote. Raises InputError for anything else."""
    if not Path(path).is_file():
        raise InputError(f"--detector: no file {path}; train one with python -m knowledge.train_region_detector")
    state = load_pickle(path)
    if not isinstance(state, dict) or state.get("what") != WHAT:
        raise InputError(f"--detector {path} is no region detector of ours")
    if tuple(state["regions"]) != REGIONS:
        raise InputError(f"--detector {path} knows other regions ({len(state['regions'])}) than the {len(REGIONS)} of today")
    return state


def source_of(kind: str, atlas: str | None, detector: str | None) -> tuple[dict, dict]:
    """(source for `boxes_of`, what a manifest says of it) of --boxes atlas or detector."""
    if kind == "detector":
        if not detector:
            raise InputError("--boxes detector: name one with --detector")
        state = read_detector(detector)
        return state, {"kind": kind, "path": str(detector), "sha256": sha256(detector)}
    source = read_atlas(atlas) if atlas else atlas_by_hand()
    return source, dict(source)


class BoxFinder:
    """Boxes of images by one source: an atlas dict, or the state of a detector."""

    def __init__(self, source: dict, device="cpu") -> None:
        self.atlas = source if source["kind"] == "atlas" else None
        self.detector: Any = None if self.atlas else RegionDetector.from_state(source).to(device)
        self.device = device
        self.thorax_missed = 0  # images in which no thorax was found

    def ready(self, image: Image.Image):
        """What of an image is looked at: its thorax box, or a tensor."""
        return find_thorax(image) if self.atlas else to_tensor(square(image.convert("RGB"), self.detector.side))

    @torch.no_grad()
    def __call__(self, ready: list) -> list[Found]:
        """(regions, boxes in fractions clipped to the image, scores) for each of the images made `ready`."""
        if self.atlas:
            self.thorax_missed += sum(not found for _, found in ready)
            return [self._kept(place_atlas(self.atlas, thorax).values(), [1.0] * len(REGIONS)) for thorax, _ in ready]
        boxes, logits = self.detector(torch.stack(ready).to(self.device))
        scores = logits.sigmoid().cpu().tolist()
        return [self._kept(rows, found) for rows, found in zip(boxes.cpu().tolist(), scores)]

    @staticmethod
    def _kept(boxes, scores: list[float]):
        rows = [(name, clean_box(box), score) for name, box, score in zip(REGIONS, boxes, scores)]
        rows = [(name, box, round(score, 4)) for name, box, score in rows if box and score > PRESENT]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def find_boxes(image: Image.Image, source: dict) -> tuple[np.ndarray, np.ndarray]:
    """(regions int64 [N], boxes float32 [N, 4] in fractions) of one frontal image. source: of data.scene_graphs.box_source."""
    finder = BoxFinder(source)
    names, boxes, _ = finder([finder.ready(image)])[0]
    regions = np.array([REGIONS.index(name) for name in names], np.int64)
    return regions, np.array(boxes, np.float32).reshape(-1, 4)


def boxes_of(paths: list[str], finder: BoxFinder, reading: Reading = PLAIN) -> Iterator[Found]:
    """`finder`'s answer for image after image; read by threads, few at a time."""
    left = iter(paths)
    with ThreadPoolExecutor(4) as pool:
        while some := list(islice(left, AT_ONCE)):
            yield from finder(list(pool.map(lambda path: finder.ready(open_image(path, reading)), some)))


def drawn(image: Image.Image, boxes: dict[str, list[float]], side: int = 640) -> Image.Image:
    """The image with named boxes (fractions) on it, `side` pixels wide and high."""
    canvas = image.convert("RGB").resize((side, side))
    pen = ImageDraw.Draw(canvas)
    for number, (name, box) in enumerate(boxes.items()):
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle([corner * side for corner in box], outline=colour, width=2)
        pen.text((box[0] * side + 3, box[1] * side + 2), name, fill=colour)
    return canvas


@entry
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m knowledge.region_boxes", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    fit = verbs.add_parser("fit", help="an atlas from a file of scene graphs with boxes")
    fit.add_argument("--scene_graphs", required=True, help="file of scene graphs; its training images are used")
    fit.add_argument("--out", required=True, help="atlas to write (JSON)")
    show = verbs.add_parser("show", help="draw the boxes of one image")
    show.add_argument("--image", required=True, help="frontal image")
    show.add_argument("--atlas", help="atlas of `fit` [the shipped one, set by hand]")
    show.add_argument("--detector", help="a trained detector instead of an atlas")
    show.add_argument("--out", required=True, help="PNG to write")
    args = parser.parse_args(argv)
    if args.verb == "fit":
        manifest_of(args.scene_graphs)
        atlas = fit_atlas(row for row in read_rows(args.scene_graphs) if row["split"] == "train")
        write_json(args.out, atlas | {"scene_graphs_sha256": sha256(args.scene_graphs)})
        print(f"{args.out}: {atlas['made']}")
        return
    image = open_image(args.image)
    source, _ = source_of("detector" if args.detector else "atlas", args.atlas, args.detector)
    regions, boxes = find_boxes(image, source)
    picture = drawn(image, {REGIONS[number]: box for number, box in zip(regions.tolist(), boxes.tolist())})
    write_atomic(args.out, lambda temporary: picture.save(temporary, "PNG"))
    print(f"{args.out}: {len(regions)} regions")


if __name__ == "__main__":
    main()
