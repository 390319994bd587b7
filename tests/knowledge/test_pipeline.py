"""--from_scratch as a pipeline: all problems before the first step, a plan, settings of steps, artefacts of other settings."""

import json
import re

import pytest
from conftest import TINY_MODEL, call

from data.studies import card_text, data_card, limit_marks, read_annotation
from knowledge import build_base, label_reports
from knowledge.classifier import flags as classifier_flags
from knowledge.command import read
from knowledge.from_scratch import FLAGS, NO_SETTINGS, TABLES, settings, steps
from knowledge.train_diagnosisbot import JOB
from models import SYSTEMS
from modules.artefact import built_already, write_built
from modules.errors import InputError
from modules.flags import FLAGS as RUN_FLAGS
from modules.flags import parse


def flags(*words):
    return parse(list(map(str, words)), "train", systems=SYSTEMS, extra=FLAGS)


def places(mini, folder):
    return ["--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir", folder / "made", "--save_dir",
            folder / "run", *TINY_MODEL]  # fmt: skip


def test_all_problems_come_before_the_first_step(mini, tmp_path):
    """Three kinds of weights, each with the flag that helps, the teacher and the labels; nothing is made."""
    words = [*places(mini, tmp_path), "--from_scratch", "--offline", "--weights_dir", tmp_path, "--extractor_weights", "imagenet",
             "--bot_backbone", "resnet18", "--adm_backbone", "resnet34", "--visual_extractor", "resnet50"]  # fmt: skip
    said = call("main_train.py", *words, code=2)
    assert said.stderr.count("\n  - ") == 4 and not (tmp_path / "made").exists()
    for network, prefix in (("resnet18", "bot_"), ("resnet34", "adm_")):
        line = next(line for line in said.stderr.splitlines() if f"weights of {network}:" in line)
        assert f"--{prefix}backbone_weights PATH" in line and f"--{prefix}backbone efficientnet_lite0" in line
    assert "--extractor_weights PATH" in said.stderr and "--gid distils from a teacher" in said.stderr
    assert "labels of the reports" in said.stdout, "the plan stands above"


def test_the_plan_says_file_state_and_minutes(mini, tmp_path):
    words = [*places(mini, tmp_path), "--from_scratch", "--no-gid", "--bot_backbone_weights", "none", "--dry_run"]
    label_reports.main(["--ann_path", str(mini / "data" / "annotation.json"), "--out", str(tmp_path / "made" / "labels.csv")])
    out = call("main_train.py", *words).stdout
    assert "would not start" not in out and json.loads(out[out.index("\n{") :])["from_scratch"] is True
    assert re.search(rf"labels of the reports, by rules +{tmp_path}/made/labels.csv +kept +-\n", out)
    assert re.search(rf"knowledge base: .* +{tmp_path}/made/base.pt +made +\d+\n", out)
    assert re.search(r"training ekagen .* \d+\n", out)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["labels.csv", "labels.csv.json"]


def test_a_missing_data_set_is_a_problem_like_others(tmp_path):
    err = call("main_train.py", "--from_scratch", "--offline", "--device", "cpu", code=2, cwd=tmp_path).stderr
    assert "no annotation file" in err and "--image_dir" in err and "swin_t" in err and "resnet101" in err


def test_settings_of_every_step_reach_its_command():
    args = flags("--from_scratch", "--bot_epochs", 3, "--bot_image_size", 64, "--adm_lr", 0.01, "--mask_batch_size", 4,
                 "--base_uncertain", "negative", "--label_uncertain", "keep")  # fmt: skip
    made = {step.name: step.words for step in steps(args)}
    bot = classifier_flags.parse(made["diagnosisbot"], JOB)
    assert (bot.epochs, bot.image_size, bot.lr, bot.labels_path) == (3, 64, 1e-4, "knowledge/iu_xray/labels.csv")
    assert "0.01" in made["adm_classifier"] and made["masks"][-2:] == ["--batch_size", "4"]
    assert build_base.read_flags(made["base"])[0].uncertain == "negative" and made["labels"][-2:] == ["--uncertain", "keep"]
    assert settings(flags("--no-prototype_mirror"), "prototype") == ["--no-mirror"]


def test_names_of_the_steps_flags_are_derived_and_no_other_flag_has_them():
    own = [flag.name for flag in FLAGS]
    derived = [f"{prefix}_{row.name}" for prefix, rows in TABLES.items() for row in rows if row.name not in NO_SETTINGS]
    assert own == ["rebuild", *derived] and len(set(own)) == len(own)
    others = {flag.name for kind in SYSTEMS.values() for flag in kind.flags} | {flag.name for flag in RUN_FLAGS}
    assert not others & set(own)


def test_settings_without_from_scratch_are_refused():
    done = call("main_train.py", "--bot_epochs", "3", "--device", "cpu", "--no-gid", code=2)
    assert "--bot_epochs: settings of the steps of --from_scratch" in done.stderr


def test_an_artefact_of_other_settings_is_kept_with_one_line(tmp_path, capsys):
    out = tmp_path / "base.pt"
    write_built(out, lambda path: path.write_text("x"), "base", inputs={"shape": 3, "key": "vector"})
    with pytest.raises(InputError, match="key vector, now disease.*--rebuild"):
        built_already(out, {"shape": 3, "key": "disease"})
    assert built_already(out, {"shape": 3, "key": "disease"}, keep=True, fixed=("shape",))
    assert capsys.readouterr().out == f"{out}: kept, though it was made with other settings: key vector, now disease\n"
    with pytest.raises(InputError, match="shape 3, now 4"):
        built_already(out, {"shape": 4, "key": "disease"}, keep=True, fixed=("shape",))
    out.write_text("damaged")
    with pytest.raises(InputError, match="damaged"):
        built_already(out, {"shape": 3, "key": "vector"}, keep=True)


def test_labels_of_others_are_kept_not_written_over(mini, tmp_path, capsys):
    table = (mini / "data" / "labels.csv").read_text()
    out = tmp_path / "labels.csv"
    out.write_text(table)
    words = ["--ann_path", str(mini / "data" / "annotation.json"), "--out", str(out)]
    label_reports.main([*words, "--keep"])
    assert "by others" in capsys.readouterr().out and out.read_text() == table
    label_reports.main(words)
    assert out.read_text() != table or (tmp_path / "labels.csv.json").is_file()


def test_a_base_that_cannot_serve_is_told_before(mini, tmp_path):
    words = [*places(mini, tmp_path), "--from_scratch", "--no-gid", "--bot_backbone_weights", "none"]
    base = ["--dataset_name", "miniature", "--data_dir", mini / "data", "--labels_path", mini / "data" / "labels.csv",
            "--threshold", 1, "--max_seq_length", 48, "--d_model", 64, "--out", tmp_path / "made" / "base.pt"]  # fmt: skip
    build_base.main(list(map(str, base)))
    said = call("main_train.py", *words, "--dry_run").stdout
    assert "base.pt was built for another shape ([48, 64], here [48, 32]): add --rebuild base" in said
    out = call("main_train.py", *words, "--dry_run", "--rebuild", "base").stdout
    assert "would not start" not in out and re.search(r"base.pt +made anew", out)


def test_limit_takes_the_first_studies_and_is_said(mini):
    path = mini / "data" / "annotation.json"
    whole, part = read_annotation(path), read_annotation(path, 2)
    assert {split: rows[:2] for split, rows in whole.items()} == part and len(whole["train"]) > 2
    card = data_card(part, {}, name="miniature", ann_path=path, max_views=1) | {"limit": 2}
    assert "LIMITED to the first 2 studies of each split" in card_text(card)
    assert limit_marks(0) == () and limit_marks(2) == ("first 2 studies of each split",)
    assert limit_marks(0, trained=2) == ("trained on 2 studies",)
    args = flags("--limit", 30)
    assert (args.knowledge_dir, args.save_dir) == ("knowledge/iu_xray_limit30", "results/ekagen_iu_xray_limit30")
    assert all("--limit" in step.words for step in steps(args) if step.name != "labels")


def test_one_name_for_one_thing_and_the_old_ones_go_on():
    """labels_path, adm_classifier, adm_rule, knowledge_path: the same in every command; old names are silent aliases."""
    assert classifier_flags.parse(["--labels", "a.csv"], JOB).labels_path == "a.csv"
    assert build_base.read_flags(["--labels", "a.csv"])[1].labels_path == "a.csv"
    assert flags("--bot_weights", "none").bot_backbone_weights == "none"
    places = {"labels_path": "labels.csv", "diagnosisbot": "diagnosisbot.pt"}
    args = read([], "x", None, ("dataset_name", "data_dir", "knowledge_dir", *places), ())
    run = flags()
    for name, file in places.items():
        assert getattr(args, name) == getattr(run, name) == f"knowledge/iu_xray/{file}"
