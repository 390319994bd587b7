"""Greedy, beam and sampled decoding: cached equals uncached, neighbours and batch size do not matter."""

import itertools

import pytest
import torch

from data.batches import Batch
from models.ekagen import EKAGen
from modules import decoding
from modules.decoding import DecodingSettings, decode, generate_reports
from modules.nets.knowledge_base import KnowledgeBase
from modules.nets.visual_extractor import VisualExtractor

WORDS, LENGTH = 12, 10


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(5)
    keys = torch.tensor([[0, 0], [0, 1], [1, 1]])
    base = KnowledgeBase(keys, entries=torch.randn(3, LENGTH, 16), sizes=[5, 2, 1])
    extractor = VisualExtractor("resnet18", freeze="none", dilate=False)
    system = EKAGen(
        extractor, vocab_size=WORDS, width=16, heads=2, inner=32, layers=2, positions=LENGTH, knowledge=base
    )
    for part in (system.head, system.embedding.word, system.embedding.position, system.project):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.6)  # spread the logits, so that reports end at different places
    return system.eval()


def batch_of(*numbers: int, views=1) -> Batch:
    images = torch.stack([torch.randn(views, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in numbers])
    diagnosis = torch.tensor([[n % 2, n // 2 % 2] for n in numbers])
    return Batch([f"s{n}" for n in numbers], masked_images=images, diagnosis=diagnosis)


ALL = tuple(range(16))
SETTINGS = {
    "greedy": DecodingSettings(max_length=9),
    "least length": DecodingSettings(max_length=9, min_length=4),
    "trigrams": DecodingSettings(max_length=9, block_trigrams=True),
    "beam": DecodingSettings(max_length=9, beam_size=3),
    "beam avg": DecodingSettings(max_length=9, beam_size=3, length_penalty="avg"),
    "beam released": DecodingSettings(max_length=9, beam_size=3, beam_search="released"),
    "sample": DecodingSettings(max_length=9, sample=True, temperature=1.5, top_k=5, seed=3),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [1, 3, 16])
def test_report_ignores_its_batch(system, name, size):
    alone = [generate_reports(system, batch_of(n), SETTINGS[name])[0] for n in ALL]
    parts = [ALL[start : start + size] for start in range(0, 16, size)]
    together = [report for part in parts for report in generate_reports(system, batch_of(*part), SETTINGS[name])]
    assert together == alone
    if name in ("greedy", "trigrams", "sample"):
        assert len({len(report) for report in alone}) > 1, "the case is too easy: all end at once"


@pytest.mark.parametrize("name", SETTINGS)
def test_asking_seldom_changes_nothing(system, name, monkeypatch):
    """As on a GPU, where ended reports run on for some words before they are noticed."""
    wanted = generate_reports(system, batch_of(*ALL), SETTINGS[name])
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", 4)
    assert generate_reports(system, batch_of(*ALL), SETTINGS[name]) == wanted


def test_cached_greedy_equals_full_passes(system):
    batch = batch_of(*ALL)
    memory = system.encode(batch)
    cached = decode(system, memory, DecodingSettings(max_length=9), batch.ids, stop=False)
    tokens = torch.ones(16, 1, dtype=torch.long)
    for _ in range(9):  # the published way: the whole decoder again for every word (with no padding in sight)
        padded = torch.cat([tokens, torch.full((16, 10 - tokens.shape[1]), 3)], 1)
        tokens = torch.cat([tokens, system.logits(memory, padded)[:, tokens.shape[1] - 1].argmax(-1, keepdim=True)], 1)
    assert cached == tokens[:, 1:].tolist()


@torch.no_grad()
def total(system, memory, words: list[int]) -> float:
    """Log-probability of `words` and the end mark."""
    probabilities = system.logits(memory, torch.tensor([[1, *words]]))[0].log_softmax(-1)
    return sum(float(probabilities[place, word]) for place, word in enumerate([*words, 2]))


def test_wide_beam_finds_the_best_report(system):
    """Against every report of up to three words."""
    memory = system.encode(batch_of(7))
    settings = DecodingSettings(max_length=3, beam_size=WORDS**2)
    found = decode(system, memory, settings, ["s7"])[0]
    words = [word for word in range(1, WORDS) if word != 2]
    every = [list(r) for n in range(4) for r in itertools.product(words, repeat=n)]
    best = max(every, key=lambda report: total(system, memory, report))
    assert found == best


def test_a_missing_view_changes_nothing(system):
    """One image, and the same image beside an absent second one."""
    one, two = batch_of(3), batch_of(3)
    two.masked_images = torch.cat([two.masked_images, torch.randn(1, 1, 3, 32, 32)], 1)
    two.view_mask = torch.tensor([[True, False]])
    expected = system.logits(system.encode(one), torch.tensor([[1, 5, 6]]))
    found = system.logits(system.encode(two), torch.tensor([[1, 5, 6]]))
    spread = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * spread)


def test_settings_that_do_not_go_together():
    for wrong in ({"beam_size": 3, "sample": True}, {"beam_size": 2, "block_trigrams": True}, {"min_length": 200}):
        with pytest.raises(ValueError):
            DecodingSettings(**wrong)
