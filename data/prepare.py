"""From flags to datasets: studies, masks and label tables, checked before the first batch."""

import argparse
import contextlib
import gc
import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data.batches import StudyDataset
from data.image_cache import ImageCache, fingerprint, open_cache
from data.images import (
    Augmentation,
    Reading,
    equalized_share,
    evaluation_kind,
    open_image,
    reading_of,
    settle_equalize,
)
from data.leaks import leaks
from data.mask_store import MaskRule, MaskStore, PackedMasks, open_masks
from data.scene_graphs import SceneGraphs, read_scene_graphs
from data.studies import Study, card_text, check_images, check_studies, data_card, read_annotation, without_broken
from data.views import Views, kept
from modules import processes
from modules.artefact import checksum, read_json, read_manifest, write_json
from modules.errors import InputError, Problems
from modules.flags import all_flags
from modules.text.corpus import Corpus, corpus_of
from modules.text.labels import read_label_table


@dataclass
class RunData:
    """The studies of a run and what lies beside their images.

    studies: by split, broken ones already left out. listed: studies of the annotation by split, broken ones counted.
    masks: store of ADM masks or None. diagnosis: {id: K bits} or None where a DiagnosisBot will tell. caches: decoded
    images by split and kind of view, where they are kept. views: what `images` holds, None = the complete images.
    corpora: the words of the reports by split. training: all training studies, their
    images not looked at, where texts were asked for. scene_graphs: of all splits, or None. oracle_graph: scored reports are
    written from what they themselves say of the regions.
    """

    studies: dict[str, list[Study]]
    card: dict
    listed: dict[str, int]
    masks: MaskStore | None = None
    diagnosis: dict[str, list[int]] | None = None
    oracle: bool = False
    tables: dict[str, dict] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    caches: dict[str, dict[str, ImageCache]] = field(default_factory=dict)
    views: tuple[tuple[str, int], ...] | None = None
    corpora: dict[str, Corpus] = field(default_factory=dict)
    scene_graphs: SceneGraphs | None = None
    training: list[Study] = field(default_factory=list)
    oracle_graph: bool = False


def open_data(
    args,
    inputs: dict[str, set[str]],
    problems: Problems,
    *,
    texts=False,
    training=False,
    views=None,
    trained: float | None = None,
) -> RunData:
    """Read the annotation and look at every study of the splits of `inputs`; what is wrong goes to `problems`.

    inputs: by split, what its studies must bring beside images and report: "masks" (ADM), "diagnosis" (of a table or a
    DiagnosisBot), "labels" (of their reports), "scene_graphs" (boxes of regions), "true_graph" (what the report says of
    them). texts: keep the training and validation reports too (scoring counts their words); training never asks for the
    texts of the test split. training: the images of "train" will be augmented. views: (kind, number of the study's
    image) of each view, where a system asks for others than the complete images. trained:
    which share of the training images was equalised, for --equalize auto, which is settled here.
    """
    # a million new objects that stay: searching them for garbage takes longer than reading them, and frozen they are not
    # touched, and so not copied, by the collector of a worker process either
    gc.disable()
    try:
        return _open_data(args, inputs, problems, texts=texts, training=training, views=views, trained=trained)
    finally:
        gc.freeze()
        gc.enable()


def _open_data(args, inputs, problems: Problems, *, texts: bool, training: bool, views, trained) -> RunData:
    splits = tuple(inputs)
    try:
        everything = read_annotation(args.ann_path, args.limit)
    except InputError as error:
        problems.add(str(error))
        return RunData({}, {}, {})
    reports = {split: [study.report for study in everything[split]] for split in ("train", "val")} if texts else {}
    rows_of_training = everything["train"] if texts else []
    shared = leaks(everything, args.image_dir, splits, bytes_too=args.image_check == "full")
    everything = {split: everything[split] for split in splits}
    for split, rows in everything.items():
        problems.check(bool(rows), f"{args.ann_path} has no {split} studies")
    broken, caches, known, share = {}, {}, None, None
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}"):
        share = _equalized_share(args, everything[splits[0]])
        args.equalize = settle_equalize(args.equalize, trained, share)
        if args.image_cache and args.cache_dir and not problems.texts:
            still = evaluation_kind(args)
            kinds = {s: args.augment if training and s == "train" else still for s in everything}
            caches = {s: _open_caches(args, s, rows, kinds[s], views) for s, rows in everything.items()}
            each = [cache for row in caches.values() for cache in row.values()]
            known = {path: why for cache in each for path, why in cache.manifest["broken"].items()}
        elif not problems.texts:
            known = processes.first_then_others(lambda: _check_images(args, everything))
        settings = {"cleaning": args.cleaning, "max_views": args.max_views, "depth": args.image_check, "known": known}
        broken = check_studies(everything, args.image_dir, **settings)
    studies = without_broken(everything, broken, skip=args.skip_broken, problems=problems)
    for split, rows in studies.items():
        problems.check(bool(rows or not everything[split]), f"--skip_broken leaves no {split} study: all are broken")
    card = data_card(studies, broken, name=args.dataset_name, ann_path=args.ann_path, max_views=args.max_views)
    card["shared"] = shared
    card |= {"limit": args.limit} if args.limit else {}
    if training:  # a run that goes on is held against it
        used = [path for rows in studies.values() for path in _paths(args, rows)]
        card["images_sha256"] = fingerprint(args.image_dir, used, dates=False)
    card["equalized"] = 1.0 if args.equalize == "on" else share
    data = RunData(studies, card, {split: len(rows) for split, rows in everything.items()}, texts=reports)
    data.caches, data.views, data.training = caches, views, rows_of_training
    if not problems.texts:
        wanted = {split: [study.report for study in rows] for split, rows in studies.items()}
        wanted |= {"train": reports["train"]} if texts else {}
        data.corpora = {split: _corpus(args, split, rows) for split, rows in wanted.items()}
    names = ("masks", "diagnosis", "labels", "scene_graphs")
    that_read = {name: [split for split in splits if name in inputs[split]] for name in names}
    if that_read["masks"]:
        _open_masks(args, data, that_read["masks"], problems)
    if that_read["diagnosis"]:
        _open_diagnosis(args, data, that_read["diagnosis"], problems)
    if that_read["labels"]:
        data.tables["labels"] = _read_labels(args, "labels_path", data, that_read["labels"], problems)
    if that_read["scene_graphs"]:
        _open_scene_graphs(args, data, inputs, problems, training=training)
    return data


def _equalized_share(args, rows: list[Study]) -> float | None:
    """Of 32 first images, evenly drawn from `rows`: how many are equalised; None where none can be read."""
    images = []
    for study in rows[:: max(1, len(rows) // 32)][:32]:
        for path in study.images[:1]:
            with contextlib.suppress(InputError):  # told by the check of every image
                images.append(open_image(f"{args.image_dir}/{path}", Reading(reading_of(args).dicom)))
    return equalized_share(images)


def _paths(args, rows: list[Study]) -> list[str]:
    return [path for study in rows for path in study.images[: args.max_views]]


def _open_caches(args, split: str, rows: list[Study], augment: str, views) -> dict[str, ImageCache]:
    """By kind of view, the decoded images of a split, made where they are not there yet."""
    sizes = Augmentation(augment, args.image_size, args.resize_filter)
    paths, caches, reading = _paths(args, rows), {}, reading_of(args)
    for kind in dict.fromkeys(kind for kind, _ in views) if views else ("complete",):
        name, resize, folder = kept(kind, sizes, args.image_dir, _masked_dir(args))
        place = Path(args.cache_dir) / "images" / f"{name}{reading.name}_{args.max_views}" / split
        caches[kind] = processes.first_then_others(
            partial(open_cache, place, folder, paths, resize, name=name, reading=reading)
        )
    return caches


def _masked_dir(args) -> str | None:
    """Folder of masked images that a system may be given instead of masks."""
    return getattr(args, "image_seg_dir", None)


def _check_images(args, everything: dict[str, list[Study]]) -> dict[str, str]:
    """{image: what is wrong}; images that were looked at before and have not changed since are not opened again."""
    known: dict[str, str] = {}
    for split, rows in everything.items():
        paths = _paths(args, rows)
        record = args.cache_dir and Path(args.cache_dir) / "images" / f"checked_{args.image_check}_{split}.json"
        facts = {"files_sha256": fingerprint(args.image_dir, paths)}
        found = _checked_before(record, facts) if record else None
        if found is None:
            found = check_images(paths, args.image_dir, depth=args.image_check)
            if record:
                write_json(record, {**facts, "broken": found, "checksum": checksum(json.dumps([facts, found]))})
        known |= found
    return known


def _checked_before(record: Path, facts: dict) -> dict[str, str] | None:
    """What `record` says about the images, None where there is none of these files or it is damaged."""
    try:
        before = read_json(record) if record.is_file() else {}
        sound = before.get("checksum") == checksum(json.dumps([facts, before.get("broken")]))
    except (InputError, AttributeError):
        sound = False
    return before["broken"] if sound else None


def _corpus(args, split: str, reports: list[str]) -> Corpus:
    """The cleaned words of a split's reports, kept in --knowledge_dir."""
    if not args.cache_dir:
        return Corpus.of(reports, args.cleaning)
    digest = hashlib.sha256("\0".join([args.cleaning, *reports]).encode()).hexdigest()[:16]
    path = Path(args.cache_dir) / "words" / f"{split}_{digest}.npz"
    return processes.first_then_others(lambda: corpus_of(reports, args.cleaning, path))


def _open_masks(args, data: RunData, splits, problems: Problems) -> None:
    try:
        data.masks = open_masks(args.adm_masks)
    except InputError as error:
        problems.add(f"--adm_masks: {error}")
        return
    used = [p for split in splits for study in data.studies[split] for p in study.images[: args.max_views]]
    missing = [image for image in used if not data.masks.has(image)]
    text = f"--adm_masks {args.adm_masks} has no mask for {len(missing)} of {len(used)} images (such as {missing[:3]})"
    problems.check(not missing, f"{text}: it was made from other images, or its making is unfinished")
    data.card["masks"] = str(args.adm_masks)
    if isinstance(data.masks, PackedMasks):
        data.card["empty_masks"] = data.masks.manifest["empty_masks"]  # no label diagnosed: the image is left as it is


def _open_scene_graphs(args, data: RunData, inputs: dict[str, set[str]], problems: Problems, *, training: bool) -> None:
    """--scene_graphs must know the first image of every study that is used, under its split, and what training learns from."""
    path = args.scene_graphs
    try:
        graphs = data.scene_graphs = read_scene_graphs(path)
    except InputError as error:
        problems.add(f"--scene_graphs: {error}")
        return
    images = [(study.images[0], split) for split in inputs if "scene_graphs" in inputs[split] for study in data.studies[split]
              if study.images]  # fmt: skip
    missing = [image for image, _ in images if image not in graphs]
    problems.check(
        not missing,
        f"--scene_graphs {path} has no graph of {len(missing)} of {len(images)} images, such as {missing[:3]}: it was built "
        "from another annotation; build it again with python -m knowledge.build_scene_graphs",
    )
    moved = [f"{image} ({graphs.split_of(image)} there, {split} here)" for image, split in images
             if image in graphs and graphs.split_of(image) != split]  # fmt: skip
    problems.check(
        not moved,
        f"--scene_graphs {path} was built with another split: {len(moved)} images stand elsewhere, such as "
        f"{', '.join(moved[:3])}. Its attributes would be those of other training reports: build it again",
    )
    data.oracle_graph = any("true_graph" in names for split, names in inputs.items() if split != "train")
    problems.check(
        graphs.with_attributes or not (training or data.oracle_graph),
        f"--scene_graphs {path} has boxes alone: training and --oracle_graph need what the reports say of the regions",
    )


def _open_diagnosis(args, data: RunData, splits, problems: Problems) -> None:
    """--diagnosis_path is read here; a DiagnosisBot only has to exist, it works once everything else is in order."""
    if not args.diagnosis_path:
        how = "train one with python -m knowledge.train_diagnosisbot, or give --diagnosis_path labels.csv"
        problems.check(Path(args.diagnosisbot).is_file(), f"--diagnosisbot: no file {args.diagnosisbot}; {how}")
        return
    data.diagnosis = _read_labels(args, "diagnosis_path", data, splits, problems)


def _read_labels(args, flag: str, data: RunData, splits, problems: Problems) -> dict[str, list[int]]:
    """The label table of a flag, which must know every study of `splits`; made from reports it is an oracle for scored ones."""
    path = getattr(args, flag)
    try:
        table, manifest = read_label_table(path), read_manifest(path) or {}
    except InputError as error:
        problems.add(f"--{flag}: {error}")
        return {}
    missing = [study.id for split in splits for study in data.studies[split] if study.id not in table]
    problems.check(not missing, f"--{flag} {path} lacks {len(missing)} studies, such as {missing[:3]}")
    oracle = manifest.get("source") != "images" and bool({"val", "test"} & set(splits))
    problems.check(
        args.oracle_labels or not oracle,
        f"--{flag} {path} was made from reports, also of the studies that are scored: that is an "
        "oracle. Use a --diagnosisbot, or pass --oracle_labels and every table will say so",
    )
    data.oracle = data.oracle or oracle
    return table


def say_only(args, inputs: dict[str, set[str]], problems: Problems, **settings) -> None:
    """--dry_run: print the data card where the data are there, what would stop the run, and the flags as JSON. Nothing is
    written, no image decoded."""
    quick = argparse.Namespace(**{**vars(args), "cache_dir": None, "image_check": "quick"})
    data = open_data(quick, inputs, problems, **settings)
    if data.studies:
        print(card_text(data.card))
    if problems.texts:
        print("this run would not start:\n" + "\n".join(f"  - {text}" for text in problems.texts))
    print(json.dumps(all_flags(args), indent=1))


def make_dataset(args, data: RunData, split: str, needs: set[str], tokenizer, *, training: bool) -> StudyDataset:
    """The dataset of one split with the fields a system needs."""
    augment, caches = args.augment if training else evaluation_kind(args), data.caches.get(split, {})
    mask_rule = views = None
    if "masked_images" in needs:
        assert data.masks is not None  # `open_data` reads them for who needs them
        mask_rule = MaskRule(data.masks, theta=args.theta, gamma=args.gamma, beta=args.beta)
    if data.views:
        sizes = Augmentation(augment, args.image_size, args.resize_filter)
        views = Views(data.views, args.image_dir, sizes, masks=data.masks, masked_dir=_masked_dir(args), caches=caches,
                      reading=reading_of(args))  # fmt: skip
    return StudyDataset(
        data.studies[split],
        args.image_dir,
        needs=needs,
        image_size=args.image_size,
        max_views=args.max_views,
        augment=augment,
        resize_filter=args.resize_filter,
        seed=args.seed,
        tokens=tokenizer.padded(data.corpora[split], args.max_seq_length + 1) if "tokens" in needs else None,
        tables=data.tables,
        mask_rule=mask_rule,
        cache=caches.get("complete"),
        reading=reading_of(args),
        scene_graphs=data.scene_graphs,
        views=views,
    )
