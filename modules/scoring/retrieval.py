"""Reports found, not generated: that of the nearest training study, and the consensus of the nearest ones.

N training studies, B scored ones, C the width of their features.
"""

import math
from collections.abc import Sequence

import numpy as np

from modules.scoring.metrics import prepare

NEIGHBOURS = 100  # chosen in advance: on a few hundred validation studies the best number is noise
SIGMA = 6.0  # of CIDEr's penalty of lengths, in words
_ROWS = 4096  # of training studies compared at once


def neighbours(scored: np.ndarray, training: np.ndarray, most: int, own: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Training studies of the highest cosine: features [B, C], [N, C] -> positions [B, K], most alike first.

    own: for each scored study the positions that may not be found for it, since they are the study itself; K is `most`, or
    as many as every study can have. Cosines are rounded to 6 digits and the first wins among equals, so the result does not
    depend on the processor or the number of threads.
    """
    queries = _unit(scored)
    most = min(most, len(training) - max(map(len, own), default=0))
    found, cosines = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0))
    for first in range(0, len(training), _ROWS):
        part = queries @ _unit(training[first : first + _ROWS]).T
        for row, positions in enumerate(own):
            for position in positions:
                if first <= position < first + part.shape[1]:
                    part[row, position - first] = -np.inf
        cosines = np.concatenate([cosines, part.round(6)], axis=1)
        found = np.concatenate([found, np.broadcast_to(np.arange(first, first + part.shape[1]), part.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
        cosines, found = np.take_along_axis(cosines, order, 1), np.take_along_axis(found, order, 1)
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


class Consensus:
    """Which of some training reports agrees best with the others, by a similarity like CIDEr's.

    Of two reports it is the mean over the orders 1 to 4 of the cosine of their tf-idf n-gram vectors, times
    exp(-(difference of lengths)^2 / (2 * 6^2)); document frequencies are those of all training reports. Counts are not clipped,
    so that it is a product of sparse vectors.
    Source: Vedantam et al. 2015 (CIDEr, equations 1 to 4), the penalty of CIDEr-D.
    """

    def __init__(self, reports: Sequence[str]) -> None:
        """reports: N cleaned texts; the same text may stand more than once."""
        place: dict[str, int] = {}
        self.text_of = np.array([place.setdefault(prepare(report), len(place)) for report in reports], dtype=np.int64)
        texts = [text.split() for text in place]
        self.lengths = np.array([len(words) for words in texts], dtype=np.float64)
        orders = list(_vectors(texts, np.bincount(self.text_of, minlength=len(texts))))
        starts, columns, values = zip(*orders)
        # the four orders of a text one after another, in columns of their own
        counts = np.stack([np.diff(start) for start in starts])  # [4, texts]
        offsets = np.cumsum([0, *(int(column.max(initial=-1)) + 1 for column in columns)])
        rows = np.concatenate([np.repeat(np.arange(len(texts)), count) for count in counts])
        order = np.argsort(rows, kind="stable")
        self.columns = np.concatenate([column + offset for column, offset in zip(columns, offsets)])[order]
        self.values = np.concatenate(values)[order]
        self.starts = np.concatenate([[0], np.cumsum(counts.sum(0))])

    def similarities(self, texts: np.ndarray) -> np.ndarray:
        """[n, n] of different texts by number; 1 of a text with itself."""
        spans = [np.arange(self.starts[text], self.starts[text + 1]) for text in texts]
        entries = np.concatenate(spans)
        rows = np.repeat(np.arange(len(texts)), list(map(len, spans)))
        _, columns, holders = np.unique(self.columns[entries], return_inverse=True, return_counts=True)
        shared = holders[columns] > 1  # what one text alone has enters no product but its own
        kept, column = np.unique(columns[shared], return_inverse=True)
        vectors = np.zeros((len(texts), len(kept)))
        vectors[rows[shared], column] = self.values[entries[shared]]
        apart = self.lengths[texts][:, None] - self.lengths[texts]
        similar = vectors @ vectors.T * np.exp(-(apart**2) / (2 * SIGMA**2))
        np.fill_diagonal(similar, 1.0)
        return similar

    def choose(self, found: np.ndarray) -> int:
        """Of training studies by position, most alike first, the one whose report has the highest mean similarity to the
        others' reports; the most alike wins among equals."""
        texts, first, votes = np.unique(self.text_of[found], return_index=True, return_counts=True)
        agreement = self.similarities(texts) @ votes - 1.0  # less the report itself
        best = np.lexsort((first, -agreement.round(9)))[0]
        return int(found[first[best]])


def _vectors(texts: list[list[str]], weights: np.ndarray):
    """For each order 1 to 4 the tf-idf vectors of the texts, of length 1/2 each, as (starts [texts + 1], columns, values).

    weights: how many reports have the text. Four vectors of length 1/2 side by side give the mean of four cosines.
    """
    number: dict[str, int] = {}
    words = np.array([number.setdefault(word, len(number)) for text in texts for word in text], dtype=np.int64)
    rows = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    grams = np.zeros_like(words)
    for order in range(1, 5):
        # an n-gram is the (n-1)-gram, by number, and the next word
        last = words[order - 1 :]
        grams, at = grams[: len(last)], rows[: len(last)]
        inside = at == rows[order - 1 :]
        _, grams = np.unique(grams * len(number) + last, return_inverse=True)
        width = int(grams.max(initial=-1)) + 1
        cells, counts = np.unique((at * width + grams)[inside], return_counts=True)
        row, column = np.divmod(cells, max(width, 1))
        holding = np.bincount(column, weights[row], minlength=width)
        values = counts * (math.log(weights.sum()) - np.log(np.maximum(holding[column], 1)))
        norms = np.sqrt(np.bincount(row, values**2, minlength=len(texts)))
        values = values / np.maximum(norms[row], 1e-12) / 2
        yield np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(texts)))]), column, values
