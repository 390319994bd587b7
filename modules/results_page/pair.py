"""The page of two runs side by side: `main_test.py --compare A B`. The same studies, both reports, what changed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from modules.results_page.build import write_html
from modules.results_page.compare import compare
from modules.results_page.evidence import MASK_SIDE, read_evidence
from modules.text.labels import CHEXPERT_14


def run_name(path: str | Path) -> str:
    """What a predictions file is called: its folder where the file has our name, else the file."""
    path = Path(path)
    return path.resolve().parent.name if path.name.startswith("predictions_") else path.stem


def write_comparison(
    folder: str | Path,
    both: Sequence[Sequence[Mapping[str, str]]],
    columns: Sequence[Mapping[str, np.ndarray]],
    found: Mapping[str, dict],
    *,
    paths: Sequence[str],
    facts: Sequence[dict],
    note: str,
    split: str,
) -> Path:
    """Write `folder`/index.html of two predictions files and return its path.

    both: their rows, the same ids in the same order. columns: scores of each study by key [B], of both. found: paired
    differences by key, those to show. facts: {"path", "sha256", "marks"} of each. Images are those of the first file that
    has evidence beside it.
    """
    compared = [[compare(row["reference"], row["prediction"]) for row in rows] for rows in both]
    keys = [key for key in columns[0] if key in columns[1]]
    values = np.stack([columns[1][key] - columns[0][key] for key in keys], 1) if keys else np.zeros((len(both[0]), 0))
    names = [run_name(path) for path in paths]
    if names[0] == names[1]:
        names = [str(path) for path in paths]
    run: dict = {
        "title": f"{names[0]} and {names[1]}",
        "split": split,
        "labels": CHEXPERT_14,
        "pair": {
            "names": names,
            "rows": [{"key": key, **one, "verdict": verdict(*one["interval"])} for key, one in found.items()],
            "note": note,
            "files": facts,
        },
        "scores": [{"name": "findings that change", "less_is_better": True}]
        + [{"name": f"B \u2212 A: {key}", "less_is_better": False} for key in keys],
        "tables": [], "facts": {}, "test_run": {}, "experts": [], "baselines": {}, "notes": {}, "thresholds": None,
        "mask_side": MASK_SIDE,
    }  # fmt: skip
    studies = [
        [
            a["id"],
            [a["reference"], a["prediction"], b["prediction"]],
            [one["states"][0], one["states"][1], two["states"][1]],
            [one["relations"], two["relations"]],
            [one["statements"][0], one["statements"][1], two["statements"][1]],
            [one["details"], two["details"]],
            [sum(x != y for x, y in zip(one["relations"], two["relations"]))]
            + [round(float(value), 4) if np.isfinite(value) else None for value in row],
            *[None, None, "", None, None],
        ]
        for a, b, one, two, row in zip(*both, *compared, values)
    ]
    path = Path(folder) / "index.html"
    write_html(path, run["title"], run, studies, images_of(paths, split))
    return path


def verdict(low: float, high: float) -> str:
    """What the interval of a difference B - A allows to say."""
    return "not distinguished" if low <= 0 <= high else "B is higher" if low > 0 else "A is higher"


def images_of(paths: Sequence[str], split: str) -> Iterable[tuple[str, str]]:
    """(id, row as JSON) of the first evidence file beside the predictions; attention belongs to one report and is left out."""
    beside = [Path(path).parent / f"evidence_{split}.jsonl" for path in paths]
    for name, line in read_evidence(next((path for path in beside if path.is_file()), beside[0])):
        content = json.loads(line)
        shown = [{**image, "seen": None} for image in content["images"]]
        yield name, json.dumps({"id": name, "images": shown, "attention": None}, separators=(",", ":"))
