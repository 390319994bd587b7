"""data.check: each of 20 planted faults gives exactly its line; the same input the same check.json; raw files, artefacts."""

import argparse
import gzip
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import call
from PIL import Image

from data.check.annotation import R2GEN_IU
from data.check.artefacts import check_artefacts
from data.check.findings import Findings
from data.check.raw import LABELS, check_raw
from data.check.run import check_run
from data.equalize import equalize
from modules.artefact import sha256, write_json

STUDIES = {"train": 24, "val": 8, "test": 8}
SITES = "apex base hilum periphery recess fissure vessel rib clavicle spine".split()


def grey(number: int) -> Image.Image:
    """A made image of 64 x 64: dark border, bright middle, noise of its own."""
    draw = np.random.default_rng(number)
    down, across = np.mgrid[-1:1:64j, -1:1:64j]
    middle = 200 * np.exp(-3 * (down**2 + across**2)) + draw.integers(20, 40, (64, 64))
    return Image.fromarray(middle.astype(np.uint8))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A made data set without a fault."""
    root = tmp_path_factory.mktemp("good")
    (root / "images").mkdir()
    content, number = {}, 0
    for split, count in STUDIES.items():
        content[split] = []
        for _ in range(count):
            site, side = SITES[number % 10], ("left", "right")[number // 10 % 2]
            grey(number).save(root / "images" / f"{number}.png")
            report = f"The {side} {site} is clear. The heart has its size in study {'abcd'[number // 10]}."
            row = {"id": f"s{number}", "subject_id": number, "report": report, "image_path": [f"{number}.png"]}
            content[split].append(row)
            number += 1
    (root / "annotation.json").write_text(json.dumps(content))
    write_json(root / "annotation.manifest.json", {"sha256": sha256(root / "annotation.json")})
    return root


class QuickMeteor:
    """Stands for METEOR, whose Java takes seconds to start; test_the_command starts the real one."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self):
        return None


@pytest.fixture(autouse=True)
def quick_meteor(monkeypatch):
    monkeypatch.setattr("data.check.weights.Meteor", QuickMeteor)


class Plain:
    """Stands for a system that reads images and reports only."""

    released_files = {}

    @staticmethod
    def inputs(args, *, training):
        return set()


def flags(root, **more):
    values = {
        "dataset_name": "custom", "ann_path": str(root / "annotation.json"), "image_dir": str(root / "images"),
        "knowledge_dir": str(root / "knowledge"), "cleaning": "iu_xray", "threshold": 1, "image_size": 64, "max_views": 1,
        "image_cache": True, "device": "cpu", "visual_extractor": "resnet18", "extractor_weights": "none",
        "weights_dir": None, "offline": True, "chexbert_path": None, "chexbert_vocab": None, "radgraph_dir": None, **more,
    }  # fmt: skip
    return argparse.Namespace(**values)


class Faulty:
    """A copy of the good data set with edits; the manifest follows the annotation unless told otherwise."""

    def __init__(self, good, folder):
        self.root, self.more = folder / "set", {}
        shutil.copytree(good, self.root)
        self.content = json.loads((good / "annotation.json").read_text())
        self.manifest = True

    def row(self, number: int) -> dict:
        return next(row for rows in self.content.values() for row in rows if row["image_path"] == [f"{number}.png"])

    def image(self, number: int, image: Image.Image) -> None:
        image.save(self.root / "images" / f"{number}.png")

    def pixels(self, number: int) -> np.ndarray:
        return np.asarray(grey(number))

    def check(self, depth="full") -> Findings:
        (self.root / "annotation.json").write_text(json.dumps(self.content))
        if self.manifest:
            write_json(self.root / "annotation.manifest.json", {"sha256": sha256(self.root / "annotation.json")})
        return check_run(flags(self.root, **self.more), Plain, depth=depth)


def cut(one):
    path = one.root / "images" / "13.png"
    path.write_bytes(path.read_bytes()[:-40])


def equalized_test(one):
    for row in one.content["test"][1:]:
        number = int(row["image_path"][0][:-4])
        one.image(number, Image.fromarray(equalize(one.pixels(number))))


def other_words(one):
    for row in one.content["val"]:
        row["report"] = row["report"].replace("is clear", "bleibt weiterhin unauffällig belüftet")


FAULTS = {
    ("annotation", "layout", "wrong"): lambda one: one.content["train"].append({"id": "x", "report": None, "image_path": []}),
    ("annotation", "ids", "wrong"): lambda one: one.row(0).update(id="s1"),
    ("annotation", "image lists", "wrong"): lambda one: one.row(2).update(image_path=[]),
    ("annotation", "patients", "unusual"): lambda one: one.row(3).update(subject_id=39),
    ("annotation", "shared images", "unusual"): lambda one: one.row(38).update(image_path=["37.png", "0.png"]),
    ("annotation", "empty reports", "wrong"): lambda one: one.row(5).update(report=" 1. "),
    ("annotation", "short reports", "unusual"): lambda one: one.row(6).update(report="All clear."),
    ("annotation", "long reports", "unusual"): lambda one: one.row(7).update(report="The left base is clear. " * 120),
    ("annotation", "characters", "unusual"): lambda one: one.row(8).update(report="The left \ufffd base is clear. So is it."),
    ("annotation", "unknown words", "unusual"): other_words,
    ("annotation", "manifest", "unusual"): lambda one: setattr(one, "manifest", False) or one.row(4).update(note=""),
    ("images", "files", "missing"): lambda one: (one.root / "images" / "12.png").unlink(),
    ("images", "readable", "wrong"): cut,
    ("images", "one grey", "wrong"): lambda one: one.image(14, Image.new("L", (64, 64), 40)),
    ("images", "size", "unusual"): lambda one: one.image(15, grey(15).resize((24, 24))),
    ("images", "aspect", "unusual"): lambda one: one.image(16, grey(16).resize((64, 140))),
    ("images", "16 bit", "unusual"): lambda one: one.image(17, Image.fromarray(one.pixels(17).astype(np.uint16) * 256)),
    ("images", "inverted", "unusual"): lambda one: one.image(18, Image.fromarray(255 - one.pixels(18))),
    ("images", "colour", "unusual"): lambda one: one.image(
        19, Image.merge("RGB", [grey(19), grey(19), grey(19).transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    ),
    ("images", "equalisation", "unusual"): equalized_test,
    ("weights", "backbone", "missing"): lambda one: one.more.update(extractor_weights="nowhere.pth"),
}  # fmt: skip


def unusual_lines(found: Findings) -> set:
    return {(item.group, item.what, item.status) for item in found.items if item.status != "found"}


def test_a_good_set_is_ready(good):
    found = check_run(flags(good), Plain, depth="full")
    assert unusual_lines(found) == set() and found.exit_code() == 0
    assert all(line.startswith("found ") for line in found.lines())


@pytest.mark.parametrize("line", FAULTS, ids=lambda line: line[1])
def test_a_fault_gives_exactly_its_line(good, tmp_path, line):
    one = Faulty(good, tmp_path)
    FAULTS[line](one)
    found = one.check()
    assert unusual_lines(found) == {line}
    item = next(item for item in found.items if item.status != "found")
    assert item.todo, "a line says what to do"
    assert found.exit_code() == (2 if line[2] == "unusual" else 1) and found.exit_code(strict=True) == 1


def test_all_faults_give_exactly_their_lines(good, tmp_path):
    assert len(FAULTS) >= 20
    one = Faulty(good, tmp_path)
    for plant in FAULTS.values():
        plant(one)
    found = one.check()
    assert unusual_lines(found) == set(FAULTS) and found.exit_code() == 1
    assert one.check().lines() == found.lines()


@pytest.mark.parametrize("content", ['{"train": [}', "[]", '{"train": []}', '{"train": null, "val": [], "test": []}'])
def test_an_annotation_that_is_none(tmp_path, content):
    (tmp_path / "annotation.json").write_text(content)
    found = check_run(flags(tmp_path), Plain, depth="quick")
    assert unusual_lines(found) == {("annotation", "layout", "wrong")}


def test_empty_splits_repeated_and_single_sentences_and_earlier_studies(good, tmp_path):
    one = Faulty(good, tmp_path)
    for split in ("val", "test"):
        for row in one.content[split]:
            row["report"] = "Compared with the prior study the left apex is unchanged"
    for row in one.content["train"]:
        row["report"] = "Compared with the prior study the left apex is unchanged"
    expected = {("annotation", what, "unusual") for what in ("known reports", "one sentence", "earlier studies")}
    assert unusual_lines(one.check()) == expected
    one.content["val"] = []
    assert unusual_lines(one.check()) == expected | {("annotation", "counts", "wrong")}


def test_counts_and_hashes_of_r2gen(good):
    found = check_run(flags(good, dataset_name="iu_xray"), Plain, depth="quick")
    assert unusual_lines(found) == {("annotation", "counts", "unusual"), ("annotation", "R2Gen's", "unusual")}


def test_twenty_names_are_printed_and_all_are_kept(good, tmp_path):
    one = Faulty(good, tmp_path)
    for image in (one.root / "images").iterdir():
        image.unlink()
    found = one.check()
    lines = found.lines()
    assert lines[-1].startswith("found ") and sum(line.endswith(".png") for line in lines) == 20
    assert any("... and 20 more" in line for line in lines)
    found.write(tmp_path / "a.json", {})
    one.check().write(tmp_path / "b.json", {})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    missing = next(item for item in json.loads((tmp_path / "a.json").read_text())["items"] if item["what"] == "files")
    assert len(missing["names"]) == 40


def table(path, header, rows):
    text = "\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def physionet(tmp_path):
    """A made part of MIMIC-CXR's tables and reports in wget's layout: three studies."""
    jpg = tmp_path / "physionet.org/files/mimic-cxr-jpg/2.1.0"
    cxr = tmp_path / "physionet.org/files/mimic-cxr/2.1.0"
    jpg.mkdir(parents=True)
    cxr.mkdir(parents=True)
    rows = [(f"d{k}", 50000001 + k, 10000001, split) for k, split in enumerate(("train", "validate", "test"))]
    table(jpg / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), rows)
    header = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    table(jpg / "mimic-cxr-2.0.0-metadata.csv.gz", header, [(r[0], r[2], r[1], "PA", 21800101, 1) for r in rows])
    table(jpg / "mimic-cxr-2.0.0-chexpert.csv.gz", ("subject_id", "study_id", *LABELS), [(1, 2, *[""] * 14)])
    with zipfile.ZipFile(cxr / "mimic-cxr-reports.zip", "w") as reports:
        for row in rows:
            reports.writestr(f"files/p10/p10000001/s{row[1]}.txt", "made")
    return tmp_path


def raw(folder, name="mimic_cxr") -> dict:
    found = Findings()
    check_raw(found, name, [str(folder)])
    return {item.what: item for item in found.items}


def test_raw_files_of_mimic(physionet):
    items = raw(physionet)
    partly = {"mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-chexpert.csv",
              "mimic-cxr-reports.zip"}  # fmt: skip
    assert {what for what, item in items.items() if item.status == "unusual"} == partly  # three rows are not 377,110
    assert {what for what, item in items.items() if item.status == "found"} == {
        "studies without report",
        "reports without study",
    }
    jpg = physionet / "physionet.org/files/mimic-cxr-jpg/2.1.0"
    table(
        jpg / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), [(1, 50000009, 3, "dev")]
    )
    assert raw(physionet)["mimic-cxr-2.0.0-split.csv"].status == "wrong"
    table(jpg / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id"), [(1, 50000009)])
    assert "lacks subject_id, split" in raw(physionet)["mimic-cxr-2.0.0-split.csv"].facts
    table(
        jpg / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        [(1, 50000001, 3, "test")],
    )
    assert raw(physionet)["reports without study"].names == ("50000002", "50000003")
    (jpg / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    assert raw(physionet)["mimic-cxr-2.0.0-metadata.csv"].status == "missing"
    reports = physionet / "physionet.org/files/mimic-cxr/2.1.0/mimic-cxr-reports.zip"
    reports.write_bytes(reports.read_bytes()[:60])
    assert raw(physionet)["mimic-cxr-reports.zip"].status == "wrong"


def test_raw_files_of_openi(tmp_path):
    (tmp_path / "1.xml").write_text("<made/>")
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(tmp_path / "1.xml", "ecgen-radiology/1.xml")
    items = raw(tmp_path, "iu_xray")
    assert items["NLMCXR_reports.tgz"].status == "unusual" and "1 files .xml" in items["NLMCXR_reports.tgz"].facts
    assert items["NLMCXR_png.tgz"].status == "missing"
    (tmp_path / "NLMCXR_png.tgz").write_bytes(b"no archive")
    assert raw(tmp_path, "iu_xray")["NLMCXR_png.tgz"].status == "wrong"


def test_artefacts(good, tmp_path):
    rows = json.loads((good / "annotation.json").read_text())
    labels = tmp_path / "labels.csv"
    args = flags(good, labels_path=str(labels), diagnosis_path=None, diagnosisbot=str(tmp_path / "bot.pt"))

    def line(name="labels"):
        found = Findings()
        check_artefacts(found, args, rows, {name})
        (item,) = found.items
        return item

    assert line().status == "missing" and "label_reports" in line().todo
    assert line("diagnosis").status == "missing"
    listed = [(split, row["id"]) for split, some in rows.items() for row in some]
    text = "split,id," + ",".join(LABELS) + "\n" + "".join(f"{s},{i}{',0' * 14}\n" for s, i in listed)
    labels.write_text(text)
    assert line().status == "found" and "no manifest" in line().facts
    facts = {"source_sha256": sha256(args.ann_path), "table_sha256": sha256(labels)}
    write_json(tmp_path / "labels.csv.json", facts)
    assert line().status == "found" and "from this annotation" in line().facts
    write_json(tmp_path / "labels.csv.json", {**facts, "source_sha256": "other"})
    assert line().status == "unusual" and "another annotation" in line().facts
    labels.write_text(text.replace("train,s3,", "train,t3,"))
    assert line().status == "wrong" and "changed" in line().facts
    write_json(tmp_path / "labels.csv.json", {**facts, "table_sha256": sha256(labels)})
    assert line().status == "wrong" and line().names == ("s3",)


@pytest.mark.shared
def test_the_real_iu_is_ready(shared):
    args = flags(shared / "iu_xray", dataset_name="iu_xray", threshold=3, image_size=224)
    found = check_run(args, Plain, depth="quick")
    assert found.exit_code() == 0, found.lines()
    assert "by hash" in next(item.facts for item in found.items if item.what == "R2Gen's") and len(R2GEN_IU) == 2


def test_the_command_and_the_flag_of_training(good, tmp_path):
    """With the real METEOR: exit codes 0, 1 and 2, --strict, --out twice the same; --check_data stops before training."""
    words = ["--model", "r2gencmn", "--dataset_name", "custom", "--data_dir", good, "--knowledge_dir", tmp_path / "knowledge",
             "--extractor_weights", "none", "--image_size", "64", "--threshold", "1"]  # fmt: skip
    first = call("-m", "data.check", *words, "--out", tmp_path / "a.json")
    assert "found    machine: METEOR: gives its value" in first.stdout
    call("-m", "data.check", *words, "--depth", "full", "--out", tmp_path / "b.json")
    call("-m", "data.check", *words, "--out", tmp_path / "c.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    one = Faulty(good, tmp_path)
    one.row(6).update(report="All clear.")
    one.check()
    words[words.index("--data_dir") + 1] = one.root
    call("-m", "data.check", *words, code=2)
    call("-m", "data.check", *words, "--strict", code=1)
    (one.root / "images" / "3.png").unlink()
    assert "missing  images: files: 1 of 40" in call("-m", "data.check", *words, code=1).stdout
    stopped = call("main_train.py", *words, "--save_dir", tmp_path / "run", "--check_data", code=2)
    assert "--check_data" in stopped.stderr and not (tmp_path / "run").exists()
