"""Checkpoints: one self-contained file, written whole or not at all, read without running anything.

Fields: format, flags, tokenizer, model, optimizer, scheduler, scaler, epoch (finished), step, best, random states, and
`parts`: knowledge base, DiagnosisBot and ADM classifier with their labels and thresholds. With them a report for a new
image needs this file and nothing else.
"""

import random
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from modules.artefact import write_atomic
from modules.errors import InputError
from modules.safe_pickle import load_pickle

FORMAT = 1


def random_states() -> dict:
    """States of every generator a run draws from, as plain tensors and numbers."""
    python = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    saved, here = len(states["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here:
        torch.cuda.set_rng_state_all(states["cuda"][:here])
    if saved != here:
        print(f"note: saved with {saved} GPUs, {here} here: dropout draws other numbers than the whole run would have drawn")


def save_checkpoint(path: str | Path, content: dict) -> None:
    """Write atomically; InputError when the disk is full, and what stood there stays."""
    write_atomic(path, lambda temporary: torch.save({"format": FORMAT, **content}, temporary))


def snapshot(content):
    """Dicts and lists with every tensor copied to main memory: what training changes afterwards does not change them."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    return [snapshot(value) for value in content] if isinstance(content, list) else content


def _save_all(files: dict[Path, dict]) -> None:
    for path, content in files.items():
        save_checkpoint(path, content)


class CheckpointWriter:
    """Writes checkpoints while training goes on: the loop waits for the copy in memory, not for the disk.

    Files are whole or not there, in the order of the calls. A failure (a full disk) is raised by the next call, or when
    the `with` block ends; a killed process leaves what was written last, usually the epoch before.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def write(self, files: dict[Path, dict]) -> None:
        """Write {path: content}, snapshots, once what came before is on the disk."""
        self.wait()
        self.pending = self.thread.submit(_save_all, files)

    def wait(self) -> None:
        """Until everything is written. InputError from save_checkpoint."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_) -> None:
        self.wait()


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of ours or a file of the authors (see is_ours) on the CPU; InputError when neither."""
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    if is_ours(content):
        _check_fields(content, path)
    return content


FIELDS = {"format": int, "flags": dict, "tokenizer": dict, "model": dict, "parts": dict}


def _check_fields(content: dict, path) -> None:
    """InputError unless what every reader relies on is there and of its kind."""
    wrong = [name for name, kind in FIELDS.items() if not isinstance(content.get(name), kind)]
    if "model" not in wrong and not all(isinstance(value, torch.Tensor) for value in content["model"].values()):
        wrong.append("model")
    for name in ("model", "dataset_name"):
        if "flags" not in wrong and not isinstance(content["flags"].get(name), str):
            wrong.append(f"flags ({name})")
    if wrong:
        raise InputError(f"{path} is a damaged checkpoint: {', '.join(wrong)} missing or of another kind")
    if content["format"] > FORMAT:
        raise InputError(f"{path} was written by a newer version (format {content['format']}, this one reads {FORMAT})")


def is_ours(content: dict) -> bool:
    """Whether a loaded file is a checkpoint of this project."""
    return {"format", "flags", "tokenizer", "model"} <= set(content)


def check_finite(state: dict, what: str) -> None:
    """InputError when a tensor of a state_dict holds a value that is no finite number. One wait for the device."""
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in floats.values()]).tolist() if floats else []
    broken = [name for name, holds in zip(floats, finite) if not holds]
    if broken:
        raise InputError(
            f"{what}: {len(broken)} of {len(floats)} tensors hold values that are not finite, such as {broken[0]}; the "
            "training diverged: lower --lr_ed and --lr_ve and go on from an earlier checkpoint"
        )


def rename_keys(state: dict, rules, what: str) -> dict:
    """The authors' state_dict in our names: every key has one rule, a rule's None drops what is built anew.

    rules: pairs (compiled pattern, new name as for re.sub, or None). Two keys may share a name only where their tensors are
    equal (a module that stands in two places). InputError else; `what` names the layout.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for key, value in state.items():
        short = key.removeprefix("module.")
        found = [(pattern, name) for pattern, name in rules if pattern.match(short)]
        if len(found) != 1:
            unknown.append(key)
        elif found[0][1] is not None:
            name = found[0][0].sub(found[0][1], short)
            if name in renamed and not torch.equal(renamed[name], value):
                unknown.append(key)
            renamed[name] = value
    if unknown:
        raise InputError(f"not {what}'s released layout: {len(unknown)} unknown keys, such as {', '.join(unknown[:3])}")
    return renamed


def load_released(system, state: dict, source: str, sizes) -> None:
    """Strict load of renamed weights; sizes that disagree are explained by `sizes`: (what a user can name, key, axis)."""
    own = system.state_dict()
    facts = {
        name: (state[key].shape[axis], own[key].shape[axis]) for name, key, axis in sizes if key in state and key in own
    }
    load_weights(system, state, source, facts)


def load_weights(system, state: dict, source: str, facts: dict | None = None) -> None:
    """Strict load of a state_dict in our names; a misfit is explained in one message.

    facts: sizes of both sides by name, {"vocabulary": (checkpoint's, run's), ...}.
    """
    differing = [
        f"{name}: the weights have {theirs}, this run {ours}"
        for name, (theirs, ours) in (facts or {}).items()
        if theirs != ours
    ]
    own = system.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{k} {list(state[k].shape)} for {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        lines = differing or [f"{len(shapes)} of another shape: {'; '.join(shapes[:3])}"] * bool(shapes)
        lines += [f"{len(missing)} missing: {', '.join(missing[:3])}"] * bool(missing)
        lines += [f"{len(extra)} unknown: {', '.join(extra[:3])}"] * bool(extra)
        raise InputError(f"{source} does not fit this run:\n  - " + "\n  - ".join(lines))
    check_finite(state, source)
    system.load_state_dict(state, strict=True)
