"""Self-critical training: the estimate is the enumerated gradient, planted faults are seen; samples, resume, processes, GPU."""

import contextlib
import itertools
import json
import math
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import inputs, run
from pretended_gpu import CUDA, pretended_gpu
from test_pretended_gpu import BESIDES, Batches
from test_processes import TORCHRUN
from tiny import NAMES, prepare, read
from torch import nn

from data.batches import Batch, collate, make_loader
from data.prepare import make_dataset
from modules import self_critical
from modules.decoding import LOOK_EVERY, DecodingSettings, draw_reports
from modules.precision import Precision
from modules.safe_pickle import load_pickle
from modules.scoring.predictions import R2GenReferences
from modules.self_critical import SelfCritical, advantages, log_probabilities, of_words, report_tokens
from modules.self_critical import objective_of as objective_of_flags
from modules.trainer import Trainer

CPU = torch.device("cpu")
WORDS, LENGTH = (3, 4, 5), 2  # three words; a report of two is cut
CASES = {
    "plain": {},
    "limits": {"temperature": 1.7, "top_k": 3, "min_length": 1},
}
REWARDS = {(): 0.3, (3,): 1.0, (4,): -0.4, (5,): 0.2} | {
    pair: value for pair, value in zip(itertools.product(WORDS, repeat=2), (0.9, -1.1, 0.4, 2.0, 0.1, -0.6, 1.3, 0.7, -0.2))
}


class Tiny(nn.Module):
    """Logits from the last two words, the position and the image; float64, with dropout and marks that it would like to write."""

    padding, bos, eos, padding_ends, loss_weights = 0, 1, 2, True, {}

    def __init__(self, width: int = 6):
        super().__init__()
        torch.manual_seed(4)
        self.word, self.past = nn.Embedding(6, width), nn.Embedding(6, width)
        self.image, self.head, self.dropout = nn.Linear(2, width), nn.Linear(width, 6), nn.Dropout(0.5)
        self.double()
        with torch.no_grad():
            self.head.bias[0] += 1.0  # padding and BOS would be drawn often
            self.head.bias[1] += 1.0

    def needs(self, training):
        return {"images"}

    def prepare(self, batch):
        return batch

    def encode(self, batch):
        return {"image": self.image(batch.images)}

    def logits(self, memory, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        return self.head(self.dropout((self.word(tokens) + self.past(before) + memory["image"][:, None]).tanh()))

    def step(self, tokens, memory, cache):
        cache = cache or Cache()
        cache.tokens = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], 1)
        return self.logits(memory, cache.tokens)[:, -1:], cache


class Cache:
    tokens = None

    def keep(self, rows):
        self.tokens = self.tokens[rows]


BATCH = Batch(["s"], images=torch.tensor([[0.3, -0.8]], dtype=torch.float64), tokens=torch.tensor([[1, 3, 2, 0]]))


def next_words(system, prefix: tuple, settings: DecodingSettings) -> torch.Tensor:
    """Probabilities [6] after a prefix, by the definition: marks, least length, temperature, then the k best."""
    logits = system.logits(system.encode(BATCH), torch.tensor([[1, *prefix]]))[0, -1] / settings.temperature
    allowed = [2, *WORDS] if len(prefix) >= settings.min_length else list(WORDS)
    if settings.top_k:
        allowed = sorted(allowed, key=lambda word: -float(logits[word].detach()))[: settings.top_k]
    logits = torch.stack([logits[word] if word in allowed else logits.new_tensor(-math.inf) for word in range(6)])
    return logits.softmax(-1)


def enumerated(system, settings) -> dict:
    """{report: its probability}, with gradients."""
    found = {}
    for count in range(LENGTH + 1):
        for words in itertools.product(WORDS, repeat=count):
            marks = (*words, 2) if count < LENGTH else words
            steps = [next_words(system, words[:at], settings)[word] for at, word in enumerate(marks)]
            found[words] = torch.stack(steps).prod()
    return {words: chance for words, chance in found.items() if float(chance.detach())}


def objective_of(system, settings, baseline: str, samples: int) -> SelfCritical:
    made = SelfCritical(
        system,
        tokenizer=SimpleNamespace(decode=tuple),
        reward=lambda ids, texts: np.array([REWARDS[text] for text in texts]),
        cider=None,
        settings=settings,
        precision=Precision("float32", torch.device("cpu")),
        samples=samples,
        baseline=baseline,
        ce_weight=0,
    )
    return made


def gradient_of(system, value) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(system.parameters()))])


def both(case: str, baseline: str, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate's expectation, over all ways to draw K samples, and the gradient of the expected reward."""
    settings, system = settings_of(case), Tiny().eval()
    chances = enumerated(system, settings)
    exact = gradient_of(system, sum(chance * REWARDS[words] for words, chance in chances.items()))
    samples = 2 if baseline == "leave_one_out" else 1
    objective = objective_of(system, settings, baseline, samples)
    batch = objective.prepare(BATCH)
    memory = system.encode(BATCH)
    best = draw_reports(system, memory, settings, [["x"]], greedy=True)[0][1:] if baseline == "greedy" else []
    system.train()  # as the Trainer calls it
    torch.manual_seed(0)
    estimate = torch.zeros_like(exact)
    for drawn in itertools.product(chances, repeat=samples):
        reports = [(list(words), len(words) < LENGTH) for words in drawn]
        monkeypatch.setattr(objective, "draw", lambda *_, reports=reports, **__: [reports + best])
        loss = objective(batch)["rl"] * batch.words / samples  # a sample, in place of the references' words
        estimate -= math.prod(float(chances[words].detach()) for words in drawn) * gradient_of(system, loss)
    return estimate, exact


def settings_of(case: str) -> DecodingSettings:
    return DecodingSettings(max_length=LENGTH, sample=True, marks=False, **CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_the_estimate_is_the_enumerated_gradient(case, baseline, monkeypatch):
    estimate, exact = both(case, baseline, monkeypatch)
    assert exact.norm() > 0.1
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-6)


def without_end(system, reports):
    return report_tokens(system, [(words, False) for words, _ in reports])


def always_end(system, reports):
    return report_tokens(system, [(words, True) for words, _ in reports])


def with_itself(rewards, greedy=None):
    return rewards - rewards.mean(1, keepdim=True)


def by_deviation(rewards, greedy=None):
    return advantages(rewards, greedy) / (rewards.std(1, keepdim=True) + 1e-4)


@contextlib.contextmanager
def in_training_mode(system):
    yield


FAULTS = {
    "end mark left out": ("report_tokens", without_end),
    "end mark credited when cut": ("report_tokens", always_end),
    "group mean with the sample itself": ("advantages", with_itself),
    "divided by the group's deviation": ("advantages", by_deviation),
    "dropout": ("evaluating", in_training_mode),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault, monkeypatch):
    monkeypatch.setattr(self_critical, *FAULTS[fault])
    estimate, exact = both("plain", "leave_one_out", monkeypatch)
    assert (estimate - exact).norm() > 0.02 * exact.norm(), "the test could not see this fault"


# -- samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_samples_come_as_often_as_they_are_likely(case):
    """The draws have the enumerated distribution, whose logarithms are the log-probabilities; padding and BOS never come."""
    system, settings, count = Tiny().eval(), settings_of(case), 20_000
    chances = {words: float(chance.detach()) for words, chance in enumerated(system, settings).items()}
    assert sum(chances.values()) == pytest.approx(1)
    memory = system.encode(BATCH)
    drawn = [report for report in draw_reports(system, memory, settings, [[str(n) for n in range(count)]])[0]]
    assert all(ended == (len(words) < LENGTH) for words, ended in drawn)
    found = Counter(tuple(words) for words, _ in drawn)
    assert set(found) <= set(chances)
    for words, chance in chances.items():
        assert abs(found[words] / count - chance) < 5 * math.sqrt(chance * (1 - chance) / count), words
    reports = [(list(words), len(words) < LENGTH) for words in chances]
    tokens, counted = report_tokens(system, reports)
    everything = log_probabilities(system, {"image": memory["image"].expand(len(reports), -1)}, tokens, settings)
    found = of_words(everything, tokens, counted).sum(1).exp()
    torch.testing.assert_close(found.detach(), torch.tensor(list(chances.values()), dtype=torch.float64))


def test_a_sample_depends_on_study_epoch_and_number_alone():
    system, settings = Tiny().eval(), DecodingSettings(max_length=LENGTH, sample=True, marks=False)
    objective = objective_of(system, settings, "leave_one_out", 8)
    two = {"image": system.encode(BATCH)["image"].expand(2, -1)}
    first = objective.draw(two, ["a", "b"], greedy=False)
    assert first == objective.draw(two, ["a", "b"], greedy=False)
    assert [first[1]] == objective.draw(system.encode(BATCH), ["b"], greedy=False)
    assert len({tuple(words) for words, _ in first[0]}) > 2 and first[0] != first[1]
    objective.epoch = 1
    assert objective.draw(two, ["a", "b"], greedy=False) != first


def test_the_greedy_report_stands_beside_the_samples():
    system, settings = Tiny().eval(), DecodingSettings(max_length=LENGTH, sample=True, marks=False)
    chances, best = {}, ()
    while len(best) < LENGTH:
        chances = next_words(system, best, settings)
        if int(chances.argmax()) == 2:
            break
        best += (int(chances.argmax()),)
    memory, names = system.encode(BATCH), [["a", "b"]]
    reports = draw_reports(system, memory, settings, names, greedy=True)[0]
    assert reports[-1] == (list(best), len(best) < LENGTH)
    assert [reports[:-1]] == draw_reports(system, memory, settings, names)


# -- real systems ----------------------------------------------------------------------------------------------------------


def run_of(name: str, mini, *more):
    """Args, data, tokenizer and a system of a tiny run whose diagnoses come from a table."""
    labels = str(mini / "data" / "labels.csv")
    args = read(name, mini, *(("--diagnosis_path", labels) if name == "xpronet" else ()), "--rl_epochs", "1",
                "--max_gen_length", "12", *more)  # fmt: skip
    vars(args).update({flag: 0.0 for flag in vars(args) if flag.endswith("dropout")})
    data, tokenizer, system = prepare(args)
    if "diagnosis" in data.tables:  # as main_train.py asks for it: of training studies too
        data.tables["diagnosis"] = data.diagnosis
    return args, data, tokenizer, system


def trainer_of(args, data, tokenizer, system, folder, device=CPU, batches=None, validate=None, **facts):
    """A Trainer of the self-critical stage, with the objective of the flags; its reward differs between any two texts."""
    reports = {study.id: study.report for split in ("train", "val") for study in data.studies[split]}
    texts = R2GenReferences(data.corpora["train"], rule=args.cleaning)
    objective = objective_of_flags(args, system, tokenizer, Precision(args.precision, device), corpus=data.corpora["train"],
                                   reports=reports, texts=texts, device=device)  # fmt: skip
    dataset = make_dataset(args, data, "train", objective.needs(), tokenizer, training=True)
    loader = make_loader(dataset, batch_size=args.batch_size, num_workers=0, shuffle=True)
    log = SimpleNamespace(rows=[], say=print, write=lambda what, **row: log.rows.append({"event": what, **row}))
    made = Trainer(system, batches(loader) if batches else loader, validate, args=args, device=device, folder=folder, log=log,
                   carried={"tokenizer": tokenizer.state_dict(), **facts}, objective=objective)  # fmt: skip
    objective.freeze_start()
    made.real_reward = objective.reward
    objective.reward = lambda ids, texts: np.array([zlib.crc32(repr(pair).encode()) / 2**32 for pair in zip(ids, texts)])
    return made


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_reference_is_read(name, mini, tmp_path):
    """Without its own losses a system has the fields of evaluation, and of the reference its length alone."""
    args, data, tokenizer, system = run_of(name, mini, "--ce_weight", "0")
    trainer = trainer_of(args, data, tokenizer, system, tmp_path)
    trainer.system.train()
    batch = next(iter(trainer.loader))
    assert batch.labels is None and batch.attributes is None
    values = trainer.update([batch])
    assert values["rl"] and values["grad_norm"] > 0 and "ce" not in values
    assert system.training


def test_parts_of_a_step_make_the_whole(mini, tmp_path):
    """--accumulate, and a fill-in that does not count; the greedy baseline and the divergence beside it."""
    found = []
    for parts in (1, 2):
        args, data, tokenizer, system = run_of("r2gencmn", mini, "--extractor_freeze", "norm", "--rl_baseline", "greedy",
                                               "--kl_weight", "0.5", "--batch_size", "4")  # fmt: skip
        trainer = trainer_of(args, data, tokenizer, system, tmp_path)
        with torch.no_grad():
            system.head.weight.mul_(1.5)  # away from the start
        dataset, rows = trainer.loader.dataset, [[0, 1, 2, 3]] if parts == 1 else [[0], [1, 2, 3], [~0]]
        found.append(trainer.update([collate([dataset[row] for row in part]) for part in rows]))
    assert found[0]["kl"] > 0 and found[0]["zero_advantages"] < 1
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_two_epochs_and_two_more_equal_four(mini, tmp_path):
    """To the bit, with dropout, a running F1 in the reward and its deviations from the start."""
    states = []
    for name, halves in (("four", [4]), ("halves", [2, 4])):
        for epochs in halves:
            args, data, tokenizer, system = run_of("r2gencmn", mini, "--rl_reward", "cider=1 ce13_corpus=1", "--dropout", "0.2")
            args.dropout, args.epochs, args.monitor_metric = 0.2, epochs, "r2gen/CIDEr"
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            trainer = trainer_of(args, data, tokenizer, system, folder)
            trainer.objective.reward = trainer.real_reward
            probe = make_dataset(args, data, "val", system.needs(training=False), tokenizer, training=False)
            val = make_loader(probe, batch_size=3, num_workers=0, shuffle=False)
            ids = {study.id for study in data.studies["val"]}

            def validate(system, trainer=trainer, val=val, ids=ids):
                trainer.objective.watch(trainer.objective.survey(val, ids, torch.device("cpu")), trainer.log)
                return {"r2gen/CIDEr": float(trainer.epoch)}

            trainer.validate = validate
            if (folder / "last.pt").is_file():
                trainer.resume(folder / "last.pt")
            trainer.fit()
        states.append(load_pickle(folder / "last.pt"))
    first, second = states
    assert first["epoch"] == second["epoch"] == 4 and first["objective"] == second["objective"]
    assert first["objective"]["reward"]["f1"] != [0.0] and all(first["objective"]["reward"]["deviations"].values())
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name


def test_autocast_keeps_the_gradient(mini, tmp_path):
    """Weights that were cast while samples were drawn, without gradients, are not taken for the pass that has them."""
    norms = {}
    for precision in ("float32", "bf16"):
        args, data, tokenizer, system = run_of("cvt2distilgpt2", mini, "--precision", precision, "--ce_weight", "0")
        trainer = trainer_of(args, data, tokenizer, system, tmp_path)
        trainer.system.train()
        trainer.update([next(iter(trainer.loader))])
        norms[precision] = {name: p.grad.norm() for name, p in system.named_parameters() if p.grad is not None}
    assert norms["float32"].keys() == norms["bf16"].keys() and all(norm > 0 for norm in norms["bf16"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "baseline"), list(zip(NAMES, itertools.cycle(["leave_one_out", "greedy"]))))
def test_a_gpu_computes_the_same_and_seldom_waits(name, baseline, mini, tmp_path, monkeypatch):
    """A step waits for every eight words, for the samples and for its losses; the losses are the CPU's."""
    monkeypatch.setitem(LOOK_EVERY, "cpu", 8)
    rows, steps = {}, 1
    for device in (torch.device("cpu"), CUDA):
        args, data, tokenizer, system = run_of(name, mini, "--rl_baseline", baseline, "--rl_samples", "2")
        args.log_every = 1
        system.double()
        with pretended_gpu() if device == CUDA else contextlib.nullcontext() as gpu:
            trainer = trainer_of(args, data, tokenizer, system, tmp_path, device, lambda loader: Batches(loader, steps))
            if gpu:
                gpu.waits.clear()
            trainer.train_epoch()
        rows[device.type] = [row for row in trainer.log.rows if row["event"] == "step"]
    for ours, theirs in zip(rows["cuda"], rows["cpu"]):
        for value in ("rl", "loss", "reward", "grad_norm", "zero_advantages"):
            assert ours[value] == pytest.approx(theirs[value], rel=1e-4, abs=1e-9), value
    waits = sum(gpu.waits.values())
    print(f"{name}, {baseline}: {waits / steps:.2f} waits per step {dict(gpu.waits)}")
    assert waits <= steps * (math.ceil(args.max_gen_length / 8) + 2 + 2 * BESIDES.get(name, 0)), dict(gpu.waits)


@pytest.mark.slow
def test_two_processes_are_one(mini, tmp_path):
    start = [*inputs(mini), "--model", "r2gencmn", "--dropout", "0", "--feature_dropout", "0", "--extractor_freeze", "norm",
             "--log_every", "1", "--max_gen_length", "12"]  # fmt: skip
    start = [word for word in start if "base.pt" not in word and word not in ("--knowledge_path", "--oracle_labels")]
    one = {"OMP_NUM_THREADS": "1"}
    run("main_train.py", *start, "--epochs", "1", "--save_dir", tmp_path / "ce", env=one)
    more = ["--load", tmp_path / "ce" / "best.pt", "--epochs", "0", "--rl_epochs", "1"]
    run("main_train.py", *start, *more, "--save_dir", tmp_path / "one", env=one)
    run(*TORCHRUN, "main_train.py", *start, *more, "--save_dir", tmp_path / "two", env=one)
    found = [[row for line in open(tmp_path / name / "log.jsonl") if (row := json.loads(line))["event"] == "step"]
             for name in ("one", "two")]  # fmt: skip
    assert len(found[0]) == len(found[1]) > 1
    for first, second in zip(*found):
        for name in ("rl", "ce", "loss", "reward"):
            assert second[name] == pytest.approx(first[name], rel=1e-5), name
