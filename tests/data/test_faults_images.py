"""Images that are hostile, huge or no images; annotations that are damaged; broken studies that are skipped."""

import json
import os
import stat

import numpy as np
import pytest
from conftest import ROOT, call, inputs
from PIL import Image, PngImagePlugin

from data.image_cache import fingerprint
from data.images import MAX_PIXELS, image_problem, open_image
from data.studies import check_studies, read_annotation, without_broken
from modules.errors import InputError, Problems


def png(path, size=(20, 20), **settings):
    Image.fromarray(np.zeros(size, np.uint8)).save(path, "PNG", **settings)
    return path


def test_a_postscript_file_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow starts `gs` for PostScript, whatever the name; one that leaves a mark stands first in the path."""
    mark = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {mark}\necho 10.0\n")
    (tmp_path / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(InputError, match="x.png cannot be read: it is no JPEG, PNG or DICOM file"):
        open_image(path)
    assert image_problem(path, "quick") and not mark.exists()


@pytest.mark.parametrize("depth", ["full", "quick"])
def test_a_bomb_is_refused_by_name(tmp_path, depth):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert f"bomb.png has {side} x {side} pixels, more than" in image_problem(tmp_path / "bomb.png", depth)


def compressed_text(path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * (1 << 21), zip=True)  # Pillow takes 1 MiB of text
    return png(path, pnginfo=notes)


def damaged_profile(path):
    png(path, icc_profile=b"0" * 200)
    data = path.read_bytes()
    at = data.index(b"iCCP")
    path.write_bytes(data[: at + 4] + data[at + 4 : at + 8] + b"\xff" * 30 + data[at + 38 :])
    return path


def metafile(path):
    path.write_bytes(b"\xd7\xcd\xc6\x9a" + b"\x00" * 18)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def circle(path):
    path.symlink_to(path.name)
    return path


def below_a_file(path):
    return png(path) / "x.png"


ODD = {
    "compressed text": compressed_text, "a damaged profile": damaged_profile, "a metafile": metafile, "a pipe": pipe,
    "links in a circle": circle, "below a file": below_a_file, "a folder": lambda path: path.parent,
    "5,000 characters": lambda path: path.with_name("x" * 5_000), "NUL": lambda path: f"{path}\0.png",
}  # fmt: skip


@pytest.mark.parametrize("depth", ["full", "quick"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_told_in_a_sentence(tmp_path, kind, depth):
    """A sentence or, of a bad remark beside good pixels, nothing; never a traceback, never a wait."""
    path = ODD[kind](tmp_path / "odd.png")
    problem = image_problem(path, depth)
    assert problem is None or "image" in problem
    assert problem is not None or kind in ("compressed text", "a damaged profile")
    fingerprint(tmp_path, [str(path)[len(str(tmp_path)) + 1 :] or "."])


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/x.png"])
def test_images_lie_below_the_image_folder(tmp_path, path):
    rows = [{"id": "a", "report": "Clear.", "image_path": [path]}]
    (tmp_path / "a.json").write_text(json.dumps({"train": rows}))
    with pytest.raises(InputError, match=f"train row 0: image_path {path} leads out of the image folder"):
        read_annotation(tmp_path / "a.json")


@pytest.mark.parametrize("content, text", [
    ('{"train": null, "val": [], "test": []}', '"train" must be a list of studies'),
    ("[" * 100_000, "cannot be read as JSON"),
    ('{"train": [{"id": ' + "1" * 5_000 + ', "report": "x", "image_path": []}]}', "cannot be read as JSON"),
    ('{"train": [{"id": "a", "report": "\\ud800", "image_path": []}]}', "lone surrogate"),
    ('{"train": [{"id": "a", "report": "x", "image_path": ["\\udcff.png"]}]}', "lone surrogate"),
])  # fmt: skip
def test_damaged_annotations(tmp_path, content, text):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=text):
        read_annotation(tmp_path / "a.json")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    rows = [{"id": "a", "report": "Clear.", "image_path": ["x.png"]}]
    (tmp_path / "a.json").write_text(json.dumps({"train": rows}), encoding="utf-8-sig")
    assert read_annotation(tmp_path / "a.json")["train"][0].id == "a"


def test_of_a_repeated_id_the_first_study_stays(tmp_path):
    """Three times one id: two are left out, and counted as two."""
    png(tmp_path / "x.png")
    rows = [{"id": "twin", "report": f"Clear {n}.", "image_path": ["x.png"]} for n in ("one", "two", "three")]
    (tmp_path / "a.json").write_text(json.dumps({"train": rows[:2], "val": rows[2:]}))
    studies = read_annotation(tmp_path / "a.json")
    broken = check_studies(studies, tmp_path, cleaning="iu_xray", max_views=1, depth="full", progress=False)
    kept = without_broken(studies, broken, skip=True, problems=Problems())
    assert [study.report for study in kept["train"]] == ["Clear one."] and kept["val"] == [] and len(broken) == 2


def test_skipping_every_study_of_a_split_is_refused_at_once(mini, tmp_path):
    content = json.loads((mini / "data" / "annotation.json").read_text())
    for row in content["val"]:
        row["image_path"] = ["gone.png"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    flags = [*inputs(mini), "--no-adm", "--no-gid", "--ann_path", tmp_path / "a.json", "--skip_broken"]
    done = call(ROOT / "main_train.py", *flags, "--save_dir", tmp_path / "run", code=2)
    assert "--skip_broken leaves no val study" in done.stderr and "Traceback" not in done.stderr
