"""Scene graphs: the file and what is refused, boxes that turn with their image, rules, atlas, detector, sources."""

import gzip
import json
import random
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data import chest_imagenome, scene_graphs
from data.batches import StudyDataset, collate
from data.images import Augmentation, turned_boxes
from data.miniature_set.build import build
from data.miniature_set.drawing import draw
from data.miniature_set.graphs import graph_of, region_boxes
from data.miniature_set.text import sample
from data.prepare import open_data
from data.region_atlas import USUAL_THORAX, atlas_by_hand, find_thorax, fit_atlas, place_atlas
from data.scene_graphs import layout_of, read_rows, read_scene_graphs, write_scene_graphs
from data.studies import read_annotation
from knowledge import build_scene_graphs, check_graphs, from_scratch, train_region_detector
from knowledge import region_boxes as boxes_command
from knowledge.region_boxes import find_boxes
from models import SYSTEMS
from modules.artefact import manifest_path, sha256
from modules.errors import InputError, Problems
from modules.flags import parse
from modules.text.region_rules import read_gains, read_regions
from modules.text.regions import REGIONS, GraphLayout


def region(name="left lung", box=(0.5, 0.1, 0.9, 0.8), **said):
    return {"name": name, "box": None if box is None else list(box), "score": 1.0, **said}


def spoken(*attributes, abnormal=False):
    return {"spoken": True, "abnormal": abnormal, "attributes": list(attributes)}


SILENT = {"spoken": False, "abnormal": False, "attributes": []}
ROWS = [
    {"study": "a", "image": "a/0.png", "split": "train", "regions": [
        region(**spoken("yes|edema", "no|pneumothorax", abnormal=True)),
        region("right lung", (0.1, 0.1, 0.45, 0.8), **SILENT),
        region("left lung", (0.6, 0.2, 0.8, 0.7), **spoken("yes|edema", abnormal=True)),
        region("spine", None, **spoken("normal"))]},
    {"study": "b", "image": "b/0.png", "split": "train", "regions": []},
    {"study": "c", "image": "c/0.png", "split": "test", "regions": [
        region("carina", (0.4, 0.3, 0.5, 0.4), score=0.75, **spoken("yes|support devices"))]},
]  # fmt: skip


def written(path, rows=ROWS, **changes):
    settings = {"least": 1, "inputs": {}, "boxes_from": {"kind": "truth"}, "attributes_from": {"kind": "truth"}}
    write_scene_graphs(path, rows, **settings | changes)
    return path


def changed(path, change):
    """The file with its lines changed, and its manifest made to agree, as somebody would who edits both."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines) or lines))
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | {"sha256": sha256(path)}))
    return path


# ------------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("name", ("scene_graphs.jsonl", "scene_graphs.jsonl.gz"))
def test_what_was_written_is_read(tmp_path, name):
    graphs = read_scene_graphs(written(tmp_path / name))
    assert len(graphs) == 3 and "a/0.png" in graphs and "a/1.png" not in graphs
    assert graphs.layout == layout_of(tmp_path / name)
    graph = graphs.of("a/0.png")
    assert [REGIONS[number] for number in graph.regions] == ["left lung", "right lung", "left lung"]
    assert np.allclose(graph.boxes[2], [0.6, 0.2, 0.8, 0.7]) and graph.boxes.dtype == np.float32
    assert graph.spoken.tolist() == [True, False, True] and graph.abnormal.tolist() == [True, False, True]
    names = graphs.layout.attributes[0]
    assert names == ("yes|edema", "no|pneumothorax")  # the commonest first
    assert graph.attributes[:, : len(names)].tolist() == [[True, True], [False, False], [True, False]]
    assert {REGIONS[k] for k in np.flatnonzero(graph.region_labels)} == {"left lung", "spine"}  # spoken of without a box
    empty = graphs.of("b/0.png")
    assert empty.boxes.shape == (0, 4) and empty.attributes.shape == (0, max(graphs.layout.heads))
    assert not empty.region_labels.any()
    assert graphs.of("c/0.png").scores.tolist() == [0.75] and graphs.split_of("c/0.png") == "test"
    assert (tmp_path / name).read_bytes()[:2] == (gzip.compress(b"")[:2] if name.endswith("gz") else b"{\"")


def test_attributes_come_from_training_reports_alone(tmp_path):
    path = written(tmp_path / "graphs.jsonl")
    layout = layout_of(path)
    assert layout.attributes[REGIONS.index("carina")] == ()  # only a test report says it
    assert not read_scene_graphs(path).of("c/0.png").attributes.any()
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["counted"]["rare_attributes_left_out"] == 1
    assert manifest["counted"]["splits"]["train"] | {"ids_sha256": ""} == \
        {"images": 2, "without_region": 1, "ids_sha256": ""}
    rare = layout_of(written(tmp_path / "rare.jsonl", least=2))
    assert rare.attributes[0] == ("yes|edema",) and sum(rare.heads) == 1


def test_boxes_are_clipped_and_empty_ones_dropped(tmp_path):
    rows = [{"study": "a", "image": "a", "split": "train", "regions": [
        region("left lung", (-0.2, 0.1, 0.5, 1.4), **SILENT), region("carina", (1.1, 0.1, 1.2, 0.2), **SILENT),
        region("svc", (0.5, 0.5, 0.5, 0.6), **spoken("normal"))]}]  # fmt: skip
    path = written(tmp_path / "graphs.jsonl", rows)
    kept = next(read_rows(path))["regions"]
    assert [(row["name"], row["box"]) for row in kept] == [("left lung", [0, 0.1, 0.5, 1]), ("svc", None)]
    assert read_scene_graphs(path).of("a").region_labels.sum() == 1


def test_another_layout_is_named():
    layout = GraphLayout(("left lung", "spine"), (("a", "b"), ()))
    assert GraphLayout.from_state(json.loads(json.dumps(layout.state()))) == layout and layout.heads == (2, 0)
    assert layout.difference(layout) is None
    other = GraphLayout(("left lung", "spine"), (("b", "a"), ()))
    assert "another order" in layout.difference(other) and "left lung" in layout.difference(other)
    assert "only there c" in layout.difference(GraphLayout(("left lung", "spine"), (("a", "b", "c"), ())))
    assert layout.difference(GraphLayout(("spine",), ((),))).startswith("regions")


BAD = {
    "1 regions are unknown": lambda lines: lines[0]["regions"][0].update(name="left chest wall"),
    "1 boxes lie outside the image": lambda lines: lines[2]["regions"][0].update(box=[0.4, 0.3, 1.5, 0.4]),
    "1 attributes are not in the manifest's list": lambda lines: lines[0]["regions"][0].update(attributes=["yes|fever"]),
    "1 images stand twice": lambda lines: lines[1].update(image="a/0.png"),
    "1 lines are no scene graph": lambda lines: lines[1].update(split="exam"),
    "1 lines have a region without a box of four numbers": lambda lines: lines[2]["regions"][0].update(box=[1, 2]),
}


@pytest.mark.parametrize("message", BAD)
def test_faulty_files_are_refused_with_the_line(tmp_path, message):
    path = changed(written(tmp_path / "graphs.jsonl"), BAD[message])
    with pytest.raises(InputError, match=message) as caught:
        read_scene_graphs(path)
    assert re.search(r"first line \d: ", str(caught.value))


def test_all_faults_are_told_at_once(tmp_path):
    def change(lines):
        clean = json.dumps(lines)
        for number, fault in enumerate(BAD.values()):
            faulty = json.loads(clean)
            for line in faulty:
                line["image"] = f"{number}/{line['image']}"
            fault(faulty)
            lines += faulty

    path = changed(written(tmp_path / "graphs.jsonl"), change)
    with pytest.raises(InputError) as caught:
        read_scene_graphs(path)
    assert [message for message in BAD if message not in str(caught.value)] == []


def test_a_file_without_its_manifest_is_refused(tmp_path):
    path = written(tmp_path / "graphs.jsonl")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="changed or cut off"):
        read_scene_graphs(path)
    manifest_path(path).unlink()
    with pytest.raises(InputError, match="no manifest"):
        read_scene_graphs(path)
    with pytest.raises(InputError, match="python -m knowledge.build_scene_graphs"):
        layout_of(tmp_path / "absent.jsonl")


def test_graphs_are_small_in_memory(tmp_path):
    """MIMIC-CXR has 242,072: 237 MB of tensors, read in half a minute on one core."""
    rows = ({"study": str(n), "image": str(n), "split": "train", "regions": [
        region(name, (0.1, 0.1, 0.2 + n % 7 / 10, 0.9), **(SILENT if n % 3 else spoken("normal"))) for name in REGIONS]}
        for n in range(2000))  # fmt: skip
    graphs = read_scene_graphs(written(tmp_path / "graphs.jsonl", rows))
    held = [value for value in vars(graphs).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() * value.element_size() for value in held) < 2000 * 29 * 40
    assert np.allclose(graphs.of("6").boxes[28], [0.1, 0.1, 0.8, 0.9])


# ------------------------------------------------------------------------------------------- boxes with their image


@pytest.mark.parametrize("angle", (-10, -3.3, 0, 7.5, 90))
def test_boxes_turn_as_the_image_does(angle):
    from torchvision.transforms import functional

    canvas = Image.new("L", (200, 200))
    box = np.array([[60, 40, 110, 120]], np.float32)
    canvas.paste(255, (60, 40, 110, 120))
    found = np.asarray(functional.rotate(canvas, angle)) > 0
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(turned_boxes(box, angle, 200)[0] - seen).max() < 1.5


def test_corners_turned_by_hand():
    # a quarter turn to the left about the middle of a 100-pixel image: (x, y) goes to (y, 100 - x)
    box = turned_boxes(np.array([[10, 20, 30, 60]], np.float32), 90, 100)
    assert np.allclose(box, [[20, 70, 60, 90]], atol=1e-4)
    clipped = turned_boxes(np.array([[0, 0, 100, 10]], np.float32), 10, 100)
    assert clipped.min() >= 0 and clipped.max() <= 100


@pytest.mark.parametrize("kind", ("rotate", "aligned", "none"))
def test_one_draw_turns_image_and_boxes(kind):
    augment = Augmentation(kind, 120)
    for seed in range(5):
        canvas = Image.new("RGB", (120, 120))
        canvas.paste((255, 255, 255), (40, 30, 80, 60))
        image = np.asarray(augment([canvas], random.Random(seed))[0])[..., 0] > 40
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        box = augment.boxes(np.array([[40, 30, 80, 60]]) / 120, random.Random(seed))[0]
        assert np.abs(box - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() < 2
    with pytest.raises(ValueError, match="cannot be followed"):
        Augmentation("crop_flip", 120).boxes(np.zeros((1, 4)), random.Random(0))


@pytest.fixture(scope="module")
def mini20(tmp_path_factory):
    root = tmp_path_factory.mktemp("graphs") / "data"
    build(root, studies=20, image_size=64, progress=False)
    return root


def datasets(root, **changes):
    studies = read_annotation(root / "annotation.json")["train"]
    settings = {"needs": {"images", "boxes", "graph"}, "image_size": 64, "max_views": 1}
    graphs = read_scene_graphs(root / "scene_graphs.jsonl")
    return StudyDataset(studies, root / "images", scene_graphs=graphs, **settings | changes), graphs


def test_a_batch_holds_the_graphs_of_its_studies(mini20):
    data, graphs = datasets(mini20)
    batch = collate([data[n] for n in range(4)])
    assert batch.boxes.shape == (4, 29, 4) and batch.boxes.dtype == torch.float32
    assert batch.attributes.shape == (4, 29, max(graphs.layout.heads))
    assert batch.box_regions.tolist() == [list(range(29))] * 4 and batch.region_labels.shape == (4, 29)
    graph = graphs.of(data.studies[2].images[0])
    assert torch.allclose(batch.boxes[2], torch.tensor(graph.boxes) * 64)
    assert (batch.box_chosen[2] == torch.tensor(graph.spoken)).all()
    boxes_only, _ = datasets(mini20, needs={"images", "boxes"})
    alone = collate([boxes_only[n] for n in range(2)])
    assert alone.boxes is not None and alone.attributes is None and alone.region_labels is None
    turned, _ = datasets(mini20, augment="rotate")
    moved = collate([turned[n] for n in range(4)]).boxes
    assert not torch.allclose(moved, batch.boxes) and moved.min() >= 0 and moved.max() <= 64


def test_padding_of_boxes():
    item = {"boxes": torch.ones(2, 4), "box_regions": torch.tensor([3, 3]), "box_chosen": torch.tensor([True, False]),
            "region_labels": torch.zeros(29, dtype=torch.bool), "attributes": torch.ones(2, 5, dtype=torch.bool)}  # fmt: skip
    none = {"boxes": torch.ones(0, 4), "box_regions": torch.zeros(0, dtype=torch.int64),
            "box_chosen": torch.zeros(0, dtype=torch.bool), "region_labels": torch.ones(29, dtype=torch.bool),
            "attributes": torch.zeros(0, 5, dtype=torch.bool)}  # fmt: skip
    fields = scene_graphs.pad_graphs([item, none])
    assert fields["box_regions"].tolist() == [[3, 3], [-1, -1]] and fields["boxes"][1].eq(0).all()
    assert fields["attributes"].shape == (2, 2, 5) and not fields["attributes"][1].any()
    empty = scene_graphs.pad_graphs([none, none])
    assert empty["boxes"].shape == (2, 0, 4) and empty["attributes"].shape == (2, 0, 5)


# --------------------------------------------------------------------------------------------- the miniature truth


def test_the_miniature_truth_lies_where_it_is_drawn():
    for index in range(30):
        study = sample(0, index)
        boxes = region_boxes(study, 96)
        assert list(boxes) == list(REGIONS)
        for name, (x0, y0, x1, y1) in boxes.items():
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, (index, name)
            if name.startswith(("left", "right")) and name != "right atrium":
                assert ((x0 + x1) / 2 > 0.5) == name.startswith("left"), (index, name)
        masks = draw(study, "frontal", 96)[1]
        rows = {row["name"]: row for row in graph_of(study, masks, 96)["regions"]}
        for finding in study.findings:
            where = [name for name, row in rows.items() if f"yes|{finding.label.lower()}" in row["attributes"]]
            assert where, (index, finding)
            if finding.side in ("left", "right") and finding.label != "Support Devices":
                sides = {f.side for f in study.findings if f.label == finding.label}
                assert {name.split()[0] for name in where} == sides, (index, finding, where)
        for row in rows.values():
            assert row["spoken"] == bool(row["attributes"])
            assert not (row["abnormal"] and "normal" in row["attributes"])
            said = {name.removeprefix("yes|") for name in row["attributes"] if name.startswith("yes|")}
            assert row["abnormal"] == bool(said - {"support devices"})
            assert not said & {name.removeprefix("no|") for name in row["attributes"] if name.startswith("no|")}


# ----------------------------------------------------------------------------------------------------------- rules

SAID = {
    "There is a small left pleural effusion.": {
        "left costophrenic angle": {"yes|pleural effusion", "degree|small"},
        "left lower lung zone": {"yes|pleural effusion", "degree|small"},
        "left lung": {"yes|pleural effusion", "degree|small"}},
    "No pneumothorax.": {name: {"no|pneumothorax"} for name in
                         ("left lung", "right lung", "left apical zone", "right apical zone")},
    "Consolidation in the right upper lobe.": {name: {"yes|consolidation"} for name in
                                               ("right upper lung zone", "right lung")},
    "Heart size is normal.": {"cardiac silhouette": {"no|cardiomegaly", "normal"}},
    "The heart is mildly enlarged.": {"cardiac silhouette": {"yes|cardiomegaly", "degree|mild"}},
    "An endotracheal tube ends above the carina.": {name: {"yes|support devices"} for name in ("trachea", "carina")},
    "Left subclavian catheter with its tip in the right atrium.": {
        name: {"yes|support devices"} for name in ("svc", "cavoatrial junction", "right atrium")},
    "The bony structures are intact.": {name: {"normal"} for name in ("spine", "left clavicle", "right clavicle")},
    "Fracture of the left clavicle.": {"left clavicle": {"yes|fracture"}},
    "Old rib fracture.": {},
    "Normal heart size, enlarged left hilum, possible right basal atelectasis.": {
        "cardiac silhouette": {"no|cardiomegaly", "normal"},
        "right lower lung zone": {"yes|atelectasis"}, "right lung": {"yes|atelectasis"}},
    "The aorta is within normal limits.": {},
    "Retrocardiac opacity.": {name: {"yes|lung opacity"} for name in ("left lower lung zone", "left lung")},
    "The hemidiaphragms are sharp.": {name: {"normal"} for name in ("left hemidiaphragm", "right hemidiaphragm")},
}  # fmt: skip


@pytest.mark.parametrize("text", SAID)
def test_rules_by_hand(text):
    found = {name: set(row["attributes"]) for name, row in read_regions(text).items()}
    if "aorta" in text:
        assert found == {"aortic arch": {"normal"}}
    else:
        assert {name: found.get(name) for name in SAID[text]} == SAID[text]
        assert set(found) - set(SAID[text]) <= {"left hilar structures"}, found


def test_a_finding_outdoes_its_denial_and_the_word_normal():
    found = read_regions("There is a small right pneumothorax. The lungs are otherwise clear.")
    assert found["right lung"] == {"abnormal": True, "attributes": ["yes|pneumothorax", "degree|small"]}
    assert found["left lung"] == {"abnormal": False, "attributes": ["normal"]}
    assert not read_regions("A pacemaker is in place.")["cardiac silhouette"]["abnormal"]


def test_every_gain_says_its_words():
    text = "Lungs are clear. Mild cardiomegaly with small bilateral pleural effusions."
    for gain in read_gains(text):
        assert gain.region in REGIONS and gain.words in gain.clause and gain.clause in text.lower()


def test_rules_against_the_miniature_truth():
    """The rules read reports alone; the truth also knows where a finding was drawn."""
    hits = {"region": [0, 0, 0], "attribute": [0, 0, 0]}
    for index in range(120):
        study = sample(0, index)
        truth = graph_of(study, draw(study, "frontal", 64)[1], 64)["regions"]
        theirs = {row["name"]: set(row["attributes"]) for row in truth if row["spoken"]}
        ours = {name: set(row["attributes"]) for name, row in read_regions(study.report).items()}
        pairs = [{(name, a) for name, found in side.items() for a in found} for side in (ours, theirs)]
        for key, mine, wanted in (("region", set(ours), set(theirs)), ("attribute", *pairs)):
            hits[key] = [a + b for a, b in zip(hits[key], (len(mine & wanted), len(mine - wanted), len(wanted - mine)))]
    for key, least in (("region", 0.93), ("attribute", 0.93)):
        good, false, missed = hits[key]
        assert good / (good + false) > least and good / (good + missed) > least, (key, hits[key])


# ----------------------------------------------------------------------------------------------------------- atlas


def test_an_atlas_is_placed_by_the_thorax():
    boxes = place_atlas(atlas_by_hand(), (0.2, 0.1, 0.8, 0.9))
    assert list(boxes) == list(REGIONS)
    assert np.allclose(boxes["carina"], [0.2 + 0.6 * 0.44, 0.1 + 0.8 * 0.30, 0.2 + 0.6 * 0.56, 0.1 + 0.8 * 0.40])


def test_an_atlas_is_fitted_and_found_again():
    rows = [graph_of(study, [None] * len(study.findings), 64) for study in (sample(0, index) for index in range(25))]
    atlas = fit_atlas(rows)
    for row in rows[:5]:
        truth = {region["name"]: region["box"] for region in row["regions"]}
        low, high = np.minimum(truth["left lung"], truth["right lung"]), np.maximum(truth["left lung"], truth["right lung"])
        placed = place_atlas(atlas, (*low[:2], *high[2:]))
        assert np.abs(np.array(placed["left mid lung zone"]) - truth["left mid lung zone"]).max() < 0.03
    with pytest.raises(InputError, match="no atlas from 0 images"):
        fit_atlas([])


def test_the_thorax_is_found_in_drawn_images():
    good = 0
    for index in range(40):
        study = sample(0, index)
        boxes = region_boxes(study, 128)
        truth = np.array([boxes["right lung"][0], boxes["right lung"][1], boxes["left lung"][2], boxes["right lung"][3]])
        box, found = find_thorax(Image.fromarray(draw(study, "frontal", 128)[0]))
        good += found and np.abs(np.array(box) - truth).max() < 0.1
    assert good >= 30
    assert find_thorax(Image.new("L", (100, 100), 128)) == (USUAL_THORAX, False)


def opened(root, path, inputs, training=False) -> tuple:
    """(RunData, problems) of a run on the miniature set that reads the scene graphs at `path`."""
    words = ["--model", "r2gencmn", "--dataset_name", "miniature", "--data_dir", root, "--knowledge_dir", root.parent / "k",
             "--no-image_cache"]  # fmt: skip
    args = parse([str(word) for word in words], "train", systems=SYSTEMS)
    args.scene_graphs = str(path)
    problems = Problems()
    return open_data(args, inputs, problems, training=training), "\n".join(problems.texts)


def test_a_run_is_refused_graphs_that_are_not_its_own(mini20, tmp_path):
    whole = mini20 / "scene_graphs.jsonl"
    data, problems = opened(mini20, whole, {"train": {"scene_graphs"}, "val": {"scene_graphs"}}, training=True)
    assert not problems and len(data.scene_graphs) == 20 and not data.oracle_graph
    data, problems = opened(mini20, whole, {"test": {"scene_graphs", "true_graph"}})
    assert not problems and data.oracle_graph
    rows = list(read_rows(whole))
    few = written(tmp_path / "few.jsonl", rows[3:])
    assert "no graph of 3 of 15 images" in opened(mini20, few, {"train": {"scene_graphs"}})[1]
    moved = written(tmp_path / "moved.jsonl", [row | {"split": {"train": "test"}.get(row["split"], "train")} for row in rows])
    text = opened(mini20, moved, {"train": {"scene_graphs"}, "val": {"scene_graphs"}})[1]
    assert "built with another split: 17 images" in text and "(test there, train here)" in text
    alone = written(tmp_path / "alone.jsonl", rows, attributes_from={"kind": "none"})
    assert not opened(mini20, alone, {"test": {"scene_graphs"}})[1]
    assert "has boxes alone" in opened(mini20, alone, {"train": {"scene_graphs"}}, training=True)[1]
    assert "has boxes alone" in opened(mini20, alone, {"test": {"scene_graphs", "true_graph"}})[1]
    assert "no file of scene graphs" in opened(mini20, tmp_path / "absent.jsonl", {"train": {"scene_graphs"}})[1]


def test_a_guess_that_does_not_look():
    training = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    guess, share = check_graphs.blind_guess(training)
    assert guess.tolist() == [True, True, False, False] and share == 0.5
    figures = check_graphs.rates(np.broadcast_to(guess, training.shape), training)
    assert figures == {"precision": 0.75, "recall": 0.8571, "f1": 0.8, "there": 7}
    assert check_graphs.rates(np.zeros((2, 2), bool), np.zeros((2, 2), bool))["f1"] == 0


def test_bits_of_a_graph_count_what_is_spoken_of(mini20):
    graphs = read_scene_graphs(mini20 / "scene_graphs.jsonl")
    studies = read_annotation(mini20 / "annotation.json")["train"][:4]
    regions, pairs = check_graphs.bits_of(graphs, studies)
    rows = {row["image"]: row for row in read_rows(mini20 / "scene_graphs.jsonl")}
    for study, spoken_of, names in zip(studies, regions, pairs):
        said = [row for row in rows[study.images[0]]["regions"] if row["spoken"]]
        assert {REGIONS[k] for k in np.flatnonzero(spoken_of)} == {row["name"] for row in said}
        assert names.sum() == sum(len(row["attributes"]) for row in said)


# ------------------------------------------------------------------------------------------------------- commands


def command(main, *words):
    main([str(word) for word in words])


def refused(capsys, main, *words) -> str:
    """The message of a command that leaves with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        command(main, *words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_graphs_by_atlas_and_rules(mini20, tmp_path, capsys):
    out, places = tmp_path / "graphs.jsonl", ("--dataset_name", "miniature", "--data_dir", mini20)
    words = (*places, "--boxes", "atlas", "--attributes", "rules", "--out", out, "--min_attribute_count", 1)
    command(build_scene_graphs.main, *words, "--overlay", 2)
    graphs = read_scene_graphs(out)
    assert len(graphs) == 20 and graphs.manifest["boxes_from"] == "atlas" and graphs.manifest["attributes_from"] == "rules"
    assert len(list((tmp_path / "graphs.jsonl.overlay").iterdir())) == 2
    command(build_scene_graphs.main, *words)
    assert "kept" in capsys.readouterr().out
    assert "other inputs" in refused(capsys, build_scene_graphs.main, *words[:-1], 2)
    command(build_scene_graphs.main, "--out", out, "--agreement", mini20 / "scene_graphs.jsonl")
    figures = json.loads(manifest_path(out).read_text())["agreement"]
    assert figures["images"] == 20 and min(figures["all_attributes"][:2]) > 0.9
    assert read_scene_graphs(out).of("MINI000000/0.png").boxes.shape == (29, 4)
    command(build_scene_graphs.main, *places, "--show", "MINI000001")
    shown = capsys.readouterr().out
    assert "summed up" in shown and "pleural effusion" in shown
    assert "no such study" in refused(capsys, build_scene_graphs.main, *places, "--show", "MINI999999")
    assert scene_graphs.box_source(out)["table"] == atlas_by_hand()["table"]
    regions, boxes = find_boxes(Image.open(mini20 / "images/MINI000000/0.png"), scene_graphs.box_source(out))
    assert np.allclose(boxes, read_scene_graphs(out).of("MINI000000/0.png").boxes, atol=1e-4)


def test_boxes_alone_cannot_be_learned_from(mini20, tmp_path, capsys):
    out = tmp_path / "boxes.jsonl"
    command(build_scene_graphs.main, "--dataset_name", "miniature", "--data_dir", mini20, "--boxes", "keep", "--out", out)
    kept = read_scene_graphs(out)
    theirs = read_scene_graphs(mini20 / "scene_graphs.jsonl")
    assert kept.with_attributes and np.allclose(kept.of("MINI000003/0.png").boxes, theirs.of("MINI000003/0.png").boxes)
    assert kept.manifest["boxes_from"] == "truth"
    alone = tmp_path / "alone.jsonl"
    places = ("--dataset_name", "miniature", "--data_dir", mini20)
    command(build_scene_graphs.main, *places, "--attributes", "none", "--boxes", "atlas", "--out", alone)
    graphs = read_scene_graphs(alone)
    assert not graphs.with_attributes and not graphs.of("MINI000000/0.png").region_labels.any()
    message = refused(capsys, build_scene_graphs.main, *places, "--attributes", "rules", "--boxes", "keep", "--out", alone)
    assert "--attributes FILE" in message


def test_a_detector_is_trained_and_finds_boxes(mini20, tmp_path, capsys):
    places = ("--dataset_name", "miniature", "--data_dir", mini20, "--device", "cpu")
    detector = tmp_path / "detector.pt"
    words = (*places, "--out", detector, "--backbone", "resnet18", "--backbone_weights", "none", "--image_size", 64,
             "--epochs", 2, "--batch_size", 4, "--num_workers", 0, "--lr", "1e-3")  # fmt: skip
    command(train_region_detector.main, *words)
    manifest = json.loads(manifest_path(detector).read_text())
    assert len(manifest["val_iou"]) == 29 and manifest["val_mean_iou"] > 0.6  # it begins with the mean boxes
    command(train_region_detector.main, *words)
    assert "kept" in capsys.readouterr().out
    out = tmp_path / "graphs.jsonl"
    command(build_scene_graphs.main, *places, "--detector", detector, "--out", out, "--min_attribute_count", 1)
    found, truth = read_scene_graphs(out), read_scene_graphs(mini20 / "scene_graphs.jsonl")
    assert found.manifest["boxes_from"] == "detector" and found.manifest["attributes_from"] == "truth"
    assert found.layout == truth.layout
    image = "MINI000006/0.png"
    assert (found.of(image).region_labels == truth.of(image).region_labels).all()
    source = scene_graphs.box_source(out)
    regions, boxes = find_boxes(Image.open(mini20 / "images" / image), source)
    assert np.allclose(boxes, found.of(image).boxes, atol=1e-3) and regions.tolist() == found.of(image).regions.tolist()
    detector.write_bytes(b"other")
    with pytest.raises(InputError, match="not there any more"):
        scene_graphs.box_source(out)


@pytest.mark.slow
def test_a_killed_detector_training_goes_on(mini20, tmp_path, monkeypatch, capsys):
    words = ("--dataset_name", "miniature", "--data_dir", mini20, "--device", "cpu", "--backbone", "resnet18",
             "--backbone_weights", "none", "--image_size", 32, "--epochs", 2, "--batch_size", 8, "--num_workers", 0)  # fmt: skip
    command(train_region_detector.main, *words, "--out", tmp_path / "whole.pt")
    once = train_region_detector.Training._train_epoch

    def stop(self):
        if self.epoch == 1:
            raise InputError("killed")
        return once(self)

    monkeypatch.setattr(train_region_detector.Training, "_train_epoch", stop)
    assert "killed" in refused(capsys, train_region_detector.main, *words, "--out", tmp_path / "two.pt")
    monkeypatch.setattr(train_region_detector.Training, "_train_epoch", once)
    command(train_region_detector.main, *words, "--out", tmp_path / "two.pt")
    assert "after epoch 1" in capsys.readouterr().out
    whole, two = (torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("whole.pt", "two.pt"))
    assert all(torch.equal(value, two[key]) for key, value in whole.items())


def test_an_atlas_is_fitted_by_command(mini20, tmp_path, capsys):
    out = tmp_path / "atlas.json"
    command(boxes_command.main, "fit", "--scene_graphs", mini20 / "scene_graphs.jsonl", "--out", out)
    assert json.loads(out.read_text())["made"] == "medians over 15 images"
    image = mini20 / "images/MINI000000/0.png"
    command(boxes_command.main, "show", "--image", image, "--atlas", out, "--out", tmp_path / "boxes.png")
    assert Image.open(tmp_path / "boxes.png").size == (640, 640)
    out.write_text(json.dumps({"kind": "atlas", "table": {"left lung": [0, 0, 1, 1]}}))
    message = refused(capsys, boxes_command.main, "show", "--image", image, "--atlas", out, "--out", tmp_path / "no.png")
    assert "no atlas of the 29 regions" in message


def test_from_scratch_builds_what_is_missing(mini20, tmp_path):
    def made(*words):
        places = ["--data_dir", mini20, "--knowledge_dir", tmp_path / "k"]
        args = parse([str(word) for word in ("--model", "sgrrg", *places, *words)], "train", systems=SYSTEMS)
        return [(step.main, step.words) for step in from_scratch.steps(args)]

    steps = made("--dataset_name", "miniature")  # it brings scene graphs: a detector learns their boxes
    assert [main for main, _ in steps][1:] == [train_region_detector.main, build_scene_graphs.main]
    assert str(mini20 / "scene_graphs.jsonl") in steps[-1][1]
    bare = tmp_path / "bare"
    bare.mkdir()
    steps = made("--dataset_name", "custom", "--data_dir", bare)
    assert [main for main, _ in steps][1:] == [build_scene_graphs.main] and "rules" in steps[-1][1]
    assert all(main is not build_scene_graphs.main for main, _ in made("--dataset_name", "custom", "--scene_graphs", "none"))


# --------------------------------------------------------------------------------------------------- Chest ImaGenome


def made_imagenome(root, packed=False):
    """Two studies of MIMIC-CXR's form and the graph of one of them, in ImaGenome's official layout."""
    mimic, silver = root / "mimic", root / "imagenome/silver_dataset"
    (mimic / "images/p10/s1").mkdir(parents=True)
    Image.new("L", (400, 200)).save(mimic / "images/p10/s1/aa-bb.jpg")
    rows = {"train": [{"id": "aa-bb", "report": "Clear lungs.", "image_path": ["p10/s1/aa-bb.jpg"]}],
            "val": [], "test": [{"id": "cc-dd", "report": "Edema.", "image_path": ["p10/s2/cc-dd.jpg"]}]}  # fmt: skip
    (mimic / "annotation.json").write_text(json.dumps(rows))
    graph = {
        "objects": [
            {"bbox_name": name, "x1": 0, "y1": 0, "x2": 9, "y2": 9,
             **dict(zip(("original_x1", "original_y1", "original_x2", "original_y2"), box))}
            for name, box in (("left lung", (200, 20, 360, 180)), ("spine", (180, -30, 220, 260)),
                              ("carina", (450, 10, 480, 20)), ("left chest wall", (0, 0, 9, 9)))],
        "attributes": [
            {"bbox_name": "left lung", "phrases": ["edema .", "no nodule ."], "attributes": [
                ["anatomicalfinding|yes|edema", "nlp|yes|abnormal"], ["anatomicalfinding|no|nodule"]]},
            {"bbox_name": "carina", "phrases": ["normal"], "attributes": [["nlp|yes|normal"]]},
            {"bbox_name": "left chest wall", "phrases": ["x"], "attributes": [["nlp|yes|abnormal"]]}],
    }  # fmt: skip
    silver.mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(silver / "scene_graph.zip", "w") as archive:
            archive.writestr("scene_graph/aa-bb_SceneGraph.json", json.dumps(graph))
    else:
        (silver / "scene_graph").mkdir()
        (silver / "scene_graph/aa-bb_SceneGraph.json").write_text(json.dumps(graph))
    return ("--imagenome", root / "imagenome", "--mimic", mimic, "--min_attribute_count", 1)


@pytest.mark.parametrize("packed", (False, True))
def test_imagenome_in_its_official_layout(tmp_path, capsys, packed):
    words, out = made_imagenome(tmp_path, packed), tmp_path / "graphs.jsonl.gz"
    command(chest_imagenome.main, *words, "--out", out)
    assert "'test': 1" in capsys.readouterr().out  # the study without a graph is counted
    graphs = read_scene_graphs(out)
    graph = graphs.of("p10/s1/aa-bb.jpg")
    assert [REGIONS[number] for number in graph.regions] == ["left lung", "spine"]  # the carina's box lies outside
    assert np.allclose(graph.boxes, [[0.5, 0.1, 0.9, 0.9], [0.45, 0, 0.55, 1]])
    assert graph.spoken.tolist() == [True, False] and graph.abnormal.tolist() == [True, False]
    assert graph.region_labels[REGIONS.index("carina")] and graph.region_labels.sum() == 2
    assert set(graphs.layout.attributes[0]) == {"anatomicalfinding|yes|edema", "anatomicalfinding|no|nodule",
                                                "nlp|yes|abnormal"}  # fmt: skip


def test_imagenome_takes_sizes_from_the_metadata(tmp_path, capsys):
    words, out = made_imagenome(tmp_path), tmp_path / "graphs.jsonl"
    (tmp_path / "mimic/images/p10/s1/aa-bb.jpg").unlink()
    assert "--metadata" in refused(capsys, chest_imagenome.main, *words, "--out", out)
    table = tmp_path / "metadata.csv.gz"
    with gzip.open(table, "wt") as file:
        file.write("dicom_id,Rows,Columns\naa-bb,200,400\n")
    command(chest_imagenome.main, *words, "--out", out, "--metadata", table)
    assert np.allclose(read_scene_graphs(out).of("p10/s1/aa-bb.jpg").boxes[0], [0.5, 0.1, 0.9, 0.9])


def test_another_tree_than_imagenomes_is_refused(tmp_path, capsys):
    words, out = made_imagenome(tmp_path), tmp_path / "graphs.jsonl"
    path = tmp_path / "imagenome/silver_dataset/scene_graph/aa-bb_SceneGraph.json"
    graph = json.loads(path.read_text())
    del graph["objects"][0]["original_x1"]
    path.write_text(json.dumps(graph))
    assert "original_x1" in refused(capsys, chest_imagenome.main, *words, "--out", out)
    shutil.rmtree(path.parent)
    assert "scene_graph.zip" in refused(capsys, chest_imagenome.main, *words, "--out", out)
    assert not out.exists()


def made_authors(root):
    """The authors' derived files: boxes as COCO, attributes as numbers within the heads."""
    folder = root / "annotations"
    folder.mkdir(parents=True)
    for split, name in chest_imagenome.AUTHORS.items():
        boxes = [{"image_id": 7, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 1200},
                 {"image_id": 7, "category_id": 0, "bbox": [100, 20, 0.5, 40], "area": 20}]  # fmt: skip
        content = {"images": [{"id": f"{split}7", "file_name": f"{split}/7.jpg", "height": 200, "width": 100, "ann_ids": [1, 0]}],
                   "annotations": boxes, "categories": [{"id": k, "name": n} for k, n in enumerate(REGIONS)]}  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    said = {"region_label": {"region_label": [2, 28], "region_abnormal_labels": [1, 0]},
            "cardiac silhouette": {"att_labels": [1], "att_abnormal_labels": [1]}}  # fmt: skip
    info = {name: [f"first of {name}", f"second of {name}"] for name in REGIONS}
    labels = {"annotations": {"train": {"train7": said}, "val": {}, "test": {}}, "attribute_info": info}
    (folder / "attribute_anns_id_mhead_ds.json").write_text(json.dumps(labels))
    return root


def test_the_authors_files(tmp_path, capsys):
    out = tmp_path / "graphs.jsonl"
    root = made_authors(tmp_path / "cxr_gnome")
    command(chest_imagenome.main, "--authors", root, "--out", out)
    graphs = read_scene_graphs(out)
    graph = graphs.of("train/7.jpg")
    assert graph.regions.tolist() == [2] and np.allclose(graph.boxes, [[0.1, 0.1, 0.4, 0.3]])  # the narrow box is dropped
    assert graph.attributes[0].tolist() == [False, True] and graph.abnormal.tolist() == [True]
    assert np.flatnonzero(graph.region_labels).tolist() == [2, 28]
    assert graphs.layout.attributes[2] == ("first of cardiac silhouette", "second of cardiac silhouette")
    assert not graphs.of("val/7.jpg").region_labels.any()
    path = root / "annotations/box_train.json"
    content = json.loads(path.read_text())
    content["categories"] = content["categories"][::-1]
    path.write_text(json.dumps(content))
    assert "other categories" in refused(capsys, chest_imagenome.main, "--authors", root, "--out", out, "--overwrite")
