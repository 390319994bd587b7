"""What each form of the selective scan costs: seconds forward and backward, memory, and how far it is from float64.

    python -m benchmarks.selective_scan --batch_size 8 --lengths 49 98 256 [--out results/selective_scan.json]

1024 channels, 16 states, steps as at the start of a training. "loop" is the formula written as a loop for autograd.
Memory: what a process of its own needs more for one forward and backward pass than for its inputs.
"""

import argparse
import multiprocessing
import statistics
from pathlib import Path

import torch

from benchmarks.measure import add_shared, device_of, interleaved, report
from modules.nets.selective_scan import selective_scan

CHANNELS, STATES = 1024, 16


def loop(x, dt, A, B, C, D) -> torch.Tensor:
    """The formula by autograd, which keeps every factor of every position."""
    state, rows = x.new_zeros(len(x), *A.shape), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        rows.append((state * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(rows, 1)


def forms(device: torch.device) -> dict:
    """Name -> function of the inputs."""
    names = ("sequential", "parallel", "kernel") if device.type == "cuda" else ("sequential", "parallel")
    return {name: lambda *values, name=name: selective_scan(*values, form=name) for name in names} | {"loop": loop}


def inputs(studies: int, length: int, device, dtype=torch.float32) -> list[torch.Tensor]:
    """x, dt, A, B, C, D."""
    draw = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(studies, length, width, generator=draw) for width in (CHANNELS, STATES, STATES))
    dt = 0.001 * 100 ** torch.rand(studies, length, CHANNELS, generator=draw)
    A = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
    return [value.to(device, dtype).requires_grad_() for value in (x, dt, A, B, C, torch.ones(CHANNELS))]


def memory(name: str, studies: int, length: int) -> float:
    """MiB of one pass on a CPU, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (name, studies, length))


def _grown(name: str, studies: int, length: int) -> float:
    function = forms(torch.device("cpu"))[name]
    torch.set_num_threads(1)
    values = inputs(studies, length, "cpu")
    small = inputs(1, 2, "cpu")
    function(*small).sum().backward()  # what PyTorch itself takes at its first pass
    before = _highest()
    function(*values).sum().backward()
    return (_highest() - before) / 2**10


def _highest() -> int:
    """KiB that this process has held at most; getrusage would count its parent in."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def distance(function, device) -> tuple[float, float]:
    """Largest difference to the float64 loop, of the outputs and of the gradients in parts of their rms; 98 positions."""
    values, exact = inputs(2, 98, device), inputs(2, 98, device, torch.float64)
    y, known = function(*values), loop(*exact)
    grads, right = torch.autograd.grad(y.sin().sum(), values), torch.autograd.grad(known.sin().sum(), exact)
    worst = max(((a - b).abs().max() / b.square().mean().sqrt()).item() for a, b in zip(grads, right))
    return (y - known).abs().max().item(), worst


def measure(args) -> list[tuple[str, float, str]]:
    device, _ = device_of(args)
    rows = []
    for length in args.lengths:
        values = inputs(args.batch_size, length, device)
        outputs = {}

        def forward(name, function, values=values, outputs=outputs):
            outputs[name] = function(*values)

        def backward(name, values=values, outputs=outputs):
            torch.autograd.grad(outputs.pop(name).sum(), values)

        parts = {}
        for name, function in forms(device).items():
            parts[name, "forward"] = lambda n=name, f=function: forward(n, f)
            parts[name, "backward"] = lambda n=name: backward(n)
        taken = interleaved(parts, args.repeats, device)
        for name in forms(device):
            forth, back = (statistics.median(taken[name, way]) for way in ("forward", "backward"))
            rows.append((f"L = {length}, {name}: forward", forth, "s"))
            rows.append((f"L = {length}, {name}: backward", back, "s"))
            if device.type == "cpu":
                rows.append((f"L = {length}, {name}: memory", memory(name, args.batch_size, length), "MiB"))
    for name, function in forms(device).items():
        y, grads = distance(function, device)
        rows += [
            (f"{name}: distance to float64", f"{y:.1e}", ""),
            (f"{name}: of the gradients", f"{grads:.1e}", "of their rms"),
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[49, 98, 256])
    add_shared(parser)
    args = parser.parse_args()
    report(f"selective scan, {args.batch_size} studies", measure(args), args, device_of(args)[0])


if __name__ == "__main__":
    main()
