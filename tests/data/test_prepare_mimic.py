"""data.prepare_mimic on made PhysioNet trees: the parser's rules, rows, presets, priors, goings-on after a kill."""

import gzip
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import run
from PIL import Image

from data.preparation.custom_rules import EXCEPTIONS
from data.preparation.mimic import read_mimic, study_time
from data.preparation.sections import cut_sections, section_name, sections_of
from data.prepare_mimic import main


def report(*lines: str) -> str:
    return " " * 33 + "FINAL REPORT\n" + "\n".join(f" {line}" for line in lines) + "\n"


# --- sections, a hand-written report for each rule ---------------------------------------------------------------------


def test_sections_are_cut_at_headers_and_kept_as_they_are():
    text = report("INDICATION:  ___ year old with cough.", "", "FINDINGS:", " ", "The lungs  are clear of ___", "at both",
                  "bases.", "", "IMPRESSION: No change.")  # fmt: skip
    found = sections_of(text)
    assert found["findings"] == "The lungs  are clear of ___\n at both\n bases."
    assert found["impression"] == "No change." and found["indication"] == "___ year old with cough."
    assert cut_sections(text)[0] == ("preamble", " " * 33 + "FINAL REPORT\n ")


def test_a_second_header_on_a_line_is_text():
    found = sections_of(report("FINDINGS: Clear.  IMPRESSION: Normal.", "IMPRESSION: Nothing new."))
    assert found["findings"] == "Clear.  IMPRESSION: Normal." and found["impression"] == "Nothing new."


def test_a_header_needs_a_newline_one_space_capitals_and_a_space_behind():
    text = (
        "FINDINGS: at the very start\n\tFINDINGS: a tab\nFINDINGS: no space\n Findings: small\n FINDINGS:none behind\n"
    )
    assert cut_sections(text) == [("full report", text)]


def test_a_blank_title_section_vanishes():
    found = cut_sections(report("CHEST, PA LATERAL:", "", "INDICATION: Cough.", "", "IMPRESSION: Clear."))
    assert [name for name, _ in found] == ["preamble", "indication", "impression"]


def test_findings_under_a_title():
    assert sections_of(report("PA AND LATERAL VIEWS OF THE CHEST: Lungs are clear."))["findings"] == "Lungs are clear."


def test_findings_and_impression_count_as_impression():
    found = sections_of(report("FINDINGS AND IMPRESSION: All clear."))
    assert found["impression"] == "All clear." and "findings" not in found


def test_of_two_findings_the_last_is_taken():
    assert sections_of(report("FINDINGS: First.", "", "CHEST: Second."))["findings"] == "Second."


def test_last_paragraph_where_neither_stands():
    found = sections_of(report("EXAMINATION: Chest.", "", "Heart is large.", "", "Lungs are clear."))
    assert found["examination"] == "Chest." and found["last_paragraph"] == "Heart is large.\n \n Lungs are clear."
    assert "last_paragraph" not in sections_of(report("IMPRESSION: One.", "", "Two."))


def test_report_without_a_header():
    assert cut_sections("nothing but text\n of two lines\n") == [("full report", "nothing but text\n of two lines\n")]
    assert cut_sections("one\n \ntwo") == [("full report", "one"), ("last_paragraph", "two")]


@pytest.mark.parametrize(
    ("header", "name"),
    [("CONCLUSION", "impression"), ("NDICATION", "impression"), ("IMPRESSON", "impression"), ("FINDING", "findings"),
     ("REFERENCE EXAM", "comparison"), ("REASON FOR EXAM", "indication"), ("PFI", "history"), ("EXAM", "examination"),
     ("RECOMMENDATION(S)", "recommendations"), ("WETREAD", "wet read"), ("FINAL IMPRESSION", "impression"),
     ("BRIEF HISTORY", "history"), ("COMPARISON STUDIES", "comparison"), ("PORTABLE AP", "findings"), ("LEFT RIBS", "findings"),
     ("TECHNIQUE", "technique"), ("NOTE", "note"), (" FINDINGS ", "findings"), ("CHEST, TWO VIEWS", "findings")],
)  # fmt: skip
def test_names(header, name):
    assert section_name(header) == name


def test_study_time_without_leading_zeros():
    assert study_time("21800506", "80556.875") == "2180-05-06T08:05:56.875"
    assert study_time("21800506", "213014") == "2180-05-06T21:30:14"
    assert study_time("", "1200") == "" and study_time("21800506", "") == "2180-05-06T00:00:00"


# --- a tree of hand-counted studies --------------------------------------------------------------------------------------

FULL = report("FINDINGS: Lungs are clear.", "", "IMPRESSION: Normal.")
CUSTOM = min(EXCEPTIONS)
# each: subject, study, split, its images with their views, date, time, report or None
STUDIES = [
    (10000032, 50000002, "train", [("b", "LATERAL"), ("a", "PA")], "21000102", "90000.5", FULL),
    (10000032, 50000001, "train", [("c", "AP")], "21000301", "080000", report("IMPRESSION: Only this.")),
    (10000032, 50000003, "train", [("d", "")], "21000301", "100000", FULL.replace("clear", "unchanged").replace("\n", "\r\n")),
    (10000019, 50000004, "validate", [("e", "LL")], "21000101", "1", report("FINDINGS: One word less.", "", "HISTORY: Known.")),
    (11000000, 50000005, "test", [("g", "LATERAL"), ("f", "AP"), ("h", "")], "21000101", "110000", FULL),
    (11000000, 50000006, "test", [("i", "PA")], "21000101", "110000", None),
    (11000000, CUSTOM, "test", [("j", "PA")], "21000105", "110000", FULL),
    (12000000, 50000007, "test", [("k", "PA")], "21000105", "110000", "FINAL REPORT\n FINDINGS: Caf\xe9-shaped opacity.\n"),
    (12000000, 50000008, "test", [("l", "PA")], "21000101", "110000", report("NOTE: No text", "", "at all here.")),
]  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    """A PhysioNet tree: cxr/mimic-cxr-reports.zip, jpg/ with gz tables and images."""
    (tmp_path / "cxr").mkdir()
    (tmp_path / "jpg").mkdir()
    split, metadata = (
        ["dicom_id,study_id,subject_id,split"],
        ["dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"],
    )
    with zipfile.ZipFile(tmp_path / "cxr" / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p19/p19999999/s59999999.txt", FULL)  # a report without a study
        for subject, study, name, images, date, time, text in STUDIES:
            folder = f"files/p{str(subject)[:2]}/p{subject}"
            if text is not None:
                archive.writestr(f"{folder}/s{study}.txt", text.encode("latin-1"))
            for dicom, view in images:
                split.append(f"{dicom},{study},{subject},{name}")
                metadata.append(f"{dicom},{subject},{study},{view},{date},{time}")
                path = tmp_path / "jpg" / folder / f"s{study}" / f"{dicom}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(path)
    for name, lines in (("split", split), ("metadata", metadata)):
        with gzip.open(tmp_path / "jpg" / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    return tmp_path


def prepare(tree, *words, out="out"):
    """Rows by split and the manifest."""
    main(
        [
            "--cxr",
            str(tree / "cxr"),
            "--jpg",
            str(tree / "jpg"),
            "--out",
            str(tree / out),
            "--workers",
            "1",
            *map(str, words),
        ]
    )
    content = json.loads((tree / out / "annotation.json").read_text(encoding="utf-8"))
    return content, json.loads((tree / out / "annotation.manifest.json").read_text(encoding="utf-8"))


def ids(content):
    return {split: [row["id"] for row in rows] for split, rows in content.items()}


def test_r2gen_is_a_row_per_image_of_studies_with_findings_sorted(tree, capsys):
    content, manifest = prepare(tree)
    assert ids(content) == {"train": ["a", "b", "d"], "val": ["e"], "test": ["f", "g", "h", "k"]}
    row = content["train"][1]
    assert row == {
        "id": "b", "study_id": 50000002, "subject_id": 10000032, "report": "Lungs are clear.",
        "image_path": ["p10/p10000032/s50000002/b.jpg"], "split": "train", "views": ["LATERAL"], "impression": "Normal.",
        "indication": "", "history": "", "comparison": "", "technique": "", "study_time": "2100-01-02T09:00:00.5",
        "prior_study_id": None,
    }  # fmt: skip
    assert content["val"][0]["history"] == "Known." and content["val"][0]["split"] == "val"
    assert content["train"][2]["report"] == "Lungs are unchanged."  # CRLF
    assert content["test"][3]["report"] == "Caf\xe9-shaped opacity."  # Latin-1
    assert (tree / "out" / "images").resolve() == (tree / "jpg" / "files").resolve()
    left = {reason.split(" (")[0]: number for reason, number in manifest["left_out"].items()}
    assert left == {"no findings": 2, "no report": 1, "one of the 54 with rules of its own": 1}
    assert manifest["counted"]["reports without a study in the split table"] == 1
    assert manifest["counted"]["reports that are no UTF-8, read as Latin-1"] == 1
    assert manifest["inputs"]["preset"] == "r2gen"
    assert set(manifest["inputs"]["files"]) == {"mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-metadata.csv.gz",
                                                "mimic-cxr-reports.zip"}  # fmt: skip
    said = capsys.readouterr().out
    assert "test: 4 rows, 3,858 expected (-3,854)" in said and "likely cause: no report: 1 studies" in said


def test_earlier_studies_count_those_without_findings_but_not_those_of_one_time(tree):
    content, _ = prepare(tree)
    prior = {row["study_id"]: row["prior_study_id"] for rows in content.values() for row in rows}
    assert prior == {50000002: None, 50000003: 50000001, 50000004: None, 50000005: None, 50000007: 50000008}


def test_presets(tree):
    assert ids(prepare(tree, "--preset", "r2gen_study", out="a")[0])["test"] == ["50000005", "50000007"]
    content, _ = prepare(tree, "--preset", "cxrmate", out="b")
    assert ids(content) == {"train": ["50000002", "50000003"], "val": [], "test": ["50000005"]}
    assert (
        content["test"][0]["report"] == "Lungs are clear. Normal."
        and content["test"][0]["findings"] == "Lungs are clear."
    )
    content, manifest = prepare(tree, "--preset", "all_studies", out="c")
    assert ids(content)["test"] == ["50000005", "50000007", "50000008"]
    assert content["test"][2]["report"] == "at all here."
    content, _ = prepare(tree, "--preset", "frontal", out="d")
    assert ids(content) == {"train": ["a", "d"], "val": ["e"], "test": ["f", "k"]}
    content, _ = prepare(tree, "--preset", "r2gen_study", "--order", "frontal_first", out="e")
    assert content["test"][0]["views"] == ["AP", "LATERAL", ""]


def test_rrg24_cuts_its_validation_out_of_train(tree):
    content, _ = prepare(tree, "--preset", "rrg24", "--section", "any", "--own_validation", 1)
    found = Counter({split: len(rows) for split, rows in content.items()})
    assert found["train"] + found["val"] == 3 and "50000004" not in sum(ids(content).values(), [])


def test_custom_rules_use(tree):
    content, _ = prepare(tree, "--custom_rules", "use", "--section", "findings_or_impression")
    assert "j" in ids(content)["test"]
    source = read_mimic(tree / "cxr", tree / "jpg", with_images=False, custom_rules="use")
    study = next(study for study in source.studies if study.study_id == CUSTOM)
    assert not study.left_out and study.sections["findings"] == "Lungs are clear."


def test_words_and_sections_of_a_csv(tree):
    assert ids(prepare(tree, "--min_words", 3, out="a")[0])["test"] == ["f", "g", "h"]
    assert ids(prepare(tree, "--max_words", 2, out="b")[0])["test"] == ["k"]
    (tree / "texts.csv").write_text('study,findings,impression\ns50000006,"Other, text.",\n')
    content, _ = prepare(tree, "--sections_csv", tree / "texts.csv", out="c")
    assert ids(content) == {"train": [], "val": [], "test": ["i"]} and content["test"][0]["report"] == "Other, text."


def test_unpacked_reports_plain_tables_and_a_mirror_of_the_site_give_the_same_file(tree):
    first = prepare(tree)[1]["sha256"]
    jpg = tree / "site" / "physionet.org" / "files" / "mimic-cxr-jpg" / "2.1.0"
    jpg.parent.mkdir(parents=True)
    (tree / "jpg").rename(jpg)
    for table in jpg.glob("*.csv.gz"):
        table.with_suffix("").write_bytes(gzip.decompress(table.read_bytes()))
        table.unlink()
    with zipfile.ZipFile(tree / "cxr" / "mimic-cxr-reports.zip") as archive:
        archive.extractall(tree / "site" / "physionet.org" / "files" / "mimic-cxr" / "2.0.0")
    main(["--cxr", str(tree / "site"), "--jpg", str(tree / "site"), "--out", str(tree / "again"), "--workers", "1"])
    assert json.loads((tree / "again" / "annotation.manifest.json").read_text())["sha256"] == first


def test_two_workers_and_one_give_the_same_files(tree, monkeypatch):
    monkeypatch.setattr("data.preparation.mimic._CHUNK", 2)
    prepare(tree, out="one")
    prepare(tree, "--workers", 2, out="two")
    for name in ("annotation.json", "annotation.manifest.json"):
        assert (tree / "one" / name).read_bytes() == (tree / "two" / name).read_bytes()


def test_missing_images_are_counted_and_left_out(tree, capsys):
    (tree / "jpg/files/p11/p11000000/s50000005/g.jpg").unlink()
    (tree / "jpg/files/p12/p12000000/s50000007/k.jpg").rename(tree / "jpg/files/p12/p12000000/s50000007/k.png")
    content, manifest = prepare(tree)
    assert ids(content)["test"] == ["f", "h", "k"] and manifest["missing_images"] == 1
    assert content["test"][2]["image_path"] == ["p12/p12000000/s50000007/k.png"]
    assert "images that are not there: 1, such as p11/p11000000/s50000005/g.jpg" in capsys.readouterr().out


def test_no_images_takes_the_tables_alone(tree):
    full, _ = prepare(tree, out="a")
    alone, manifest = prepare(tree, "--no_images", out="b")
    assert alone == full and manifest["inputs"]["images"] == "none" and not (tree / "b" / "images").exists()


def test_resized_images_go_on_after_two_kills_and_failures_are_logged(tree, monkeypatch):
    broken = tree / "jpg/files/p11/p11000000/s50000005/g.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    whole, _ = prepare(tree, "--resize", 20, out="whole")
    assert "g" not in ids(whole)["test"]
    assert "g.jpg" in (tree / "whole" / "failed_images.txt").read_text()
    with Image.open(tree / "whole" / "images" / whole["test"][0]["image_path"][0]) as image:
        assert image.size == (30, 20) and image.mode == "L"

    from data.preparation import images

    real = images._make

    def killed_at(number):
        calls = iter(range(100))

        def make(job):
            if next(calls) == number:
                raise KeyboardInterrupt
            return real(job)

        return make

    class Here:  # the pool of one process, so that a kill falls where it is meant to
        def __init__(self, workers):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def map(self, function, jobs, chunksize):
            return map(function, jobs)

    monkeypatch.setattr(images, "ProcessPoolExecutor", Here)
    for number in (2, 3):
        monkeypatch.setattr(images, "_make", killed_at(number))
        with pytest.raises(SystemExit):
            prepare(tree, "--resize", 20, out="cut")
        assert not (tree / "cut" / "annotation.json").exists()
    monkeypatch.setattr(images, "_make", real)
    prepare(tree, "--resize", 20, out="cut")
    files = [path.relative_to(tree / "whole") for path in sorted((tree / "whole").rglob("*")) if path.is_file()]
    assert files == [path.relative_to(tree / "cut") for path in sorted((tree / "cut").rglob("*")) if path.is_file()]
    for name in files:
        assert (tree / "whole" / name).read_bytes() == (tree / "cut" / name).read_bytes(), name


def test_compare_ids(tree, capsys):
    (tree / "theirs.csv").write_text("report,dicom_id\nx,f\nx,g\nx,h\nx,k\n")
    prepare(tree, "--compare_ids", tree / "theirs.csv")
    assert "theirs.csv: 4 of 4, same order (test: 4 ids)" in capsys.readouterr().out
    (tree / "theirs.csv").write_text("study_id,report\n50000007,x\n50000005,x\n50000009,x\n")
    prepare(tree, "--compare_ids", tree / "theirs.csv")
    said = capsys.readouterr().out
    assert "2 of 3, in another order (test: 2 ids); 1 theirs alone, such as 50000009" in said


def test_from_annotation_lists_the_first_differences(tree, capsys):
    content, _ = prepare(tree)
    theirs = json.loads(json.dumps(content))
    theirs["test"][0]["report"] = "Lungs are\nclear."
    theirs["test"][1]["report"] = "Lungs are grey."
    theirs["train"][0]["id"] = "z"
    (tree / "theirs.json").write_text(json.dumps(theirs))
    prepare(tree, "--from_annotation", tree / "theirs.json")
    said = capsys.readouterr().out
    assert "train: 3 here, 3 there, 2 shared, same order; 0 texts differ" in said
    assert "  only here: a" in said and "  only there: z" in said
    assert "test: 4 here, 4 there, 4 shared, same order; 2 texts differ (1 in white space alone)" in said
    assert "text of g, at character 10: 'clear.' here, 'grey.' there" in said


# --- what is refused ---------------------------------------------------------------------------------------------------------


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, words)))
    assert left.value.code == 2
    return capsys.readouterr().err


def test_strict_counts_is_an_error(tree, capsys):
    words = ("--cxr", tree / "cxr", "--jpg", tree / "jpg", "--out", tree / "out", "--workers", 1)
    assert "train: 3 rows, 270,790 expected" in refused(capsys, *words, "--strict_counts")
    assert not (tree / "out" / "annotation.json").exists()


def test_another_annotation_is_not_overwritten(tree, capsys):
    words = ("--cxr", tree / "cxr", "--jpg", tree / "jpg", "--out", tree / "out", "--workers", 1)
    (tree / "out").mkdir()
    (tree / "out" / "annotation.json").write_text("{}")
    assert "was not made by this command" in refused(capsys, *words)
    prepare(tree, "--overwrite")
    prepare(tree)  # the same again
    assert "was made otherwise (rules" in refused(capsys, *words, "--min_words", 3)
    content = (tree / "out" / "annotation.json").read_text()
    (tree / "out" / "annotation.json").write_text(content.replace("clear", "grey"))
    assert "was changed after it was made" in refused(capsys, *words)


def test_rules_that_leave_nothing_are_an_error(tree, capsys):
    words = ("--cxr", tree / "cxr", "--jpg", tree / "jpg", "--out", tree / "out", "--workers", 1)
    said = refused(capsys, *words, "--min_words", 4)
    assert "no study is left of 9" in said and "fewer than 4 words: 5" in said
    assert "--min_words -1: must be 0 or more" in refused(capsys, *words, "--min_words", -1)


def test_what_is_missing_is_named(tree, capsys):
    out = ("--out", tree / "out", "--workers", 1)
    assert "--jpg: give the folder" in refused(capsys, "--cxr", tree / "cxr", *out)
    assert "no folder" in refused(capsys, "--cxr", tree / "none", "--jpg", tree / "jpg", *out)
    (tree / "empty").mkdir()
    assert "no mimic-cxr-2.0.0-split.csv.gz" in refused(capsys, "--cxr", tree / "cxr", "--jpg", tree / "empty", *out)
    assert "neither mimic-cxr-reports.zip" in refused(capsys, "--cxr", tree / "empty", "--jpg", tree / "jpg", *out)
    (tree / "empty" / "mimic-cxr-reports.zip").write_bytes(b"PK cut")
    assert "cannot be read" in refused(capsys, "--cxr", tree / "empty", "--jpg", tree / "jpg", *out)
    with gzip.open(tree / "jpg" / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write("dicom_id,study_id,split\nx,1,train\n")
    assert "lacks the columns subject_id" in refused(capsys, "--cxr", tree / "cxr", "--jpg", tree / "jpg", *out)
    with gzip.open(tree / "jpg" / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write("dicom_id,subject_id,study_id,split\nx,1,2,trian\n")
    assert "split 'trian' is unknown" in refused(capsys, "--cxr", tree / "cxr", "--jpg", tree / "jpg", *out)


@pytest.mark.slow
def test_a_made_tree_of_two_thousand_studies(tmp_path):
    """The benchmark of the full size, smaller: it raises when counts differ, and both process numbers give one file."""
    done = run("-m", "benchmarks.prepare_mimic", "--folder", tmp_path, "--studies", 2000, "--out", tmp_path / "f.json")
    assert "different annotations                    1" in done.stdout
