"""Classifier training and ADM masks as commands, on synthetic images made here: a bright square is a label."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from data.images import diagnosis_tensor, open_image, square
from data.mask_store import PackedMasks, StoreWriter, open_masks
from data.studies import Study
from knowledge import check_adm, generate_adm, train_adm_classifier, train_diagnosisbot
from knowledge.classifier import training as classifier_training
from knowledge.classifier.data import HeldImages, augmented, normalised
from knowledge.classifier.metrics import choose_thresholds, f1_of, measure, ranking
from knowledge.classifier.training import ClassifierTrainer
from modules.artefact import read_manifest
from modules.errors import InputError
from modules.nets.adm import classifier_masks
from modules.nets.diagnosisbot import load_diagnosisbot
from modules.text.labels import CHEXPERT_14, write_label_table

EDEMA, LESION, NONE = (CHEXPERT_14.index(name) for name in ("Edema", "Lung Lesion", "No Finding"))


@pytest.fixture(autouse=True, scope="session")
def quick():
    """One thread (several are slower on tiny images, above all on a busy machine) and no waiting for the disk."""
    before, fsync = torch.get_num_threads(), os.fsync
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # no power cut is tested here
    yield
    os.fsync = fsync
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """A data set of 64 x 64 images: bright above left = Edema, bright below right = Lung Lesion; Fracture is rare."""
    root = tmp_path_factory.mktemp("blobs")
    draw = np.random.default_rng(0)
    annotation, rows = {}, []
    for split, count in (("train", 48), ("val", 12), ("test", 12)):
        annotation[split] = []
        for number in range(count):
            name = f"{split}{number}"
            vector = [0] * 14
            pixels = draw.integers(60, 120, (64, 64)).astype(np.uint8)
            if number % 2:
                vector[EDEMA], pixels[6:26, 6:26] = 1, 250
            if number % 4 < 2:
                vector[LESION], pixels[40:60, 38:58] = 1, 250
            vector[NONE] = int(not any(vector))
            vector[CHEXPERT_14.index("Fracture")] = int(split == "train" and number < 3)
            (root / "images" / name).mkdir(parents=True)
            Image.fromarray(pixels).save(root / "images" / name / "0.png")
            annotation[split].append({"id": name, "report": "some text .", "image_path": [f"{name}/0.png"]})
            rows.append((split, name, vector))
    (root / "annotation.json").write_text(json.dumps(annotation))
    write_label_table(root / "labels.csv", rows)
    return root


def mask_of(bot, image):
    """The ADM mask of one square image, rule cam."""
    return classifier_masks(bot, diagnosis_tensor(image, bot.side)[None], "cam")[0].numpy()



def flags(root, out, *more):
    small = "--backbone resnet18 --backbone_weights none --image_size 48 --batch_size 8 --lr 3e-3 --device cpu"
    quick = "--num_workers 0 --bootstrap 50"
    where = ["--data_dir", str(root), "--labels_path", str(root / "labels.csv"), "--out", str(out)]
    return [*where, *small.split(), *quick.split(), *map(str, more)]


@pytest.fixture(scope="session")
def trained(blobs, tmp_path_factory):
    """An ADM classifier that has learnt the two squares."""
    out = tmp_path_factory.mktemp("trained") / "adm_classifier.pt"
    train_adm_classifier.main(flags(blobs, out, "--epochs", 3, "--eval_split", "test"))
    return out


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "truth, score, auroc, ap",
    [
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], 3 / 4, (1 + 2 / 3) / 2),
        ([1, 0], [0.5, 0.5], 0.5, 0.5),  # a tie is half a pair
        ([1, 1, 0, 0], [0.5, 0.5, 0.5, 0.1], 3 / 4, 2 / 3),  # pairs: half, half, one, one; precision 2/3 for both
        ([0, 0, 1], [0.1, 0.2, 0.3], 1.0, 1.0),
        ([0, 1, 1, 0, 1], [3, 3, 2, 1, 1], (0.5 + 1 + 0 + 1 + 0 + 0.5) / 6, (1 / 2 + 2 / 3 + 3 / 5) / 3),
    ],
)
def test_auroc_and_ap_by_hand(truth, score, auroc, ap):
    for order in (slice(None), slice(None, None, -1)):  # the order of equal scores does not matter
        found = ranking(np.array(truth)[order] == 1, np.array(score)[order])
        assert found[0][0] == pytest.approx(auroc) and found[1][0] == pytest.approx(ap)


def test_one_class_has_no_auroc_and_counts_are_copies():
    assert np.isnan(ranking(np.zeros(3, bool), np.arange(3))[0][0])
    truth, score = np.array([1, 0, 1, 0, 0]) == 1, np.array([0.3, 0.3, 0.9, 0.5, 0.1])
    counts = np.array([[2, 1, 0, 3, 1]])
    copies = np.repeat(np.arange(5), counts[0])
    for got, expected in zip(ranking(truth, score, counts), ranking(truth[copies], score[copies])):
        assert got == pytest.approx(expected)
    said = score > 0.4
    assert f1_of(truth, said, counts)[0] == pytest.approx(f1_of(truth[copies], said[copies])[0])
    assert f1_of(truth, said)[0] == pytest.approx(2 / 4)


def test_measure_leaves_out_unknown_labels_and_single_classes():
    truth = np.array([[1, 0, -1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])
    probabilities = np.array([[0.9, 0.2, 0.0], [0.1, 0.3, 0.8], [0.8, 0.1, 0.3], [0.2, 0.2, 0.9]])
    result = measure(truth, probabilities, [0.5, 0.5, 0.5], "abc", rounds=20)
    assert result["macro"]["labels"] == 2 and result["macro"]["auroc"][0] == 1
    assert result["labels"]["b"]["auroc"] is None
    assert result["labels"]["c"]["positives"] == 2 and result["labels"]["c"]["f1"][0] == 1
    json.dumps(result, allow_nan=False)


def test_thresholds_maximise_f1_and_have_stated_fallbacks():
    truth = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    first = np.array([0.05, 0.1, 0.2, 0.3, 0.6, 0.9])  # cut at 0.2: 3 right, 1 wrong, F1 6/7
    probabilities = np.stack([first, first, first], 1)
    thresholds, notes = choose_thresholds(truth, probabilities, [0.5, 0.2, 0.0], "abc")
    assert 0.1 < thresholds[0] < 0.2
    assert (first > thresholds[1]).sum() == 1 and "20.0%" in notes["b"]
    assert thresholds[2] == 1.0 and "never" in notes["c"]
    separate = choose_thresholds(np.array([[0], [0], [1], [1]]), np.array([[0.1], [0.2], [0.7], [0.9]]), [0.5], "a")[0]
    assert separate[0] == pytest.approx(0.5, abs=0.1)  # half the best F1, which is 1


# ---------------------------------------------------------------- images


def test_training_sees_what_the_diagnosis_sees(blobs):
    study = Study("train1", "", ("train1/0.png",), "train")
    images = HeldImages([study], blobs / "images", 48)
    expected = diagnosis_tensor(square(open_image(blobs / "images/train1/0.png"), 300), 48)
    assert torch.equal(normalised(images[0][None])[0], expected)
    images.hold(2)
    assert torch.equal(next(iter(images.batches([np.array([0])], 0)))[0], images[0])


def test_augmentation_at_rest_changes_nothing_and_never_flips():
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(augmented(images, torch.zeros(2, 6)), images, atol=1e-4)
    marked = torch.zeros(64, 3, 32, 32)
    marked[:, :, 12:20, 2:8] = 1
    moved = augmented(marked, torch.rand(64, 6) * 2 - 1)
    assert (moved[..., :16].mean((1, 2, 3)) > moved[..., 16:].mean((1, 2, 3))).all()


# ---------------------------------------------------------------- training


def test_unknown_labels_take_no_part_in_the_loss():
    logits, weight = torch.randn(3, 2), torch.ones(2)
    target = torch.tensor([[1, 0], [0, -1], [1, 1]])
    other = logits.clone()
    other[1, 1] += 5
    assert torch.equal(ClassifierTrainer.loss(logits, target, weight), ClassifierTrainer.loss(other, target, weight))


def test_learns_and_saves(blobs, trained, capsys):
    bot = load_diagnosisbot(trained)
    figures, manifest = json.loads(trained.with_name("adm_classifier.test.json").read_text()), read_manifest(trained)
    assert figures["labels"]["Edema"]["auroc"][0] > 0.9 and figures["labels"]["Lung Lesion"]["auroc"][0] > 0.9
    assert [figures["labels"][label]["threshold"] for label in CHEXPERT_14] == pytest.approx(bot.thresholds.tolist())
    assert bot.thresholds[CHEXPERT_14.index("Pneumonia")] == 1
    assert manifest["what"] == "ADM classifier" and manifest["inputs"]["labels"] == list(CHEXPERT_14)
    assert manifest["split"] == "train" and manifest["studies"] == {"train": 48, "val": 12}
    assert "validation" in manifest["threshold_notes"]["Fracture"]
    assert not trained.with_name("adm_classifier.pt.partial.pt").exists()
    made = trained.stat().st_mtime_ns
    train_adm_classifier.main(flags(blobs, trained, "--epochs", 3, "--eval_split", "test"))
    assert "kept" in capsys.readouterr().out and trained.stat().st_mtime_ns == made
    train_adm_classifier.main(flags(blobs, trained, "--epochs", 3, "--eval_split", "val"))  # only measures
    assert trained.stat().st_mtime_ns == made and trained.with_name("adm_classifier.val.json").is_file()


def test_other_inputs_are_refused_with_the_way_out(blobs, trained, capsys):
    with pytest.raises(SystemExit) as stop:
        train_adm_classifier.main(flags(blobs, trained, "--epochs", 5))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--overwrite" in said and "epochs 3, now 5" in said


def test_other_label_order_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="in this order"):
        load_diagnosisbot(trained, labels=CHEXPERT_14[::-1])
    content = torch.load(trained, weights_only=True)
    content["labels"] = content["labels"][::-1]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match="in this order"):
        generate_adm.open_adm_classifier(tmp_path / "other.pt")


def test_killed_training_goes_on_to_the_same_weights(blobs, trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "halves.pt"
    train_epoch = ClassifierTrainer.train_epoch

    def stop_in_the_third(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self)

    monkeypatch.setattr(ClassifierTrainer, "train_epoch", stop_in_the_third)
    with pytest.raises(SystemExit):
        train_adm_classifier.main(flags(blobs, out, "--epochs", 3))
    assert not out.exists() and out.with_name("halves.pt.partial.pt").is_file()
    monkeypatch.setattr(ClassifierTrainer, "train_epoch", train_epoch)
    train_adm_classifier.main(flags(blobs, out, "--epochs", 3))
    assert "after epoch 2 of 3" in capsys.readouterr().out
    whole, halves = (torch.load(path, weights_only=True) for path in (trained, out))
    assert not out.with_name("halves.pt.partial.pt").exists() and read_manifest(out)["sha256"]
    assert whole["thresholds"] == halves["thresholds"]
    assert all(torch.equal(value, halves["state_dict"][key]) for key, value in whole["state_dict"].items())


def test_a_partial_of_other_flags_is_not_continued(blobs, tmp_path, capsys):
    out = tmp_path / "bot.pt"
    torch.save({"inputs": {"epochs": 9}, "epoch": 1}, tmp_path / "bot.pt.partial.pt")
    train_diagnosisbot.main(flags(blobs, out, "--epochs", 1, "--cache_gb", 0))  # reads images on demand
    assert "training starts anew" in capsys.readouterr().out and out.is_file()


def test_all_problems_come_at_once(blobs, tmp_path, capsys):
    table = (blobs / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in table if not line.startswith("val,val3,")) + "\n")
    with pytest.raises(SystemExit) as stop:
        train_diagnosisbot.main(
            flags(blobs, tmp_path / "x.pt", "--labels", tmp_path / "labels.csv", "--backbone_weights", tmp_path / "no.pth")
        )
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "val3" in said and "--backbone_weights" in said
    with pytest.raises(SystemExit):
        train_diagnosisbot.main(["--epoch", "3"])
    assert "did you mean --epochs" in capsys.readouterr().err


def test_test_split_is_not_read_unless_asked(blobs, tmp_path):
    annotation = json.loads((blobs / "annotation.json").read_text())
    annotation["test"][0]["image_path"] = ["nowhere.png"]
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    places = ("--ann_path", tmp_path / "annotation.json", "--image_dir", blobs / "images", "--dry_run")
    train_diagnosisbot.main(flags(blobs, tmp_path / "x.pt", *places))
    with pytest.raises(SystemExit):
        train_diagnosisbot.main(flags(blobs, tmp_path / "x.pt", *places, "--eval_split", "test"))


# ---------------------------------------------------------------- masks


def mask_flags(root, trained, out, *more):
    fixed = ["--data_dir", root, "--classifier", trained, "--out", out, "--device", "cpu", "--num_workers", 0]
    return [str(word) for word in (*fixed, "--rule", "cam", "--batch_size", 4, "--splits", "val", "test", *more)]


@pytest.fixture(scope="session")
def store(blobs, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "adm_masks"
    generate_adm.main(mask_flags(blobs, trained, out))
    return out


def test_store_holds_the_masks_of_every_image(blobs, trained, store, capsys):
    masks, bot = open_masks(store), load_diagnosisbot(trained)
    assert isinstance(masks, PackedMasks) and len(masks.rows) == 24
    image = square(open_image(blobs / "images/test1/0.png"), 300)
    assert np.array_equal(masks.get("test1/0.png"), mask_of(bot, image))
    manifest = read_manifest(store)
    shares = [masks.get(name).mean() for name in masks.rows]
    assert manifest["mean_kept_share"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert manifest["empty_masks"] == sum(share == 0 for share in shares)
    made = (store / "masks.bits").stat().st_mtime_ns
    generate_adm.main(mask_flags(blobs, trained, store))
    assert "kept" in capsys.readouterr().out and (store / "masks.bits").stat().st_mtime_ns == made
    with pytest.raises(SystemExit):
        generate_adm.main([*mask_flags(blobs, trained, store), "--rule", "released"])
    assert "rule cam, now released" in capsys.readouterr().err


def test_killed_generation_goes_on(blobs, trained, store, tmp_path, capsys):
    out, batches = tmp_path / "masks", generate_adm.packed_batches

    def killed(*words, **settings):
        for number, rows in enumerate(batches(*words, **settings)):
            if number == 3:
                raise KeyboardInterrupt
            yield rows

    generate_adm.packed_batches = killed
    try:
        with pytest.raises(SystemExit):
            generate_adm.main(mask_flags(blobs, trained, out))
    finally:
        generate_adm.packed_batches = batches
    half = tmp_path / ".masks.unfinished"
    for path in (out, half):
        with pytest.raises(InputError):
            open_masks(path)
    with open(half / "masks.bits.partial", "ab") as file:  # written, but not noted when the kill came
        file.write(b"rest")
    generate_adm.main(mask_flags(blobs, trained, out))
    assert "after 12 of 24" in capsys.readouterr().out and not half.exists()
    assert (out / "masks.bits").read_bytes() == (store / "masks.bits").read_bytes()


def test_half_of_another_classifier_is_not_continued(blobs, trained, tmp_path, capsys):
    writer = StoreWriter(tmp_path / "masks", {"rule": "released"}, ["a", "b"])
    writer.add(np.zeros((1, 11250), np.uint8))
    writer.close()
    generate_adm.main(mask_flags(blobs, trained, tmp_path / "masks", "--splits", "test"))
    said = capsys.readouterr().out
    assert "starting anew" in said and len(PackedMasks(tmp_path / "masks").rows) == 12


def test_sigkill_leaves_no_store_and_a_rerun_finishes_it(blobs, trained, store, tmp_path):
    program = (
        "import torch, time; torch.set_num_threads(1)\n"
        "from data import mask_store\nfrom knowledge import generate_adm as g\n"
        "mask_store.FLUSH_SECONDS = 0; batches = g.packed_batches\n"
        "def slow(*w, **s):\n"
        "    for rows in batches(*w, **s):\n"
        "        yield rows; time.sleep(0.3)\n"
        f"g.packed_batches = slow\ng.main({mask_flags(blobs, trained, tmp_path / 'masks')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    progress, until = tmp_path / ".masks.unfinished" / "manifest.json", time.time() + 60
    while time.time() < until and not (progress.exists() and json.loads(progress.read_text())["done"] >= 8):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "masks").exists() and json.loads(progress.read_text())["done"] >= 8
    generate_adm.main(mask_flags(blobs, trained, tmp_path / "masks"))
    assert (tmp_path / "masks" / "masks.bits").read_bytes() == (store / "masks.bits").read_bytes()


def test_tree_round_trip(blobs, trained, store, tmp_path, capsys):
    tree = tmp_path / "tree"
    generate_adm.main(["--data_dir", str(blobs), "--out", str(store), "--export_tree", str(tree)])
    one = np.load(tree / "test1" / "0.npy")
    assert one.dtype == bool and one.shape == (300, 300)
    importing = ["--data_dir", str(blobs), "--splits", "val", "test", "--import_tree", str(tree)]
    importing += ["--out", str(tmp_path / "back")]
    generate_adm.main(importing)
    assert (tmp_path / "back/masks.bits").read_bytes() == (store / "masks.bits").read_bytes()
    assert json.loads((tmp_path / "back/images.json").read_text()) == list(PackedMasks(store).rows)
    (tree / "test1" / "0.npy").unlink()
    again = [*importing[:-1], str(tmp_path / "less")]
    with pytest.raises(SystemExit):
        generate_adm.main(again)
    assert "test1/0.png" in capsys.readouterr().err
    generate_adm.main([*again, "--skip_broken"])
    assert not PackedMasks(tmp_path / "less").has("test1/0.png")


def test_overlays_and_sample(blobs, trained, store, tmp_path, capsys):
    more = ("--overlays", tmp_path / "seen", "--overlay_count", 3)
    generate_adm.main(mask_flags(blobs, trained, store, *more))
    assert len(list((tmp_path / "seen").glob("*.png"))) == 3
    generate_adm.main(mask_flags(blobs, trained, tmp_path / "none", "--sample", 8))
    said = capsys.readouterr().out
    assert "377,110" in said and "4.24 GB packed" in said and not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".none*"))


def test_broken_images_are_listed_or_left_out(blobs, trained, tmp_path, capsys):
    images = tmp_path / "images"
    for path in (blobs / "images").glob("test*/0.png"):
        (images / path.parent.name).mkdir(parents=True)
        (images / path.parent.name / "0.png").write_bytes(path.read_bytes())
    for name in ("test2", "test5"):
        whole = (images / name / "0.png").read_bytes()
        (images / name / "0.png").write_bytes(whole[:200] + b"x" * 200 + whole[-100:])  # header and end are fine
    words = ("--splits", "test", "--image_dir", images)
    with pytest.raises(SystemExit):
        generate_adm.main(mask_flags(blobs, trained, tmp_path / "m", *words))
    said = capsys.readouterr().err
    assert "test2" in said and "test5" in said
    quick = (*words, "--image_check", "quick")
    with pytest.raises(SystemExit):
        generate_adm.main(mask_flags(blobs, trained, tmp_path / "m", *quick))
    assert "--skip_broken" in capsys.readouterr().err
    generate_adm.main(mask_flags(blobs, trained, tmp_path / "m", *quick, "--skip_broken"))
    masks = PackedMasks(tmp_path / "m")
    assert len(masks.rows) == 10 and not masks.has("test2/0.png") and len(masks.manifest["left_out"]) == 2
    bot = load_diagnosisbot(trained)
    last = square(open_image(images / "test9/0.png"), 300)
    assert np.array_equal(masks.get("test9/0.png"), mask_of(bot, last))


def test_a_swin_cannot_make_masks(tmp_path):
    from modules.nets.diagnosisbot import DiagnosisBot

    torch.save(DiagnosisBot("swin_t", CHEXPERT_14, [0.5] * 14).state(), tmp_path / "swin.pt")
    with pytest.raises(InputError, match="pooled linear"):
        generate_adm.open_adm_classifier(tmp_path / "swin.pt")


def test_maps_lie_on_the_blobs(blobs, trained):
    mask = np.zeros((64, 64), bool)
    mask[6:26, 6:26] = True
    studies = [Study(f"test{n}", "", (f"test{n}/0.png",), "test") for n in (3, 7)]
    truth = {study.id: [{"label": "Edema", "mask": mask}] for study in studies}
    settings = {"rule": "cam", "device": torch.device("cpu")}
    result = check_adm.check_maps(load_diagnosisbot(trained), studies, blobs / "images", truth, **settings)
    assert result["labels"]["Edema"]["findings"] == 2 and 0 <= result["all"]["iou"] <= 1
    assert check_adm.iou(mask, mask) == 1
    assert check_adm.random_box_iou(400, mask, np.random.default_rng(0)) < 0.4
    assert classifier_training.rate(0.1) == pytest.approx(1) and classifier_training.rate(1.0) == pytest.approx(0)
