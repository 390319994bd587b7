"""MODEL_CARD.md of a results folder, in words: what was trained, on what, how it scored, what it is not for.

Written from run.json, log.jsonl and metrics_<split>.json alone, after training and after each test.
"""

import json
import shlex
from pathlib import Path

from modules.artefact import read_json, write_atomic
from modules.scoring.baselines import BASELINES, footnotes, prefixes, title

FIGURES = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")


def write_model_card(folder: str | Path) -> None:
    """(Re)write <folder>/MODEL_CARD.md; nothing where the folder has no run.json. InputError when a file is damaged."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        return
    run = read_json(folder / "run.json", "the model card is made from it")
    tests = [read_json(path, "test again") for path in sorted(folder.glob("metrics_*.json"))]
    parts = [*_head(run), *_data(run["data"]), *_training(folder, run), *_scores(tests), *_limits(run)]
    text = "\n".join(parts) + "\n"
    write_atomic(folder / "MODEL_CARD.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _head(run: dict) -> list[str]:
    flags = run["flags"]
    best = "rl/best.pt" if flags.get("rl_epochs") else "best.pt"
    return [
        f"# {flags['model']} on {flags['dataset_name']}",
        "",
        "Writes a radiology report for chest X-ray images. **Research software: not for clinical use.** "
        f"`{best}` is the model; `python main_test.py --load {flags['save_dir']}/{best} --image FILE` writes a report for one "
        "study.",
    ]


def _data(card: dict) -> list[str]:
    rows = [
        f"| {split} | {facts['rows']} | {facts['studies']} | {facts.get('patients', '-')} | {facts['ids_sha256']} |"
        for split, facts in card["splits"].items()
    ]
    lines = [
        "",
        "## Data",
        "",
        f"`{card['annotation']}`, key `{card['section']}`, {card['views_used']} image(s) a row, a row is a {card['unit']}.",
        "",
        "| split | rows | studies | patients | hash of the ids |",
        "|---|---|---|---|---|",
        *rows,
    ]
    skipped = ", ".join(f"{number} {what}" for what, number in card["skipped"].items())
    return [*lines, "", f"Left out: {skipped}."] if skipped else lines


def _training(folder: Path, run: dict) -> list[str]:
    runs = [run, *run.get("resumed", [])]
    commands = [shlex.join(["python", *map(str, part["command"])]) for part in runs]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    code = (run.get("git") or {}).get("commit") or "not in git"
    changed = " with changes that were not committed" if (run.get("git") or {}).get("changed") else ""
    marks = [*run.get("marks", ()), *(["labels of the scored reports went in (oracle)"] if run.get("oracle_labels") else [])]
    return [
        "",
        "## Training",
        "",
        *(f"    {command}" for command in commands),
        "",
        f"Code {code}{changed}; {versions}; {run['device']}. Every flag and the hashes of the input files: `run.json`.",
        *_best(folder / "log.jsonl", run["flags"]),
        *([f"Mind: {', '.join(marks)}."] if marks else []),
    ]


def _best(log: Path, flags: dict) -> list[str]:
    """One line on the chosen epoch: the last "val" row of the log knows the best so far."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    rows = [row for row in rows if row["event"] == "val" and row.get("best") is not None]
    if not rows:
        return []
    last = rows[-1]
    chosen = f"epoch {last['best_epoch']} of {last['epoch']}"
    return [f"Chosen: {chosen}, by {flags['monitor_metric']} = {last['best']:.4f} on validation."]


def _scores(tests: list[dict]) -> list[str]:
    if not tests:
        return ["", "## Scores", "", "Not tested yet: `python main_test.py --load best.pt`."]
    lines = ["", "## Scores", "", "| split | studies | distinct reports | " + " | ".join(FIGURES) + " |", "|---" * 8 + "|"]
    for test in tests:
        metrics = test["metrics"]
        for prefix in prefixes(metrics):
            figures = [_figure(metrics.get(f"{prefix}r2gen/{name}")) for name in FIGURES]
            distinct = "-" if prefix else metrics["distinct_reports"]
            lines.append(f"| {test['split']}: {title(prefix)} | {metrics['studies']} | {distinct} | {' | '.join(figures)} |")
    names = [name for name in BASELINES if any(f"{name}/r2gen/CIDEr" in test["metrics"] for test in tests)]
    below = "Protocol `r2gen`; all others, clinical metrics and intervals: `metrics_<split>.json`, `index.html`."
    return [*lines, "", *(f"{line}  " for line in footnotes(names)), below]


def _figure(value) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "n/a"


def _limits(run: dict) -> list[str]:
    return [
        "",
        "## Limits",
        "",
        "It knows the data set above and no other: other scanners, ages, views or languages were not tried. Reports may be "
        "fluent and wrong, and may speak of earlier studies that it never saw. Whether it may be handed on follows from the "
        f"data set's agreement ({run['flags']['dataset_name']}) and from the licence of the weights it started from.",
    ]
