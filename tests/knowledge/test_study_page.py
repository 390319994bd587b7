"""The page of one new study: made of what the generator gives, in a folder of its own, and told from a tested run's."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.browser import CHROMIUM, Browser
from knowledge.new_study import _show
from knowledge.study_page import check_folder, write_study_page
from modules.errors import InputError
from modules.results_page.evidence import read_evidence
from modules.scoring.predictions import read_predictions


@pytest.fixture
def made(tmp_path):
    """Flags, and what the generator gives for a study of two images that share a file name."""
    paths = []
    for view in ("front", "side"):
        (tmp_path / view).mkdir()
        level = np.linspace(0, 255, 200, dtype=np.uint8)
        Image.fromarray(np.add.outer(level // 2, level // 3).astype(np.uint8)).save(tmp_path / view / "a,b.png")
        paths.append(str(tmp_path / view / "a,b.png"))
    words = "the heart is big .".split()
    result = {
        "report": " ".join(words), "images": paths, "warnings": [f"{paths[1]} is hardly a chest radiograph: it is coloured"],
        "knowledge_report": "an expert's report .", "knowledge_id": "e1", "knowledge_distance": "0",
        "diagnosis": [{"label": "Cardiomegaly", "probability": 0.8, "threshold": 0.5, "positive": True},
                      {"label": "Edema", "probability": 0.1, "threshold": 0.5, "positive": False}],
        "words": words, "attention": torch.full((5, 2, 4, 4), 1 / 32), "masks": [np.eye(300, dtype=bool), None],
    }  # fmt: skip
    args = SimpleNamespace(out=str(tmp_path / "page"), max_views=2, theta=0.4, dicom="voi", equalize="off")
    return args, result


def test_everything_of_the_study_is_there(made):
    args, result = made
    check_folder(args.out)
    page = write_study_page(args, result, {"flags": {}})
    (row,) = read_predictions(page.with_name("predictions_test.csv"))
    assert (row["id"], row["prediction"], row["reference"]) == ("a,b", result["report"], "")
    assert (row["diagnosis"], row["knowledge_report"]) == ("Cardiomegaly", "an expert's report .")
    ((name, line),) = read_evidence(page.with_name("evidence_test.jsonl"))
    images = json.loads(line)["images"]
    assert name == "a,b" and [("mask" in image, "jpeg" in image) for image in images] == [(True, True), (False, True)]
    assert json.loads(line)["attention"]["grid"] == [2, 4, 4]
    text = page.read_text(encoding="utf-8")
    assert result["report"] in text and "hardly a chest radiograph" in text and "nothing is scored" in text
    check_folder(args.out)  # the next study may take its place
    assert write_study_page(args, result | {"words": [], "report": "", "masks": [], "diagnosis": None}, {}) == page


def test_a_tested_run_keeps_its_page(made):
    folder = Path(made[0].out)
    folder.mkdir()
    (folder / "metrics_test.json").write_text('{"split": "test", "metrics": {}}')
    with pytest.raises(InputError, match="holds a tested run"):
        check_folder(folder)


def test_warnings_are_printed(made, capsys):
    _show(made[1])
    assert "warning:   " in capsys.readouterr().out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_opens(made, tmp_path):
    args, result = made
    with Browser(tmp_path / "profile") as browser:
        browser.open(write_study_page(args, result, {"flags": {}}), "#studies")
        shown = browser.run("document.body.innerText")
        assert "the heart is big" in shown.replace("\n", " ") and not browser.errors
        browser.click('#tabs a[href="#scores"]')
        browser.wait("document.body.dataset.view === 'scores'")
        assert "nothing is scored" in browser.run("document.querySelector('#view-scores').textContent") and not browser.errors
