"""Controls of the results page in a real browser: enlarging, details, filters in the address, downloads, regions, two runs."""

import base64
import csv
import json
from io import StringIO

import numpy as np
import pytest
from made_page import freshly_opened, ids, make_results, needs_browser, open_made, text

from main_test import main
from modules.results_page.build import read_graph, write_page
from modules.results_page.compare import compare
from modules.results_page.diagnoses import label_figures, read_diagnoses, write_diagnoses
from modules.results_page.evidence import annotation_images, graph_row, image_side, read_evidence, write_images
from modules.results_page.pair import verdict
from modules.text.details import read_details
from modules.text.labels import CHEXPERT_14

PAIRS = [
    (
        "Small left effusion in the mid lung zone. The heart is enlarged.",
        "large left upper effusion . the heart is enlarged .",
    ),
    ("Mild edema. No pneumothorax.", "mild edema . no effusion ."),
    ("The lungs are clear.", "the lungs are clear ."),
    ("No effusion. Mild edema.", "there is an effusion . no edema ."),
]
DIAGNOSES = ["Cardiomegaly|Pleural Effusion", "Pleural Effusion", "", "Edema"]


# ----------------------------------------------------------------------------------------- side, place and size


def test_reports_that_differ_in_side_place_or_size_do_not_agree():
    def effusion(reference, prediction):
        found = compare(reference, prediction)
        return found["relations"][CHEXPERT_14.index("Pleural Effusion")], found["details"]

    assert effusion("Small left mid effusion.", "large left upper effusion .") == (
        "q",
        [[9, "left; mid; small or mild", "left; upper; large or severe", ["place", "size"]]],
    )
    assert effusion("Bilateral effusions.", "left effusion")[1][0][1:] == ["both sides", "left", ["side"]]
    assert effusion("Possible left effusion.", "right effusion")[0] == "q"  # hedged, and on the other side
    assert effusion("Left effusion.", "small effusion") == (
        "=",
        [[9, "left", "small or mild", []]],
    )  # neither denies the other
    assert effusion("Effusion.", "effusion") == ("=", [])
    assert effusion("No left effusion.", "large right effusion")[0] == "x"


@pytest.mark.parametrize(
    "report, label, side, place, size",
    [
        ("Small left and large right effusion with mild edema.", "Pleural Effusion", "left right", "", "small large"),
        ("Small left effusion and severe edema.", "Edema", "", "", "large"),
        ("Right lung is clear and small left effusion.", "Pleural Effusion", "left", "", "small"),
        ("Heart size at the upper limits, mildly enlarged heart.", "Cardiomegaly", "", "", "small"),
        ("Bibasilar atelectasis.", "Atelectasis", "left right", "lower", ""),
        ("RLL pneumonia.", "Pneumonia", "right", "lower", ""),
    ],
)
def test_details_belong_to_their_own_finding(report, label, side, place, size):
    found = read_details(report)[label]
    assert found["side"] == set(side.split()) and found["place"] == set(place.split())
    assert {value.split()[0] for value in found["size"]} == set(size.split())


# --------------------------------------------------------------------------------------------------- diagnosis


def test_figures_of_a_diagnosis_by_hand(tmp_path):
    truth, score = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.7])
    found = label_figures(truth, score, 0.75)
    assert found["auroc"] == 0.625  # of four pairs two are right, one is a tie
    assert found["roc"] == [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [1.0, 1.0]] and found["at"] == [0.5, 0.5]
    assert found["bins"] == [[0.7, 0.5, 2], [0.8, 0.0, 1], [0.9, 1.0, 1]] and (found["said"], found["hits"]) == (2, 1)
    assert label_figures(truth | True, score, 0.5)["roc"] is None
    write_diagnoses(
        tmp_path, "test", {"labels": ["Edema"], "thresholds": [0.5], "probabilities": {"a": [0.25], "b": [1.0]}}
    )
    assert read_diagnoses(tmp_path, "test", ["b", "a"])["probabilities"].tolist() == [[1.0], [0.25]]
    write_diagnoses(tmp_path, "test", None)
    assert read_diagnoses(tmp_path, "test", ["a"]) is None


# ----------------------------------------------------------------------------------------------------- evidence


def test_columns_of_a_scene_graph_are_read_back():
    found = read_graph("left lung 0.98|spine 0.50", "left lung: no|mass, nodule 0.92, normal 0.72; spine: normal 1.00")
    assert found == [
        ["left lung", 0.98, [["no|mass, nodule", 0.92], ["normal", 0.72]]],
        ["spine", 0.5, [["normal", 1.0]]],
    ]
    assert read_graph("spine", "spine: normal, degree|mild") == [
        ["spine", None, [["normal", None], ["degree|mild", None]]]
    ]
    assert read_graph("", "") == []


def test_boxes_and_truth_are_those_of_the_file(mini):
    from types import SimpleNamespace

    from data.scene_graphs import read_rows, read_scene_graphs

    path = mini / "data" / "scene_graphs.jsonl"
    row, dataset = next(iter(read_rows(path))), SimpleNamespace(scene_graphs=read_scene_graphs(path))
    found = graph_row(dataset, row["image"])
    boxed = {entry["name"]: entry for entry in row["regions"] if entry["box"]}
    assert set(found["boxes"]) == set(boxed)
    spoken = {name: set(entry["attributes"]) for name, entry in boxed.items() if entry["spoken"]}
    assert {name: set(attributes) for name, attributes in found["truth"].items()} == spoken
    for name, box in found["boxes"].items():
        np.testing.assert_allclose(box, boxed[name]["box"], atol=1e-4)


def test_large_sets_keep_smaller_images():
    assert image_side(10) == 768 and image_side(1180) == 411 and image_side(10**6) == 224


def test_images_of_an_annotation(tmp_path):
    rows = [{"id": 1, "image_path": ["1.png", "missing.png"]}, {"id": "b", "image_path": "2.png"}, {"id": "c"}]
    (tmp_path / "a.json").write_text(json.dumps({"test": rows}))
    (tmp_path / "1.png").touch()
    found = annotation_images(tmp_path / "a.json", "test", tmp_path)
    assert found == {"1": ["1.png", "missing.png"]}
    write_images(tmp_path / "evidence_test.jsonl", found, "dir", open_made)
    [(name, line)] = read_evidence(tmp_path / "evidence_test.jsonl")
    first, second = json.loads(line)["images"]
    assert name == "1" and base64.b64decode(first["jpeg"])[:2] == b"\xff\xd8" and first["seen"] is None
    assert second["note"] == "no image dir/missing.png"


# --------------------------------------------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four studies with a diagnosis by a classifier and with the regions of a scene graph."""
    graph = {
        "regions": "left lung 0.90|spine 0.40",
        "attributes": "left lung: yes|edema 0.80, degree|mild 0.60; spine: normal 0.90",
    }
    keys = [
        f"ce/rules-2/{labels}/{of}/u1/{value}"
        for labels in (13, 14)
        for of in ("micro", "macro")
        for value in ("recall", "f1")
    ]
    root = make_results(
        tmp_path_factory.mktemp("controls") / "run",
        PAIRS,
        more=lambda n: {"diagnosis": DIAGNOSES[n], **graph},
        metrics={"clean/BLEU_4": 0.3, **{key: 0.5 for key in keys}, "constant/ce/rules-2/13/micro/u1/f1": 0.25,
                 "by_label": {"rules-2": {"Edema": {"u1": {"f1": 1.0, "reference": 1, "prediction": 0}}}}},
    )  # fmt: skip
    rows = [json.loads(line) for _, line in read_evidence(root / "evidence_test.jsonl")]
    boxes = {"left lung": [0.5, 0.1, 0.9, 0.8], "spine": [0.45, 0, 0.55, 1], "trachea": [0.4, 0, 0.6, 0.3]}
    for row in rows:
        row["graph"] = {"boxes": boxes, "truth": {"left lung": ["yes|edema"], "trachea": ["normal"]}}
    (root / "evidence_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chances = {
        f"study {n}": [0.9 if label in DIAGNOSES[n] else 0.2 for label in CHEXPERT_14] for n in range(len(PAIRS))
    }
    found = {"labels": list(CHEXPERT_14), "thresholds": [0.5] * 14, "probabilities": chances}
    write_diagnoses(root, "test", found)
    write_page(root)
    return root


@pytest.fixture
def page(browser, folder):
    yield from freshly_opened(browser, folder)


def cells(page, rows: str) -> list[list[str]]:
    """Texts of the cells of the table rows that a selector finds."""
    each = f"[...document.querySelectorAll({json.dumps(rows)})].map((row) => [...row.cells].map((cell) => cell.textContent))"
    return page.run(each)


@needs_browser
def test_the_image_is_enlarged_with_zoom_contrast_and_inversion(page):
    page.click("#viewer .light-box img")
    assert page.run("$('zoom').open") and text(page, "#zoom-scale") == "100%"
    page.click("#zoom-in")
    page.press("+")
    assert text(page, "#zoom-scale") == "196%"
    moved = page.run("zoom.x")
    page.press("ArrowLeft")
    assert page.run("zoom.x") > moved
    page.choose("#zoom-contrast", "200")
    page.press("i")
    shown = page.run("getComputedStyle(document.querySelector('#zoom-sheet img')).filter")
    assert "contrast(2)" in shown and "invert(1)" in shown
    hidden = "getComputedStyle(document.querySelector('#zoom-sheet svg')).display"
    assert page.run(hidden) == "none"
    page.click("#zoom-overlays")
    assert page.run(hidden) != "none" and page.run("document.querySelectorAll('#zoom-sheet rect').length") == 2
    page.click("#zoom-reset")
    assert text(page, "#zoom-scale") == "100%" and not page.run("$('zoom-invert').checked")
    page.press("j")  # keys of the page rest
    assert text(page, "#detail h2") == "study 0"
    page.press("Escape")
    assert not page.run("$('zoom').open")
    page.press("e")
    assert page.run("$('zoom').open")
    page.click("#zoom-close")
    assert not page.run("$('zoom').open")


@needs_browser
def test_another_place_or_size_is_marked_and_silence_is_neutral(page):
    row = cells(page, ".findings tbody tr")[0]
    assert row == [
        "Pleural Effusion",
        "statedleft; mid; small or mild",
        "statedleft; upper; large or severe",
        "\u2248 differs in detail",
    ]
    mark = text(page, "#prediction mark.q")
    assert "\u2248" in mark and "(left; mid; small or mild, not left; upper; large or severe)" in mark
    states = page.run(
        "[...document.querySelectorAll('.row .counts')].map((node) => [node.textContent, node.firstChild.className])"
    )
    assert states[1:3] == [["findings agree", "ok"], ["no finding is stated", ""]]
    page.choose("#filter-relation", "q")
    assert ids(page) == ["study 0"]


@needs_browser
def test_a_report_that_contradicts_its_own_diagnosis_is_found(page):
    page.choose("#filter-relation", "own-diagnosis")
    assert ids(page) == ["study 1", "study 3"]
    assert (
        "Edema is stated, but not diagnosed" in text(page, "#diagnosis")
        and "effusion is diagnosed, but denied" in text(page, "#diagnosis").lower()
    )
    assert "Pleural Effusion 0.90 (threshold 0.50): not in the reference" in text(page, "#diagnosis")


@needs_browser
def test_filters_stand_in_the_address(page, folder):
    page.choose("#search", "edema")
    page.choose("#filter-label", str(CHEXPERT_14.index("Edema")))
    page.choose("#filter-relation", "=")
    page.choose("#sort", "0")
    page.choose("#order", "best")
    address = page.run("location.hash")
    assert address == "#studies/study%201?find=edema&finding=Edema&is=%3D&sort=r2gen%2FROUGE_L&order=best"
    page.open(folder / "index.html", address)
    assert (
        ids(page) == ["study 1"] and page.run("$('order').value") == "best" and page.run("$('search').value") == "edema"
    )
    page.click('#tabs a[href="#scores"]')
    page.click('#tabs a[href="#studies"]')
    page.wait("document.body.dataset.view === 'studies'")
    assert ids(page) == ["study 1"]  # what was chosen stays
    page.click("#reset")
    assert len(ids(page)) == 4 and page.run("location.hash") == "#studies/study%200" and page.run("$('reset').hidden")
    page.open(folder / "index.html", "#studies/nobody?finding=Nothing&is=nothing&sort=none&order=?")  # a broken address
    assert len(ids(page)) == 4


@needs_browser
def test_scores_in_words_others_folded_counts_whole(page):
    page.click('#tabs a[href="#scores"]')
    page.wait("document.body.dataset.view === 'scores'")
    seen = page.run("$('view-scores').innerText")
    assert "13 findings, without No Finding; uncertain counts as present; rule-based labeler, version 2" in seen
    assert "all decisions pooled (micro)" in seen and "mean over findings (macro)" in seen and "ce/rules-2" not in seen
    folds = page.run(
        "[...document.querySelectorAll('#view-scores details')].map((node) => [node.open, node.firstChild.textContent])"
    )
    assert [False, "Protocol clean: complete cleaned references"] in folds and not any(is_open for is_open, _ in folds)
    page.run("document.querySelectorAll('#view-scores details').forEach((node) => (node.open = true))")
    page.wait("document.querySelectorAll('#view-scores details table').length >= 3")
    rows = cells(page, "#view-scores details table tbody tr")
    assert ["Edema", "1.000", "1", "0"] in rows  # a score, two counts
    heat = cells(page, "#findings tbody tr")
    assert ["Edema", "2", "1", "1", "0", "0", "0", "0", "1", "0"] in heat
    assert page.run("document.querySelector('#findings td.heat button').parentNode.style.background").startswith(
        "color-mix"
    )


@needs_browser
def test_tables_and_figures_can_be_taken_away(page, tmp_path):
    page.downloads(tmp_path)
    page.click('#tabs a[href="#scores"]')
    page.wait("document.body.dataset.view === 'scores'")
    page.run("document.querySelector('.table-box .save').click()")
    for _ in range(200):
        if list(tmp_path.glob("*.csv")):
            break
        page.run("new Promise((done) => setTimeout(done, 20))")
    table = list(csv.reader(StringIO(next(tmp_path.glob("*.csv")).read_text())))
    assert table[0] == ["system", "BLEU-4", "METEOR"] and ["this system (oracle)", "0.100", "n/a"] in table
    page.run("window.saved = []; save = (name, type, content) => saved.push([name, type, content])")
    page.run("document.querySelector('#findings').closest('.table-box').querySelectorAll('.save')[1].click()")
    page.run("document.querySelector('#view-diagnosis figure .save').click()")
    (name, _, latex), (figure, kind, image) = page.run("saved")
    assert name == "run_findings.tex" and "\\begin{tabular}{lrrrrrrrrr}" in latex and latex.count("\\\\\n") == 5
    assert "contradicted $\\neq$" in latex and "\\bottomrule" in latex
    assert figure.endswith(".svg") and kind == "image/svg+xml" and 'xmlns="http://www.w3.org/2000/svg"' in image
    assert "var(" not in image and "class=" not in image


@needs_browser
def test_diagnosis_has_thresholds_roc_and_calibration(page):
    page.click('#tabs a[href="#diagnosis"]')
    page.wait("document.body.dataset.view === 'diagnosis'")
    rows = cells(page, "#view-diagnosis tbody tr")
    assert ["Pleural Effusion", "1", "0.833", "0.500", "2", "0.50", "1.00", "0.67"] in rows
    assert page.run("document.querySelectorAll('#view-diagnosis figure').length") == 4  # labels with both classes
    assert "AUROC, mean over 4 labels" in text(page, "#view-diagnosis")


@needs_browser
def test_regions_with_boxes_attributes_and_agreement(page):
    assert "1 of 2 chosen regions are spoken of in the reference, which speaks of 2; 1 of 3 attributes agree" in text(
        page, "#regions"
    )
    rows = cells(page, "#regions tbody tr")
    assert rows[0][:3] == ["left lung", "0.90", "\u2713 in the report"] and rows[2] == [
        "trachea",
        "",
        "\u2212 not chosen",
        "\u2212 normal",
    ]
    assert "\u2713 edema 0.80" in rows[0][3] and "+ mild 0.60" in rows[0][3]
    boxes = "[...document.querySelectorAll('#light-boxes rect')].map((box) => [box.getAttribute('x'), box.getAttribute('class')])"
    assert page.run(boxes) == [["45", ""], ["50", ""]]
    page.click('button[data-region="trachea"]')
    assert page.run(boxes)[-1] == ["40", "chosen"]
    page.click("#boxes")
    assert page.run(boxes) == [["40", "chosen"]]
    page.click('button[data-region="trachea"]')
    assert page.run(boxes) == []


@needs_browser
def test_two_runs_side_by_side(browser, tmp_path):
    """The command itself: metrics of both, the studies that changed most first, both reports beside the reference."""
    better = [(reference, reference.lower() if n == 3 else told) for n, (reference, told) in enumerate(PAIRS)]
    worse = [(reference, "the heart is small ." if n == 0 else told) for n, (reference, told) in enumerate(better)]
    files = [
        make_results(tmp_path / name, rows) / "predictions_test.csv" for name, rows in (("one", PAIRS), ("two", worse))
    ]
    main(
        [
            "--compare",
            *map(str, files),
            "--bootstrap",
            "20",
            "--protocols",
            "clean",
            "--save_dir",
            str(tmp_path / "both"),
        ]
    )
    browser.errors.clear()
    browser.media()
    browser.open(tmp_path / "both" / "index.html", "#scores")
    browser.loaded()
    tiles = browser.run("[...document.querySelectorAll('.tile .value')].map((node) => node.textContent)")
    assert tiles == ["1", "1", "1", "2"]  # repaired, broken, wrong in both, same report
    table = cells(browser, "#view-scores tbody tr")
    assert all(row[6] in ("not distinguished", "B is higher", "A is higher") for row in table)
    bleu = next(row for row in table if row[0] == "BLEU-4, clean")
    assert float(bleu[1]) - float(bleu[2]) == pytest.approx(-float(bleu[3].replace("\u2212", "-")), abs=2e-4)
    browser.click('#tabs a[href="#studies"]')
    browser.wait("document.body.dataset.view === 'studies'")
    listed = ids(browser)
    assert set(listed[:2]) == {"study 0", "study 3"} and listed[2:] == ["study 1", "study 2"]
    assert browser.run("[...document.querySelectorAll('.report h3')].map((node) => node.firstChild.textContent)") == [
        "Reference", "A: one", "B: two",
    ]  # fmt: skip
    browser.choose("#filter-relation", "fixed")
    assert ids(browser) == ["study 3"] and "B repairs 2" in text(browser, ".row")
    assert browser.run("document.querySelector('.light-box img') !== null")  # images of the first run
    browser.choose("#filter-relation", "broken")
    assert ids(browser) == ["study 0"]
    assert browser.run("document.querySelector('#tabs a[href=\"#training\"]').hidden") and browser.errors == []
    assert [verdict(-1, 1), verdict(0.1, 1), verdict(-1, -0.1)] == ["not distinguished", "B is higher", "A is higher"]


def test_a_scored_file_shows_the_images_of_the_annotation(mini, tmp_path):
    data = mini / "data"
    rows = json.loads((data / "annotation.json").read_text())["test"]
    (tmp_path / "foreign.json").write_text(json.dumps({row["id"]: row["report"] for row in rows}))
    where = {"score": tmp_path / "foreign.json", "reference": data / "annotation.json", "image_dir": data / "images"}
    where |= {"dataset_name": "miniature", "bootstrap": 0, "protocols": "clean", "save_dir": tmp_path / "out"}
    main([word for name, value in where.items() for word in (f"--{name}", str(value))])
    found = dict(read_evidence(tmp_path / "out" / "evidence_test.jsonl"))
    assert set(found) == {row["id"] for row in rows} and all(
        json.loads(line)["images"][0]["jpeg"] for line in found.values()
    )
    assert 'id="e0"' in (tmp_path / "out" / "index.html").read_text()


@needs_browser
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_is_wider_than_the_window(page, width):
    page.size(width, 800)
    found = {}
    for part in ("scores", "studies", "diagnosis", "training", "run"):
        page.run(f"location.hash = '#{part}'")
        page.wait(f"document.body.dataset.view === '{part}'")
        page.run("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        found[part] = page.run("document.documentElement.scrollWidth")
        parts = "[...document.querySelectorAll('#detail, #detail > *, .view')]"
        assert page.run(f"Math.max(...{parts}.map((node) => node.scrollWidth - node.clientWidth))") <= 1, part
    page.size(1280, 800)
    assert max(found.values()) <= width, found
