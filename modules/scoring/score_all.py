"""Everything that is said of a predictions file: text metrics, clinical metrics, intervals, subsets, labels.

What metrics.py and clinical.py measure per study is put together here and written beside the predictions:
`metrics_<split>.json`, `scores_<split>.csv` (a row per study), `labels_<split>.csv` (raw labels of both sides).
"""

import csv
import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.artefact import write_atomic, write_json
from modules.errors import InputError
from modules.scoring.baselines import baselines_of, of_baseline
from modules.scoring.clinical import (
    LABEL_SETS,
    RULE_LABELER,
    Labeler,
    abnormal,
    by_label,
    clinical_statistics,
    label_by_rules,
    positive,
    write_states,
)
from modules.scoring.meteor import Meteor
from modules.scoring.metrics import (
    PROTOCOLS,
    REFERENCE_COLUMNS,
    checked_rows,
    corpus_values,
    measure,
    prepare,
    text_facts,
)
from modules.scoring.optional_metrics import extra_statistics
from modules.scoring.resampling import LEVEL, RESAMPLES, Statistic, Units, intervals, units_of
from modules.text.chexbert import CheXbertLabeler
from modules.text.earlier import speaks_of_earlier
from modules.text.labels import CHEXPERT_14


class Scores(NamedTuple):
    """ids in order; statistics by key, None where n/a; states {labeler: {side: [B, 14]}}; metrics for the JSON file."""

    ids: list[str]
    statistics: dict[str, Statistic | None]
    states: dict[str, dict[str, np.ndarray]]
    metrics: dict


def make_labelers(chexbert_path: str | None, chexbert_vocab: str | None, device="cpu") -> dict[str, Labeler]:
    """{name as in the keys: labeler}: our rules, and CheXbert where the user has its file. InputError when it is no such file."""
    labelers: dict[str, Labeler] = {RULE_LABELER: label_by_rules}
    if chexbert_path:
        vocab = chexbert_vocab or Path(chexbert_path).with_name("vocab.txt")
        labelers["chexbert"] = CheXbertLabeler(chexbert_path, vocab, device)
    elif chexbert_vocab:
        raise InputError("--chexbert_vocab goes with --chexbert_path")
    return labelers


def measure_all(
    rows: Sequence[Mapping[str, str]],
    *,
    protocols: Sequence[str] = PROTOCOLS,
    labelers: Mapping[str, Labeler],
    extra: Sequence[str] = (),
    meteor: Meteor | None = None,
    **extra_settings,
) -> tuple[dict[str, Statistic | None], dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Statistics by key (a baseline's begin with its column), states by labeler and side, notes."""
    statistics, notes = measure(rows, protocols=protocols, meteor=meteor)
    references, predictions = ([row[side] for row in rows] for side in ("reference", "prediction"))
    states = {}
    for name, labeler in labelers.items():
        expected = labeler(references)
        states[name] = {"reference": expected, "prediction": labeler(predictions)}
        statistics.update(clinical_statistics(name, expected, states[name]["prediction"]))
        for baseline, texts in baselines_of(rows).items():
            different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
            predicted = labeler(list(different))[[different[text] for text in texts]]
            found = clinical_statistics(name, expected, predicted)
            statistics.update({f"{baseline}/{key}": one for key, one in found.items()})
        if not positive(states[name]["prediction"], "u1")[:, LABEL_SETS["13"]].any():
            notes[f"ce/{name}"] = "warning: no prediction states a finding: every study is called normal"
    others, reasons = extra_statistics(extra, references, predictions, **extra_settings)
    return statistics | others, states, notes | reasons


def score_all(
    rows: Iterable[Mapping[str, str]],
    *,
    expected_ids: Iterable[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    labelers: Mapping[str, Labeler] | None = None,
    extra: Sequence[str] = (),
    resamples: int = RESAMPLES,
    resample_by: str = "auto",
    meteor: Meteor | None = None,
    **extra_settings,
) -> Scores:
    """Scores the rows of a predictions file in every way; order, batches and processes do not matter.

    `metrics` of the result holds what metrics.score gives, and: `ce/...` (modules/scoring/clinical.py); `baselines` {column:
    what is said of its texts}; `intervals` {key: [low, high]};
    `subsets` {name: {"studies", key: value, "intervals"}}: studies whose reference is `abnormal` or `normal`, speaks
    of earlier studies (`earlier`) or does not (`not_earlier`), by our rules, and `label/<label>`, the text metrics where the
    reference states that label; CIDEr keeps the document frequencies of all studies; `by_label` {labeler: {label: values}};
    `ids_sha256` and `references_sha256` {protocol: hash}, which say what may be compared.
    Raises InputError as metrics.score.
    """
    rows = checked_rows(rows, expected_ids)
    ids = [row["id"] for row in rows]
    units = units_of(rows, resample_by)
    labelers = labelers or make_labelers(None, None)
    facts, notes = text_facts(rows)
    statistics, states, reasons = measure_all(
        rows, protocols=protocols, labelers=labelers, extra=extra, meteor=meteor, **extra_settings
    )
    known = {key: one for key, one in statistics.items() if one is not None}
    metrics = {
        **facts,
        "baselines": {name: _texts_of(texts) for name, texts in baselines_of(rows).items()},
        **corpus_values(statistics),
        "intervals": intervals(known, resamples, units.of_row),
        "bootstrap": {"resamples": resamples, "level": LEVEL, "unit": units.name, "units": units.count},
        "subsets": _subsets(rows, states, known, resamples, units),
        "by_label": {name: by_label(sides["reference"], sides["prediction"]) for name, sides in states.items()},
        "ids_sha256": hash_of(ids),
        "references_sha256": {
            protocol: hash_of([row[REFERENCE_COLUMNS[protocol]] for row in rows]) for protocol in protocols
        },
        "notes": notes | reasons,
    }
    return Scores(ids, statistics, states, metrics)


def _texts_of(texts: Sequence[str]) -> dict[str, float]:
    """Distinct reports and mean length of a baseline, as text_facts counts them."""
    prepared = [prepare(text) for text in texts]
    words = sum(len(text.split()) for text in prepared)
    return {"distinct_reports": len(set(prepared)), "mean_words_prediction": words / len(prepared)}


def hash_of(lines: Iterable[str]) -> str:
    """16 hex digits of texts in order; of sorted ids it is the data card's."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()[:16]


def _subsets(rows, states, statistics: Mapping[str, Statistic], resamples: int, units: Units) -> dict[str, dict]:
    """Scores of parts of the split, chosen by the references alone."""
    expected = (
        states[RULE_LABELER]["reference"] if RULE_LABELER in states else label_by_rules([r["reference"] for r in rows])
    )
    findings, earlier = abnormal(expected), np.array([speaks_of_earlier(row["reference"]) for row in rows])
    text = {key: one for key, one in statistics.items() if of_baseline(key)[1].split("/")[0] in REFERENCE_COLUMNS}
    stated = positive(expected, "u0")
    parts = {"abnormal": (findings, statistics), "normal": (~findings, statistics)}
    parts |= {"earlier": (earlier, statistics), "not_earlier": (~earlier, statistics)}
    parts |= {f"label/{label}": (stated[:, i], text) for i, label in enumerate(CHEXPERT_14)}
    found: dict[str, dict] = {}
    for name, (chosen, wanted) in parts.items():
        found[name] = {"studies": int(chosen.sum())}
        if chosen.any():
            arrays = {id(one.rows): one.rows[chosen] for one in wanted.values()}
            part = {key: Statistic(arrays[id(one.rows)], one.of_sums) for key, one in wanted.items()}
            found[name].update(corpus_values(part))
            if not name.startswith("label/"):
                found[name]["intervals"] = intervals(part, resamples, units.of_row[chosen])
    return found


def study_columns(scores: Scores) -> dict[str, np.ndarray]:
    """{key: value of each study [B]} of the system: text metrics, CE of the study (14 labels), extra metrics.

    A study's BLEU is pycocoevalcap's: without smoothing, so one without a common 4-gram has a BLEU-4 of nearly 0. Its METEOR is
    the Java program's value of the pair; neither is averaged for the corpus.
    """
    return {
        key: one.studies()
        for key, one in scores.statistics.items()
        if one is not None
        and not of_baseline(key)[0]
        and (not key.startswith("ce/") or ("/14/example/" in key and key.endswith("/f1")))
    }


def write_scores(folder: str | Path, split: str, scores: Scores, facts: Mapping) -> None:
    """metrics_<split>.json (`facts`, then `metrics`), scores_<split>.csv and labels_<split>.csv, each whole or not at all."""
    folder, columns = Path(folder), study_columns(scores)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *columns])
            for number, study in enumerate(scores.ids):
                writer.writerow([study, *(f"{column[number]:.6g}" for column in columns.values())])

    write_json(folder / f"metrics_{split}.json", {**facts, "scored_at": now, "metrics": scores.metrics})
    write_atomic(folder / f"scores_{split}.csv", write)
    write_states(folder / f"labels_{split}.csv", scores.ids, scores.states)
