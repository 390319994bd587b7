"""Training of image classifiers, shared by train_diagnosisbot.py and train_adm_classifier.py.

The classifier learns the labels of the training reports from the first image of each training study, as it will see
it later. The validation split chooses the epoch and one threshold per label; the split of --eval_split is only measured.
Letters: N images, K labels, S side in pixels, R bootstrap rounds.
"""

import hashlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from knowledge.classifier.data import (
    ClassifierData,
    HeldImages,
    augmented,
    image_hash,
    normalised,
    open_classifier_data,
)
from knowledge.classifier.flags import Job, parse
from knowledge.classifier.metrics import choose_thresholds, macro_auroc, measure, metrics_text
from modules.artefact import (
    ANOTHER_WAY,
    differences,
    read_manifest,
    refuse_or_keep,
    sha256,
    write_atomic,
    write_built,
    write_json,
)
from modules.errors import InputError
from modules.nets.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.precision import Precision, choose_device, seed_everything
from modules.progress import tracked
from modules.safe_pickle import load_pickle
from modules.text.labels import CHEXPERT_14


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
        if args.freeze == "stem":
            for parameter in bot.classifier.stem_parameters():
                parameter.requires_grad_(False)
        named = [(p.dim() < 2, p) for p in bot.classifier.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for flat, p in named if not flat]},
                  {"params": [p for flat, p in named if flat], "weight_decay": 0.0}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)
        self.epoch = 0
        self.best: dict[str, Any] = {}
        self.history: list[dict] = []

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
            won = not self.best or (auroc, -val_loss) > (self.best["auroc"], -self.best["loss"])
            if won:
                weights = {k: v.detach().cpu().clone() for k, v in self.bot.classifier.net.state_dict().items()}
                self.best = {"auroc": auroc, "loss": val_loss, "epoch": self.epoch, "weights": weights}
            print(f"epoch {self.epoch:3d}/{self.args.epochs}  loss {loss:.4f}  val loss {val_loss:.4f}  "
                  f"val macro AUROC {auroc:.4f}{' *' if won else '  '}  {row['seconds']:.1f} s", flush=True)  # fmt: skip
            self._save()
        self.bot.classifier.net.load_state_dict(self.best["weights"])
        with torch.no_grad():  # weighted positives raise the odds by their weight: take it back
            _head(self.bot).bias.sub_(self.pos_weight.log())
        probabilities = 1 / (1 + np.exp(-self.logits("val").astype(np.float64)))
        thresholds, notes = choose_thresholds(self.data.labels["val"], probabilities, self.prevalence, self.bot.labels)
        self.bot.thresholds = torch.tensor(thresholds, dtype=torch.float32)
        self.bot = self.bot.cpu().to(memory_format=torch.contiguous_format).eval()
        facts = {"history": self.history, "best_epoch": self.best["epoch"], "val_macro_auroc": self.best["auroc"]}
        return {**facts, "thresholds": dict(zip(self.bot.labels, thresholds)), "threshold_notes": notes}

    def train_epoch(self) -> float:
        """One pass over the training images; returns the mean loss."""
        args, images, truth = self.args, self.data.images["train"], torch.from_numpy(self.data.labels["train"])
        torch.manual_seed(args.seed * 100_003 + self.epoch)  # dropout
        draw = np.random.default_rng((args.seed, self.epoch))
        order, count = draw.permutation(len(images)), -(-len(images) // args.batch_size)
        draws = torch.from_numpy(draw.uniform(-1, 1, (len(images), 6)).astype(np.float32))
        groups = np.array_split(order, count)  # sizes differ by one at most: no batch of one image at the end
        self.bot.train()
        total = 0.0
        batches = images.batches(groups, args.num_workers)
        bar = tracked(batches, total=count, desc=f"epoch {self.epoch + 1}")
        for step, (group, pixels) in enumerate(zip(groups, bar)):
            shapes = normalised(pixels.to(self.device, non_blocking=True))
            if args.augment == "light":
                shapes = augmented(shapes, draws[group].to(self.device, non_blocking=True))
            for part in self.optimizer.param_groups:
                part["lr"] = args.lr * rate((self.epoch * count + step + 1) / (args.epochs * count))
            target = truth[group].to(self.device, non_blocking=True)
            with self.precision.region():
                logits = self.bot.classifier(shapes)
            loss = self.loss(logits.float(), target, self.pos_weight)
            self.optimizer.zero_grad(set_to_none=True)
            self.precision.scaler.scale(loss).backward()
            self.precision.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.bot.classifier.parameters(), 5.0)
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            value = loss.item()  # the one question to the device in a step
            if not math.isfinite(value):
                names = ", ".join(images.studies[place].id for place in group)
                raise InputError(f"the loss is not finite at epoch {self.epoch + 1}, studies {names}; lower --lr {args.lr}")
            total += value * len(group)
        return total / len(images)

    @staticmethod
    def loss(logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy, mean over the labels that are known (target 1 or 0; -1 is left out)."""
        known = (target >= 0).float()
        every = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), pos_weight=pos_weight, reduction="none")
        return (every * known).sum() / known.sum().clamp(min=1)

    def logits(self, split: str) -> np.ndarray:
        """float32 [N, K] of a split's images as they are."""
        settings = {"device": self.device, "batch_size": self.args.batch_size, "num_workers": self.args.num_workers}
        return predict(self.bot, self.data.images[split], precision=self.precision, **settings)

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
        state = read_partial(self.partial, self.data.inputs)
        if state is None:
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
def predict(bot: DiagnosisBot, images: HeldImages, *, device, precision, batch_size=32, num_workers=0) -> np.ndarray:
    """Logits float32 [N, K] of images that are not augmented. The bot is left in evaluation mode."""
    bot.eval()
    groups = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
    rows = []
    for pixels in images.batches(groups, num_workers):
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
    kept = not args.overwrite and already_there(out, data.inputs, keep=args.keep)
    scores = out.with_name(f"{out.stem}.{args.eval_split}.json")
    if kept and _measured(scores, out, args, data):
        print(f"{out}: kept; its {args.eval_split} figures are in {scores}")
        return
    used = [args.eval_split] if kept else list(data.images)
    if sum(data.images[split].bytes() for split in used) <= args.cache_gb * 2**30:
        for split in used:
            data.images[split].hold(threads=min(8, os.cpu_count() or 1))
    if kept:
        print(f"{out}: kept")
    else:
        train(args, job, data, device, out)
    evaluate(args, job, data, device, out, scores)


def read_partial(path: Path, inputs: dict) -> dict | None:
    """The state of a training that was cut off, if one of these inputs is there; else None, and why is printed."""
    if not path.is_file():
        return None
    try:
        state = load_pickle(path)
        changed = differences(state["inputs"], inputs)
    except (InputError, KeyError, TypeError) as error:
        print(f"{path} cannot be continued ({error}): training starts anew")
        return None
    if changed:
        print(f"{path} belongs to another run ({'; '.join(changed)}): training starts anew")
        return None
    return state


def partial_of(out: Path) -> Path:
    """Where the training state of an unfinished `out` lies."""
    return out.with_name(f"{out.name}.partial.pt")


def already_there(out: Path, inputs: dict, *, keep: bool = False) -> bool:
    """True when `out` was made from these inputs, False when nothing stands there; InputError for anything else.

    keep: one of other inputs is accepted, and how they differ is printed.
    """
    if not out.exists():
        return False
    manifest = read_manifest(out) or {}
    if not manifest and partial_of(out).is_file():
        return False  # killed between the writing of the file and of its manifest: the training state finishes it
    if keep and not manifest:
        print(f"{out}: kept; it was made by others, from what is not known")
        return True
    if "inputs" not in manifest or manifest.get("sha256") != sha256(out):
        raise InputError(f"--out {out} stands there already and is no file of this command; {ANOTHER_WAY}")
    refuse_or_keep(out, manifest["inputs"], inputs, keep=keep)
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
    source = read_manifest(args.labels_path) or {}
    manifest = write_built(
        out,
        lambda temporary: torch.save(state, temporary),
        job.what,
        fingerprint=trainer.bot.fingerprint(),
        inputs=data.inputs,
        split="train",
        studies={split: len(rows) for split, rows in data.studies.items() if split in ("train", "val")},
        positives={split: dict(zip(CHEXPERT_14, (data.labels[split] == 1).sum(0).tolist())) for split in ("train", "val")},
        label_file={"path": str(args.labels_path), "sha256": sha256(args.labels_path), "what": source.get("what"),
                    "labeler": source.get("labeler")},
        command=" ".join(sys.argv),
        flags={name: value for name, value in vars(args).items() if name != "typed"},
        seconds=round(time.perf_counter() - start, 1),
        **facts,
    )  # fmt: skip
    partial.unlink(missing_ok=True)
    print(f"{out}: {job.what} {args.backbone}, best epoch {facts['best_epoch']} of {args.epochs}, {manifest['seconds']} s")


def _measured(scores: Path, out: Path, args, data: ClassifierData) -> bool:
    """Whether the figures in `scores` are those of `out` on the images and labels of --eval_split."""
    found = read_manifest(scores.with_suffix("")) if scores.is_file() else None
    return found is not None and found.get("of") == _evaluation_key(out, args, data)


def _evaluation_key(out: Path, args, data: ClassifierData) -> dict:
    split = args.eval_split
    table = hashlib.sha256(data.labels[split].astype(np.int8).tobytes()).hexdigest()
    images = image_hash(data.studies[split], args.image_dir)
    return {"sha256": sha256(out), "split": split, "bootstrap": args.bootstrap, "labels": table, "images": images}


def evaluate(args, job: Job, data: ClassifierData, device, out: Path, scores: Path) -> dict:
    """Measure the classifier `out` on --eval_split; prints the table, writes `scores`."""
    split = args.eval_split
    bot = load_diagnosisbot(out, flag="--out").to(device)
    settings = {"device": device, "precision": Precision(args.precision, device), "num_workers": args.num_workers}
    logits = predict(bot, data.images[split], batch_size=args.batch_size, **settings)
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    thresholds = bot.thresholds.cpu().numpy()
    result = measure(data.labels[split], probabilities, thresholds, bot.labels, rounds=args.bootstrap, seed=args.seed)
    wrong = ((probabilities > thresholds) != (data.labels[split] == 1)) & (data.labels[split] >= 0)
    result["exact_vectors"] = round(float((~wrong.any(1)).mean()), 4)
    print(f"{job.what} on the {split} split, {result['studies']} studies (95% intervals by bootstrap over studies):")
    print(metrics_text(result))
    print(f"diagnoses with all {len(bot.labels)} labels right: {result['exact_vectors']:.1%}")
    if split != "test":
        print("the validation split chose epoch and thresholds, so these figures are optimistic; --eval_split test is not")
    write_json(scores, {"what": f"{job.what} figures", "of": _evaluation_key(out, args, data), **result})
    return result
