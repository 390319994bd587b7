"""The baselines that look at the images: what is kept, what is noticed, and that no study is its own neighbour."""

import shutil

import numpy as np
import pytest
import torch

from data.studies import Study, read_annotation
from knowledge import retrieve
from knowledge.retrieve import pooled_features, retrieved_reports
from models import SYSTEMS
from modules import processes
from modules.errors import InputError
from modules.flags import parse
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import Precision
from modules.scoring.predictions import R2GenReferences

CPU = torch.device("cpu")
HOW = {"device": CPU, "precision": Precision("float32", CPU)}


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return VisualExtractor("resnet18", freeze="all", dilate=False).eval()


@pytest.fixture
def data(mini, tmp_path):
    """Flags over a copy of the miniature set that may be changed, and its studies by split."""
    shutil.copytree(mini / "data", tmp_path / "data")
    words = ["--dataset_name", "miniature", "--data_dir", str(tmp_path / "data"), "--image_size", "64", "--max_views", "2",
             "--knowledge_dir", str(tmp_path / "knowledge"), "--num_workers", "0"]  # fmt: skip
    args = parse(words, "test", systems=SYSTEMS)
    return args, read_annotation(args.ann_path)


def references(studies: list[Study]) -> R2GenReferences:
    return R2GenReferences([study.report for study in studies], "iu_xray", threshold=1)


def test_features_are_the_extractors_pooled_over_all_views(data, extractor):
    args, studies = data
    study = next(study for study in studies["train"] if len(study.images) > 1)
    pooled = pooled_features(args, extractor, "train", [study], **HOW)
    with torch.no_grad():
        images = torch.stack(retrieve._dataset(args, [study])[0]["images"])
        wanted = extractor(images).mean((0, 2, 3)).numpy()
    assert len(images) == 2 and pooled.dtype == np.float16 and pooled.shape == (1, 512)
    assert pooled[0] == pytest.approx(wanted, rel=2e-3, abs=1e-3)


def test_kept_features_are_used_until_anything_changes(data, extractor, monkeypatch):
    args, studies = data
    calls = []
    pool = retrieve._pool
    monkeypatch.setattr(retrieve, "_pool", lambda *args: calls.append(1) or pool(*args))

    def made(extractor=extractor) -> tuple[np.ndarray, bool]:
        before = len(calls)
        return pooled_features(args, extractor, "train", studies["train"], **HOW), len(calls) > before

    first, anew = made()
    again, twice = made()
    assert anew and not twice and (first == again).all()
    (file,) = (retrieve.Path(args.cache_dir) / "pooled").iterdir()
    file.write_bytes(file.read_bytes()[:-200])  # torn
    assert made()[1] and not made()[1]
    shutil.copy(f"{args.image_dir}/{studies['test'][0].images[0]}", f"{args.image_dir}/{studies['train'][3].images[0]}")
    changed, anew = made()
    assert anew and (changed[3] != first[3]).any() and (changed[:3] == first[:3]).all()
    args.resize_filter = "bilinear"
    assert made()[1]
    torch.manual_seed(1)
    assert made(VisualExtractor("resnet18", freeze="all", dilate=False).eval())[1]


def test_the_number_of_processes_does_not_matter(data, extractor, monkeypatch):
    args, studies = data
    args.cache_dir = None
    rows = studies["train"] * 3  # more than one block
    alone = pooled_features(args, extractor, "train", rows, **HOW)
    tables: dict = {}
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "from_first", lambda function: function())
    monkeypatch.setattr(processes, "gather", lambda table: tables.update(table) or tables)
    for rank in (1, 0):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        together = pooled_features(args, extractor, "train", rows, **HOW)
    assert len(tables) > 2 and (together == alone).all()


def test_reports_come_from_other_training_studies(data, extractor, capsys):
    args, studies = data
    train = studies["train"]
    made = references(train)
    texts = {study.id: made.clean(study.report) for study in train}
    found = retrieved_reports(args, extractor, train, studies["test"], made, **HOW)
    assert list(found) == [study.id for study in studies["test"]]
    assert all(set(row) == {"nearest", "consensus"} and set(row.values()) <= set(texts.values()) for row in found.values())
    # a copy of a training study finds it; one that is it, by id or as another row of the study, does not
    first = train[0]
    copy, row = Study("copy", "", first.images, "test"), Study("row", "", first.images, "test", study_id="s")
    training = [Study(first.id, "Only here.", first.images, "train", study_id="s"), *train[1:]]
    found = retrieved_reports(args, extractor, training, [copy, first, row], made, **HOW)
    assert [found[name]["nearest"] == "only here ." for name in ("copy", first.id, "row")] == [True, False, False]
    (retrieve.Path(args.image_dir) / train[5].images[0]).write_bytes(b"broken")
    found = retrieved_reports(args, extractor, train, studies["test"], made, **HOW)
    assert "1 training studies are left out" in capsys.readouterr().out
    alone = [study for study in train if study.id != train[5].id]
    assert found == retrieved_reports(args, extractor, alone, studies["test"], made, **HOW)
    with pytest.raises(InputError, match="images of 1 studies cannot be read"):
        retrieved_reports(args, extractor, train, [train[5]], made, **HOW)


def test_auto_takes_what_is_cheap_or_kept(data, extractor, monkeypatch, capsys):
    args, studies = data
    made, rest = references(studies["train"]), (studies["train"], studies["val"])
    monkeypatch.setitem(retrieve.AT_ONCE, "cpu", 3)
    assert args.baselines == "auto" and retrieved_reports(args, extractor, *rest, made, **HOW) == {}
    assert "--baselines all adds" in capsys.readouterr().out
    args.baselines = "all"
    wanted = retrieved_reports(args, extractor, *rest, made, **HOW)
    args.baselines = "auto"
    assert retrieved_reports(args, extractor, *rest, made, **HOW) == wanted  # kept now
    args.baselines = "constant"
    assert retrieved_reports(args, extractor, *rest, made, **HOW) == {}
