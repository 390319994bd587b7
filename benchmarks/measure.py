"""What every benchmark shares: interleaved timings, counted FLOPs, the machine's measured matrix peak, table and JSON."""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from modules.artefact import git_state, write_json
from modules.precision import Precision, choose_device


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Flags of every benchmark that computes."""
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds; the median is shown [3]")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bf16", "fp16"))
    parser.add_argument("--out", help="write the figures as JSON")


def device_of(args) -> tuple[torch.device, Precision]:
    """Device and arithmetic of a benchmark's flags."""
    device = choose_device(args.device)
    return device, Precision(args.precision, device)


def seconds(function: Callable, device: torch.device) -> float:
    """Wall-clock time of one call, everything queued on the device included."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(parts: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each part in `repeats` rounds over all parts, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, function in parts.items():
            spent = seconds(function, device)
            if turn:
                taken[name].append(spent)
    return taken


def ratio(taken: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds of the quotient of two parts' times in the same round."""
    return statistics.median(a / b for a, b in zip(taken[over], taken[under]))


def flops(function: Callable) -> int:
    """Multiplications and additions of matrix products, convolutions and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matrix_peak(device: torch.device, kind: torch.dtype | None) -> float:
    """FLOP/s of the best of several square matrix products in float32 or `kind`: what this machine can give at most."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=kind or torch.float32)
    best = min(seconds(lambda: a @ a, device) for _ in range(6))
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> float:
    """GiB that were taken at most: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine(device: torch.device) -> dict:
    """Where the figures were taken."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(title: str, rows: list[tuple[str, float | str, str]], args, device: torch.device, **more) -> None:
    """Print (name, value, unit) rows under a title, and write them with machine and settings to --out."""
    where = machine(device)
    print(f"{title}\n  {where['device']}, {where['threads']} threads, torch {where['torch']}")
    width = max(len(name) for name, *_ in rows)
    for name, value, unit in rows:
        shown = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"  {name:{width}s}  {shown:>12} {unit}")
    if args.out:
        figures = {name: {"value": value, "unit": unit} for name, value, unit in rows}
        facts = {"what": title, "settings": vars(args), "machine": where, "git": git_state()}
        write_json(args.out, {**facts, "figures": figures, **more})
