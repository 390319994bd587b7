"""Reports cleaned once and kept as numbers: the same words, counts and ids as from the raw texts."""

import numpy as np
import pytest

from data.miniature_set.text import sample
from modules.scoring.predictions import R2GenReferences
from modules.text import corpus
from modules.text.cleaning import clean_report
from modules.text.corpus import Corpus, corpus_of
from modules.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def reports():
    odd = ["", "1. Heart. 2. Lungs.. clear", "A word\nanother | wörd ::: X-ray", "same same same same."]
    return [sample(5, number).report for number in range(80)] + odd


@pytest.mark.parametrize("rule", ["iu_xray", "mimic_cxr"])
def test_same_as_from_raw_reports(reports, rule):
    made = Corpus.of(reports, rule)
    for number, report in enumerate(reports):
        words = [made.words[k] for k in made.flat[made.starts[number] : made.starts[number + 1]]]
        assert words == clean_report(report, rule).split()
    for marks in ({}, {"padding": 0, "bos": 0, "eos": 0}):
        slow = Tokenizer.build(reports, cleaning=rule, threshold=3, strip=["lungs"], **marks)
        fast = Tokenizer.build(made, cleaning=rule, threshold=3, strip=["lungs"], **marks)
        assert fast.state_dict() == slow.state_dict()
        for length in (5, 40, 200):
            rows = [slow.encode_padded(report, length) for report in reports]
            assert np.array_equal(made.padded(slow, length), np.array(rows))
    assert R2GenReferences(made, rule).words == R2GenReferences(reports, rule).words
    some = made.take([3, 82, 0])
    assert [clean_report(reports[n], rule).split() for n in (3, 82, 0)] == [
        [some.words[k] for k in some.flat[a:b]] for a, b in zip(some.starts, some.starts[1:])
    ]


def test_kept_and_read_back(reports, tmp_path, monkeypatch, capsys):
    path = tmp_path / "words.npz"
    first = corpus_of(reports, "iu_xray", path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "clean_report", lambda *words: pytest.fail("cleaned twice"))
        again = corpus_of(reports, "iu_xray", path)
    assert again.words == first.words and np.array_equal(again.flat, first.flat) and np.array_equal(again.starts, first.starts)
    path.write_bytes(path.read_bytes()[:-200])
    assert corpus_of(reports, "iu_xray", path).counts() == first.counts()
    assert "cleaning the reports again" in capsys.readouterr().out


def test_another_rule_is_refused(reports):
    with pytest.raises(ValueError, match="cleans by"):
        Corpus.of(reports, "iu_xray").padded(Tokenizer.build(reports, cleaning="mimic_cxr", threshold=1), 10)
