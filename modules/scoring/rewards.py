"""Rewards of self-critical training: a number per report, from its text and its study's reference.

`--rl_reward "cider=1 ce13=1"` adds rows of REWARDS, each by its weight and divided by its own deviation at the start.
N reports; a text is as generated, a reference both as written (`raw`) and as protocol r2gen prepares it (`text`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from modules.errors import InputError
from modules.scoring.clinical import Labeler, label_by_rules, positive
from modules.scoring.metrics import prepare, rouge_l
from modules.scoring.optional_metrics import radgraph_values
from modules.text.labels import CHEXPERT_14, NO_FINDING

FINDINGS = [number for number, label in enumerate(CHEXPERT_14) if label != NO_FINDING]
ORDERS = 4  # of n-grams


class Reference(NamedTuple):
    """A study's report: as protocol r2gen prepares it, and as written."""

    text: str
    raw: str


def ngrams(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """All n-grams of 1 to 4 words."""
    return (tuple(words[at : at + n]) for n in range(1, ORDERS + 1) for at in range(len(words) - n + 1))


class Cider:
    """CIDEr as pycocoevalcap computes it (0..10), but with the document frequencies of the training reports, which stay.

    training: prepared texts. So a study's value does not depend on the studies beside it. Source: Vedantam et al. 2015.
    """

    def __init__(self, training: Iterable[str], sigma: float = 6.0) -> None:
        seen: Counter[tuple[str, ...]] = Counter()
        reports = 0
        for text in training:
            seen.update(set(ngrams(text.split())))
            reports += 1
        self.known, self.most = {gram: math.log(n) for gram, n in seen.items() if n > 1}, math.log(max(reports, 1))
        self.sigma, self.reference = sigma, lru_cache(maxsize=10_000)(self.vectors)

    def vectors(self, text: str) -> tuple[dict, list[float], int]:
        """Weighted counts of a text's n-grams, their norm by order, the number of bigrams."""
        words = text.split()
        weights = {gram: n * (self.most - self.known.get(gram, 0.0)) for gram, n in Counter(ngrams(words)).items()}
        squares = [0.0] * ORDERS
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], max(len(words) - 1, 0)

    def __call__(self, references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
        return np.array([self.value(reference.text, prepare(text)) for reference, text in zip(references, texts)])

    def value(self, reference: str, text: str) -> float:
        theirs, their_norms, their_length = self.reference(reference)
        ours, our_norms, our_length = self.vectors(text)
        common = [0.0] * ORDERS
        for gram, weight in ours.items():
            other = theirs.get(gram)
            if other is not None:
                common[len(gram) - 1] += min(weight, other) * other
        cosines = sum(c / (a * b) if a and b else c for c, a, b in zip(common, our_norms, their_norms))
        return 10 * cosines / ORDERS * math.exp(-((our_length - their_length) ** 2) / (2 * self.sigma**2))


def bleu4(references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
    """BLEU-4 of each report, 0..1; orders above one are counted with one more hit and one more n-gram (Lin and Och 2004)."""
    return np.array([_bleu4(reference.text.split(), prepare(text).split()) for reference, text in zip(references, texts)])


def _bleu4(reference: list[str], words: list[str]) -> float:
    if not words:
        return 0.0
    ours, theirs = Counter(ngrams(words)), Counter(ngrams(reference))
    hits = [0] * ORDERS
    for gram, count in ours.items():
        hits[len(gram) - 1] += min(count, theirs[gram])
    if not hits[0]:
        return 0.0
    logs = [math.log((hit + (n > 0)) / (max(len(words) - n, 0) + (n > 0))) for n, hit in enumerate(hits)]
    return math.exp(sum(logs) / ORDERS + min(0.0, 1 - len(reference) / len(words)))


def rouge(references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each report, 0..1."""
    return np.array([rouge_l(reference.text, prepare(text)) for reference, text in zip(references, texts)])


class Findings:
    """F1 over a study's 13 findings, 0..1: 1 where neither side has one, 0 for an empty report; uncertain counts as positive.

    Not the `example` average of modules/scoring/clinical.py, where nothing on either side is 0: a normal report of a normal
    study must be worth something.
    """

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler
        self.known: dict[str, np.ndarray] = {}

    def found(self, texts: Sequence[str]) -> np.ndarray:
        """Bool [N, 13]."""
        return positive(self.labeler(texts), "u1")[:, FINDINGS]

    def expected(self, references: Sequence[Reference]) -> np.ndarray:
        """The references' findings, bool [N, 13]; each is read once."""
        new = [raw for raw in dict.fromkeys(reference.raw for reference in references) if raw not in self.known]
        if new:
            self.known |= dict(zip(new, self.found(new)))
        return np.stack([self.known[reference.raw] for reference in references])

    def counts(self, references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
        """Hits, findings of the reports, findings of the references: [3, N]."""
        there, said = self.expected(references), self.found(texts)
        return np.stack([(there & said).sum(1), said.sum(1), there.sum(1)]).astype(float)

    def __call__(self, references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
        hits, said, there = self.counts(references, texts)
        values = np.where(said + there == 0, 1.0, 2 * hits / np.maximum(said + there, 1))
        return values * [bool(text.strip()) for text in texts]


class CorpusFindings(Findings):
    """2 hits - F x findings of the report, with F the micro-F1 so far: what the report adds to the micro-F1 of all.

    F is that of all reports of the epoch before, at first of the start's. An empty report is worth what its lack of findings is.
    """

    def __init__(self, labeler: Labeler) -> None:
        super().__init__(labeler)
        self.f1, self.sums = 0.0, np.zeros(3)

    def __call__(self, references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
        counts = self.counts(references, texts)
        self.sums += counts.sum(1)
        return 2 * counts[0] - self.f1 * counts[1]

    def settle(self, sums: Sequence[float]) -> None:
        """Go on with F of these sums of an epoch, over all processes."""
        hits, said, there = sums
        self.f1, self.sums = 2 * hits / max(said + there, 1), np.zeros(3)


class RadGraph:
    """RadGraph F1 at its level "partial", by the optional package. Source: Delbrouck et al. 2022."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def __call__(self, references: Sequence[Reference], texts: Sequence[str]) -> np.ndarray:
        raw = [reference.raw for reference in references]
        return np.array(radgraph_values("radgraph-xl", raw, list(texts), self.folder)[1], dtype=float)


class Tools(NamedTuple):
    """What rewards are made with. cider: by the training reports; chexbert: gives the user's labeler."""

    cider: Cider
    chexbert: Callable[[], Labeler]
    radgraph_dir: str | None = None


# name -> function of Tools that makes it
REWARDS: dict[str, Callable[[Tools], Callable]] = {
    "cider": lambda tools: tools.cider,
    "bleu4": lambda tools: bleu4,
    "rouge_l": lambda tools: rouge,
    "ce13": lambda tools: Findings(label_by_rules),
    "ce13_corpus": lambda tools: CorpusFindings(label_by_rules),
    "chexbert13": lambda tools: Findings(tools.chexbert()),
    "chexbert13_corpus": lambda tools: CorpusFindings(tools.chexbert()),
    "radgraph": lambda tools: RadGraph(tools.radgraph_dir),
}


def read_weights(text: str) -> dict[str, float]:
    """ "cider=1 ce13=0.5" -> {name: weight}; InputError for anything else."""
    parts = [part.partition("=") for part in text.replace(",", " ").split()]
    names = [name for name, _, _ in parts]
    for name, _, weight in parts:
        try:
            sound = name in REWARDS and names.count(name) == 1 and math.isfinite(float(weight)) and float(weight) > 0
        except ValueError:
            sound = False
        if not sound:
            raise InputError(f"--rl_reward {text}: write name=weight, each once, weights above 0; known are {', '.join(REWARDS)}")
    if not parts:
        raise InputError(f"--rl_reward is empty; known are {', '.join(REWARDS)}")
    return {name: float(weight) for name, _, weight in parts}


class Reward:
    """The weighted sum of rewards, each divided by its deviation over the samples at the start (`freeze`).

    reference: function from a study's id to its Reference.
    """

    def __init__(self, weights: Mapping[str, float], tools: Tools, reference: Callable[[str], Reference]) -> None:
        self.weights, self.reference = dict(weights), reference
        self.parts = {name: REWARDS[name](tools) for name in weights}
        self.deviations: dict[str, float] = {}

    def values(self, ids: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What each part says of each report, [N], in its own unit."""
        references = [self.reference(study) for study in ids]
        return {name: part(references, texts) for name, part in self.parts.items()}

    def __call__(self, ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float64 [N]."""
        values = self.values(ids, texts)
        return np.sum([self.weights[name] / self.deviations[name] * value for name, value in values.items()], axis=0)

    def freeze(self, values: Mapping[str, Sequence[float] | np.ndarray]) -> None:
        """Take the deviations of these values, of samples at the start. InputError where one is the same for all samples."""
        found = {name: float(np.std(values[name])) for name in self.weights}
        flat = [name for name, deviation in found.items() if not deviation > 1e-9]
        if flat:
            raise InputError(
                f"--rl_reward {', '.join(flat)}: the same for every sample at the start, so there is nothing to learn from; "
                "train longer by cross-entropy first, or raise --rl_temperature"
            )
        self.deviations = found

    def corpus_parts(self) -> list[CorpusFindings]:
        return [part for part in self.parts.values() if isinstance(part, CorpusFindings)]

    def state(self) -> dict:
        """Plain values, for checkpoints."""
        return {"deviations": dict(self.deviations), "f1": [part.f1 for part in self.corpus_parts()]}

    def load_state(self, state: Mapping) -> None:
        self.deviations = dict(state["deviations"])
        for part, f1 in zip(self.corpus_parts(), state["f1"]):
            part.f1 = f1
