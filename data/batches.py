"""Studies to batches. B studies, V views, H x W pixels, L + 1 token ids, K labels; the same letters everywhere."""

import dataclasses
import random
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.pictures import Augmentation, open_picture, to_tensor
from data.studies import Study
from modules.errors import InputError


@dataclass
class Batch:
    """What a system may be given. Fields that a system does not ask for are None.

    ids: B study ids. images, masked_images: float [B, V, 3, H, W], the complete pictures and the same after the ADM
    rule. view_mask: bool [B, V], True = a real view. padding: bool [B, V, H, W], True = no picture there; None = none.
    tokens: int [B, L + 1]. labels, diagnosis: int [B, K].
    """

    ids: list[str]
    images: torch.Tensor | None = None
    masked_images: torch.Tensor | None = None
    view_mask: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    diagnosis: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device) -> "Batch":
        """The same batch with its tensors on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader when it copies to a CUDA device."""
        pinned = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return dataclasses.replace(self, **pinned)


class StudyDataset(Dataset):
    """Studies with their pictures and tensors, read on demand.

    needs: which fields of Batch the system reads. tokens_of: function from raw report to ids, or None. tables: named
    label tables {"diagnosis": {id: K values}, ...}. mask_rule: function (picture path, PIL picture) -> masked picture.
    What a picture goes through depends on (seed, epoch, study id) alone: not on worker, order or batch.
    """

    def __init__(
        self,
        studies: list[Study],
        image_dir,
        *,
        needs: set[str],
        image_size: int,
        max_views: int,
        augment: str = "none",
        resize_filter: str = "bicubic",
        seed: int = 0,
        tokens_of=None,
        tables: dict[str, dict] | None = None,
        mask_rule=None,
    ) -> None:
        self.studies, self.image_dir = studies, str(image_dir)
        self.needs, self.image_size, self.max_views = needs, image_size, max_views
        self.augment, self.seed, self.epoch = Augmentation(augment, image_size, resize_filter), seed, 0
        self.mask_rule = mask_rule
        self.tables = {
            name: torch.tensor(np.asarray([table[study.id] for study in studies]), dtype=torch.long)
            for name, table in (tables or {}).items()
            if name in needs
        }
        self.tokens = None
        if tokens_of is not None and "tokens" in needs:
            self.tokens = torch.tensor(np.asarray([tokens_of(s.report) for s in studies], dtype=np.int32))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, place: int) -> dict:
        study = self.studies[place]
        paths = study.pictures[: self.max_views]
        complete = [self.augment.resize(open_picture(f"{self.image_dir}/{path}")) for path in paths]
        views: list[Image.Image] = []
        names = [name for name in ("images", "masked_images") if name in self.needs]
        for name in names:
            views += complete if name == "images" else [self.mask_rule(p, c) for p, c in zip(paths, complete)]
        draw = random.Random(zlib.crc32(f"{self.seed}/{self.epoch}/{study.id}".encode()))
        tensors = [to_tensor(picture) for picture in self.augment(views, draw)]
        item = {name: tensors[k * len(paths) : (k + 1) * len(paths)] for k, name in enumerate(names)}
        item["id"] = study.id
        item.update({name: table[place] for name, table in self.tables.items()})
        if self.tokens is not None:
            item["tokens"] = self.tokens[place].long()
        return item


def collate(items: list[dict]) -> Batch:
    """Items of StudyDataset -> Batch; studies with fewer views than the batch's most are filled with zeros."""
    fields: dict = {"ids": [item["id"] for item in items]}
    for name in ("images", "masked_images"):
        if name in items[0]:
            most = max(len(item[name]) for item in items)
            stacked = torch.zeros(len(items), most, *items[0][name][0].shape)
            real = torch.zeros(len(items), most, dtype=torch.bool)
            for row, item in enumerate(items):
                stacked[row, : len(item[name])] = torch.stack(item[name])
                real[row, : len(item[name])] = True
            fields[name], fields["view_mask"] = stacked, real
    for name in ("tokens", "labels", "diagnosis"):
        if name in items[0]:
            fields[name] = torch.stack([item[name] for item in items])
    return Batch(**fields)


def make_loader(
    dataset: StudyDataset, *, batch_size: int, num_workers: int, shuffle: bool, pin: bool = False, drop_last: bool = False
):
    """DataLoader of Batches. The order of a shuffled epoch is a function of (dataset.seed, dataset.epoch)."""
    if drop_last and len(dataset) < batch_size:
        raise InputError(f"--drop_last leaves nothing: {len(dataset)} training studies, --batch_size {batch_size}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochOrder(dataset) if shuffle else None,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
        drop_last=drop_last,
    )


class EpochOrder(torch.utils.data.Sampler):
    """A permutation drawn from (seed, epoch): an interrupted run meets the studies in the same order again."""

    def __init__(self, dataset: StudyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        draw = torch.Generator().manual_seed(self.dataset.seed * 100_003 + self.dataset.epoch)
        return iter(torch.randperm(len(self.dataset), generator=draw).tolist())
