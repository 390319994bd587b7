"""Results folder -> one self-contained HTML file. Reads what the run left in the folder, and nothing else."""

import csv
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from pycocoevalcap.rouge.rouge import Rouge

from modules.artefact import write_atomic
from modules.errors import InputError
from modules.results_page.compare import CONTRADICTED, ELSEWHERE, MISSED, compare
from modules.results_page.diagnoses import diagnosis_figures, read_diagnoses
from modules.results_page.evidence import MASK_SIDE, read_evidence
from modules.scoring.baselines import BASELINES
from modules.scoring.metrics import REFERENCE_COLUMNS, prepare
from modules.scoring.predictions import read_predictions
from modules.scoring.published import published_rows
from modules.text.labels import CHEXPERT_14

HERE = Path(__file__).parent
SCRIPT = (  # one scope, in this order
    "base", "tables", "scores", "diagnosis", "pair", "list", "study", "viewer", "training", "run", "frame",
)  # fmt: skip
SHOWN_ELSEWHERE = ("intervals", "subsets", "by_label", "notes", "baselines")
FAMILIES = {*REFERENCE_COLUMNS, "ce", "radgraph", "radeval"}  # what a key of the system itself begins with
COUNTED = {CONTRADICTED: "contradicted", MISSED: "missed", ELSEWHERE: "that differ in side, place or size"}
MARKER = re.compile(r"\{\{(\w+)\}\}")


def page_path(folder: Path, split: str) -> Path:
    """Where the page of a split lies."""
    return Path(folder) / ("index.html" if split == "test" else f"index_{split}.html")


def write_page(folder: str | Path, split: str = "test") -> Path:
    """Write the page of a results folder and return its path.

    Needed: predictions_<split>.csv, metrics_<split>.json. Used where they are: scores_<split>.csv, evidence_<split>.jsonl,
    diagnosis_<split>.json, and log.jsonl of the run that trained the weights. Raises InputError when a needed file is missing
    or one is broken.
    """
    folder = Path(folder)
    rows = read_predictions(folder / f"predictions_{split}.csv")
    content = read_json(folder / f"metrics_{split}.json")
    names, scores = study_scores(folder / f"scores_{split}.csv", rows)
    compared = [compare(row["reference"], row["prediction"]) for row in rows]
    diagnosed = read_diagnoses(folder, split, [row["id"] for row in rows])
    stated = np.array([[letter in "+?" for letter in found["states"][0]] for found in compared])
    experts, studies = study_list(rows, compared, scores, diagnosed)
    metrics = content["metrics"]
    tables = metric_tables(metrics)
    published, note = published_rows(data_set_of(content), metrics)
    run = {
        "title": folder.resolve().name,
        "split": split,
        "labels": CHEXPERT_14,
        "tables": tables,
        "subsets": [
            {"name": name, "studies": part["studies"], "tables": metric_tables(part)}
            for name, part in metrics.get("subsets", {}).items()
        ],
        "by_label": metrics.get("by_label", {}),
        "published": published,
        "notes": metrics.get("notes", {}) | ({"published rows": note} if note else {}),
        "facts": {key: value for key, value in content.items() if key not in ("metrics", "run", "scoring", "scored_again")},
        "test_run": content.get("run") or content.get("scoring") or {},
        "texts": {k: v for k, v in metrics.items() if "/" not in k and k not in SHOWN_ELSEWHERE},
        "curves": curves(content, folder),
        "scores": names,
        "experts": experts,
        "baselines": baselines(tables, rows),
        "diagnosis": diagnosis_figures(diagnosed, stated, CHEXPERT_14),
        "thresholds": None if diagnosed is None else dict(zip(diagnosed["labels"], diagnosed["thresholds"].round(4).tolist())),
        "mask_side": MASK_SIDE,
    }
    path = page_path(folder, split)
    write_html(path, f"{run['title']}: {split}", run, studies, read_evidence(folder / f"evidence_{split}.jsonl"))
    return path


def write_html(path: Path, title: str, run: dict, studies: list, evidence: Iterable[tuple[str, str]]) -> None:
    """Put a page together. studies: as `study_list` gives them; evidence: (id, row as JSON), others than `studies` left out."""
    parts = {
        "title": html.escape(title),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((HERE / "script" / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPT),
        "run": inert(json.dumps(run, ensure_ascii=False)),
        "studies": inert(json.dumps(studies, ensure_ascii=False, separators=(",", ":"))),
    }
    halves = (HERE / "page.html").read_text(encoding="utf-8").split("{{evidence}}")
    head, foot = (MARKER.sub(lambda mark: parts[mark.group(1)], half) for half in halves)  # one pass: data may hold {{run}}
    number = {study[0]: place for place, study in enumerate(studies)}

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(head)
            for name, line in evidence:
                if name in number:
                    file.write(f'<script type="application/json" id="e{number[name]}">{inert(line)}</script>\n')
            file.write(foot)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)


def inert(text: str) -> str:
    """JSON that no HTML parser can leave: `<` stands escaped, so neither `</script` nor `<!--` can occur."""
    return text.replace("<", "\\u003c")


def parse(text: str):
    """JSON, with what a browser would not read (NaN, Infinity) as None."""
    return json.loads(text, parse_constant=lambda name: None)


def read_json(path: Path) -> dict:
    """A JSON object of the results folder. Raises InputError when it is missing or broken."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no file {path}; main_test.py writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a JSON file: {error}; score the predictions again") from error
    if not isinstance(content.get("metrics"), dict):
        raise InputError(f"{path} has no object 'metrics'; score the predictions again")
    return content


def data_set_of(content: Mapping) -> str | None:
    return content.get("data_set") or content.get("run", {}).get("flags", {}).get("dataset_name")


# -- studies -----------------------------------------------------------------------------------------------------------


def study_list(
    rows: list[dict], compared: list[dict], scores: list[list], diagnosed: Mapping | None = None
) -> tuple[list, list]:
    """(expert reports, each once, as [id, text]; studies as lists, in the order the page's script reads them)."""
    experts: dict[tuple[str, str], int] = {}
    studies = []
    for number, (row, found, values) in enumerate(zip(rows, compared, scores)):
        expert = None
        if row.get("knowledge_report") or row.get("knowledge_id"):
            expert = experts.setdefault((row.get("knowledge_id", ""), row.get("knowledge_report", "")), len(experts))
        studies.append(
            [
                row["id"],
                [row["reference"], row["prediction"]],
                found["states"],
                [found["relations"]],
                found["statements"],
                [found["details"]],
                values + [found["relations"].count(kind) for kind in COUNTED],
                row["diagnosis"].split("|") if row.get("diagnosis") else ([] if "diagnosis" in row else None),
                expert,
                row.get("knowledge_distance", ""),
                None if diagnosed is None else [round(float(p), 3) for p in diagnosed["probabilities"][number]],
                read_graph(row["regions"], row.get("attributes", "")) if "regions" in row else None,
            ]
        )
    return [list(expert) for expert in experts], studies


NAMED = re.compile(r"(.*?)(?: (\d(?:\.\d+)?))?")  # a name, and its probability unless it is an oracle's


def named(text: str) -> list:
    """ "left lung 0.98" -> ["left lung", 0.98]; None where no probability stands there."""
    found = NAMED.fullmatch(text.strip())
    name, value = found.groups() if found else (text, None)
    return [name, None if value is None else float(value)]


def read_graph(regions: str, attributes: str) -> list[list]:
    """[[region, probability, [[attribute, probability], ...]], ...] of the columns `regions` and `attributes`."""
    inside: dict[str, list] = {}
    for part in filter(None, attributes.split("; ")):
        region, _, names = part.partition(": ")
        cut = r"(?<= \d\.\d\d), " if re.search(r" \d\.\d\d$", names) else ", "  # a name may hold a comma
        inside[region] = [named(name) for name in re.split(cut, names) if name.strip()]
    found = [named(region) for region in regions.split("|") if region]
    return [[region, probability, inside.get(region, [])] for region, probability in found]


def study_scores(path: Path, rows: list[dict]) -> tuple[list[dict], list[list]]:
    """What studies can be sorted by: [{"name", "less_is_better"}] and the values of each study, in the order of `rows`.

    From scores_<split>.csv where it lies; else ROUGE-L of protocol r2gen. The counts of COUNTED stand last; their values are
    added by study_list.
    """
    if path.is_file():
        names, values = read_scores(path, [row["id"] for row in rows])
    else:
        texts = ((prepare(row["reference_r2gen"]), prepare(row["prediction"])) for row in rows)
        names = ["r2gen/ROUGE_L"]
        values = [[round(Rouge().calc_score([predicted or "\0"], [reference]), 4)] for reference, predicted in texts]
    listed = [{"name": name, "less_is_better": False} for name in names]
    listed += [{"name": f"findings {what}", "less_is_better": True} for what in COUNTED.values()]
    return listed, values


def read_scores(path: Path, ids: list[str]) -> tuple[list[str], list[list[float | None]]]:
    """scores_<split>.csv: a column id, then one per metric -> (names, values in the order of `ids`); blank is None."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        table = {row.pop("id", None): row for row in reader}
    names = [name for name in reader.fieldnames or () if name != "id"]
    missing = [name for name in ids if name not in table]
    if missing:
        raise InputError(f"{path} lacks {len(missing)} studies, such as {missing[:3]}; score the predictions again")
    try:
        values = [[float(table[i][name] or "nan") for name in names] for i in ids]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} holds a value that is no number: {error}; score the predictions again") from error
    return names, [[round(value, 4) if math.isfinite(value) else None for value in row] for row in values]


# -- metrics -----------------------------------------------------------------------------------------------------------


def split_key(key: str) -> tuple[str, str, str]:
    """A key -> (baseline or "" for the system, what stands before the last stroke, the last part)."""
    parts = key.split("/")
    of = parts.pop(0) if len(parts) > 2 and parts[0] not in FAMILIES and parts[1] in FAMILIES else ""
    return of, "/".join(parts[:-1]), parts[-1]


def metric_tables(metrics: Mapping) -> list[dict]:
    """Every key with a stroke, as tables: the last part of a key is the column, what stands before it the row.

    Rows of one family (text, clinical, another) with the same columns share a table, so that new metrics, label sets and
    baselines need no change here. A row is {"row", "of": baseline or "", "cells"}, a cell [value or None, low, high, key].
    """
    intervals = metrics.get("intervals") or {}
    rows: dict[tuple[str, str], dict[str, list]] = {}
    for key, value in metrics.items():
        if "/" in key and (value is None or isinstance(value, (int, float))):
            of, row, column = split_key(key)
            low, high = (intervals.get(key) or (None, None))[:2]
            rows.setdefault((of, row), {})[column] = [value, low, high, key]
    tables: dict[tuple, dict] = {}
    for (of, row), cells in rows.items():
        first = row.split("/")[0]
        family = "text" if first in REFERENCE_COLUMNS else "clinical" if first == "ce" else "other"
        table = tables.setdefault((family, tuple(cells)), {"family": family, "columns": list(cells), "rows": []})
        table["rows"].append({"row": row, "of": of, "cells": list(cells.values())})
    return list(tables.values())


def baselines(tables: list[dict], rows: list[dict]) -> dict[str, dict]:
    """{name: {"title", "about", "text"}} of the baselines that any table has; text where all studies get the same."""
    there = dict.fromkeys(row["of"] for table in tables for row in table["rows"] if row["of"])
    found = {}
    for name in there:
        title, about = BASELINES.get(name, (name.replace("_", " "), ""))
        texts = {row.get(name, "") for row in rows}
        found[name] = {"title": title.removesuffix(" *"), "about": about, "text": texts.pop() if len(texts) == 1 else ""}
    return found


# -- curves ------------------------------------------------------------------------------------------------------------


def log_path(content: Mapping, folder: Path) -> Path | None:
    """log.jsonl of the run that trained the scored weights: beside them, or in the folder above (rounds)."""
    weights = Path(content.get("weights", {}).get("path") or folder / "best.pt")
    places = [weights.parent, weights.parent.parent, folder, folder.parent]
    return next((place / "log.jsonl" for place in places if (place / "log.jsonl").is_file()), None)


def curves(content: Mapping, folder: Path) -> dict:
    """{"log": path, "rounds": [{"name", "series": {key: [[x, value], ...]}, "best_epoch"}]} of the training log.

    x is the epoch; a `step` row lies between two epochs. What a resumed run wrote twice counts as it was last.
    """
    path = log_path(content, folder)
    if path is None:
        return {"log": None, "rounds": []}
    rounds: list[dict] = []
    for row in read_log(path):
        if row["event"] == "round" or not rounds:
            name = f"round {row['round']}" if row["event"] == "round" else "training"
            rounds.append({"name": name, "series": {}, "best_epoch": None, "steps": {}})
        note(rounds[-1], row)
    return {"log": str(path), "rounds": [finished(entry) for entry in joined(rounds)]}


def read_log(path: Path) -> Iterable[dict]:
    """Rows of log.jsonl; a last row that a killed run left unfinished is passed over."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = parse(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is not JSON: {error}") from error
            return
        if not isinstance(row, dict) or "event" not in row:
            raise InputError(f"{path}, line {number} is no row of a log: it names no event")
        yield row


def note(entry: dict, row: Mapping) -> None:
    """Add one row of the log to the curves of its round."""
    kind, skipped = row["event"], ("event", "time", "epoch", "step", "best", "best_epoch")
    if kind not in ("step", "epoch", "val"):
        return
    if kind == "val":
        entry["best_epoch"] = row.get("best_epoch")
    for name, value in row.items():
        if name in skipped or not (value is None or isinstance(value, (int, float))):
            continue
        if kind == "step":
            entry["steps"].setdefault(f"step/{name}", {})[row["step"]] = value
        else:
            entry["series"].setdefault(name, {})[row["epoch"]] = value
    if kind == "epoch":
        entry["last"] = (row["step"], row["epoch"])


def joined(rounds: list[dict]) -> Iterable[dict]:
    """A round that was resumed is in the log twice: its parts are put together."""
    merged: dict[str, dict] = {}
    for entry in rounds:
        first = merged.setdefault(entry["name"], entry)
        if first is not entry:
            for part in ("series", "steps"):
                for name, values in entry[part].items():
                    first[part].setdefault(name, {}).update(values)
            first.update({key: entry[key] for key in ("best_epoch", "last") if entry.get(key)})
    return merged.values()


def finished(entry: dict) -> dict:
    """The curves of a round as sorted lists; steps get their place between the epochs."""
    step, epoch = entry.get("last", (1, 1))
    series = {name: sorted(values.items()) for name, values in entry["series"].items()}
    for name, values in entry["steps"].items():
        series[name] = [(round(at * epoch / step, 3), value) for at, value in sorted(values.items())]
    return {"name": entry["name"], "best_epoch": entry["best_epoch"], "series": series}
