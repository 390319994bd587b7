"""The rules that turn a source's studies into the rows of an annotation; every data set goes through here."""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data.preparation.source import Source, SourceImage, SourceStudy
from modules.errors import InputError

SPLITS = ("train", "val", "test")
UNITS = ("image", "study")
VIEWS = ("all", "two", "frontal")
ORDERS = ("split", "frontal_first")
SECTIONS = ("findings", "impression", "findings+impression", "findings_or_impression", "any")
CONTEXT = ("findings", "impression", "indication", "history", "comparison", "technique")
# the order of ViLMedic's preparation; what is not named stands before the images without a view
VIEW_ORDER = (
    "PA", "AP", "LATERAL", "LL", "AP AXIAL", "AP LLD", "AP RLD", "PA RLD", "PA LLD", "LAO", "RAO", "LPO", "XTABLE LATERAL",
    "SWIMMERS",
)  # fmt: skip
_FRONTAL = ("PA", "AP", "FRONTAL")


@dataclass(frozen=True)
class Rules:
    """How rows are made.

    unit: a row per image or per study. views: all images, the first two (a study with fewer is left out), or one: PA, else
    AP, else the first. section: see `report_text`. order of a study's images: the source's, or frontal ones first.
    min_words, max_words: length of the report, 0 for no bound. context, priors, views_key: which optional keys are written.
    layout of image paths: "source", or "r2gen" (<id>/0.png, <id>/1.png). split: "official", or shares such as "7:1:2", cut
    by patient with `seed`. own_validation: this many studies of train become val; the official val is then test where there
    is none, and is not used elsewhere.
    """

    unit: str = "study"
    views: str = "all"
    section: str = "findings"
    order: str = "split"
    min_words: int = 0
    max_words: int = 0
    context: bool = True
    priors: bool = True
    views_key: bool = True
    layout: str = "source"
    split: str = "official"
    seed: int = 0
    own_validation: int = 0


@dataclass
class Rows:
    """rows by split; images {path in the annotation: path in the source}; what was left out, counted by reason."""

    rows: dict[str, list[dict]]
    images: dict[str, str]
    left_out: Counter = field(default_factory=Counter)
    missing_images: list[str] = field(default_factory=list)
    boxes: dict[str, list[dict]] = field(default_factory=dict)


def make_rows(source: Source, rules: Rules, *, resized: bool = False) -> Rows:
    """The rows of a source under the rules, in the source's order. resized: image files will be .jpg."""
    made = Rows({split: [] for split in SPLITS}, {})
    chosen = []
    for study in source.studies:
        text = report_text(study.sections, rules.section)
        reason = study.left_out or _why_not(text, rules)
        images = [] if reason else _images(source, study, rules, made)
        reason = reason or ("" if images else "fewer than two images" if rules.views == "two" else "no image")
        if reason:
            made.left_out[reason] += 1
        else:
            chosen.append((study, text, images))
    splits = _splits([study for study, _, _ in chosen], rules)
    earlier = earlier_studies(source.studies) if rules.priors else {}
    for (study, text, images), split in zip(chosen, splits):
        if split is None:
            made.left_out["not in a split that is used"] += 1
            continue
        named = []
        for number, (image, path) in enumerate(images):
            target = _target(study, number, image, path, rules, resized)
            if made.images.setdefault(target, path) != path:
                raise InputError(f"{made.images[target]} and {path} would both become {target}: rename one of them")
            named.append((image, target))
        parts = [(str(study.study_id), named)]
        if rules.unit == "image":
            parts = [(image.id, [(image, target)]) for image, target in named]
        for row_id, part in parts:
            made.rows[split].append(_row(row_id, study, text, part, split, rules, earlier))
            if study.boxes is not None:
                made.boxes[row_id] = study.boxes
    return made


def without_images(made: Rows, failed: Iterable[str]) -> None:
    """Leave out the rows that show an image which cannot be read; they are counted."""
    failed = set(failed)
    for split, rows in made.rows.items():
        kept = [row for row in rows if not failed & set(row["image_path"])]
        made.left_out["image that cannot be read"] += len(rows) - len(kept)
        made.rows[split] = kept
    made.left_out += Counter()  # drops zeros


def report_text(sections: Mapping[str, str], section: str) -> str:
    """The report of a study: a section; both joined, where both are there; one or the other; or any there is.

    "any": findings and impression as far as they are there, else the last paragraph.
    """
    findings, impression = sections.get("findings", ""), sections.get("impression", "")
    if section == "findings+impression":
        return f"{findings} {impression}" if findings.strip() and impression.strip() else ""
    if section == "findings_or_impression":
        return findings if findings.strip() else impression
    if section == "any":
        return " ".join(filter(str.strip, (findings, impression))) or sections.get("last_paragraph", "")
    return sections.get(section, "")


def _why_not(text: str, rules: Rules) -> str:
    words = len(text.split())
    if not words:
        return f"no {rules.section}"
    if words < rules.min_words:
        return f"fewer than {rules.min_words} words"
    return f"more than {rules.max_words} words" if 0 < rules.max_words < words else ""


def _images(source: Source, study: SourceStudy, rules: Rules, made: Rows) -> list[tuple[SourceImage, str]]:
    """[(image, path in the source)] that the rules choose and that are there."""
    images = list(study.images)
    if rules.order == "frontal_first":
        images.sort(key=lambda image: _view_rank(image.view))
    if rules.views == "frontal":
        images = sorted(images, key=lambda image: _frontal_rank(image.view))[:1]
    elif rules.views == "two":
        images = images[:2] if len(images) > 1 else []
    if source.images is None:
        return [(image, image.path) for image in images]
    found = [(image, source.images.find(image.path)) for image in images]
    made.missing_images += [image.path for image, path in found if path is None]
    there = [(image, path) for image, path in found if path is not None]
    return there if rules.views != "two" or len(there) == 2 else []


def _view_rank(view: str) -> int:
    if not view:
        return len(VIEW_ORDER) + 1
    name = view.upper()
    return VIEW_ORDER.index(name) if name in VIEW_ORDER else 0 if name == "FRONTAL" else len(VIEW_ORDER)


def _frontal_rank(view: str) -> int:
    return _FRONTAL.index(view.upper()) if view.upper() in _FRONTAL else len(_FRONTAL)


def _target(study: SourceStudy, number: int, image: SourceImage, path: str, rules: Rules, resized: bool) -> str:
    stem = f"{study.study_id}/{number}" if rules.layout == "r2gen" else os.path.splitext(image.path)[0]
    return stem + (".jpg" if resized else os.path.splitext(path)[1])


def _row(
    row_id: str,
    study: SourceStudy,
    text: str,
    images: Sequence[tuple[SourceImage, str]],
    split: str,
    rules: Rules,
    earlier: Mapping[int | str, int | str],
) -> dict:
    row: dict[str, object] = {"id": row_id, "study_id": study.study_id}
    if study.subject_id is not None:
        row["subject_id"] = study.subject_id
    row |= {"report": text, "image_path": [target for _, target in images], "split": split}
    if rules.views_key:
        row["views"] = [image.view for image, _ in images]
    if rules.context:
        row |= {name: study.sections.get(name, "") for name in CONTEXT if name != rules.section}
    if rules.priors:
        row |= {"study_time": study.time, "prior_study_id": earlier.get(study.study_id)}
    return row


def earlier_studies(studies: Iterable[SourceStudy]) -> dict[int | str, int | str]:
    """{study: the patient's latest study before it, by time}; studies of one time are not earlier than each other."""
    patients: dict[int | str, list[SourceStudy]] = defaultdict(list)
    for study in studies:
        if study.time and study.subject_id is not None:
            patients[study.subject_id].append(study)
    found = {}
    for of_patient in patients.values():
        of_patient.sort(key=lambda study: study.time)
        before = None
        for last, study in zip([None, *of_patient], of_patient):
            if last is not None and last.time < study.time:
                before = last
            if before is not None:
                found[study.study_id] = before.study_id
    return found


def _splits(studies: Sequence[SourceStudy], rules: Rules) -> Sequence[str | None]:
    """The split of each study: the official one, or one cut by patient."""
    official = [study.split for study in studies]
    if rules.split != "official":
        return cut_by_patient(studies, shares_of(rules.split), rules.seed)
    if studies and not any(official):
        raise InputError("the data set names no split: cut one by patient with --split 7:1:2 (train, val, test)")
    if rules.own_validation:
        trained = [study for study in studies if study.split == "train"]
        if rules.own_validation >= len(trained):
            raise InputError(f"--own_validation {rules.own_validation}: train has {len(trained)} studies")
        share = rules.own_validation / len(trained)
        cut = iter(cut_by_patient(trained, (1 - share, share, 0), rules.seed))
        unused = None if "test" in official else "test"
        return [next(cut) if split == "train" else unused if split == "val" else split for split in official]
    return official


def shares_of(text: str) -> tuple[float, float, float]:
    """The shares of train, val and test of "7:1:2". InputError for what is none."""
    try:
        shares = [float(share) for share in text.split(":")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not sum(shares):
        raise InputError(f"--split {text}: give official, or shares of train, val and test such as 7:1:2")
    train, val, test = (share / sum(shares) for share in shares)
    return train, val, test


def cut_by_patient(studies: Sequence[SourceStudy], shares: tuple[float, float, float], seed: int) -> list[str]:
    """A split for each study, no patient in two of them; a study without a patient counts as one of its own.

    Patients are drawn in random order; one belongs to the split in which the middle of its studies falls.
    """
    patients: dict[str, list[int]] = defaultdict(list)
    for number, study in enumerate(studies):
        patients[f"study {study.study_id}" if study.subject_id is None else f"patient {study.subject_id}"].append(
            number
        )
    names = sorted(patients)
    random.Random(seed).shuffle(names)
    splits, done = [""] * len(studies), 0
    for name in names:
        middle = (done + len(patients[name]) / 2) / len(studies)
        split = "train" if middle < shares[0] else "val" if middle < shares[0] + shares[1] else "test"
        for number in patients[name]:
            splits[number] = split
        done += len(patients[name])
    return splits
