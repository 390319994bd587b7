"""ReXrank's files: studies in, predictions out, scoring a predictions file, and the other exports of a predictions file.

Input and predictions file are one object {study id: entry}; a prediction is the entry copied whole with `model_prediction`
added. What is missing in an entry is the bare word NaN, which is kept. Source: rajpurkarlab/ReXrank, its data and converter.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modules.artefact import read_json, write_atomic, write_json
from modules.errors import InputError
from modules.text.cleaning import clean_report

SECTIONS = ("findings", "findings+impression")
KEY = "model_prediction"


def read_rexrank(path: str | Path) -> dict[str, dict]:
    """{study id: entry} of an input or predictions file. InputError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(f"{path}: expected ReXrank's object of entries by study id")
    return content


def is_rexrank(path: str | Path) -> bool:
    """Whether a file is a predictions file of ReXrank with references inside."""
    if Path(path).suffix.lower() != ".json" or not Path(path).is_file():
        return False
    try:
        return all(KEY in entry and "section_findings" in entry for entry in read_rexrank(path).values())
    except InputError:
        return False


def images_of(entry: Mapping, study: str, max_views: int) -> list[str]:
    """Paths below the image folder: the first `max_views` of image_path, for a single view key_image_path.

    MIMIC-CXR's begin with "/". InputError where there is none, or one leads out of the folder.
    """
    listed = entry.get("image_path")
    listed = [listed] if isinstance(listed, str) else listed or []
    key = entry.get("key_image_path")
    chosen = [key] if max_views == 1 and isinstance(key, str) and key else listed[:max_views]
    paths = [str(path).lstrip("/") for path in chosen]
    if not paths or any(".." in Path(path).parts for path in paths):
        raise InputError(f"study {study}: no usable image among {chosen}")
    return paths


def write_rexrank(path: str | Path, entries: Mapping[str, Mapping], predictions: Mapping[str, str]) -> None:
    """The predictions file of the studies that have a prediction, in the order of the input; whole or not at all."""
    content = {study: {**entry, KEY: predictions[study]} for study, entry in entries.items() if study in predictions}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))


def written_so_far(path: str | Path, entries: Mapping[str, Mapping]) -> dict[str, str]:
    """Predictions that a predictions file of the same input holds already. InputError when it is of another input."""
    if not Path(path).is_file():
        return {}
    content = read_rexrank(path)
    other = [study for study in content if study not in entries or not isinstance(content[study].get(KEY), str)]
    if other:
        raise InputError(
            f"--out {path} is a predictions file of other studies, such as {other[:3]}: choose another file"
        )
    return {study: entry[KEY] for study, entry in content.items()}


def reference_of(entry: Mapping, section: str) -> str:
    """The text that a prediction is held against, "" where the section is missing (NaN, null or empty)."""
    parts = [entry.get(f"section_{name}") for name in section.split("+")]
    return " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def rows_with_references(path: str | Path, section: str, cleaning: str) -> list[dict[str, str]]:
    """Rows of our predictions file from a predictions file that has its references inside.

    Studies without that section cannot be scored: their number is printed. Without training reports there is no protocol
    r2gen; its column repeats the cleaned text.
    """
    content, rows, without = read_rexrank(path), [], []
    for study, entry in content.items():
        if not isinstance(entry.get(KEY), str):
            raise InputError(f"{path}: study {study} has no {KEY}")
        reference = reference_of(entry, section)
        if not reference:
            without.append(study)
            continue
        clean = clean_report(reference, cleaning)
        row = {"id": study, "reference": reference, "prediction": entry[KEY], "reference_clean": clean}
        rows.append(row | {"reference_r2gen": clean})
    if without:
        print(
            f"{path}: {len(without)} of {len(content)} studies have no {section} and are not scored: {without[:3]} ..."
        )
    if not rows:
        raise InputError(f"{path}: no study has {section}; choose another --rexrank_section")
    return rows


def export_rows(
    kind: str, out: Path, rows: Sequence[Mapping[str, str]], entries: Mapping[str, Mapping] | None
) -> list[Path]:
    """Write a predictions file's rows as others ask for them; returns the files.

    rexrank: entries of its input file with the predictions added. res_gts: R2GenCMN's res.csv and gts.csv, a report a line
    without header. radeval: {"ids", "refs", "hyps"}. csv: study_id,report.
    """
    if kind == "rexrank":
        if entries is None:
            raise InputError("--export rexrank: give ReXrank's input file with --rexrank; its entries are copied")
        predictions = {row["id"]: row["prediction"] for row in rows}
        lacking = [study for study in entries if study not in predictions]
        if lacking:
            raise InputError(f"--rexrank: {len(lacking)} of its studies have no prediction here, such as {lacking[:3]}")
        write_rexrank(out, entries, predictions)
        return [out]
    if kind == "res_gts":
        out.mkdir(parents=True, exist_ok=True)
        files = {out / "res.csv": "prediction", out / "gts.csv": "reference_r2gen"}
        for file, column in files.items():
            _write_csv(file, [[row[column]] for row in rows])
        return list(files)
    if kind == "radeval":
        names = {"ids": "id", "refs": "reference", "hyps": "prediction"}
        write_json(out, {name: [row[column] for row in rows] for name, column in names.items()})
        return [out]
    _write_csv(out, [["study_id", "report"], *([row["id"], row["prediction"]] for row in rows)])
    return [out]


def _write_csv(path: Path, rows: Iterable[list[str]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_atomic(path, write)
