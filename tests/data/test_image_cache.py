"""The cache of decoded images: the same pixels, made once, made anew when it is stale or torn, whole or not there."""

import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from data import image_cache
from data.image_cache import ImageCache, open_cache
from data.images import MEAN, STD, Augmentation, open_image, square, to_tensor
from modules.errors import InputError
from modules.nets.adm import apply_mask


@pytest.fixture
def images(tmp_path):
    """Grey and coloured images of different shapes, and one that is cut off."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        shape = (30 + number, 50) if number % 2 else (30, 40 + number, 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    cut = folder / "7.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return folder


def made(images, count=40, side=20):
    paths = [f"{number}.png" for number in range(count)]
    return open_cache(images.parent / "cache", images, paths, lambda p: square(p, side), name=f"square{side}", progress=False)


def test_same_pixels_and_the_broken_one_named(images):
    cache = made(images)
    assert list(cache.manifest["broken"]) == ["7.png"] and "7.png" in cache.manifest["broken"]["7.png"]
    for number in set(range(40)) - {7}:
        wanted = square(open_image(images / f"{number}.png"), 20)
        assert cache.get(f"{number}.png").convert("RGB").tobytes() == wanted.tobytes()
    assert cache.manifest["bytes"] == (20 * 3 + 19) * 400  # grey images take one channel


def test_made_once(images, monkeypatch):
    made(images)
    monkeypatch.setattr(image_cache, "build_cache", lambda *words, **more: pytest.fail("made twice"))
    made(images)


def test_stale_is_made_anew(images, capsys):
    made(images)
    shutil.copy(images / "0.png", images / "2.png")
    cache = made(images)
    assert "changed" in capsys.readouterr().out
    assert cache.get("2.png").tobytes() == cache.get("0.png").tobytes()
    assert len(made(images, count=30).table) == 29
    assert made(images, side=10).get("0.png").size == (10, 10)


TORN = [("pixels.bin", "cut"), ("pixels.bin", "bits"), ("table.npy", "cut"), ("manifest.json", "gone")]


@pytest.mark.parametrize("file, change", TORN)
def test_torn_is_made_anew(images, file, change, capsys):
    good = made(images).get("39.png").tobytes()
    path = images.parent / "cache" / file
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        path.write_bytes(content[: len(content) // 2] if change == "cut" else flipped)
    assert made(images).get("39.png").tobytes() == good
    assert "making it anew" in capsys.readouterr().out


def test_killed_while_building(images, monkeypatch):
    """What a killed build leaves is not taken for a cache and does not stand in the way."""
    monkeypatch.setattr(image_cache.np, "save", lambda *words: os._exit(9))
    child = os.fork()
    if child == 0:
        made(images)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (images.parent / "cache").exists()
    monkeypatch.undo()
    assert len(made(images).table) == 39
    assert not list(images.parent.glob("*.unfinished"))


def test_full_disk(images, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.np, "save", full)
    with pytest.raises(InputError, match="No space left.*--no-image_cache"):
        made(images)
    assert sorted(path.name for path in images.parent.iterdir()) == ["cache.lock", "images"]
    with pytest.raises(InputError):
        ImageCache(images.parent / "cache")


@pytest.mark.parametrize("kind", Augmentation.KINDS)
def test_grey_images_become_what_rgb_ones_would(kind):
    """Kept in one channel, a grey image gives the same numbers after masking, augmentation and normalisation, bit for bit."""
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8))
    mask = np.kron(np.eye(4), np.ones((16, 16))).astype(bool) | (np.arange(64) > 30)
    found = []
    for image in (grey, grey.convert("RGB")):
        change = Augmentation(kind, 56)
        views = [change.resize(image), apply_mask(change.resize(image), mask, theta=0.1, gamma=0.4, beta=1.3)]
        found.append([to_tensor(view) for draw in range(5) for view in change(views, random.Random(draw))])
    for ours, wanted in zip(*found):
        assert torch.equal(ours, wanted)
    reference = functional.normalize(functional.to_tensor(grey.convert("RGB")), MEAN, STD)
    assert torch.equal(to_tensor(grey), reference)
