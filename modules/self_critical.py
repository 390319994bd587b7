"""Self-critical training: a system draws reports, a reward says how good each is, and it learns to write the better ones.

The gradient of the expected reward is estimated by reward minus baseline times the gradient of a sample's log-probability
(Williams 1992). The baseline is the reward of the study's greedy report (Rennie et al. 2017) or the mean reward of its other
samples (Kool et al. 2019): both leave the estimate unbiased. The formulas stand in docs/self_critical.md.

B studies, K samples of each, N = B * K reports, L positions of the longest, W ids.
"""

import argparse
import copy
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modules import processes
from modules.decoding import DecodingSettings, distribution, draw_reports, repeat, words_of
from modules.errors import InputError, Problems
from modules.precision import Precision
from modules.scoring.guards import report_facts, text_facts, warnings
from modules.scoring.metrics import prepare
from modules.scoring.predictions import R2GenReferences
from modules.scoring.rewards import Cider, Reference, Reward, Tools, read_weights
from modules.scoring.score_all import make_labelers
from modules.text.cleaning import UNKNOWN
from modules.text.corpus import Corpus
from modules.trainer import Losses

PROBE = 200  # validation studies whose reports are looked at after each epoch
Report = tuple[list[int], bool]  # word ids, and whether EOS ended it


def advantages(rewards: torch.Tensor, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """Rewards [B, K] minus a baseline that knows nothing of the sample: greedy [B], or the mean of the K - 1 others."""
    if greedy is not None:
        return rewards - greedy[:, None]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def report_tokens(system, reports: list[Report]) -> tuple[torch.Tensor, torch.Tensor]:
    """Reports -> ids int [N, L + 1] with BOS, and which of the L targets count, bool [N, L]: the words, and EOS if it came."""
    rows = [words + [system.eos] * ended for words, ended in reports]
    lengths = torch.tensor([len(row) for row in rows])
    longest = max(1, int(lengths.max()))
    tokens = [[system.bos, *row] + [system.padding] * (longest - len(row)) for row in rows]
    return torch.tensor(tokens), torch.arange(longest) < lengths[:, None]


def log_probabilities(system, memory: dict, tokens: torch.Tensor, settings: DecodingSettings) -> torch.Tensor:
    """Log-probabilities [N, L, W] of what reports were drawn from, by one teacher-forced pass over ids [N, L + 1]."""
    return distribution(system, system.logits(memory, tokens[:, :-1]), settings, tokens[:, 1:])


def of_words(everything: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Those of the reports' own ids, [N, L] from [N, L, W]; 0 where a target does not count."""
    own = everything.gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.where(counted, own, 0.0)


def policy_loss(own: torch.Tensor, advantage: torch.Tensor, words: float) -> torch.Tensor:
    """Scalar whose gradient is the estimate's, to be descended: own [N, L] of `of_words`, advantage [N].

    words: what it is divided by. It must not depend on the samples, or the estimate is biased.
    """
    return -(advantage[:, None] * own).sum() / words


@contextmanager
def evaluating(system: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; gradients are computed as ever."""
    was_training = system.training
    system.eval()
    try:
        yield
    finally:
        system.train(was_training)


@dataclass
class Passes:
    """A batch for both modes: `policy` as evaluation reads it, `own` as the system's own losses do (None: they have no weight).

    words: of the references, EOS counted, times K.
    """

    policy: Any
    own: Any
    words: float

    @property
    def ids(self) -> list[str]:
        return self.policy.ids

    def to(self, device) -> "Passes":
        own = None if self.own is None else self.own.to(device)
        return dataclasses.replace(self, policy=self.policy.to(device), own=own)


class SelfCritical(Losses):
    """Loss "rl" beside the system's own losses, and "kl" to the policy at the start where it has a weight.

    settings: what a sample is drawn by. cider: of the guards. Samples are drawn from one encoding, in evaluation mode, and so
    are their log-probabilities: with dropout the same reports are less likely, and the gradient is another.
    "rl" is divided by the words of the references times K, which are known before anything is drawn: so it is exact, and the
    same however a step is split.
    """

    trained = True

    def __init__(
        self,
        system,
        *,
        tokenizer,
        reward: Reward,
        cider: Cider,
        settings: DecodingSettings,
        precision: Precision,
        samples: int = 4,
        baseline: str = "leave_one_out",
        ce_weight: float = 0.1,
        kl_weight: float = 0.0,
    ) -> None:
        super().__init__(system)
        self.tokenizer, self.reward, self.precision, self.samples = tokenizer, reward, precision, samples
        self.settings, self.greedy, self.kl_weight = settings, baseline == "greedy", kl_weight
        own = {name: ce_weight * weight for name, weight in system.loss_weights.items()} if ce_weight else {}
        self.weights = {**own, "rl": 1.0, "kl": kl_weight, "reward": 0.0, "zero_advantages": 0.0}
        self.with_own = bool(own)
        self.idle = self.idle or not own  # without its own losses a system may leave a head without a gradient
        self.cider = cider
        self.first_guards: dict[str, Any] = {}
        self.start: list = []  # the policy at the start; in a list, so that it is neither trained nor stored

    def freeze_start(self) -> None:
        """Keep the policy that "kl" is measured from: the weights as they are now."""
        if self.kl_weight:
            self.start = [copy.deepcopy(self.system).eval().requires_grad_(False)]

    def needs(self) -> set[str]:
        """Fields of Batch that are read."""
        return self.system.needs(training=False) | (self.system.needs(training=True) if self.with_own else {"tokens"})

    def counts(self, batch) -> dict[str, float]:
        words = self.reference_words(batch) * self.samples
        own = super().counts(batch) if self.with_own else {}
        return {**own, "studies": len(batch), "rl": words, "kl": words}

    def reference_words(self, batch) -> int:
        return int(words_of(self.system, batch.tokens).sum()) + len(batch)

    def prepare(self, batch) -> Passes:
        with evaluating(self.system):
            policy = super().prepare(batch)
        own = super().prepare(batch) if self.with_own else None
        return Passes(policy, own, float(self.reference_words(batch) * self.samples))

    def draw(self, memory: dict, ids: list[str], *, greedy: bool, when="") -> list[list[Report]]:
        """K reports of each study, and with `greedy` one more. Their seeds are those of study, number and epoch (or `when`)."""
        names = [[f"{when or self.epoch}/{study}/{number}" for number in range(self.samples)] for study in ids]
        # a weight that autocast casts without gradients would be kept, and missed by the pass with gradients
        with self.precision.generation(self.system), self.precision.region(keep_casts=False):
            return draw_reports(self.system, memory, self.settings, names, greedy=greedy)

    def rewards(self, ids: list[str], reports: list[list[Report]]) -> np.ndarray:
        """float64 [B, reports of each]."""
        texts = [self.tokenizer.decode(words) for row in reports for words, _ in row]
        each = len(reports[0])
        return self.reward([study for study in ids for _ in range(each)], texts).reshape(-1, each)

    def forward(self, batch: Passes) -> dict[str, torch.Tensor]:
        # first, since it moves the means of batch norm, which the other pass reads
        losses = self.system.losses(batch.own) if self.with_own else {}
        with evaluating(self.system):
            memory = self.system.encode(batch.policy)
            device = next(iter(memory.values())).device
            reports = self.draw(memory, batch.ids, greedy=self.greedy)
            samples = [report for row in reports for report in row[: self.samples]]
            tokens, counted = (x.to(device, non_blocking=True) for x in report_tokens(self.system, samples))
            everything = log_probabilities(self.system, repeat(memory, self.samples), tokens, self.settings)
        if self.start:
            losses["kl"] = self.divergence(batch, tokens, counted, everything)
        own = of_words(everything, tokens, counted)
        rewards = torch.from_numpy(self.rewards(batch.ids, reports))  # beside the device, which is at the pass above
        drawn = rewards[:, : self.samples]
        advantage = advantages(drawn, rewards[:, -1] if self.greedy else None)
        facts = torch.stack([drawn.mean(), (advantage.abs() < 1e-9).double().mean()])
        advantage, facts = (x.to(own.dtype).to(device, non_blocking=True) for x in (advantage.flatten(), facts))
        losses["rl"] = policy_loss(own, advantage, batch.words)
        return losses | {"reward": facts[0], "zero_advantages": facts[1]}

    def divergence(self, batch: Passes, tokens, counted, everything: torch.Tensor) -> torch.Tensor:
        """KL of each word's distribution from the start's, summed over the samples' words and divided as "rl" is."""
        start = self.start[0]
        with torch.no_grad():
            memory = repeat(start.encode(batch.policy), self.samples)
            before = log_probabilities(start, memory, tokens, self.settings)
        ratio = torch.where(everything.isneginf() | before.isneginf(), 0.0, everything - before)
        return ((everything.exp() * ratio).sum(-1) * counted).sum() / batch.words

    # -- at the start and after each epoch -------------------------------------------------------------------------------

    @torch.no_grad()
    def survey(self, loader, chosen: set[str], device) -> dict[str, dict]:
        """{study: its K samples and, last, its greedy report} of the `chosen` studies, which the loader gives first.

        Of each report its "texts", whether "ended", "entropy" (nats per word) and "agrees": the share of its words that the
        teacher-forced pass, too, thinks best. The samples' seeds are the same at every call.
        """
        found: dict[str, dict] = {}
        with evaluating(self.system):
            for batch in loader:
                if chosen.isdisjoint(batch.ids):
                    break
                with self.precision.region():
                    memory = self.system.encode(self.system.prepare(batch).to(device))
                    reports = self.draw(memory, batch.ids, greedy=True, when="survey")
                    flat = [report for row in reports for report in row]
                    tokens, counted = (x.to(device) for x in report_tokens(self.system, flat))
                    everything = log_probabilities(self.system, repeat(memory, self.samples + 1), tokens, self.settings)
                words = counted.sum(1).clamp(min=1)
                entropy = (torch.special.entr(everything.exp()).sum(-1) * counted).sum(1) / words
                agrees = ((everything.argmax(-1) == tokens[:, 1:]) & counted).sum(1) / words
                facts = {
                    "texts": [self.tokenizer.decode(ids) for ids, _ in flat],
                    "ended": [ended for _, ended in flat],
                    "entropy": entropy.tolist(),
                    "agrees": agrees.tolist(),
                }
                each = self.samples + 1
                for row, study in enumerate(batch.ids):
                    if study in chosen:
                        found[study] = {name: values[row * each : (row + 1) * each] for name, values in facts.items()}
        return dict(sorted(processes.gather(found).items()))

    def watch(self, surveyed: dict[str, dict], log) -> None:
        """At the start and after each epoch, from what `survey` found: freeze the reward's deviations, then the guards."""
        first = not self.reward.deviations
        if first:
            self.begin(surveyed)
        self.settle()
        now = self.guards(surveyed)
        self.first_guards = now if first else self.first_guards
        told = warnings(now, self.first_guards)
        shown = {f"{kind}/{name}": value for kind, row in now.items() for name, value in row.items()}
        log.write("guards", epoch=0 if first else self.epoch + 1, **shown, warnings=told, say=guard_line(now, told))

    def guards(self, surveyed: dict[str, dict]) -> dict[str, dict[str, float]]:
        """{"greedy", "samples", "references": {name: value}} of modules/scoring/guards.py."""
        raw = {study: self.reward.reference(study) for study in surveyed}
        found = {"references": text_facts([reference.raw for reference in raw.values()])}
        for kind, part in (("greedy", slice(-1, None)), ("samples", slice(None, -1))):
            ids = [study for study, row in surveyed.items() for _ in row["texts"][part]]
            facts = {name: [x for row in surveyed.values() for x in row[name][part]] for name in ("texts", "ended", "entropy")}
            cider = self.cider([raw[study] for study in ids], facts["texts"])
            found[kind] = report_facts(
                [raw[study].raw for study in ids], facts["texts"], facts["ended"], facts["entropy"], cider
            )
        distinct = [len(set(row["texts"][:-1])) / self.samples for row in surveyed.values()]
        found["samples"]["distinct_per_study"] = sum(distinct) / len(distinct)
        return found

    def begin(self, surveyed: dict[str, dict]) -> None:
        """Freeze what the start decides. InputError where the log-probabilities are not those of what is drawn."""
        agrees = [row["agrees"][-1] for row in surveyed.values() if row["texts"][-1]]
        if agrees and sum(agrees) / len(agrees) < 0.95:
            raise InputError(
                f"--rl_epochs: the teacher-forced pass agrees with {sum(agrees) / len(agrees):.0%} of the words that greedy "
                "decoding writes, so the gradient would be that of another policy; a system whose decoding differs from "
                "its training (such as --query_gate random) cannot be trained so"
            )
        ids = [study for study in surveyed for _ in range(self.samples)]
        self.reward.freeze(self.reward.values(ids, [text for row in surveyed.values() for text in row["texts"][:-1]]))

    def settle(self) -> None:
        """After an epoch: what its samples were, over all processes, is what the next one's are measured by."""
        for part in self.reward.corpus_parts():
            part.settle(processes.total(torch.from_numpy(part.sums)).tolist())

    def state(self) -> dict:
        return {"reward": self.reward.state(), "guards": self.first_guards}

    def load_state(self, state: dict) -> None:
        self.reward.load_state(state["reward"])
        self.first_guards = state["guards"]


def guard_line(now: Mapping[str, Mapping[str, float]], told: list[str]) -> str:
    """What the console shows of the guards: the greedy reports in a line, then the warnings."""
    names = ("cider", "words", "findings", "distinct_reports", "repeated_trigrams", "entropy", "side_f1")
    shown = ", ".join(f"{name} {now['greedy'][name]:.3g}" for name in names)
    return "\n".join([f"guards: greedy {shown}", *(f"warning: {text}" for text in told)])


# -- from flags ----------------------------------------------------------------------------------------------------------


def check_flags(args: argparse.Namespace, inputs: Mapping[str, set[str]], problems: Problems) -> None:
    """Note everything about --rl_epochs that would fail later. inputs: what the system reads of each split."""
    text = "--epochs 0 trains nothing: give --rl_epochs too, and --load the checkpoint that it starts from"
    problems.check(args.epochs or (args.rl_epochs and args.load), text)
    if not args.rl_epochs:
        return
    text = f"--rl_samples {args.rl_samples}: --rl_baseline leave_one_out compares a study's samples, take 2 or more"
    problems.check(args.rl_samples > 1 or args.rl_baseline != "leave_one_out", text)
    oracle = sorted({"labels", "true_graph"} & inputs["val"])
    text = "--rl_epochs: this system would read the reference's own labels, and the reward with them; leave out --oracle_labels"
    problems.check(not oracle, text.replace("labels", "graph") if "true_graph" in oracle else text)
    try:
        names = read_weights(args.rl_reward)
    except InputError as error:
        problems.add(str(error))
        return
    text = "--rl_reward chexbert13 reads the labels with your CheXbert: give --chexbert_path"
    asked = any(name.startswith("chexbert") for name in names)
    problems.check(not asked or (args.chexbert_path and Path(args.chexbert_path).is_file()), text)
    text = "--rl_reward radgraph: the optional package radgraph is not installed (pip install radgraph)"
    problems.check("radgraph" not in names or importlib.util.find_spec("radgraph") is not None, text)


def stage_flags(args: argparse.Namespace) -> argparse.Namespace:
    """The flags of a run -> those of its self-critical part: its epochs, and a constant rate of --rl_lr times the peak."""
    changed = {
        "epochs": args.rl_epochs, "lr_ve": args.lr_ve * args.rl_lr, "lr_ed": args.lr_ed * args.rl_lr, "lr_schedule": "step",
        "lr_gamma": 1.0, "warmup_epochs": 0, "early_stop": 0, "validate_from": 1, "compile": False,
    }  # fmt: skip
    return argparse.Namespace(**{**vars(args), **changed})


def objective_of(args, system, tokenizer, precision: Precision, *, corpus: Corpus, reports: Mapping[str, str],
                 texts: R2GenReferences, device) -> SelfCritical:  # fmt: skip
    """The objective of the flags. corpus: the training reports; reports: raw ones by study, of training and validation."""

    @lru_cache(maxsize=50_000)
    def reference(study: str) -> Reference:
        return Reference(prepare(texts.r2gen(reports[study])), reports[study])

    def training() -> Iterator[str]:
        for words in corpus.reports():
            yield " ".join(word if word in texts.words else UNKNOWN for word in words[: texts.max_words])

    cider = Cider(training())
    labelers = lambda: make_labelers(args.chexbert_path, args.chexbert_vocab, device)["chexbert"]  # noqa: E731
    settings = {"max_length": args.max_gen_length, "min_length": args.min_gen_length, "top_k": args.top_k}
    return SelfCritical(
        system,
        tokenizer=tokenizer,
        reward=Reward(read_weights(args.rl_reward), Tools(cider, labelers, args.radgraph_dir), reference),
        cider=cider,
        settings=DecodingSettings(**settings, sample=True, temperature=args.rl_temperature, seed=args.seed, marks=False),
        precision=precision,
        samples=args.rl_samples,
        baseline=args.rl_baseline,
        ce_weight=args.ce_weight,
        kl_weight=args.kl_weight,
    )
