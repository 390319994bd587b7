"""Shared fixtures. Nothing here needs more than the repository; `shared` gives the real data where it lies beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

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
    run("-m", "knowledge.build_base", "--dataset_name", "miniature", "--data_dir", root / "data", "--threshold", "1",
        "--labels", root / "data" / "labels.csv", "--out", root / "base.pt", "--max_seq_length", "48",
        "--d_model", "32")  # fmt: skip
    return root


def inputs(mini: Path) -> list[str]:
    """Flags that point a tiny run at the miniature data, with the label table as (oracle) diagnoses."""
    data = mini / "data"
    return ["--dataset_name", "miniature", "--data_dir", str(data), "--diagnosis_path", str(data / "labels.csv"),
            "--oracle_labels", "--knowledge_path", str(mini / "base.pt"), "--knowledge_dir", str(mini / "knowledge"),
            *TINY_MODEL]  # fmt: skip


def run(
    *words, code: int = 0, cwd: Path = ROOT, env: dict | None = None, timeout: int = 300
) -> subprocess.CompletedProcess:
    """Run `python *words` in a process of its own and check its exit code."""
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
