"""Several processes, real ones over gloo: the same losses and the same scores as one, and a clear end when one dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, call, inputs, run, without_java
from torch import nn

from data.batches import Batch, StepShares
from models import SYSTEMS
from models.system import System
from modules.checkpoint import load_checkpoint
from modules.flags import parse
from modules.trainer import Trainer

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def rows(folder, event):
    return [row for line in open(folder / "log.jsonl") if (row := json.loads(line))["event"] == event]


@pytest.fixture(scope="module")
def runs(mini, tmp_path_factory):
    """The same training in one process, in two, and in one with each step taken in three parts. No dropout."""
    root = tmp_path_factory.mktemp("processes")
    words = [*inputs(mini), "--no-adm", "--no-gid", "--dropout", "0", "--extractor_freeze", "norm", "--log_every", "1"]
    one = {"OMP_NUM_THREADS": "1"}
    run("main_train.py", *words, "--save_dir", root / "one", env=one)
    run(*TORCHRUN, "main_train.py", *words, "--save_dir", root / "two", env=one)
    run("main_train.py", *words, "--accumulate", "3", "--save_dir", root / "parts", env=one)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("other", ["two", "parts"])
def test_same_losses_and_scores(runs, other):
    """Also with a last step of fewer studies than a whole one."""
    for event in ("step", "epoch"):
        first, second = rows(runs / "one", event), rows(runs / other, event)
        assert len(first) == len(second) > 1
        for a, b in zip(first, second):
            for name in [name for name in a if name.endswith(("ce", "loss", "grad_norm"))]:
                assert b[name] == pytest.approx(a[name], rel=1e-4 if "norm" in name else 1e-5), name
    for a, b in zip(rows(runs / "one", "val"), rows(runs / other, "val")):
        assert all(abs(row["val/image_use"]) < 0.5 for row in (a, b))  # images are exchanged within a process's batch
        for name in ("time", "val/image_use"):
            a.pop(name), b.pop(name)
        assert a == b


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(runs):
    words = ["main_test.py", "--load", runs / "one" / "best.pt", "--oracle_labels", "--protocols", "r2gen"]
    run(*words, "--save_dir", runs / "test_one")
    run(*TORCHRUN, *words, "--save_dir", runs / "test_two")
    assert '"nearest","consensus"' in (runs / "test_two" / "predictions_test.csv").read_text().splitlines()[0]
    for name in ("predictions_test.csv", "metrics_test.json"):
        texts = [(runs / folder / name).read_text() for folder in ("test_one", "test_two")]
        if name.endswith("json"):
            texts = [json.loads(text)["metrics"] for text in texts]
        assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_it_can_go_on(mini, tmp_path):
    words = [*inputs(mini), "--no-adm", "--no-gid", "--save_dir", str(tmp_path / "run")]
    command = [sys.executable, *TORCHRUN, "main_train.py", *words, "--epochs", "200"]
    settings = {"cwd": ROOT, "env": {**os.environ, **without_java(), "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)
    for _ in range(600):
        if (tmp_path / "run" / "last.pt").is_file():
            break
        time.sleep(0.1)
    workers = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    message = started.communicate(timeout=60)[1]
    assert started.returncode != 0 and "SIGKILL" in message
    assert "another process of this run has ended" in message and "RuntimeError" not in message
    done = load_checkpoint(tmp_path / "run" / "last.pt")["epoch"]
    call("main_train.py", "--resume", "--save_dir", tmp_path / "run", "--epochs", str(done + 1))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["epoch"] == done + 1


@pytest.mark.parametrize("count, accumulate", [(1, 1), (2, 1), (3, 2)])
def test_every_study_counts_once(count, accumulate):
    """A step holds the same studies whatever it is split into; fill-ins only where there are too few."""

    class Set:
        seed, epoch = 5, 2

        def __len__(self):
            return 21

    shares = [list(StepShares(Set(), 4, rank, count, accumulate)) for rank in range(count)]
    whole = list(StepShares(Set(), 4, 0, 1, 1))
    assert {len(share) for share in shares} == {6 * accumulate} == {len(StepShares(Set(), 4, 0, count, accumulate))}
    for step, studies in enumerate(whole):
        parts = [share[step * accumulate + turn] for turn in range(accumulate) for share in shares]
        assert [place for part in parts for place in part if place >= 0] == studies
        assert all(part for part in parts)


class Line(System):
    """A system whose loss is a mean over something else than studies."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.loss_weights = {"words": 2.0}

    def losses(self, batch):
        return {"words": (self.weight * batch.tokens.float()).sum() / self.loss_counts(batch)["words"]}

    def loss_counts(self, batch):
        return {"words": int((batch.tokens > 0).sum())}

    def parameter_groups(self):
        return {"rest": [self.weight]}


@pytest.mark.parametrize("more", [[], ["--compile"]])
def test_accumulated_loss_is_that_of_the_step(tmp_path, more):
    """Parts with different numbers of words weigh by their words, a fill-in nothing."""
    args = parse(["--dataset_name", "miniature", "--clip_norm", "0", *more], "train", systems=SYSTEMS)
    made = Trainer(Line(), [], None, args=args, device=torch.device("cpu"), folder=tmp_path, log=None, carried={})
    parts = [Batch(["a"], tokens=torch.tensor([[3, 0, 0]])), Batch(["b"], tokens=torch.tensor([[1, 2, 6]]))]
    values = made.update([*parts, Batch(["a"], tokens=torch.tensor([[9, 9, 9]]), fill=True)])
    assert values["words"] == pytest.approx(12 / 4) and values["loss"] == pytest.approx(6)
    assert values["grad_norm"] == pytest.approx(6) and values["studies"] == 2
