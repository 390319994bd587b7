"""Writing annotation.json and its manifest, and holding an annotation against ids or a file of somebody else."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.preparation.rows import SPLITS
from modules.artefact import differences, git_state, read_json, sha256, write_atomic, write_json
from modules.errors import InputError
from modules.scoring.predictions import read_reports, read_table

ID_KEYS = {"dicom_id": "id", "image_id": "id", "id": "id", "study_id": "study_id", "study": "study_id"}
_SHOWN = 5


def manifest_file(annotation: Path) -> Path:
    return annotation.with_suffix(".manifest.json")


def hashes(rows: Mapping[str, list[dict]]) -> dict[str, str]:
    """SHA-256 of all ids, one a line, and of all reports joined by newlines; train, then val, then test."""
    listed = [row for split in SPLITS for row in rows[split]]
    ids = "".join(f"{row['id']}\n" for row in listed)
    reports = "\n".join(row["report"] for row in listed)
    return {"ids_sha256": _sha256(ids), "reports_sha256": _sha256(reports)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def counts(rows: Mapping[str, list[dict]]) -> dict[str, dict[str, int]]:
    """{split: rows, studies, patients (where known), images}."""
    found = {}
    for split, listed in rows.items():
        found[split] = {"rows": len(listed), "studies": len({row["study_id"] for row in listed})}
        if any("subject_id" in row for row in listed):
            found[split]["patients"] = len({row.get("subject_id") for row in listed})
        found[split]["images"] = len({path for row in listed for path in row["image_path"]})
    return found


def write_annotation(path: Path, rows: Mapping[str, list[dict]], inputs: Mapping, **facts) -> dict:
    """Write the annotation, a row a line, and then its manifest, which is returned; each whole or not at all.

    Without a date, so that the same input gives the same two files.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            for number, split in enumerate(SPLITS):
                file.write(("{" if not number else ",\n") + json.dumps(split) + ": [")
                for place, row in enumerate(rows[split]):
                    file.write((",\n" if place else "\n") + json.dumps(row, ensure_ascii=False))
                file.write("]")
            file.write("}\n")

    manifest_file(path).unlink(missing_ok=True)  # an old one must not vouch for the new file
    write_atomic(path, write)
    manifest = {"what": "annotation", "inputs": inputs, "counts": counts(rows), **hashes(rows), **facts}
    manifest |= {"sha256": sha256(path), "git": git_state()}
    write_json(manifest_file(path), manifest)
    return manifest


def check_out(path: Path, inputs: Mapping, overwrite: bool) -> None:
    """InputError when another annotation stands at `path`: not ours, of other inputs, or changed since."""
    if not path.exists() or overwrite:
        return
    record = manifest_file(path)
    if not record.is_file():
        raise InputError(f"{path} is there and was not made by this command; choose another --out or pass --overwrite")
    manifest = read_json(record, "remove it and the annotation, or pass --overwrite")
    changed = differences(manifest["inputs"], json.loads(json.dumps(inputs)))
    if changed:
        raise InputError(f"{path} was made otherwise ({'; '.join(changed)}); choose another --out or pass --overwrite")
    if manifest["sha256"] != sha256(path):
        raise InputError(f"{path} was changed after it was made; remove it or pass --overwrite")


def compare_ids(rows: Mapping[str, list[dict]], path: Path) -> str:
    """One line on how the ids of a published outputs file agree with the split that shares most of them.

    path: CSV with a column of ID_KEYS, or one id a line.
    """
    table = read_table(path)
    header = [cell.strip().lower() for cell in table[0]]
    column = next((name for name in ID_KEYS if name in header), None)
    if column is None and len(header) > 1:
        raise InputError(
            f"--compare_ids {path}: no column of ids among {', '.join(header)}; known: {', '.join(ID_KEYS)}"
        )
    theirs = [row[header.index(column)] for row in table[1:]] if column else [row[0] for row in table]
    theirs = list(dict.fromkeys(theirs))
    key = ID_KEYS[column] if column else "id"
    ours = {split: [str(row[key]) for row in listed] for split, listed in rows.items()}
    split = max(SPLITS, key=lambda name: len(set(ours[name]) & set(theirs)))
    mine = list(dict.fromkeys(ours[split]))
    shared = set(mine) & set(theirs)
    order = ", same order" if mine == theirs else ""
    if not order and shared:
        same = [one for one in mine if one in shared] == [one for one in theirs if one in shared]
        order = ", in the same order" if same else ", in another order"
    text = f"{path.name}: {len(shared):,d} of {len(theirs):,d}{order} ({split}: {len(mine):,d} ids)"
    for who, ids, other in (("theirs alone", theirs, set(mine)), ("here alone", mine, set(theirs))):
        alone = [one for one in ids if one not in other]
        text += f"; {len(alone):,d} {who}, such as {', '.join(alone[:3])}" if alone else ""
    return text


def compare_annotations(rows: Mapping[str, list[dict]], path: Path) -> list[str]:
    """Lines on ids and texts against an annotation of R2Gen's format that was got elsewhere; the first differences by id."""
    listed = read_reports(path, "--from_annotation")
    lines = []
    for split in SPLITS:
        ours = {row["id"]: row["report"] for row in rows[split]}
        theirs = {row.id: row.text for row in listed if row.split == split}
        shared = [one for one in ours if one in theirs]
        texts = [one for one in shared if ours[one] != theirs[one]]
        spaces = sum(ours[one].split() == theirs[one].split() for one in texts)
        order = "same" if shared == [one for one in theirs if one in ours] else "another"
        lines.append(
            f"{split}: {len(ours):,d} here, {len(theirs):,d} there, {len(shared):,d} shared, {order} order; "
            f"{len(texts):,d} texts differ ({spaces:,d} in white space alone)"
        )
        lines += [f"  only here: {one}" for one in [one for one in ours if one not in theirs][:_SHOWN]]
        lines += [f"  only there: {one}" for one in [one for one in theirs if one not in ours][:_SHOWN]]
        lines += [
            f"  text of {one}, at character {_first_difference(ours[one], theirs[one])}" for one in texts[:_SHOWN]
        ]
    return lines


def _first_difference(ours: str, theirs: str) -> str:
    place = next((n for n, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    return f"{place}: {ours[place : place + 40]!r} here, {theirs[place : place + 40]!r} there"


def count_lines(expected: Mapping[str, int], found: Mapping[str, int], causes: Iterable[str]) -> list[str]:
    """What differs from a preset's counts, and the likely causes; empty where nothing does."""
    lines = []
    for name, count in expected.items():  # a split, or several joined by +
        here = sum(found[split] for split in name.split("+"))
        if here != count:
            lines.append(f"{name}: {here:,d} rows, {count:,d} expected ({here - count:+,d})")
    return lines + [f"  likely cause: {cause}" for cause in causes] if lines else []


def left_out_lines(left_out: Counter) -> list[str]:
    return [f"  left out, {reason}: {number:,d}" for reason, number in sorted(left_out.items())]
