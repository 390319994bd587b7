"""The worked example of CONTRIBUTING.md: taken out of the document, put in as one file and one row, trained and tested."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY_MODEL, without_java

CODE = ("models", "modules", "data", "knowledge", "main_train.py", "main_test.py", "results/published.json")


def example() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.search(r"## A new system in an afternoon.*?```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_example_is_short():
    assert len(example().splitlines()) <= 80


@pytest.mark.slow
def test_one_file_and_one_row_are_a_system(mini, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "iu_xray", "mimic_cxr", "miniature", "released")
    for name in CODE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
    (tmp_path / "models" / "plain.py").write_text(example(), encoding="utf-8")
    table = tmp_path / "models" / "__init__.py"
    row = '    "xpronet": "XProNet",\n'
    assert row in table.read_text()
    table.write_text(table.read_text().replace(row, row + '    "plain": "Plain",\n'))

    def run(*words):
        env = {**os.environ, **without_java(code=tmp_path)}
        done = subprocess.run([sys.executable, *map(str, words)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    words = ["--model", "plain", "--dataset_name", "miniature", "--data_dir", mini / "data", *TINY_MODEL]
    run("main_train.py", *words, "--decoder_layers", "1", "--epochs", "1", "--save_dir", "run")
    run("main_train.py", "--resume", "--epochs", "2", "--save_dir", "run")
    assert "r2gen" in run("main_test.py", "--load", "run/best.pt", "--protocols", "r2gen", "--bootstrap", "0")
    assert (tmp_path / "run" / "index.html").is_file(), "the page shows its attention"
