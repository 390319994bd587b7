"""Make the ADM masks of a data set: where the classifier looks for the labels it diagnoses (see modules/nets/adm.py).

    python -m knowledge.generate_adm --dataset_name iu_xray                     # make the store (or keep a made one)
    python -m knowledge.generate_adm --dataset_name mimic_cxr --sample 200      # time and disk, writes nothing
    python -m knowledge.generate_adm --dataset_name iu_xray --overlays DIR      # images for people
    python -m knowledge.generate_adm --dataset_name iu_xray --export_tree DIR   # the authors' .npy tree from the store
    python -m knowledge.generate_adm --dataset_name iu_xray --import_tree DIR   # a store from the authors' .npy tree

Kill the command and run it again to go on. What a store is, and how it is written: mask_store.py.
"""

import argparse
import hashlib
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

from data.images import PLAIN, Reading, diagnosis_tensor, open_image, reading_of, square
from data.mask_store import (
    PackedMasks,
    StoreWriter,
    check_room,
    export_tree,
    import_tree,
    kept_store,
    packed,
    print_store,
    row_bytes,
)
from data.studies import SPLITS, check_studies, read_annotation, without_broken
from knowledge.command import DATA, KEEP, OVERWRITE, read, report_cleaning
from models.masks import MASK_MAKERS
from modules.artefact import sha256, write_atomic
from modules.errors import InputError, Problems, entry
from modules.flags import Flag, positive_int
from modules.nets.adm import SIDE, apply_mask, classifier_masks, gradcam
from modules.nets.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.precision import choose_device
from modules.progress import tracked

MIMIC_IMAGES = 377_110
PRESETS = {"mimic_cxr": {"num_workers": 8, "image_check": "quick", "batch_size": 64}}


SHARED = (*DATA, "max_views", "knowledge_dir", "device", "num_workers")
# fmt: off
OWN = (
    *MASK_MAKERS,
    Flag("masks", "splits", str, SPLITS, "splits to make masks for", choices=SPLITS, nargs="+"),
    Flag("masks", "batch_size", positive_int, 16, "images per forward pass"),
    Flag("masks", "sample", positive_int, None, "measure speed and disk on this many images, write nothing"),
    Flag("masks", "export_tree", str, None, "folder to write the store to as <image path>.npy, as released"),
    Flag("masks", "import_tree", str, None, "folder of such .npy files to pack into --out, instead of a classifier"),
    Flag("masks", "overlays", str, None, "folder for PNGs: image, map with mask outline, masked image"),
    Flag("masks", "overlay_count", positive_int, 20, "how many of them, spread over the images"),
    Flag("output", "out", str, None, "store to write [<knowledge_dir>/adm_masks, by the rule sdam <knowledge_dir>/sdam_masks]"),
    OVERWRITE, KEEP,
)
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command. Unknown ones are answered with the nearest names (exit code 2)."""
    args = read(argv, "generate_adm", __doc__, SHARED, OWN, PRESETS)
    args.out = args.out or str(Path(args.knowledge_dir) / ("sdam_masks" if args.adm_rule == "sdam" else "adm_masks"))
    args.splits = [split for split in SPLITS if split in args.splits]
    return args


def open_adm_classifier(path: str | Path) -> DiagnosisBot:
    """The ADM classifier, ours or released; InputError where it cannot give Grad-CAM maps without a backward pass."""
    bot = load_diagnosisbot(path, flag="--adm_classifier", side=SIDE)
    if not isinstance(getattr(bot.classifier.net, "fc", None), torch.nn.Linear):
        raise InputError(f"--adm_classifier {path} is a {bot.backbone}: ADM needs one that ends in a pooled linear layer; "
                         "train one with python -m knowledge.train_adm_classifier")  # fmt: skip
    return bot


def images_of(args) -> list[str]:
    """The images that get a mask, in the annotation's order, each once. InputError lists every broken study."""
    problems = Problems()
    studies = {split: rows for split, rows in read_annotation(args.ann_path, args.limit).items() if split in args.splits}
    problems.check(any(studies.values()), f"{args.ann_path} has no studies in {' '.join(args.splits)}")
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}"):
        settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": args.max_views}
        broken = check_studies(studies, args.image_dir, depth=args.image_check, **settings)
        studies = without_broken(studies, broken, skip=args.skip_broken, problems=problems)
        if broken and args.skip_broken:
            shown = [f"  {name}: {reason}" for name, reason in list(broken.items())[:20]]
            more = [f"  ... and {len(broken) - 20} more"] if len(broken) > 20 else []
            print("\n".join([f"{len(broken)} broken studies are skipped:", *shown, *more]))
        problems.check(any(studies.values()), "every study is broken")
    problems.stop_if_any()
    listed = [image for rows in studies.values() for study in rows for image in study.images[: args.max_views]]
    return list(dict.fromkeys(listed))


def image_set_hash(images: list[str], image_dir: str | Path) -> str:
    """Hash of image paths and file sizes."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image} {os.path.getsize(f'{image_dir}/{image}')}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- making masks


class SquareImages(Dataset):
    """Images as the classifier sees them: (float [3, S, S], "") or (zeros, what is wrong with the file)."""

    def __init__(self, images: list[str], image_dir: str | Path, side: int, reading: Reading = PLAIN) -> None:
        self.images, self.image_dir, self.side, self.reading = images, str(image_dir), side, reading

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, str]:
        try:
            image = open_image(f"{self.image_dir}/{self.images[place]}", self.reading)
        except InputError as error:
            return torch.zeros(3, self.side, self.side), str(error)
        return diagnosis_tensor(square(image, SIDE), self.side), ""


@torch.no_grad()
def packed_batches(
    bot: DiagnosisBot, images: list[str], image_dir, *, rule, device, batch_size, num_workers, reading: Reading = PLAIN
):
    """Yields (packed masks uint8 [n, row_bytes], {place in the batch: what is wrong}) in the order of `images`."""
    bot = bot.to(device).eval()
    bot.classifier.to(memory_format=torch.channels_last)
    dataset = SquareImages(images, image_dir, bot.side, reading)
    for tensors, wrong in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers):
        masks = classifier_masks(bot, tensors.to(device), rule).cpu().numpy()
        yield packed(masks), {place: text for place, text in enumerate(wrong) if text}


def make_store(args, bot: DiagnosisBot, images: list[str], device) -> dict:
    """Make the store --out of `images`, or keep one of the same inputs. Returns its manifest."""
    inputs = {
        "classifier_sha256": sha256(args.adm_classifier),
        "fingerprint": bot.fingerprint(),
        "backbone": bot.backbone,
        "labels": list(bot.labels),
        "thresholds": [round(value, 8) for value in bot.thresholds.tolist()],
        "classifier_side": bot.side,
        "rule": args.adm_rule,
        "side": SIDE,
        "splits": args.splits,
        "max_views": args.max_views,
        "images_sha256": image_set_hash(images, args.image_dir) + reading_of(args).name,
    }
    out = Path(args.out)
    manifest = None if args.overwrite else kept_store(out, inputs, keep=args.keep)
    if manifest:
        print(f"{out}: kept")
        return manifest
    check_room(out, len(images) * row_bytes(SIDE))
    store = StoreWriter(out, inputs, images)
    if store.message:
        print(store.message)
    settings = {"rule": args.adm_rule, "device": device, "batch_size": args.batch_size, "num_workers": args.num_workers,
                "reading": reading_of(args)}  # fmt: skip
    start = time.perf_counter()
    rest = images[store.done :]
    try:
        with tracked(total=len(images), initial=store.done, desc="masks") as bar:
            for rows, wrong in packed_batches(bot, rest, args.image_dir, **settings):
                if wrong and not args.skip_broken:
                    raise InputError(
                        "an image turned out broken on the way; mend it and begin anew, or pass --skip_broken to go on "
                        "without it (--image_check full finds such images at the start):\n  - "
                        + "\n  - ".join(wrong.values())
                    )
                store.add(rows, wrong)
                bar.update(len(rows))
    finally:
        store.close()
    facts = {"rule": args.adm_rule, "classifier": str(args.adm_classifier), "dataset": args.dataset_name}
    manifest = store.finish(seconds=round(time.perf_counter() - start, 1), **facts)
    print_store(out, manifest)
    return manifest


def measure_speed(args, bot: DiagnosisBot, images: list[str], device) -> dict:
    """Make the masks of the first --sample images, keep nothing, and print what the rest would take."""
    chosen = images[: args.sample]
    settings = {"rule": args.adm_rule, "device": device, "batch_size": args.batch_size, "num_workers": args.num_workers,
                "reading": reading_of(args)}  # fmt: skip
    next(packed_batches(bot, chosen[: args.batch_size], args.image_dir, **settings | {"num_workers": 0}))  # warm up
    start = time.perf_counter()
    count = sum(len(rows) for rows, _ in packed_batches(bot, chosen, args.image_dir, **settings))
    speed, width = count / (time.perf_counter() - start), row_bytes(SIDE)
    print(f"measured: {count} images, {speed:.1f} images/s on {device}, {bot.backbone}, batches of {args.batch_size}")
    for name, number in ((f"{args.dataset_name}, {' '.join(args.splits)}", len(images)), ("MIMIC-CXR", MIMIC_IMAGES)):
        tree = number * (SIDE * SIDE + 128)
        print(f"computed: {number:,d} images ({name}): {number / speed / 3600:.2f} h, {number * width / 1e9:.2f} GB packed "
              f"(as .npy files {tree / 1e9:.2f} GB)")  # fmt: skip
    return {"images_per_s": speed, "bytes_per_mask": width}


# ---------------------------------------------------------------- images for people


@torch.no_grad()
def overlay(bot: DiagnosisBot, image: Image.Image, mask: np.ndarray, device) -> Image.Image:
    """Three panels: the image; the largest map of the diagnosed labels over it with the mask's outline; the image
    as the generator gets it with theta 0 and gamma 0.4. image: RGB, SIDE x SIDE; mask: bool [h, w]."""
    maps, probabilities = gradcam(bot, diagnosis_tensor(image, bot.side)[None].to(device), SIDE)
    said = [k for k, bit in enumerate(bot.diagnose(probabilities)[0].tolist()) if bit]
    heat = maps[0, said].amax(0).cpu().numpy() if said else np.zeros((SIDE, SIDE), np.float32)
    pixels = np.asarray(image, np.float32)
    heated = pixels * (1 - 0.5 * heat[..., None]) + 0.5 * heat[..., None] * np.array([255, 60, 0], np.float32)
    if mask.shape != heat.shape:
        mask = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    heated[mask & ~inner] = (255, 255, 0)
    panels = Image.new("RGB", (3 * SIDE + 20, SIDE + 30))
    masked = apply_mask(image, mask, theta=0, gamma=0.4)
    for place, panel in enumerate((image, Image.fromarray(heated.astype(np.uint8)), masked)):
        panels.paste(panel, (place * (SIDE + 10), 0))
    names = ", ".join(f"{bot.labels[k]} {probabilities[0, k]:.2f}" for k in said) or "no label diagnosed"
    ImageDraw.Draw(panels).text((4, SIDE + 8), f"{names}   kept {mask.mean():.0%}", fill=(255, 255, 255))
    return panels


def write_overlays(args, bot: DiagnosisBot, store: PackedMasks, device) -> None:
    """--overlay_count PNGs into --overlays, of images spread over the store."""
    folder, listed = Path(args.overlays), list(store.rows)
    folder.mkdir(parents=True, exist_ok=True)
    places = sorted(set(np.linspace(0, len(listed) - 1, min(args.overlay_count, len(listed))).astype(int).tolist()))
    bot = bot.to(device).eval()
    for place in places:
        image = square(open_image(f"{args.image_dir}/{listed[place]}", reading_of(args)), SIDE)
        name = str(Path(listed[place]).with_suffix("")).replace("/", "_")
        image = overlay(bot, image, store.get(listed[place]), device)
        write_atomic(folder / f"{name}.png", partial(image.save, format="PNG"))
    print(f"{folder}: {len(places)} overlays (image | map and mask outline | masked image)")


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = parse(argv)
    device = choose_device(args.device)
    only_export = args.export_tree and not (args.import_tree or args.sample or args.overlays or args.overwrite)
    if only_export and Path(args.out).is_dir():  # the store is there: neither classifier nor images are needed
        print(f"{args.export_tree}: {export_tree(PackedMasks(args.out), args.export_tree)} .npy files")
        return
    needed = args.sample or args.overlays or not args.import_tree
    bot = open_adm_classifier(args.adm_classifier) if needed else None
    images = images_of(args)
    if bot and args.sample:
        measure_speed(args, bot, images, device)
        return
    if args.import_tree:
        import_tree(args, images)
    elif bot:
        make_store(args, bot, images, device)
    store = PackedMasks(args.out)
    if bot and args.overlays:
        write_overlays(args, bot, store, device)
    if args.export_tree:
        print(f"{args.export_tree}: {export_tree(store, args.export_tree)} .npy files")


if __name__ == "__main__":
    main()
