"""Features of a frozen extractor, memory-mapped: an image goes through the extractor once, not at every epoch.

A cache is a folder `<knowledge_dir>/features/<split>_<field>_<key>`: features.bin (one record [h, w, C] after another), sums.npy
(the checksum of each), views.npy (views of each study), manifest.json. The key stands for what the features are made by: the
extractor's weights and structure, the arithmetic, the transform, the studies. The manifest says of which images and masks: when
one has changed, or the cache is damaged, it is made anew. It is written under another name and renamed when whole.
"""

import contextlib
import copy
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from data.batches import StudyDataset, fixed_draw
from data.image_cache import fingerprint, locked
from data.images import MEAN, STD
from modules import processes
from modules.artefact import checksum, read_json, sha256, write_json
from modules.errors import InputError, Problems
from modules.progress import tracked

FORMAT = 1
KINDS = {"float32": np.float32, "float16": np.float16}
STUDIES = 16  # that go through the extractor together


def check_features(args, problems: Problems, *, training: bool) -> None:
    """Note what does not go with --feature_cache; a test may cache any extractor, which is not trained there."""
    if args.feature_cache == "off":
        problems.check(not args.feature_draws, "--feature_draws needs --feature_cache float32 or float16")
    elif training:
        problems.check(
            args.extractor_freeze == "all",
            f"--feature_cache {args.feature_cache}: the extractor is trained (--extractor_freeze {args.extractor_freeze}), so "
            "its features change at every step; pass --extractor_freeze all, or --feature_cache off",
        )
        problems.check(
            (args.augment == "none") == (args.feature_draws == 0),
            f"--feature_cache with --augment {args.augment} and --feature_draws {args.feature_draws}: features of fixed images "
            "are kept; pass --augment none, or --feature_draws 4 beside an augmentation for four fixed draws of each study",
        )


class FeatureCache:
    """Features of a split's studies for one field of Batch: `cache.get(place, draw)`."""

    def __init__(self, folder: str | Path) -> None:
        """Open a whole cache. InputError when its parts do not fit together."""
        self.folder = folder = Path(folder)
        self.manifest = manifest = read_json(folder / "manifest.json")
        try:
            whole = manifest.pop("checksum") == _sum_of(manifest)
            whole = whole and manifest["tables"] == _tables_sum(folder)
            self.shape, self.kind, self.draws = tuple(manifest["shape"]), manifest["key"]["kind"], manifest["key"]["draws"]
            self.sums, self.views = np.load(folder / "sums.npy"), np.load(folder / "views.npy")
            size = len(self.sums) * int(np.prod(self.shape)) * KINDS[self.kind]().itemsize
            whole = whole and (folder / "features.bin").stat().st_size == size
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"feature cache {folder} cannot be read: {error}") from error
        if not whole:
            raise InputError(f"feature cache {folder} is damaged")
        self.starts = (np.cumsum(self.views) - self.views) * self.draws
        self._map()
        some = range(0, len(self.sums), max(1, len(self.sums) // 64))
        if any(checksum(self.features[row]) != self.sums[row] for row in some):
            raise InputError(f"feature cache {folder} is damaged")

    def _map(self) -> None:
        shape = (len(self.sums), *self.shape)
        self.features = np.memmap(self.folder / "features.bin", KINDS[self.kind], "r", shape=shape)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "features"}  # a worker maps the file itself

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    @property
    def side(self) -> int:
        """Columns of the feature map."""
        return self.shape[1]

    def get(self, place: int, draw: int) -> list[torch.Tensor]:
        """The feature maps [C, h, w] of the views of the study at `place`, in their `draw`-th augmentation."""
        start, views = int(self.starts[place] + draw * self.views[place]), int(self.views[place])
        rows = np.array(self.features[start : start + views])
        for row, wanted in zip(rows, self.sums[start : start + views]):
            if checksum(row) != wanted:
                with contextlib.suppress(OSError):  # where it may only be read, the next start checks it again
                    (self.folder / "manifest.json").unlink()
                raise InputError(f"feature cache {self.folder} is damaged; start again (a training: --resume): it is made anew")
        return [feature.movedim(-1, 0) for feature in torch.from_numpy(rows)]


def serve_features(args, extractors: list[nn.Module], datasets: dict[str, StudyDataset], *, device, precision) -> dict:
    """Let `datasets` (by split) give the extractor's features instead of images; caches that are missing are made.

    extractors: all that the system uses. They must have the same weights: InputError else. Returns what the run's log says.
    Of several processes the first one makes a cache, the others map it.
    """
    weights = {weights_sha256(extractor) for extractor in extractors}
    if len(weights) > 1:
        raise InputError(
            "--feature_cache: the system looks through extractors of different weights (a teacher's and its own); train the "
            "teacher with the same --extractor_weights and --extractor_freeze all, or pass --feature_cache off"
        )
    facts = {"weights_sha256": weights.pop(), "kind": args.feature_cache}
    start, size = time.perf_counter(), 0
    for split, dataset in datasets.items():
        made = {}
        for field in sorted(dataset.needs & {"images", "masked_images"}):
            source = _Source(dataset, field, max(1, args.feature_draws) if split == "train" else 1)
            key = {"format": FORMAT, "weights": facts["weights_sha256"], "kind": args.feature_cache, "precision": args.precision,
                   "device": device.type, **source.facts()}  # fmt: skip
            name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            folder = Path(args.cache_dir) / "features" / f"{split}_{field}_{name}"
            how = {"device": device, "precision": precision, "workers": args.num_workers}
            made[field] = processes.first_then_others(
                lambda f=folder, k=key, s=source, h=how: open_features(f, k, s, extractors[0], **h)
            )
            size += made[field].features.nbytes
        dataset.features = made
    return {**facts, "mib": round(size / 2**20, 1), "seconds": round(time.perf_counter() - start, 1)}


def weights_sha256(extractor: nn.Module) -> str:
    """Digest of an extractor's structure and weights."""
    digest = hashlib.sha256(repr(extractor).encode())
    for name, value in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Source(Dataset):
    """What goes into a cache: the images [V, 3, H, W] of each study and draw, in the cache's order."""

    def __init__(self, dataset: StudyDataset, field: str, draws: int) -> None:
        self.field, self.draws, self.dataset = field, draws, copy.copy(dataset)
        self.dataset.needs, self.dataset.features = {field}, None

    def __len__(self) -> int:
        return len(self.dataset) * self.draws

    def __getitem__(self, number: int) -> torch.Tensor:
        place, draw = divmod(number, self.draws)
        study = self.dataset.studies[place]
        return torch.stack(self.dataset.shown(study, fixed_draw(study.id, draw))[self.field])

    def _paths(self) -> list[str]:
        images = self.dataset.views.images if self.dataset.views is not None else self.dataset.max_views
        return list(dict.fromkeys(path for study in self.dataset.studies for path in study.images[:images]))

    def facts(self) -> dict:
        """The transform and the studies."""
        dataset, augment = self.dataset, self.dataset.augment
        transform = [augment.kind, augment.side, augment.name, dataset.reading.name, dataset.max_views, MEAN, STD]
        if dataset.views is not None:
            transform += [dataset.views.wanted]
        elif self.field == "masked_images":
            rule = dataset.mask_rule
            transform += ["masked", rule.theta, rule.gamma, rule.beta]
        studies = json.dumps([[study.id, *study.images] for study in dataset.studies])
        return {"transform": json.dumps(transform), "draws": self.draws, "studies": hashlib.sha256(studies.encode()).hexdigest()}

    def content(self) -> dict:
        """Which images and masks, by sizes and dates."""
        paths, views = self._paths(), self.dataset.views
        found = {"files": fingerprint(self.dataset.image_dir, paths)}
        rule = self.dataset.mask_rule if self.field == "masked_images" else None
        masks = rule.masks if rule is not None else views.masks if views is not None else None
        if masks is not None:
            found["masks"] = masks.digest(paths)
        if views is not None and not views.by_masks:
            found["masked"] = fingerprint(views.masked_dir, paths)
        return found

    def bytes_sha256(self) -> str:
        """Of the bytes of the images, where dates or sizes are not what they were (a copy of the data set)."""
        digest = hashlib.sha256()
        for path in self._paths():
            digest.update(f"{path} {sha256(f'{self.dataset.image_dir}/{path}')}\n".encode())
        return digest.hexdigest()


def open_features(folder: Path, key: dict, source: _Source, extractor, *, device, precision, workers: int) -> FeatureCache:
    """The cache in `folder`, made where there is none, or a stale or damaged one."""
    content = source.content()
    with locked(folder):
        if folder.is_dir():
            try:
                cache = FeatureCache(folder)
                if _same_images(cache.manifest["content"], content, source):
                    return cache
                print(f"feature cache {folder}: images or masks have changed, making it anew")
            except InputError as error:
                print(f"{error}: making it anew")
            shutil.rmtree(folder)
        content["bytes"] = source.bytes_sha256()
        facts = {"key": key, "content": content}
        _build(folder, facts, source, extractor, device=device, precision=precision, workers=workers)
    return FeatureCache(folder)


def _same_images(kept: dict, now: dict, source: _Source) -> bool:
    others = {name: value for name, value in kept.items() if name not in ("files", "bytes")}
    if others != {name: value for name, value in now.items() if name != "files"}:
        return False
    return kept["files"] == now["files"] or kept["bytes"] == source.bytes_sha256()


@torch.no_grad()
def _build(folder: Path, facts: dict, source: _Source, extractor, *, device, precision, workers: int) -> None:
    """InputError when the disk is full, or features exceed float16; nothing is left of the attempt then."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed attempt
    unfinished.mkdir(parents=True)
    kind, training = KINDS[facts["key"]["kind"]], extractor.training
    views: list[int] = []
    sums: list[int] = []
    shape = None
    loader = DataLoader(source, batch_size=STUDIES, num_workers=workers, collate_fn=list)
    extractor.to(device).eval()
    try:
        with open(unfinished / "features.bin", "wb") as file:
            for images in tracked(loader, desc="features"):
                with precision.region():
                    features = extractor(torch.cat(images).to(device))
                rows = features.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()
                with np.errstate(over="ignore"):
                    rows = rows.astype(kind)
                if not np.isfinite(rows).all():
                    raise InputError(f"--feature_cache: features are beyond {kind.__name__} or not finite; take float32, or "
                                     "other --extractor_weights")  # fmt: skip
                views += map(len, images)
                sums += map(checksum, rows)
                shape = rows.shape[1:]
                file.write(rows.tobytes())
        np.save(unfinished / "sums.npy", np.array(sums, dtype=np.uint32))
        np.save(unfinished / "views.npy", np.array(views[:: source.draws], dtype=np.int64))
        facts |= {"shape": shape, "tables": _tables_sum(unfinished)}
        facts = json.loads(json.dumps(facts))
        write_json(unfinished / "manifest.json", {**facts, "checksum": _sum_of(facts)})
        unfinished.rename(folder)
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free / 2**20
        raise InputError(
            f"feature cache {folder} cannot be written ({error}); {free:,.0f} MiB are free there. Choose another folder with "
            "--knowledge_dir, or go on without it: --feature_cache off"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        extractor.train(training)


def _sum_of(manifest: dict) -> int:
    return checksum(json.dumps(manifest, sort_keys=True))


def _tables_sum(folder: Path) -> int:
    return checksum(*((folder / name).read_bytes() for name in ("sums.npy", "views.npy")))
