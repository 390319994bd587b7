"""The predictions file, the only input of scoring, and the references that stand in it."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modules.artefact import read_json, write_atomic
from modules.errors import InputError, Problems
from modules.text.cleaning import RULES, SPLITS, UNKNOWN, clean_report, count_words

# rule -> (training count a word needs to be kept, words a reference may have) of protocol r2gen.
R2GEN_LIMITS = {"iu_xray": (3, 59), "mimic_cxr": (10, 99)}
CVT2_LIMITS = (3, 59)  # the same of protocol cvt2, whatever the rule
UNIT_COLUMNS = ("study_id", "subject_id")  # which rows share a study or a patient
COLUMNS = ("id", "reference", "prediction", "reference_clean", "reference_r2gen")


class R2GenReferences:
    """Makes the references `clean`, `r2gen` and `cvt2` of a report, from the words of the training reports.

    training_reports: raw texts, or their Corpus. rule: a name of RULES. threshold: how often a word must occur in the
    cleaned training reports to be kept; max_words: where a reference is cut (full stops count); both default to R2Gen's
    for the rule.
    `words` is the set of kept words and `<unk>` (760 on IU X-Ray). Raises InputError when there is no training report.
    Source: Chen et al. 2020 (R2Gen): `[0] + ids + [0]` cut to 60 (IU) or 100 (MIMIC), less the first. Protocol cvt2 has the
    limits of IU on every data set, as Nicolson et al. 2023 (CvT2DistilGPT2) score MIMIC-CXR.
    """

    def __init__(
        self, training_reports: Iterable[str], rule: str, threshold: int | None = None, max_words: int | None = None
    ) -> None:
        if rule not in RULES:
            raise InputError(f"cleaning rule {rule!r} is unknown; choose from {', '.join(sorted(RULES))}")
        self.rule = rule
        self.threshold = R2GEN_LIMITS[rule][0] if threshold is None else threshold
        self.max_words = R2GEN_LIMITS[rule][1] if max_words is None else max_words
        if hasattr(training_reports, "counts"):  # a Corpus, whose words are counted already
            counts = training_reports.counts()
        else:
            counts = count_words(clean_report(report, rule) for report in training_reports)
        if not counts:
            raise InputError("no training report: the words of protocol r2gen are counted in the training reports")
        self.words, self.cvt2_words = (
            frozenset([word for word, count in counts.items() if count >= least] + [UNKNOWN])
            for least in (self.threshold, CVT2_LIMITS[0])
        )

    def clean(self, text: str) -> str:
        """The cleaned report, neither cut nor with `<unk>`."""
        return clean_report(text, self.rule)

    def r2gen(self, text: str) -> str:
        """The cleaned report, at most `max_words` words, rare and unseen words replaced by `<unk>`."""
        return self._cut(text, self.words, self.max_words)

    def cvt2(self, text: str) -> str:
        """The same by the limits of protocol cvt2."""
        return self._cut(text, self.cvt2_words, CVT2_LIMITS[1])

    def _cut(self, text: str, kept: frozenset[str], most: int) -> str:
        words = clean_report(text, self.rule).split()[:most]
        return " ".join([word if word in kept else UNKNOWN for word in words])

    def row(self, study: str, reference: str, prediction: str, **more: str) -> dict[str, str]:
        """One row of the predictions file: `study` is the id, `reference` the raw text, `more` further columns."""
        return {
            "id": study,
            "reference": reference,
            "prediction": prediction,
            "reference_clean": self.clean(reference),
            "reference_r2gen": self.r2gen(reference),
            "reference_cvt2": self.cvt2(reference),
            **more,
        }


def check_rows(rows: Sequence[Mapping[str, str]], where: str = "predictions") -> None:
    """Raises InputError unless the rows are at least one, have all COLUMNS as texts, and no id twice."""
    if not rows:
        raise InputError(f"{where}: holds no study")
    for number, row in enumerate(rows, 1):
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise InputError(f"{where}: row {number} lacks {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
        for column in COLUMNS:
            if not isinstance(row[column], str):
                raise InputError(f"{where}: row {number}, column {column}: not a text but {row[column]!r}")
    counts = Counter(row["id"] for row in rows)
    twice = sorted(study for study, count in counts.items() if count > 1)
    if twice:
        raise InputError(f"{where}: {len(twice)} ids occur more than once, such as {', '.join(twice[:3])}")


def write_predictions(path: str | Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Writes the predictions file and returns its path: CSV, utf-8, one row per study, in the order given.

    rows: mappings with COLUMNS and any further columns, the same ones in each row; see R2GenReferences.row. Texts may
    hold line breaks and quotes. Whole or not at all; characters that utf-8 cannot hold (lone surrogates) become `?`.
    Raises InputError as check_rows does, and where the file cannot be written.
    """
    path, rows = Path(path), list(rows)
    check_rows(rows, str(path))
    columns = list(COLUMNS) + [column for column in rows[0] if column not in COLUMNS]
    for number, row in enumerate(rows, 1):
        if set(row) != set(columns):
            raise InputError(f"{path}: row {number} has other columns than row 1: {', '.join(map(str, row))}")

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write)
    return path


def read_table(path: str | Path) -> list[list[str]]:
    """The rows of a CSV, all of one width; empty lines do not count. InputError for a file that is no such table."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = [row for row in csv.reader(file, strict=True) if row]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    if not table:
        raise InputError(f"{path}: is empty")
    for number, row in enumerate(table, 1):
        if len(row) != len(table[0]):
            raise InputError(f"{path}: row {number} has {len(row)} values, the first has {len(table[0])}")
    return table


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """The rows of a predictions file, in its order; every value is the text it was ("NA" and "" too).

    Raises InputError for a file that is not there, is not such a CSV, lacks a column, holds an id twice or no study.
    """
    columns, *table = read_table(path)
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")
    if len(set(columns)) != len(columns):
        raise InputError(f"{path}: a column name occurs twice: {', '.join(columns)}")
    rows = [dict(zip(columns, values)) for values in table]
    check_rows(rows, str(path))
    return rows


class Report(NamedTuple):
    """One row of an annotation without its images; study and patient are "" where the annotation does not name them."""

    split: str
    id: str
    text: str
    study_id: str = ""
    subject_id: str = ""


def unit_columns(rows: Sequence[Report]) -> list[dict[str, str]]:
    """The columns study_id and subject_id of each row, as far as any row has them; also of data.studies.Study."""
    names = [name for name in UNIT_COLUMNS if any(getattr(row, name) for row in rows)]
    return [{name: getattr(row, name) for name in names} for row in rows]


def read_reports(path: str | Path, flag: str) -> list[Report]:
    """The rows of an annotation in R2Gen's format; images are not looked at.

    Raises InputError, under the name of the flag that gave the path, where it is not one, or an id repeats.
    """
    path = Path(path)
    content = read_json(path, f"give an annotation with {flag}")
    if not isinstance(content, dict) or not any(split in content for split in SPLITS):
        raise InputError(f'{flag}: {path} is no annotation: {{"train": [...], "val": [...], "test": [...]}}')
    rows, problems, seen = [], Problems(), set()
    for split in SPLITS:
        for number, study in enumerate(content.get(split, [])):
            where = f"{split}[{number}]"
            if not isinstance(study, dict) or "id" not in study or not isinstance(study.get("report"), str):
                problems.add(f"{where} needs an id and a report as text")
            elif str(study["id"]) in seen:
                problems.add(f"{where}: id {study['id']!r} occurs twice")
            else:
                seen.add(str(study["id"]))
                units = ("" if study.get(name) is None else str(study[name]) for name in UNIT_COLUMNS)
                rows.append(Report(split, str(study["id"]), study["report"], *units))
    problems.texts[10:] = [f"and {len(problems.texts) - 10} more"] if len(problems.texts) > 10 else []
    problems.stop_if_any(f"{flag}: {path} is not complete")
    return rows
