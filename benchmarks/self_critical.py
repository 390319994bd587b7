"""What a self-critical step costs beside a teacher-forced one, by part, and beside decoding without a cache.

    python -m benchmarks.self_critical --data_dir data/miniature [--model r2gencmn --dataset_name miniature --words 60]

Random weights and images at the size of the preset; every report has --words words, of the vocabulary of the annotation, so
the labeler meets no clause twice: the most a reward can cost. "features": the extractor's features are given, as --feature_cache
does. "without a cache": the decoder passes all words again for each one, as published code samples; one pass over half the words
is timed and multiplied by the words. Of a CPU the seconds of this process are counted, whatever else the machine does.
"""

import argparse
import statistics
import time

import torch

from benchmarks.measure import add_shared, device_of, ratio, report, seconds
from data.batches import Batch
from models import SYSTEMS
from modules.decoding import repeat
from modules.flags import parse
from modules.optimizers import make_optimizer
from modules.scoring.predictions import R2GenReferences, read_reports
from modules.self_critical import SelfCritical, evaluating, objective_of
from modules.text.corpus import Corpus


def spent(function, device: torch.device) -> float:
    """Seconds of one call: on a GPU by the clock, on a CPU of this process."""
    if device.type == "cuda":
        return seconds(function, device)
    start = time.process_time()
    function()
    return time.process_time() - start


class Measured:
    """One system, its batch, and the steps over it."""

    def __init__(self, args, device, precision, *, features: bool) -> None:
        words = ["--model", args.model, "--dataset_name", args.dataset_name, "--data_dir", args.data_dir]
        self.flags = parse([*words, *(["--extractor_freeze", "all"] if features else [])], "train", systems=SYSTEMS)
        length = {"max_gen_length": args.words, "min_gen_length": args.words}
        vars(self.flags).update(length, top_k=0)
        rows = [row for row in read_reports(self.flags.ann_path, "--data_dir") if row.split == "train"]
        self.reports = {row.id: row.text for row in rows}
        self.corpus = Corpus.of(self.reports.values(), self.flags.cleaning)
        kind = SYSTEMS[args.model]
        self.tokenizer = kind.make_tokenizer(self.corpus, self.flags)
        torch.manual_seed(0)
        self.system = kind.build(self.flags, self.tokenizer).to(device).train()
        self.optimizer = make_optimizer(self.system.parameter_groups(), self.flags)
        self.device, self.precision = device, precision
        ids = list(self.reports)[: args.batch_size]
        side = self.flags.image_size
        images = torch.randn(len(ids), self.flags.max_views, 3, side, side)
        if features:
            with torch.no_grad():
                images = self.system.extractor(images.flatten(0, 1).to(device)).unflatten(0, images.shape[:2]).cpu()
        tokens = torch.from_numpy(self.tokenizer.padded(self.corpus.take(range(len(ids))), self.flags.max_seq_length + 1))
        self.batch = Batch(ids, images=images, tokens=tokens.long())

    def step(self, objective) -> None:
        batch = objective.prepare(self.batch).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.region():
            losses = objective(batch)
        sum(objective.weights[name] * value for name, value in losses.items()).backward()
        self.optimizer.step()

    def forced(self) -> None:
        """A teacher-forced step."""
        batch = self.system.prepare(self.batch).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.region():
            losses = self.system.losses(batch)
        sum(self.system.loss_weights[name] * value for name, value in losses.items()).backward()
        self.optimizer.step()

    def objective(self, samples: int, baseline: str, ce_weight: float) -> SelfCritical:
        flags = argparse.Namespace(**vars(self.flags))
        flags.rl_samples, flags.rl_baseline, flags.ce_weight = samples, baseline, ce_weight
        texts = R2GenReferences(self.corpus, rule=flags.cleaning)
        facts = {"corpus": self.corpus, "reports": self.reports, "texts": texts, "device": self.device}
        made = objective_of(flags, self.system, self.tokenizer, self.precision, **facts)
        made.reward.deviations = dict.fromkeys(made.reward.weights, 1.0)
        return made


def measure(args) -> list[tuple[str, float, str]]:
    """The rows of the table."""
    device, precision = device_of(args)
    whole, given = (Measured(args, device, precision, features=features) for features in (False, True))
    single, four = whole.objective(1, "greedy", 0.0), whole.objective(4, "leave_one_out", 0.0)
    with_own, of_features = whole.objective(4, "leave_one_out", 0.1), given.objective(4, "leave_one_out", 0.0)
    with torch.no_grad(), evaluating(whole.system), precision.region():
        memory = whole.system.encode(whole.system.prepare(whole.batch).to(device))
        drawn = four.draw(memory, whole.batch.ids, greedy=False)
        wide = repeat(memory, 4)
    half = torch.full((4 * len(whole.batch), max(args.words // 2, 1)), 5, device=device)

    turn = 0

    def rewards() -> None:  # texts that were not rewarded before
        shuffled = [[(words[turn:] + words[:turn], ended) for words, ended in row] for row in drawn]
        four.rewards(whole.batch.ids, shuffled)

    def draw() -> None:
        with torch.no_grad(), evaluating(whole.system), precision.region():
            four.draw(memory, whole.batch.ids, greedy=False)

    def uncached() -> None:
        with torch.no_grad(), evaluating(whole.system), precision.region():
            whole.system.logits(wide, half)

    parts = {
        "teacher-forced": whole.forced,
        "k = 1, greedy": lambda: whole.step(single),
        "k = 4": lambda: whole.step(four),
        "k = 4, --ce_weight .1": lambda: whole.step(with_own),
        "teacher-forced on features": given.forced,
        "k = 4 on features": lambda: given.step(of_features),
        "samples alone, k = 4": draw,
        "rewards alone, k = 4": rewards,
        "one word without a cache, k = 4": uncached,
    }
    taken = {name: [] for name in parts}
    for turn in range(args.repeats + 1):
        for objective in (single, four, with_own, of_features):
            objective.epoch = turn  # other samples, so that no clause is known to the labeler
        for name, function in parts.items():
            value = spent(function, device)
            if turn:
                taken[name].append(value)
    rows = [(name, statistics.median(values), "s") for name, values in taken.items()]
    for name in ("k = 1, greedy", "k = 4", "k = 4, --ce_weight .1"):
        rows.append((f"{name} / teacher-forced", ratio(taken, name, "teacher-forced"), "times"))
    rows.append(("k = 4 / teacher-forced, on features", ratio(taken, "k = 4 on features", "teacher-forced on features"), "times"))
    rows.append(("rewards / step of k = 4", ratio(taken, "rewards alone, k = 4", "k = 4"), "share"))
    uncached_ratio = args.words * ratio(taken, "one word without a cache, k = 4", "samples alone, k = 4")
    rows.append(("samples without a cache / with", uncached_ratio, "times"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="r2gencmn", help="a system that reads images and reports alone [r2gencmn]")
    parser.add_argument("--dataset_name", default="miniature", help="whose preset decides the size [miniature]")
    parser.add_argument("--data_dir", default="data/miniature", help="folder of the annotation that gives the words")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--words", type=int, default=60, help="words of every report [60]")
    add_shared(parser)
    args = parser.parse_args()
    title = f"self-critical steps of {args.model}, {args.batch_size} studies, {args.words} words, {args.precision}"
    report(title, measure(args), args, device_of(args)[0])


if __name__ == "__main__":
    main()
