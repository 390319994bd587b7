"""What writing reports costs, beside one teacher-forced pass over as many reports, and beside the published loop.

    python -m benchmarks.report_writing --studies 8 --words 127 [--naive] [--out results/report_writing.json]

Published size (ResNet-101, 300 pixels, 6 + 6 layers), random weights, the end mark ignored so that every report has all
its words. --naive also times the published loop (benchmarks/published_size.py), which passes everything again for every
word: a few of its passes are timed and multiplied by the words, since each costs the same. With --precision bf16 the table
says how far the words equal those of float32.
"""

import argparse
import statistics

import torch

from benchmarks.measure import add_shared, device_of, flops, interleaved, matrix_peak, peak_memory, ratio, report
from benchmarks.published_size import Naive, batch_of, system
from modules.decoding import DecodingSettings, decode


@torch.no_grad()
def measure(args) -> list[tuple[str, float, str]]:
    """The rows of the table."""
    device, precision = device_of(args)
    made, batch = system().to(device).eval(), batch_of(args.studies, device)
    # the end mark may not come, so that every beam has all its words
    lengths = {"max_length": args.words, "min_length": args.words}
    settings = {beams: DecodingSettings(**lengths, beam_size=beams) for beams in (1, args.beam_size)}

    def forward():
        with precision.region():
            return made.logits(made.encode(batch), batch.tokens[:, : args.words])

    def encode():
        with precision.region():
            return made.encode(batch)

    def write(beams: int = 1):
        with precision.generation(made), precision.region():  # as write_split does for all reports of a split
            return decode(made, made.encode(batch), settings[beams], batch.ids, stop=False)

    parts = {"teacher-forced pass": forward, "encode": encode, "greedy": write}
    beams = f"beam {args.beam_size}"
    if args.beam_size > 1:
        parts[beams] = lambda: write(args.beam_size)
    if args.naive:
        naive = Naive(made, None, device)
        parts["naive, one word"] = lambda: naive.word(batch)
    taken = interleaved(parts, args.repeats, device)
    taken = {name: [value / args.studies for value in values] for name, values in taken.items()}
    rows = [(f"{name}, seconds per study", statistics.median(values), "s") for name, values in taken.items()]
    rows.append(("greedy / teacher-forced pass", ratio(taken, "greedy", "teacher-forced pass"), "times"))
    if args.beam_size > 1:
        rows.append((f"{beams} / greedy", ratio(taken, beams, "greedy"), "times"))
    if args.naive:
        rows.append(("naive, all words / greedy", args.words * ratio(taken, "naive, one word", "greedy"), "times"))
    if precision.kind is not None:
        rows.append(("words as in float32, before the first that differs", agreement(made, batch, settings[1], write()), "share"))
    work, peak = flops(write), matrix_peak(device, precision.kind)
    rows.append(("share of the matrix peak, greedy", work / statistics.median(taken["greedy"]) / args.studies / peak, ""))
    rows.append(("peak memory", peak_memory(device), "GiB"))
    return rows


def agreement(made, batch, settings, written: list[list[int]]) -> float:
    """Share of all word places that come before a report's first difference from float32's."""
    exact = decode(made, made.encode(batch), settings, batch.ids, stop=False)
    same = 0
    for ours, theirs in zip(written, exact):
        differing = [place for place, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        same += differing[0] if differing else len(theirs)
    return same / sum(map(len, exact))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--words", type=int, default=127)
    parser.add_argument("--beam_size", type=int, default=3)
    parser.add_argument("--naive", action="store_true")
    add_shared(parser)
    args = parser.parse_args()
    title = f"writing {args.words} words each for {args.studies} studies, {args.precision}"
    report(title, measure(args), args, device_of(args)[0])


if __name__ == "__main__":
    main()
