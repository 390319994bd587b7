"""The results page of one new study: `main_test.py --load best.pt --image a.png --out DIR`."""

import csv
import functools
from pathlib import Path

from data.images import open_image, reading_of
from modules.artefact import read_json, write_atomic, write_json
from modules.errors import InputError
from modules.results_page.build import write_page
from modules.results_page.diagnoses import write_diagnoses
from modules.results_page.evidence import attention_row, map_side, write_study
from modules.scoring.predictions import COLUMNS, write_predictions

RECORD = "metrics_test.json"


def check_folder(out: str | Path) -> None:
    """InputError where --out holds a run that was tested: its page stays."""
    record = Path(out) / RECORD
    if record.is_file() and "one_study" not in read_json(record):
        raise InputError(f"--out: {out} holds a tested run; choose another folder for the page of a new study")


def write_study_page(args, result: dict, run: dict) -> Path:
    """The page in --out, from what `generator` of knowledge/new_study.py gives with attention=True; its path."""
    folder, name, rows = Path(args.out), Path(result["images"][0]).stem, result.get("diagnosis")
    row = dict.fromkeys(COLUMNS, "") | {"id": name, "prediction": result["report"]}
    row |= {key: text for key, text in result.items() if isinstance(text, str) and key not in ("report", "note")}
    if rows is not None:
        row["diagnosis"] = "|".join(one["label"] for one in rows if one["positive"])
        bot = {"labels": [one["label"] for one in rows], "thresholds": [one["threshold"] for one in rows]}
        write_diagnoses(folder, "test", {**bot, "probabilities": {name: [one["probability"] for one in rows]}})
    write_predictions(folder / "predictions_test.csv", [row])
    write_atomic(folder / "scores_test.csv", functools.partial(_write_ids, name=name))
    notes = {"reference": "none, this is a new study: nothing is scored"}
    notes |= {f"image {number}": text for number, text in enumerate(result["warnings"], 1)}
    metrics = {"studies": 1, "distinct_reports": 1, "commonest_share": 1.0, "notes": notes}
    facts = {"one_study": True, "split": "test", "marks": ["a new study, no reference"], "run": run}
    write_json(folder / RECORD, {**facts, "metrics": metrics})
    masks = result["masks"] or [None] * len(result["images"])
    images = [{"path": path, "mask": mask} for path, mask in zip(result["images"], masks)]
    looked = attention_row(result["report"], result["attention"], map_side(1)) if result["words"] else None
    reading, theta = functools.partial(open_image, reading=reading_of(args)), getattr(args, "theta", 1.0)
    write_study(folder / "evidence_test.jsonl", name, images[: args.max_views], looked, theta=theta, open_image=reading)
    return write_page(folder)


def _write_ids(path: Path, name: str) -> None:
    """A table of scores without a score."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["id"], [name]])
