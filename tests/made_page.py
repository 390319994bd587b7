"""Made results folders for tests of the results page, and what these ask of a browser."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.browser import CHROMIUM
from data.images import Augmentation
from data.mask_store import MaskRule, MaskStore
from data.studies import Study
from modules.errors import InputError
from modules.results_page.evidence import write_evidence
from modules.scoring.predictions import R2GenReferences, write_predictions

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


class Halves(MaskStore):
    """A mask over the left half of every image; of those named `small`, over little of it."""

    def get(self, image: str) -> np.ndarray:
        mask = np.zeros((300, 300), bool)
        mask[:, : 30 if "small" in image else 180] = True
        return mask


def attention_row(text: str, side: int) -> dict:
    words, views = len(text.split()), 1
    maps = np.random.RandomState(words).randint(0, 120, (words, views, side, side)).astype(np.uint8)
    maps[:, 0, 0, 0] = 255
    return {
        "text": text,
        "grid": [views, side, side],
        "full_grid": [side, side],
        "peak": [0.25] * words,
        "maps": base64.b64encode(maps.tobytes()).decode(),
    }


def made_image(number: int) -> Image.Image:
    """A smooth synthetic image, as large as a small radiograph."""
    y, x = np.mgrid[0:300, 0:260] / 40
    waves = np.sin(x + number % 7) + np.cos(y - number % 5) + np.sin(x * y / 3)
    return Image.fromarray(np.uint8(127 + 40 * waves))


IMAGES = [made_image(number) for number in range(10)]


def open_made(path: str) -> Image.Image:
    if "missing" in path:
        raise InputError(f"no image {path}")
    return IMAGES[int(re.search(r"(\d+)", path).group()) % len(IMAGES)]


def make_results(folder, pairs, *, attention=None, images=lambda number: (f"{number}.png",), metrics=None, more=None):
    """A results folder as main_test.py leaves it, from (reference, prediction) pairs."""
    texts = R2GenReferences(["the heart is normal . the lungs are clear ."], "iu_xray", threshold=1)
    rows = [
        texts.row(f"study {n}", a, b, constant="the lungs are clear .", **(more(n) if more else {}))
        for n, (a, b) in enumerate(pairs)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions_test.csv", rows)
    values = {"studies": 590, "ids_sha256": "5a1ffae1cceeaad4"}  # as those of the published split, to show its rows
    values |= {"distinct_reports": 3, "commonest_share": 0.5, "notes": {"r2gen/METEOR": "no Java"}}
    values |= {"r2gen/BLEU_4": 0.1, "r2gen/METEOR": None, "constant/r2gen/BLEU_4": 0.2, "constant/r2gen/METEOR": None}
    run = {"flags": {"model": "made", "dataset_name": "iu_xray", "theta": 0.4, "gamma": 0.4}}
    content = {"split": "test", "oracle_labels": True, "run": run, "metrics": {**values, **(metrics or {})}}
    (folder / "metrics_test.json").write_text(json.dumps(content))
    dataset = SimpleNamespace(
        studies=[Study(row["id"], row["reference"], images(n), "test") for n, row in enumerate(rows)],
        image_dir="",
        max_views=1,
        needs={"masked_images"},
        mask_rule=MaskRule(Halves(), theta=0.4, gamma=0.4),
        augment=Augmentation("none", 224, "bicubic"),
    )
    write_evidence(folder / "evidence_test.jsonl", dataset, attention or {}, open_made)
    return folder


def made_attention(pairs) -> dict:
    return {f"study {n}": attention_row(told, 4) for n, (_, told) in enumerate(pairs) if told.split()}


def freshly_opened(browser, folder):
    """The page of `folder`, freshly opened on its studies; afterwards the console must be silent."""
    browser.errors.clear()
    browser.media()
    browser.open(folder / "index.html", "#studies")
    browser.loaded()
    yield browser
    assert browser.errors == []


def ids(page) -> list[str]:
    """Ids of the rows in the document, from the top."""
    rows = "[...document.querySelectorAll('.row')].sort((a, b) => a.offsetTop - b.offsetTop)"
    return page.run(rows + ".map((row) => row.querySelector('.id').textContent)")


def text(page, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def ink(page, canvas: str) -> int:
    """Sum of the alpha values of a canvas."""
    return page.run(
        f"""(() => {{
          const drawn = document.getElementById("{canvas}"), copy = document.createElement("canvas");
          const pen = copy.getContext("2d", {{ willReadFrequently: true }});
          [copy.width, copy.height] = [drawn.width, drawn.height];
          pen.drawImage(drawn, 0, 0);
          return pen.getImageData(0, 0, copy.width, copy.height).data.filter((_, k) => k % 4 === 3).reduce((a, b) => a + b, 0);
        }})()"""
    )
