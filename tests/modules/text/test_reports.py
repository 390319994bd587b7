"""Cleaning against a literal reading of the rule, the references of scoring, the predictions file."""

import csv
import json
import os
import random
import re

import pytest
from conftest import SHARED

from modules.errors import InputError
from modules.scoring.predictions import COLUMNS, R2GenReferences, read_predictions, write_predictions
from modules.text.cleaning import clean_report, count_words

needs_shared = pytest.mark.skipif(not (SHARED / "iu_xray/annotation.json").exists(), reason="no shared data here")


def literal_cleaning(text: str, rule: str) -> str:
    """The rule word by word, as slow as it reads."""
    steps = [("..", ".")] * 3
    if rule == "mimic_cxr":
        steps = [("\n", " ")] + [("__", "_")] * 7 + [("  ", " ")] * 6 + [("..", ".")] * 6
    steps += [("1. ", ""), (". 2. ", ". "), (". 3. ", ". "), (". 4. ", ". "), (". 5. ", ". ")]
    steps += [(" 2. ", ". "), (" 3. ", ". "), (" 4. ", ". "), (" 5. ", ". ")]
    for old, new in steps:
        text = text.replace(old, new)
    sentences = []
    for sentence in text.strip().lower().split(". "):
        for sign in "\"/\\'":
            sentence = sentence.replace(sign, "")
        sentences.append(re.sub(r"[.,?;*!%^&_+(){}\]:-\[]", "", sentence.strip().lower()))
    return " . ".join(sentences) + " ."


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("The Heart is normal. No effusion.", "the heart is normal . no effusion ."),
        ("1. Clear lungs. 2. No effusion.", "clear lungs . no effusion ."),
        ("Chest: AP/lateral; well-aged (see above)!", "chest aplateral well-aged see above ."),
        ("Done.. . Next", "done .  . next ."),
        ("", " ."),
    ],
)
def test_cleaning_is_pinned(text, cleaned):
    assert clean_report(text, "iu_xray") == cleaned


@pytest.mark.parametrize("rule", ["iu_xray", "mimic_cxr"])
def test_cleaning_equals_its_literal_form(rule):
    draw = random.Random(0)
    signs = "12345.. _\n\t\"/\\'aAZİΣß:-<=>@[]{}()*!%^&+,;? "
    for _ in range(20_000):
        text = "".join(draw.choices(signs, k=draw.randrange(40)))
        assert clean_report(text, rule) == literal_cleaning(text, rule), repr(text)


def test_unknown_rule_lists_the_known():
    with pytest.raises(InputError, match="iu_xray, mimic_cxr"):
        clean_report("x", "mimic")


def test_references_cut_and_replace():
    references = R2GenReferences(["Clear lungs. Clear heart."] * 2 + ["Odd."], "iu_xray", threshold=2, max_words=5)
    assert references.words == {"clear", "lungs", "heart", ".", "<unk>"}
    assert references.r2gen("Clear odd lungs. New heart.") == "clear <unk> lungs . <unk>"
    assert references.clean("Clear odd lungs.") == "clear odd lungs ."
    assert set(references.row("a", "Odd.", "x", constant="y")) == {*COLUMNS, "reference_cvt2", "constant"}
    assert R2GenReferences(["a"], "mimic_cxr").max_words == 99
    with pytest.raises(InputError, match="no training report"):
        R2GenReferences([], "iu_xray")


def test_count_words():
    assert count_words(["a b .", "b ."]) == {"a": 1, "b": 2, ".": 2}


def row(study: str, text: str, **more: str) -> dict:
    return {"id": study, **dict.fromkeys(COLUMNS[1:], text), **more}


STRANGE = [
    "NA",
    "",
    "null",
    "nan",
    "1.0",
    'say "no", twice',
    "two\nlines",
    "two\r\nlines\r",
    "\ttab ",
    "😀|||<b>é",
    "\ufeffx",
]


def test_predictions_come_back_as_they_were(tmp_path):
    rows = [row(str(number), text, label=text) for number, text in enumerate([*STRANGE, "long " * 50_000])]
    path = write_predictions(tmp_path / "new" / "predictions.csv", rows)
    assert read_predictions(path) == rows
    assert os.listdir(path.parent) == ["predictions.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_predictions(tmp_path / "p.csv", [row("old", "x")])
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match=r"cannot write .*p.csv \(disk full\); [\d,]+ MiB are free there"):
        write_predictions(path, [row("new", "x")])
    assert read_predictions(path)[0]["id"] == "old"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_surrogates_do_not_lose_the_file(tmp_path):
    assert read_predictions(write_predictions(tmp_path / "p.csv", [row("a", "x\ud800y")]))[0]["prediction"] == "x?y"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no study"),
        ([row("a", "x"), row("a", "y")], "more than once, such as a"),
        ([{"id": "a", "prediction": "x"}], "lacks reference, reference_clean, reference_r2gen"),
        ([row("a", None)], "not a text but None"),
        ([row("a", "x"), row("b", "x", extra="y")], "other columns"),
    ],
)
def test_bad_rows_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        write_predictions(tmp_path / "p.csv", rows)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        (",".join(COLUMNS) + "\n", "no study"),
        ("id,prediction\na,b\n", "lacks the columns reference, reference_clean, reference_r2gen"),
        (",".join(COLUMNS) + "\na,b\n", "row 2 has 2 values"),
        (",".join(COLUMNS) + "\n" + "a,b,c,d,e\n" * 2, "more than once"),
        (",".join(COLUMNS) + '\n"a,b', "cannot be read"),
        (",".join((*COLUMNS, "id")) + "\na,b,c,d,e,f\n", "occurs twice"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(path)
    with pytest.raises(InputError, match="no such"):
        read_predictions(tmp_path / "none.csv")


@pytest.mark.shared
@needs_shared
def test_real_reports():
    splits = json.loads((SHARED / "iu_xray/annotation.json").read_text())
    for rule in ("iu_xray", "mimic_cxr"):
        for study in splits["train"] + splits["val"] + splits["test"]:
            assert clean_report(study["report"], rule) == literal_cleaning(study["report"], rule)
    assert len(R2GenReferences([study["report"] for study in splits["train"]], "iu_xray").words) == 760


def test_references_of_protocol_cvt2_have_the_limits_of_iu():
    training = ["alpha " * 3 + "beta " * 10]
    references = R2GenReferences(training, rule="mimic_cxr")
    text = "alpha beta gamma " * 40
    assert references.r2gen(text).split()[:3] == ["<unk>", "beta", "<unk>"] and len(references.r2gen(text).split()) == 99
    assert references.cvt2(text).split()[:3] == ["alpha", "beta", "<unk>"] and len(references.cvt2(text).split()) == 59
    row = R2GenReferences(training, rule="iu_xray").row("a", text, "x")
    assert row["reference_cvt2"] == row["reference_r2gen"]
