"""What a training step of one system costs beside another's on the same batch, at the published size of a data set.

    python -m benchmarks.system_steps --models r2gencmn csr_lmca --batch_size 2 [--out results/system_steps.json]

Systems that read two images' worth of views and reports, nothing else; random weights, images and words.
"""

import argparse
import statistics

import torch

from benchmarks.measure import add_shared, device_of, interleaved, peak_memory, ratio, report
from data.batches import Batch
from models import SYSTEMS
from modules.flags import parse
from modules.optimizers import make_optimizer
from modules.text.tokenizer import Tokenizer

WORDS, VIEWS, LENGTH = 759, 2, 60


def random_batch(studies: int, device) -> Batch:
    """Two views of 224 pixels and 58 words a study."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(studies, VIEWS, 3, 224, 224, generator=draw)
    tokens = torch.zeros(studies, LENGTH + 1, dtype=torch.long)
    tokens[:, 1 : LENGTH - 1] = torch.randint(1, WORDS, (studies, LENGTH - 2), generator=draw)
    return Batch([str(number) for number in range(studies)], images=images, tokens=tokens).to(device)


def step_of(name: str, dataset: str, batch: Batch, device, precision):
    """A function that takes one training step, and the system's trained parameters."""
    args = parse(["--model", name, "--dataset_name", dataset], "train", systems=SYSTEMS)
    tokenizer = Tokenizer(
        [f"w{number:03d}" for number in range(WORDS)] + ["<unk>"], cleaning="iu_xray", padding=0, bos=0, eos=0
    )
    torch.manual_seed(0)
    system = SYSTEMS[name].build(args, tokenizer).to(device).train()
    optimizer = make_optimizer(system.parameter_groups(), args)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.region():
            losses = system.losses(batch)
        sum(system.loss_weights[name] * value for name, value in losses.items()).backward()
        optimizer.step()

    return step, sum(p.numel() for group in system.parameter_groups().values() for p in group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["r2gencmn", "csr_lmca"])
    parser.add_argument("--dataset_name", default="iu_xray")
    parser.add_argument("--batch_size", type=int, default=2)
    add_shared(parser)
    args = parser.parse_args()
    device, precision = device_of(args)
    batch, parts, rows = random_batch(args.batch_size, device), {}, []
    for name in args.models:
        parts[name], count = step_of(name, args.dataset_name, batch, device, precision)
        rows.append((f"{name}: trained parameters", f"{count:,d}", ""))
    taken = interleaved(parts, args.repeats, device)
    rows += [(f"{name}: seconds per step", statistics.median(taken[name]), "s") for name in parts]
    rows += [(f"{name} / {args.models[0]}", ratio(taken, name, args.models[0]), "times") for name in args.models[1:]]
    rows.append(("peak memory, all together", peak_memory(device), "GiB"))
    report(f"training steps, {args.batch_size} studies, {args.dataset_name}, {args.precision}", rows, args, device)


if __name__ == "__main__":
    main()
