"""The miniature set: same bytes again, reports that say what is drawn, truth that lies where the image changes."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from data.miniature_set import build as miniature
from data.miniature_set.drawing import DRAW, VIEWS, draw
from data.miniature_set.text import label_vector, sample
from modules.errors import InputError
from modules.text.labels import CHEXPERT_14, NO_FINDING

SAID = {  # a small rule-based labeler: words that name a label
    "Atelectasis": r"atelectasis",
    "Cardiomegaly": r"cardiomegaly|enlarged",
    "Consolidation": r"consolidation",
    "Edema": r"edema",
    "Fracture": r"fracture",
    "Lung Lesion": r"nodule|mass\b",
    "Lung Opacity": r"opacity",
    "Pleural Effusion": r"effusion",
    "Pneumothorax": r"pneumothorax",
    "Support Devices": r"pacemaker|catheter|tube",
}
LUNG = {"Atelectasis", "Consolidation", "Edema", "Lung Lesion", "Lung Opacity"}
MANY = [sample(0, index) for index in range(500)]


def sentences(report):
    return [sentence.lower() for sentence in re.findall(r"[^.]+\.", report)]


def claims(report):
    """{label: the sentence that affirms it} and the set of denied labels."""
    affirmed, denied = {}, set()
    for sentence in sentences(report):
        named = [label for label, words in SAID.items() if re.search(words, sentence)]
        if re.search(r"\b(no|without)\b", sentence):
            denied.update(named)
        else:
            assert not set(named) & affirmed.keys(), report
            affirmed |= dict.fromkeys(named, sentence)
    return affirmed, denied


def sides(sentence):
    found = {side for side in ("right", "left") if re.search(rf"\b{side}\b", sentence)}
    return {"right", "left"} if re.search(r"\b(bilateral|both)\b", sentence) else found


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def build(out, **changes):
    return miniature.build(out, **{"studies": 20, "image_size": 64, "progress": False} | changes)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniature") / "set"
    build(root)
    return root


def test_the_report_says_what_is_drawn_and_nothing_else():
    for study in MANY:
        affirmed, denied = claims(study.report)
        assert affirmed.keys() == {finding.label for finding in study.findings}, study.report
        assert not denied & affirmed.keys(), study.report
        for label, sentence in affirmed.items():
            group = [finding for finding in study.findings if finding.label == label]
            drawn = {finding.side for finding in group if finding.side and finding.side != "bilateral"}
            assert label == "Edema" or sides(sentence) == drawn, (sentence, group)
            degree = group[0].severity or group[0].size
            assert degree is None or degree in sentence, (sentence, group)
            if group[0].place in ("upper", "mid", "lower"):
                assert group[0].place in sentence, (sentence, group)


def test_no_normal_statement_contradicts_a_finding():
    for study in MANY:
        labels = {finding.label for finding in study.findings}
        for sentence in sentences(study.report):
            if labels & LUNG and "clear" in sentence:
                assert "otherwise" in sentence or "rest of" in sentence, study.report
            if "Cardiomegaly" in labels and re.search(r"\b(heart|cardi\w+)\b", sentence):
                assert "normal" not in sentence, study.report
            if "Fracture" in labels:
                assert not re.search(r"\bbon[ey]", sentence), study.report


def test_reports_are_varied_within_a_small_vocabulary():
    reports = [study.report for study in MANY]
    assert len(set(reports)) > 0.7 * len(reports)
    assert len({word for report in reports for word in re.findall(r"[a-z]+", report.lower())}) < 250
    assert all(3 <= len(sentences(report)) <= 7 for report in reports)


def test_labels_are_few_vectors_with_a_normal_majority():
    vectors = [tuple(label_vector(list(study.findings)).values()) for study in MANY]
    normal = CHEXPERT_14.index(NO_FINDING)
    assert 0.5 < np.mean([vector[normal] for vector in vectors]) < 0.6
    device = CHEXPERT_14.index("Support Devices")
    assert all(vector[normal] == (sum(vector) - vector[normal] - vector[device] == 0) for vector in vectors)
    assert len(set(vectors)) <= 40
    assert {finding.label for study in MANY for finding in study.findings} == DRAW.keys() == SAID.keys()


def test_files_and_counts(twenty):
    manifest = json.loads((twenty / "manifest.json").read_text())
    annotation = json.loads((twenty / "annotation.json").read_text())
    assert {path.name for path in twenty.iterdir()} == set(miniature.NAMES)
    assert {split: len(rows) for split, rows in annotation.items()} == manifest["splits"] == \
        {"train": 15, "val": 2, "test": 3}
    rows = list(csv.DictReader(open(twenty / "labels.csv")))
    assert list(rows[0]) == ["split", "id", *CHEXPERT_14]
    by_id = {row["id"]: row for row in rows}
    assert {label: sum(int(row[label]) for row in rows) for label in CHEXPERT_14} == manifest["labels"]
    for split, studies in annotation.items():
        for study in studies:
            assert list(study) == ["id", "report", "image_path", "split"]
            assert study["split"] == split == by_id[study["id"]]["split"]
            for path in study["image_path"]:
                image = Image.open(twenty / "images" / path)
                assert image.mode == "L" and image.size == (64, 64)
            said, _ = claims(study["report"])
            marked = {label for label in CHEXPERT_14 if by_id[study["id"]][label] == "1"}
            healthy = {NO_FINDING} if said.keys() <= {"Support Devices"} else set()
            assert said.keys() | healthy == marked


def test_the_same_parameters_give_the_same_bytes(twenty, tmp_path):
    build(tmp_path / "again")
    assert files(tmp_path / "again") == files(twenty)


def test_a_study_does_not_depend_on_the_size_of_the_set(twenty, tmp_path):
    build(tmp_path / "forty", studies=40)
    small, large = files(twenty), files(tmp_path / "forty")
    images = [name for name in small if name.startswith("images/")]
    assert len(images) == 40 and all(small[name] == large[name] for name in images)
    for split, rows in json.loads(small["annotation.json"]).items():
        assert json.loads(large["annotation.json"])[split][:len(rows)] == rows
    build(tmp_path / "other", seed=1)
    assert all(files(tmp_path / "other")[name] != small[name] for name in images)


@pytest.mark.parametrize("label", sorted(DRAW))
def test_a_finding_changes_the_image_in_its_box(label):
    chosen = [study for study in MANY if label in {finding.label for finding in study.findings}][:4]
    for study in chosen:
        for number, finding in enumerate(study.findings):
            if finding.label != label:
                continue
            for view in VIEWS:
                image, masks = draw(study, view, 128)
                without, _ = draw(study, view, 128, without=number)
                changed = np.abs(image.astype(int) - without) > 12
                box = miniature.box_of(masks[number])
                if box is None:
                    assert view == "lateral" and not changed.any(), study
                    continue
                assert all(0 <= low < high <= 1 for low, high in ((box[0], box[2]), (box[1], box[3])))
                x0, y0, x1, y1 = (round(128 * corner) for corner in box)
                assert changed[y0:y1, x0:x1].sum() >= 15, (study, view)
                assert changed[y0:y1, x0:x1].sum() > 0.5 * changed.sum(), (study, view)


def test_right_lies_left_in_the_frontal_image(twenty):
    for study in MANY[:150]:
        one_sided = [number for number, finding in enumerate(study.findings) if finding.side in ("right", "left")
                     and finding.label != "Support Devices"]
        if one_sided:
            _, masks = draw(study, "frontal", 64)
        for number in one_sided:
            x0, _, x1, _ = miniature.box_of(masks[number])
            assert ((x0 + x1) / 2 < 0.5) == (study.findings[number].side == "right")


def test_truth_is_read_back_with_masks_inside_the_boxes(twenty):
    truth = miniature.load_truth(twenty)
    assert list(truth) == [f"MINI{index:06d}" for index in range(20)]
    for index, found in enumerate(truth.values()):
        assert [finding["label"] for finding in found] == [finding.label for finding in sample(0, index).findings]
        for finding in found:
            if len([other for other in found if other["label"] == finding["label"]]) > 1:
                continue                                                    # two sides share one mask
            rows, columns = np.nonzero(finding["mask"])
            x0, y0, x1, y1 = finding["boxes"]["frontal"]
            size = miniature.MASK_SIZE
            assert len(rows) and x0 - 0.02 <= columns.min() / size and columns.max() / size <= x1 + 0.02
            assert y0 - 0.02 <= rows.min() / size and rows.max() / size <= y1 + 0.02


def test_a_whole_set_is_kept(tmp_path, capsys):
    manifest = build(tmp_path / "set", studies=8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert build(tmp_path / "set", studies=8, progress=True) == manifest
    assert "kept" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_another_or_broken_set_is_refused_until_overwrite(tmp_path):
    out = tmp_path / "set"
    whole = build(out, studies=8)
    with pytest.raises(InputError, match="studies 8.*--overwrite"):
        build(out, studies=9)
    next(out.glob("images/*/1.png")).unlink()
    with pytest.raises(InputError, match="missing or changed.*--overwrite"):
        build(out, studies=8)
    (out / "manifest.json").unlink()
    with pytest.raises(InputError, match="not a whole.*--overwrite"):
        build(out, studies=8)
    with pytest.raises(InputError, match="python -m data.miniature_set"):
        miniature.load_truth(out)
    assert build(out, studies=8, overwrite=True) == whole
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="no part of a miniature set"):
        build(out, studies=8, overwrite=True)


def test_a_build_that_stops_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(miniature.np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", studies=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"studies": 3}, {"image_size": 8}, {"seed": -1}])
def test_bad_parameters_are_named(tmp_path, wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
        build(tmp_path / "set", **wrong)


def test_the_command_refuses_without_traceback(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as stopped:
        miniature.main(["--out", str(tmp_path), "--studies", "8"])
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err
