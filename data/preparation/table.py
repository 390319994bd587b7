"""Any data set in one table: CSV or JSON lines with id, report and images, and what else is known."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.preparation.image_files import open_images
from data.preparation.source import Source, SourceImage, SourceStudy, read_columns, split_name
from modules.errors import InputError

NEEDED = ("id", "images")
OPTIONAL = ("report", "findings", "impression", "indication", "history", "comparison", "technique",
            "study", "patient", "split", "views", "time")  # fmt: skip
_SECTIONS = ("impression", "indication", "history", "comparison", "technique")


def read_any_table(table: str | Path, images: str | Path | None, names: Mapping[str, str]) -> Source:
    """Studies of a table in its order. names: {our column: the table's} where they differ.

    Columns: id, images (a list; in a CSV `;` between), report (or findings); optional: the other sections, study (rows of
    one are joined, the first text is taken; default id), patient, split, views (as images), time (sorts within a patient).
    InputError names the row that is no study.
    """
    table = Path(table)
    unknown = sorted(set(names) - set(NEEDED) - set(OPTIONAL))
    if unknown:
        raise InputError(f"--columns: {', '.join(unknown)} unknown; known are {', '.join((*NEEDED, *OPTIONAL))}")
    studies: dict[str, SourceStudy] = {}
    seen: set[str] = set()
    for number, row in enumerate(_rows(table, names), 1):
        where = f"{table}: row {number}"
        paths, views = _listed(row["images"]), _listed(row["views"])
        if not row["id"] or not paths:
            raise InputError(f"{where}: needs an id and an image")
        if row["id"] in seen:
            raise InputError(
                f"{where}: id {row['id']!r} stands twice; rows of one study need ids of their own and a study"
            )
        seen.add(row["id"])
        if views and len(views) != len(paths):
            raise InputError(f"{where}: {len(paths)} images, {len(views)} views")
        sections = {name: row[name] for name in _SECTIONS} | {"findings": row["findings"] or row["report"]}
        name = row["study"] or row["id"]
        facts = (row["patient"] or None, split_name(row["split"], where))
        study = studies.setdefault(name, SourceStudy(name, *facts, sections, [], row["time"]))
        if (study.subject_id, study.split) != facts:
            raise InputError(f"{where}: study {name} has another patient or split in an earlier row")
        ids = [row["id"]] if len(paths) == 1 else [f"{row['id']}_{place}" for place in range(len(paths))]
        for image, path, view in zip(ids, paths, views or [""] * len(paths)):
            study.images.append(SourceImage(image, path.lstrip("/"), view))
    return Source(table.stem, list(studies.values()), [table], open_images(images) if images else None)


def _rows(table: Path, names: Mapping[str, str]) -> Iterator[dict]:
    named = {column: names.get(column, column) for column in (*NEEDED, *OPTIONAL)}
    if table.suffix.lower() in (".jsonl", ".ndjson"):
        rows = _json_lines(table)
    else:
        must = [name for column, name in named.items() if column in NEEDED or column in names]
        rows = read_columns(table, must, [name for name in named.values() if name not in must]).to_dict("records")
    for row in rows:
        yield {column: row.get(name) if row.get(name) is not None else "" for column, name in named.items()}


def _json_lines(table: Path) -> Iterator[dict]:
    try:
        with open(table, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{table}: line {number} is no JSON object")
                    yield {key: value if isinstance(value, list) else _text(value) for key, value in row.items()}
    except OSError as error:
        raise InputError(f"cannot read {table} ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{table}: line {number} is no JSON: {error}") from error


def _text(value) -> str:
    return "" if value is None else str(value)


def _listed(value: str | list) -> list[str]:
    parts = value if isinstance(value, list) else value.split(";")
    return [str(part).strip() for part in parts if str(part).strip()]
