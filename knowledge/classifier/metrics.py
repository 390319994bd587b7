"""How well an image classifier ranks and decides, with intervals over studies, and the choice of its thresholds.

Letters: N images, K labels, R bootstrap rounds.
"""

import numpy as np


def ranking(truth: np.ndarray, score: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one label; equal scores count as equal, whatever their order.

    truth: bool [N]. score: [N], larger is more positive. counts: [R, N], how often each image stands in each of R
    samples (a bootstrap); left out: once. Returns two arrays [R], NaN where a sample has only one class.
    AUROC is the share of pairs (positive, negative) in the right order, ties half; AP the mean over the positives of
    the precision at their score.
    """
    truth, score = np.asarray(truth, bool), np.asarray(score, np.float64)
    counts = np.ones((1, len(truth))) if counts is None else np.asarray(counts, np.float64)
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(score[order][1:] != score[order][:-1], True))  # the end of each run of equal scores
    hits = np.cumsum(counts[:, order] * truth[order], 1)[:, last]
    false = np.cumsum(counts[:, order] * ~truth[order], 1)[:, last]
    new_hits, new_false = (np.diff(array, prepend=0, axis=1) for array in (hits, false))
    positives, negatives = hits[:, -1], false[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (new_false * (hits - new_hits / 2)).sum(1) / (positives * negatives)
        precision = (new_hits * hits / np.maximum(hits + false, 1)).sum(1) / positives
    both = (positives > 0) & (negatives > 0)
    return np.where(both, auroc, np.nan), np.where(both, precision, np.nan)


def f1_of(truth: np.ndarray, said: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """F1 of one label in each of R samples (see ranking); 0 where nothing was there and nothing said."""
    counts = np.ones((1, len(truth))) if counts is None else counts
    hits, wrong = counts @ (truth & said), counts @ (truth ^ said)
    return 2 * hits / np.maximum(2 * hits + wrong, 1)


def macro_auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean AUROC over the labels with both classes. truth [N, K] of 1, 0, -1 (left out); scores [N, K]; NaN: no label."""
    values = [ranking(t[t >= 0] == 1, s[t >= 0])[0][0] for t, s in zip(truth.T, scores.T)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def measure(truth: np.ndarray, probabilities: np.ndarray, thresholds, labels, *, rounds: int = 1000, seed: int = 0) -> dict:
    """AUROC, average precision and F1 with 95% bootstrap intervals, per label and as a mean over labels.

    truth: int [N, K] of 1, 0, -1 (left out). probabilities: float [N, K]. thresholds: K. The bootstrap draws studies.
    Returns {"studies", "macro": {metric: [value, low, high]}, "labels": {label: {"positives", "threshold", metrics}}};
    None where a label has one class only; the means leave such labels out and name how many they hold.
    """
    draw = np.random.default_rng(seed)
    sampled = draw.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=rounds)
    counts = np.concatenate([np.ones((1, len(truth))), sampled])
    result: dict = {"studies": len(truth), "bootstrap": rounds, "macro": {}, "labels": {}}
    rows: dict[str, list] = {"auroc": [], "ap": [], "f1": []}
    for k, label in enumerate(labels):
        known = truth[:, k] >= 0
        real, said = truth[known, k] == 1, probabilities[known, k] > thresholds[k]
        facts: dict = {"positives": int(real.sum()), "said": int(said.sum()), "threshold": float(thresholds[k])}
        if real.any() and not real.all():
            values = dict(zip(("auroc", "ap"), ranking(real, probabilities[known, k], counts[:, known])))
            values["f1"] = f1_of(real, said, counts[:, known])
            for name, value in values.items():
                rows[name].append(value)
                facts[name] = _interval(value)
        else:
            facts |= dict.fromkeys(rows)
        result["labels"][label] = facts
    result["macro"] = {name: _interval(_mean(value)) if value else None for name, value in rows.items()}
    result["macro"]["labels"] = len(rows["auroc"])
    return result


def _mean(rows: list[np.ndarray]) -> np.ndarray:
    """Mean over the rows that have a value, [R]; NaN where none has."""
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0).sum(0) / known.sum(0)


def _interval(values: np.ndarray) -> list[float]:
    """[value, low, high] of a value followed by its bootstrap copies."""
    copies = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(copies, (0.025, 0.975)) if len(copies) else (values[0], values[0])
    return [round(float(value), 4) for value in (values[0], low, high)]


def metrics_text(result: dict) -> str:
    """The table of `measure` for people."""
    cell = lambda value: f"{value[0]:.3f} ({value[1]:.3f}-{value[2]:.3f})" if value else "-"  # noqa: E731
    head = f"{'label':27s} {'positives':>9s} {'said':>6s} {'threshold':>9s}  {'AUROC':19s}  {'average precision':19s}  F1"
    lines = [head]
    for label, facts in result["labels"].items():
        start = f"{label:27s} {facts['positives']:9d} {facts['said']:6d} {facts['threshold']:9.3f}"
        lines.append(f"{start}  {cell(facts['auroc']):19s}  {cell(facts['ap']):19s}  {cell(facts['f1'])}")
    macro = result["macro"]
    name = f"mean of {macro['labels']} labels"
    lines.append(f"{name:54s}  {cell(macro['auroc']):19s}  {cell(macro['ap']):19s}  {cell(macro['f1'])}")
    return "\n".join(lines)


def choose_thresholds(truth: np.ndarray, probabilities: np.ndarray, prevalence, labels) -> tuple[list[float], dict[str, str]]:
    """One threshold per label that maximises F1 on validation, and notes on labels where that could not be done.

    truth: int [N, K] of 1, 0, -1; probabilities: float [N, K]; prevalence: share of positives in training, K. Of all values
    with the best F1 the one nearest to half that F1 is taken, which is the best threshold of exact probabilities
    (Lipton et al. 2014), but no nearer (in logits) to a score than a quarter of the gap between two scores.
    Without positives in validation: the share of positives in training is kept (a quantile of the validation
    scores); without positives in training: 1, so the label is never said.
    """
    thresholds, notes = [], {}
    for k, label in enumerate(labels):
        known = truth[:, k] >= 0
        real, score = truth[known, k] == 1, np.clip(probabilities[known, k].astype(np.float64), 1e-7, 1 - 1e-7)
        if prevalence[k] == 0:
            thresholds.append(1.0)
            notes[label] = "no positive in training: never said (threshold 1)"
        elif not real.any():
            thresholds.append(float(np.quantile(score, 1 - prevalence[k])) if len(score) else 0.5)
            notes[label] = f"no positive in validation: threshold keeps training's share of {prevalence[k]:.1%}"
        else:
            thresholds.append(_best_cut(real, np.log(score / (1 - score))))
    return thresholds, notes


def _best_cut(real: np.ndarray, logits: np.ndarray) -> float:
    """Probability above which a label is said; see choose_thresholds. real: bool [N], logits float [N]."""
    levels = np.unique(logits)
    below, missed = (np.searchsorted(np.sort(some), levels) for some in (logits, logits[real]))
    hits = real.sum() - missed  # when everything from a level up is said
    scores = 2 * hits / (len(real) - below + real.sum())
    goal = np.log(scores.max() / 2 / (1 - scores.max() / 2))
    gaps = np.diff(levels, prepend=levels[0] - 4)
    cuts = np.clip(goal, levels - 0.75 * gaps, levels - 0.25 * gaps)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    cut = cuts[best[np.argmin(abs(cuts[best] - goal))]]
    return float(1 / (1 + np.exp(-cut)))
