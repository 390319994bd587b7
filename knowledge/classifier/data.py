"""What the training of an image classifier reads: the first image of each study (or all) and its labels, checked at the start.

Letters: n images of a batch, N of a split, K labels, S side in pixels.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from data.images import MEAN, PLAIN, STD, Reading, open_image, reading_of, square
from data.studies import SPLITS, Study, card_text, check_studies, data_card, read_annotation, without_broken
from knowledge.classifier.flags import Job
from knowledge.command import report_cleaning
from modules.artefact import sha256
from modules.errors import InputError, Problems
from modules.nets.adm import SIDE
from modules.nets.pretrained import weights_problem
from modules.progress import tracked
from modules.text.labels import CHEXPERT_14, read_label_table

FORMAT = 1
WEIGHT_FLAGS = ("backbone", "backbone_weights")


class HeldImages(Dataset):
    """The first images of studies, uint8 [3, S, S]: what diagnosis_tensor(square(image, 300), S) holds as floats."""

    def __init__(self, studies: list[Study], image_dir: str | Path, side: int, reading: Reading = PLAIN) -> None:
        self.studies, self.image_dir, self.side, self.reading = studies, str(image_dir), side, reading
        self.held: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, place: int) -> torch.Tensor:
        image = square(open_image(f"{self.image_dir}/{self.studies[place].images[0]}", self.reading), SIDE)
        image = functional.center_crop(functional.resize(image, self.side), [self.side, self.side])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def bytes(self) -> int:
        """Memory that holding all of them takes."""
        return len(self) * 3 * self.side * self.side

    def hold(self, threads: int) -> None:
        """Decode all images now and keep them in memory."""
        held = torch.empty(len(self), 3, self.side, self.side, dtype=torch.uint8)

        def put(place: int) -> None:
            held[place] = self[place]

        with ThreadPoolExecutor(threads) as pool:
            list(tracked(pool.map(put, range(len(self))), total=len(self), desc="reading images"))
        self.held = held

    def batches(self, groups: list[np.ndarray], num_workers: int):
        """uint8 [n, 3, S, S] for each group of places, from memory or from disk."""
        if self.held is not None:
            return (self.held[torch.from_numpy(group)] for group in groups)
        return DataLoader(self, batch_sampler=[group.tolist() for group in groups], num_workers=num_workers)


@cache
def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return mean, std


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 3, S, S] -> float, ImageNet mean and standard deviation (torchvision's normalize waits for the device)."""
    mean, std = _mean_and_std(pixels.device)
    return pixels.float().div_(255).sub_(mean).div_(std)


def augmented(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Small turns (8 degrees), zooms (8 %), shifts (5 %), brightness and contrast (20 %); no flips: left stays left.

    images: normalised float [n, 3, S, S]. draws: [n, 6] in -1..1, one row per image. What comes in from outside is
    the border repeated.
    """
    turn, zoom = draws[:, 0] * (8 * torch.pi / 180), 1 + 0.08 * draws[:, 1]
    cosine, sine = turn.cos() * zoom, turn.sin() * zoom
    across, down = 0.1 * draws[:, 2], 0.1 * draws[:, 3]  # the image is 2 wide in these units
    grid = torch.stack([torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)], 1)
    grid = F.affine_grid(grid, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    level = moved.mean((1, 2, 3), keepdim=True)
    factor, offset = 1 + 0.2 * draws[:, 4], 0.2 * draws[:, 5]
    return (moved - level) * factor[:, None, None, None] + level + offset[:, None, None, None]


@dataclass
class ClassifierData:
    """What a training run reads: studies, labels int [N, K] and images by split."""

    studies: dict[str, list[Study]]
    labels: dict[str, np.ndarray]
    images: dict[str, HeldImages]
    inputs: dict


def open_classifier_data(args, job: Job) -> ClassifierData:
    """Read annotation and labels, look at every image; InputError lists all that is wrong.

    Reads the training and validation split, and the test split only for --eval_split test.
    """
    problems = Problems()
    splits = tuple(split for split in SPLITS if split in ("train", "val", args.eval_split))
    listed, table = {}, {}
    try:
        listed = {split: rows for split, rows in read_annotation(args.ann_path, args.limit).items() if split in splits}
    except InputError as error:
        problems.add(str(error))
    try:
        table = read_label_table(args.labels_path, uncertain=args.uncertain)
    except InputError as error:
        problems.add(f"--labels_path: {error}")
    weights = weights_problem(args.backbone, args.backbone_weights, args.weights_dir, args.offline, flags=WEIGHT_FLAGS)
    problems.check(weights is None, weights or "")
    broken, studies = {}, listed
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}") and listed:
        views = 1 if args.views == "first" else max((len(s.images) for rows in listed.values() for s in rows), default=1)
        settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": views, "depth": args.image_check}
        broken = check_studies(listed, args.image_dir, **settings)
        studies = without_broken(listed, broken, skip=args.skip_broken, problems=problems)
    for split, rows in studies.items():
        problems.check(bool(rows), f"{args.ann_path} has no {split} studies")
    missing = [study.id for rows in studies.values() for study in rows if table and study.id not in table]
    total = sum(map(len, studies.values()))
    problems.check(not missing, f"--labels_path {args.labels_path} lacks {len(missing)} of {total} studies: {_some(missing)}")
    problems.stop_if_any()
    print(card_text(data_card(studies, broken, name=args.dataset_name, ann_path=args.ann_path, max_views=1)))
    if args.views == "all":  # a row for each image
        studies = {split: [replace(s, images=(path,)) for s in rows for path in s.images] for split, rows in studies.items()}
    labels = {split: np.array([table[study.id] for study in rows]) for split, rows in studies.items()}
    for split in ("train", "val"):
        both = ((labels[split] == 1).any(0) & (labels[split] == 0).any(0)).any()
        problems.check(both, f"--labels_path {args.labels_path}: no label has positives and negatives in the {split} split")
    problems.stop_if_any()
    images = {split: HeldImages(rows, args.image_dir, args.image_size, reading_of(args)) for split, rows in studies.items()}
    named = {name: getattr(args, name) for name in INPUT_FLAGS}
    if reading_of(args) != PLAIN:
        named["reading"] = reading_of(args).name
    more = {"views": "first", "freeze": "none"}
    named |= {name: getattr(args, name) for name in more if getattr(args, name) != more[name]}
    if Path(args.backbone_weights).is_file():
        named["backbone_weights"] = sha256(args.backbone_weights)
    used = {split: image_hash(studies[split], args.image_dir) for split in ("train", "val")}
    chosen = [[study.id, table[study.id]] for split in ("train", "val") for study in studies[split]]
    facts = {"format": FORMAT, "what": job.what, "labels": list(CHEXPERT_14), **named, "images_sha256": used}
    inputs = {**facts, "label_values_sha256": hashlib.sha256(repr(chosen).encode()).hexdigest()}
    return ClassifierData(studies, labels, images, inputs)


# what a training result depends on, beside images and labels; device and caching are left out on purpose
INPUT_FLAGS = ("dataset_name", "uncertain", "backbone", "backbone_weights", "image_size", "augment", "epochs", "batch_size",
               "lr", "weight_decay", "pos_weight_cap", "precision", "seed")  # fmt: skip


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def image_hash(studies: list[Study], image_dir) -> str:
    """Hash of ids, first images and their sizes in bytes."""
    rows = [f"{s.id} {s.images[0]} {os.path.getsize(f'{image_dir}/{s.images[0]}')}" for s in studies]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
