"""Several runs in one table: mean and spread over seeds, constant report, published rows; what cannot be compared is refused."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.artefact import read_json
from modules.errors import InputError
from modules.scoring.metrics import METRICS
from modules.scoring.score_table import TITLES, markdown
from modules.text.labeler import VERSION

# Flags in which the seeds of one setting may differ: names of places, and a teacher that was trained with the same seed.
NOT_A_SETTING = frozenset(
    """seed save_dir load resume teacher num_workers dry_run offline device data_dir ann_path image_dir weights_dir
    image_check score reference compare table table_format export out image""".split()
)
CLINICAL = (f"ce/{VERSION}/14/macro/u1/f1", f"ce/{VERSION}/5/micro/u1/f1")
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


def table_rows(
    runs: Sequence[Run], protocol: str, published: Mapping[str, Mapping[str, float]] | None = None
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes of the table: one row per setting, the constant report, then `published` (name -> values)."""
    check_comparable(runs, protocol)
    keys = [f"{protocol}/{name}" for name in METRICS] + [key for key in CLINICAL if all(key in r.metrics for r in runs)]
    header = [
        "system",
        "seeds",
        *(TITLES.get(key.split("/")[-1], key) if key.startswith(protocol) else key for key in keys),
    ]
    header.append("distinct")
    rows, notes = [], []
    for group in group_seeds(runs):
        name = _common_name([run.name for run in group]) + (" (oracle)" if any(run.oracle for run in group) else "")
        name += "".join(f" ({mark})" for mark in dict.fromkeys(mark for run in group for mark in run.marks))
        cells = [_cell([run.metrics.get(key) for run in group]) for key in keys]
        distinct = statistics.mean(run.metrics["distinct_reports"] for run in group)
        rows.append([name, str(len(group)), *cells, f"{distinct:.0f}"])
    constant = next((run.metrics for run in runs if f"constant/{keys[0]}" in run.metrics), None)
    if constant is not None:
        cells = [_cell([constant.get(f"constant/{key}")]) for key in keys]
        rows.append(["constant report *", "-", *cells, "1"])
        notes.append("* one training report, the best on validation, given to every study.")
    for name, values in (published or {}).items():
        printed = [values.get(key.split("/")[-1]) if key.startswith(protocol) else None for key in keys]
        rows.append([f"{name} (published)", "-", *("-" if value is None else f"{value:.3f}" for value in printed), "-"])
    if any(run.oracle for run in runs):
        notes.append("(oracle): diagnoses made from the reports of the scored studies.")
    if any(len(group) > 1 for group in group_seeds(runs)):
        notes.append("± is the standard deviation over seeds (n - 1).")
    first = runs[0].metrics
    notes.insert(0, f"{protocol}, {first['studies']} studies, ids {first['ids_sha256']}.")
    if published:
        notes.append("Published rows: as printed in their papers, protocol as they used it, not scored here.")
    return header, rows, notes


def _cell(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return "n/a"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


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
        body = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in [header, *rows]]
        head = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
        end = ["\\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes)]
        return "\n".join([head, "\\toprule", body[0], "\\midrule", *body[1:], *end])
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [header, *rows]]
    return "\n".join([*markdown(cells, words=1), "", *notes])


def _latex(text: str) -> str:
    for sign, written in (("\\", r"\textbackslash "), *((s, f"\\{s}") for s in "&%$#_{}"), ("±", r"$\pm$")):
        text = text.replace(sign, written)
    return text
