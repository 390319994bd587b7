"""Output of training for people: rows of epochs, a line while something takes long, a last line with what to type next."""

import re
import time

import pytest
from conftest import call, inputs

from modules import progress
from modules.progress import EpochTable, Lines, duration, tracked, working


def test_rows_are_aligned_under_one_heading():
    table = EpochTable(10, "r2gen/CIDEr")
    first = table.row(1, {"ce": 4.25, "loss": 4.25}, 20.0, value=None, best=None, best_epoch=0).splitlines()
    second = table.row(2, {"ce": 12.5, "loss": 12.5}, 123.4, value=0.1234, best=0.1234, best_epoch=2).splitlines()
    assert len(first) == 2 and len(second) == 1 and {len(line) for line in first + second} == {len(first[0])}
    assert first[0].split() == ["epoch", "ce", "loss", "r2gen/CIDEr", "best", "studies/s", "left"]
    assert "None" not in first[1] and second[0].split()[3:6] == ["0.1234", "0.1234", "(2)"]


def test_long_jobs_are_not_silent(monkeypatch, capsys):
    """A line from a thread of its own, so that one long step is told too; nothing more once it has ended."""
    monkeypatch.setattr(progress, "EVERY", 0.02)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(tracked([1], desc="x"), Lines)
    with working("scoring"):
        time.sleep(0.3)
    for _ in tracked(range(3), desc="images"):
        time.sleep(0.15)
    text = capsys.readouterr().err
    assert re.search(r"^scoring: 0 s$", text, re.MULTILINE) and re.search(r"^images: 1 of 3, 0 s, \d s left$", text, re.MULTILINE)
    time.sleep(0.1)
    assert "scoring" not in capsys.readouterr().err


def test_other_processes_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert list(tracked(range(3), desc="images")) == [0, 1, 2] and not capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (600, "10 min"), (12000, "3 h 20 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_training_says_what_matters_and_a_finished_one_says_so(mini, tmp_path):
    words = ["--model", "r2gencmn", *[word for word in inputs(mini) if word != "--oracle_labels"]]
    cut = words.index("--diagnosis_path")
    del words[cut : cut + 2]
    cut = words.index("--knowledge_path")
    del words[cut : cut + 2]
    words += ["--mem_size", "16", "--topk", "4", "--beam_size", "1", "--save_dir", str(tmp_path / "run")]
    out = call("main_train.py", *words).stdout
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d/2 ", line)]
    assert [row[0] for row in rows] == ["1/2", "2/2"] and "None" not in out
    assert out.count("studies/s") == 1 and len(re.findall(r"r2gen/", out)) == 2
    best = tmp_path / "run" / "best.pt"
    assert out.endswith(f": {best}\nnext: python main_test.py --load {best}\n") and best.is_file()
    out = call("main_train.py", *words, "--resume").stdout
    assert "this training has ended, after epoch 2; a larger --epochs" in out and f"--load {best}" in out and "None" not in out
