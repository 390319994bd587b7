"""The baselines that look at the images: reports of the training studies that look most alike to a run's own extractor.

A study's features are the extractor's, pooled over the image and averaged over the views that the run reads (--max_views);
those of the training studies are computed once and kept in <knowledge_dir>/pooled, under what they are made by.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.batches import StudyDataset
from data.feature_cache import serve_features, weights_sha256
from data.image_cache import fingerprint
from data.images import evaluation_kind, reading_of
from data.studies import Study
from modules import processes
from modules.artefact import checksum, write_atomic
from modules.errors import InputError
from modules.scoring.predictions import R2GenReferences
from modules.scoring.retrieval import NEIGHBOURS, Consensus, neighbours

STUDIES = 16  # that go through the extractor together, whatever the number of processes
AT_ONCE = {"cuda": 20_000, "cpu": 1_000}  # training images that --baselines auto sends through the extractor


def retrieved_reports(
    args, extractor, training: list[Study], scored: list[Study], references: R2GenReferences, *, device, precision
) -> dict[str, dict[str, str]]:
    """{study id: {"nearest": report, "consensus": report}} of every scored study; {} where --baselines asks for none.

    training: the training studies of the annotation; one whose image cannot be read is left out, and counted. No study is
    its own neighbour: neither its row nor one of the same study_id. Every process must call it.
    """
    if args.baselines == "constant" or not training:
        return {}
    weights, how = weights_sha256(extractor), {"device": device, "precision": precision}
    place = _place(args, weights, "train", training, device)
    if not _cheap(args, place, training, device):
        return {}
    pooled = {"train": pooled_features(args, extractor, "train", training, place=place, **how)}
    place = _place(args, weights, args.split, scored, device)
    pooled["scored"] = pooled_features(args, extractor, args.split, scored, place=place, **how)
    missing = [study.id for study, row in zip(scored, pooled["scored"]) if not np.isfinite(row).all()]
    if missing:
        raise InputError(f"--baselines: the images of {len(missing)} studies cannot be read, such as {missing[:3]}")
    return processes.from_first(lambda: _retrieved(training, scored, pooled, references))


def _retrieved(training, scored, pooled, references) -> dict[str, dict[str, str]]:
    usable = np.isfinite(pooled["train"]).all(1)
    if not usable.all():
        print(f"baselines: {int((~usable).sum())} training studies are left out, their images cannot be read")
    rows = [study for study, there in zip(training, usable) if there]
    same: dict[str, list[int]] = {}
    for position, study in enumerate(rows):
        for name in {f"id {study.id}", f"study {study.study_id}" if study.study_id else ""} - {""}:
            same.setdefault(name, []).append(position)
    own = [sorted({*same.get(f"id {study.id}", ()), *same.get(f"study {study.study_id}", ())}) for study in scored]
    found = neighbours(pooled["scored"], pooled["train"][usable], NEIGHBOURS, own)
    if not found.shape[1]:
        raise InputError("--baselines all: no training study is left to be a neighbour; pass --baselines constant")
    texts = [references.clean(study.report) for study in rows]
    consensus = Consensus(texts)
    return {
        study.id: {"nearest": texts[near[0]], "consensus": texts[consensus.choose(near)]} for study, near in zip(scored, found)
    }


def _cheap(args, place: tuple[Path | None, str], training: list[Study], device) -> bool:
    """Whether --baselines auto computes them; what is left out is said."""
    images = sum(len(study.images[: args.max_views]) for study in training)
    if args.baselines == "all" or images <= AT_ONCE[device.type]:
        return True
    if processes.from_first(lambda: _kept(*place) is not None):
        return True
    print(
        "baselines: the constant reports alone. --baselines all adds the nearest study's report and the consensus; it sends "
        f"{images:,d} training images through the extractor, once"
    )
    return False


# -- features ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled_features(
    args, extractor, split: str, studies: list[Study], *, device, precision, place: tuple[Path | None, str] | None = None
) -> np.ndarray:
    """[N, C] float16, mean over positions and views; a row of NaN where an image cannot be read. From the store if it has them.

    The processes share the work in blocks of STUDIES, so what an image is computed beside does not depend on their number.
    place: that of `_place`, where it is known.
    """
    path, facts = place or _place(args, weights_sha256(extractor), split, studies, device)
    kept = processes.from_first(lambda: _kept(path, facts))
    if kept is not None:
        return kept
    dataset = _dataset(args, studies)
    if args.feature_cache != "off" and not args.feature_draws and args.cache_dir and split == "train":
        serve_features(args, [extractor], {split: dataset}, device=device, precision=precision)
    mine = list(range(processes.rank(), -(-len(studies) // STUDIES), processes.count()))
    blocks = [list(range(block * STUDIES, min(len(studies), (block + 1) * STUDIES))) for block in mine]
    loader = DataLoader(_Readable(dataset), batch_sampler=blocks, num_workers=args.num_workers, collate_fn=list)
    found = {}
    extractor.to(device).eval()
    for block, items in zip(mine, tqdm(loader, desc="features for the baselines", disable=None, leave=False)):
        found[block] = _pool(extractor, items, device, precision)
    parts = processes.gather(found)
    width = max(part.shape[1] for part in parts.values())  # 1 where no image of a block can be read
    rows = [np.broadcast_to(part, (len(part), width)) for _, part in sorted(parts.items())]
    pooled = np.concatenate(rows).astype(np.float16)
    if path is not None and processes.rank() == 0:
        _keep(path, facts, pooled)
    return pooled


def _pool(extractor, items: list[torch.Tensor | None], device, precision) -> np.ndarray:
    """Images [V, 3, H, W] of each study -> [n, C] float32, NaN for a study without."""
    views = [0 if item is None else len(item) for item in items]
    if not any(views):
        return np.full((len(items), 1), np.nan, dtype=np.float32)
    with precision.region():
        features = extractor(torch.cat([item for item in items if item is not None]).to(device))
    pooled = iter(features.float().mean((2, 3)).cpu().split([count for count in views if count]))
    width = features.shape[1]
    return np.stack([next(pooled).mean(0).numpy() if count else np.full(width, np.nan, np.float32) for count in views])


class _Readable(Dataset):
    """The images of each study [V, 3, H, W], None where one cannot be read."""

    def __init__(self, dataset: StudyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> torch.Tensor | None:
        try:
            return torch.stack(self.dataset[place]["images"])
        except InputError:
            return None


def _dataset(args, studies: list[Study]) -> StudyDataset:
    """The complete images as the run reads them, not augmented, whatever view of them the system asks for."""
    sizes = {"image_size": args.image_size, "max_views": args.max_views, "resize_filter": args.resize_filter}
    kind, reading = evaluation_kind(args), reading_of(args)
    return StudyDataset(studies, args.image_dir, needs={"images"}, augment=kind, reading=reading, **sizes)


# -- the store ---------------------------------------------------------------------------------------------------------


def _place(args, weights: str, split: str, studies: list[Study], device) -> tuple[Path | None, str]:
    """(file of the features or None where nothing may be kept, what they are made of); weights: the extractor's digest."""
    dataset = _dataset(args, studies)
    made_by = [weights, args.precision, device.type, dataset.augment.kind, dataset.augment.side,
               dataset.augment.name, dataset.reading.name, args.max_views]  # fmt: skip
    rows = [[study.id, *study.images[: args.max_views]] for study in studies]
    paths = list(dict.fromkeys(path for _, *images in rows for path in images))
    facts = json.dumps([made_by, rows, fingerprint(args.image_dir, paths)])
    name = hashlib.sha256(json.dumps([made_by, rows]).encode()).hexdigest()[:16]
    return (Path(args.cache_dir) / "pooled" / f"{split}_{name}.npz") if args.cache_dir else None, facts


def _kept(path: Path | None, facts: str) -> np.ndarray | None:
    """The features of a file that was made of the same and is whole."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            pooled, made_of = content["pooled"], int(content["checksum"])
    except (TypeError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # no file, or a damaged one: made anew
        return None
    return pooled if made_of == checksum(facts, pooled) else None


def _keep(path: Path, facts: str, pooled: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, pooled=pooled, checksum=np.int64(checksum(facts, pooled)))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)
