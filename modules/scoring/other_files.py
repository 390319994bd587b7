"""Predictions of any system, as other projects write them, and files that others ask for.

- ours: CSV with the columns of modules/text/cleaning.py; needs no --reference
- CSV with ids: a column of ID_COLUMNS and one of TEXT_COLUMNS, such as `report,dicom_id`
- CSV without ids: R2GenCMN's `res.csv`, no header, one report a line, with `gts.csv` beside it; or two columns, a text and a
  ground truth (REFERENCE_COLUMNS; in this order when there is no header). It must be that of the split's studies, in
  order: it says which study is which
- JSON: ReXrank's {study id: {"model_prediction": text, ...}}; {study id: text}; or [{"study_id": ..., "report": ...}, ...]

Wherever ids stand they must be those of the split, each once; the references come from --reference alone.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modules.errors import InputError
from modules.scoring.metrics import check_ids
from modules.scoring.predictions import COLUMNS, R2GenReferences, read_predictions, read_table

ID_COLUMNS = ("id", "study_id", "dicom_id", "image_id", "uid", "case_id", "study", "filename")
TEXT_COLUMNS = (
    "prediction", "model_prediction", "generated_report", "generated", "hypothesis", "pred", "res", "report", "text",
)  # fmt: skip
REFERENCE_COLUMNS = ("reference", "ground_truth", "ground truth", "gt", "gts", "target", "label")


@dataclass(frozen=True)
class Split:
    """What a foreign file is scored against: {id: raw report} in the annotation's order, and its preparation.

    constants: the constant reports by column. columns: {id: further columns}: study_id and subject_id, where the annotation
    names them, and the reports of retrieval, where they were asked for.
    """

    name: str
    reports: Mapping[str, str]
    references: R2GenReferences
    constants: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def rows(self, predictions: Mapping[str, str]) -> list[dict[str, str]]:
        """Rows of our predictions file; InputError that names ids missing or unexpected."""
        check_ids(predictions, self.reports)
        return [
            self.references.row(study, text, predictions[study], **self.constants, **self.columns.get(study, {}))
            for study, text in self.reports.items()
        ]


def read_any(path: str | Path, split: Split | None) -> list[dict[str, str]]:
    """Rows of our predictions file from a file of any form above; with `split`, its ids and references are those of the split.

    Raises InputError for a file of no known form, ids that are missing, unexpected or double, and for one that is not ours
    when `split` is None.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.suffix.lower() == ".json":
        return _against(path, _read_json(path), split)
    table = read_table(path)
    header = [cell.strip().lower() for cell in table[0]]
    if set(COLUMNS) <= set(header):
        rows = read_predictions(path)
        if split is not None:
            return _check_ours(path, rows, split)
        return rows
    key = next((name for name in ID_COLUMNS if name in header), None)
    if key is not None:
        text = next((name for name in TEXT_COLUMNS if name in header), None)
        if text is None:
            raise InputError(f"{path}: no column of texts among {', '.join(header)}; known: {', '.join(TEXT_COLUMNS)}")
        pairs = [(row[header.index(key)], row[header.index(text)]) for row in table[1:]]
        return _against(path, pairs, split)
    return _in_order(path, table, header, split)


def _against(path: Path, pairs: Sequence[tuple[str, str]], split: Split | None) -> list[dict[str, str]]:
    if split is None:
        raise InputError(f"{path} holds no references: give --reference annotation.json and --split")
    twice = sorted(study for study, count in Counter(study for study, _ in pairs).items() if count > 1)
    if twice:
        raise InputError(f"{path}: {len(twice)} ids occur more than once, such as {', '.join(twice[:3])}")
    try:
        return split.rows(dict(pairs))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_ours(path: Path, rows: list[dict[str, str]], split: Split) -> list[dict[str, str]]:
    """Our file against a split: same ids, same raw references. The references are made anew; its other columns are kept."""
    try:
        check_ids([row["id"] for row in rows], split.reports)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    other = [row["id"] for row in rows if row["reference"] != split.reports[row["id"]]]
    if other:
        raise InputError(
            f"{path}: the references of {len(other)} studies are not those of --reference, such as {other[:3]}"
        )
    made = {row["id"]: row for row in split.rows({row["id"]: row["prediction"] for row in rows})}
    return [row | made[row["id"]] for row in rows]


def _in_order(path: Path, table: list[list[str]], header: list[str], split: Split | None) -> list[dict[str, str]]:
    """A file without ids: the ground truth beside each report shows that its rows are the split's studies in order."""
    text = next((name for name in TEXT_COLUMNS if name in header), None)
    reference_column = next((name for name in REFERENCE_COLUMNS if name in header), None)
    beside = path.with_name("gts.csv")
    if len(header) == 1 and beside.is_file():
        skip = int(header[0] in (*TEXT_COLUMNS, "0"))  # a header, or pandas' number of the column
        predictions = [row[0] for row in table[skip:]]
        other = read_table(beside)
        truths = [row[0] for row in other[int(other[0][0].strip().lower() in (*REFERENCE_COLUMNS, "0")) :]]
    elif len(header) == 2 and (reference_column is None) == (text is None):
        prediction_at = header.index(text) if text else 0
        rows = table[int(text is not None) :]
        predictions, truths = ([row[column] for row in rows] for column in (prediction_at, 1 - prediction_at))
    else:
        raise InputError(
            f"{path}: no column of ids ({', '.join(ID_COLUMNS)}), and no ground truth that tells which study is which: a file "
            "of one column needs gts.csv beside it, one of two columns holds report and ground truth"
        )
    if split is None:
        raise InputError(f"{path} holds no ids: give --reference annotation.json and --split")
    if not len(predictions) == len(truths) == len(split.reports):
        raise InputError(
            f"{path}: {len(predictions)} reports, {len(truths)} ground truths, {len(split.reports)} studies in {split.name}; "
            "without ids the rows must be the studies of the split in order"
        )
    for number, (study, truth) in enumerate(zip(split.reports, truths), 1):
        raw = split.reports[study]
        known = (raw, split.references.clean(raw), split.references.r2gen(raw))
        if not any(truth.split() == form.split() for form in known):
            raise InputError(
                f"{path}: the ground truth of row {number} is not the report of {study} (raw, cleaned, or as R2Gen cuts it): "
                "another order, split or cleaning; give a file with ids"
            )
    return split.rows(dict(zip(split.reports, predictions)))


def _read_json(path: Path) -> list[tuple[str, str]]:
    """(id, text) from one of the JSON forms; an id that stands twice is kept twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not a JSON file: {error}") from error
    if isinstance(content, _Pairs):
        entries = list(content)
    elif isinstance(content, list) and all(isinstance(entry, _Pairs) for entry in content):
        entries = [(next((dict(e)[name] for name in ID_COLUMNS if name in dict(e)), None), e) for e in content]
    else:
        raise InputError(f"{path}: neither an object of studies by id nor a list of objects")
    found = []
    for study, entry in entries:
        if isinstance(entry, _Pairs):
            entry = next((dict(entry)[name] for name in TEXT_COLUMNS if name in dict(entry)), None)
        if study is None or not isinstance(entry, str):
            raise InputError(
                f"{path}: study {study!r} needs an id ({', '.join(ID_COLUMNS)}) and a text ({', '.join(TEXT_COLUMNS)})"
            )
        found.append((str(study), entry))
    return found


class _Pairs(list):
    """The pairs of a JSON object, so that double keys are seen."""
