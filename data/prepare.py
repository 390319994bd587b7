"""From flags to datasets: studies, masks and label tables, checked before the first batch."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from data.batches import StudyDataset
from data.picture_cache import PictureCache, fingerprint, open_cache
from data.pictures import square
from data.studies import Study, check_pictures, check_studies, data_card, read_annotation, without_broken
from modules import processes
from modules.adm import MaskRule, MaskStore, open_masks
from modules.artefact import read_manifest, write_json
from modules.corpus import Corpus, corpus_of
from modules.errors import InputError, Problems
from modules.labels import read_label_table


@dataclass
class RunData:
    """The studies of a run and what lies beside their pictures.

    studies: by split, broken ones already left out. listed: studies of the annotation by split, broken ones counted.
    masks: store of ADM masks or None. diagnosis: {id: K bits} or None where a DiagnosisBot will tell. caches: decoded
    pictures by split, where they are kept. corpora: the words of the reports by split.
    """

    studies: dict[str, list[Study]]
    card: dict
    listed: dict[str, int]
    masks: MaskStore | None = None
    diagnosis: dict[str, list[int]] | None = None
    oracle: bool = False
    tables: dict[str, dict] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    caches: dict[str, PictureCache] = field(default_factory=dict)
    corpora: dict[str, Corpus] = field(default_factory=dict)


def open_data(
    args, splits: tuple[str, ...], problems: Problems, *, masks: bool, diagnosis: bool, texts=False
) -> RunData:
    """Read the annotation and look at every study of `splits`; what is wrong goes to `problems`.

    masks, diagnosis: whether the run needs ADM masks and a diagnosis per study. texts: keep the training and validation
    reports too (scoring counts their words); training never asks for the texts of the test split.
    """
    try:
        everything = read_annotation(args.ann_path)
    except InputError as error:
        problems.add(str(error))
        return RunData({}, {}, {})
    reports = {split: [study.report for study in everything[split]] for split in ("train", "val")} if texts else {}
    everything = {split: everything[split] for split in splits}
    for split, rows in everything.items():
        problems.check(bool(rows), f"{args.ann_path} has no {split} studies")
    broken, caches, known = {}, {}, None
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}"):
        if args.picture_cache and not problems.texts:
            caches = {split: _open_cache(args, split, rows) for split, rows in everything.items()}
            known = {path: why for cache in caches.values() for path, why in cache.manifest["broken"].items()}
        elif not problems.texts:
            known = processes.first_then_others(lambda: _check_pictures(args, everything))
        settings = {"cleaning": args.cleaning, "max_views": args.max_views, "depth": args.picture_check, "known": known}
        broken = check_studies(everything, args.image_dir, **settings)
    studies = without_broken(everything, broken, skip=args.skip_broken, problems=problems)
    card = data_card(studies, broken, name=args.dataset_name, ann_path=args.ann_path, max_views=args.max_views)
    data = RunData(studies, card, {split: len(rows) for split, rows in everything.items()}, texts=reports)
    data.caches = caches
    if not problems.texts:
        wanted = {split: [study.report for study in rows] for split, rows in studies.items()}
        wanted |= {"train": reports["train"]} if texts else {}
        data.corpora = {split: _corpus(args, split, rows) for split, rows in wanted.items()}
    if masks:
        _open_masks(args, data, problems)
    if diagnosis:
        _open_diagnosis(args, data, splits, problems)
    return data


def _paths(args, rows: list[Study]) -> list[str]:
    return [path for study in rows for path in study.pictures[: args.max_views]]


def _open_cache(args, split: str, rows: list[Study]) -> PictureCache:
    """The decoded pictures of a split, made where they are not there yet."""
    name = f"square{args.image_size}"
    folder = Path(args.knowledge_dir) / "pictures" / f"{name}_{args.max_views}" / split
    resize = lambda picture: square(picture, args.image_size)  # noqa: E731
    return processes.first_then_others(lambda: open_cache(folder, args.image_dir, _paths(args, rows), resize, name=name))


def _check_pictures(args, everything: dict[str, list[Study]]) -> dict[str, str]:
    """{picture: what is wrong}; pictures that were looked at before and have not changed since are not opened again."""
    known = {}
    for split, rows in everything.items():
        paths = _paths(args, rows)
        record = Path(args.knowledge_dir) / "pictures" / f"checked_{args.picture_check}_{split}.json"
        facts = {"files_sha256": fingerprint(args.image_dir, paths)}
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if facts.items() <= before.items():
            known |= before["broken"]
            continue
        found = check_pictures(paths, args.image_dir, depth=args.picture_check)
        write_json(record, {**facts, "broken": found})
        known |= found
    return known


def _corpus(args, split: str, reports: list[str]) -> Corpus:
    """The cleaned words of a split's reports, kept in --knowledge_dir."""
    digest = hashlib.sha256("\0".join([args.cleaning, *reports]).encode()).hexdigest()[:16]
    path = Path(args.knowledge_dir) / "words" / f"{split}_{digest}.npz"
    return processes.first_then_others(lambda: corpus_of(reports, args.cleaning, path))


def _open_masks(args, data: RunData, problems: Problems) -> None:
    try:
        data.masks = open_masks(args.adm_masks)
    except InputError as error:
        problems.add(f"--adm_masks: {error}")
        return
    used = [p for rows in data.studies.values() for study in rows for p in study.pictures[: args.max_views]]
    missing = [picture for picture in used if not data.masks.has(picture)]
    text = (
        f"--adm_masks {args.adm_masks} has no mask for {len(missing)} of {len(used)} pictures (such as {missing[:3]})"
    )
    problems.check(not missing, f"{text}: it was made from other pictures, or its making is unfinished")


def _open_diagnosis(args, data: RunData, splits, problems: Problems) -> None:
    """--diagnosis_path is read here; a DiagnosisBot only has to exist, it works once everything else is in order."""
    if not args.diagnosis_path:
        how = "train one with python -m knowledge.train_diagnosisbot, or give --diagnosis_path labels.csv"
        problems.check(Path(args.diagnosisbot).is_file(), f"--diagnosisbot: no file {args.diagnosisbot}; {how}")
        return
    try:
        data.diagnosis = read_label_table(args.diagnosis_path)
        manifest = read_manifest(args.diagnosis_path) or {}
    except InputError as error:
        problems.add(f"--diagnosis_path: {error}")
        return
    missing = [study.id for rows in data.studies.values() for study in rows if study.id not in data.diagnosis]
    problems.check(
        not missing, f"--diagnosis_path {args.diagnosis_path} lacks {len(missing)} studies, such as {missing[:3]}"
    )
    data.oracle = manifest.get("source") != "pictures" and bool({"val", "test"} & set(splits))
    problems.check(
        args.oracle_labels or not data.oracle,
        f"--diagnosis_path {args.diagnosis_path} was made from reports, also of the studies that are scored: that is an "
        "oracle. Use a --diagnosisbot, or pass --oracle_labels and every table will say so",
    )


def make_dataset(args, data: RunData, split: str, needs: set[str], tokenizer, *, training: bool) -> StudyDataset:
    """The dataset of one split with the fields a system needs."""
    rule = {"theta": args.theta, "gamma": args.gamma, "beta": args.beta}
    return StudyDataset(
        data.studies[split],
        args.image_dir,
        needs=needs,
        image_size=args.image_size,
        max_views=args.max_views,
        augment=args.augment if training else "none",
        seed=args.seed,
        tokens=data.corpora[split].padded(tokenizer, args.max_seq_length + 1) if "tokens" in needs else None,
        tables=data.tables,
        mask_rule=None if data.masks is None else MaskRule(data.masks, **rule),
        cache=data.caches.get(split),
    )
