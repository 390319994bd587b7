"""The constant report: the training report that does best when given to every validation study."""

import math
from collections import Counter
from collections.abc import Iterable

from modules.errors import InputError
from modules.scoring.metrics import prepare
from modules.scoring.predictions import R2GenReferences


def best_constant_report(
    training_reports: Iterable[str], validation_reports: Iterable[str], references: R2GenReferences
) -> str:
    """The training report, cleaned, that does best when given to every validation study: highest r2gen/BLEU_4.

    Both are raw texts; `references` prepares them (the words counted in training, as for the test references). The
    first wins among equals. BLEU is pycocoevalcap's corpus BLEU exactly. One text for all studies needs, per n-gram,
    only how many references hold it at least 1, 2, ... times, so a candidate costs its own length (270,000: half a
    minute).
    Raises InputError when either side is empty.
    """
    expected = [prepare(references.r2gen(text)) for text in validation_reports]
    candidates = {}
    for text in training_reports:
        cleaned = references.clean(text)
        candidates.setdefault(prepare(cleaned), cleaned)
    if not expected or not candidates:
        raise InputError("the constant report needs training reports and validation reports")
    scorer = _ConstantBleu(expected)
    return candidates[max(candidates, key=scorer.bleu_4)]


def _ngrams(words: list[str]) -> list[Counter]:
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
            for grams in _ngrams(words):
                for gram, count in grams.items():
                    held = self.holding.setdefault(gram, [])
                    held.extend([0] * (count - len(held)))
                    for times in range(count):
                        held[times] += 1

    def bleu_4(self, hypothesis: str) -> float:
        """pycocoevalcap's value, with its small constants (1e-15 and 1e-9) against division by nothing."""
        words = hypothesis.split()
        product = 1.0
        for order, grams in enumerate(_ngrams(words)):
            found = 0
            for gram, count in grams.items():
                held = self.holding.get(gram)
                if held is not None:
                    found += held[0] if count == 1 else sum(held[:count])
            product *= (found + 1e-15) / (self.studies * max(0, len(words) - order) + 1e-9)
        ratio = (self.studies * len(words) + 1e-15) / (self.words + 1e-9)
        return product**0.25 * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)
