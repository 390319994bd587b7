"""data.prepare_iu on made OpenI files of all 2,955 numbers of R2Gen's split, and on the real reports where they lie."""

import csv
import io
import json
import tarfile
from xml.sax.saxutils import escape

import pytest
from conftest import prepared
from PIL import Image

from data.preparation.iu import SPLIT_FILE
from data.prepare_iu import main
from modules.artefact import sha256

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">{comparison}</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">Made up.</AbstractText>
</Abstract></Article></MedlineCitation>{images}</eCitation>"""


def split_numbers() -> dict[str, list[int]]:
    lines = [line.split() for line in SPLIT_FILE.read_text().splitlines()]
    return {split: list(map(int, numbers)) for split, *numbers in lines}


def made_studies() -> dict[int, tuple[str, list[str]]]:
    """{number: (findings, image names)}: the numbers of the split, and three studies that R2Gen's rules leave out."""
    studies = {}
    for number in sum(split_numbers().values(), []):
        name = f"CXR{number}_1_IM-{number:04d}" if number == 1 else f"CXR{number}_IM-{number:04d}"
        studies[number] = (f"Made findings {number} & more.", [f"{name}-1001", f"{name}-2001"])
    others = [number for number in range(1, 4000) if number not in studies][:3]
    studies[others[0]] = ("", [f"CXR{others[0]}_IM-0001-1001", f"CXR{others[0]}_IM-0001-2001"])
    studies[others[1]] = ("One image alone.", [f"CXR{others[1]}_IM-0001-1001"])
    studies[others[2]] = ("No image.", [])
    return studies


@pytest.fixture(scope="module")
def openi(tmp_path_factory):
    """NLMCXR_reports.tgz and its Kaggle copy."""
    root = tmp_path_factory.mktemp("openi")
    reports, projections = [], []
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
        for number, (findings, images) in made_studies().items():
            links = "".join(f'<parentImage id="{image}"/>' for image in images)
            text = XML.format(number=number, findings=escape(findings), comparison="", images=links).encode()
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
            reports.append((number, "normal", "", "Xray", "Cough", "", findings, "Made up."))
            named = [(number, kaggle_name(number, image)) for image in images]
            projections += [(*pair, "Lateral" if place else "Frontal") for place, pair in enumerate(named)][::-1]
    write(root / "indiana_reports.csv", "uid,MeSH,Problems,image,indication,comparison,findings,impression", reports)
    write(root / "indiana_projections.csv", "uid,filename,projection", projections)
    return root


def kaggle_name(number: int, image: str) -> str:
    return f"{number}_IM-{image.split('_IM-')[1]}.dcm.png"


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([header.split(","), *rows])


def prepare(*words):
    return prepared(main, *words)


def test_r2gens_rules_ids_images_and_order(openi, tmp_path, capsys):
    content = prepare("--reports", openi / "NLMCXR_reports.tgz", "--no_images", "--out", tmp_path)
    assert {split: len(rows) for split, rows in content.items()} == {"train": 2069, "val": 296, "test": 590}
    numbers = {split: [int(row["report"].split()[2]) for row in rows] for split, rows in content.items()}
    assert numbers == split_numbers()
    row = content["test"][0]
    number = split_numbers()["test"][0]
    name = f"CXR{number}_IM-{number:04d}"
    assert row == {
        "id": name, "study_id": name, "report": f"Made findings {number} & more.",
        "image_path": [f"{name}/0.png", f"{name}/1.png"], "split": "test", "impression": "Made up.", "indication": "Cough",
        "history": "", "comparison": "", "technique": "",
    }  # fmt: skip
    assert any(row["id"] == "CXR1_1_IM-0001" for rows in content.values() for row in rows)
    said = capsys.readouterr().out
    assert "NOT the published data set" in said and "counts are the preset's" in said
    assert "left out, no findings: 1" in said and "fewer than two images: 2" in said


def test_the_kaggle_copy_gives_the_same_file(openi, tmp_path):
    prepare("--reports", openi / "NLMCXR_reports.tgz", "--no_images", "--out", tmp_path / "xml")
    prepare("--reports", openi / "indiana_reports.csv", "--no_images", "--out", tmp_path / "csv")
    with tarfile.open(openi / "NLMCXR_reports.tgz") as archive:
        archive.extractall(tmp_path / "folder", filter="data")
    prepare("--reports", tmp_path / "folder", "--no_images", "--out", tmp_path / "unpacked")
    digests = {sha256(tmp_path / name / "annotation.json") for name in ("xml", "csv", "unpacked")}
    assert len(digests) == 1


def grey(path, value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), value).save(path)


@pytest.mark.parametrize("naming", ["openi", "kaggle", "r2gen"])
def test_images_are_found_under_any_of_three_names_and_linked_as_r2gen(openi, tmp_path, naming):
    number = split_numbers()["test"][0]
    _, images = made_studies()[number]
    for place, image in enumerate(images):
        name = {"openi": f"{image}.png", "kaggle": kaggle_name(number, image), "r2gen": f"{image[:-5]}/{place}.png"}[
            naming
        ]
        grey(tmp_path / "png" / name, 50 + place)
    words = ("--reports", openi / "NLMCXR_reports.tgz", "--images", tmp_path / "png", "--out")
    content = prepare(*words, tmp_path / "out")
    assert [row["id"] for rows in content.values() for row in rows] == [images[0][:-5]]
    for place, path in enumerate(content["test"][0]["image_path"]):
        assert path == f"{images[0][:-5]}/{place}.png"
        with Image.open(tmp_path / "out" / "images" / path) as image:
            assert image.getpixel((0, 0)) == 50 + place
    prepare(*words, tmp_path / "out")  # the links are there already
    content = prepare(*words, tmp_path / "flat", "--layout", "source")
    assert (tmp_path / "flat" / "images").is_symlink() and len(content["test"]) == 1


def test_an_archive_of_images_is_copied_or_made_smaller(openi, tmp_path):
    number = split_numbers()["val"][0]
    _, images = made_studies()[number]
    with tarfile.open(tmp_path / "NLMCXR_png.tgz", "w:gz") as archive:
        for image in images[::-1]:
            grey(tmp_path / f"{image}.png")
            archive.add(tmp_path / f"{image}.png", f"{image}.png")
    words = (
        "--reports",
        openi / "NLMCXR_reports.tgz",
        "--images",
        tmp_path / "NLMCXR_png.tgz",
        "--workers",
        2,
        "--out",
    )
    content = prepare(*words, tmp_path / "out")
    for image, path in zip(images, content["val"][0]["image_path"]):
        assert (tmp_path / "out" / "images" / path).read_bytes() == (tmp_path / f"{image}.png").read_bytes()
    content = prepare(*words, tmp_path / "small", "--resize", 3)
    with Image.open(tmp_path / "small" / "images" / content["val"][0]["image_path"][0]) as image:
        assert image.format == "JPEG" and image.size == (4, 3)
    assert not (tmp_path / "small" / ".unpacked").exists()


def test_other_preparations(openi, tmp_path, capsys):
    reports = ("--reports", openi / "NLMCXR_reports.tgz", "--no_images", "--out")
    content = prepare(*reports, tmp_path / "a", "--section", "findings+impression")
    assert content["val"][0]["report"].endswith("& more. Made up.")
    content = prepare(*reports, tmp_path / "b", "--all_studies")
    assert sum(len(rows) for rows in content.values()) == 2956
    assert "OpenI names no patients" in capsys.readouterr().out
    content = prepare(*reports, tmp_path / "c", "--all_studies", "--split", "0:0:1", "--unit", "image")
    assert len(content["test"]) == 2 * 2955 + 1
    content = prepare(
        *reports, tmp_path / "d", "--projections", openi / "indiana_projections.csv", "--views", "frontal"
    )
    assert content["test"][0]["views"] == ["FRONTAL"] and len(content["test"][0]["image_path"]) == 1


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, words)))
    assert left.value.code == 2
    return capsys.readouterr().err


def test_what_is_wrong_is_named(openi, tmp_path, capsys):
    reports, out = ("--reports", openi / "NLMCXR_reports.tgz"), ("--out", tmp_path / "out")
    assert "--images: give" in refused(capsys, *reports, *out)
    assert "need --projections" in refused(capsys, *reports, "--no_images", *out, "--order", "frontal_first")
    (tmp_path / "empty").mkdir()
    assert "holds no image named as" in refused(capsys, *reports, "--images", tmp_path / "empty", *out)
    assert "holds no report" in refused(capsys, "--reports", tmp_path / "empty", "--no_images", *out)
    (tmp_path / "cut.tgz").write_bytes((openi / "NLMCXR_reports.tgz").read_bytes()[:20000])
    assert "cannot be read as an archive" in refused(capsys, "--reports", tmp_path / "cut.tgz", "--no_images", *out)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "1.xml").write_text(XML.format(number=1, findings="a", comparison="", images=""))
    assert "2954 of R2Gen's reports are not there" in refused(
        capsys, "--reports", tmp_path / "few", "--no_images", *out
    )
    (tmp_path / "few" / "1.xml").write_text("<a>")
    assert "1.xml is not XML" in refused(capsys, "--reports", tmp_path / "few", "--no_images", *out)


@pytest.mark.shared
def test_the_real_reports_are_r2gens_data_set(shared, tmp_path, capsys):
    ours = prepare(
        "--reports", shared / "openi" / "NLMCXR_reports.tgz", "--images", shared / "iu_xray" / "images",
        "--compare_ids", shared / "golden_metrics" / "cvt2distilgpt2_iu_test.csv", "--out", tmp_path, "--strict_counts",
    )  # fmt: skip
    theirs = json.loads((shared / "iu_xray" / "annotation.json").read_text(encoding="utf-8"))
    for split, rows in theirs.items():
        assert [{name: row[name] for name in rows[0]} for row in ours[split]] == rows
    said = capsys.readouterr().out
    assert "both hashes are the published data set's" in said and "590 of 590, same order" in said


@pytest.mark.shared
def test_the_real_reports_in_kaggles_layout_give_the_same_file(shared, tmp_path):
    from data.preparation.iu import _openi_studies

    reports = shared / "openi" / "NLMCXR_reports.tgz"
    studies = _openi_studies(reports)
    columns = ("indication", "comparison", "findings", "impression")
    rows = [(n, "", "", "", *(study.sections[name] for name in columns)) for n, study in studies.items()]
    write(tmp_path / "indiana_reports.csv", "uid,MeSH,Problems,image," + ",".join(columns), rows)
    shown = [(n, kaggle_name(n, image.id), "") for n, study in studies.items() for image in study.images[::-1]]
    write(tmp_path / "indiana_projections.csv", "uid,filename,projection", shown)
    prepare("--reports", reports, "--no_images", "--out", tmp_path / "xml")
    prepare("--reports", tmp_path / "indiana_reports.csv", "--no_images", "--out", tmp_path / "csv")
    assert sha256(tmp_path / "xml" / "annotation.json") == sha256(tmp_path / "csv" / "annotation.json")
