"""Shared fixtures. Nothing here needs more than the repository; `shared` gives the real data where it lies beside it."""

import contextlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modules import run_folder
from modules.scoring.meteor import Meteor

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
METEOR_IN = ("main_train", "modules.scoring.metrics", "modules.scoring.commands", "data.check.weights")

TINY_MODEL = [
    "--image_size", "64", "--d_model", "32", "--num_heads", "2", "--d_ff", "64", "--num_layers", "1", "--batch_size", "8",
    "--visual_extractor", "resnet18", "--extractor_weights", "none", "--extractor_freeze", "none", "--num_workers", "0",
    "--max_seq_length", "48", "--max_gen_length", "40", "--threshold", "1", "--device", "cpu", "--epochs", "2",
]  # fmt: skip


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real IU X-Ray data and fixtures of the developers; tests that ask for it are skipped without."""
    if not (SHARED / "iu_xray" / "annotation.json").is_file():
        pytest.skip("needs the real data set beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    """A miniature data set of 32 studies with 64-pixel images, a knowledge base and stand-in ADM masks."""
    from data.miniature_set.build import build

    root = tmp_path_factory.mktemp("mini")
    build(root / "data", studies=32, seed=3, image_size=64, progress=False)
    call("-m", "knowledge.build_base", "--dataset_name", "miniature", "--data_dir", root / "data", "--threshold", "1",
        "--labels", root / "data" / "labels.csv", "--out", root / "base.pt", "--max_seq_length", "48",
        "--d_model", "32")  # fmt: skip
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One browser for all tests of the results page. (A second conftest.py would hide this one from `from conftest import`.)"""
    from benchmarks.browser import Browser

    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def inputs(mini: Path) -> list[str]:
    """Flags that point a tiny run at the miniature data, with the label table as (oracle) diagnoses."""
    data = mini / "data"
    return ["--dataset_name", "miniature", "--data_dir", str(data), "--diagnosis_path", str(data / "labels.csv"),
            "--oracle_labels", "--knowledge_path", str(mini / "base.pt"), "--knowledge_dir", str(mini / "knowledge"),
            *TINY_MODEL]  # fmt: skip


class OneJava:
    """Meteor for the commands of this process: one Java, which takes eight seconds to start, serves them all."""

    meteor = Meteor()

    start, check, corpus_score = meteor.start, meteor.check, meteor.corpus_score

    def close(self, *_) -> None:
        """Java goes on: pytest_sessionfinish ends it."""

    def __enter__(self) -> Meteor:
        return self.meteor

    __exit__ = close


def pytest_sessionfinish() -> None:
    OneJava.meteor.close()


def call(*words, code: int = 0, cwd: Path = ROOT, env: dict | None = None, own_java: bool = False) -> subprocess.CompletedProcess:
    """As `run`, in this process: no seconds of importing PyTorch. What a command changes in its process is put back.

    An exception that the command does not turn into a message is raised here, with its traceback.
    """
    words = [str(word) for word in words]
    name, argv = (words[1], words[2:]) if words[0] == "-m" else (Path(words[0]).stem, words[1:])
    package = importlib.util.find_spec(name).submodule_search_locations is not None
    main = importlib.import_module(f"{name}.__main__" if package else name).main
    out, err, returned = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, _states_kept():
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [words[0], *argv])
        for module in () if own_java else METEOR_IN:
            patch.setattr(f"{module}.Meteor", OneJava)
        for key, value in (env or {}).items():
            patch.setenv(key, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(argv)
            except SystemExit as left:
                returned = left.code or 0
    done = subprocess.CompletedProcess(words, returned, out.getvalue(), err.getvalue())
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def prepared(main, *words) -> dict[str, list[dict]]:
    """Run a preparation command by its `main`: the rows by split of the annotation that it writes into --out."""
    typed = [str(word) for word in words]
    main(typed)
    out = Path(typed[typed.index("--out") + 1])
    return json.loads((out / "annotation.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def _states_kept():
    """Random states, signal handlers and settings of PyTorch that a command leaves otherwise."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    locked = set(run_folder._LOCKS)
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
        for folder in set(run_folder._LOCKS) - locked:  # a process that ends lets its results folder go
            run_folder._LOCKS.pop(folder).close()
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def without_java(code: Path = ROOT) -> dict[str, str]:
    """Environment of a process that finds no Java: METEOR is n/a in its scores, and it starts eight seconds sooner."""
    hidden = ROOT / "tests" / "fixtures" / "no_java"
    return {"PATH": str(hidden), "JAVA_HOME": "", "PYTHONPATH": f"{hidden}:{code}"}


def run(
    *words, code: int = 0, cwd: Path = ROOT, env: dict | None = None, timeout: int = 300
) -> subprocess.CompletedProcess:
    """Run `python *words` in a process of its own and check its exit code: for kills, torchrun and what a shell sees."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def same(first: dict, second: dict) -> None:
    """Two checkpoints have equal weights, to the bit, and are as far."""
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert first["best"] == second["best"] and first["step"] == second["step"]
