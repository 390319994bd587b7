"""The 14 CheXpert labels, always named, never known by position alone."""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

from modules.artefact import write_atomic
from modules.errors import InputError

CHEXPERT_14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
NO_FINDING = "No Finding"

UNCERTAIN_VALUES = {"positive": 1, "negative": 0, "ignore": -1}
CELLS = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": None, "-1.0": None}  # None: uncertain


def read_label_table(
    path: str | Path,
    labels: Sequence[str] = CHEXPERT_14,
    uncertain: str = "positive",
    ids: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """{id: one value per label of `labels`, in that order} from a CSV or CSV.GZ; columns are found by name.

    Read are: our own tables (`split,id,<labels>`); MIMIC-CXR's `mimic-cxr-2.0.0-chexpert.csv.gz` and `-negbio` (key:
    the study_id, as text); CheXbert's output (`Report Impression,<labels>`), which has no ids: its rows are those of
    `ids`, in order, or are keyed by their number from 0. Blank cells are 0; uncertain ones (-1) become 1, 0, or stay -1
    for `uncertain` = positive, negative, ignore.
    Errors: InputError for a missing file or label column, a repeated id, a value that is none of 1, 0, -1 or blank
    (with its line), or another number of rows than `ids`.
    """
    path = Path(path)
    if uncertain not in UNCERTAIN_VALUES:
        raise InputError(f"uncertain {uncertain!r}: choose from {', '.join(UNCERTAIN_VALUES)}")
    values = {cell: UNCERTAIN_VALUES[uncertain] if value is None else value for cell, value in CELLS.items()}
    if not path.is_file():
        raise InputError(f"no label table {path}; python -m knowledge.label_reports --dataset_name ... makes one")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    table: dict[str, list[int]] = {}
    try:
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            columns = [name.strip() for name in next(reader, [])]
            absent = [label for label in labels if label not in columns]
            if absent:
                raise InputError(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(columns)}")
            places = [columns.index(label) for label in labels]
            key = next((columns.index(name) for name in ("id", "study_id") if name in columns), None)
            for number, row in enumerate(row for row in reader if row):
                line = f"{path}, line {reader.line_num}"
                if len(row) != len(columns):
                    raise InputError(f"{line}: {len(row)} cells, the header has {len(columns)}")
                if key is not None:
                    name = row[key].strip()
                elif ids is None:
                    name = str(number)
                elif number < len(ids):
                    name = ids[number]
                else:
                    raise InputError(f"{path} has more rows than the {len(ids)} ids given")
                if not name or name in table:
                    raise InputError(f"{line}: {'id ' + repr(name) + ' occurs twice' if name else 'the id is empty'}")
                try:
                    table[name] = [values[row[place].strip()] for place in places]
                except KeyError as error:
                    label = next(label for label, place in zip(labels, places) if row[place].strip() not in values)
                    raise InputError(f"{line}: {label} is {error.args[0]!r}; known are 1, 0, -1 and blank") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV table: {error}") from error
    if key is None and ids is not None and len(table) != len(ids):
        raise InputError(f"{path} has {len(table)} rows, {len(ids)} ids were given")
    return table


def write_label_table(
    path: str | Path, rows: Iterable[tuple[str, str, Sequence[int]]], labels: Sequence[str] = CHEXPERT_14
) -> None:
    """Write `split,id,<labels>`, whole or not at all.

    `rows`: (split, id, one of 1, 0, -1 per label). InputError when a row is not so or an id occurs twice.
    """
    rows, seen = list(rows), set()
    for _, name, values in rows:
        if name in seen:
            raise InputError(f"{path}: id {name!r} occurs twice")
        seen.add(name)
        if len(values) != len(labels) or any(value not in (-1, 0, 1) for value in values):
            raise InputError(f"{path}: {name} needs {len(labels)} values of 1, 0 or -1, got {list(values)}")

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["split", "id", *labels])
            writer.writerows([split, name, *(int(value) for value in values)] for split, name, values in rows)

    write_atomic(path, write)
