"""Weights of full size drawn from the names and shapes of a released file, as the fixtures' authors drew them."""

import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures" / "ekagen"


def stand_in(name: str, shape, seed: int, gain: float = 1.0, leaf: str | None = None) -> torch.Tensor:
    """float32 tensor of `shape`; scale by the kind of parameter, so that activations stay of order one."""
    draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    x = draw.standard_normal(tuple(shape)).astype(np.float32)
    leaf = leaf or name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        x = 1 + 0.1 * np.abs(x)
    elif leaf != "running_mean" and len(shape) >= 2:
        x = x * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    elif leaf == "weight":
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def read(name: str) -> dict:
    return json.loads((FIXTURES / name).read_text())


def generator_state(seed: int | None = None) -> dict:
    """The generator's state_dict in the authors' names."""
    manifest = read("manifest.json")
    seed = manifest["seed"] if seed is None else seed
    gains = manifest["gain"]
    state = {}
    for name, shape in manifest["state_dict"]:
        prefixes = [prefix for prefix in gains if name.startswith(prefix)]
        state[name] = stand_in(name, shape, seed, gains[max(prefixes, key=len)] if prefixes else 1.0)
    return state


def classifier_state(file: str) -> dict:
    """The DiagnosisBot's or the ADM classifier's state_dict; integer buffers are zeros, the model has its own."""
    manifest = read(file)
    return {
        row[0]: torch.zeros(row[1], dtype=torch.int64) if len(row) > 2 else stand_in(row[0], row[1], manifest["seed"])
        for row in manifest["state_dict"]
    }


def write_released_files(folder: Path) -> None:
    """The files a user of the authors' release has, with stand-in weights."""
    manifest = read("manifest.json")
    torch.save({"model": generator_state(), "optimizer": {}, "lr_scheduler": {}, "epoch": 1}, folder / "iu_weight.pth")
    teacher = generator_state(read("train.json")["teacher_seed"])
    torch.save({"model": teacher, "epoch": 1}, folder / "iu_t_model.pth")
    torch.save(classifier_state("diagnosisbot.json"), folder / "diagnosisbot.pth")
    torch.save(classifier_state("adm.json"), folder / "MIMIC_best_weight.pth")
    knowledge = {
        tuple(int(bit) for bit in key): stand_in(
            f"knowledge.{key}", (128, 256), manifest["seed"], manifest["knowledge_gain"]
        )
        for key in manifest["knowledge_keys"]
    }
    with open(folder / "knowledge_prompt_iu.pkl", "wb") as file:
        pickle.dump(knowledge, file)
