"""The table of what is trained: means and deviations over seeds, and paired intervals against what a trivial method reaches."""

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.truth.rows import ROWS
from modules.artefact import read_json, write_atomic, write_json
from modules.errors import InputError
from modules.scoring.baselines import without_baselines
from modules.scoring.predictions import read_predictions
from modules.scoring.resampling import interval, resampled, units_of
from modules.scoring.score_all import make_labelers, measure_all
from modules.scoring.tables import render
from modules.text.labeler import VERSION

TEXT = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")
AGAINST = ("consensus", "constant_cider", "nearest", "constant")  # columns of a predictions file; `constant`: by BLEU-4


def write_table(out: Path) -> str:
    """Write table.md, table.tex, table.html and table.json of the finished rows in `out`; returns the Markdown.

    InputError for rows of other studies, another annotation or another extractor.
    """
    found = [read_json(path) for path in sorted(out.glob("*/*/row.json"))]
    if not found:
        raise InputError(f"{out} has no finished row yet: each writes <row>/<seed>/row.json")
    check_alike(found)
    groups = {name: [row for row in found if row["row"] == name] for name in ROWS}
    groups = {name: rows for name, rows in groups.items() if rows}
    f1 = clinical_keys(found[0]["metrics"])
    header, lines = scores_table(groups, f1)
    versus_header, versus = versus_table(out, groups, f1)
    notes = notes_of(found, groups)
    text = {form: render(header, lines, notes, form) for form in ("markdown", "latex")}
    more = {form: render(versus_header, versus, [], form) for form in ("markdown", "latex")}
    costs = {form: render(*costs_table(groups), [], form) for form in ("markdown", "latex")}
    joined = {form: "\n\n".join((text[form], more[form], costs[form])) for form in text}
    tables = [(header, lines), (versus_header, versus), costs_table(groups)]
    files = {"table.md": joined["markdown"], "table.tex": joined["latex"], "table.html": page(tables, notes)}
    for name, content in files.items():
        write_atomic(out / name, lambda temporary, content=content: temporary.write_text(content + "\n", encoding="utf-8"))
    write_json(out / "table.json", {"rows": found, "scores": [header, *lines], "against": [versus_header, *versus]})
    return joined["markdown"]


def check_alike(found: Sequence[Mapping]) -> None:
    """InputError unless all rows read the same studies through the same extractor."""
    first = found[0]
    for row in found[1:]:
        for what in ("data", "annotation", "extractor"):
            if row[what] != first[what]:
                raise InputError(
                    f"{row['row']} (seed {row['seed']}) and {first['row']} (seed {first['seed']}) differ in their {what}: "
                    "one table, the same data and extractor; remove one of the two, or choose another --out"
                )


def clinical_keys(metrics: Mapping) -> dict[str, str]:
    """Title -> key of the clinical F1 that leads: of the 13 findings where they are scored, else of the 14 labels."""
    count = "13" if f"ce/{VERSION}/13/micro/u1/f1" in metrics else "14"
    return {f"F1-{count} {kind}": f"ce/{VERSION}/{count}/{kind}/u1/f1" for kind in ("micro", "macro")}


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    if not values or any(value is None for value in values):
        return "n/a"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def scores_table(groups: Mapping[str, list[dict]], f1: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """One line per row, those of an oracle last, and the baselines of the first row's predictions file."""
    keys = {name.replace("_", "-"): f"r2gen/{name}" for name in TEXT} | dict(f1)
    header = ["system", "seeds", "decoding", *keys, "CIDEr abnormal", "distinct", "words", "image use"]
    lines = []
    for name in sorted(groups, key=lambda name: ROWS[name].oracle):  # stable: the order of ROWS otherwise
        rows = groups[name]
        metrics = [row["metrics"] for row in rows]
        title = ROWS[name].title + (" (oracle)" if ROWS[name].oracle else "")
        lines.append([title, str(len(rows)), rows[0]["decoding"], *scores(metrics, keys.values()),
                      cell([one["distinct_reports"] for one in metrics], 0),
                      cell([one["mean_words_prediction"] for one in metrics], 1),
                      cell([row["image_use"] for row in rows])])  # fmt: skip
    first = next(iter(groups.values()))[0]["metrics"]
    for baseline in (name for name in AGAINST if f"{name}/r2gen/CIDEr" in first):
        facts = first.get("baselines", {}).get(baseline, {})
        lines.append([f"{baseline} *", "-", "-", *scores([first], keys.values(), f"{baseline}/"),
                      cell([facts.get("distinct_reports")], 0), cell([facts.get("mean_words_prediction")], 1), "-"])  # fmt: skip
    return header, lines


def scores(metrics: Sequence[Mapping], keys, prefix: str = "") -> list[str]:
    """The cells of `keys`, then of CIDEr on the abnormal studies."""
    apart = [one["subsets"].get("abnormal", {}).get(f"{prefix}r2gen/CIDEr") for one in metrics]
    return [*(cell([one.get(f"{prefix}{key}") for one in metrics]) for key in keys), cell(apart)]


def versus_table(out: Path, groups: Mapping[str, list[dict]], f1: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Differences of each row from the baselines, mean over its seeds, with paired 95% intervals over the test studies.

    The baselines are those of the first row, the same for all. InputError where rows were tested on other studies.
    """
    keys = {"BLEU-4": "r2gen/BLEU_4", "CIDEr": "r2gen/CIDEr", **f1}
    header, lines, baselines, first_ids = ["system minus", "baseline", *keys], [], {}, None
    for name, rows in groups.items():
        both = {}
        for row in rows:
            predicted = read_predictions(out / name / str(row["seed"]) / "test" / "predictions_test.csv")
            ids, units = [study["id"] for study in predicted], units_of(predicted).of_row
            if first_ids is None:
                first_ids, baselines = ids, _measured(predicted, [f"{side}/{key}" for side in AGAINST for key in keys.values()])
            if ids != first_ids:
                raise InputError(f"{name}, seed {row['seed']} was tested on other studies than the first row: nothing is paired")
            own = _measured([without_baselines(study) for study in predicted], keys.values())
            both |= {f"{row['seed']} {key}": one for key, one in own.items()}
        drawn = resampled(both | baselines, units=units)
        for baseline in (side for side in AGAINST if f"{side}/r2gen/CIDEr" in baselines):
            pairs = [([f"{row['seed']} {key}" for row in rows], f"{baseline}/{key}") for key in keys.values()]
            lines.append([ROWS[name].title, baseline, *(difference(both | baselines, drawn, *pair) for pair in pairs)])
    return header, lines


def _measured(predicted: Sequence[Mapping[str, str]], keys) -> dict:
    """Statistics of `keys`, those that are there."""
    measured, _, _ = measure_all(predicted, protocols=("r2gen",), labelers=make_labelers(None, None))
    return {key: measured[key] for key in keys if measured.get(key) is not None}


def difference(known: Mapping, drawn: Mapping[str, np.ndarray], ours: Sequence[str], theirs: str) -> str:
    """Mean over the seeds `ours`, less `theirs`, and its interval; "*" where it does not hold 0."""
    if not all(key in known for key in (*ours, theirs)):
        return "n/a"
    value = statistics.mean(known[key].corpus() for key in ours) - known[theirs].corpus()
    low, high = interval(np.mean([drawn[key] for key in ours], 0) - drawn[theirs])
    return f"{value:+.3f} ({low:+.3f} .. {high:+.3f})" + ("" if low <= 0 <= high else " *")


def costs_table(groups: Mapping[str, list[dict]]) -> tuple[list[str], list[list[str]]]:
    """Hours, memory, trained parameters, command and log of each row."""
    header = ["system", "parameters", "hours", "GiB", "best epoch", "log of the first seed"]
    lines = [[ROWS[name].title, f"{rows[0]['parameters']:,d}", cell([row["hours"] for row in rows], 2),
              cell([row["memory_gib"] for row in rows], 1), cell([row["best_epoch"] for row in rows], 0), rows[0]["log"]]
             for name, rows in groups.items() if ROWS[name].of is None]  # fmt: skip
    return header, lines


def notes_of(found: Sequence[Mapping], groups: Mapping) -> list[str]:
    first = found[0]["metrics"]
    notes = [
        f"r2gen, {first['studies']} test studies, ids {first['ids_sha256']}; mean ± standard deviation over seeds (n - 1). "
        "Epoch and decoding were chosen on the validation split.",
        f"One frozen extractor for all: {found[0]['extractor'][:16]}.",
        "image use: what a word costs more beside another study's image, in nats, on validation.",
        "* chosen from the training reports alone; constant: by BLEU-4 on validation, constant_cider: by CIDEr.",
        "The rules that label the training reports, from which the extractor learns, also give these F1: a second labeler "
        "(--chexbert_path) judges more fairly.",
    ]
    if any(ROWS[name].oracle for name in groups):
        notes.append("(oracle): is shown what the report of the scored study says; not to be compared with the others.")
    return notes


def page(tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]], notes: Sequence[str]) -> str:
    """The tables as a page of their own."""
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>"  # noqa: E731
    made = [f"<table>{row(header, 'th')}{''.join(row(line, 'td') for line in lines)}</table>" for header, lines in tables]
    style = "body{font:14px sans-serif;margin:2em}td,th{padding:.2em .6em;text-align:right;white-space:nowrap}" \
            "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f3f3}table{margin:1em 0}"  # fmt: skip
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f'<!doctype html><meta charset="utf-8"><title>Table of truth</title><style>{style}</style>' + "".join(made) + said
