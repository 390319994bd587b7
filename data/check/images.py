"""The images: there, whole, usable, and prepared alike in every split."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from data.check.findings import FOUND, MISSING, UNUSUAL, WRONG, Findings
from data.dicom import dicom_problem, is_dicom
from data.equalize import is_equalized
from data.images import image_problem, open_image
from data.studies import SPLITS
from modules.errors import InputError

GROUP = "images"
SAMPLE = 200  # images whose pixels are looked at by --depth quick
ASPECT = 2.0  # longer to shorter side
BORDER = 30  # grey levels by which the border of an inverted image exceeds its mean; of IU X-Ray none does


@dataclass(frozen=True)
class Look:
    """What is known of one image file. problem: missing, broken or "". The last four need its pixels, None without.

    size: (0, 0) of a file with a problem.
    """

    path: str
    problem: str = ""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    deep: bool = False
    colour: bool | None = None
    flat: bool | None = None
    inverted: bool | None = None
    equalized: bool | None = None


class PixelFacts(TypedDict, total=False):
    """What the pixels of an image say, as in Look."""

    colour: bool
    flat: bool
    inverted: bool
    equalized: bool


def check_images(found: Findings, args, rows: dict[str, list[dict]], depth: str) -> None:
    """Adds the items of the group. depth: "full" decodes every image, "quick" all headers and an even sample of pixels."""
    folder = Path(args.image_dir)
    if not folder.is_dir():
        found.add(GROUP, MISSING, "folder", f"no folder {folder}", "say where the images lie with --image_dir")
        return
    found.add(GROUP, FOUND, "folder", str(folder))
    by_split = {split: sorted({path for row in rows[split] for path in row["image_path"]}) for split in SPLITS}
    paths = sorted(set().union(*by_split.values()))
    chosen = set(paths) if depth == "full" else set().union(*(_even(some, SAMPLE // 3) for some in by_split.values()))
    with ThreadPoolExecutor(8) as pool:
        looks = list(pool.map(lambda path: look(folder, path, pixels=path in chosen), paths))
    _files(found, args, looks, [one for one in looks if not one.problem])
    _pixels(found, looks, depth)
    _equalized(found, looks, {split: set(some) for split, some in by_split.items()})


def _even(paths: list[str], count: int) -> Iterable[str]:
    return paths[:: max(1, len(paths) // count)][:count] if paths else []


def look(folder: Path, path: str, *, pixels: bool) -> Look:
    """Look at one image; nothing is raised for a bad one."""
    where = folder / path
    if not where.is_file():
        return Look(path, "missing")
    dicom = is_dicom(where)
    reason = dicom_problem(where) if dicom else image_problem(where, "full" if pixels else "quick")
    if reason:
        return Look(path, "broken", reason)
    try:
        image = open_image(where) if dicom or pixels else None
        if image and dicom:
            size, deep = image.size, False
        else:
            with Image.open(where) as header:
                size, deep = header.size, header.mode.startswith(("I", "F"))
    except InputError as error:
        return Look(path, "broken", str(error))
    facts: PixelFacts = pixel_facts(np.asarray(image.convert("RGB"))) if image and pixels else {}
    return Look(path, size=size, deep=deep, **facts)


def pixel_facts(pixels: np.ndarray) -> PixelFacts:
    """colour, flat, inverted, equalized of uint8 [H, W, 3]."""
    grey = pixels[..., 0]
    colour = bool((pixels != grey[..., None]).any())
    grey = np.asarray(Image.fromarray(pixels).convert("L")) if colour else grey
    high, wide = (max(1, length // 20) for length in grey.shape)
    border = np.concatenate([grey[:high].ravel(), grey[:, :wide].ravel(), grey[:, -wide:].ravel()])
    return {
        "colour": colour,
        "flat": bool(grey.min() == grey.max()),
        "inverted": bool(border.mean() - grey.mean() > BORDER),
        "equalized": is_equalized(grey),
    }


def _files(found: Findings, args, looks: list[Look], usable: list[Look]) -> None:
    missing = [one.path for one in looks if one.problem == "missing"]
    how = f"bring them below {args.image_dir}, or --skip_broken"
    found.judge(
        GROUP, "files", missing, MISSING, f"all {len(looks):,d} are there", f"of {len(looks):,d} are missing", how
    )
    broken = [one.reason for one in looks if one.problem == "broken"]
    found.judge(GROUP, "readable", broken, WRONG, "all", "cannot be read", "copy them again, or --skip_broken")
    least = args.image_size // 2
    tiny = [f"{one.path}: {one.size[0]} x {one.size[1]}" for one in usable if min(one.size) < least]
    how = "take the originals, or a smaller --image_size"
    found.judge(GROUP, "size", tiny, UNUSUAL, f"sides of {least} pixels and more", f"are below {least} pixels", how)
    long = [f"{one.path}: {one.size[0]} x {one.size[1]}" for one in usable if max(one.size) > ASPECT * min(one.size)]
    text = f"have a side more than {ASPECT:g} times the other"
    found.judge(GROUP, "aspect", long, UNUSUAL, f"within 1:{ASPECT:g}", text, "look at them: cut wrongly?")
    deep = [one.path for one in usable if one.deep]
    text = "have more than 8 bits and are scaled to their own range"
    found.judge(GROUP, "16 bit", deep, UNUSUAL, "none", text, "convert all images alike: data.prepare_table --resize")


def _pixels(found: Findings, looks: list[Look], depth: str) -> None:
    seen = [one for one in looks if one.flat is not None]
    good = f"none of {len(seen):,d} looked at" + ("" if depth == "full" else " (--depth full looks at all)")
    flat = [one.path for one in seen if one.flat]
    found.judge(
        GROUP, "one grey", flat, WRONG, good, "are of a single grey level", "export them again, or take them out"
    )
    inverted = [one.path for one in seen if one.inverted]
    text = "look inverted: the border is brighter than the chest"
    found.judge(GROUP, "inverted", inverted, UNUSUAL, good, text, "look at them: MONOCHROME1 not inverted?")
    colour = [one.path for one in seen if one.colour]
    text = "are colour images"
    found.judge(GROUP, "colour", colour, UNUSUAL, good, text, "look at them: screenshots, annotations?")


def _equalized(found: Findings, looks: list[Look], by_split: dict[str, set[str]]) -> None:
    shares = {}
    for split, paths in by_split.items():
        seen = [one.equalized for one in looks if one.equalized is not None and one.path in paths]
        if seen:
            shares[split] = sum(seen) / len(seen)
    text = ", ".join(f"{share:.0%} of {split}" for split, share in shares.items())
    text = f"histogram-equalised: {text}" if text else "no image to look at"
    unlike = "train" in shares and any(abs(share - shares["train"]) > 0.5 for share in shares.values())
    how = "prepare all splits alike, or train and test with --equalize on"
    found.add(GROUP, UNUSUAL if unlike else FOUND, "equalisation", text, how if unlike else "")
