"""Studies to batches. B studies, V views, H x W pixels, L + 1 token ids, K labels; the same letters everywhere."""

import dataclasses
import math
import random
import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.image_cache import ImageCache
from data.images import PLAIN, Augmentation, Reading, open_image, to_tensor
from data.scene_graphs import SceneGraphs, graph_fields, pad_graphs
from data.studies import Study
from data.views import Views
from modules import processes
from modules.errors import InputError


@dataclass
class Batch:
    """What a system may be given. Fields that a system does not ask for are None.

    ids: B study ids. images, masked_images: float [B, V, 3, H, W], the complete images and the same after the ADM
    rule; or what the frozen extractor made of them, kept in a cache: [B, V, C, h, w], passed through it as it is. view_mask: bool
    [B, V], True = a real view; None = all are. padding: bool [B, V, H, W], True = no image there; None = none. tokens: int
    [B, L + 1]. labels, diagnosis: int [B, K]. fill: the studies only keep a process busy, they do not count.

    Of scene graphs, N the most boxes of a study, R regions, M attributes of the longest head: boxes: float [B, N, 4], x0 y0
    x1 y1 in pixels of the image tensor. box_regions: int [B, N], -1 = padding. box_chosen, box_abnormal: bool [B, N], the
    report speaks of the box's region, and calls it abnormal. attributes: bool [B, N, M]. region_labels: bool [B, R], spoken
    of with or without a box.

    prepared: what was counted while the batch was on the CPU, by name, so that nobody asks the device for it.
    """

    ids: list[str]
    images: torch.Tensor | None = None
    masked_images: torch.Tensor | None = None
    view_mask: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    diagnosis: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    box_regions: torch.Tensor | None = None
    box_chosen: torch.Tensor | None = None
    box_abnormal: torch.Tensor | None = None
    attributes: torch.Tensor | None = None
    region_labels: torch.Tensor | None = None
    fill: bool = False
    prepared: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device) -> "Batch":
        """The same batch with its tensors on `device`."""
        mask = self.view_mask
        counted = {} if mask is None else {f"view {view}": self._rows(mask, view) for view in range(mask.shape[1])}
        whole = dataclasses.replace(self, prepared=counted | self.prepared)
        return whole._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader when it copies to a CUDA device."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function) -> "Batch":
        made = {name: function(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **made, prepared={name: function(value) for name, value in self.prepared.items()})

    def _rows(self, view_mask: torch.Tensor, view: int) -> torch.Tensor:
        known = self.prepared.get(f"view {view}")
        return view_mask[:, view].nonzero()[:, 0] if known is None else known

    def studies_with(self, view: int) -> torch.Tensor | None:
        """Rows int [n] of the studies that have this view; None = all have it."""
        rows = None if self.view_mask is None else self._rows(self.view_mask, view)
        return None if rows is None or len(rows) == len(self) else rows

    def real_views(self) -> torch.Tensor | None:
        """Positions int [n] of the real views among all B * V, view after view; None = all are real."""
        if self.view_mask is None:
            return None
        views = self.view_mask.shape[1]
        rows = torch.cat([self._rows(self.view_mask, view) * views + view for view in range(views)])
        return None if len(rows) == len(self) * views else rows


class StudyDataset(Dataset):
    """Studies with their images and tensors, read on demand.

    needs: which fields of Batch the system reads. tokens: word ids int32 [N, L + 1] of the studies, or None. tables: named
    label tables {"diagnosis": {id: K values}, ...}. mask_rule: function (image path, PIL image) -> masked image.
    cache: the images decoded and resized already, or None. reading: how image files are opened. scene_graphs: for "boxes"
    and "graph" in needs, those of the studies' first images; boxes are turned with their image. views: what `images` holds
    instead of the complete images. features: by field, a FeatureCache (data/feature_cache.py) that takes the images' place.
    What an image goes through depends on (seed, epoch, study id) alone: not on worker, order or batch.
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
        tokens: np.ndarray | None = None,
        tables: dict[str, dict] | None = None,
        mask_rule=None,
        cache: ImageCache | None = None,
        reading: Reading = PLAIN,
        scene_graphs: SceneGraphs | None = None,
        views: Views | None = None,
    ) -> None:
        self.studies, self.image_dir, self.reading = studies, str(image_dir), reading
        self.needs, self.image_size, self.max_views = needs, image_size, max_views
        self.augment, self.seed, self.epoch = Augmentation(augment, image_size, resize_filter), seed, 0
        self.mask_rule, self.cache, self.scene_graphs, self.views = mask_rule, cache, scene_graphs, views
        self.tables = {
            name: torch.tensor(np.asarray([table[study.id] for study in studies]), dtype=torch.long)
            for name, table in (tables or {}).items()
            if name in needs
        }
        self.tokens = None if tokens is None else torch.from_numpy(tokens)
        self.features: dict | None = None

    def __len__(self) -> int:
        return len(self.studies)

    def _image(self, path: str) -> Image.Image:
        kept = self.cache.get(path) if self.cache is not None else None
        return kept or self.augment.resize(open_image(f"{self.image_dir}/{path}", self.reading))

    def _images(self, study: Study) -> dict[str, list[Image.Image]]:
        """By field of Batch, the study's images before augmentation."""
        if self.views is not None:
            return {"images": self.views(study.images)}
        paths = study.images[: self.max_views]
        complete = [self._image(path) for path in paths]
        made = {"images": complete} if "images" in self.needs else {}
        if "masked_images" in self.needs:
            made["masked_images"] = [self.mask_rule(path, image) for path, image in zip(paths, complete)]
        return made

    def __getitem__(self, place: int) -> dict:
        """The study at `place`; ~place gives the same one as a fill-in (see StepShares)."""
        if place < 0:
            return {**self[~place], "fill": True}
        study = self.studies[place]
        chance, scale = zlib.crc32(f"{self.seed}/{self.epoch}/{study.id}".encode()), 1.0
        if self.features is None:
            item: dict = self.shown(study, chance)
        else:
            some = next(iter(self.features.values()))
            draw, scale = chance % some.draws, some.side / self.image_size
            item = {name: cache.get(place, draw) for name, cache in self.features.items()}
            chance = fixed_draw(study.id, draw)
        item["id"] = study.id
        item.update({name: table[place] for name, table in self.tables.items()})
        if self.tokens is not None:
            item["tokens"] = self.tokens[place].long()
        if "boxes" in self.needs:
            assert self.scene_graphs is not None, "boxes are asked for, and no scene graphs are given"
            graph = self.scene_graphs.of(study.images[0])
            boxes = self.augment.boxes(graph.boxes, random.Random(chance)) * np.float32(scale)
            item["graph"] = graph_fields(graph, boxes, whole="graph" in self.needs)
        return item

    def shown(self, study: Study, chance: int) -> dict[str, list[torch.Tensor]]:
        """By field of Batch, the study's images [3, H, W] after the augmentation that `chance` draws."""
        images = self._images(study)
        changed = iter(self.augment([image for row in images.values() for image in row], random.Random(chance)))
        return {name: [to_tensor(next(changed)) for _ in row] for name, row in images.items()}


def fixed_draw(study: str, number: int) -> int:
    """The seed of a study's `number`-th fixed augmentation: the same for every system and seed of a training."""
    return zlib.crc32(f"fixed draw {number}/{study}".encode())


def collate(items: list[dict]) -> Batch:
    """Items of StudyDataset -> Batch; studies with fewer views than the batch's most are filled with zeros."""
    fields: dict = {"ids": [item["id"] for item in items], "fill": "fill" in items[0]}
    for name in ("images", "masked_images"):
        if name in items[0]:
            most = max(len(item[name]) for item in items)
            stacked = _room(items[0][name][0], len(items), most)
            real = torch.zeros(len(items), most, dtype=torch.bool)
            for row, item in enumerate(items):
                for view, image in enumerate(item[name]):
                    stacked[row, view] = image
                real[row, : len(item[name])] = True
            fields[name], fields["view_mask"] = stacked, None if real.all() else real
    for name in ("tokens", "labels", "diagnosis"):
        if name in items[0]:
            fields[name] = torch.stack([item[name] for item in items])
    if "graph" in items[0]:
        fields |= pad_graphs([item["graph"] for item in items])
    return Batch(**fields)


def _room(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros [*shape, C, h, w] of the kind of `like` [C, h, w], in its order in memory: cached features have channels last."""
    if like.is_contiguous():
        return like.new_zeros(*shape, *like.shape)
    return like.new_zeros(*shape, *like.shape[1:], like.shape[0]).movedim(-1, -3)


def make_loader(
    dataset: StudyDataset,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    pin: bool = False,
    accumulate: int = 1,
    drop_last: bool = False,
):
    """DataLoader of this process's Batches.

    shuffle: steps of batch_size studies over all processes, split by StepShares; drop_last leaves an incomplete last step
    out. Else every study once, in order, the processes taking turns.
    """
    if drop_last and len(dataset) < batch_size:
        raise InputError(f"--drop_last leaves nothing: {len(dataset)} training studies, --batch_size {batch_size}")
    load = partial(DataLoader, dataset, num_workers=num_workers, collate_fn=collate, pin_memory=pin)
    if shuffle:
        shares = StepShares(dataset, batch_size, processes.rank(), processes.count(), accumulate, drop_last)
        return load(batch_sampler=shares)
    return load(batch_size=batch_size, sampler=range(processes.rank(), len(dataset), processes.count()))


class StepShares(torch.utils.data.Sampler):
    """The batches of one process: each step's batch_size studies are split over `count` processes and `accumulate` batches.

    The order is drawn from (dataset.seed, dataset.epoch): an interrupted run meets the studies in the same order again,
    and the studies of a step are the same on any number of processes. Where the last step has too few studies, a process
    without one gets the step's first as a fill-in that does not count.
    """

    def __init__(
        self, dataset: StudyDataset, batch_size: int, rank: int, count: int, accumulate: int, drop_last: bool = False
    ) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.studies = len(dataset) // batch_size * batch_size if drop_last else len(dataset)
        self.rank, self.count, self.accumulate = rank, count, accumulate

    def __len__(self) -> int:
        return math.ceil(self.studies / self.batch_size) * self.accumulate

    def __iter__(self):
        draw = torch.Generator().manual_seed(self.dataset.seed * 100_003 + self.dataset.epoch)
        order = torch.randperm(len(self.dataset), generator=draw).tolist()[: self.studies]
        for start in range(0, len(order), self.batch_size):
            step = order[start : start + self.batch_size]
            parts = self.count * self.accumulate
            cuts = [len(step) * number // parts for number in range(parts + 1)]
            for turn in range(self.accumulate):
                part = turn * self.count + self.rank
                yield step[cuts[part] : cuts[part + 1]] or [~step[0]]
