"""README, docs/ and the model card: links lead somewhere, commands exist, lines are short, the Python example runs."""

import importlib.util
import json
import re

import pytest
from conftest import ROOT, TINY_MODEL, call

from models import SYSTEMS
from modules.results_page.model_card import write_model_card

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def text_of(path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path) -> list[str]:
    """Lines that are neither code nor a row of a table."""
    text = re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith(("    ", "|"))]


def test_readme_is_short():
    assert len(text_of(ROOT / "README.md").split()) <= 1100


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page(path):
    text = text_of(path)
    assert not [line for line in prose(path) if len(line) > 120]
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for module in set(re.findall(r"python -m ((?:data|knowledge|benchmarks|modules)[\w.]*)", text)):
        assert importlib.util.find_spec(module), module


def test_every_system_has_a_page():
    table = text_of(ROOT / "docs" / "systems" / "README.md") + text_of(ROOT / "README.md")
    assert all(table.count(f"`{name}`]") == 2 for name in SYSTEMS)


@pytest.fixture(scope="module")
def run_folder(mini, tmp_path_factory):
    """A tiny EKAGen that carries its DiagnosisBot, trained and tested."""
    folder = tmp_path_factory.mktemp("documents") / "run"
    words = ["--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir", folder.parent / "made", *TINY_MODEL,
             "--from_scratch", "--no-adm", "--no-gid", "--bot_backbone", "resnet18", "--bot_weights", "none", "--epochs", "1",
             "--min_gen_length", "5", "--save_dir", folder]  # fmt: skip
    call("main_train.py", *words)
    return folder


@pytest.mark.slow
def test_the_python_example(run_folder, mini, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)[1]
    assert len(code.splitlines()) <= 15
    image = sorted((mini / "data" / "images").rglob("*.png"))[0]
    code = code.replace("results/demo/best.pt", str(run_folder / "best.pt")).replace("front.png", str(image))
    monkeypatch.chdir(run_folder)
    space = {}
    exec(code, space)
    shown, study = capsys.readouterr().out, space["study"]
    assert study["report"] in shown and "Cardiomegaly" in shown
    assert len(study["attention"]) == len(study["words"]) == len(study["report"].split()) > 0
    for word in study["attention"]:
        assert word.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_model_card(run_folder):
    card = text_of(run_folder / "MODEL_CARD.md")
    assert "not for clinical use" in card and "Not tested yet" in card and "Chosen: epoch 1 of 1" in card
    call("main_test.py", "--load", run_folder / "best.pt", "--protocols", "r2gen", "--bootstrap", "0", "--no-page")
    metrics = json.loads((run_folder / "metrics_test.json").read_text())["metrics"]
    card = text_of(run_folder / "MODEL_CARD.md")
    assert f"| test: this system | {metrics['studies']} | {metrics['distinct_reports']} |" in card
    assert "| test: constant report, CIDEr * |" in card


def test_no_card_without_a_run(tmp_path):
    write_model_card(tmp_path)
    assert not list(tmp_path.iterdir())
