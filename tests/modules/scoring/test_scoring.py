"""Clinical metrics, intervals, subsets, optional packages, files of other systems, comparison, tables."""

import csv
import json
import random
import sys
import types

import numpy as np
import pytest
from conftest import OneJava

import main_test
from models import SYSTEMS
from modules.errors import InputError
from modules.flags import parse
from modules.scoring import metrics as metrics_module
from modules.scoring.clinical import FIVE, STATES, abnormal, by_label, clinical_statistics, label_by_rules, positive
from modules.scoring.commands import run_command
from modules.scoring.metrics import METRICS, prepare, text_statistics
from modules.scoring.optional_metrics import check_extra, extra_statistics
from modules.scoring.other_files import Split, read_any
from modules.scoring.predictions import R2GenReferences, write_predictions
from modules.scoring.published import published_rows
from modules.scoring.resampling import (
    Statistic,
    interval,
    intervals,
    mean_statistic,
    paired_differences,
    resample_weights,
)
from modules.scoring.score_all import score_all, write_scores
from modules.scoring.score_table import format_table
from modules.scoring.tables import read_run, render, table_rows
from modules.text.earlier import earlier_share, sentences, speaks_of_earlier
from modules.text.labels import CHEXPERT_14

NO_JAVA = tuple(name for name in METRICS if name != "METEOR")
SENTENCES = [
    "The heart is normal.", "The heart is enlarged.", "No pleural effusion.", "Small left pleural effusion.",
    "No pneumothorax.", "The lungs are clear.", "There is pulmonary edema.", "Possible basilar atelectasis.",
    "Unchanged compared to the prior exam.", "Patchy consolidation in the right lung.", "A pacemaker is in place.",
]  # fmt: skip


@pytest.fixture
def no_java(monkeypatch):
    """Scores without METEOR and the PTB tokenizer: nothing here is about them."""
    monkeypatch.setattr(metrics_module, "METRICS", NO_JAVA)


def report(draw: random.Random) -> str:
    return " ".join(draw.choices(SENTENCES, k=draw.randrange(1, 6)))


def made_rows(count: int, seed: int = 0, noise: float = 0.5) -> list[dict]:
    """References and predictions that share sentences; each prediction sentence is another one with chance `noise`."""
    draw, rows = random.Random(seed), []
    texts = [report(draw) for _ in range(count)]
    references = R2GenReferences(texts, "iu_xray", threshold=1)
    for number, text in enumerate(texts):
        kept = [draw.choice(SENTENCES) if draw.random() < noise else part + "." for part in text[:-1].split(". ")]
        rows.append(
            references.row(f"s{number:04d}", text, prepare(" ".join(kept)).lower(), constant="the lungs are clear .")
        )
    return rows


def scored(rows, **settings):
    return score_all(rows, protocols=("r2gen",), resamples=100, **settings)


# ------------------------------------------------------------------------------------------------------- clinical


def states_of(*rows: dict[str, str]) -> np.ndarray:
    return np.array([[STATES.index(row.get(label, "absent")) for label in CHEXPERT_14] for row in rows], dtype=np.int8)


def test_clinical_by_hand():
    gold = states_of(
        {"Edema": "positive"}, {"Edema": "uncertain", "Fracture": "positive"}, {"No Finding": "positive"}, {}
    )
    told = states_of(
        {"Edema": "positive", "Pneumonia": "positive"}, {"Edema": "positive"}, {"No Finding": "positive"}, {}
    )
    value = {key: one.corpus() for key, one in clinical_statistics("x", gold, told).items()}
    assert len(value) == 54 and next(iter(value)) == "ce/x/13/micro/u0/precision"
    # u1: hits Edema 2, No Finding 1; said 4; there 4
    assert [value[f"ce/x/14/micro/u1/{name}"] for name in ("precision", "recall", "f1")] == [3 / 4, 3 / 4, 3 / 4]
    # the same without No Finding: hits Edema 2; said 3; there 3
    assert [value[f"ce/x/13/micro/u1/{name}"] for name in ("precision", "recall", "f1")] == pytest.approx([2 / 3] * 3)
    assert value["ce/x/13/macro/u1/f1"] == pytest.approx(1 / 13) and value["ce/x/13/example/u1/f1"] == (2 / 3 + 2 / 3) / 4
    assert value["ce/x/14/macro/u1/f1"] == pytest.approx((1 + 1) / 14)
    assert value["ce/x/14/example/u1/precision"] == pytest.approx((1 / 2 + 1 + 1 + 0) / 4)
    assert value["ce/x/14/example/u1/f1"] == pytest.approx((2 / 3 + 2 / 3 + 1 + 0) / 4)
    assert value["ce/x/5/micro/u1/f1"] == 1 and value["ce/x/5/macro/u1/recall"] == pytest.approx(1 / 5)
    # u0: the uncertain edema is none, so one of two said is a hit
    assert value["ce/x/5/micro/u0/precision"] == 1 / 2 and value["ce/x/5/micro/u0/recall"] == 1
    assert value["ce/x/14/micro/u0/recall"] == 2 / 3
    table = by_label(gold, told)
    assert table["Edema"]["u0"] == {"precision": 0.5, "recall": 1, "f1": 2 / 3, "reference": 1, "prediction": 2}
    assert table["Edema"]["u1"]["reference"] == 2 and table["Pneumonia"]["u1"]["f1"] == 0
    assert list(table) == list(CHEXPERT_14) and set(FIVE) < set(CHEXPERT_14)


def test_states_by_rules():
    states = label_by_rules(
        ["Small left pleural effusion.", "", "No edema. A pacemaker is in place.", "Possible pneumonia."] * 2
    )
    assert (states[:4] == states[4:]).all() and not states[1].any()
    told = [{label: STATES[row[i]] for i, label in enumerate(CHEXPERT_14) if row[i]} for row in states[:4]]
    assert told[0] == {"Pleural Effusion": "positive"}
    assert told[2] == {"Edema": "negative", "Support Devices": "positive", "No Finding": "positive"}
    assert told[3] == {"Pneumonia": "uncertain"}
    assert abnormal(states[:4]).tolist() == [True, False, False, True]
    assert positive(states[3:4], "u0").sum() == 0 and positive(states[3:4], "u1").sum() == 1


# ------------------------------------------------------------------------------------------- sentences on earlier studies


@pytest.mark.parametrize(
    "text",
    [
        "Heart size is unchanged.", "Compared with the prior study , edema is better .", "No interval change.",
        "New left effusion.", "Effusion has decreased since the previous exam.", "Again seen is a nodule.",
        "Stable cardiomegaly.", "The left tube has been removed.", "The nodule is no longer seen.", "Persistent opacity.",
        "The consolidation is improving.", "In comparison, less fluid.", "Redemonstrated rib fractures.",
    ],
)  # fmt: skip
def test_earlier_studies_are_seen(text):
    assert speaks_of_earlier(text)
    assert speaks_of_earlier("The lungs are clear. " + text)


@pytest.mark.parametrize(
    "text",
    [
        "", "The lungs are clear.", "Old granulomatous disease.", "Chronic changes from prior granulomatous disease.",
        "Healed rib fractures.", "The heart is enlarged.", "No effusion 2.4 cm from the carina.", "Prior sternotomy.",
    ],
)  # fmt: skip
def test_other_sentences_are_not(text):
    assert not speaks_of_earlier(text)


def test_shares_of_sentences():
    assert sentences("A 2.4 cm nodule. 1. Stable\n; no <b>!") == ["a 2.4 cm nodule", "stable", "no <b>"]
    share = earlier_share(["Stable heart. Clear lungs.", "Clear lungs. No effusion.", ""])
    assert share == {"sentences": 1 / 4, "reports": 1 / 3}
    assert earlier_share([""]) == {"sentences": 0, "reports": 0}


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_weights_draw_as_many_studies_as_there_are():
    parts = list(resample_weights(50, 200))
    weights = np.concatenate(parts)
    assert weights.shape == (200, 50) and (weights.sum(1) == 50).all() and len(np.unique(weights, axis=0)) == 200
    assert (weights == np.concatenate(list(resample_weights(50, 200)))).all()
    assert [len(part) for part in resample_weights(3_000_000, 3)] == [1, 1, 1]


def test_intervals_are_those_of_resampled_texts(no_java):
    """Resampling sums gives what resampling texts and scoring them anew gives."""
    rows = made_rows(30)
    references, told = ([prepare(row[name]) for row in rows] for name in ("reference_clean", "prediction"))
    found = text_statistics(references, told, NO_JAVA)
    gold, said = label_by_rules(references), label_by_rules(told)
    weights = np.concatenate(list(resample_weights(30, 40)))
    again = {key: [] for key in ("BLEU_1", "BLEU_4", "ROUGE_L", "ce/x/14/macro/u1/f1", "ce/x/14/example/u0/recall")}
    for drawn in weights.astype(int):
        chosen = np.repeat(np.arange(30), drawn)
        parts = text_statistics(
            [references[i] for i in chosen], [told[i] for i in chosen], ("BLEU_1", "BLEU_4", "ROUGE_L")
        )
        parts |= clinical_statistics("x", gold[chosen], said[chosen])
        for key, values in again.items():
            values.append(parts[key].corpus())
    bounds = intervals(found | clinical_statistics("x", gold, said), 40)
    for key, values in again.items():
        if "/macro/" not in key:  # its resamples leave out a label that none of their references states
            assert bounds[key] == pytest.approx(interval(np.array(values)), rel=1e-9), key
    assert intervals(found, 0) == {}


def population(size: int, seed: int, noise: float) -> dict[str, Statistic]:
    rows = made_rows(size, seed, noise)
    references, told = ([prepare(row[name]) for row in rows] for name in ("reference_clean", "prediction"))
    return text_statistics(references, told, ("BLEU_4", "ROUGE_L")) | {
        key: one
        for key, one in clinical_statistics("x", label_by_rules(references), label_by_rules(told)).items()
        if key == "ce/x/14/micro/u1/f1"
    }


def sample(statistics: dict[str, Statistic], chosen: np.ndarray) -> dict[str, Statistic]:
    return {key: Statistic(one.rows[chosen], one.of_sums) for key, one in statistics.items()}


def test_intervals_cover_the_truth():
    """100 test sets of 200 studies drawn from 4,000, differences of two systems on them: 95 intervals hold the truth, +-."""
    a, b = population(4000, 1, 0.5), population(4000, 1, 0.35)  # one seed: the same references
    truth = {key: b[key].corpus() - a[key].corpus() for key in a}
    draw, covered, called = np.random.default_rng(0), dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(100):
        chosen = draw.integers(4000, size=200)
        for key, found in paired_differences(sample(a, chosen), sample(b, chosen), 1000).items():
            low, high = found["interval"]
            covered[key] += low <= truth[key] <= high
            called[key] += low > 0
    assert min(covered.values()) >= 93, covered
    assert min(called.values()) >= 80, called  # a true difference is found


def test_noise_is_called_equal_and_a_difference_different():
    same, other, better = population(400, 2, 0.5), population(400, 2, 0.5), population(400, 2, 0.3)
    equal = paired_differences(same, other)
    assert all(found["p"] == 1 and found["interval"] == [0, 0] for found in equal.values())
    for found in paired_differences(same, better).values():
        assert found["p"] < 0.01 and found["interval"][0] > 0 and found["difference"] == found["b"] - found["a"]
    # two systems that are equally good: each study's values of one, shuffled between the two by a coin
    draw, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        coin = draw.random(400)[:, None] < 0.5
        one, two = (
            {
                key: Statistic(np.where(coin == side, same[key].rows, better[key].rows), same[key].of_sums)
                for key in same
            }
            for side in (True, False)
        )
        low, high = paired_differences(one, two, 400)["BLEU_4"]["interval"]
        wrong += not low <= 0 <= high
    assert wrong <= 10


# ------------------------------------------------------------------------------------------------------------ all of it


def test_everything_is_scored(no_java):
    rows = made_rows(60)
    found = scored(rows, expected_ids=[row["id"] for row in rows])
    result = found.metrics
    json.dumps(result, allow_nan=False)
    for key in (
        "r2gen/BLEU_4",
        "constant/r2gen/CIDEr",
        "ce/rules-2/14/micro/u0/f1",
        "constant/ce/rules-2/5/example/u1/f1",
    ):
        low, high = result["intervals"][key]
        assert 0 <= low <= result[key] <= high
    parts = result["subsets"]
    assert parts["abnormal"]["studies"] + parts["normal"]["studies"] == 60
    assert parts["earlier"]["studies"] + parts["not_earlier"]["studies"] == 60 and parts["earlier"]["studies"] > 5
    assert "ce/rules-2/14/micro/u1/f1" in parts["abnormal"] and "r2gen/CIDEr" in parts["abnormal"]["intervals"]
    assert parts["label/Edema"]["studies"] == result["by_label"]["rules-2"]["Edema"]["u0"]["reference"]
    assert parts["label/Fracture"] == {"studies": 0}
    assert set(result["words"]["prediction"]) == {"mean", "deviation", "p5", "median", "p95", "most"}
    assert 0 < result["earlier"]["reference"]["sentences"] < 1
    assert result["baselines"] == {"constant": {"distinct_reports": 1, "mean_words_prediction": 5.0}}
    assert len(result["ids_sha256"]) == 16 and set(result["references_sha256"]) == {"r2gen"}
    text = format_table(result)
    for word in ("95% interval", "rules-2 u0", "14 macro", "not earlier", "Sentences about earlier studies"):
        assert word in text


def test_baselines_are_scored_as_a_system_of_their_own(no_java):
    rows = made_rows(30)
    texts = {"constant_cider": ["no edema ."] * 30, "consensus": [row["reference_clean"] for row in reversed(rows)]}
    rows = [row | {name: column[place] for name, column in texts.items()} for place, row in enumerate(rows)]
    result, head = scored(rows).metrics, None
    for name, column in texts.items():
        alone = scored([row | {"prediction": text} for row, text in zip(made_rows(30), column)]).metrics
        for key in ("r2gen/BLEU_4", "r2gen/CIDEr", "ce/rules-2/13/macro/u1/f1"):
            assert result[f"{name}/{key}"] == pytest.approx(alone[key]), (name, key)
            assert result["subsets"]["abnormal"][f"{name}/{key}"] == pytest.approx(alone["subsets"]["abnormal"][key])
        assert result["baselines"][name]["distinct_reports"] == alone["distinct_reports"]
    lines = format_table(result).splitlines()
    head = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:7]]
    assert [row[0] for row in head[2:]] == ["this system", "95% interval", "constant report, BLEU-4 *",
                                            "constant report, CIDEr *", "consensus report *"]  # fmt: skip
    abnormal = result["subsets"]["abnormal"]
    shown = [abnormal["consensus/r2gen/CIDEr"], abnormal["consensus/ce/rules-2/13/micro/u1/f1"]]
    assert head[6][-3:] == [*(f"{value:.4f}" for value in shown), str(result["baselines"]["consensus"]["distinct_reports"])]
    rows[3]["constant_cider"] = "another"
    with pytest.raises(InputError, match="column constant_cider: 2 different texts"):
        scored(rows)


def test_predictions_without_a_finding_are_told(no_java):
    rows = [row | {"prediction": "the lungs are clear . no effusion ."} for row in made_rows(20)]
    assert "no prediction states a finding" in scored(rows).metrics["notes"]["ce/rules-2"]
    rows[7]["prediction"] = "possible edema ."
    assert "ce/rules-2" not in scored(rows).metrics["notes"]


def test_published_rows_stand_beside_the_same_studies_only():
    ids = "5a1ffae1cceeaad4"  # of IU X-Ray's 590
    rows, note = published_rows("iu_xray", {"studies": 590, "ids_sha256": ids})
    assert rows["R2Gen"]["BLEU_4"] == 0.165 and note is None
    for other in ({"studies": 589, "ids_sha256": ids}, {"studies": 590, "ids_sha256": "0" * 16}):
        rows, note = published_rows("iu_xray", other)
        assert rows == {} and "590 in the test split of the papers" in note
    rows, note = published_rows("mimic_cxr", {"studies": 3858, "ids_sha256": "any"})
    assert "EKAGen" in rows and "the ids of their split are not known" in note
    assert published_rows("miniature", {"studies": 3}) == ({}, None) == published_rows(None, {})


def test_a_subset_is_scored_as_if_alone(no_java):
    rows = made_rows(40)
    whole = scored(rows).metrics["subsets"]["abnormal"]
    gold = abnormal(label_by_rules([row["reference"] for row in rows]))
    alone = scored([row for row, chosen in zip(rows, gold) if chosen]).metrics
    for key in ("r2gen/BLEU_4", "r2gen/ROUGE_L", "ce/rules-2/14/macro/u0/f1"):
        assert whole[key] == pytest.approx(alone[key], rel=1e-12)
    assert whole["intervals"]["r2gen/BLEU_4"] == pytest.approx(alone["intervals"]["r2gen/BLEU_4"])


def test_order_does_not_matter_and_files_say_it(no_java, tmp_path):
    rows = made_rows(30)
    first = scored(rows)
    random.Random(3).shuffle(rows)
    second = scored(rows)
    assert first.metrics == second.metrics
    write_scores(tmp_path, "test", second, {"split": "test"})
    with open(tmp_path / "scores_test.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == sorted(row["id"] for row in rows)
    expected = {"id", *(f"r2gen/{name}" for name in NO_JAVA), *(f"ce/rules-2/14/example/{u}/f1" for u in ("u0", "u1"))}
    assert set(table[0]) == expected
    mean = np.mean([float(row["r2gen/ROUGE_L"]) for row in table])
    assert mean == pytest.approx(first.metrics["r2gen/ROUGE_L"], abs=1e-5)
    with open(tmp_path / "labels_test.csv", newline="") as file:
        labels = list(csv.DictReader(file))
    assert len(labels) == 60 and set(labels[0]) == {"id", "labeler", "side", *CHEXPERT_14}
    assert {row["side"] for row in labels} == {"reference", "prediction"} and {row["labeler"] for row in labels} == {
        "rules-2"
    }
    assert {row["Edema"] for row in labels} == {"", "1"} and "-1" in {row["Atelectasis"] for row in labels}
    assert json.loads((tmp_path / "metrics_test.json").read_text())["metrics"]["studies"] == 30


STRANGE = [
    "", " ", "a\nb", "||| heart |||", "<script>alert('x')</script>", "\"quoted, 'text'\"", "😀 é", "normal " * 5000,
    "\ud800 lone \x00 nul", "SCORE ||| x ||| y", "1. 2. 3.", "..",
]  # fmt: skip


def test_strange_reports_are_scored(tmp_path):
    """With Java where there is one: every protocol, both sides, identical to the reference too."""
    training = R2GenReferences(SENTENCES, "iu_xray", threshold=1)
    rows = [training.row(f"p{n}", SENTENCES[n % 11], text) for n, text in enumerate(STRANGE)]
    rows += [training.row(f"r{n}", text, SENTENCES[n % 11]) for n, text in enumerate(STRANGE)]
    rows += [training.row(f"i{n}", text, text) for n, text in enumerate(STRANGE) if len(text) < 5000]
    usual = [training.row(f"u{n}", text, SENTENCES[n - 1]) for n, text in enumerate(SENTENCES)]
    found = score_all(rows + usual, resamples=50, meteor=OneJava.meteor)
    alone = score_all(usual, resamples=0, protocols=("r2gen",), meteor=OneJava.meteor)
    write_predictions(tmp_path / "predictions_test.csv", rows + usual)
    write_scores(tmp_path, "test", found, {"split": "test"})
    for key in ("r2gen/METEOR", "r2gen/BLEU_4", "ce/rules-2/14/example/u1/f1"):
        if found.statistics[key] is not None:
            values = dict(zip(found.ids, found.statistics[key].studies()))
            assert [values[name] for name in alone.ids] == pytest.approx(
                alone.statistics[key].studies().tolist(), abs=1e-12
            )
            assert all(np.isfinite(one.studies()).all() for one in found.statistics.values() if one is not None)
    with open(tmp_path / "scores_test.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows) + len(usual)


# ---------------------------------------------------------------------------------------------------- optional packages


def test_extra_metrics_that_cannot_be_had_are_told(monkeypatch):
    for name in ("radgraph", "radeval"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    statistics, notes = extra_statistics(["radgraph", "radeval:ratescore"], ["a"], ["b"])
    levels = {f"radgraph/radgraph-xl/{level}": None for level in ("simple", "partial", "complete")}
    assert statistics == {**levels, "radeval/ratescore": None}
    assert notes["radgraph"] == "the optional package radgraph is not installed (pip install radgraph)"
    for name, message in (
        ("radeval:crimson", "sends reports to a service"),
        ("rouge", "known are"),
        ("radeval", "known are"),
    ):
        with pytest.raises(InputError, match=message):
            check_extra([name])


def stand_in(monkeypatch, name: str, **parts) -> None:
    """A package of the same interface in the place of the real one."""
    package = types.ModuleType(name)
    package.__dict__.update(parts)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr("importlib.util.find_spec", lambda found: found in sys.modules or None)


def test_extra_metrics_of_packages(monkeypatch, no_java, tmp_path):
    class F1RadGraph:
        def __init__(self, reward_level, model_type, model_cache_dir):
            assert (reward_level, model_type) == ("all", "radgraph-xl")

        def __call__(self, refs, hyps):
            values = [float(len(a) == len(b)) for a, b in zip(refs, hyps)]
            return (0, 0, 0), (values, values, [v / 2 for v in values]), [], []

    class RadEval:
        def __init__(self, metrics, per_sample, show_progress):
            assert per_sample
            self.metric = metrics[0]

        def __call__(self, refs, hyps):
            if self.metric == "broken":
                raise OSError("no weights")
            return {self.metric: [0.25] * (len(refs) - (self.metric == "short"))}

    stand_in(monkeypatch, "radgraph", F1RadGraph=F1RadGraph)
    stand_in(monkeypatch, "radeval", RadEval=RadEval)
    names = ["radgraph", "radeval:ratescore", "radeval:broken", "radeval:short"]
    found = scored(made_rows(10), extra=names).metrics
    assert found["radgraph/radgraph-xl/complete"] == found["radgraph/radgraph-xl/simple"] / 2
    assert found["radeval/ratescore"] == 0.25 and found["intervals"]["radeval/ratescore"] == [0.25, 0.25]
    assert found["radeval/broken"] is None and found["notes"]["radeval:broken"] == "OSError: no weights"
    assert found["radeval/short"] is None and "one number per study" in found["notes"]["radeval:short"]
    _, notes = extra_statistics(["radgraph"], ["a"], ["a"], radgraph_dir=str(tmp_path))
    assert "has no radgraph-xl/weights.th" in notes["radgraph"]


# ------------------------------------------------------------------------------------------------------- files of others


@pytest.fixture
def split():
    draw = random.Random(5)
    reports = {f"CXR{n}": report(draw) for n in range(8)}
    return Split("test", reports, R2GenReferences(SENTENCES, "iu_xray", threshold=1), {"constant": "the lungs are clear ."})


def told(split) -> dict[str, str]:
    return {study: f'prediction {n}, "quoted"\nline ||| 2.' for n, study in enumerate(split.reports)}


def write_csv(path, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_every_form_is_read(split, tmp_path):
    predictions, truth = told(split), [split.references.r2gen(text) for text in split.reports.values()]
    expected = split.rows(predictions)
    back = dict(reversed(predictions.items()))
    write_csv(tmp_path / "ids.csv", [("report", "dicom_id"), *((text, study) for study, text in back.items())])
    write_csv(tmp_path / "res.csv", [(text,) for text in predictions.values()])
    write_csv(tmp_path / "gts.csv", [(text,) for text in truth])
    write_csv(tmp_path / "two.csv", [("Ground_Truth", "generated"), *zip(truth, predictions.values())])
    (tmp_path / "map.json").write_text(json.dumps(back))
    entries = [{"study_id": study, "report": "reference", "model_prediction": text} for study, text in back.items()]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    copied = {study: {"section_findings": "x", "model_prediction": text} for study, text in predictions.items()}
    (tmp_path / "rexrank.json").write_text(json.dumps(copied))
    for name in ("ids.csv", "res.csv", "two.csv", "map.json", "list.json", "rexrank.json"):
        assert read_any(tmp_path / name, split) == expected, name
        with pytest.raises(InputError, match="give --reference"):
            read_any(tmp_path / name, None)
    write_predictions(tmp_path / "ours.csv", expected)
    assert read_any(tmp_path / "ours.csv", None) == read_any(tmp_path / "ours.csv", split) == expected


def test_ids_lost_double_or_foreign_are_named(split, tmp_path):
    predictions = told(split)
    pairs = [("id", "prediction"), *predictions.items()]
    for rows, message in (
        (pairs[:-1], r"1 missing \(CXR7\)"),
        ([*pairs, ("CXR9", "x")], r"1 unexpected \(CXR9\)"),
        ([*pairs, pairs[1]], "1 ids occur more than once, such as CXR0"),
        ([pairs[0][:1], *(row[:1] for row in pairs[1:])], "no column of texts"),
        ([*pairs, ("x",)], "row 10 has 1 values"),
    ):
        write_csv(tmp_path / "p.csv", rows)
        with pytest.raises(InputError, match=message):
            read_any(tmp_path / "p.csv", split)
    (tmp_path / "p.json").write_text('{"CXR0": "a", "CXR0": "b"}')
    with pytest.raises(InputError, match="more than once, such as CXR0"):
        read_any(tmp_path / "p.json", split)
    rows = split.rows(predictions)
    write_predictions(tmp_path / "ours.csv", rows[1:])
    with pytest.raises(InputError, match=r"ours.csv: .*1 missing \(CXR0\)"):
        read_any(tmp_path / "ours.csv", split)
    write_predictions(tmp_path / "ours.csv", [{**rows[0], "reference": "another"}, *rows[1:]])
    with pytest.raises(InputError, match="references of 1 studies are not those"):
        read_any(tmp_path / "ours.csv", split)


def test_files_without_ids_need_their_ground_truth(split, tmp_path):
    texts = [(text,) for text in told(split).values()]
    write_csv(tmp_path / "res.csv", texts)
    with pytest.raises(InputError, match="needs gts.csv beside it"):
        read_any(tmp_path / "res.csv", split)
    truth = [(split.references.r2gen(text),) for text in split.reports.values()]
    write_csv(tmp_path / "gts.csv", truth[:-1])
    with pytest.raises(InputError, match="8 reports, 7 ground truths, 8 studies"):
        read_any(tmp_path / "res.csv", split)
    write_csv(tmp_path / "gts.csv", truth[1:] + truth[:1])
    with pytest.raises(InputError, match=r"ground truth of row \d is not the report of CXR"):
        read_any(tmp_path / "res.csv", split)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.csv", "", "is empty"),
        ("p.json", "{", "is not a JSON file"),
        ("p.json", "[1]", "neither an object of studies"),
        ("p.json", '{"a": 1}', "study 'a' needs an id"),
        ("p.json", '[{"text": "x"}]', "study None needs an id"),
        ("p.csv", "a,b,c\n1,2,3\n", "no column of ids"),
    ],
)
def test_no_known_form(split, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_any(tmp_path / name, split)


# -------------------------------------------------------------------------------------------------------------- tables


def run_folder(path, rows, *, seed=None, flags=None, **facts):
    """A results folder as main_test.py leaves it."""
    path.mkdir()
    write_scores(path, "test", scored(rows), {"split": "test", "data_set": "iu_xray", **facts})
    if seed is not None:
        (path / "run.json").write_text(json.dumps({"flags": {"seed": seed, "save_dir": str(path), **(flags or {})}}))
    return path


def test_seeds_stand_together(no_java, tmp_path):
    runs = [
        run_folder(tmp_path / f"full_{seed}", made_rows(20, noise=n), seed=seed) for seed, n in ((1, 0.2), (2, 0.6))
    ]
    runs.append(run_folder(tmp_path / "other", made_rows(20), seed=1, flags={"adm": False}, oracle_labels=True))
    header, rows, notes = table_rows([read_run(path, "test") for path in runs], "r2gen", {"R2Gen": {"BLEU_4": 0.165}})
    assert [row[:2] for row in rows] == [
        ["full", "2"], ["other (oracle)", "1"], ["constant report, BLEU-4 *", "-"], ["R2Gen (published)", "-"],
    ]  # fmt: skip
    values = [read_run(path, "test").metrics["r2gen/BLEU_4"] for path in runs[:2]]
    place = header.index("BLEU-4")
    assert rows[0][place] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" and rows[3][place] == "0.165"
    assert any("oracle" in note for note in notes) and "± is the standard deviation" in " ".join(notes)
    markdown, table, latex = (render(header, rows, notes, form) for form in ("markdown", "csv", "latex"))
    assert len({len(line) for line in markdown.splitlines()[:6]}) == 1
    assert list(csv.reader(table.splitlines()))[1] == rows[0]
    assert r"constant report, BLEU-4 $^*$" in latex and r"$\pm$" in latex and latex.count("\\\\\n") == 5
    assert latex.count(r"\midrule") == 3 and r"\caption{r2gen, 20 studies" in latex


def test_same_seed_twice_is_no_spread(no_java, tmp_path):
    runs = [run_folder(tmp_path / name, made_rows(10), seed=1) for name in ("a", "b")]
    _, rows, _ = table_rows([read_run(path, "test") for path in runs], "r2gen")
    assert [row[:2] for row in rows[:2]] == [["a", "1"], ["b", "1"]]


def test_what_cannot_be_compared_is_refused(no_java, tmp_path):
    first = run_folder(tmp_path / "a", made_rows(20))
    other_ids = run_folder(tmp_path / "b", made_rows(19))
    threshold = [{**row, "reference_r2gen": "<unk> " + row["reference_r2gen"]} for row in made_rows(20)]
    for path, message in (
        (other_ids, r"b and a differ in their studies \(hash of the ids\)"),
        (run_folder(tmp_path / "c", threshold), r"differ in their references of r2gen"),
        (
            run_folder(tmp_path / "d", made_rows(20), data_set="mimic_cxr"),
            "differ in their data set: mimic_cxr, iu_xray",
        ),
    ):
        with pytest.raises(InputError, match=message):
            table_rows([read_run(one, "test") for one in (first, path)], "r2gen")
    with pytest.raises(InputError, match="a was scored under r2gen, not under clean"):
        table_rows([read_run(first, "test")], "clean")
    with pytest.raises(InputError, match="metrics_val.json cannot be read"):
        read_run(first, "val")
    with pytest.raises(InputError, match="of split test, not val"):
        read_run(first / "metrics_test.json", "val")
    (tmp_path / "old.json").write_text('{"split": "test", "metrics": {}}')
    with pytest.raises(InputError, match="does not say what was scored"):
        read_run(tmp_path / "old.json", "test")


# ----------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def annotation(tmp_path, split):
    content = {"test": [{"id": study, "report": text} for study, text in split.reports.items()]}
    content |= {
        name: [{"id": f"{name}{n}", "report": text} for n, text in enumerate(SENTENCES * 3)]
        for name in ("train", "val")
    }
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps(content))
    return path


def command(capsys, *words) -> str:
    main_test.main([*map(str, words)])
    return capsys.readouterr().out


def test_score_compare_and_table_from_the_command_line(no_java, annotation, split, tmp_path, capsys):
    few = ["--protocols", "r2gen", "--bootstrap", "50"]
    for name, other in (("one", "The heart is normal."), ("two", "No pleural effusion.")):
        write_csv(tmp_path / f"{name}.csv", [("id", "report"), *((study, other) for study in split.reports)])
        words = ["--score", tmp_path / f"{name}.csv", "--reference", annotation, "--save_dir", tmp_path / name, *few]
        said = command(capsys, *words, "--export", "csv")
        assert "constant report, CIDEr *" in said and "8 studies, prepared as iu_xray" in said
        files = {f"{what}_test.csv" for what in ("predictions", "scores", "labels")}
        files |= {"metrics_test.json", "csv_test.csv", "index.html"}
        assert {path.name for path in (tmp_path / name).iterdir()} == files
    before = json.loads((tmp_path / "one" / "metrics_test.json").read_text())
    said = command(capsys, "--score", tmp_path / "one" / "predictions_test.csv", *few)
    again = json.loads((tmp_path / "one" / "metrics_test.json").read_text())
    assert "ids: not checked against a split" in said
    assert again["metrics"]["r2gen/BLEU_1"] == before["metrics"]["r2gen/BLEU_1"]
    assert again["data_set"] == "iu_xray" and "scored_again" in again
    words = [
        "--compare",
        tmp_path / "one.csv",
        tmp_path / "two" / "predictions_test.csv",
        "--reference",
        annotation,
        *few,
    ]
    said = command(capsys, *words, "--out", tmp_path / "difference.json")
    assert "r2gen/BLEU_4" in said and "not distinguished" in said and "ce/rules-2/13/micro/u1/f1" in said
    assert json.loads((tmp_path / "difference.json").read_text())["studies"] == 8
    said = command(
        capsys, "--table", tmp_path / "one", tmp_path / "two", "--table_format", "csv", "--out", tmp_path / "t.csv"
    )
    assert said.startswith("system,seeds,BLEU-1") and "(published)" not in said
    assert (tmp_path / "t.csv").read_text() == said


@pytest.mark.parametrize(
    "words, message",
    [
        (["--score", "none.csv"], "no file none.csv"),
        (["--score", "a", "--table", "b"], "--score and --table: one at a time"),
        (["--score", "a.csv", "--baselines", "all"], "--baselines all needs the training studies: give --reference"),
        (["--compare", "a", "b", "--bootstrap", "0"], "--bootstrap must be 1 or more"),
        (["--export", "rexrank"], "--export goes with --score"),
        (["--compare", "a.csv"], "--compare takes two files"),
        (["--score", "a.csv", "--extra_metrics", "radeval:crimson"], "sends reports to a service"),
        (["--score", "a.csv", "--chexbert_path", "none.pth"], "no file none.pth"),
        (["--score", "a.csv", "--reference", "none.json"], "none.json cannot be read"),
    ],
)
def test_wrong_commands_are_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        main_test.main(words)
    assert left.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--baselines", "constant"]])
def test_weights_go_with_a_file_for_its_baselines_alone(more):
    words = ["--score", "a", "--load", "best.pt", *more]
    with pytest.raises(InputError, match="--score and --load: one at a time"):
        run_command(parse(words, "test", systems=SYSTEMS), open_image=None)


def test_mean_statistic():
    assert mean_statistic([1.0, 0.0, 0.5]).corpus() == 0.5
    assert mean_statistic([1.0, 0.0, 0.5]).corpus(np.array([True, False, True])) == 0.75
