"""The annotation: layout, counts, ids, leaks between the splits, and texts that stand out."""

import hashlib
import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

from data.check.findings import FOUND, MISSING, UNUSUAL, WRONG, Findings
from data.studies import SPLITS, row_fault
from modules.artefact import sha256
from modules.text.cleaning import clean_report
from modules.text.earlier import sentences, speaks_of_earlier

GROUP = "annotation"
# rows of R2Gen's annotations
EXPECTED = {"iu_xray": (2069, 296, 590), "mimic_cxr": (270790, 2130, 3858)}
# sha256 of R2Gen's IU X-Ray: all ids, one a line; all reports joined by newlines; train, val, test
R2GEN_IU = (
    "b52a655b96b3e30fc3e9c5245b7b1d6aaf300e54acc2a906a16317b75446adce",
    "42bf85e170cf74144e47055d861712ca4b49a1d675218650519cd02c8913b337",
)
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff\ufeff]")
SHORT, LONG = 3, 500  # words; findings of MIMIC-CXR's test studies have 8 to 352
PREPARE = {
    "iu_xray": "make it with python -m data.prepare_iu",
    "mimic_cxr": "make it with python -m data.prepare_mimic",
}


def check_annotation(found: Findings, args) -> dict[str, list[dict]] | None:
    """Rows by split where the layout is right, else None; adds the items of the group."""
    rows = _read(found, args)
    if rows is None:
        return None
    _counts(found, args, rows)
    _origin(found, args, rows)
    _ids(found, rows)
    _leaks(found, rows)
    _texts(found, rows)
    _words(found, args, rows)
    return rows


def _read(found: Findings, args) -> dict[str, list[dict]] | None:
    path, what = Path(args.ann_path), "layout"
    how = PREPARE.get(
        args.dataset_name, "make it with python -m data.prepare_table, or say where it lies with --ann_path"
    )
    if not path.is_file():
        found.add(GROUP, MISSING, what, f"no file {path}", how)
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        found.add(GROUP, WRONG, what, f"{path} is not a JSON file ({error})", how)
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        text = f'{path} is not R2Gen\'s layout {{"train": [...], "val": [...], "test": [...]}}'
        found.add(GROUP, WRONG, what, text, how)
        return None
    faults = [(f"{split} row {n}", row_fault(row)) for split in SPLITS for n, row in enumerate(content[split])]
    faulty = [f"{where} {fault}" for where, fault in faults if fault]
    text = "rows are no studies"
    found.judge(GROUP, what, faulty, WRONG, f"{path} is R2Gen's layout", text, "mend these rows")
    return {split: [row for row in content[split] if not row_fault(row)] for split in SPLITS}


def _counts(found: Findings, args, rows) -> None:
    counts = tuple(len(rows[split]) for split in SPLITS)
    shown = " / ".join(f"{count:,d}" for count in counts)
    expected = EXPECTED.get(args.dataset_name)
    if not all(counts):
        found.add(
            GROUP, WRONG, "counts", f"{shown} rows: a split is empty", "cut the data set by patient: data.prepare_table"
        )
    elif expected and counts != expected:
        text = f"{shown} rows where R2Gen has {' / '.join(f'{count:,d}' for count in expected)}"
        found.add(
            GROUP, UNUSUAL, "counts", text, "figures of papers do not compare; prepare it again with the preset r2gen"
        )
    else:
        found.add(GROUP, FOUND, "counts", f"{shown} rows")


def _origin(found: Findings, args, rows) -> None:
    """Against R2Gen's IU X-Ray by hash, and against the manifest that the preparation left."""
    listed = [row for split in SPLITS for row in rows[split]]
    if args.dataset_name == "iu_xray":
        ids = "".join(f"{row['id']}\n" for row in listed)
        texts = "\n".join(row["report"] for row in listed)
        same = (_hash(ids), _hash(texts)) == R2GEN_IU
        text = "ids and reports are R2Gen's, by hash" if same else "ids or reports are not R2Gen's, by hash"
        found.add(GROUP, FOUND if same else UNUSUAL, "R2Gen's", text, "" if same else PREPARE["iu_xray"])
    manifest = Path(args.ann_path).with_suffix(".manifest.json")
    if manifest.is_file():
        try:
            recorded = json.loads(manifest.read_text(encoding="utf-8")).get("sha256")
        except (ValueError, AttributeError):
            recorded = None
        same = recorded == sha256(args.ann_path)
        text = "is as prepared" if same else f"is not the file that {manifest} describes"
        found.add(
            GROUP, FOUND if same else UNUSUAL, "manifest", f"{args.ann_path} {text}", "" if same else "prepare it again"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _ids(found: Findings, rows) -> None:
    seen = Counter(str(row["id"]) for split in SPLITS for row in rows[split])
    twice = sorted(name for name, count in seen.items() if count > 1)
    found.judge(GROUP, "ids", twice, WRONG, "each once", "ids stand more than once", "give each row an id of its own")
    bare = [str(row["id"]) for split in SPLITS for row in rows[split] if not row["image_path"]]
    found.judge(GROUP, "image lists", bare, WRONG, "no row without images", "rows without an image", "take them out")


def _leaks(found: Findings, rows) -> None:
    """Patients, images and reports that stand on both sides."""
    patients: dict[str, set[str]] = {}
    images: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in rows[split]:
            if row.get("subject_id") is not None:
                patients.setdefault(str(row["subject_id"]), set()).add(split)
            for path in row["image_path"]:
                images.setdefault(path, set()).add(split)
    shared = sorted(name for name, splits in patients.items() if len(splits) > 1)
    if patients:
        text = "patients stand in more than one split"
        found.judge(
            GROUP, "patients", shared, UNUSUAL, "none in two splits", text, "scores are too good: cut by patient"
        )
    else:
        found.add(GROUP, FOUND, "patients", "not told (no subject_id): whether one stands in two splits is unknown")
    shared = sorted(path for path, splits in images.items() if len(splits) > 1)
    text = "images stand in more than one split"
    found.judge(
        GROUP, "shared images", shared, UNUSUAL, "none in two splits", text, "scores are too good: cut by patient"
    )
    trained = {row["report"] for row in rows["train"]}
    scored = [row["report"] for split in ("val", "test") for row in rows[split]]
    share = sum(report in trained for report in scored) / max(len(scored), 1)
    text = f"{share:.1%} of the val and test reports also stand in train, to the letter"
    status, how = (UNUSUAL, "look for copies of studies") if share > 0.5 else (FOUND, "")
    found.add(GROUP, status, "known reports", text, how)


def _texts(found: Findings, rows) -> None:
    listed = [(str(row["id"]), row["report"]) for split in SPLITS for row in rows[split]]
    words = {name: len(report.split()) for name, report in listed}
    empty = [name for name, report in listed if not any(letter.isalpha() for letter in report)]
    found.judge(
        GROUP, "empty reports", empty, WRONG, "none", "reports without a word", "take them out, or --skip_broken"
    )
    gone = set(empty)
    short = [name for name, count in words.items() if count < SHORT and name not in gone]
    how = "look at them: is it the section that you want?"
    found.judge(GROUP, "short reports", short, UNUSUAL, "none", f"reports of fewer than {SHORT} words", how)
    long = [name for name, count in words.items() if count > LONG]
    found.judge(GROUP, "long reports", long, UNUSUAL, "none", f"reports of more than {LONG} words", how)
    one = sum(len(sentences(report)) == 1 for _, report in listed) / max(len(listed), 1)
    status, how = (UNUSUAL, "an impression? findings are longer") if one > 0.5 else (FOUND, "")
    found.add(GROUP, status, "one sentence", f"{one:.1%} of the reports are a single sentence", how)
    odd = [name for name, report in listed if NOT_TEXT.search(report)]
    text = "reports hold characters that are no text"
    found.judge(GROUP, "characters", odd, UNUSUAL, "all are text", text, "decode the source as UTF-8 or Latin-1")


def _words(found: Findings, args, rows) -> None:
    """Words that training will not know, and references that speak of earlier studies."""
    cleaned = {split: [clean_report(row["report"], args.cleaning) for row in rows[split]] for split in SPLITS}
    counts = Counter(chain.from_iterable(report.split() for report in cleaned["train"]))
    known = {word for word, count in counts.items() if count >= args.threshold}
    scored = [word for split in ("val", "test") for report in cleaned[split] for word in report.split()]
    share = sum(word not in known for word in scored) / max(len(scored), 1)
    text = (
        f"{share:.2%} of the words of val and test are none of the {len(known):,d} seen {args.threshold} times in train"
    )
    status, how = (
        (UNUSUAL, "another language or section in one split? lower --threshold?") if share > 0.05 else (FOUND, "")
    )
    found.add(GROUP, status, "unknown words", text, how)
    scored = [row["report"] for split in ("val", "test") for row in rows[split]]
    share = sum(map(speaks_of_earlier, scored)) / max(len(scored), 1)
    text = f"{share:.1%} of the val and test reports speak of earlier studies"
    status, how = (UNUSUAL, "no system sees those: look at the subset not_earlier") if share > 0.6 else (FOUND, "")
    found.add(GROUP, status, "earlier studies", text, how)
