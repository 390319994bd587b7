"""Measure ADM maps against the truth of the miniature data set: does the classifier look where the finding is drawn?

    python -m knowledge.check_adm --dataset_name miniature --split test

For every label that is drawn in an image: the pointing game (does the map's maximum lie on the finding, within a
twentieth of the image's side), and the IoU of the label's mask with the finding; beside both what a random point
and a random square of the mask's size reach. For the joined masks: how much of all that is drawn they keep.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.images import diagnosis_tensor, open_image, square
from data.miniature_set.build import load_truth
from data.studies import SPLITS, read_annotation
from knowledge.command import read
from knowledge.generate_adm import open_adm_classifier
from models.masks import MASK_MAKERS
from modules.artefact import write_json
from modules.errors import InputError, entry
from modules.flags import Flag
from modules.nets.adm import SIDE, gradcam, masks_of
from modules.nets.diagnosisbot import DiagnosisBot
from modules.precision import choose_device

TOLERANCE = SIDE // 20
BOXES = 50


def enlarged(mask: np.ndarray, pixels: int) -> np.ndarray:
    """bool [h, w] -> the same, True also up to `pixels` away (along rows and columns)."""
    size = 2 * pixels + 1
    grown = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None, None].float(), size, stride=1, padding=pixels)
    return grown[0, 0].bool().numpy()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def random_box_iou(area: int, truth: np.ndarray, draw: np.random.Generator) -> float:
    """Mean IoU with `truth` of BOXES squares of `area` pixels, thrown anywhere inside the image."""
    side = int(np.clip(round(area**0.5), 1, min(truth.shape)))
    total = np.pad(truth.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # [y, x]: truth above and left of it
    top, left = (draw.integers(0, length - side + 1, BOXES) for length in truth.shape)
    inside = total[top + side, left + side] - total[top, left + side] - total[top + side, left] + total[top, left]
    return float((inside / np.maximum(side**2 + truth.sum() - inside, 1)).mean())


@torch.no_grad()
def check_maps(bot: DiagnosisBot, studies, image_dir, truth: dict, *, rule: str, device, seed: int = 0) -> dict:
    """Means over the drawn findings of `studies` (first images, frontal), per label and for all.

    truth: of load_truth. Returns {"labels": {label: {findings, pointing, pointing_chance, iou, iou_chance}}, "all":
    the mean of the labels' rows, "joined": {kept, covered}}.
    """
    draw, joined = np.random.default_rng(seed), []
    rows: dict[str, list] = {}
    bot = bot.to(device).eval()
    for study in studies:
        drawn = {f["label"]: f["mask"] for f in truth[study.id] if f["label"] in bot.labels and f["mask"].any()}
        image = square(open_image(f"{image_dir}/{study.images[0]}"), SIDE)
        maps, probabilities = gradcam(bot, diagnosis_tensor(image, bot.side)[None].to(device), SIDE)
        masks, said = masks_of(maps, rule)[0].cpu().numpy(), bot.diagnose(probabilities)[0].bool().cpu().numpy()
        whole = np.zeros((SIDE, SIDE), bool)
        for label, small in drawn.items():
            real = np.array(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.NEAREST))
            near, k = enlarged(real, TOLERANCE), bot.labels.index(label)
            hit = near.ravel()[int(maps[0, k].argmax())]
            chance = random_box_iou(int(masks[k].sum()), real, draw)
            rows.setdefault(label, []).append((hit, near.mean(), iou(masks[k], real), chance, said[k]))
            whole |= real
        if drawn:
            union = masks[said].any(0) if said.any() else np.zeros_like(whole)
            joined.append((union.mean(), (union & whole).sum() / whole.sum()))
    if not rows:
        raise InputError("no finding is drawn in these studies")
    names = ("pointing", "pointing_chance", "iou", "iou_chance", "diagnosed")
    labels = {
        label: {"findings": len(found), **dict(zip(names, np.mean(found, 0).round(4).tolist()))}
        for label, found in sorted(rows.items())
    }
    means = {name: round(float(np.mean([row[name] for row in labels.values()])), 4) for name in names}
    kept, covered = np.mean(joined, 0).round(4).tolist()
    return {"rule": rule, "labels": labels, "all": means, "joined": {"kept": kept, "covered": covered}}


def text(result: dict) -> str:
    """The table of check_maps for people."""
    lines = [f"{'label':27s} findings  pointing (chance)     IoU (random box)  diagnosed"]
    for label, row in [*result["labels"].items(), ("mean of labels", {"findings": "", **result["all"]})]:
        lines.append(
            f"{label:27s} {row['findings']:>8}  {row['pointing']:8.3f} ({row['pointing_chance']:.3f})  "
            f"{row['iou']:8.3f} ({row['iou_chance']:.3f})    {row['diagnosed']:9.3f}"
        )
    joined = result["joined"]
    lines.append(f"joined masks keep {joined['kept']:.1%} of the image and {joined['covered']:.1%} of what is drawn")
    return "\n".join(lines)


SHARED = ("dataset_name", "data_dir", "ann_path", "image_dir", "limit", "knowledge_dir", "device", "seed")
OWN = (
    *(replace(flag, default="cam") if flag.name == "adm_rule" else flag for flag in MASK_MAKERS),
    Flag("masks", "split", str, "val", "split to look at", choices=SPLITS),
    Flag("masks", "out", str, None, "JSON to write the figures to"),
)


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = read(["--dataset_name", "miniature", *(sys.argv[1:] if argv is None else argv)], "check_adm", __doc__, SHARED, OWN)
    truth, bot = load_truth(Path(args.data_dir)), open_adm_classifier(args.adm_classifier)
    studies = read_annotation(args.ann_path, args.limit)[args.split]
    settings = {"rule": args.adm_rule, "device": choose_device(args.device), "seed": args.seed}
    result = check_maps(bot, studies, args.image_dir, truth, **settings)
    print(f"rule {args.adm_rule}, {args.split} split, {len(studies)} studies")
    print(text(result))
    if args.out:
        write_json(args.out, {"what": "adm check", "split": args.split, "classifier": args.adm_classifier, **result})


if __name__ == "__main__":
    main()
