"""Stand-in weights, images and expected outputs of the R2Gen family's fixtures (tests/fixtures/<system>)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from stand_in import stand_in

from data.batches import Batch
from modules.nets.captioner import sinusoids
from modules.text.labels import CHEXPERT_14

FIXTURES = Path(__file__).parent / "fixtures"
WORDS = [f"word{n:03d}" for n in range(759)] + ["<unk>"]


@cache
def facts(system: str) -> dict:
    return json.loads((FIXTURES / system / "facts.json").read_text())


@cache
def outputs(system: str) -> dict:
    with np.load(FIXTURES / system / "io.npz") as file:
        return dict(file)


def released_content(system: str, *, training: bool) -> dict:
    """The file that a user of the authors' release has, with stand-in weights: every key of the released layout."""
    manifest = facts(system)
    gains = manifest["train_gains" if training else "gains"]
    edits = manifest.get("train_edits", []) if training else manifest["edits"]
    state = {}
    for name, shape in manifest["state_dict"]:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith(".pe"):
            state[name] = sinusoids(*shape[1:])[None]
        else:
            state[name] = _drawn(name, shape, manifest, gains, edits)
    return {"epoch": 1, "state_dict": state, "optimizer": {}, "monitor_best": 0.1}


def _drawn(name, shape, manifest, gains, edits) -> torch.Tensor:
    for alias, original in manifest["tied"]:
        name = original + name.removeprefix(alias) if name.startswith(alias) else name
    prefixes = [prefix for prefix in gains if name.startswith(prefix)]
    leaf = "weight" if name.endswith("a_2") else name.rsplit(".", 1)[-1]
    tensor = stand_in(name, shape, manifest["seed"], gains[max(prefixes, key=len)] if prefixes else 1.0, leaf=leaf)
    for target, row, operation, value in edits:
        if target == name:
            rows = tensor if row is None else tensor[row]  # a view: the edit is written into the tensor
            rows.copy_(rows * value if operation == "mul" else rows + value)
    return tensor


def made_images(seed: int, lead: tuple[int, ...], side: int = 224, coarse: int = 7) -> torch.Tensor:
    """Coarse blocks plus fine noise, float32 [*lead, 3, side, side]."""
    draw = np.random.RandomState(seed)
    low = draw.standard_normal((*lead, 3, coarse, coarse)).astype(np.float32)
    fine = draw.standard_normal((*lead, 3, side, side)).astype(np.float32)
    block = side // coarse
    return torch.from_numpy(2 * low.repeat(block, -2).repeat(block, -1) + 0.5 * fine)


def batch_of(system: str, *, mimic: bool = False) -> Batch:
    """The fixture's three studies, as a loader gives them: ids padded beyond the longest report."""
    io, manifest, prefix = outputs(system), facts(system), "mimic_" if mimic else ""
    images = made_images(manifest["mimic_data_seed"], (3, 1)) if mimic else made_images(manifest["data_seed"], (3, 2))
    axes = (1, 2, 3, 4) if mimic else (2, 3, 4)
    np.testing.assert_allclose(images.double().sum(axes), io[f"{prefix}images_checksum"], rtol=1e-6)
    tokens = torch.from_numpy(io[f"{prefix}report_ids"])
    batch = Batch(["a", "b", "c"], images=images, tokens=torch.cat([tokens, torch.zeros(3, 1, dtype=torch.long)], 1))
    if "labels" in io:
        from models.xpronet import RELEASED_LABELS

        order = [RELEASED_LABELS.index(label) for label in CHEXPERT_14]
        batch.labels = torch.from_numpy(io["labels"]).long()[:, order]
    return batch
