"""data.prepare_table: a table of one's own, and made trees of CheXpert Plus, ReXGradient-160K and PadChest-GR."""

import json
import zipfile

import numpy as np
import pandas
import pytest
from conftest import prepared
from PIL import Image

from data.prepare_table import main


def prepare(*words):
    return prepared(main, *words)


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, words)))
    assert left.value.code == 2
    return capsys.readouterr().err


def ids(content):
    return {split: [row["id"] for row in rows] for split, rows in content.items()}


def image(path, deep=False, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(48).reshape(6, 8) + value
    Image.fromarray(pixels.astype(np.uint16) * 1000 if deep else pixels.astype(np.uint8)).save(path)


# --- a table ---------------------------------------------------------------------------------------------------------


def test_a_csv_with_a_split(tmp_path):
    (tmp_path / "t.csv").write_text(
        "id,images,report,split,patient,views,time,indication\n"
        's1,a/1.png;a/2.png,"Clear, both.",training,p1,PA;LATERAL,2020-01-02,Cough\n'
        "s2,b.png,Grey.,dev,p2,,,\ns3,c.png,Dark.,test,p3,,,\ns4,d.png,Later.,train,p1,AP,2020-05-01,\n"
    )
    content = prepare("--table", tmp_path / "t.csv", "--no_images", "--out", tmp_path / "out")
    assert ids(content) == {"train": ["s1", "s4"], "val": ["s2"], "test": ["s3"]}
    row = content["train"][0]
    assert row["image_path"] == ["a/1.png", "a/2.png"] and row["views"] == ["PA", "LATERAL"]
    assert row["report"] == "Clear, both." and row["subject_id"] == "p1" and row["indication"] == "Cough"
    assert content["train"][1]["prior_study_id"] == "s1"


def test_json_lines_columns_of_other_names_and_a_row_per_image(tmp_path):
    rows = [
        {"ImageID": "i1", "files": ["1.png"], "Report": "One.", "StudyID": 7, "Patient": 1},
        {"ImageID": "i2", "files": ["2.png"], "Report": "One.", "StudyID": 7, "Patient": 1},
        {"ImageID": "i3", "files": ["3.png"], "Report": "Two.", "StudyID": 8, "Patient": None},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    for name in ("1", "2", "3"):
        image(tmp_path / "png" / f"{name}.png")
    words = ("--table", tmp_path / "t.jsonl", "--images", tmp_path / "png", "--split", "0:0:1",
             "--columns", "id=ImageID", "images=files", "report=Report", "study=StudyID", "patient=Patient")  # fmt: skip
    content = prepare(*words, "--out", tmp_path / "study")
    assert ids(content)["test"] == ["7", "8"] and content["test"][0]["image_path"] == ["1.png", "2.png"]
    assert "subject_id" not in content["test"][1]
    content = prepare(*words, "--unit", "image", "--out", tmp_path / "image")
    assert [(row["id"], row["study_id"]) for row in content["test"]] == [("i1", "7"), ("i2", "7"), ("i3", "8")]
    assert (tmp_path / "image" / "images" / "3.png").is_file()


def test_images_of_an_archive_are_told_apart_by_their_folders(tmp_path):
    for number, name in enumerate(("p1/1.png", "p2/1.png", "p2/2.png")):
        image(tmp_path / "files" / name, value=number)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "files").rglob("*.png")):
            archive.write(path, f"all/{path.relative_to(tmp_path / 'files')}")
    (tmp_path / "t.csv").write_text(
        "id,images,report\na,all/p1/1.png,One.\nb,all/p2/1.png,Two.\nc,2.png,Three.\nd,1.png,Which?\n"
    )
    words = (
        "--table",
        tmp_path / "t.csv",
        "--images",
        tmp_path / "images.zip",
        "--split",
        "0:0:1",
        "--workers",
        1,
        "--out",
    )
    content = prepare(*words, tmp_path / "out")
    assert ids(content)["test"] == ["a", "b", "c"]  # 1.png stands there twice: missing, not guessed
    found = [(tmp_path / "out" / "images" / row["image_path"][0]).read_bytes() for row in content["test"]]
    assert found == [(tmp_path / "files" / name).read_bytes() for name in ("p1/1.png", "p2/1.png", "p2/2.png")]


def test_two_images_that_would_become_one_are_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("id,images,report,patient\n1,a.png;a.jpg,One.,p\n")
    image(tmp_path / "files" / "a.png")
    image(tmp_path / "files" / "a.jpg")
    words = ("--table", tmp_path / "t.csv", "--images", tmp_path / "files", "--out")
    assert "would both become a.jpg" in refused(capsys, *words, tmp_path / "out", "--resize", 4)
    content = prepare(*words, tmp_path / "linked", "--split", "1:0:0")
    assert content["train"][0]["image_path"] == ["a.png", "a.jpg"]


def test_without_a_split_patients_are_cut_and_stay_whole(tmp_path, capsys):
    lines = [f"s{n},{n}.png,Report {n}.,p{n // 3}" for n in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["id,images,report,patient", *lines]))
    words = ("--table", tmp_path / "t.csv", "--no_images", "--out")
    content = prepare(*words, tmp_path / "a")
    assert {split: len(rows) for split, rows in content.items()} == {"train": 210, "val": 30, "test": 60}
    patients = [{row["subject_id"] for row in rows} for rows in content.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 100
    assert "cut by patient, 7:1:2" in capsys.readouterr().out
    assert prepare(*words, tmp_path / "b", "--split", "7:1:2") == content
    assert prepare(*words, tmp_path / "c", "--seed", 1) != content


def test_a_table_that_is_wrong_is_refused(tmp_path, capsys):
    table, out = tmp_path / "t.csv", ("--no_images", "--out", tmp_path / "out")
    for text, said in (
        ("id,report\n1,a\n", "lacks the columns images"),
        ("id,images,report\n1,,a\n", "row 1: needs an id and an image"),
        ("id,images,report\n1,a.png,a\n1,b.png,a\n", "row 2: id '1' stands twice"),
        ("id,images,report,views\n1,a.png,a,PA;AP\n", "row 1: 1 images, 2 views"),
        ("id,images,report,split\n1,a.png,a,trian\n", "row 1: split 'trian' is unknown"),
        (
            "id,images,report,study,split\n1,a.png,a,s,train\n2,b.png,a,s,test\n",
            "row 2: study s has another patient or split",
        ),
        ("id,images\n1,a.png\n", "no study is left of 1"),
    ):
        table.write_text(text)
        assert said in refused(capsys, "--table", table, *out)
    assert "--split 1:2: give official" in refused(capsys, "--table", table, *out, "--split", "1:2")
    assert "--columns: nonsense unknown" in refused(capsys, "--table", table, *out, "--columns", "nonsense=x")
    (tmp_path / "t.jsonl").write_text('{"id": 1, "images": ["a.png"]}\n{"id": 2')
    assert "line 2 is no JSON" in refused(capsys, "--table", tmp_path / "t.jsonl", *out)
    assert "--images: give" in refused(capsys, "--table", table, "--out", tmp_path / "out")


# --- CheXpert Plus ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chexpert(tmp_path):
    empty = dict.fromkeys(("section_impression", "section_comparison", "section_technique", "section_history"), "")
    rows = []
    for path, lateral, projection, order, split, findings in (
        ("train/patient1/study2/view1_frontal.jpg", "Frontal", "AP", 5, "train", "Later, 1/2/2000."),
        ("train/patient1/study2/view2_lateral.jpg", "Lateral", "", 5, "train", "Later, 3/4/2001."),
        ("train/patient1/study1/view1_frontal.jpg", "Frontal", "PA", 2, "train", "Earlier.\nTwo lines."),
        ("train/patient3/study1/view1_frontal.jpg", "Frontal", "PA", 1, "train", ""),
        ("valid/patient2/study1/view1_frontal.jpg", "Frontal", "AP", 1, "valid", "Valid."),
    ):
        rows.append({"path_to_image": path, "frontal_lateral": lateral, "ap_pa": projection, "split": split,
                     "section_findings": findings, "section_clinical_history": "Pain.",
                     "patient_report_date_order": order, **empty})  # fmt: skip
        image(tmp_path / "PNG" / path.replace(".jpg", ".png"))
    pandas.DataFrame(rows).to_csv(tmp_path / "df_chexpert_plus_240401.csv", index=False)
    return tmp_path


def test_chexpert_plus(chexpert, capsys):
    words = (
        "--format",
        "chexpert_plus",
        "--table",
        chexpert / "df_chexpert_plus_240401.csv",
        "--images",
        chexpert / "PNG",
    )
    content = prepare(*words, "--out", chexpert / "out")
    assert ids(content) == {"train": ["patient1_study2", "patient1_study1"], "val": ["patient2_study1"], "test": []}
    row = content["train"][0]
    assert row["report"] == "Later, 1/2/2000." and row["prior_study_id"] == "patient1_study1"
    assert row["views"] == ["AP", "LATERAL"] and row["subject_id"] == "patient1" and row["indication"] == "Pain."
    assert row["image_path"] == ["train/patient1/study2/view1_frontal.png", "train/patient1/study2/view2_lateral.png"]
    said = capsys.readouterr().out
    assert "rows whose report differs from the first of their study (which is taken): 1" in said
    assert "val: 1 rows, 62 expected" in said
    content = prepare(*words, "--own_validation", 1, "--out", chexpert / "own")
    assert ids(content)["test"] == ["patient2_study1"]


# --- ReXGradient-160K ------------------------------------------------------------------------------------------------


@pytest.fixture
def rexgradient(tmp_path):
    (tmp_path / "metadata").mkdir()
    for name, study, paths, views in (
        ("train", "pA1_s1", ["../deid_png/A1/s1/studies/u/series/1/instances/1.png",
                             "../deid_png/A1/s1/studies/u/series/2/instances/2.png"], ["PA", "LATERAL"]),
        ("valid", "pB_s1", ["../deid_png/B/s1/studies/u/series/1/instances/1.png"], []),
        ("test", "pC_s1", ["../deid_png/C/s1/studies/u/series/1/instances/1.png"], [None]),
    ):  # fmt: skip
        pandas.DataFrame([{"id": study, "StudyDate": 20200101, "Indication": "Cough", "Comparison": "None.",
                           "Findings": f"Of {name}.", "Impression": "Fine."}]).to_csv(
            tmp_path / "metadata" / f"{name}_metadata.csv", index=False)  # fmt: skip
        entry = {study: {"ImagePath": paths, "ImageViewPosition": views}}
        (tmp_path / "metadata" / f"{name}_metadata_view_position.json").write_text(json.dumps(entry))
        for path in paths:
            image(tmp_path / path.removeprefix("../"), deep=True)
    return tmp_path


def test_rexgradient(rexgradient, capsys):
    words = ("--format", "rexgradient", "--table", rexgradient, "--images")
    content = prepare(*words, rexgradient / "deid_png", "--resize", 4, "--workers", 1, "--out", rexgradient / "out")
    assert ids(content) == {"train": ["pA1_s1"], "val": ["pB_s1"], "test": ["pC_s1"]}
    row = content["train"][0]
    assert row["subject_id"] == "pA1" and row["views"] == ["PA", "LATERAL"] and row["report"] == "Of train."
    assert content["val"][0]["views"] == [""] and content["test"][0]["views"] == [""]
    with Image.open(rexgradient / "out" / "images" / row["image_path"][1]) as small:
        assert small.mode == "L" and small.size == (5, 4) and small.getextrema()[1] > 200  # 16 bit, own range
    (rexgradient / "packed").mkdir()
    (rexgradient / "packed" / "deid_png.part00").touch()
    assert "tar --zstd" in refused(capsys, *words, rexgradient / "packed", "--out", rexgradient / "x")
    (rexgradient / "metadata" / "test_metadata_view_position.json").unlink()
    assert "it names the images" in refused(capsys, *words, rexgradient, "--out", rexgradient / "x")


# --- PadChest-GR -----------------------------------------------------------------------------------------------------


def test_padchest_gr(tmp_path, capsys):
    finding = {"abnormal": True, "labels": ["nodule"], "locations": ["left"], "progression": None}
    entries = [
        {"StudyID": "s1", "ImageID": "i1.png", "findings": [
            {"sentence_en": "Nodule.", "sentence_es": "Un nodo.", "boxes": [[0.1, 0.2, 0.3, 0.4]], "extra_boxes": [], **finding},
            {"sentence_en": "Else clear.", "sentence_es": "Nada.", "boxes": [], **finding}]},
        {"StudyID": "s2", "ImageID": "i2.png", "findings": [
            {"sentence_en": "Big.", "boxes": [[0, 0, 1.2, 1]], **finding}]},
    ]  # fmt: skip
    reports = tmp_path / "grounded_reports_20240819.json"
    reports.write_text(json.dumps(entries))
    (tmp_path / "master_table.csv").write_text(
        "StudyID,ImageID,split,PatientID,label\ns1,i1.png,train,9,a\ns1,i1.png,train,9,b\ns2,i2.png,test,8,a\n"
    )
    for name in ("i1.png", "i2.png"):
        image(tmp_path / "Padchest_GR_files" / "PadChest_GR" / name, deep=True)
    words = ("--format", "padchest_gr", "--table", reports, "--images", tmp_path / "Padchest_GR_files", "--out")
    content = prepare(*words, tmp_path / "out")
    assert ids(content) == {"train": ["s1"], "val": [], "test": ["s2"]}
    assert content["train"][0]["report"] == "Nodule. Else clear." and content["train"][0]["subject_id"] == "9"
    boxes = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert boxes["s1"][0]["boxes"] == [[0.1, 0.2, 0.3, 0.4]] and boxes["s1"][1]["extra_boxes"] == []
    assert "sides of boxes outside of the image: 1" in capsys.readouterr().out
    said = refused(capsys, *words, tmp_path / "es", "--language", "es")
    assert "study s2: a finding without sentence_es" in said
    entries[1]["ImageID"] = "i3.png"
    reports.write_text(json.dumps(entries))
    assert "entry 1, study 's2', image 'i3.png', is not in" in refused(capsys, *words, tmp_path / "x")
