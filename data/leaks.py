"""What two splits of an annotation share: ids, studies, patients, reports, images. Told on the data card, never mended."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.studies import Study
from modules.artefact import sha256

SPLITS = ("train", "val", "test")


def leaks(
    everything: Mapping[str, Sequence[Study]], image_dir: str | Path, splits: Sequence[str], *, bytes_too: bool
) -> dict[str, dict[str, int]]:
    """{"test in train": {"ids", "studies", "patients", "reports", "images": rows of test that share one with train}}.

    Only what is shared stands there. splits: those a run reads; each is held against the splits before it. Reports count as
    equal letter for letter, images by their path, and with `bytes_too` by what the files hold.
    """
    found = {}
    for split in splits:
        for before in SPLITS[: SPLITS.index(split)]:
            shared = _shared(everything.get(split, ()), everything.get(before, ()), Path(image_dir), bytes_too)
            if shared:
                found[f"{split} in {before}"] = shared
    return found


def _shared(rows: Sequence[Study], others: Sequence[Study], image_dir: Path, bytes_too: bool) -> dict[str, int]:
    counts = {}
    for name, of in (
        ("ids", lambda study: {study.id}),
        ("studies", lambda study: {study.study_id} - {"", study.id}),  # an id of its own is counted above
        ("patients", lambda study: {study.subject_id} - {""}),
        ("reports", lambda study: {study.report.strip()} - {""}),
    ):
        known = {one for study in others for one in of(study)}
        counts[name] = sum(not known.isdisjoint(of(study)) for study in rows)
    known = {path for study in others for path in study.images}
    known |= _same_files({path for study in rows for path in study.images}, known, image_dir) if bytes_too else set()
    counts["images"] = sum(not known.isdisjoint(study.images) for study in rows)
    return {name: count for name, count in counts.items() if count}


def _same_files(paths: set[str], others: set[str], image_dir: Path) -> set[str]:
    """Those of `paths` whose file holds the bytes of another one of `others`; only files of one size are read."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in others:
        if os.path.isfile(image_dir / path):
            sizes[os.path.getsize(image_dir / path)].append(path)
    digests: dict[int, set[str]] = {}
    found = set()
    for path in sorted(paths):
        size = os.path.getsize(image_dir / path) if os.path.isfile(image_dir / path) else -1
        if size in sizes:
            if size not in digests:
                digests[size] = {sha256(image_dir / other) for other in sizes[size]}
            if sha256(image_dir / path) in digests[size]:
                found.add(path)
    return found
