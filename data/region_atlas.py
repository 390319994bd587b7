"""An atlas of regions: where the 29 regions of a frontal chest image lie when nobody marked them.

A box of the atlas is x0 y0 x1 y1 in fractions of the thorax box, the rectangle around both lungs, which is looked for in
each image. An atlas is a dict {"kind": "atlas", "table": {region: box}, ...} of plain values: it lies in a file, in a
manifest, in a checkpoint.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from modules.artefact import read_json
from modules.errors import InputError
from modules.text.regions import REGIONS

# Set by hand on real frontal images, not measured; the patient's right lies left. `region_boxes fit` measures one.
BY_HAND = {
    "left lung": (0.54, 0, 1, 1), "right lung": (0, 0, 0.46, 0.97), "cardiac silhouette": (0.34, 0.48, 0.80, 0.92),
    "mediastinum": (0.36, 0.02, 0.72, 0.90), "left lower lung zone": (0.60, 0.64, 1, 1),
    "right lower lung zone": (0, 0.62, 0.44, 0.97), "right hilar structures": (0.24, 0.34, 0.45, 0.62),
    "left hilar structures": (0.55, 0.31, 0.74, 0.60), "upper mediastinum": (0.38, 0.02, 0.64, 0.36),
    "left costophrenic angle": (0.86, 0.86, 1, 1.03), "right costophrenic angle": (0, 0.84, 0.14, 1),
    "left mid lung zone": (0.57, 0.37, 0.98, 0.64), "right mid lung zone": (0.02, 0.37, 0.44, 0.62),
    "aortic arch": (0.50, 0.20, 0.66, 0.36), "right upper lung zone": (0.06, 0, 0.45, 0.37),
    "left upper lung zone": (0.55, 0, 0.94, 0.37), "right hemidiaphragm": (0.02, 0.78, 0.46, 1),
    "right clavicle": (0.04, -0.02, 0.44, 0.14), "left clavicle": (0.56, -0.02, 0.96, 0.14),
    "left hemidiaphragm": (0.56, 0.82, 0.98, 1.05), "right apical zone": (0.10, 0, 0.42, 0.16),
    "trachea": (0.44, -0.05, 0.56, 0.34), "left apical zone": (0.58, 0, 0.90, 0.16), "carina": (0.44, 0.30, 0.56, 0.40),
    "svc": (0.40, 0.22, 0.50, 0.48), "right atrium": (0.34, 0.54, 0.52, 0.84),
    "cavoatrial junction": (0.39, 0.46, 0.50, 0.56), "abdomen": (0, 0.86, 1, 1.25), "spine": (0.44, -0.05, 0.58, 1.15),
}  # fmt: skip
USUAL_THORAX = (0.13, 0.11, 0.87, 0.80)  # of a frontal image, where none is found
SIDE = 128  # pixels at which the thorax is looked for


def atlas_by_hand() -> dict:
    """The shipped atlas."""
    return {"kind": "atlas", "table": {region: list(BY_HAND[region]) for region in REGIONS}, "made": "by hand"}


def read_atlas(path: str | Path) -> dict:
    """The atlas of a file that `python -m knowledge.region_boxes fit` wrote. Raises InputError for anything else."""
    atlas = read_json(path, "python -m knowledge.region_boxes fit writes an atlas")
    table = atlas.get("table") if isinstance(atlas, dict) and atlas.get("kind") == "atlas" else None
    unknown = sorted(set(table or {}) ^ set(REGIONS))
    if unknown:
        raise InputError(f"{path} is no atlas of the {len(REGIONS)} regions (differs in {', '.join(unknown[:3])})")
    return atlas


def fit_atlas(rows: Iterable[dict]) -> dict:
    """Medians over annotated images; rows: lines of a scene-graph file. Images without both lungs are left out.

    Raises InputError when a region has a box in no image.
    """
    seen: dict[str, list[np.ndarray]] = {region: [] for region in REGIONS}
    used = 0
    for row in rows:
        boxes = {region["name"]: np.array(region["box"]) for region in row["regions"] if region["box"]}
        lungs = [boxes[name] for name in ("left lung", "right lung") if name in boxes]
        if len(lungs) < 2:
            continue
        used += 1
        low, high = np.minimum(*lungs)[:2], np.maximum(*lungs)[2:]
        for name, box in boxes.items():
            seen[name].append((box - np.tile(low, 2)) / np.tile(high - low, 2))
    missing = [region for region, found in seen.items() if not found]
    if missing:
        raise InputError(f"no atlas from {used} images with both lungs: no box of {', '.join(missing[:5])}")
    table = {region: np.median(found, 0).round(4).tolist() for region, found in seen.items()}
    return {"kind": "atlas", "table": table, "made": f"medians over {used} images"}


def place_atlas(atlas: dict, thorax) -> dict[str, list[float]]:
    """{region: box in fractions of the image} for a thorax box in fractions of the image; boxes may reach beyond it."""
    x0, y0, x1, y1 = thorax
    scale, start = np.array([x1 - x0, y1 - y0] * 2), np.array([x0, y0] * 2)
    return {region: (start + scale * np.array(box)).tolist() for region, box in atlas["table"].items()}


def find_thorax(image: Image.Image) -> tuple[tuple[float, float, float, float], bool]:
    """(x0 y0 x1 y1 of the rectangle around both lungs in fractions of a frontal image, whether it was found).

    Lungs are what is darker than its wider neighbourhood, more so than most of the image's middle, and is not joined to
    the dark around the body. Where that has not the size and place of a thorax, USUAL_THORAX.
    """
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    smooth = small.filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.MaxFilter(3))  # cuts thin dark bridges
    around = small.filter(ImageFilter.GaussianBlur(SIDE / 5))
    contrast = np.asarray(smooth, np.int16) - np.asarray(around, np.int16)
    middle = contrast[SIDE // 8 : -SIDE // 8, SIDE // 8 : -SIDE // 8]
    for percentile in (60, 50, 42, 34, 26):  # lungs that are joined to the outside part from it at a lower threshold
        box = _dark_box(contrast < np.percentile(middle, percentile))
        if box is not None:
            return box, True
    return USUAL_THORAX, False


def _from_the_border(dark: np.ndarray) -> np.ndarray:
    """What of `dark` [SIDE, SIDE] is joined to the border, over edges of pixels."""
    open_to = np.pad(dark, 1, constant_values=True)
    reached = np.zeros_like(open_to)
    reached[[0, -1], :] = reached[:, [0, -1]] = True
    count = 0
    while count != (count := int(reached.sum())):
        for _ in range(8):
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            reached = grown & open_to
    return reached[1:-1, 1:-1]


def _run(counts: np.ndarray) -> tuple[int, int]:
    """(first, end) of the unbroken run around the highest count where counts exceed 15 % of it: not the gas below a dome."""
    low = np.flatnonzero(counts <= 0.15 * counts.max())
    top = int(counts.argmax())
    return int(max((n + 1 for n in low if n < top), default=0)), int(min((n for n in low if n > top), default=len(counts)))


def _dark_box(dark: np.ndarray) -> tuple[float, float, float, float] | None:
    """The rectangle of a thorax around what is dark [SIDE, SIDE] and not joined to the border; None: no such rectangle."""
    inside = dark & ~_from_the_border(dark)
    halves = [np.where(side, inside, False) for side in (np.arange(SIDE) < SIDE // 2, np.arange(SIDE) >= SIDE // 2)]
    if min(half.sum() for half in halves) < 0.02 * SIDE * SIDE:
        return None
    rows, columns = (np.array([_run(half.sum(axis)) for half in halves]) / SIDE for axis in (1, 0))
    x0, y0, x1, y1 = columns[:, 0].min(), rows[:, 0].min(), columns[:, 1].max(), rows[:, 1].max()
    likely = 0.5 <= x1 - x0 <= 0.95 and 0.4 <= y1 - y0 <= 0.9 and x0 < 0.35 and x1 > 0.65 and y0 < 0.35 and y1 > 0.55
    return (float(x0), float(y0), float(x1), float(y1)) if likely else None
