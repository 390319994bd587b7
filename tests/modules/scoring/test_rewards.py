"""Rewards against their definitions, and the guards on reports that have gone wrong in a known way."""

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider as Published

from modules.errors import InputError
from modules.scoring import guards
from modules.scoring.clinical import label_by_rules
from modules.scoring.rewards import Cider, CorpusFindings, Findings, Reference, Reward, Tools, bleu4, read_weights

TRAINING = [
    "the heart is enlarged . there is a small left pleural effusion .",
    "the heart is normal . the lungs are clear .",
    "there is a right pneumothorax . the heart is normal .",
    "the lungs are clear . no effusion .",
]
OTHERS = [
    "the heart is enlarged . there is a large right pleural effusion .",
    "the lungs are clear .",
    "",
    "no effusion . the lungs are clear . the lungs are clear .",
]
REFERENCES = [Reference(text, text) for text in TRAINING]


def test_cider_is_the_published_one_of_the_training_reports():
    expected, predicted = ({n: [text] for n, text in enumerate(texts)} for texts in (TRAINING, OTHERS))
    wanted = Published().compute_score(expected, predicted)[1]
    ours = Cider(TRAINING)
    np.testing.assert_allclose(ours(REFERENCES, OTHERS), wanted, rtol=1e-9, atol=1e-12)
    assert ours(REFERENCES[:1], OTHERS[:1])[0] == pytest.approx(wanted[0])  # whatever stands beside it


def test_bleu_by_hand():
    reference = [Reference("a b c d e", "")]
    assert bleu4(reference, ["a b c d e"])[0] == pytest.approx(1)
    by_hand = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 5 / 4)  # one more hit and n-gram above order 1
    assert bleu4(reference, ["a b c x"])[0] == pytest.approx(by_hand)
    assert bleu4(reference, ["", "x y"][:1])[0] == bleu4(reference, ["x y"])[0] == 0


def test_findings_of_a_study():
    f1 = Findings(label_by_rules)
    normal, effusion = Reference("", "The lungs are clear."), Reference("", "Small left pleural effusion and cardiomegaly.")
    assert f1([normal], ["the heart is normal ."])[0] == 1  # 0/0
    assert f1([normal], [""])[0] == f1([effusion], [""])[0] == f1([normal], ["there is a pneumothorax ."])[0] == 0
    assert f1([effusion], ["pleural effusion ."])[0] == pytest.approx(2 / 3)
    assert f1([effusion], ["possible pleural effusion . the heart is enlarged ."])[0] == 1  # uncertain counts
    corpus = CorpusFindings(label_by_rules)
    corpus.f1 = 0.5
    assert corpus([effusion], ["pleural effusion . pneumothorax ."])[0] == pytest.approx(2 - 0.5 * 2)
    corpus.settle(corpus.sums)
    assert corpus.f1 == pytest.approx(2 * 1 / (2 + 2))


def test_the_sum_of_rewards():
    tools = Tools(Cider(TRAINING), chexbert=None)
    reward = Reward(read_weights("cider=2 ce13=1"), tools, dict(zip("abcd", REFERENCES)).get)
    values = reward.values(list("abcd"), OTHERS)
    reward.freeze(values)
    wanted = 2 * values["cider"] / values["cider"].std() + values["ce13"] / values["ce13"].std()
    np.testing.assert_allclose(reward(list("abcd"), OTHERS), wanted)
    other = Reward(read_weights("cider=2 ce13=1"), tools, dict(zip("abcd", REFERENCES)).get)
    other.load_state(reward.state())
    np.testing.assert_allclose(other(list("abcd"), OTHERS), wanted)
    with pytest.raises(InputError, match="same for every sample"):
        reward.freeze({"cider": [1.0, 1.0], "ce13": [0.0, 1.0]})


@pytest.mark.parametrize("text", ["", "cider", "cider=0", "cider=-1", "cider=1 cider=1", "wit=1", "cider=nan"])
def test_a_wrong_reward_is_said(text):
    with pytest.raises(InputError, match="--rl_reward"):
        read_weights(text)


def facts(texts, ended=True, entropy=1.0, cider=1.0):
    count = len(texts)
    return guards.report_facts(TRAINING[:count], texts, [ended] * count, [entropy] * count, [cider] * count)


def test_guards_notice_what_has_gone_wrong():
    start = {"greedy": facts(TRAINING), "samples": facts(TRAINING)}
    beside = {"samples": start["samples"], "references": guards.text_facts(TRAINING)}
    assert guards.warnings(start | beside, start) == []
    repeated = [f"{text} {text}" for text in TRAINING]
    cases = {
        "distinct_reports": facts([TRAINING[1]] * 4),
        "entropy": facts(TRAINING, entropy=0.5),
        "repeated_trigrams": facts(repeated),
        "words": facts(repeated),
        "findings": facts(["there is a pneumothorax and an effusion . cardiomegaly ."] * 4),
        "cut": facts(TRAINING, ended=False),
        "cider": facts(TRAINING, cider=0.9),
    }
    for name, now in cases.items():
        assert any(name in text for text in guards.warnings({"greedy": now} | beside, start)), name
    sides = guards.detail_f1(TRAINING[:1], ["small right pleural effusion ."])
    assert sides["side_f1"] == 0 and sides["size_f1"] == 1
