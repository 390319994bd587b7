"""The table of truth on the miniature set: it is resumed, it refuses what does not belong together, its numbers are the runs'."""

import importlib
import json
import re
import shutil
from types import SimpleNamespace

import pytest

import main_test
import main_train
from benchmarks.truth import __main__ as truth
from benchmarks.truth.rows import DECODINGS, ROWS, SYSTEMS, training_flags
from benchmarks.truth.table import cell, check_alike, write_table
from models import SYSTEMS as KINDS
from modules.errors import InputError
from modules.flags import parse

COMMANDS = {"main_train.py": main_train.main, "main_test.py": main_test.main}


@pytest.fixture(scope="module")
def ran():
    """The commands that ran, in this process instead of their own."""
    return []


@pytest.fixture(scope="module")
def out(mini, tmp_path_factory, ran):
    """A table of two seeds of R2GenCMN."""
    folder = tmp_path_factory.mktemp("truth")

    def run(words, log):
        ran.append(words)
        if words[0] == "-m":
            importlib.import_module(words[1]).main(words[2:])
        else:
            COMMANDS[words[0]](words[1:])
        return 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth, "run", run)
        for way in list(DECODINGS)[2:]:
            patch.delitem(DECODINGS, way)
        command(mini, folder, "1")
        command(mini, folder, "1", "2")
    return folder


def command(mini, folder, *seeds, rows=("r2gencmn",)):
    data = ["--dataset_name", "miniature", "--data_dir", str(mini / "data"), "--out", str(folder)]
    small = ["--mem_size", "16", "--topk", "4", "--device", "cpu", "--threshold", "1"]
    truth.main([*data, "--rows", *rows, "--seeds", *seeds, *small])


@pytest.mark.slow
def test_two_seeds_make_a_row(out, ran):
    """What is finished is not run again; the second seed keeps the first one's decoding."""
    counts = {name: sum(words[0] == name or words[1] == name for words in ran) for name in
              ("knowledge.train_diagnosisbot", "main_train.py", "main_test.py")}  # fmt: skip
    assert counts == {"knowledge.train_diagnosisbot": 1, "main_train.py": 2, "main_test.py": 2 + 2}
    rows = [json.loads((out / "r2gencmn" / seed / "row.json").read_text()) for seed in "12"]
    assert rows[0]["decoding"] == rows[1]["decoding"] and rows[0]["extractor"] == rows[1]["extractor"]
    ways = [path.parent for path in sorted((out / "r2gencmn" / "1").glob("val_*/metrics_val.json"))]
    found = {path.name: json.loads((path / "metrics_val.json").read_text())["metrics"]["r2gen/CIDEr"] for path in ways}
    best = max((f"val_{way}" for way in DECODINGS if f"val_{way}" in found), key=found.get).removeprefix("val_")
    assert rows[0]["decoding"] == best and rows[0]["hours"] > 0 and rows[0]["image_use"] is not None
    text = (out / "table.md").read_text()
    assert cell([row["metrics"]["r2gen/BLEU_1"] for row in rows]) in text
    for baseline in ("consensus", "constant_cider", "constant"):
        assert re.search(rf"R2GenCMN *\| *{baseline} *\| *[+-]0\.\d{{3}} \(", text) and f"| {baseline} *" in text
    assert "R2GenCMN" in (out / "table.tex").read_text() and "<td>R2GenCMN</td>" in (out / "table.html").read_text()
    assert not any("--split" in words and words[words.index("--split") + 1] == "test" and "--load" not in words for words in ran)


@pytest.mark.slow
def test_other_settings_are_refused(out, mini, capsys):
    with pytest.raises(SystemExit):
        truth.main(["--dataset_name", "miniature", "--data_dir", str(mini / "data"), "--out", str(out), "--d_model", "64"])
    assert "says other flags than these" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_of_another_extractor_are_refused(out, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    path = tmp_path / "copy" / "r2gencmn" / "2" / "row.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extractor": "another"}))
    with pytest.raises(InputError, match="differ in their extractor"):
        write_table(tmp_path / "copy")


def test_what_makes_rows_alike():
    row = {"row": "r2gen", "seed": 1, "data": {"test": "x"}, "annotation": "a", "extractor": "e"}
    check_alike([row, row])
    for what in ("data", "annotation", "extractor"):
        with pytest.raises(InputError, match=f"differ in their {what}"):
            check_alike([row, row | {what: "other"}])


def test_a_row_that_fails_does_not_stop_the_others(mini, tmp_path, monkeypatch, capsys):
    tried = []

    def row(self, name, seed):
        tried.append(name)
        raise truth.Failed("main_train.py ended with 1, see train.log")

    monkeypatch.setattr(truth.Truth, "start", lambda self: None)
    monkeypatch.setattr(truth.Truth, "row", row)
    with pytest.raises(SystemExit):
        command(mini, tmp_path, "1", rows=("r2gencmn", "r2gen"))
    assert tried == ["r2gencmn", "r2gen"] and "r2gen, seed 1: main_train.py ended with 1" in capsys.readouterr().err


def test_time_without_gaps():
    log = [{"event": "system", "time": 10}, {"event": "epoch", "time": 40}, {"event": "system", "time": 9000},
           {"event": "epoch", "time": 9020}]  # fmt: skip
    assert truth.seconds_of(log) == 50


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.of is None])
@pytest.mark.parametrize("dataset", list(truth.RECIPES))
def test_every_row_is_a_command_that_its_system_understands(name, dataset, tmp_path):
    recipe = truth.RECIPES[dataset]
    args = parse(["--dataset_name", dataset, *training_flags(name, recipe)], "train", systems=KINDS)
    assert args.extractor_freeze == "all" and args.model == ROWS[name].model
    problems = SimpleNamespace(texts=[], check=lambda holds, text: holds or problems.texts.append(text), add=print)
    KINDS[args.model].check(args, problems, training=True)
    assert [text for text in problems.texts if "no file" not in text and "--gid distils" not in text] == []


def test_the_default_rows_are_all_systems():
    assert {ROWS[name].model for name in SYSTEMS} == set(KINDS) and SYSTEMS[0] == "r2gencmn"
