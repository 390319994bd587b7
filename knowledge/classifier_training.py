"""Training of picture classifiers, shared by train_diagnosisbot.py and train_adm_classifier.py.

The classifier learns the labels of the training reports from the first picture of each training study, as it will see
it later. The validation split chooses the epoch and one threshold per label; the split of --eval_split is only measured.
Letters: N pictures, K labels, S side in pixels, R bootstrap rounds.
"""

import argparse
import hashlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional
from tqdm import tqdm

from data.pictures import MEAN, STD, open_picture, square
from data.studies import SPLITS, Study, card_text, check_studies, data_card, read_annotation, without_broken
from modules import flags
from modules.adm import SIDE
from modules.artefact import (
    ANOTHER_WAY,
    differences,
    make_manifest,
    manifest_path,
    read_manifest,
    sha256,
    write_atomic,
    write_json,
)
from modules.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.errors import InputError, Problems
from modules.labels import CHEXPERT_14, UNCERTAIN_VALUES, read_label_table
from modules.precision import Precision, choose_device, seed_everything
from modules.safe_pickle import load_pickle
from modules.visual_extractor import weights_problem

FORMAT = 1


# ---------------------------------------------------------------- flags


@dataclass(frozen=True)
class Job:
    """What differs between the two commands: name of the classifier, of the command, of the file; defaults.

    defaults: flag values. presets: flag values by --dataset_name, in place of the defaults.
    """

    what: str
    command: str
    file: str
    backbones: tuple[str, ...]
    defaults: dict
    presets: dict[str, dict]


def add_shared(parser, group: str, names: tuple[str, ...]) -> None:
    """Add flags of the project's one table (modules/flags.py) to a knowledge command, with their kind and help."""
    rows = {flag.name: flag for flag in flags.FLAGS}
    room = parser.add_argument_group(group)
    for name in names:
        flags.add_flag(room, rows[name])


def with_defaults(typed: dict, names: tuple[str, ...], own: dict, presets: dict[str, dict]) -> argparse.Namespace:
    """Typed flags over the data set's preset over own defaults over those of the table; paths are filled in."""
    table = {flag.name: flag.default for flag in flags.FLAGS if flag.name in names}
    values = {**table, **own}
    dataset = typed.get("dataset_name", values["dataset_name"])
    args = argparse.Namespace(**{**values, **presets.get(dataset, {}), **typed})
    args.data_dir = args.data_dir or f"data/{dataset}"
    args.ann_path = args.ann_path or str(Path(args.data_dir) / "annotation.json")
    args.image_dir = args.image_dir or str(Path(args.data_dir) / "images")
    args.knowledge_dir = args.knowledge_dir or f"knowledge/{dataset}"
    return args


def report_cleaning(dataset: str) -> str:
    """The cleaning rule that tells an empty report of a data set."""
    return "mimic_cxr" if dataset == "mimic_cxr" else "iu_xray"


SHARED = {
    "data": ("dataset_name", "data_dir", "ann_path", "image_dir", "skip_broken", "picture_check"),
    "run": ("knowledge_dir", "seed", "device", "precision", "num_workers", "weights_dir", "offline", "dry_run"),
}


def parse(argv: list[str] | None, job: Job) -> argparse.Namespace:
    """The flags of a training command. Unknown ones are answered with the nearest names (exit code 2)."""
    parser = flags.Parser(
        prog=f"python -m {job.command}", argument_default=argparse.SUPPRESS, description=f"Train the {job.what}."
    )
    for group, names in SHARED.items():
        add_shared(parser, group, names)
    new = parser.add_argument_group(job.what)
    default = job.defaults
    rows = (
        ("labels", str, "CSV with the labels of the reports, by study id [<data_dir>/labels.csv]"),
        ("out", str, f"file to write [<knowledge_dir>/{job.file}]"),
        ("backbone_weights", str, "start: imagenet, none (random, said in a warning), or a weight file [imagenet]"),
        ("image_size", flags.positive_int, f"side of the picture in pixels [{default['image_size']}]"),
        ("epochs", flags.positive_int, f"passes over the training studies [{default['epochs']}]"),
        ("batch_size", flags.positive_int, f"pictures per step [{default['batch_size']}]"),
        ("lr", flags.positive_float, f"highest learning rate: a tenth of the run warms up, a cosine falls [{default['lr']}]"),
        ("weight_decay", flags.not_negative, f"AdamW's decoupled weight decay [{default['weight_decay']}]"),
        ("pos_weight_cap", flags.positive_float, "positives weigh sqrt(negatives / positives), at most this; 1 = no weights [4]"),
        ("bootstrap", flags.natural, "rounds for the 95%% intervals, 0 = none [1000]"),
        ("cache_gb", flags.not_negative, "keep decoded pictures in memory up to this many GB, else read them each epoch [4]"),
    )
    for name, kind, text in rows:
        new.add_argument(f"--{name}", type=kind, help=text)
    choices = (
        ("backbone", job.backbones, f"network [{default['backbone']}]"),
        ("augment", ("light", "none"), "training pictures: light = small turns, shifts and brightness, no flips [light]"),
        ("uncertain", tuple(UNCERTAIN_VALUES), "what -1 in --labels counts as; ignore: left out for that study [positive]"),
        ("eval_split", SPLITS, "split to measure at the end; never used for choosing [val]"),
    )
    for name, names, text in choices:
        new.add_argument(f"--{name}", choices=names, help=text)
    new.add_argument("--overwrite", action="store_true", help="train anew where --out already stands")
    typed = vars(parser.parse_args(argv))
    names = tuple(name for group in SHARED.values() for name in group)
    own = {"labels": None, "out": None, "overwrite": False, "uncertain": "positive", "backbone_weights": "imagenet",
           "augment": "light", "pos_weight_cap": 4.0, "eval_split": "val", "bootstrap": 1000, "cache_gb": 4.0}  # fmt: skip
    args = with_defaults(typed, names, own | default, job.presets)
    args.labels = args.labels or str(Path(args.data_dir) / "labels.csv")
    args.out = args.out or str(Path(args.knowledge_dir) / job.file)
    return args


# ---------------------------------------------------------------- pictures


class FirstPictures(Dataset):
    """The first pictures of studies, uint8 [3, S, S]: what diagnosis_tensor(square(picture, 300), S) holds as floats."""

    def __init__(self, studies: list[Study], image_dir: str | Path, side: int) -> None:
        self.studies, self.image_dir, self.side = studies, str(image_dir), side
        self.held: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, place: int) -> torch.Tensor:
        picture = square(open_picture(f"{self.image_dir}/{self.studies[place].pictures[0]}"), SIDE)
        picture = functional.center_crop(functional.resize(picture, self.side), [self.side, self.side])
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def bytes(self) -> int:
        """Memory that holding all of them takes."""
        return len(self) * 3 * self.side * self.side

    def hold(self, threads: int) -> None:
        """Decode all pictures now and keep them in memory."""
        held = torch.empty(len(self), 3, self.side, self.side, dtype=torch.uint8)

        def put(place: int) -> None:
            held[place] = self[place]

        with ThreadPoolExecutor(threads) as pool:
            list(tqdm(pool.map(put, range(len(self))), total=len(self), desc="reading pictures", leave=False, mininterval=1))
        self.held = held

    def batches(self, groups: list[np.ndarray], num_workers: int):
        """uint8 [n, 3, S, S] for each group of places, from memory or from disk."""
        if self.held is not None:
            return (self.held[torch.from_numpy(group)] for group in groups)
        return DataLoader(self, batch_sampler=[group.tolist() for group in groups], num_workers=num_workers)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 3, S, S] -> float, ImageNet mean and standard deviation."""
    return functional.normalize(pixels.float().div_(255), MEAN, STD)


def augmented(pictures: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Small turns (8 degrees), zooms (8 %), shifts (5 %), brightness and contrast (20 %); no flips: left stays left.

    pictures: normalised float [n, 3, S, S]. draws: [n, 6] in -1..1, one row per picture. What comes in from outside is
    the border repeated.
    """
    turn, zoom = draws[:, 0] * (8 * torch.pi / 180), 1 + 0.08 * draws[:, 1]
    cosine, sine = turn.cos() * zoom, turn.sin() * zoom
    across, down = 0.1 * draws[:, 2], 0.1 * draws[:, 3]  # the picture is 2 wide in these units
    grid = torch.stack([torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)], 1)
    grid = F.affine_grid(grid, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    level = moved.mean((1, 2, 3), keepdim=True)
    factor, offset = 1 + 0.2 * draws[:, 4], 0.2 * draws[:, 5]
    return (moved - level) * factor[:, None, None, None] + level + offset[:, None, None, None]


# ---------------------------------------------------------------- metrics


def ranking(truth: np.ndarray, score: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one label; equal scores count as equal, whatever their order.

    truth: bool [N]. score: [N], larger is more positive. counts: [R, N], how often each picture stands in each of R
    samples (a bootstrap); left out: once. Returns two arrays [R], NaN where a sample has only one class.
    AUROC is the share of pairs (positive, negative) in the right order, ties half; AP the mean over the positives of
    the precision at their score.
    """
    truth, score = np.asarray(truth, bool), np.asarray(score, np.float64)
    counts = np.ones((1, len(truth))) if counts is None else np.asarray(counts, np.float64)
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(score[order][1:] != score[order][:-1], True))  # the end of each run of equal scores
    hits = np.cumsum(counts[:, order] * truth[order], 1)[:, last]
    false = np.cumsum(counts[:, order] * ~truth[order], 1)[:, last]
    new_hits, new_false = (np.diff(array, prepend=0, axis=1) for array in (hits, false))
    positives, negatives = hits[:, -1], false[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (new_false * (hits - new_hits / 2)).sum(1) / (positives * negatives)
        precision = (new_hits * hits / np.maximum(hits + false, 1)).sum(1) / positives
    both = (positives > 0) & (negatives > 0)
    return np.where(both, auroc, np.nan), np.where(both, precision, np.nan)


def f1_of(truth: np.ndarray, said: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """F1 of one label in each of R samples (see ranking); 0 where nothing was there and nothing said."""
    counts = np.ones((1, len(truth))) if counts is None else counts
    hits, wrong = counts @ (truth & said), counts @ (truth ^ said)
    return 2 * hits / np.maximum(2 * hits + wrong, 1)


def macro_auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean AUROC over the labels with both classes. truth [N, K] of 1, 0, -1 (left out); scores [N, K]; NaN: no label."""
    values = [ranking(t[t >= 0] == 1, s[t >= 0])[0][0] for t, s in zip(truth.T, scores.T)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def measure(truth: np.ndarray, chances: np.ndarray, thresholds, labels, *, rounds: int = 1000, seed: int = 0) -> dict:
    """AUROC, average precision and F1 with 95% bootstrap intervals, per label and as a mean over labels.

    truth: int [N, K] of 1, 0, -1 (left out). chances: float [N, K]. thresholds: K. The bootstrap draws studies.
    Returns {"studies", "macro": {metric: [value, low, high]}, "labels": {label: {"positives", "threshold", metrics}}};
    None where a label has one class only; the means leave such labels out and name how many they hold.
    """
    draw = np.random.default_rng(seed)
    sampled = draw.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=rounds)
    counts = np.concatenate([np.ones((1, len(truth))), sampled])
    result: dict = {"studies": len(truth), "bootstrap": rounds, "macro": {}, "labels": {}}
    rows = {"auroc": [], "ap": [], "f1": []}
    for k, label in enumerate(labels):
        known = truth[:, k] >= 0
        real, said = truth[known, k] == 1, chances[known, k] > thresholds[k]
        facts: dict = {"positives": int(real.sum()), "said": int(said.sum()), "threshold": float(thresholds[k])}
        if real.any() and not real.all():
            values = dict(zip(("auroc", "ap"), ranking(real, chances[known, k], counts[:, known])))
            values["f1"] = f1_of(real, said, counts[:, known])
            for name, value in values.items():
                rows[name].append(value)
                facts[name] = _interval(value)
        else:
            facts |= dict.fromkeys(rows)
        result["labels"][label] = facts
    result["macro"] = {name: _interval(_mean(value)) if value else None for name, value in rows.items()}
    result["macro"]["labels"] = len(rows["auroc"])
    return result


def _mean(rows: list[np.ndarray]) -> np.ndarray:
    """Mean over the rows that have a value, [R]; NaN where none has."""
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0).sum(0) / known.sum(0)


def _interval(values: np.ndarray) -> list[float]:
    """[value, low, high] of a value followed by its bootstrap copies."""
    copies = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(copies, (0.025, 0.975)) if len(copies) else (values[0], values[0])
    return [round(float(value), 4) for value in (values[0], low, high)]


def metrics_text(result: dict) -> str:
    """The table of `measure` for people."""
    cell = lambda value: f"{value[0]:.3f} ({value[1]:.3f}-{value[2]:.3f})" if value else "-"  # noqa: E731
    head = f"{'label':27s} {'positives':>9s} {'said':>6s} {'threshold':>9s}  {'AUROC':19s}  {'average precision':19s}  F1"
    lines = [head]
    for label, facts in result["labels"].items():
        start = f"{label:27s} {facts['positives']:9d} {facts['said']:6d} {facts['threshold']:9.3f}"
        lines.append(f"{start}  {cell(facts['auroc']):19s}  {cell(facts['ap']):19s}  {cell(facts['f1'])}")
    macro = result["macro"]
    name = f"mean of {macro['labels']} labels"
    lines.append(f"{name:54s}  {cell(macro['auroc']):19s}  {cell(macro['ap']):19s}  {cell(macro['f1'])}")
    return "\n".join(lines)


def choose_thresholds(truth: np.ndarray, chances: np.ndarray, prevalence, labels) -> tuple[list[float], dict[str, str]]:
    """One threshold per label that maximises F1 on validation, and notes on labels where that could not be done.

    truth: int [N, K] of 1, 0, -1; chances: float [N, K]; prevalence: share of positives in training, K. Of all values
    with the best F1 the one nearest to half that F1 is taken, which is the best threshold of exact probabilities
    (Lipton et al. 2014), but no nearer (in logits) to a score than a quarter of the gap between two scores.
    Without positives in validation: the share of positives in training is kept (a quantile of the validation
    scores); without positives in training: 1, so the label is never said.
    """
    thresholds, notes = [], {}
    for k, label in enumerate(labels):
        known = truth[:, k] >= 0
        real, score = truth[known, k] == 1, np.clip(chances[known, k].astype(np.float64), 1e-7, 1 - 1e-7)
        if prevalence[k] == 0:
            thresholds.append(1.0)
            notes[label] = "no positive in training: never said (threshold 1)"
        elif not real.any():
            thresholds.append(float(np.quantile(score, 1 - prevalence[k])) if len(score) else 0.5)
            notes[label] = f"no positive in validation: threshold keeps training's share of {prevalence[k]:.1%}"
        else:
            thresholds.append(_best_cut(real, np.log(score / (1 - score))))
    return thresholds, notes


def _best_cut(real: np.ndarray, logits: np.ndarray) -> float:
    """Probability above which a label is said; see choose_thresholds. real: bool [N], logits float [N]."""
    levels = np.unique(logits)
    below, missed = (np.searchsorted(np.sort(some), levels) for some in (logits, logits[real]))
    hits = real.sum() - missed  # when everything from a level up is said
    scores = 2 * hits / (len(real) - below + real.sum())
    goal = np.log(scores.max() / 2 / (1 - scores.max() / 2))
    gaps = np.diff(levels, prepend=levels[0] - 4)
    cuts = np.clip(goal, levels - 0.75 * gaps, levels - 0.25 * gaps)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    cut = cuts[best[np.argmin(abs(cuts[best] - goal))]]
    return float(1 / (1 + np.exp(-cut)))


# ---------------------------------------------------------------- training


@dataclass
class ClassifierData:
    """What a training run reads: studies, labels int [N, K] and pictures by split."""

    studies: dict[str, list[Study]]
    labels: dict[str, np.ndarray]
    pictures: dict[str, FirstPictures]
    inputs: dict


def open_classifier_data(args, job: Job) -> ClassifierData:
    """Read annotation and labels, look at every picture; InputError lists all that is wrong.

    Reads the training and validation split, and the test split only for --eval_split test.
    """
    problems = Problems()
    splits = tuple(split for split in SPLITS if split in ("train", "val", args.eval_split))
    listed, table = {}, {}
    try:
        listed = {split: rows for split, rows in read_annotation(args.ann_path).items() if split in splits}
    except InputError as error:
        problems.add(str(error))
    try:
        table = read_label_table(args.labels, uncertain=args.uncertain)
    except InputError as error:
        problems.add(f"--labels: {error}")
    weights = weights_problem(args.backbone, args.backbone_weights, args.weights_dir, args.offline)
    if weights:
        names = {"--extractor_weights": "--backbone_weights", "--visual_extractor": "--backbone"}
        for theirs, ours in names.items():
            weights = weights.replace(theirs, ours)
        problems.add(weights)
    broken, studies = {}, listed
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}") and listed:
        settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": 1, "depth": args.picture_check}
        broken = check_studies(listed, args.image_dir, **settings)
        studies = without_broken(listed, broken, skip=args.skip_broken, problems=problems)
    for split, rows in studies.items():
        problems.check(bool(rows), f"{args.ann_path} has no {split} studies")
    missing = [study.id for rows in studies.values() for study in rows if table and study.id not in table]
    total = sum(map(len, studies.values()))
    problems.check(not missing, f"--labels {args.labels} lacks {len(missing)} of {total} studies: {_some(missing)}")
    problems.stop_if_any()
    print(card_text(data_card(studies, broken, name=args.dataset_name, ann_path=args.ann_path, max_views=1)))
    labels = {split: np.array([table[study.id] for study in rows]) for split, rows in studies.items()}
    for split in ("train", "val"):
        both = ((labels[split] == 1).any(0) & (labels[split] == 0).any(0)).any()
        problems.check(both, f"--labels {args.labels}: no label has positives and negatives in the {split} split")
    problems.stop_if_any()
    pictures = {split: FirstPictures(rows, args.image_dir, args.image_size) for split, rows in studies.items()}
    named = {name: getattr(args, name) for name in INPUT_FLAGS}
    if Path(args.backbone_weights).is_file():
        named["backbone_weights"] = sha256(args.backbone_weights)
    used = {split: _picture_hash(studies[split], args.image_dir) for split in ("train", "val")}
    chosen = [[study.id, table[study.id]] for split in ("train", "val") for study in studies[split]]
    facts = {"format": FORMAT, "what": job.what, "labels": list(CHEXPERT_14), **named, "pictures_sha256": used}
    inputs = {**facts, "label_values_sha256": hashlib.sha256(repr(chosen).encode()).hexdigest()}
    return ClassifierData(studies, labels, pictures, inputs)


# what a training result depends on, beside pictures and labels; device and caching are left out on purpose
INPUT_FLAGS = ("dataset_name", "uncertain", "backbone", "backbone_weights", "image_size", "augment", "epochs", "batch_size",
               "lr", "weight_decay", "pos_weight_cap", "precision", "seed")  # fmt: skip


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _picture_hash(studies: list[Study], image_dir) -> str:
    """Hash of ids, first pictures and their sizes in bytes."""
    rows = [f"{s.id} {s.pictures[0]} {os.path.getsize(f'{image_dir}/{s.pictures[0]}')}" for s in studies]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def rate(done: float) -> float:
    """Share of the highest learning rate at `done` in 0..1: a tenth of warm-up, then a cosine down to 0."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * float(np.cos(np.pi * (done - 0.1) / 0.9))


class ClassifierTrainer:
    """Trains a DiagnosisBot. What happens in an epoch depends on (seed, epoch) alone, so a resumed run equals a whole one.

    bot: DiagnosisBot; its outputs are probabilities again once fit() has taken the positives' weights out of the bias.
    partial: path of the training state that is written after each epoch and removed by the caller at the end.
    """

    def __init__(self, bot: DiagnosisBot, data: ClassifierData, *, args, device: torch.device, partial: Path) -> None:
        self.bot, self.data, self.args, self.device, self.partial = bot.to(device), data, args, device, partial
        if bot.backbone != "swin_t":  # convolutions are faster so, on a CPU by half
            self.bot.classifier.to(memory_format=torch.channels_last)
        self.precision = Precision(args.precision, device)
        truth = data.labels["train"]
        positives, negatives = (truth == 1).sum(0), (truth == 0).sum(0)
        self.prevalence = positives / np.maximum(positives + negatives, 1)
        weight = np.sqrt(negatives / np.maximum(positives, 1))
        self.pos_weight = torch.tensor(weight.clip(1, max(1, args.pos_weight_cap)), dtype=torch.float32, device=device)
        odds = torch.tensor((positives + 0.5) / (negatives + 0.5), dtype=torch.float32, device=device)
        head = _head(bot)
        with torch.no_grad():
            head.weight.normal_(0, 0.01)
            head.bias.copy_((odds * self.pos_weight).log())
        named = [(p.dim() < 2, p) for p in bot.classifier.parameters()]
        groups = [{"params": [p for flat, p in named if not flat]},
                  {"params": [p for flat, p in named if flat], "weight_decay": 0.0}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)
        self.epoch, self.best, self.history = 0, None, []

    def fit(self) -> dict:
        """Train to the last epoch; the bot then holds the best epoch's weights, its thresholds and is on the CPU.

        Returns the facts for the manifest: history of the epochs, best epoch, notes on thresholds.
        """
        self._resume()
        while self.epoch < self.args.epochs:
            start = time.perf_counter()
            loss = self.train_epoch()
            self.epoch += 1
            auroc, val_loss = self.validate()
            row = {"epoch": self.epoch, "train_loss": loss, "val_loss": val_loss, "val_macro_auroc": auroc}
            row["seconds"] = round(time.perf_counter() - start, 2)
            self.history.append(row)
            won = self.best is None or (auroc, -val_loss) > (self.best["auroc"], -self.best["loss"])
            if won:
                weights = {k: v.detach().cpu().clone() for k, v in self.bot.classifier.net.state_dict().items()}
                self.best = {"auroc": auroc, "loss": val_loss, "epoch": self.epoch, "weights": weights}
            print(f"epoch {self.epoch:3d}/{self.args.epochs}  loss {loss:.4f}  val loss {val_loss:.4f}  "
                  f"val macro AUROC {auroc:.4f}{' *' if won else '  '}  {row['seconds']:.1f} s", flush=True)  # fmt: skip
            self._save()
        self.bot.classifier.net.load_state_dict(self.best["weights"])
        with torch.no_grad():  # weighted positives raise the odds by their weight: take it back
            _head(self.bot).bias.sub_(self.pos_weight.log())
        chances = 1 / (1 + np.exp(-self.logits("val").astype(np.float64)))
        thresholds, notes = choose_thresholds(self.data.labels["val"], chances, self.prevalence, self.bot.labels)
        self.bot.thresholds = torch.tensor(thresholds, dtype=torch.float32)
        self.bot = self.bot.cpu().to(memory_format=torch.contiguous_format).eval()
        facts = {"history": self.history, "best_epoch": self.best["epoch"], "val_macro_auroc": self.best["auroc"]}
        return {**facts, "thresholds": dict(zip(self.bot.labels, thresholds)), "threshold_notes": notes}

    def train_epoch(self) -> float:
        """One pass over the training pictures; returns the mean loss."""
        args, pictures, truth = self.args, self.data.pictures["train"], torch.from_numpy(self.data.labels["train"])
        torch.manual_seed(args.seed * 100_003 + self.epoch)  # dropout
        draw = np.random.default_rng((args.seed, self.epoch))
        order, count = draw.permutation(len(pictures)), -(-len(pictures) // args.batch_size)
        draws = torch.from_numpy(draw.uniform(-1, 1, (len(pictures), 6)).astype(np.float32))
        groups = np.array_split(order, count)  # sizes differ by one at most: no batch of one picture at the end
        self.bot.train()
        total = 0.0
        batches = pictures.batches(groups, args.num_workers)
        bar = tqdm(batches, total=count, desc=f"epoch {self.epoch + 1}", leave=False, mininterval=1)
        for step, (group, pixels) in enumerate(zip(groups, bar)):
            shapes = normalised(pixels.to(self.device))
            if args.augment == "light":
                shapes = augmented(shapes, draws[group].to(self.device))
            for part in self.optimizer.param_groups:
                part["lr"] = args.lr * rate((self.epoch * count + step + 1) / (args.epochs * count))
            target = truth[group].to(self.device)
            with self.precision.region():
                logits = self.bot.classifier(shapes)
            loss = self.loss(logits.float(), target, self.pos_weight)
            if not torch.isfinite(loss):
                names = ", ".join(pictures.studies[place].id for place in group)
                raise InputError(f"the loss is not finite at epoch {self.epoch + 1}, studies {names}; lower --lr {args.lr}")
            self.optimizer.zero_grad(set_to_none=True)
            self.precision.scaler.scale(loss).backward()
            self.precision.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.bot.classifier.parameters(), 5.0)
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            total += loss.item() * len(group)
        return total / len(pictures)

    @staticmethod
    def loss(logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy, mean over the labels that are known (target 1 or 0; -1 is left out)."""
        known = (target >= 0).float()
        every = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), pos_weight=pos_weight, reduction="none")
        return (every * known).sum() / known.sum().clamp(min=1)

    def logits(self, split: str) -> np.ndarray:
        """float32 [N, K] of a split's pictures as they are."""
        settings = {"device": self.device, "batch_size": self.args.batch_size, "num_workers": self.args.num_workers}
        return predict(self.bot, self.data.pictures[split], precision=self.precision, **settings)

    def validate(self) -> tuple[float, float]:
        """Macro AUROC and (weighted) loss on the validation split."""
        logits = self.logits("val")
        truth = self.data.labels["val"]
        loss = self.loss(torch.from_numpy(logits), torch.from_numpy(truth), self.pos_weight.cpu())
        return macro_auroc(truth, logits), loss.item()

    def _save(self) -> None:
        state = {"inputs": self.data.inputs, "epoch": self.epoch, "history": self.history, "best": self.best}
        state |= {"net": self.bot.classifier.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["scaler"] = self.precision.scaler.state_dict()
        write_atomic(self.partial, lambda path: torch.save(state, path))

    def _resume(self) -> None:
        if not self.partial.is_file():
            return
        try:
            state = load_pickle(self.partial)
            changed = differences(state["inputs"], self.data.inputs)
        except (InputError, KeyError, TypeError) as error:
            print(f"{self.partial} cannot be continued ({error}): training starts anew")
            return
        if changed:
            print(f"{self.partial} belongs to another run ({'; '.join(changed)}): training starts anew")
            return
        self.bot.classifier.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]
        print(f"continuing {self.partial} after epoch {self.epoch} of {self.args.epochs}")


def _head(bot: DiagnosisBot) -> torch.nn.Linear:
    """The last Linear of a classifier."""
    return bot.classifier.net.head if bot.backbone == "swin_t" else bot.classifier.net.fc


@torch.no_grad()
def predict(bot: DiagnosisBot, pictures: FirstPictures, *, device, precision, batch_size=32, num_workers=0) -> np.ndarray:
    """Logits float32 [N, K] of pictures that are not augmented. The bot is left in evaluation mode."""
    bot.eval()
    groups = np.array_split(np.arange(len(pictures)), -(-len(pictures) // batch_size))
    rows = []
    for pixels in pictures.batches(groups, num_workers):
        with precision.region():
            rows.append(bot.classifier(normalised(pixels.to(device))).float().cpu())
    return torch.cat(rows).numpy()


# ---------------------------------------------------------------- the command


def run(argv: list[str] | None, job: Job) -> None:
    """Train (or keep) the classifier of `job` and measure it on --eval_split; see the heads of the two commands."""
    args = parse(argv, job)
    device, out = choose_device(args.device), Path(args.out)
    data = open_classifier_data(args, job)
    if args.dry_run:
        print(f"dry run: {job.what} {args.backbone} at {args.image_size} px would be trained on {device} and written to {out}")
        return
    kept = not args.overwrite and already_there(out, data.inputs)
    scores = out.with_name(f"{out.stem}.{args.eval_split}.json")
    if kept and _measured(scores, out, args, data):
        print(f"{out}: kept, it was trained from these inputs; its {args.eval_split} figures are in {scores}")
        return
    used = [args.eval_split] if kept else list(data.pictures)
    if sum(data.pictures[split].bytes() for split in used) <= args.cache_gb * 2**30:
        for split in used:
            data.pictures[split].hold(threads=min(8, os.cpu_count() or 1))
    if kept:
        print(f"{out}: kept, it was trained from these inputs")
    else:
        train(args, job, data, device, out)
    evaluate(args, job, data, device, out, scores)


def partial_of(out: Path) -> Path:
    """Where the training state of an unfinished `out` lies."""
    return out.with_name(f"{out.name}.partial.pt")


def already_there(out: Path, inputs: dict) -> bool:
    """True when `out` was made from these inputs, False when nothing stands there; InputError for anything else."""
    if not out.exists():
        return False
    manifest = read_manifest(out) or {}
    if not manifest and partial_of(out).is_file():
        return False  # killed between the writing of the file and of its manifest: the training state finishes it
    if "inputs" not in manifest or manifest.get("sha256") != sha256(out):
        raise InputError(f"--out {out} stands there already and is no file of this command; {ANOTHER_WAY}")
    changed = differences(manifest["inputs"], inputs)
    if changed:
        raise InputError(f"--out {out} was trained from other inputs ({'; '.join(changed)}); {ANOTHER_WAY}")
    return True


def train(args, job: Job, data: ClassifierData, device, out: Path) -> None:
    """Train and write `out` with its manifest."""
    start = time.perf_counter()
    seed_everything(args.seed, deterministic=False)
    bot = DiagnosisBot(args.backbone, CHEXPERT_14, [0.5] * len(CHEXPERT_14), side=args.image_size)
    bot.classifier.load_imagenet(args.backbone_weights, weights_dir=args.weights_dir, offline=args.offline)
    partial = partial_of(out)
    trainer = ClassifierTrainer(bot, data, args=args, device=device, partial=partial)
    facts = trainer.fit()
    for label, note in facts["threshold_notes"].items():
        print(f"threshold of {label}: {note}")
    state = trainer.bot.state()
    # an old manifest must not vouch for the new file, should this be killed between the two writes
    manifest_path(out).unlink(missing_ok=True)
    write_atomic(out, lambda path: torch.save(state, path))
    source = read_manifest(args.labels) or {}
    manifest = make_manifest(
        job.what,
        sha256=sha256(out),
        fingerprint=trainer.bot.fingerprint(),
        inputs=data.inputs,
        split="train",
        studies={split: len(rows) for split, rows in data.studies.items() if split in ("train", "val")},
        positives={split: dict(zip(CHEXPERT_14, (data.labels[split] == 1).sum(0).tolist())) for split in ("train", "val")},
        label_file={"path": str(args.labels), "sha256": sha256(args.labels), "what": source.get("what"),
                    "labeler": source.get("labeler")},
        command=" ".join(sys.argv),
        flags=vars(args),
        seconds=round(time.perf_counter() - start, 1),
        **facts,
    )  # fmt: skip
    write_json(manifest_path(out), manifest)
    partial.unlink(missing_ok=True)
    print(f"{out}: {job.what} {args.backbone}, best epoch {facts['best_epoch']} of {args.epochs}, {manifest['seconds']} s")


def _measured(scores: Path, out: Path, args, data: ClassifierData) -> bool:
    """Whether the figures in `scores` are those of `out` on the pictures and labels of --eval_split."""
    found = read_manifest(scores.with_suffix("")) if scores.is_file() else None
    return bool(found) and found.get("of") == _evaluation_key(out, args, data)


def _evaluation_key(out: Path, args, data: ClassifierData) -> dict:
    split = args.eval_split
    table = hashlib.sha256(data.labels[split].astype(np.int8).tobytes()).hexdigest()
    pictures = _picture_hash(data.studies[split], args.image_dir)
    return {"sha256": sha256(out), "split": split, "bootstrap": args.bootstrap, "labels": table, "pictures": pictures}


def evaluate(args, job: Job, data: ClassifierData, device, out: Path, scores: Path) -> dict:
    """Measure the classifier `out` on --eval_split; prints the table, writes `scores`."""
    split = args.eval_split
    bot = load_diagnosisbot(out, flag="--out").to(device)
    settings = {"device": device, "precision": Precision(args.precision, device), "num_workers": args.num_workers}
    logits = predict(bot, data.pictures[split], batch_size=args.batch_size, **settings)
    chances = torch.from_numpy(logits).sigmoid().numpy()
    thresholds = bot.thresholds.cpu().numpy()
    result = measure(data.labels[split], chances, thresholds, bot.labels, rounds=args.bootstrap, seed=args.seed)
    wrong = ((chances > thresholds) != (data.labels[split] == 1)) & (data.labels[split] >= 0)
    result["exact_vectors"] = round(float((~wrong.any(1)).mean()), 4)
    print(f"{job.what} on the {split} split, {result['studies']} studies (95% intervals by bootstrap over studies):")
    print(metrics_text(result))
    print(f"diagnoses with all {len(bot.labels)} labels right: {result['exact_vectors']:.1%}")
    if split != "test":
        print("the validation split chose epoch and thresholds, so these figures are optimistic; --eval_split test is not")
    write_json(scores, {"what": f"{job.what} figures", "of": _evaluation_key(out, args, data), **result})
    return result
