"""The features of a frozen extractor: kept once, shared, made anew when what they are made of has changed."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import call, inputs, run, without_java
from PIL import Image

from data.batches import collate
from data.feature_cache import check_features, serve_features, weights_sha256
from data.prepare import make_dataset, open_data
from models import SYSTEMS
from modules.checkpoint import load_checkpoint
from modules.errors import InputError, Problems
from modules.flags import parse
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import Precision

CPU = torch.device("cpu")
CACHED = ["--model", "r2gencmn", "--max_views", "2", "--extractor_freeze", "all", "--augment", "none", "--feature_cache",
          "float32"]  # fmt: skip


def words_of(mini, folder, *more):
    return [*(word for word in inputs(mini) if word), *CACHED, "--knowledge_dir", str(folder), *more]


@pytest.fixture
def served(mini, tmp_path):
    """A function (flags, extractor) -> training dataset whose features are served, and what the log says."""

    def serve(*more, extractor=None, data_dir=None):
        torch.manual_seed(3)
        extractor = extractor or VisualExtractor("resnet18", freeze="all", dilate=False)
        words = ["--dataset_name", "miniature", "--data_dir", str(data_dir or mini / "data"), "--image_size", "64",
                 "--num_workers", "0", *CACHED, "--knowledge_dir", str(tmp_path), *more]  # fmt: skip
        args, problems = parse(words, "train", systems=SYSTEMS), Problems()
        check_features(args, problems, training=True)
        data = open_data(args, {"train": set()}, problems, training=True)
        problems.stop_if_any()
        dataset = make_dataset(args, data, "train", {"images"}, None, training=True)
        log = serve_features(args, [extractor], {"train": dataset}, device=CPU, precision=Precision("float32", CPU))
        return dataset, log, extractor

    return serve


def caches(tmp_path):
    return sorted((tmp_path / "features").glob("train_images_*/features.bin"))


def test_what_is_kept_is_what_the_extractor_gives(served):
    dataset, log, extractor = served()
    batch = collate([dataset[0], dataset[1]])
    kept, dataset.features = extractor(batch.images.flatten(0, 1)), None
    images = collate([dataset[0], dataset[1]]).images.flatten(0, 1)
    torch.testing.assert_close(kept, extractor(images), rtol=1e-6, atol=1e-6)
    assert batch.images.dtype == torch.float32 and batch.images.shape[2:] == (512, 2, 2) and log["mib"] > 0


def test_float16_is_close(served):
    dataset, *_ = served("--feature_cache", "float16")
    half = dataset[3]["images"][0]
    full = served()[0][3]["images"][0]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, rtol=1e-3, atol=1e-3)


def test_features_beyond_float16_are_refused(served):
    extractor = VisualExtractor("resnet18", freeze="all", dilate=False)
    extractor.body.layer4[-1].bn2.weight.mul_(1e9)
    with pytest.raises(InputError, match="beyond float16"):
        served("--feature_cache", "float16", extractor=extractor)


def test_a_cache_is_used_again_and_another_weight_or_transform_gets_its_own(served, tmp_path):
    served()
    first, = caches(tmp_path)
    date = first.stat().st_mtime_ns
    _, log, extractor = served()
    assert caches(tmp_path) == [first] and first.stat().st_mtime_ns == date
    extractor.body.layer4[0].conv1.weight.data[0, 0, 0, 0] += 1e-6
    assert weights_sha256(extractor) != log["weights_sha256"]
    served(extractor=extractor)
    assert len(caches(tmp_path)) == 2
    served("--resize_filter", "bicubic")
    assert len(caches(tmp_path)) == 3


def test_a_changed_image_is_noticed_a_copied_data_set_is_not_one(served, mini, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(mini / "data", root)
    before = served(data_dir=root)[0][0]["images"][0]
    for path in root.glob("images/*/*.png"):
        os.utime(path, (1, 1))
    served(data_dir=root)
    assert "feature cache" not in capsys.readouterr().out  # dates differ, the bytes do not
    dataset = served(data_dir=root)[0]
    path = root / "images" / dataset.studies[0].images[0]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    after = served(data_dir=root)[0][0]["images"][0]
    assert "images or masks have changed" in capsys.readouterr().out and not torch.equal(before, after)


def test_damage_is_noticed(served, tmp_path, capsys):
    dataset, *_ = served()
    file, = caches(tmp_path)
    with open(file, "r+b") as open_file:
        open_file.seek(9)
        open_file.write(b"\xff\x01")
    with pytest.raises(InputError, match="is damaged; start again"):
        dataset[0]
    served()[0][0]
    file.write_bytes(file.read_bytes()[:-1])
    served()[0][0]
    assert capsys.readouterr().out.count("making it anew") == 2


def test_fixed_draws(served):
    """An epoch takes one of the k draws of a study; which one depends on seed, epoch and study alone."""
    dataset, *_ = served("--augment", "crop", "--feature_draws", "3")
    seen = set()
    for dataset.epoch in range(30):
        seen.add(dataset[0]["images"][0].sum().item())
    assert len(seen) == 3
    again, *_ = served("--augment", "crop", "--feature_draws", "3", "--seed", "5")
    assert {(setattr(again, "epoch", e), again[0]["images"][0].sum().item())[1] for e in range(30)} == seen


@pytest.mark.parametrize(("flags", "text"), [
    (["--extractor_freeze", "stem"], "--extractor_freeze all, or --feature_cache off"),
    (["--augment", "crop"], "--feature_draws 4"),
    (["--feature_draws", "2"], "--augment none and --feature_draws 2"),
    (["--feature_cache", "off", "--feature_draws", "2"], "needs --feature_cache"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(served, flags, text):
    with pytest.raises(InputError, match=re.escape(text)):
        served(*flags)


def test_two_extractors_are_refused(served):
    dataset, log, extractor = served()
    other = VisualExtractor("resnet18", freeze="all", dilate=False)
    args = parse(["--feature_cache", "float32"], "train", systems=SYSTEMS)
    with pytest.raises(InputError, match="different weights"):
        serve_features(args, [extractor, other], {}, device=CPU, precision=None)


@pytest.mark.slow
def test_a_training_on_features_and_its_test(mini, tmp_path):
    """The checkpoint writes the same reports from features and from images, also for a new image."""
    words = words_of(mini, tmp_path / "knowledge", "--epochs", "1", "--save_dir", str(tmp_path / "run"))
    call("main_train.py", *strip(words))
    log = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    made, = (row for row in log if row["event"] == "features")
    assert made["kind"] == "float32" and len(made["weights_sha256"]) == 64
    assert load_checkpoint(tmp_path / "run" / "best.pt")["flags"]["feature_cache"] == "float32"
    test = ["--load", str(tmp_path / "run" / "best.pt"), "--no-page", "--bootstrap", "0", "--protocols", "r2gen"]
    call("main_test.py", *test, "--knowledge_dir", str(tmp_path / "knowledge"), "--save_dir", str(tmp_path / "cached"))
    call("main_test.py", *test, "--feature_cache", "off", "--save_dir", str(tmp_path / "plain"))
    first, second = ((tmp_path / name / "predictions_test.csv").read_text() for name in ("cached", "plain"))
    assert first == second
    assert list((tmp_path / "knowledge" / "features").glob("test_images_*"))


@pytest.mark.slow
def test_two_processes_share_a_cache(mini, tmp_path):
    words = words_of(mini, tmp_path / "knowledge", "--epochs", "1", "--dropout", "0", "--feature_dropout", "0")
    for name, start in (("one", ()), ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"))):
        knowledge = ["--knowledge_dir", str(tmp_path / name)]  # each makes its own
        saved = ["--save_dir", tmp_path / f"run_{name}"]
        run(*start, "main_train.py", *strip(words), *knowledge, *saved, env={**without_java(), "OMP_NUM_THREADS": "1"})
    rows = [[json.loads(line) for line in open(tmp_path / f"run_{name}" / "log.jsonl")] for name in ("one", "two")]
    losses = [next(row["train/loss"] for row in run_rows if row["event"] == "epoch") for run_rows in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def strip(words):
    """Without what R2GenCMN does not read."""
    kept = [word for word in words if word != "--oracle_labels"]
    for flag in ("--diagnosis_path", "--knowledge_path"):
        at = kept.index(flag)
        del kept[at : at + 2]
    return kept
