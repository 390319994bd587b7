"""The constant reports: the training report that does best when given to every validation study, by BLEU-4 and by CIDEr.

Both scores are pycocoevalcap's exactly. One text for all studies needs, per n-gram, only sums over the references, so a
candidate costs its own length.
"""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from modules.errors import InputError
from modules.scoring.metrics import prepare
from modules.scoring.predictions import R2GenReferences


def constant_reports(
    training_reports: Iterable[str], validation_reports: Iterable[str], references: R2GenReferences
) -> dict[str, str]:
    """The training reports, cleaned, that do best when given to every validation study, by column of the predictions file.

    `constant` has the highest r2gen/BLEU_4, `constant_cider` the highest r2gen/CIDEr. Both sides are raw texts; `references`
    prepares them (the words counted in training, as for the test references). The first wins among equals.
    Raises InputError when either side is empty.
    """
    expected = [prepare(references.r2gen(text)) for text in validation_reports]
    candidates: dict[str, str] = {}
    for text in training_reports:
        cleaned = references.clean(text)
        candidates.setdefault(prepare(cleaned), cleaned)
    if not expected or not candidates:
        raise InputError("the constant report needs training reports and validation reports")
    scorers = {"constant": _ConstantBleu(expected).bleu_4, "constant_cider": _ConstantCider(expected).cider}
    return {column: candidates[max(candidates, key=scorer)] for column, scorer in scorers.items()}


def ngrams(words: list[str]) -> list[Counter]:
    """The n-grams of orders 1 to 4 with their counts."""
    return [Counter(zip(*(words[start:] for start in range(order)))) for order in range(1, 5)]


class _ConstantBleu:
    """Corpus BLEU-4 of one hypothesis against many references, one per study."""

    def __init__(self, references: list[str]) -> None:
        self.studies = len(references)
        self.words = 0
        # n-gram -> how many references hold it at least once, at least twice, ...
        self.holding: dict[tuple[str, ...], list[int]] = {}
        for reference in references:
            words = reference.split()
            self.words += len(words)
            for grams in ngrams(words):
                for gram, count in grams.items():
                    held = self.holding.setdefault(gram, [])
                    held.extend([0] * (count - len(held)))
                    for times in range(count):
                        held[times] += 1

    def bleu_4(self, hypothesis: str) -> float:
        """pycocoevalcap's value, with its small constants (1e-15 and 1e-9) against division by nothing."""
        words = hypothesis.split()
        product = 1.0
        for order, grams in enumerate(ngrams(words)):
            found = 0
            for gram, count in grams.items():
                held = self.holding.get(gram)
                if held is not None:
                    found += held[0] if count == 1 else sum(held[:count])
            product *= (found + 1e-15) / (self.studies * max(0, len(words) - order) + 1e-9)
        ratio = (self.studies * len(words) + 1e-15) / (self.words + 1e-9)
        return product**0.25 * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


class _ConstantCider:
    """CIDEr of one hypothesis against many references, one per study.

    Its penalty depends on both lengths, so the sums over the references are kept by the reference's length: row (n-gram, how
    often the hypothesis has it), column length.
    """

    def __init__(self, references: list[str]) -> None:
        texts = [ngrams(reference.split()) for reference in references]
        self.studies, self.log_studies = len(texts), math.log(len(texts))
        self.holding = Counter(gram for grams in texts for order in grams for gram in order)
        self.lengths = np.array([sum(grams[1].values()) for grams in texts])  # pycocoevalcap counts bigrams
        self.first: dict[tuple[str, ...], tuple[int, int]] = {}  # n-gram -> its first row, how many rows
        most: Counter = Counter()
        for grams in texts:
            for order in grams:
                for gram, count in order.items():
                    most[gram] = max(most[gram], count)
        rows = 0
        for gram, count in most.items():
            self.first[gram] = rows, count
            rows += count
        self.sums = np.zeros((rows, int(self.lengths.max()) + 1))
        for grams, length in zip(texts, self.lengths):
            for order in grams:
                norm = self._norm(order)
                for gram, count in order.items():
                    first, times = self.first[gram]
                    if norm:
                        clipped = np.minimum(np.arange(1, times + 1), count)
                        self.sums[first : first + times, length] += clipped * count * self._weight(gram) ** 2 / norm

    def _weight(self, gram: tuple[str, ...]) -> float:
        return self.log_studies - math.log(max(1, self.holding[gram]))

    def _norm(self, order: Counter) -> float:
        return math.sqrt(sum((count * self._weight(gram)) ** 2 for gram, count in order.items()))

    def cider(self, hypothesis: str) -> float:
        """pycocoevalcap's value (0..10): n-gram weights from the references, counts clipped, sigma 6."""
        grams = ngrams(hypothesis.split())
        by_length = np.zeros(self.sums.shape[1])
        for order in grams:
            known = [(self.first[gram], count) for gram, count in order.items() if gram in self.first]
            norm = self._norm(order)
            if known and norm:
                rows = [first + min(count, times) - 1 for (first, times), count in known]
                by_length += self.sums[rows].sum(0) / norm
        apart = np.arange(len(by_length)) - sum(grams[1].values())
        return float(10 / 4 * (by_length * np.exp(-(apart**2) / (2 * 6.0**2))).sum() / self.studies)
