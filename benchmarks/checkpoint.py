"""How long an epoch's checkpoint keeps the training waiting: written at once, and copied in memory and written behind it.

    python -m benchmarks.checkpoint [--folder results] [--out results/checkpoint.json]

EKAGen of the published size with AdamW's moments, as last.pt holds them; --folder chooses the disk.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import add_shared, device_of, report, seconds
from benchmarks.published_size import system
from modules.checkpoint import CheckpointWriter, save_checkpoint, snapshot


def measure(args, folder: Path) -> list[tuple[str, float, str]]:
    """The rows of the table."""
    device, _ = device_of(args)
    student = system().to(device)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    path, taken = folder / "last.pt", {"at once": [], "behind": []}

    def content() -> dict:
        return {"model": student.state_dict(), "optimizer": optimizer.state_dict()}

    for _ in range(args.repeats + 1):
        taken["at once"].append(seconds(lambda: save_checkpoint(path, content()), device))
        with CheckpointWriter() as writer:
            taken["behind"].append(seconds(lambda: writer.write({path: snapshot(content())}), device))  # noqa: B023
    rows = [(f"the loop waits, written {name}", median(values[1:]), "s") for name, values in taken.items()]
    return [*rows, ("last.pt", path.stat().st_size / 1e9, "GB")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", help="where to write [a temporary folder]")
    add_shared(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(args, Path(folder))
    report("checkpoint, published size", rows, args, device_of(args)[0])


if __name__ == "__main__":
    main()
