"""Nearest study and consensus by hand, and what must not matter."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from modules.scoring.retrieval import SIGMA, Consensus, neighbours


def test_neighbours_by_hand():
    training = np.array([[1, 0], [2, 2], [0, 3], [-1, 0], [3, 3]], dtype=np.float16)
    scored = np.array([[5, 0.1], [1, 1]], dtype=np.float16)
    assert neighbours(scored, training, 3).tolist() == [[0, 1, 4], [1, 4, 0]]  # equal cosines: the first wins
    assert neighbours(scored, training, 3, own=[[0], []]).tolist() == [[1, 4, 2], [1, 4, 0]]
    assert neighbours(scored, training, 100, own=[[0], [1, 4]]).shape == (2, 3)  # as many as each can have
    own = neighbours(training, training, 4, own=[[number] for number in range(5)])
    assert all(number not in row for number, row in enumerate(own.tolist()))


def test_neighbours_do_not_depend_on_how_many_are_compared_at_once(monkeypatch):
    draw = np.random.default_rng(0)
    training, scored = draw.normal(size=(300, 8)), draw.normal(size=(20, 8))
    training[200:] = training[:100]
    own = [[number, 299 - number] for number in range(20)]
    whole = neighbours(scored, training, 50, own)
    monkeypatch.setattr("modules.scoring.retrieval._ROWS", 7)
    assert (neighbours(scored, training, 50, own) == whole).all()
    cosines = scored @ training.T / np.linalg.norm(scored, axis=1)[:, None] / np.linalg.norm(training, axis=1)
    best = [max((round(c, 6), -n) for n, c in enumerate(row) if n not in own[s]) for s, row in enumerate(cosines)]
    assert whole[:, 0].tolist() == [-number for _, number in best]


def similarity(a: str, b: str, reports: list[str]) -> float:
    """The formula, word for word."""
    def grams(text, order):
        words = text.split()
        return Counter(zip(*(words[start:] for start in range(order))))

    total = 0.0
    for order in range(1, 5):
        holding = Counter(gram for text in reports for gram in grams(text, order))
        sides = [{g: c * math.log(len(reports) / holding[g]) for g, c in grams(text, order).items()} for text in (a, b)]
        norm = math.prod(math.sqrt(sum(v * v for v in side.values())) for side in sides)
        total += sum(value * sides[1].get(gram, 0) for gram, value in sides[0].items()) / norm / 4 if norm else 0
    return total * math.exp(-((len(a.split()) - len(b.split())) ** 2) / (2 * SIGMA**2))


@pytest.fixture
def reports() -> list[str]:
    draw, words = random.Random(1), "the heart is big normal no effusion edema lungs clear".split()
    # each n-gram counted once per report that holds it: no word twice in a report
    texts = [" ".join(draw.sample(words, draw.randrange(1, 10))) for _ in range(40)]
    return [*texts, *texts[:8], "", "one"]


def test_similarities_are_those_of_the_formula(reports):
    consensus = Consensus(reports)
    chosen = np.array([3, 0, 17, consensus.text_of[-2], consensus.text_of[-1], 29])
    texts = list(dict.fromkeys(reports))
    found = consensus.similarities(chosen)
    for i, a in enumerate(chosen):
        for j, b in enumerate(chosen):
            wanted = 1.0 if i == j else similarity(texts[a], texts[b], reports)
            assert found[i, j] == pytest.approx(wanted, abs=1e-12), (texts[a], texts[b])


def test_the_consensus_has_the_highest_mean_similarity(reports):
    consensus, draw = Consensus(reports), random.Random(2)
    for _ in range(20):
        near = draw.sample(range(len(reports) - 2), 12)
        means = [sum(1.0 if reports[a] == reports[b] else similarity(reports[a], reports[b], reports)
                     for b in near if b != a) for a in near]  # fmt: skip
        chosen = consensus.choose(np.array(near))
        assert means[near.index(chosen)] == pytest.approx(max(means), abs=1e-9)


def test_consensus_by_hand():
    texts = ["the lungs are clear .", "the lungs are clear today .", "edema .", "edema .", "a pacemaker is in place ."]
    consensus = Consensus(texts)
    assert consensus.choose(np.array([4, 2, 3, 0])) == 2  # two that say the same outvote the rest; the nearer one stands for both
    assert consensus.choose(np.array([4, 1, 0])) == 1  # alike by half: the nearer of the two
    assert consensus.choose(np.array([4])) == 4 and consensus.choose(np.array([4, 2])) == 4


def test_empty_reports():
    assert Consensus(["", "", ""]).choose(np.array([2, 0])) == 2
