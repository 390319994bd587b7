"""ReXrank's files in four shapes: read, generated with a stop in between, read by a three-key reader, scored; the exports."""

import argparse
import csv
import json
import math

import pytest

from knowledge import rexrank
from knowledge.rexrank import report_rexrank
from modules.errors import InputError
from modules.scoring.rexrank import SECTIONS, export_rows, images_of, is_rexrank, read_rexrank, rows_with_references

# NaN, a leading slash, lists of unequal length, an empty context; texts are made
INPUT = """{
 "CXR1_IM-0001": {"image_path": ["CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png"], "key_image_path": "CXR1_IM-0001/1.png",
  "frontal_lateral": ["Lateral"], "context": "<context>Age:50-60.Gender:M.</context>", "section_findings": "The heart is normal.",
  "section_impression": "Normal.", "split": "test"},
 "50000001": {"image_path": ["/p10/p10000001/s50000001/a.jpg"], "key_image_path": "/p10/p10000001/s50000001/a.jpg",
  "frontal_lateral": [NaN, NaN], "context": "", "section_findings": "Clear lungs.", "section_impression": NaN,
  "subject_id": 10000001, "split": "test"},
 "patient1_study1": {"image_path": ["patient1/a.jpg"], "key_image_path": "patient1/a.jpg", "frontal_lateral": ["Frontal"],
  "context": "<context></context>", "section_findings": NaN, "section_impression": "Edema.", "split": "valid"}
}"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in.json").write_text(INPUT)
    for entry in read_rexrank(tmp_path / "in.json").values():
        for path in entry["image_path"]:
            file = tmp_path / "images" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"made")
    return tmp_path


def flags(folder, out="out.json", **more):
    places = {"rexrank": str(folder / "in.json"), "image_dir": str(folder / "images"), "out": str(folder / out)}
    return argparse.Namespace(**{**places, "max_views": 2, **more})


def told(paths):
    return {"report": f"{len(paths)} images, the first {paths[0][-5:]}"}


def three_keys(path):
    """Reads as ReXrank's converter does: {study: (prediction, ground truth)}."""
    found = {}
    for study, entry in json.loads(path.read_text()).items():
        parts = [entry["section_findings"], entry["section_impression"]]
        texts = [part if isinstance(part, str) else None for part in parts]
        found[study] = entry["model_prediction"], f"Findings: {texts[0]} Impression: {texts[1]}"
    return found


def same(a, b) -> bool:
    """Equal, NaN being equal to NaN."""
    return json.dumps(a) == json.dumps(b)


def test_images_of_a_study(source):
    entries = read_rexrank(source / "in.json")
    first, second, _ = entries.values()
    assert images_of(first, "x", 2) == ["CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png"]
    assert images_of(first, "x", 1) == ["CXR1_IM-0001/1.png"]
    assert images_of(second, "x", 2) == ["p10/p10000001/s50000001/a.jpg"]
    for bad in ({}, {"image_path": []}, {"image_path": ["../x.png"]}, {"image_path": ["/../x.png"]}):
        with pytest.raises(InputError, match="study s: no usable image"):
            images_of(bad, "s", 2)


def test_every_entry_is_copied_and_a_stopped_run_goes_on(source, monkeypatch, capsys):
    monkeypatch.setattr(rexrank, "EVERY", 1)
    report_rexrank(flags(source), told)
    assert "MIMIC-CXR" in capsys.readouterr().out
    given, made = read_rexrank(source / "in.json"), read_rexrank(source / "out.json")
    assert list(made) == list(given)
    for study, entry in given.items():
        assert same({key: value for key, value in made[study].items() if key != "model_prediction"}, entry)
    assert three_keys(source / "out.json")["50000001"] == (
        "1 images, the first a.jpg",
        "Findings: Clear lungs. Impression: None",
    )
    assert math.isnan(made["patient1_study1"]["section_findings"])

    calls = []

    def stops(paths):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return told(paths)

    with pytest.raises(KeyboardInterrupt):
        report_rexrank(flags(source, "b.json"), stops)
    assert len(read_rexrank(source / "b.json")) == 2
    report_rexrank(flags(source, "b.json"), told)
    assert (source / "b.json").read_bytes() == (source / "out.json").read_bytes()
    report_rexrank(flags(source, "b.json"), lambda paths: pytest.fail("nothing is left to do"))


def test_what_is_missing_is_said_before_the_first_report(source):
    (source / "images" / "patient1" / "a.jpg").unlink()
    with pytest.raises(InputError, match="patient1_study1: no image"):
        report_rexrank(flags(source), lambda paths: pytest.fail("a report was generated"))
    with pytest.raises(InputError, match="--out"):
        report_rexrank(argparse.Namespace(out=None), told)


def test_another_inputs_file_is_not_overwritten(source):
    (source / "out.json").write_text('{"other": {"model_prediction": "x"}}')
    with pytest.raises(InputError, match="of other studies"):
        report_rexrank(flags(source), told)


def test_references_inside(source, capsys):
    report_rexrank(flags(source), told)
    assert is_rexrank(source / "out.json") and not is_rexrank(source / "in.json")
    rows = rows_with_references(source / "out.json", SECTIONS[0], "iu_xray")
    assert [row["reference"] for row in rows] == ["The heart is normal.", "Clear lungs."]
    assert "1 of 3 studies have no findings" in capsys.readouterr().out
    both = rows_with_references(source / "out.json", SECTIONS[1], "iu_xray")
    assert [row["reference"] for row in both] == ["The heart is normal. Normal.", "Clear lungs.", "Edema."]


def test_exports(source, tmp_path):
    entries = read_rexrank(source / "in.json")
    rows = [{"id": s, "prediction": f'say "{s}",\nso', "reference": "r", "reference_r2gen": "r ."} for s in entries]
    export_rows("rexrank", tmp_path / "r.json", rows, entries)
    assert three_keys(tmp_path / "r.json")["50000001"][0] == rows[1]["prediction"]
    with pytest.raises(InputError, match="--rexrank"):
        export_rows("rexrank", tmp_path / "r.json", rows, None)
    with pytest.raises(InputError, match="no prediction"):
        export_rows("rexrank", tmp_path / "r.json", rows[1:], entries)
    (tmp_path / "pair").mkdir()
    res, gts = export_rows("res_gts", tmp_path / "pair", rows, None)
    assert [row for row in csv.reader(res.open(newline=""))] == [[row["prediction"]] for row in rows]
    assert gts.read_text() == "r .\n" * 3
    export_rows("radeval", tmp_path / "e.json", rows, None)
    radeval = json.loads((tmp_path / "e.json").read_text())
    assert radeval["refs"] == ["r"] * 3 and radeval["hyps"][0] == rows[0]["prediction"]
    (table,) = export_rows("csv", tmp_path / "c.csv", rows, None)
    assert next(csv.reader(table.open(newline=""))) == ["study_id", "report"]
