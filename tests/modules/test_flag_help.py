"""What a user reads of flags: short help of a system, and each published command line answered as docs say."""

import re

import pytest
import torch
from conftest import ROOT, call

import main_test
import main_train
from models import SYSTEMS
from modules.checkpoint import FORMAT
from modules.errors import InputError
from modules.flags import parse

PAGE = (ROOT / "docs" / "coming_from_r2gencmn.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    \$ python main_(train|test)\.py (.+)\n((?:    .*\n)+)", PAGE, re.MULTILINE)
PUBLISHED = {name: SYSTEMS[name].published_flags for name in ("r2gen", "r2gencmn", "xpronet", "ekagen")}


def said(command, words, capsys) -> str:
    """What a command line that is refused prints."""
    with pytest.raises(SystemExit) as stop:
        parse(words, command, systems=SYSTEMS)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("command", "line", "answer"), LINES, ids=[line[1][:40] for line in LINES])
def test_published_lines_are_answered_as_the_page_says(command, line, answer, capsys):
    text = said(command, line.split(), capsys)
    assert text.splitlines() == [row[4:] for row in answer.splitlines()]
    ours = text.splitlines()[-1].split()
    args = parse(ours[2:], command, systems=SYSTEMS)  # the line that is offered is read as it stands
    assert ours[1] == f"main_{command}.py" and args.model == ours[ours.index("--model") + 1]


def test_the_page_has_a_row_for_every_published_flag():
    assert len(LINES) >= 6
    for model, flags in PUBLISHED.items():
        for name, theirs in flags.items():
            row = f"| `--{name}` | {'`' + theirs.ours + '`' if theirs.ours else '-'} | {theirs.why} |"
            assert row in PAGE, (model, row)


def test_our_flags_in_the_answers_exist():
    for model, flags in PUBLISHED.items():
        own = {flag.name for flag in parse(["--model", model], "train", systems=SYSTEMS).known}
        for name, theirs in flags.items():
            assert name not in own, f"{model} reads --{name} itself"
            assert not theirs.ours or theirs.ours[2:] in own, theirs
            named = re.findall(r"--([a-z_0-9]+)", theirs.why)
            assert set(named) <= own | {"table", "nproc_per_node", "sample"}, theirs


@pytest.mark.parametrize("command", ["train", "test"])
@pytest.mark.parametrize("model", SYSTEMS)
def test_help_is_short_and_follows_model_and_data_set(command, model, capsys):
    def shown(*words):
        with pytest.raises(SystemExit) as stop:
            parse(["--model", model, *words], command, systems=SYSTEMS)
        assert stop.value.code == 0
        return capsys.readouterr().out

    short, whole = shown("--help"), shown("--help_all")
    assert len(short.splitlines()) <= 85 and max(map(len, short.splitlines())) <= 120
    names = {flag.name for flag in parse(["--model", model], command, systems=SYSTEMS).known if command in flag.of}
    assert set(re.findall(r"^  --(?:\[no-\])?(\w+)", short, re.MULTILINE)) <= names
    every = {flag.name for kind in SYSTEMS.values() for flag in kind.flags if command in flag.of} | names
    assert set(re.findall(r"^  --(?:\[no-\])?(\w+)", whole, re.MULTILINE)) == every
    size = parse(["--model", model, "--dataset_name", "miniature"], command, systems=SYSTEMS).image_size
    assert f"in pixels [{size}]" in shown("--dataset_name", "miniature", "-h")


@pytest.mark.parametrize("script", ["main_train.py", "main_test.py"])
def test_the_scripts_answer_help(script):
    assert "defaults of --model r2gencmn --dataset_name mimic_cxr" in call(
        script, "--model", "r2gencmn", "--dataset_name", "mimic_cxr", "--help"
    ).stdout
    assert "--model sgrrg also reads" in call(script, "--help_all").stdout


def test_errors_stand_without_usage(capsys):
    hint = "did you mean --epochs or --rl_epochs?"
    assert said("train", ["--epoch", "3"], capsys) == f"main_train.py: error: unknown flag: --epoch ({hint})\n"
    assert "a switch is --name or --no-name" in said("train", ["--amsgrad", "True"], capsys)
    assert "main_train.py alone reads it" in said("test", ["--lr_ve", "0.1"], capsys)
    assert "1 or more" in (text := said("train", ["--batch_size", "0"], capsys)) and len(text.splitlines()) == 1


@pytest.mark.parametrize("command", [main_train.main, main_test.main], ids=["train", "test"])
def test_load_decides_the_model(command, tmp_path, monkeypatch, capsys):
    """Flags of the checkpoint's system are read without --model."""
    path = tmp_path / "best.pt"
    flags = {flag.name: flag.default for flag in parse(["--model", "r2gencmn"], "test", systems=SYSTEMS).known if flag.keep}
    content = {"format": FORMAT, "tokenizer": {}, "model": {}, "data": {}, "parts": {}}
    torch.save(content | {"flags": flags | {"model": "r2gencmn"}}, path)
    monkeypatch.chdir(tmp_path)
    command(["--load", str(path), "--topk", "9", "--dry_run", "--data_dir", "nowhere", "--device", "cpu"])
    out = capsys.readouterr().out
    assert '"model": "r2gencmn"' in out and '"topk": 9' in out and "would not start" in out
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_dry_run_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for model in ("r2gencmn", "ekagen"):
        main_train.main(["--model", model, "--dry_run", "--device", "cpu"])
        assert "no annotation file data/iu_xray/annotation.json" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_unknown_model_is_answered():
    with pytest.raises(InputError, match="did you mean ekagen"):
        parse(["--model", "ekagne", "--help"], "train", systems=SYSTEMS)
