"""Files that are damaged, foreign or in the way: named in a sentence, made anew where they are a cache, never used."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from PIL import Image

from data import image_cache
from data.image_cache import ImageCache, open_cache
from data.images import square
from data.mask_store import MaskTree, PackedMasks, StoreWriter, packed
from data.prepare import _check_images
from data.studies import Study
from knowledge import diagnose
from modules import artefact
from modules.artefact import built_already, read_manifest, write_atomic, write_built
from modules.checkpoint import load_checkpoint, save_checkpoint
from modules.errors import InputError, entry
from modules.flags import parse
from modules.nets.diagnosisbot import DiagnosisBot
from modules.nets.knowledge_base import KnowledgeBase, load_knowledge
from modules.run_folder import open_run
from modules.text.corpus import corpus_of
from modules.text.labels import CHEXPERT_14
from modules.text.tokenizer import Tokenizer

PATHS = [f"{number}.png" for number in range(6)]


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for path in PATHS:
        Image.fromarray(draw.integers(0, 256, (30, 30), dtype=np.uint8)).save(tmp_path / "images" / path)
    return tmp_path / "images"


def opened(images) -> ImageCache:
    side = lambda image: square(image, 20)  # noqa: E731
    return open_cache(images.parent / "cache", images, PATHS, side, name="square20", progress=False)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)


# -- checksums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["pixels.bin", "table.npy", "manifest.json"])
def test_a_flipped_bit_of_the_image_cache_is_never_used(images, part):
    """Wherever it lies, the pixels that come out are those of the image."""
    wanted = {path: opened(images).get(path).tobytes() for path in PATHS}
    size = (images.parent / "cache" / part).stat().st_size
    for at in range(0, size, max(1, size // 40)):
        flip(images.parent / "cache" / part, at)
        cache = opened(images)
        assert {path: cache.get(path).tobytes() for path in PATHS} == wanted, (part, at)


def test_an_image_that_is_damaged_after_the_start_is_decoded_again(images, caplog):
    cache = opened(images)
    flip(images.parent / "cache" / "pixels.bin", 450)  # of the second one
    assert cache.get(PATHS[0]) is not None and cache.get(PATHS[1]) is None and "damaged at 1.png" in caplog.text
    assert opened(images).get(PATHS[1]) is not None


def masks_of(root: Path) -> PackedMasks:
    masks = np.random.default_rng(1).random((4, 16, 16)) > 0.5
    writer = StoreWriter(root, {"of": "a test"}, PATHS[:4], 16)
    writer.add(packed(masks))
    writer.finish()
    return PackedMasks(root)


def test_damaged_masks_are_named(tmp_path):
    masks_of(tmp_path / "masks")
    for at in range(0, 4 * 32, 5):
        flip(tmp_path / "masks" / "masks.bits", at)
        store = PackedMasks(tmp_path / "masks")
        with pytest.raises(InputError, match=f"damaged at the mask of {at // 32}.png: remove it and generate it again"):
            store.get(f"{at // 32}.png")
        flip(tmp_path / "masks" / "masks.bits", at)


def test_masks_that_changed_places_are_noticed(tmp_path):
    masks_of(tmp_path / "masks")
    bits = tmp_path / "masks" / "masks.bits"
    data = bits.read_bytes()
    bits.write_bytes(data[32:64] + data[:32] + data[64:])
    with pytest.raises(InputError, match="damaged at the mask of 0.png"):
        PackedMasks(tmp_path / "masks").get("0.png")


@pytest.mark.parametrize("name", ["masks.bits", "images.json", "manifest.json", "sums.npy"])
@pytest.mark.parametrize("change", [b"", b"[]", b"{}", None])
def test_a_damaged_mask_store_is_told(tmp_path, name, change):
    masks_of(tmp_path / "masks")
    path = tmp_path / "masks" / name
    path.unlink() if change is None else path.write_bytes(change)
    with pytest.raises(InputError, match="masks"):
        PackedMasks(tmp_path / "masks")


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00\xff\xff" + b" " * 70_000, b"PK\x03\x04", b"\x80\x04N."])
def test_damaged_npy_masks_are_told(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match="a.npy"):
        MaskTree(tmp_path).get("a.png")


class Bot:
    """Diagnoses by the mean of the image; counts what it has seen."""

    labels, side, seen = ("A", "B"), 16, 0
    thresholds = torch.tensor([0.5, 0.5])
    to = eval = lambda self, *words: self

    def fingerprint(self) -> str:
        return "bot"

    def __call__(self, images):
        type(self).seen += len(images)
        return torch.full((len(images), 2), float(images.mean() > 0))


def diagnoses(images, folder) -> int:
    """How many images are looked at."""
    Bot.seen = 0
    studies = [Study(path, "Clear.", (path,), "train") for path in PATHS]
    diagnose.diagnosis_table(Bot(), studies, images, folder=folder, device="cpu", progress=False)
    return Bot.seen


def test_diagnoses_belong_to_an_image_its_date_and_folder(images, tmp_path, capsys):
    assert diagnoses(images, tmp_path) == 6 and diagnoses(images, tmp_path) == 0
    facts = os.stat(images / "2.png")
    os.utime(images / "2.png", ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))  # replaced by one of the same size
    assert diagnoses(images, tmp_path) == 1
    images.rename(tmp_path / "others")
    assert diagnoses(tmp_path / "others", tmp_path) == 6
    table = tmp_path / "diagnosis_bot.csv"
    table.write_text(table.read_text().replace(",0.0,", ",9.0,", 1).replace(",1.0,", ",0.0,", 1))
    assert diagnoses(tmp_path / "others", tmp_path) >= 1 and "damaged" in capsys.readouterr().out


def test_a_damaged_words_cache_is_made_anew(tmp_path, capsys):
    reports = ["The heart is normal.", "No effusion."]
    path = tmp_path / "words.npz"
    wanted = corpus_of(reports, "iu_xray", path).counts()
    data = path.read_bytes()
    for at in range(0, len(data), 23):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert corpus_of(reports, "iu_xray", path).counts() == wanted, at
    for cut in (0, 10, len(data) // 2):
        path.write_bytes(data[:cut])
        assert corpus_of(reports, "iu_xray", path).counts() == wanted


def test_a_damaged_list_of_checked_images_is_made_anew(images, tmp_path):
    args = SimpleNamespace(
        cache_dir=tmp_path, knowledge_dir=tmp_path, image_dir=images, image_check="full", max_views=1
    )
    rows = {"train": [Study(path, "Clear.", (path,), "train") for path in (*PATHS, "gone.png")]}
    wanted = _check_images(args, rows)
    record = tmp_path / "images" / "checked_full_train.json"
    assert list(wanted) == ["gone.png"] and record.is_file()
    for change in ("", "[]", "{", record.read_text()[:-9], record.read_text().replace("gone", "2")):
        record.write_text(change)
        assert _check_images(args, rows) == wanted


# -- what stands in the way --------------------------------------------------------------------------------------------


def test_a_foreign_folder_is_not_taken_for_a_cache(images):
    (images.parent / "cache").mkdir()
    (images.parent / "cache" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no image cache .it holds thesis.tex"):
        opened(images)
    assert (images.parent / "cache" / "thesis.tex").read_text() == "years of work"


def test_a_cache_that_may_only_be_read_serves(images, monkeypatch):
    opened(images)

    def only_reading(path, mode="r", *words, **more):
        if "w" in mode or "a" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, mode, *words, **more)

    monkeypatch.setattr(image_cache, "open", only_reading, raising=False)
    assert opened(images).get("0.png") is not None


class Flags:
    """A stand-in for a system of --model that reads no flag of its own."""

    flags, published_flags, presets = (), {}, {}
    settle = staticmethod(lambda values, typed, carried: None)


def flags(carried: dict, *typed: str, command: str = "test"):
    return parse(list(typed), command, systems={"ekagen": Flags}, carried={"dataset_name": "custom"} | carried)


def test_a_folder_that_a_checkpoint_names_is_not_written_to(tmp_path):
    elsewhere = {"knowledge_dir": str(tmp_path)}
    assert flags(elsewhere).knowledge_dir == str(tmp_path) and flags(elsewhere).cache_dir is None
    assert flags(elsewhere, "--knowledge_dir", "mine").cache_dir == "mine"
    assert flags({"knowledge_dir": "knowledge/custom"}).cache_dir == "knowledge/custom"
    assert flags(elsewhere, command="train").cache_dir == str(tmp_path)  # a run that is continued


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The second one hears it, in a process of its own; a killed one's lock goes with it."""
    words = "from types import SimpleNamespace as N; from modules.run_folder import open_run; "
    words += f"open_run(N(save_dir={str(tmp_path)!r}), resume=False); print('in', flush=True); input()"
    first = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"in\n"
    with pytest.raises(InputError, match="another run is writing into"):
        open_run(SimpleNamespace(save_dir=tmp_path), resume=False)
    first.kill()
    first.wait()
    open_run(SimpleNamespace(save_dir=tmp_path), resume=False)


def test_best_weights_alone_are_not_overwritten(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"kept")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="already holds a run"):
        open_run(SimpleNamespace(save_dir=tmp_path), resume=False)


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_kill_between_a_file_and_its_manifest(tmp_path, monkeypatch, kill):
    """Before or after each rename: the next start keeps the new file or builds it, and asks nobody."""
    out, renames = tmp_path / "base.pt", []

    def dying(source, target):
        renames.append(target)
        if len(renames) == kill:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(artefact.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write_built(out, lambda path: path.write_bytes(b"base"), "a base", inputs={"n": 1})
    monkeypatch.undo()
    kept = built_already(out, {"n": 1})
    assert kept == out.exists() == (kill == 3)
    if kept:
        assert read_manifest(out)["inputs"] == {"n": 1}


def test_a_damaged_base_is_not_kept(tmp_path):
    out = tmp_path / "base.pt"
    write_built(out, lambda path: path.write_bytes(b"base"), "a base", inputs={})
    assert built_already(out, {})
    out.write_bytes(b"bas")
    with pytest.raises(InputError, match="is damaged; remove it"):
        built_already(out, {})


def test_half_written_files_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".last.pt.{ended.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".last.pt.{os.getppid()}.tmp").write_bytes(b"of a living one")
    (tmp_path / f".other.pt.{ended.pid}.tmp").write_bytes(b"another's")
    write_atomic(tmp_path / "last.pt", lambda path: path.write_bytes(b"whole"))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f".last.pt.{os.getppid()}.tmp", f".other.pt.{ended.pid}.tmp", "last.pt"])


# -- one sentence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, text", [
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "error: /a/b: Permission denied; change its rights"),
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device; make room"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "a part of this path is a file"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "choose a shorter path"),
    (OSError("no number at all"), "error: no number at all"),
])  # fmt: skip
def test_errors_of_the_system_are_one_sentence(capsys, error, text):
    @entry
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2 and text in said and said.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    @entry
    def main():
        return {}["bug"]

    with pytest.raises(KeyError):
        main()


def shell(words: str, code: int, **env) -> str:
    """stderr of a line of bash whose python is a command that prints a lot."""
    text = "from modules.errors import entry\n@entry\ndef main():\n    print('ä' * 100_000)\nmain()"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PY": sys.executable, "TEXT": text, **env},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr


def test_a_closed_pipe_and_an_ascii_console():
    said = shell('"$PY" -c "$TEXT" | head -c 10 > /dev/null', 2)
    assert "has closed it" in said and "Traceback" not in said and "Exception ignored" not in said
    assert shell('"$PY" -c "$TEXT" > /dev/null', 0, PYTHONIOENCODING="ascii") == ""


def test_a_results_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")

    @entry
    def main():
        open_run(SimpleNamespace(save_dir=tmp_path / "file" / "run"), resume=False)

    with pytest.raises(SystemExit):
        main()


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{", "[" * 50_000])
def test_a_damaged_manifest_is_told(tmp_path, text):
    (tmp_path / "a.csv.json").write_text(text)
    with pytest.raises(InputError, match="remove it and build .*a.csv again"):
        read_manifest(tmp_path / "a.csv")


@pytest.mark.parametrize("content", ["3", '{"a": [1]}', "[[1]]", "{", '{"a": "x"}'])
def test_a_word_list_of_another_shape(tmp_path, content):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(InputError, match="v.json"):
        Tokenizer.from_file(tmp_path / "v.json", cleaning="iu_xray")


def checkpoint() -> dict:
    flags = {"model": "r2gen", "dataset_name": "custom"}
    return {"flags": flags, "tokenizer": {}, "model": {"w": torch.zeros(1)}, "parts": {}}


@pytest.mark.parametrize("change", [
    {"format": "1"}, {"format": None}, {"format": 10**6}, {"flags": []}, {"flags": {}}, {"flags": {"model": 3}},
    {"tokenizer": [1]}, {"model": [1]}, {"model": {"w": 1}}, {"parts": None},
])  # fmt: skip
def test_malformed_checkpoints(tmp_path, change):
    save_checkpoint(tmp_path / "ok.pt", checkpoint())
    assert load_checkpoint(tmp_path / "ok.pt")["format"] == 1
    save_checkpoint(tmp_path / "x.pt", checkpoint() | change)
    with pytest.raises(InputError, match="x.pt (is a damaged checkpoint|was written by a newer version)"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("wrong", [
    {"d_model": "64"}, {"image_size": -1}, {"image_size": True}, {"resize_filter": "none"}, {"data_dir": 5},
    {"threshold": [1]},
])  # fmt: skip
def test_flags_of_another_kind_in_a_checkpoint(wrong):
    wrong = {name: value for name, value in wrong.items() if name != "d_model"} or {"max_views": "64"}
    with pytest.raises(InputError, match="is damaged: it holds flags of another kind"):
        flags(wrong)


def test_a_seed_has_32_bits(capsys):
    with pytest.raises(SystemExit):
        flags({}, "--seed", str(10**30))
    assert "must be below 2^32" in capsys.readouterr().err


def base_state() -> dict:
    reports = [{"id": "s1", "report": "clear"}] * 2
    keys = torch.tensor([[0] * 14, [1] + [0] * 13])
    facts = {"labels": list(CHEXPERT_14), "split": "train"}
    base = KnowledgeBase(keys, entries=torch.zeros(2, 6, 8), sizes=[3, 1], reports=reports, facts=facts)
    return base.state()


@pytest.mark.parametrize("change", [
    {"keys": None}, {"keys": torch.zeros(2)}, {"keys": torch.zeros(3, 14)}, {"sizes": "x"}, {"sizes": [1]}, {"facts": 1},
    {"entries": None}, {"entries": torch.zeros(2, 6)}, {"kind": 7}, {"reports": [1]}, {"more": 1},
])  # fmt: skip
def test_a_malformed_base(tmp_path, change):
    torch.save(base_state(), tmp_path / "ok.pt")
    load_knowledge(tmp_path / "ok.pt", labels=CHEXPERT_14)
    torch.save(base_state() | change, tmp_path / "x.pt")
    with pytest.raises(InputError):
        load_knowledge(tmp_path / "x.pt", labels=CHEXPERT_14)


@pytest.mark.parametrize("content", [
    {(0,) * 14: "text"}, {(0,) * 14: None}, {("a",) * 14: torch.zeros(6, 8)}, {(0,) * 14: [[1], [2, 3]]},
    {(None,): torch.zeros(6, 8)},
])  # fmt: skip
def test_a_malformed_pickled_base(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt is not a knowledge base"):
        load_knowledge(tmp_path / "x.pt", labels=CHEXPERT_14)


@pytest.mark.parametrize(
    "change", [{"labels": 3}, {"thresholds": [0.5]}, {"state_dict": {}}, {"side": None, "backbone": []}]
)
def test_a_malformed_classifier(change):
    state = {
        "backbone": "resnet18",
        "labels": ["A"],
        "thresholds": [0.1],
        "side": 64,
        "state_dict": {"x": torch.zeros(1)},
    }
    with pytest.raises(InputError, match="classifier"):
        DiagnosisBot.from_state(state | change)


def test_weights_of_another_system_are_told(tmp_path):
    """An R2Gen file tested without --model: the message says which --model its keys fit."""
    from models import SYSTEMS
    from models.system import use_released

    class Fits(Flags):
        released_key, released_files = "state_dict", {}
        released_state = staticmethod(lambda state: state)

    class Not(Fits):
        @staticmethod
        def released_state(state):
            raise InputError("not its layout")

    args = SimpleNamespace(load="x.pth", model="ekagen", dataset_name="iu_xray", typed=frozenset(), data_dir="d")
    with pytest.raises(InputError, match="x.pth is a file of --model r2gen, not of ekagen"):
        use_released(args, {"state_dict": {"a": torch.zeros(1)}}, {"ekagen": Not, "r2gen": Fits})
    use_released(args, {"state_dict": {"a": 1}}, {"ekagen": Fits, "r2gen": Fits})
    assert len(SYSTEMS) >= 4


def test_a_cut_run_json_is_told(tmp_path):
    for text in ("", "{}", '{"flags": 3}'):
        (tmp_path / "run.json").write_text(text)
        done = call(ROOT / "main_train.py", "--resume", "--save_dir", tmp_path, code=2)
        assert "run.json" in done.stderr and "Traceback" not in done.stderr


def test_a_log_row_without_an_event(tmp_path):
    from modules.results_page.build import read_log

    (tmp_path / "log.jsonl").write_text('{"event": "val"}\n{"loss": 1}\n')
    with pytest.raises(InputError, match="line 2 is no row of a log"):
        list(read_log(tmp_path / "log.jsonl"))


def test_damaged_facts_of_a_run_are_told_before_the_scoring(tmp_path):
    from modules.scoring.commands import read_facts

    for text in ("", "[]", '{"a":'):
        (tmp_path / "metrics_test.json").write_text(text)
        with pytest.raises(InputError, match="metrics_test.json .*remove it and score again"):
            read_facts(tmp_path / "predictions_test.csv", "test")


def test_json_files_with_a_byte_order_mark(tmp_path):
    from modules.artefact import read_json

    (tmp_path / "a.json").write_text(json.dumps([1]), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == [1]
