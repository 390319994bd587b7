"""Rows that share a study or a patient are drawn together: intervals, paired tests, predictions file, commands."""

import csv
import json

import numpy as np
import pytest
from conftest import OneJava, call

from benchmarks.interval_coverage import coverage
from data.leaks import leaks
from data.studies import Study, card_text, data_card
from modules.errors import InputError
from modules.scoring.predictions import R2GenReferences, read_reports, write_predictions
from modules.scoring.resampling import (
    Statistic,
    intervals,
    mean_statistic,
    paired_differences,
    resample_weights,
    resampled,
    units_of,
)
from modules.scoring.score_all import score_all


def rows_of(*pairs):
    return [{"id": str(n), "study_id": study, "subject_id": patient} for n, (study, patient) in enumerate(pairs)]


def drawn(rows) -> tuple[str, int]:
    units = units_of(rows)
    return units.name, units.count


def test_the_widest_unit_that_rows_share_is_drawn():
    rows = rows_of(("s1", "p1"), ("s1", "p1"), ("s2", "p1"), ("s3", "p2"))
    assert drawn(rows) == ("patient", 2) and units_of(rows).of_row.tolist() == [0, 0, 0, 1]
    assert units_of(rows, "study").of_row.tolist() == [0, 0, 1, 2]
    assert units_of(rows, "row").of_row.tolist() == [0, 1, 2, 3]
    rows = rows_of(("s1", ""), ("s1", ""), ("s2", ""), ("", ""), ("", ""))
    assert drawn(rows) == ("study", 4) and units_of(rows).of_row.tolist() == [0, 0, 1, 2, 3]
    assert drawn([{"id": "a"}, {"id": "b"}]) == ("row", 2)
    assert drawn(rows_of(("s1", "p1"), ("s2", "p2"))) == ("row", 2)  # nothing is shared


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="--resample_by patient: the predictions have no subject_id"):
        units_of(rows_of(("s1", "")), "patient")
    with pytest.raises(InputError, match="--resample_by nonsense: choose from"):
        units_of(rows_of(("s1", "")), "nonsense")


def test_units_are_drawn_whole():
    """Resampling units is resampling their rows together, by hand."""
    draw = np.random.default_rng(0)
    values, units = draw.normal(size=9), np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    found = resampled({"x": mean_statistic(values)}, 50, units)["x"]
    weights = np.concatenate(list(resample_weights(5, 50)))
    by_hand = [np.average(values, weights=weight[units]) for weight in weights]
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)


def test_a_part_of_the_split_draws_the_units_that_are_in_it():
    values, units = np.arange(9.0), np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    chosen = np.array([0, 0, 1, 1, 0, 1, 0, 1, 1], dtype=bool)
    part = {"x": mean_statistic(values[chosen])}
    assert intervals(part, 50, units[chosen]) == intervals(part, 50, np.array([0, 1, 1, 2, 2]))


def test_each_row_a_unit_is_the_interval_of_rows():
    one = {"x": Statistic(np.random.default_rng(0).random((30, 2)), lambda sums: sums[..., 0] / sums[..., 1])}
    assert intervals(one, 100, np.arange(30)) == intervals(one, 100)


def test_ten_copies_of_each_row_neither_narrow_an_interval_nor_sharpen_a_test():
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=40), draw.normal(0.3, size=40)
    ten, units = lambda values: mean_statistic(np.repeat(values, 10)), np.repeat(np.arange(40), 10)
    alone = paired_differences({"x": mean_statistic(a)}, {"x": mean_statistic(b)})["x"]
    copied = paired_differences({"x": ten(a)}, {"x": ten(b)}, units=units)["x"]
    np.testing.assert_allclose(copied["interval"], alone["interval"], rtol=1e-9)
    assert copied["p"] == alone["p"]
    wrong = paired_differences({"x": ten(a)}, {"x": ten(b)})["x"]
    assert np.diff(wrong["interval"]) < 0.5 * np.diff(alone["interval"])


def test_coverage_of_studies_and_of_rows():
    """200 made sets with 1 to 5 rows a study; the benchmark draws 1,000 (94.8% and 79.4%)."""
    found = coverage(simulations=200, studies=200, resamples=300, shares=np.full(5, 0.2))
    assert found["study"] >= 0.91 and found["row"] <= 0.85


# --- from the annotation to the metrics ------------------------------------------------------------------------------


def annotation(path):
    content = {"train": [], "val": [], "test": []}
    for split, count in (("train", 6), ("val", 4), ("test", 12)):
        for n in range(count):
            text = f"the heart is {('large', 'small', 'normal')[n // 2 % 3]} . lungs are clear ."
            content[split].append({"id": f"{split}{n}", "study_id": n // 2, "subject_id": 100 + n // 4, "report": text,
                                   "image_path": [f"{split}{n}.png"], "split": split})  # fmt: skip
    path.write_text(json.dumps(content))
    return content


def test_score_all_draws_patients_and_says_so(tmp_path, monkeypatch):
    annotation(tmp_path / "a.json")
    reports = read_reports(tmp_path / "a.json", "--reference")
    assert (reports[-1].study_id, reports[-1].subject_id) == ("5", "102")
    references = R2GenReferences((row.text for row in reports if row.split == "train"), "iu_xray", threshold=1)
    rows = [
        references.row(row.id, row.text, "the heart is large .", study_id=row.study_id, subject_id=row.subject_id)
        for row in reports
        if row.split == "test"
    ]
    write_predictions(tmp_path / "predictions_test.csv", rows)
    settings = {"protocols": ("clean",), "resamples": 50, "meteor": OneJava.meteor}
    auto, study, row = (score_all(rows, **settings, resample_by=by).metrics for by in ("auto", "study", "row"))
    assert auto["bootstrap"] == {"resamples": 50, "level": 0.95, "unit": "patient", "units": 3}
    assert study["bootstrap"]["units"] == 6 and row["bootstrap"]["units"] == 12
    assert auto["clean/BLEU_4"] == study["clean/BLEU_4"] == row["clean/BLEU_4"]
    assert auto["intervals"] != study["intervals"] != row["intervals"]
    shuffled = score_all(rows[::-1], **settings).metrics
    assert shuffled["intervals"] == auto["intervals"]


def test_a_foreign_file_takes_its_units_from_the_annotation(tmp_path):
    content = annotation(tmp_path / "a.json")
    for name, word in (("one", "large"), ("two", "small")):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("id", "report"), *((row["id"], f"the heart is {word} .") for row in content["test"])])
    said = call("main_test.py", "--score", tmp_path / "one.csv", "--reference", tmp_path / "a.json", "--dataset_name", "iu_xray",
               "--save_dir", tmp_path / "scores", "--bootstrap", "50", "--no-page", "--protocols", "clean").stdout  # fmt: skip
    assert "Intervals: 3 patients drawn" in said
    with open(tmp_path / "scores" / "predictions_test.csv", newline="") as file:
        assert [row["subject_id"] for row in csv.DictReader(file)][:5] == ["100"] * 4 + ["101"]
    both = (tmp_path / "one.csv", tmp_path / "two.csv")
    said = call("main_test.py", "--compare", *both, "--reference", tmp_path / "a.json", "--dataset_name", "iu_xray",
               "--bootstrap", "50", "--protocols", "clean", "--resample_by", "study").stdout  # fmt: skip
    assert "paired bootstrap, 6 studies drawn" in said


# --- the data card ---------------------------------------------------------------------------------------------------


def study(name, split, report="a .", images=("x.png",), study_id="", subject_id=""):
    return Study(name, report, tuple(images), split, study_id, subject_id)


def test_each_leak_is_told_and_nothing_else(tmp_path):
    for name, content in (("x.png", b"one"), ("copy.png", b"one"), ("other.png", b"two"), ("y.png", b"longer")):
        (tmp_path / name).write_bytes(content)
    train = [study("1", "train", "the heart .", ["x.png"], "s1", "p1")]
    for row, kinds in (
        (study("1", "test", "lungs .", ["y.png"], "s2", "p2"), {"ids": 1}),
        (study("2", "test", "lungs .", ["y.png"], "s1", "p2"), {"studies": 1}),
        (study("2", "test", "lungs .", ["y.png"], "s2", "p1"), {"patients": 1}),
        (study("2", "test", " the heart .\n", ["y.png"], "s2", "p2"), {"reports": 1}),
        (study("2", "test", "lungs .", ["y.png", "x.png"], "s2", "p2"), {"images": 1}),
        (study("2", "test", "lungs .", ["copy.png"], "s2", "p2"), {"images": 1}),
        (study("2", "test", "lungs .", ["other.png", "gone.png"], "s2", "p2"), None),
        (study("2", "test", "lungs ."), {"images": 1}),  # no study, no patient: none is shared
    ):
        found = leaks({"train": train, "val": [], "test": [row]}, tmp_path, ["test"], bytes_too=True)
        assert found == ({"test in train": kinds} if kinds else {}), row
    assert leaks({"train": train, "val": [], "test": train}, tmp_path, ["train", "val"], bytes_too=True) == {}


def test_the_card_says_what_a_row_is_and_what_is_shared(tmp_path):
    rows = [study(str(n), "test", study_id=f"s{n // 2}", subject_id=f"p{n // 4}") for n in range(8)]
    card = data_card({"test": rows}, {}, name="made", ann_path=tmp_path, max_views=1)
    card["shared"] = {"test in train": {"patients": 2}}
    text = card_text(card)
    assert "8 rows, an image each, of 4 studies of 2 patients" in text
    assert "shared patients: 2 test rows (25.0%) have one that train has too" in text
    card = data_card({"test": rows[::2]}, {}, name="made", ann_path=tmp_path, max_views=1)
    assert card["unit"] == "study" and "4 studies of 2 patients" in card_text(card)
