"""Several runs in one table: mean and spread over seeds, baselines, published rows; what cannot be compared is refused."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modules.artefact import read_json
from modules.errors import InputError
from modules.scoring.baselines import BASELINES, footnotes, prefixes, title
from modules.scoring.clinical import LEADING
from modules.scoring.metrics import METRICS
from modules.scoring.score_table import FINDINGS, TITLES, markdown
from modules.text.labeler import VERSION

# Flags in which the seeds of one setting may differ: names of places, and a teacher that was trained with the same seed.
NOT_A_SETTING = frozenset(
    """seed save_dir load resume teacher num_workers dry_run offline device data_dir ann_path image_dir weights_dir
    image_check score reference compare table table_format export out image""".split()
)
CLINICAL = {"F1 micro": f"ce/{VERSION}/{LEADING}", "F1 macro": f"ce/{VERSION}/{LEADING}".replace("micro", "macro")}
FORMATS = ("markdown", "csv", "latex")


@dataclass(frozen=True)
class Run:
    """One metrics_<split>.json: where it lies, its metrics, the settings that make it what it is, and its seed."""

    name: str
    metrics: Mapping
    setting: tuple
    seed: object
    oracle: bool
    data_set: str | None
    marks: tuple[str, ...] = ()


def read_run(path: str | Path, split: str) -> Run:
    """A run from its folder or its metrics file. InputError where there is none, or one too old to be compared."""
    path = Path(path)
    file = path / f"metrics_{split}.json" if path.is_dir() else path
    content = read_json(file, "--table: main_test.py writes it")
    metrics = content.get("metrics", {})
    if "references_sha256" not in metrics:
        raise InputError(f"--table: {file} does not say what was scored: score its predictions again with --score")
    if content["split"] != split:
        raise InputError(f"--table: {file} is of split {content['split']}, not {split}: one table, one split")
    tested = content.get("run", {}).get("flags", {})
    record = file.with_name("run.json")
    trained = read_json(record).get("flags", {}) if record.is_file() else {}
    flags = {
        f"{side} {name}": value for side, part in (("train", trained), ("test", tested)) for name, value in part.items()
    }
    setting = {key: value for key, value in flags.items() if key.split()[1] not in NOT_A_SETTING}
    name = content.get("name") or (file.parent.name or str(file))
    return Run(
        name,
        metrics,
        tuple(sorted((key, json.dumps(value)) for key, value in setting.items())) if flags else (name,),
        trained.get("seed", tested.get("seed")),
        bool(content.get("oracle_labels")),
        content.get("data_set"),
        tuple(content.get("marks", ())),
    )


def check_comparable(runs: Sequence[Run], protocol: str) -> None:
    """InputError unless all runs were scored on the same studies against the same references under `protocol`."""
    for run in runs:
        if protocol not in run.metrics["references_sha256"]:
            have = ", ".join(run.metrics["references_sha256"])
            raise InputError(
                f"--table: {run.name} was scored under {have}, not under {protocol}: one table, one protocol"
            )
    first = runs[0]
    for run in runs[1:]:
        for what, of in (
            ("data set", lambda r: r.data_set or first.data_set),
            ("studies (hash of the ids)", lambda r: r.metrics["ids_sha256"]),
            (
                f"references of {protocol} (cleaning, threshold or cut)",
                lambda r: r.metrics["references_sha256"][protocol],
            ),
        ):
            if of(run) != of(first):
                raise InputError(f"--table: {run.name} and {first.name} differ in their {what}: {of(run)}, {of(first)}")


def group_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed only stand together; runs of one setting and one seed stand alone."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    found = []
    for group in groups.values():
        different = len({run.seed for run in group}) == len(group)
        found += [group] if different else [[run] for run in group]
    return found


class Column(NamedTuple):
    """A figure of the table: its heading, its key, and the part of the split it is of ("" is all)."""

    heading: str
    key: str
    part: str = ""

    def of(self, metrics: Mapping, prefix: str = "") -> float | None:
        """Its value for the system or a baseline; KeyError where the run was not scored so."""
        values = metrics["subsets"][self.part] if self.part else metrics
        return values[prefix + self.key]

    def known(self, metrics: Mapping, prefix: str = "") -> bool:
        return prefix + self.key in (metrics.get("subsets", {}).get(self.part, {}) if self.part else metrics)


def table_rows(
    runs: Sequence[Run], protocol: str, published: Mapping[str, Mapping[str, float]] | None = None, digits: int = 4
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes of the table: one row per setting, the baselines, then `published` (name -> values).

    The last columns but one are those of the abnormal studies alone.
    """
    check_comparable(runs, protocol)
    columns = [Column(TITLES.get(name, name), f"{protocol}/{name}") for name in METRICS]
    columns += [Column(heading, key) for heading, key in CLINICAL.items()]
    columns += [Column("abnormal: CIDEr", f"{protocol}/CIDEr", "abnormal")]
    columns += [Column("abnormal: F1 micro", CLINICAL["F1 micro"], "abnormal")]
    columns = [column for column in columns if column.part == "" and column.key.startswith(protocol)
               or all(column.known(run.metrics) for run in runs)]  # fmt: skip
    header = ["system", "seeds", *(column.heading for column in columns), "distinct"]
    rows, notes = [], []
    for group in group_seeds(runs):
        name = _common_name([run.name for run in group]) + (" (oracle)" if any(run.oracle for run in group) else "")
        name += "".join(f" ({mark})" for mark in dict.fromkeys(mark for run in group for mark in run.marks))
        known = [column if all(column.known(run.metrics) for run in group) else None for column in columns]
        cells = [_cell([column.of(run.metrics) for run in group] if column else [None], digits) for column in known]
        distinct = statistics.mean(run.metrics["distinct_reports"] for run in group)
        rows.append([name, str(len(group)), *cells, f"{distinct:.0f}"])
    baselines = _baseline_rows(runs, columns, digits)
    rows += [row for _, row in baselines]
    notes += footnotes([name for name, _ in baselines])
    for name, values in (published or {}).items():
        printed = [None if column.part else values.get(column.key.removeprefix(f"{protocol}/")) for column in columns]
        rows.append([f"{name} (published)", "-", *("-" if value is None else f"{value:.3f}" for value in printed), "-"])
    if any(run.oracle for run in runs):
        notes.append("(oracle): diagnoses made from the reports of the scored studies.")
    if any(len(group) > 1 for group in group_seeds(runs)):
        notes.append("± is the standard deviation over seeds (n - 1).")
    first = runs[0].metrics
    abnormal = first.get("subsets", {}).get("abnormal", {}).get("studies")
    of_them = "" if abnormal is None else f", {abnormal:,d} of them abnormal"
    notes.insert(0, f"{protocol}, {first['studies']:,d} studies{of_them}, ids {first['ids_sha256']}.")
    if any(column.heading.endswith("F1 micro") for column in columns):
        notes.append(FINDINGS)
    if published:
        notes.append("Published rows: as printed in their papers, protocol as they used it, not scored here.")
    return header, rows, notes


def _baseline_rows(runs: Sequence[Run], columns: Sequence[Column], digits: int) -> list[tuple[str, list[str]]]:
    """(column of the predictions, row) of each baseline; one that rests on a run's own features has a row per outcome."""
    found: list[tuple[str, list[str]]] = []
    for name in BASELINES:
        rows: dict[tuple[str, ...], str] = {}
        for run in runs:
            if f"{name}/" in prefixes(run.metrics):
                known = [column.known(run.metrics, f"{name}/") for column in columns]
                cells = [c.of(run.metrics, f"{name}/") if there else None for c, there in zip(columns, known)]
                distinct = run.metrics.get("baselines", {}).get(name, {"distinct_reports": 1})["distinct_reports"]
                rows.setdefault((*(_cell([cell], digits) for cell in cells), f"{distinct}"), run.name)
        for row, of in rows.items():
            found.append((name, [title(f"{name}/") + (f" ({of})" if len(rows) > 1 else ""), "-", *row]))
    return found


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{statistics.mean(known):.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def _common_name(names: Sequence[str]) -> str:
    """What the folders of several seeds share, or the first name."""
    if len(names) == 1:
        return names[0]
    shared = names[0]
    while shared and not all(name.startswith(shared) for name in names):
        shared = shared[:-1]
    return shared.rstrip("_-. ") or names[0]


def render(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], form: str) -> str:
    """The table as Markdown that reads well as plain text, as CSV, or as LaTeX (booktabs)."""
    if form == "csv":
        lines = [header, *rows]
        return "\n".join(",".join(f'"{cell}"' if set(cell) & set(',"\n') else cell for cell in line) for line in lines)
    if form == "latex":
        return _latex_table(header, rows, notes)
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [header, *rows]]
    return "\n".join([*markdown(cells, words=1), "", *notes])


def _latex_table(header, rows, notes) -> str:
    """A table environment that stands in a paper as it is: needs booktabs and graphicx; published rows below a rule."""
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in rows]
    first = next((number for number, row in enumerate(rows) if row[0].endswith("(published)")), len(rows))
    baseline = next((number for number, row in enumerate(rows) if row[1] == "-"), len(rows))
    for place in sorted({first, baseline} - {0, len(rows)}, reverse=True):
        lines.insert(place, r"\midrule")
    body = [
        r"\begin{table*}[t]", r"\centering",
        r"\caption{" + " ".join(_latex(note) for note in notes) + "}", r"\label{tab:results}",
        r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
        " & ".join(_latex(cell) for cell in header) + r" \\", r"\midrule", *lines, r"\bottomrule",
        r"\end{tabular}}", r"\end{table*}",
    ]  # fmt: skip
    return "\n".join(["% \\usepackage{booktabs, graphicx}", *body])


def _latex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "*": "$^*$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"`": ""}
    return "".join(signs.get(sign, sign) for sign in text)
