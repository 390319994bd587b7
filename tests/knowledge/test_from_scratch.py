"""One command builds labels, DiagnosisBot, masks and base, keeps them on a rerun, and its checkpoint serves a new image."""

import json

import pytest
from conftest import ROOT, TINY_MODEL, call, run

from knowledge.from_scratch import steps
from models import SYSTEMS
from modules.flags import parse


@pytest.fixture(scope="module")
def whole(mini, tmp_path_factory):
    """A tiny run with every part: ADM, IEK, one round of distillation."""
    folder = tmp_path_factory.mktemp("scratch")
    flags = ["--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir", folder / "made", *TINY_MODEL,
             "--bot_backbone", "resnet18", "--adm_backbone", "resnet18", "--bot_weights", "none", "--max_views", "2",
             "--bot_image_size", "64", "--bot_epochs", "1", "--adm_image_size", "64", "--adm_epochs", "1"]  # fmt: skip
    done = call("main_train.py", *flags, "--from_scratch", "--gid_rounds", "1", "--epochs", "1", "--save_dir", folder / "run")
    return folder, flags, done


@pytest.mark.slow
def test_steps_are_said_and_kept(whole):
    folder, flags, done = whole
    for number in range(1, 6):
        assert f"== {number}/5" in done.stdout
    again = call("main_train.py", *flags, "--from_scratch", "--no-gid", "--epochs", "1", "--save_dir", folder / "again")
    assert again.stdout.count("kept") >= 3
    for file in ("labels.csv", "diagnosisbot.pt", "adm_classifier.pt", "base.pt"):
        manifest = json.loads((folder / "made" / f"{file}.json").read_text())
        assert manifest["what"] and manifest["date"]
    masks = json.loads((folder / "made" / "adm_masks" / "manifest.json").read_text())
    assert masks["what"] == "adm masks"


@pytest.mark.slow
def test_a_checkpoint_is_enough_for_a_new_image(whole, mini, tmp_path):
    """Report, probabilities and expert report, in another folder, with no annotation in sight."""
    folder, _, _ = whole
    study = next((mini / "data" / "images").iterdir())
    words = [ROOT / "main_test.py", "--load", folder / "run" / "best.pt", "--image", study / "0.png", study / "1.png"]
    done = run(*words, cwd=tmp_path)
    for text in ("report:", "diagnosis:", "Cardiomegaly", "expert report MINI", "not for clinical use"):
        assert text in done.stdout
    assert call(*words, cwd=tmp_path).stdout == done.stdout and not list(tmp_path.iterdir())
    wrong = call(*words[:-2], tmp_path / "none.png", cwd=tmp_path, code=2)
    assert "no image" in wrong.stderr


def test_an_ablation_builds_only_what_it_needs():
    def names(*flags):
        return [step.what.split(":")[0] for step in steps(parse(list(flags), "train", systems=SYSTEMS))]

    assert len(names()) == 5
    assert names("--no-adm") == ["labels of the reports, by rules", "DiagnosisBot", "knowledge base"]
    assert "DiagnosisBot" not in names("--no-iek") and "ADM masks" in names("--no-iek")
    assert names("--labels_path", "mine.csv", "--no-adm", "--no-iek") == []


def test_artefacts_serve_every_system_and_seed():
    """One DiagnosisBot for all: neither the system's preset seed nor --seed asks for another."""

    def built(*flags):
        return {step.what: step.words for step in steps(parse(list(flags), "train", systems=SYSTEMS))}

    ours, theirs = built("--seed", "7"), built("--model", "xpronet")
    for what in ("labels of the reports, by rules", "DiagnosisBot: image to diagnosis"):
        assert ours[what] == theirs[what] == built()[what]
    assert ours == built()
