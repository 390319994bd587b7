"""Training through the commands: resume is exact, a kill loses nothing that was saved, a full disk neither."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, call, inputs, run, same

from modules.artefact import write_atomic
from modules.checkpoint import CheckpointWriter, load_checkpoint, save_checkpoint, snapshot
from modules.errors import InputError
from modules.scoring.predictions import read_predictions


def train(mini, folder, *more, code=0):
    return call("main_train.py", *inputs(mini), "--no-adm", "--save_dir", folder, *more, code=code)


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):
    """A run of 2 epochs without distillation."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(mini, folder, "--no-gid")
    return folder


@pytest.mark.slow
def test_two_epochs_and_two_more_equal_four(mini, trained, tmp_path):
    train(mini, tmp_path / "four", "--no-gid", "--epochs", "4", "--num_workers", "2")
    halves = tmp_path / "halves"
    train(mini, halves, "--no-gid", "--epochs", "2")
    run("main_train.py", "--resume", "--save_dir", halves, "--epochs", "4")  # everything else comes from the run
    same(load_checkpoint(tmp_path / "four" / "last.pt"), load_checkpoint(halves / "last.pt"))
    rows = [[json.loads(line) for line in open(f / "log.jsonl")] for f in (tmp_path / "four", halves)]
    losses = [[row["train/loss"] for row in run_rows if row["event"] == "epoch"] for run_rows in rows]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.slow
def test_rounds_of_distillation(mini, tmp_path):
    """--gid_rounds 1 trains a teacher and a student that learns from it; killed and resumed, it ends the same."""
    train(mini, tmp_path / "whole", "--gid_rounds", "1", "--epochs", "1")
    log = [json.loads(line) for line in open(tmp_path / "whole" / "log.jsonl")]
    assert [row["round"] for row in log if row["event"] == "round"] == [0, 1]
    assert "train/gid" in [row for row in log if row["event"] == "epoch"][1]
    train(mini, tmp_path / "parts", "--gid_rounds", "1", "--epochs", "1")
    (tmp_path / "parts" / "best.pt").unlink()
    for file in (tmp_path / "parts" / "round_1").iterdir():
        file.unlink()  # as if killed before the second round's first checkpoint
    call("main_train.py", "--resume", "--save_dir", tmp_path / "parts")
    same(load_checkpoint(tmp_path / "whole" / "best.pt"), load_checkpoint(tmp_path / "parts" / "best.pt"))


def test_a_run_explains_itself(trained):
    facts = json.loads((trained / "run.json").read_text())
    assert {"command", "flags", "git", "versions", "device", "inputs", "data"} <= set(facts)
    assert facts["inputs"]["ann_path"]["sha256"] and facts["data"]["splits"]["train"]["studies"] > 0
    log = [json.loads(line) for line in open(trained / "log.jsonl")]
    epoch = next(row for row in log if row["event"] == "epoch")
    assert {"train/ce", "train/loss", "wait", "studies_per_s", "lr/extractor", "lr/rest"} <= set(epoch)
    assert not any("test" in key for row in log for key in row)


def test_a_folder_belongs_to_one_run(mini, trained):
    done = train(mini, trained, "--no-gid", code=2)
    assert "already holds a run" in done.stderr and "Traceback" not in done.stderr


def test_score_and_new_image(mini, trained):
    """main_test.py needs only the checkpoint: flags, words and knowledge come from it; a second run says the same."""
    done = call("main_test.py", "--load", trained / "best.pt", code=2)
    assert "--oracle_labels" in done.stderr
    call("main_test.py", "--load", trained / "best.pt", "--batch_size", "3", "--protocols", "r2gen", "--oracle_labels")
    first = (trained / "predictions_test.csv").read_bytes()
    metrics = json.loads((trained / "metrics_test.json").read_text())
    assert metrics["oracle_labels"] is True
    assert metrics["metrics"]["studies"] == metrics["studies_listed"] > 0
    assert metrics["metrics"]["constant/r2gen/BLEU_4"] > 0 and "r2gen/BLEU_4" in metrics["metrics"]["intervals"]
    assert set(metrics["metrics"]["baselines"]) == {"constant", "constant_cider", "nearest", "consensus"}
    _score_theirs_beside_our_baselines(mini, trained)
    studies = (trained / "scores_test.csv").read_text().splitlines()
    assert studies[0].startswith("id,r2gen/BLEU_1") and len(studies) == 1 + metrics["metrics"]["studies"]
    assert len((trained / "labels_test.csv").read_text().splitlines()) == 1 + 2 * metrics["metrics"]["studies"]
    page = (trained / "index.html").read_bytes()
    evidence = [json.loads(line) for line in open(trained / "evidence_test.jsonl")]
    assert [row["id"] for row in evidence] == [row["id"] for row in read_predictions(trained / "predictions_test.csv")]
    for row, told in zip(evidence, read_predictions(trained / "predictions_test.csv")):
        words = told["prediction"].split()
        assert row["images"][0]["jpeg"] and (len(row["attention"]["peak"]) == len(words) if words else not row["attention"])
    (trained / "index.html").unlink()
    again = ["--batch_size", "16", "--protocols", "r2gen", "--oracle_labels", "--no-page"]
    call("main_test.py", "--load", trained / "best.pt", *again)
    assert (trained / "predictions_test.csv").read_bytes() == first and not (trained / "index.html").exists()
    call("-m", "modules.results_page", trained)
    assert len((trained / "index.html").read_bytes()) > 0.9 * len(page)
    image = next((mini / "data" / "images").glob("*/0.png"))
    done = call("main_test.py", "--load", trained / "best.pt", "--image", image, code=2)
    assert "carries no DiagnosisBot" in done.stderr


def _score_theirs_beside_our_baselines(mini, trained):
    """--score --baselines all finds the same reports as the test, by the checkpoint's extractor."""
    ours, folder = read_predictions(trained / "predictions_test.csv"), trained.with_name("theirs")
    theirs = [{"id": row["id"], "report": "no effusion ."} for row in ours]
    trained.with_name("theirs.json").write_text(json.dumps(theirs))
    words = ["--score", trained.with_name("theirs.json"), "--reference", mini / "data" / "annotation.json", "--save_dir", folder]
    call("main_test.py", *words, "--load", trained / "best.pt", "--baselines", "all", "--protocols", "r2gen", "--no-page")
    found = read_predictions(folder / "predictions_test.csv")
    for column in ("constant", "constant_cider", "nearest", "consensus"):
        assert [row[column] for row in found] == [row[column] for row in ours], column


@pytest.mark.slow
def test_kill_during_a_save_leaves_the_old_checkpoint(tmp_path):
    """A process that only saves, killed with SIGKILL in the middle of a save."""
    path = tmp_path / "last.pt"
    script = (
        "import sys, torch; from pathlib import Path; from modules.checkpoint import save_checkpoint\n"
        "flags, weights = {'model': 'line', 'dataset_name': 'miniature'}, {'w': torch.randn(3_000_000)}\n"
        "content = {'flags': flags, 'parts': {}, 'tokenizer': {}, 'model': weights, 'epoch': 0}\n"
        "while True:\n"
        "    content['epoch'] += 1\n"
        "    save_checkpoint(Path(sys.argv[1]), content)\n"
        "    print(content['epoch'], flush=True)\n"
    )
    for delay in (0.0, 0.004, 0.011, 0.02):
        saver = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "."},
        )
        for _ in range(3):
            saver.stdout.readline()
        time.sleep(delay)
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        content = load_checkpoint(path)
        assert content["epoch"] >= 3 and content["model"]["w"].shape == (3_000_000,)


def test_a_full_disk_loses_nothing(tmp_path):
    """/dev/full stands for the full disk: every write to it fails as on one."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"w": torch.ones(3)}})
    before = path.read_bytes()

    def fill(temporary):
        temporary.symlink_to("/dev/full")
        torch.save({"w": torch.zeros(10)}, temporary)

    with pytest.raises(InputError, match="cannot write .* MiB are free"):
        write_atomic(path, fill)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["last.pt"]


def test_checkpoints_written_behind_the_training(tmp_path):
    """What is written is what was there at the call; a failure is raised, at the latest at the end, and loses nothing."""
    weights = torch.zeros(2_000_000)
    with CheckpointWriter() as writer:
        for epoch in range(1, 4):
            weights += 1
            writer.write({tmp_path / name: {"w": snapshot(weights), "epoch": epoch} for name in ("last.pt", "best.pt")})
            weights += 100
            weights -= 100
    for name in ("last.pt", "best.pt"):
        content = load_checkpoint(tmp_path / name)
        assert content["epoch"] == 3 and bool((content["w"] == 3).all())
    nowhere = tmp_path / "last.pt" / "under_a_file.pt"
    with CheckpointWriter() as writer, pytest.raises(OSError):
        writer.write({nowhere: {}})
        writer.write({tmp_path / "last.pt": {"epoch": 4}})
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    with pytest.raises(OSError), CheckpointWriter() as writer:
        writer.write({nowhere: {}})


def test_a_loss_that_is_not_finite_names_the_studies(mini, tmp_path):
    done = train(mini, tmp_path / "run", "--no-gid", "--lr_ed", "1e30", "--clip_norm", "0", code=2)
    assert "the loss is not finite" in done.stderr and "MINI" in done.stderr


def test_a_refused_start_leaves_the_folder_free(mini, trained, tmp_path):
    """Weights that do not fit are found out late; the next attempt into the same folder is not refused for that."""
    done = train(mini, tmp_path / "run", "--no-gid", "--load", trained / "best.pt", "--d_model", "64", "--no-iek", code=2)
    assert "does not fit" in done.stderr and (tmp_path / "run" / "run.json").is_file()
    train(mini, tmp_path / "run", "--no-gid", "--epochs", "1")
    rows = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    assert [row["event"] for row in rows].count("epoch") == 1
