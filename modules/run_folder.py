"""A results folder: it belongs to one run and explains it. Nothing is written anywhere else."""

import fcntl
import importlib.util
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import torch
import torchvision

from modules import processes
from modules.artefact import git_state, read_json, sha256, write_json
from modules.errors import InputError
from modules.flags import all_flags


def open_run(args, *, resume: bool) -> Path:
    """Create or reopen the folder of a training run and keep other runs out of it until this process ends.

    InputError when it holds another run already, or one that is still at work. A run that ended before its first epoch did
    (refused weights, say) has left nothing to lose: the next one takes its place.
    """
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if not resume:
        if any(any(folder.glob(where)) for where in ("last.pt", "best.pt", "round_*/last.pt", "round_*/best.pt")):
            raise InputError(f"{folder} already holds a run: continue it with --resume, or choose another --save_dir")
        if (folder / "run.json").is_file():
            (folder / "log.jsonl").unlink(missing_ok=True)
    return folder


_LOCKS: dict[Path, object] = {}  # open files: a lock lasts as long as its file is open, in this process alone


def _lock(folder: Path) -> None:
    """InputError while another process trains into `folder`."""
    if folder.resolve() in _LOCKS:
        return
    file = open(folder / ".lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise InputError(f"another run is writing into {folder}: wait for it, or choose another --save_dir") from error
    except OSError:  # a file system without locks
        pass
    _LOCKS[folder.resolve()] = file


def describe_run(args, device: torch.device, **more) -> dict:
    """What a reader needs a year later: command, flags, versions, code state, device, hashes of the inputs."""
    values = {name: value for name, value in all_flags(args).items() if isinstance(value, str) and name != "resume"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": sys.argv,
        "flags": all_flags(args),
        "git": git_state(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": f"{device.type}: {name}, {torch.get_num_threads()} threads",
        "inputs": {
            flag: {"path": value, "sha256": sha256(value)} for flag, value in values.items() if Path(value).is_file()
        },
        **more,
    }


def check_inputs(folder: Path, facts: dict, typed: frozenset) -> None:
    """Raises InputError when a run that goes on would read other files than it began with; a typed path may be another's.

    facts: those of the resumed run (describe_run). Compared are the hashes of its input files and of the images.
    """
    first = read_json(folder / "run.json", "the run cannot be continued without it")
    changed = [
        f"--{name} {facts['inputs'][name]['path']}"
        for name in first["inputs"]
        if name in facts["inputs"] and name not in typed
        and facts["inputs"][name]["sha256"] != first["inputs"][name]["sha256"]
    ]  # fmt: skip
    images = first["data"].get("images_sha256")
    if images is not None and images != facts["data"].get("images_sha256") and not {"image_dir", "data_dir"} & typed:
        changed.append("the images (names or sizes)")
    if changed:
        raise InputError(
            f"--resume: these have changed since {folder} began: {', '.join(changed)}; bring them back, or start anew with "
            "another --save_dir"
        )


def write_run(folder: Path, facts: dict, *, resume: bool) -> None:
    """run.json; a resumed run is appended under "resumed", the first description stays."""
    path = folder / "run.json"
    if resume and path.is_file():
        first = read_json(path, "remove it; the run's flags are also in last.pt")
        first.setdefault("resumed", []).append(facts)
        facts = first
    write_json(path, facts)


def open_tensorboard(folder: Path):
    """TensorBoard's writer into <folder>/tensorboard where the package is installed, else None: log.jsonl says the same."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


class RunLog:
    """One row per event, to log.jsonl and, where it is installed, to TensorBoard (numbers by step or epoch).

    A value that is no finite number is written as null. Of several processes the first one's log is kept.
    """

    def __init__(self, folder: Path) -> None:
        first = processes.rank() == 0
        self.file = open(folder / "log.jsonl" if first else os.devnull, "a", encoding="utf-8")
        self.board, self.round = open_tensorboard(folder) if first else None, ""

    def write(self, event: str, *, say: str = "", **values) -> None:
        """A row of log.jsonl; `say`: what the console shows of it."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **clean}, ensure_ascii=False) + "\n")
        self.file.flush()
        if self.board is not None:
            self._plot(event, clean)
        if say:
            self.say(say)

    def say(self, text: str) -> None:
        """A line on the console, of the first process."""
        if processes.rank() == 0:
            print(text, flush=True)

    def _plot(self, event: str, values: dict) -> None:
        """Steps over steps, the rest over epochs; each round of a distillation under its own name."""
        if event == "round":
            self.round = f"round_{values['round']}/"
        if event == "rl":
            self.round = "rl/"
        if self.board is None or event not in ("step", "epoch", "val", "guards"):
            return
        at = values["step" if event == "step" else "epoch"]
        for name, value in values.items():
            if name not in ("step", "epoch", "best_epoch") and isinstance(value, (int, float)):
                prefix = "step/" if event == "step" else ""
                self.board.add_scalar(f"{self.round}{prefix}{name}", value, at)
        self.board.flush()

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
