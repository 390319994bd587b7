"""How well the classifier behind the diagnoses ranks, is calibrated and decides, for the page's part Diagnosis.

`diagnosis_<split>.json` holds what the classifier gave: {"labels": [K], "thresholds": [K], "probabilities": {id: [K]}}. The truth
is what the rule-based labeler reads in the references; an uncertain finding counts as present.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modules.artefact import read_json, write_json
from modules.errors import InputError

BINS = 10  # of a calibration curve, of equal width
POINTS = 120  # of a ROC curve at most


def diagnoses_path(folder: Path, split: str) -> Path:
    return folder / f"diagnosis_{split}.json"


def write_diagnoses(folder: Path, split: str, found: Mapping | None) -> None:
    """Keep what a classifier gave; None: it was not asked, and no file of an earlier test stays."""
    path = diagnoses_path(folder, split)
    if found is None:
        path.unlink(missing_ok=True)
        return
    rounded = {name: [round(p, 4) for p in row] for name, row in found["probabilities"].items()}
    write_json(path, {**found, "probabilities": rounded})


def read_diagnoses(folder: Path, split: str, ids: Sequence[str]) -> dict | None:
    """The content of the file, probabilities float [B, K] in the order of `ids`; None where there is no file.

    Raises InputError where it is broken or lacks a study.
    """
    path = diagnoses_path(folder, split)
    if not path.is_file():
        return None
    content = read_json(path, "remove it, or test again")
    try:
        table = np.array([content["probabilities"][name] for name in ids], float)
        labels, thresholds = list(content["labels"]), np.array(content["thresholds"], float)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not complete ({error}): remove it, or test again") from error
    if table.shape != (len(ids), len(labels)) or len(thresholds) != len(labels):
        raise InputError(f"{path} is not complete: {len(labels)} labels, probabilities {table.shape}; test again")
    return {"labels": labels, "thresholds": thresholds, "probabilities": table}


def label_figures(truth: np.ndarray, score: np.ndarray, threshold: float) -> dict:
    """ROC, calibration and decision of one label. truth: bool [B]; score: float [B].

    {"positives", "threshold", "said", "hits", "auroc", "roc" [[1 - specificity, sensitivity]], "at" (the threshold's point),
    "bins" [[mean probability, share of positives, studies]]}; auroc, roc and at are None where one class only is there.
    """
    said = score > threshold
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    bins = [
        [round(float(score[here].mean()), 4), round(float(truth[here].mean()), 4), int(here.sum())]
        for here in (place == number for number in range(BINS))
        if here.any()
    ]
    facts = {"positives": int(truth.sum()), "threshold": round(float(threshold), 4), "said": int(said.sum()),
             "hits": int((said & truth).sum()), "bins": bins, "auroc": None, "roc": None, "at": None}  # fmt: skip
    if truth.all() or not truth.any():
        return facts
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # equal scores are one step
    hits, false = (np.append(0, np.cumsum(side[order])[last]) / side.sum() for side in (truth, ~truth))
    shown = np.unique(np.linspace(0, len(hits) - 1, POINTS).astype(int))
    at = [(said & ~truth).sum() / (~truth).sum(), (said & truth).sum() / truth.sum()]
    return facts | {
        "auroc": round(float((np.diff(false) * (hits[1:] + hits[:-1]) / 2).sum()), 4),
        "roc": [[round(float(x), 4), round(float(y), 4)] for x, y in zip(false[shown], hits[shown])],
        "at": [round(float(value), 4) for value in at],
    }


def diagnosis_figures(found: Mapping | None, stated: np.ndarray, labels: Sequence[str]) -> list[dict]:
    """`label_figures` of each label of the classifier that the references can tell. stated: bool [B, labels]."""
    if found is None:
        return []
    columns = zip(found["labels"], found["thresholds"], found["probabilities"].T)
    return [
        {"label": label, **label_figures(stated[:, labels.index(label)], score, threshold)}
        for label, threshold, score in columns
        if label in labels
    ]
