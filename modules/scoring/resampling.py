"""Scores as sums over studies: one formula gives the corpus value, that of a subset, and bootstrap intervals.

Every metric here is a function of numbers summed (or averaged) over studies: BLEU of n-gram counts, METEOR of its match
counts, ROUGE-L and CIDEr of a mean, F1 of hits and misses. So resampling studies is one matrix product, and no text is
read twice. Rows that share a study or a patient are not independent: they are drawn together (`units_of`).

Source: Koehn 2004 (bootstrap over the test set), Efron and Tibshirani 1993 (percentile interval), Davison and Hinkley 1997
(resampling of clusters).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modules.errors import InputError

RESAMPLES = 1000
LEVEL = 0.95
_COLUMN_OF = {"patient": "subject_id", "study": "study_id"}  # the widest first
RESAMPLE_BY = ("auto", "row", *_COLUMN_OF)
_SEED = 20220401  # fixed: two people who score one file get one interval
_CELLS = 4_000_000  # of resamples x studies held at once: 32 MB


@dataclass(frozen=True, eq=False)
class Statistic:
    """A metric: what it needs of each study, [B, S], and the function from sums [..., S] over studies to values [...].

    Metrics that share one array `rows` are resampled together. of_resamples: in place of `of_sums` for resampled studies,
    where a draw may miss what the whole split has.
    """

    rows: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]
    of_resamples: Callable[[np.ndarray], np.ndarray] | None = None

    def corpus(self, chosen: np.ndarray | None = None) -> float:
        """The value over all studies, or over those that are True in `chosen` [B]."""
        rows = self.rows if chosen is None else self.rows[chosen]
        return float(self.of_sums(rows.sum(0)))

    def studies(self) -> np.ndarray:
        """[B]: the value of each study alone."""
        return self.of_sums(self.rows)


@dataclass(frozen=True)
class Units:
    """What a resample draws: its name, how many there are, and the one each row belongs to, [B] from 0 in row order."""

    name: str
    count: int
    of_row: np.ndarray


def units_of(rows: Sequence[Mapping[str, str]], by: str = "auto") -> Units:
    """The units of the rows of a predictions file; a row whose column is empty is a unit of its own.

    by: "row", "study" (column study_id), "patient" (subject_id), or "auto": patients where rows share one, else studies
    where rows share one, else rows. InputError for a column that is not there.
    """
    if by not in RESAMPLE_BY:
        raise InputError(f"--resample_by {by}: choose from {', '.join(RESAMPLE_BY)}")
    for name, column in _COLUMN_OF.items():
        if by == name and not any(row.get(column) for row in rows):
            raise InputError(f"--resample_by {by}: the predictions have no {column}; their annotation did not name it")
        if by in (name, "auto"):
            first: dict[tuple, int] = {}
            keys = [(column, row[column]) if row.get(column) else ("id", row["id"]) for row in rows]
            of_row = np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)
            if by == name or len(first) < len(rows):
                return Units(name, len(first), of_row)
    return Units("row", len(rows), np.arange(len(rows)))


def mean_statistic(values: np.ndarray | Sequence[float]) -> Statistic:
    """The mean of one value per study; ROUGE-L, CIDEr (document frequencies stay those of all studies)."""
    values = np.asarray(values, dtype=np.float64)
    return Statistic(np.stack([values, np.ones_like(values)], axis=-1), lambda sums: sums[..., 0] / sums[..., 1])


def resample_weights(studies: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each study is drawn, [R, B] float64 in parts that fit into memory: `resamples` draws of B of B studies."""
    draw = np.random.default_rng(_SEED)
    part = max(1, min(resamples, _CELLS // studies))
    for first in range(0, resamples, part):
        count = min(part, resamples - first)
        drawn = draw.integers(studies, size=(count, studies)) + studies * np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=count * studies)
        yield counts.reshape(count, studies).astype(np.float64)


def resampled(
    statistics: Mapping[str, Statistic], resamples: int = RESAMPLES, units: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """{key: [R] values over resampled units}; every key sees the same draws, so differences are paired.

    units: the unit of each row, [B] (Units.of_row, or a part of it); None: each row is one.
    """
    arrays = {id(statistic.rows): statistic.rows for statistic in statistics.values()}
    if not arrays or not resamples:
        return {}
    stacked = np.concatenate(list(arrays.values()), axis=1)
    ends = np.cumsum([rows.shape[1] for rows in arrays.values()])
    if units is not None:
        kept, of_row = np.unique(units, return_inverse=True)
        together = np.zeros((len(kept), stacked.shape[1]))
        np.add.at(together, of_row, stacked)
        stacked = together
    parts = [weights @ stacked for weights in resample_weights(len(stacked), resamples)]
    split = np.split(np.concatenate(parts), ends[:-1], axis=1)
    sums = dict(zip(arrays, split))
    values = {key: statistic.of_resamples or statistic.of_sums for key, statistic in statistics.items()}
    return {key: values[key](sums[id(statistic.rows)]) for key, statistic in statistics.items()}


def interval(values: np.ndarray, level: float = LEVEL) -> list[float]:
    """[low, high] that holds the middle `level` of resampled values."""
    tail = (1 - level) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def intervals(
    statistics: Mapping[str, Statistic], resamples: int = RESAMPLES, units: np.ndarray | None = None
) -> dict[str, list[float]]:
    """{key: [low, high]}: percentile bootstrap over units (see resampled)."""
    return {key: interval(values) for key, values in resampled(statistics, resamples, units).items()}


def paired_differences(
    ours: Mapping[str, Statistic],
    theirs: Mapping[str, Statistic],
    resamples: int = RESAMPLES,
    units: np.ndarray | None = None,
) -> dict[str, dict]:
    """For each key of both: values a, b, their difference b - a, its interval and a two-sided p-value.

    The rows of both stand for the same studies in the same order. p is twice the smaller share of resamples in which the
    difference has the other sign or is 0 (a draw counted on both sides), never below 2 / (R + 1).
    """
    keys = [key for key in ours if key in theirs]
    both = {f"a {key}": ours[key] for key in keys} | {f"b {key}": theirs[key] for key in keys}
    values = resampled(both, resamples, units)
    found = {}
    for key in keys:
        a, b = ours[key].corpus(), theirs[key].corpus()
        drawn = values[f"b {key}"] - values[f"a {key}"]
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        found[key] = {
            "a": a,
            "b": b,
            "difference": b - a,
            "interval": interval(drawn),
            "p": float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))),
        }
    return found
