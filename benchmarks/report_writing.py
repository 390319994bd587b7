"""What writing reports costs, beside one teacher-forced pass over as many reports of the same length.

    python -m benchmarks.report_writing --studies 8 --words 127 [--naive] [--out results/report_writing.json]

Published size (ResNet-101, 300 pixels, 6 + 6 layers), random weights, the end mark ignored so that every report has all
its words. --naive also times the published loop, which runs the whole network again for every word: a few of its 127
passes are timed and the sum is extrapolated (said in the output).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from data.batches import Batch
from models.ekagen import EKAGen
from modules.artefact import write_json
from modules.decoding import DecodingSettings, decode
from modules.knowledge import KnowledgeBase
from modules.precision import choose_device
from modules.visual_extractor import VisualExtractor

VOCABULARY = 760


def published_system() -> EKAGen:
    """EKAGen of the published size with random weights and a base of one entry."""
    torch.manual_seed(0)
    base = KnowledgeBase(torch.zeros(1, 14, dtype=torch.long), entries=torch.randn(1, 128, 256))
    extractor = VisualExtractor("resnet101", freeze="stem", dilate=True)
    return EKAGen(extractor, vocab_size=VOCABULARY, knowledge=base).eval()


def seconds(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def measure(studies: int, words: int, repeats: int, beam: int, naive: bool, device: torch.device) -> dict:
    """Median seconds of each part over `repeats` interleaved runs, and their ratios."""
    system = published_system().to(device)
    pictures = torch.randn(studies, 1, 3, 300, 300)
    batch = Batch([str(n) for n in range(studies)], masked_images=pictures, diagnosis=torch.zeros(studies, 14, dtype=torch.long))
    batch = batch.to(device)
    tokens = torch.randint(3, VOCABULARY, (studies, words + 1), device=device)
    settings = DecodingSettings(max_length=words, beam_size=beam)

    def forward():
        return system.logits(system.encode(batch), tokens)

    def write():
        return decode(system, system.encode(batch), settings, batch.ids, stop=False)

    parts = {"forward": forward, "encode": lambda: system.encode(batch), "write": write}
    for function in parts.values():
        seconds(function, device)  # warm
    taken = {name: [] for name in parts}
    for _ in range(repeats):
        for name, function in parts.items():
            taken[name].append(seconds(function, device))
    result = {name: statistics.median(values) for name, values in taken.items()}
    result["write / forward"] = statistics.median(w / f for w, f in zip(taken["write"], taken["forward"]))
    if naive:
        passes = [seconds(lambda: system.logits(system.encode(batch), tokens[:, :-1]), device) for _ in range(3)]
        result["naive (extrapolated from 3 passes)"] = statistics.median(passes) * words
        result["naive / write"] = result["naive (extrapolated from 3 passes)"] / result["write"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--words", type=int, default=127)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beam_size", type=int, default=1)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args()
    device = choose_device(args.device)
    found = measure(args.studies, args.words, args.repeats, args.beam_size, args.naive, device)
    print(f"{args.studies} studies, {args.words} words, beam {args.beam_size}, {device}, {torch.get_num_threads()} threads")
    for name, value in found.items():
        print(f"  {name:36s} {value:10.3f}" + ("" if "/" in name else " s"))
    if args.out:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        write_json(Path(args.out), {"settings": vars(args), "machine": machine, "figures": found})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
