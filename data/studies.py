"""Readers of R2Gen's annotation format and the checks made before the first batch.

The format (Chen et al. 2020): {"train": [...], "val": [...], "test": [...]}, each row {"id", "report", "image_path":
[paths below the image folder]}. IU X-Ray, MIMIC-CXR and the miniature set come in it; so does any other set a user brings.
"""

import hashlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.images import image_problem
from modules.artefact import read_json
from modules.errors import InputError, Problems
from modules.progress import tracked
from modules.text.cleaning import clean_report

SPLITS = ("train", "val", "test")
LETTER = re.compile("[a-zA-Z]")
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Study:
    """One row of an annotation: id, raw report text, image paths below the image folder in the annotation's order, split.

    A row is a study, or an image of one: study_id says which rows share a study, subject_id which share a patient ("" where
    the annotation does not say it).
    """

    id: str
    report: str
    images: tuple[str, ...]
    split: str
    study_id: str = ""
    subject_id: str = ""


def read_annotation(path: str | Path, limit: int = 0) -> dict[str, list[Study]]:
    """Studies by split, in the file's order, nothing left out; of each split the first `limit`, where that is not 0.

    Raises InputError when the file is missing, is not JSON or has not R2Gen's layout (all faulty rows in one message).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no annotation file {path}; say where the data set lies with --data_dir or --ann_path")
    content = read_json(path)
    if not isinstance(content, dict) or not set(SPLITS) & set(content):
        raise InputError(
            f'{path}: expected {{"train": [...], "val": [...], "test": [...]}}, R2Gen\'s annotation format'
        )
    studies: dict[str, list[Study]] = {}
    faults = Problems()
    for split in SPLITS:
        studies[split] = []
        rows = content.get(split, [])
        if not isinstance(rows, list):
            raise InputError(f'{path}: "{split}" must be a list of studies, found {str(rows)[:40]}')
        for number, row in enumerate(rows):
            fault = row_fault(row)
            if fault:
                faults.add(f"{split} row {number}: {fault}")
            else:
                units = ("" if row.get(name) is None else str(row[name]) for name in ("study_id", "subject_id"))
                studies[split].append(Study(str(row["id"]), row["report"], tuple(row["image_path"]), split, *units))
    faults.texts[20:] = [f"... and {len(faults.texts) - 20} more rows"] if len(faults.texts) > 20 else []
    faults.stop_if_any(f"{path} has rows that are not studies")
    return {split: rows[: limit or None] for split, rows in studies.items()}


def row_fault(row) -> str | None:
    """Why a row of the annotation is not a study, or None."""
    texts: list = [str(row["id"]), row.get("report")] if isinstance(row, dict) and "id" in row else [None]
    images = row.get("image_path") if isinstance(row, dict) else None
    if not (isinstance(images, list) and all(isinstance(text, str) for text in texts + images)):
        return "needs id, report (text) and image_path (list of paths)"
    if any(SURROGATE.search(text) for text in texts + images):
        return "has half of a character (a lone surrogate), which no file can hold"
    outside = [image for image in images if image.startswith("/") or ".." in image.split("/")]
    return f"image_path {outside[0]} leads out of the image folder" if outside else None


def check_studies(
    studies: dict[str, list[Study]],
    image_dir: str | Path,
    *,
    cleaning: str,
    max_views: int,
    depth: str,
    known: dict[str, str] | None = None,
    progress=True,
) -> dict[str, str]:
    """Look at every study and at the images that will be used; returns {study id: what is wrong} for the broken ones.

    depth: "full" decodes each image, "quick" reads its header and its end. known: {image: what is wrong} where the
    images have been decoded already; no file is opened then.
    """
    broken: dict[str, str] = {}
    listed = [study for rows in studies.values() for study in rows]
    seen: Counter[str] = Counter()
    looked_at = []
    for study in listed:
        seen[study.id] += 1
        if seen[study.id] > 1:
            broken[f"{study.id} (number {seen[study.id]})"] = (
                "the id stands in the annotation before; the first is kept"
            )
        # cleaning leaves every letter, so only a report without any has to be cleaned
        elif not LETTER.search(study.report) and not clean_report(study.report, cleaning).strip(" ."):
            broken[study.id] = "empty report"
        elif not study.images:
            broken[study.id] = "no image"
        else:
            looked_at.append(study)
    if known is None:
        images = [image for study in looked_at for image in study.images[:max_views]]
        known = check_images(images, image_dir, depth=depth, progress=progress)
    for study in looked_at:
        reasons = [known[image] for image in study.images[:max_views] if image in known]
        if reasons:
            broken[study.id] = reasons[0]
    return broken


def check_images(images: list[str], image_dir: str | Path, *, depth: str, progress: bool = True) -> dict[str, str]:
    """{image: what is wrong} for those of `images` (paths below image_dir) that cannot be used."""
    images = list(dict.fromkeys(images))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda image: image_problem(f"{image_dir}/{image}", depth), images)
        pairs = tracked(zip(images, found), total=len(images), desc="checking images", hidden=not progress)
        return {image: problem for image, problem in pairs if problem}


def without_broken(
    studies: dict[str, list[Study]], broken: dict[str, str], *, skip: bool, problems: Problems
) -> dict[str, list[Study]]:
    """The studies to use. Notes all broken ones in `problems` unless `skip`; a duplicate id keeps its first study."""
    if broken and not skip:
        shown = [f"{name}: {reason}" for name, reason in list(broken.items())[:20]]
        more = [f"... and {len(broken) - 20} more"] if len(broken) > 20 else []
        problems.add(
            f"{len(broken)} studies are broken; mend them, or pass --skip_broken to go on without them:\n      "
            + "\n      ".join(shown + more)
        )
        return studies
    kept: dict[str, list[Study]] = {}
    seen = set(broken)
    for split, rows in studies.items():
        kept[split] = []
        for study in rows:
            if study.id not in seen:
                kept[split].append(study)
                seen.add(study.id)
    return kept


def data_card(studies: dict[str, list[Study]], broken: dict[str, str], *, name: str, ann_path: str, max_views: int):
    """Facts about the data of a run, for the console and run.json: counts, views, hash of the ids per split."""
    splits: dict[str, dict] = {}
    card = {"data_set": name, "annotation": str(ann_path), "section": "report", "views_used": max_views, "splits": splits}
    for split, rows in studies.items():
        ids = hashlib.sha256("\n".join(sorted(study.id for study in rows)).encode()).hexdigest()[:16]
        views = dict(sorted(Counter(len(study.images) for study in rows).items()))
        facts = {"rows": len(rows), "studies": len({study.study_id or study.id for study in rows})}
        patients = {study.subject_id for study in rows} - {""}
        facts |= {"patients": len(patients)} if patients else {}
        splits[split] = {**facts, "images_per_study": views, "ids_sha256": ids}
    # a row is an image where several share a study
    card["unit"] = "image" if any(facts["rows"] > facts["studies"] for facts in splits.values()) else "study"
    card["skipped"] = dict(broken)
    return card


def limit_marks(limit: int, *, trained: int = 0) -> tuple[str, ...]:
    """What every table says of a run with --limit; trained: that of the training whose weights are tested."""
    marks = (f"first {limit} studies of each split",) if limit else ()
    return marks + ((f"trained on {trained} studies",) if trained and trained != limit else ())


def card_text(card: dict) -> str:
    """The data card for people."""
    limit = f"; LIMITED to the first {card['limit']} studies of each split" if card.get("limit") else ""
    lines = [f'data set {card["data_set"]}: {card["annotation"]} (text: its "{card["section"]}" field){limit}']
    for split, facts in card["splits"].items():
        views = ", ".join(f"{count} with {number}" for number, count in facts["images_per_study"].items())
        count = f"{facts['studies']:>7,d} studies"
        if card["unit"] == "image":
            count = f"{facts['rows']:>7,d} rows, an image each, of {facts['studies']:,d} studies"
        count += f" of {facts['patients']:,d} patients" if "patients" in facts else ""
        lines.append(f"  {split:5s} {count} (images: {views})  ids {facts['ids_sha256']}")
    lines.append(f"  images used per study: first {card['views_used']}; broken and skipped: {len(card['skipped'])}")
    for pair, counts in card.get("shared", {}).items():
        split, _, before = pair.partition(" in ")
        for what, count in counts.items():
            share = count / max(card["splits"][split]["rows"], 1)
            lines.append(f"  shared {what}: {count:,d} {split} rows ({share:.1%}) have one that {before} has too")
    if "empty_masks" in card:
        lines.append(f"  masks: {card['masks']}, {card['empty_masks']} of them empty")
    return "\n".join(lines)
