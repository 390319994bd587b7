"""No false alarm on radiographs, real and drawn; an alarm on what is none."""

import json

import numpy as np
import pytest
from PIL import Image

from data.images import open_image
from data.plausible import doubts

DRAW = np.random.default_rng(0)
ACROSS = np.linspace(0, 255, 300)[None, :, None].repeat(300, 0)  # a smooth slope
PHOTO = np.concatenate([ACROSS, ACROSS.transpose(1, 0, 2), 255 - ACROSS], axis=2)  # smooth and coloured


def image(pixels) -> Image.Image:
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    "pixels, words",
    [
        (np.zeros((300, 300)), "nearly of one grey"),
        (np.full((300, 300), 255), "nearly of one grey"),
        (127 + DRAW.normal(size=(300, 300)), "nearly of one grey"),
        (ACROSS[:10, :10, 0] * 20, "10 x 10 pixels"),
        (DRAW.integers(0, 256, (10, 10, 3)), "10 x 10 pixels"),
        (DRAW.integers(0, 256, (64, 64)), "as in noise"),
        (DRAW.integers(0, 256, (128, 128, 3)), "as in noise"),
        (DRAW.integers(0, 256, (300, 240)), "as in noise"),
        (DRAW.integers(0, 2, (300, 300)) * 255, "as in noise"),
        (DRAW.integers(0, 256, (128, 128, 3)), "coloured"),
        (PHOTO, "coloured"),
        (ACROSS[:100, :, 0], "100, longer than 2.5 : 1"),
        (DRAW.integers(0, 256, (2000, 2000)), "nearly of one grey"),  # noise so fine that nothing of it is seen
    ],
)
def test_what_is_no_radiograph(pixels, words):
    assert any(words in doubt for doubt in doubts(image(pixels)))


def test_the_miniature_set_passes(mini):
    paths = sorted((mini / "data" / "images").rglob("*.png"))
    assert len(paths) >= 32
    assert {str(path): found for path in paths if (found := doubts(open_image(path)))} == {}


@pytest.mark.shared
def test_real_images_pass(shared):
    rows = json.loads((shared / "iu_xray" / "annotation.json").read_text())["test"][:30]
    paths = [path for row in rows for path in row["image_path"]]
    assert len(paths) == 60
    assert {path: found for path in paths if (found := doubts(open_image(shared / "iu_xray" / "images" / path)))} == {}
