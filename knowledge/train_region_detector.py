"""Train a detector of the 29 regions on a file of scene graphs that has boxes.

    python -m knowledge.train_region_detector --dataset_name miniature --scene_graphs data/miniature/scene_graphs.jsonl

Writes <knowledge_dir>/region_detector.pt and its manifest with the mean IoU of each region on the validation split, which
also chooses the epoch. Kill it and run it again: it goes on after the last whole epoch.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from data.batches import Batch, StudyDataset, make_loader
from data.images import reading_of
from data.scene_graphs import SceneGraphs, read_scene_graphs
from data.studies import Study, check_studies, read_annotation, without_broken
from knowledge.classifier.data import WEIGHT_FLAGS, image_hash
from knowledge.classifier.training import already_there, partial_of, rate, read_partial
from knowledge.command import BACKBONE_WEIGHTS, DATA, out, read, report_cleaning
from modules.artefact import sha256, write_atomic, write_built
from modules.errors import InputError, Problems, entry
from modules.flags import Flag, positive_float, positive_int
from modules.nets.pretrained import load_backbone, weights_problem
from modules.nets.region_detector import WHAT, RegionDetector
from modules.nets.visual_extractor import BACKBONES
from modules.precision import Precision, choose_device, seed_everything
from modules.progress import tracked

SHARED = (*DATA, "knowledge_dir", "seed", "device", "precision", "num_workers", "weights_dir", "offline")
OWN = (
    Flag("detector", "scene_graphs", str, None, "boxes of training and validation images [<data_dir>/scene_graphs.jsonl]"),
    Flag("network", "backbone", str, "resnet50", "network", choices=tuple(BACKBONES)),
    BACKBONE_WEIGHTS,
    Flag("network", "image_size", positive_int, 224, "side of the image in pixels"),
    Flag("network", "epochs", positive_int, 10, "passes over the training images"),
    Flag("network", "batch_size", positive_int, 32, "images per step"),
    Flag("network", "lr", positive_float, 3e-4, "highest learning rate: a tenth of the run warms up, a cosine falls"),
    Flag("network", "augment", str, "aligned", "training images and their boxes", choices=("aligned", "rotate", "none")),
    *out("region_detector.pt"),
)
PRESETS = {
    "miniature": {"backbone": "efficientnet_lite0", "image_size": 128, "epochs": 8, "batch_size": 16, "lr": 2e-3},
    "mimic_cxr": {"epochs": 3, "num_workers": 8, "image_check": "quick"},
}
INPUTS = ("dataset_name", "backbone", "backbone_weights", "image_size", "epochs", "batch_size", "lr", "augment",
          "precision", "seed")  # fmt: skip


def read_flags(argv) -> argparse.Namespace:
    """Typed flags over the data set's preset over the defaults."""
    args = read(argv, "train_region_detector", __doc__.split("\n")[0], SHARED, OWN, PRESETS)
    args.scene_graphs = args.scene_graphs or str(Path(args.data_dir) / "scene_graphs.jsonl")
    return args


def open_inputs(args) -> tuple[dict[str, list[Study]], SceneGraphs]:
    """Studies of train and val whose first image has boxes, and the graphs. InputError lists all that is wrong."""
    problems = Problems()
    listed = {split: rows for split, rows in read_annotation(args.ann_path, args.limit).items() if split != "test"}
    graphs = read_scene_graphs(args.scene_graphs)
    weights = weights_problem(args.backbone, args.backbone_weights, args.weights_dir, args.offline, flags=WEIGHT_FLAGS)
    problems.check(weights is None, weights or "")
    settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": 1, "depth": args.image_check}
    broken = check_studies(listed, args.image_dir, **settings)
    studies = without_broken(listed, broken, skip=args.skip_broken, problems=problems)
    problems.stop_if_any()
    for split, rows in studies.items():
        there = [study for study in rows if study.images[0] in graphs]
        moved = [study.id for study in there if graphs.split_of(study.images[0]) != split]
        problems.check(not moved, f"--scene_graphs {args.scene_graphs}: {len(moved)} {split} studies stand in another split "
                       f"there, such as {moved[:3]}")  # fmt: skip
        studies[split] = [study for study in there if len(graphs.of(study.images[0]).boxes)]
        text = f"--scene_graphs {args.scene_graphs} has no boxes of the {split} images of {args.ann_path}"
        if problems.check(bool(studies[split]), text) and len(studies[split]) < len(rows):
            print(f"{split}: {len(rows) - len(studies[split])} of {len(rows)} studies have no boxes and are left out")
    problems.stop_if_any()
    return studies, graphs


def targets(batch: Batch, regions: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, R, 4] in fractions and presence bool [B, R]; of two boxes of a region the last counts."""
    count = len(batch)
    boxes, present = torch.zeros(count, regions, 4), torch.zeros(count, regions, dtype=torch.bool)
    assert batch.boxes is not None and batch.box_regions is not None
    row, column = (batch.box_regions >= 0).nonzero(as_tuple=True)
    where = batch.box_regions[row, column]
    boxes[row, where], present[row, where] = batch.boxes[row, column] / side, True
    return boxes, present


@torch.no_grad()
def measure(detector: RegionDetector, loader, device) -> dict[str, float]:
    """Mean IoU of each region over the images of a loader that have it; the detector's presence does not matter."""
    detector.eval()
    total, seen = torch.zeros(len(detector.regions)), torch.zeros(len(detector.regions))
    for batch in loader:
        found, _ = detector(batch.images[:, 0].to(device))
        boxes, present = targets(batch, len(detector.regions), detector.side)
        ious = torch.stack([box_iou(a, b).diagonal() for a, b in zip(found.cpu(), boxes)])
        total, seen = total + (ious * present).sum(0), seen + present.sum(0)
    return {name: round((t / s).item(), 4) for name, t, s in zip(detector.regions, total, seen) if s}


class Training:
    """Trains a detector; what happens in an epoch depends on (seed, epoch) alone."""

    def __init__(self, args, detector: RegionDetector, data: dict[str, StudyDataset], device, inputs: dict) -> None:
        self.args, self.device, self.inputs, self.partial = args, device, inputs, partial_of(Path(args.out))
        self.detector, self.data = detector.to(device), data
        self.precision = Precision(args.precision, device)
        settings = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        # an incomplete batch of one image has no batch statistics
        last = len(data["train"]) % args.batch_size == 1 < len(data["train"])
        self.train = make_loader(data["train"], shuffle=True, drop_last=last, **settings)
        self.val = make_loader(data["val"], shuffle=False, **settings)
        self.optimizer = torch.optim.AdamW(detector.parameters(), lr=args.lr, weight_decay=1e-4)
        self.epoch = 0
        self.best: dict[str, Any] = {}
        self.history: list[dict] = []

    def fit(self) -> dict:
        """Train to the last epoch; the detector then holds the best epoch's weights. Returns facts for the manifest."""
        self._resume()
        while self.epoch < self.args.epochs:
            start = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            ious = measure(self.detector, self.val, self.device)
            mean = float(np.mean(list(ious.values())))
            won = not self.best or mean > self.best["mean_iou"]
            if won:
                weights = {key: value.detach().cpu().clone() for key, value in self.detector.state_dict().items()}
                self.best = {"epoch": self.epoch, "mean_iou": mean, "ious": ious, "weights": weights}
            self.history.append({"epoch": self.epoch, "train_loss": loss, "val_mean_iou": mean})
            print(f"epoch {self.epoch:3d}/{self.args.epochs}  loss {loss:.4f}  val mean IoU {mean:.4f}{' *' if won else '  '}  "
                  f"{time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
            state = {"inputs": self.inputs, "epoch": self.epoch, "best": self.best, "history": self.history,
                     "net": self.detector.state_dict(), "optimizer": self.optimizer.state_dict(),
                     "scaler": self.precision.scaler.state_dict()}  # fmt: skip
            write_atomic(self.partial, partial(torch.save, state))
        self.detector.load_state_dict(self.best["weights"])
        facts = {"history": self.history, "best_epoch": self.best["epoch"], "val_iou": self.best["ious"]}
        return {**facts, "val_mean_iou": self.best["mean_iou"]}

    def _train_epoch(self) -> float:
        """One pass over the training images; returns the mean loss."""
        torch.manual_seed(self.args.seed * 100_003 + self.epoch)
        self.data["train"].epoch = self.epoch
        self.detector.train()
        total, count = 0.0, len(self.train)
        for step, batch in enumerate(tracked(self.train, desc=f"epoch {self.epoch + 1}")):
            for group in self.optimizer.param_groups:
                group["lr"] = self.args.lr * rate((self.epoch * count + step + 1) / (self.args.epochs * count))
            boxes, present = targets(batch, len(self.detector.regions), self.detector.side)
            images = batch.images[:, 0].to(self.device)
            with self.precision.region():
                loss = self.detector.loss(images, boxes.to(self.device), present.to(self.device))
            if not torch.isfinite(loss):
                raise InputError(f"the loss is not finite at epoch {self.epoch + 1}, studies {', '.join(batch.ids)}; lower "
                                 f"--lr {self.args.lr}")  # fmt: skip
            self.optimizer.zero_grad(set_to_none=True)
            self.precision.scaler.scale(loss).backward()
            self.precision.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 5.0)
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            total += loss.item() / count
        return total

    def _resume(self) -> None:
        state = read_partial(self.partial, self.inputs)
        if state is None:
            return
        self.detector.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]
        print(f"continuing {self.partial} after epoch {self.epoch} of {self.args.epochs}")


def mean_boxes(graphs: SceneGraphs, studies: list[Study]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean box [R, 4] and share of images [R] of each region in the studies' first images."""
    regions = len(graphs.layout.regions)
    total, seen = np.zeros((regions, 4)), np.zeros(regions)
    for study in studies:
        graph = graphs.of(study.images[0])
        np.add.at(total, graph.regions, graph.boxes)
        np.add.at(seen, graph.regions, 1)
    mean = np.where(seen[:, None] > 0, total / np.maximum(seen, 1)[:, None], [0.25, 0.25, 0.75, 0.75])
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(seen / len(studies), dtype=torch.float32)


@entry
def main(argv: list[str] | None = None) -> None:
    args = read_flags(argv)
    device, path, start = choose_device(args.device), Path(args.out), time.perf_counter()
    studies, graphs = open_inputs(args)
    inputs = {"what": WHAT, **{name: getattr(args, name) for name in INPUTS}, "scene_graphs_sha256": sha256(args.scene_graphs),
              "images_sha256": {split: image_hash(rows, args.image_dir) + reading_of(args).name
                                for split, rows in studies.items()}}  # fmt: skip
    if Path(args.backbone_weights).is_file():
        inputs["backbone_weights"] = sha256(args.backbone_weights)
    if not args.overwrite and already_there(path, inputs, keep=args.keep):
        print(f"{path}: kept")
        return
    seed_everything(args.seed, deterministic=False)
    detector = RegionDetector(args.backbone, graphs.layout.regions, args.image_size)
    load_backbone(detector.body, args.backbone, args.backbone_weights, weights_dir=args.weights_dir, offline=args.offline)
    detector.start_from(*mean_boxes(graphs, studies["train"]))
    settings = {"needs": {"images", "boxes"}, "image_size": args.image_size, "max_views": 1, "scene_graphs": graphs,
                "reading": reading_of(args)}  # fmt: skip
    data = {split: StudyDataset(rows, args.image_dir, seed=args.seed, augment=args.augment if split == "train" else "none",
                                **settings) for split, rows in studies.items()}  # fmt: skip
    training = Training(args, detector, data, device, inputs)
    facts = training.fit()
    state = detector.cpu().state()
    write_built(path, lambda temporary: torch.save(state, temporary), WHAT, inputs=inputs, command=" ".join(sys.argv),
                studies={split: len(rows) for split, rows in studies.items()},
                seconds=round(time.perf_counter() - start, 1), **facts)  # fmt: skip
    training.partial.unlink(missing_ok=True)
    for name, iou in facts["val_iou"].items():
        print(f"  {name:24s} IoU {iou:.3f}")
    print(f"{path}: {args.backbone}, best epoch {facts['best_epoch']} of {args.epochs}, mean IoU "
          f"{facts['val_mean_iou']:.3f} over {len(facts['val_iou'])} regions of {len(studies['val'])} images")  # fmt: skip


if __name__ == "__main__":
    main()
