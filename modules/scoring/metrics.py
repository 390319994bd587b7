"""Scores of report texts: BLEU-1..4, METEOR, ROUGE-L and CIDEr of pycocoevalcap, under named protocols.

A number means nothing without the preparation of both sides, so a protocol's name is part of every key:
`r2gen/BLEU_4`. The rows of a predictions file (modules/scoring/predictions.py) are the only input, so anyone can score again.

| protocol | reference | prediction |
|---|---|---|
| r2gen | cleaned, rare words `<unk>`, cut (R2Gen's papers and most after it) | as generated |
| cvt2 | the same by the limits of CvT2DistilGPT2: 3 times, 59 words (on IU X-Ray equal to r2gen) | as generated |
| clean | cleaned | as generated |
| ptb | raw text, PTB tokenizer (the COCO standard) | PTB tokenizer |

In all but `ptb` a full stop is a word of its own on both sides, and runs of spaces are one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider

from modules.errors import InputError
from modules.scoring.baselines import baselines_of
from modules.scoring.meteor import JavaFailure, Meteor, meteor_of_counts, ptb_tokenize
from modules.scoring.predictions import check_rows
from modules.scoring.resampling import Statistic, mean_statistic
from modules.text.earlier import earlier_share

METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")
PROTOCOLS = ("r2gen", "clean", "ptb")  # measured unless others are asked for
REFERENCE_COLUMNS = {"r2gen": "reference_r2gen", "clean": "reference_clean", "ptb": "reference", "cvt2": "reference_cvt2"}
_FEW_DISTINCT = 0.05
_SPACES = re.compile(r"\s+")


def metric_keys(protocols: Sequence[str] = PROTOCOLS, metrics: Sequence[str] = METRICS) -> list[str]:
    """The keys that score() gives for the system, such as `r2gen/BLEU_4`: what a flag that names a metric may be."""
    return [f"{protocol}/{metric}" for protocol in protocols for metric in metrics]


def prepare(text: str) -> str:
    """A text of protocol r2gen, cvt2 or clean as the metrics read it: ` .` for `.`, one space for any white space."""
    return _SPACES.sub(" ", text.replace(".", " .")).strip()


def text_statistics(
    references: Sequence[str], hypotheses: Sequence[str], metrics: Sequence[str] = METRICS
) -> dict[str, Statistic]:
    """The named metrics but METEOR of prepared texts, one reference each, as sums over studies (modules/scoring/resampling.py).

    BLEU is corpus BLEU, not the mean of the studies' values. All are pycocoevalcap's values.
    """
    statistics = {}
    if any(name in metrics for name in METRICS[:4]):
        scorer = BleuScorer()
        for reference, hypothesis in zip(references, hypotheses):
            scorer += (hypothesis, [reference])
        found = [[one["testlen"], *one["reflen"], *one["guess"], *one["correct"]] for one in scorer.ctest]
        counts = np.array(found, dtype=np.float64)
        for order, name in enumerate(METRICS[:4], 1):
            if name in metrics:
                statistics[name] = Statistic(counts, partial(_bleu, order=order))
    if "ROUGE_L" in metrics:
        statistics["ROUGE_L"] = mean_statistic([rouge_l(*pair) for pair in zip(references, hypotheses)])
    if "CIDEr" in metrics:
        expected, predicted = ({n: [text] for n, text in enumerate(texts)} for texts in (references, hypotheses))
        some = any(text.split() for text in references)
        statistics["CIDEr"] = mean_statistic(Cider().compute_score(expected, predicted)[1] if some else [0.0] * len(expected))
    return statistics


def _bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """BLEU-`order` from sums [..., 10]: words of hypothesis and reference, n-grams of 4 orders, those found.

    pycocoevalcap's value, with its small constants (1e-15 and 1e-9) against division by nothing.
    """
    precisions = (sums[..., 6 : 6 + order] + 1e-15) / (sums[..., 2 : 2 + order] + 1e-9)
    ratio = (sums[..., 0] + 1e-15) / (sums[..., 1] + 1e-9)
    return precisions.prod(-1) ** (1 / order) * np.exp(np.minimum(0, 1 - 1 / ratio))


def rouge_l(reference: str, hypothesis: str) -> float:
    """ROUGE-L of a pair as pycocoevalcap gives it (beta 1.2); 0 for an empty hypothesis.

    Its table of the longest common subsequence costs words x words in Python, most of the time of scoring; here a row of it
    is one integer (Hyyro 2004).
    """
    expected, predicted = reference.split(" "), hypothesis.split(" ")
    places: dict[str, int] = {}
    for place, word in enumerate(expected):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(expected)) - 1
    for word in predicted:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    common = len(expected) - row.bit_count()
    if not common or not hypothesis:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def score(
    rows: Iterable[Mapping[str, str]],
    *,
    expected_ids: Iterable[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    metrics: Sequence[str] | None = None,
    meteor: Meteor | None = None,
) -> dict:
    """Scores the rows of a predictions file; returns a dict that json can hold.

    rows: as read_predictions gives them; their order does not matter. expected_ids: the ids of the split; the rows must
    be these, none lost, none more. metrics: names of METRICS, all when None. meteor: a METEOR to use and keep;
    when None one is started (8 s) and ended here.

    The result holds `<protocol>/<metric>` (0..1, CIDEr 0..10) and, when the rows have columns of baselines
    (modules/scoring/baselines.py), `<column>/<protocol>/<metric>`; None where it cannot be computed, the reason is in
    `notes`, a dict by metric, protocol or key. Also what `text_facts` says of the texts themselves.
    Raises InputError for rows that are no predictions, for ids that are not those expected, and for unknown names.
    """
    rows = checked_rows(rows, expected_ids)
    facts, notes = text_facts(rows)
    statistics, reasons = measure(rows, protocols=protocols, metrics=metrics, meteor=meteor)
    return {**facts, **corpus_values(statistics), "notes": notes | reasons}


def checked_rows(
    rows: Iterable[Mapping[str, str]], expected_ids: Iterable[str] | None = None
) -> list[Mapping[str, str]]:
    """The rows of a predictions file by id; InputError as score() raises it."""
    rows = sorted(rows, key=lambda row: str(row.get("id")))
    check_rows(rows)
    if expected_ids is not None:
        check_ids([row["id"] for row in rows], expected_ids)
    return rows


def corpus_values(
    statistics: Mapping[str, Statistic | None], chosen: np.ndarray | None = None
) -> dict[str, float | None]:
    """{key: value over all studies or those that are True in `chosen` [B]}; None stays None."""
    return {key: None if one is None else one.corpus(chosen) for key, one in statistics.items()}


def measure(
    rows: Sequence[Mapping[str, str]],
    *,
    protocols: Sequence[str] = PROTOCOLS,
    metrics: Sequence[str] | None = None,
    meteor: Meteor | None = None,
) -> tuple[dict[str, Statistic | None], dict[str, str]]:
    """The statistics of checked rows by key, system and baselines (see score), and notes on those that are None.

    Java works beside Python: METEOR of all protocols is asked for first and collected last.
    """
    metrics = METRICS if metrics is None else tuple(metrics)
    for given, known, what in ((metrics, METRICS, "metric"), (protocols, REFERENCE_COLUMNS, "protocol")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"unknown {what} {', '.join(unknown)}; choose from {', '.join(known)}")
    lacking = [REFERENCE_COLUMNS[name] for name in protocols if REFERENCE_COLUMNS[name] not in rows[0]]
    if lacking:
        raise InputError(f"the predictions lack the column {', '.join(lacking)}: test again, or score with --reference")
    systems = {"": [row["prediction"] for row in rows]}
    systems |= {f"{name}/": texts for name, texts in baselines_of(rows).items()}
    statistics: dict[str, Statistic | None] = {
        f"{system}{protocol}/{name}": None
        for protocol in protocols
        for system in systems
        for name in METRICS
        if name in metrics
    }
    notes = {}
    own = meteor is None and "METEOR" in metrics
    if own:
        meteor = Meteor()
    try:
        if meteor is not None and "METEOR" in metrics:
            meteor.start()
        with ThreadPoolExecutor(1) as beside:
            asked = {}
            texts = {}
            for protocol in protocols:
                try:
                    references, predicted = _prepared(protocol, [row[REFERENCE_COLUMNS[protocol]] for row in rows], systems)
                except JavaFailure as failure:
                    notes[protocol] = str(failure)
                    continue
                for system, hypotheses in predicted.items():
                    key = f"{system}{protocol}"
                    texts[key] = (references, hypotheses)
                    if meteor is not None and "METEOR" in metrics:
                        asked[key] = beside.submit(meteor.corpus_score, references, hypotheses)
            for key, (references, hypotheses) in texts.items():
                found = text_statistics(references, hypotheses, metrics)
                statistics.update({f"{key}/{name}": statistic for name, statistic in found.items()})
            for key, answer in asked.items():
                try:
                    statistics[f"{key}/METEOR"] = Statistic(answer.result()[1], meteor_of_counts)
                except JavaFailure as failure:
                    notes["METEOR"] = str(failure)
    finally:
        if own and meteor is not None:
            meteor.close()
    if len(rows) == 1 and "CIDEr" in metrics:
        notes["CIDEr"] = "CIDEr of a single study is 0 by definition: its word weights come from the other studies"
    return statistics, notes


def _prepared(protocol: str, references: list[str], systems: Mapping[str, list[str]]) -> tuple[list[str], dict]:
    """References and {system: texts} as the metrics of a protocol read them; JavaFailure from the PTB tokenizer."""
    if protocol != "ptb":
        prepared = {system: [prepare(text) for text in texts] for system, texts in systems.items()}
        return [prepare(text) for text in references], prepared
    different = list(dict.fromkeys([*references, *(text for texts in systems.values() for text in texts)]))
    predicted = dict(zip(different, ptb_tokenize(different)))
    return [predicted[text] for text in references], {
        name: [predicted[text] for text in texts] for name, texts in systems.items()
    }


def check_ids(scored: Iterable[str], expected: Iterable[str]) -> None:
    """Raises InputError that names ids missing or unexpected, unless the two are the same set."""
    scored, expected = set(scored), set(expected)
    missing, unexpected = sorted(expected - scored), sorted(scored - expected)
    if missing or unexpected:
        parts = [
            f"{len(ids)} {name} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
            for name, ids in (("missing", missing), ("unexpected", unexpected))
            if ids
        ]
        raise InputError(f"predictions hold {len(scored)} studies, the split {len(expected)}: {'; '.join(parts)}")


def text_facts(rows: Sequence[Mapping[str, str]]) -> tuple[dict, dict[str, str]]:
    """What is said of the texts themselves, and warnings.

    `studies`; `distinct_reports` (predictions that differ, as prepared), `commonest_share` (0..1, share of the commonest);
    `mean_words_prediction`, `mean_words_reference` and more of their lengths under `words` (protocol clean, full stops
    count); `earlier` (modules/text/earlier.py): share of sentences about earlier studies on both sides.
    """
    predicted = [prepare(row["prediction"]) for row in rows]
    expected = [prepare(row["reference_clean"]) for row in rows]
    counts = Counter(predicted)
    notes = {}
    if len(counts) / len(rows) < _FEW_DISTINCT:
        notes["distinct_reports"] = (
            f"warning: only {len(counts)} distinct reports for {len(rows)} studies; compare with the constant report"
        )
    empty = sum(not text for text in predicted)
    if empty:
        notes["prediction"] = f"warning: {empty} of {len(rows)} predictions are empty (scored, as 0)"
    words = {side: _lengths(texts) for side, texts in (("prediction", predicted), ("reference", expected))}
    facts = {
        "studies": len(rows),
        "distinct_reports": len(counts),
        "commonest_share": max(counts.values()) / len(rows),
        "mean_words_prediction": words["prediction"]["mean"],
        "mean_words_reference": words["reference"]["mean"],
        "words": words,
        "earlier": {
            "prediction": earlier_share([row["prediction"] for row in rows]),
            "reference": earlier_share([row["reference"] for row in rows]),
        },
    }
    return facts, notes


def _lengths(texts: Sequence[str]) -> dict[str, float]:
    """Words per report: mean, standard deviation, and the 5th, 50th, 95th percentile and the longest."""
    words = np.array([len(text.split()) for text in texts])
    low, middle, high = np.quantile(words, [0.05, 0.5, 0.95])
    return {
        "mean": sum(words.tolist()) / len(words),
        "deviation": float(words.std()),
        "p5": float(low),
        "median": float(middle),
        "p95": float(high),
        "most": int(words.max()),
    }


