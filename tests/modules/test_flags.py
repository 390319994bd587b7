"""The table of flags: presets, typed flags, carried flags, misspelt ones."""

import pytest

from models import SYSTEMS
from modules.errors import InputError
from modules.flags import FLAGS, parse

NAMES = tuple(SYSTEMS)


def test_a_preset_sets_defaults_and_a_typed_flag_wins():
    args = parse(["--dataset_name", "mimic_cxr"], "train", systems=SYSTEMS)
    assert (args.batch_size, args.threshold, args.cleaning, args.reference_words) == (32, 10, "mimic_cxr", 99)
    assert parse(["--dataset_name", "mimic_cxr", "--batch_size", "4"], "train", systems=SYSTEMS).batch_size == 4


def test_published_numbers_are_the_defaults():
    args = parse([], "train", systems=SYSTEMS)
    published = {
        "visual_extractor": "resnet101", "image_size": 300, "d_model": 256, "num_layers": 6, "d_ff": 2048, "batch_size": 8,
        "epochs": 50, "lr_ve": 1e-5, "lr_ed": 1e-4, "weight_decay": 1e-4, "step_size": 20, "lr_gamma": 0.1,
        "clip_norm": 0.1, "seed": 42, "theta": 0.4, "gamma": 0.4, "beta": 1.0, "delta": 0.01, "temperature": 4.0,
        "threshold": 3,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


def test_every_preset_names_known_systems_and_flags():
    for model, kind in SYSTEMS.items():
        for dataset in ("iu_xray", "mimic_cxr", "miniature", "custom"):
            args = parse(["--model", model, "--dataset_name", dataset], "train", systems=SYSTEMS)
            preset = kind.presets.get(dataset, {})
            assert set(kind.presets) <= {"iu_xray", "mimic_cxr", "miniature", "custom"}
            assert {name: getattr(args, name) for name in preset} == preset


def test_no_two_systems_give_one_name_to_different_flags():
    rows = {flag for kind in SYSTEMS.values() for flag in kind.flags} | set(FLAGS)
    assert len({flag.name for flag in rows}) == len(rows)


def test_view_presets():
    released = parse(["--view_preset", "released"], "train", systems=SYSTEMS)
    assert (released.teacher_view, released.student_view, released.eval_view) == ("masked", "complete", "masked")
    mixed = parse(["--view_preset", "released", "--eval_view", "complete"], "train", systems=SYSTEMS)
    assert (mixed.student_view, mixed.eval_view) == ("complete", "complete")


def test_booleans_are_real():
    assert parse(["--no-adm"], "train", systems=SYSTEMS).adm is False
    with pytest.raises(SystemExit):
        parse(["--adm", "False"], "train", systems=SYSTEMS)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--thetta", "0.3"], "did you mean --theta"),
        (["--theta", "1.5"], "must lie in 0..1"),
        (["--batch_size", "0"], "must be 1 or more"),
        (["--visual_extractor", "resnet1"], "invalid choice"),
        (["--lr_ed", "nan"], "must be a number above 0"),
    ],
)
def test_wrong_flags(words, text, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words, "train", systems=SYSTEMS)
    assert stop.value.code == 2 and text in capsys.readouterr().err


def test_unknown_system_shows_the_right_ones():
    with pytest.raises(InputError, match="ekagen"):
        parse(["--model", "ekagne"], "train", systems=SYSTEMS)


def test_a_checkpoint_carries_its_flags():
    rows = (*FLAGS, *SYSTEMS["ekagen"].flags)
    carried = {flag.name: flag.default for flag in rows if flag.keep} | {
        "model": "ekagen",
        "d_model": 64,
        "theta": 0.2,
        "data_dir": "somewhere",
    }
    args = parse([], "test", systems=SYSTEMS, carried=carried)
    assert (args.d_model, args.theta, args.data_dir) == (64, 0.2, "somewhere")
    assert parse(["--theta", "0.3"], "test", systems=SYSTEMS, carried=carried).theta == 0.3
    moved = parse(["--dataset_name", "miniature"], "test", systems=SYSTEMS, carried=carried)
    assert moved.data_dir == "data/miniature", "another data set lies elsewhere"
    with pytest.raises(InputError, match="--d_model 128: the checkpoint was trained with 64"):
        parse(["--d_model", "128"], "test", systems=SYSTEMS, carried=carried)
