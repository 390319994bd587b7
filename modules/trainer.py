"""The training loop. It knows no system by name: a system gives losses, their weights and its parameter groups."""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from modules.checkpoint import load_checkpoint, random_states, restore_random_states, save_checkpoint
from modules.errors import InputError
from modules.optimizers import make_optimizer, make_scheduler
from modules.precision import Precision

SUMS = {"r2gen/xsum": {"r2gen/BLEU_4": 1.0, "r2gen/BLEU_1": 0.33, "r2gen/METEOR": 0.67}}  # Wang et al. 2022


def monitor_parts(name: str) -> dict[str, float]:
    """The metrics that --monitor_metric adds up, and their weights."""
    return SUMS.get(name, {name: 1.0})


class Trainer:
    """Trains `system`, validates each epoch, keeps `last.pt` and `best.pt` in `folder`.

    validate: function (system) -> {metric key: value or None}. carried: what a checkpoint holds beside the training
    state (flags, tokenizer, parts). Everything random is drawn from generators whose states are saved, so that a run
    of 4 epochs equals 2 and a resumed 2, to the last bit on a CPU.
    """

    def __init__(self, system, loader, validate, *, args, device, folder: Path, log, carried: dict) -> None:
        self.system, self.loader, self.validate = system.to(device), loader, validate
        self.args, self.device, self.folder, self.log, self.carried = args, device, folder, log, carried
        self.precision = Precision(args.precision, device)
        self.optimizer = make_optimizer(system.parameter_groups(), args)
        self.scheduler = make_scheduler(self.optimizer, args)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.epoch = self.step = 0  # finished so far
        self.best: float | None = None
        self.best_epoch = 0

    def fit(self) -> Path:
        """Train up to --epochs; returns the path of the best checkpoint."""
        while self.epoch < self.args.epochs:
            self.train_epoch()
            self.epoch += 1
            self.scheduler.step()
            won = self.note(self.validate(self.system))
            self.save("last.pt", training=True)
            if won:
                self.save("best.pt", training=False)
            if self.args.early_stop and self.epoch - self.best_epoch >= self.args.early_stop:
                self.log.write("stop", epoch=self.epoch, reason=f"no better value in {self.args.early_stop} epochs")
                break
        return self.folder / "best.pt"

    def train_epoch(self) -> None:
        self.system.train()
        self.loader.dataset.epoch = self.epoch
        start = mark = time.perf_counter()
        waited, studies, sums = 0.0, 0, {}
        bar = tqdm(
            self.loader, desc=f"epoch {self.epoch + 1}/{self.args.epochs}", leave=False, mininterval=1, disable=None
        )
        for number, batch in enumerate(bar, 1):
            waited += time.perf_counter() - mark
            losses = self.update(batch.to(self.device))
            studies += len(batch)
            sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
            mark = time.perf_counter()
            facts = {"wait": waited / (mark - start), "studies_per_s": studies / (mark - start)}
            bar.set_postfix({k: f"{v:.3g}" for k, v in {**losses, **facts}.items()}, refresh=False)
            if number % self.args.log_every == 0:
                self.log.write("step", quiet=True, epoch=self.epoch + 1, step=self.step, **losses, **facts)
        means = {f"train/{name}": value / max(number, 1) for name, value in sums.items()}
        rates = {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        self.log.write("epoch", epoch=self.epoch + 1, step=self.step, **means, **rates, **facts)

    def update(self, batch) -> dict[str, float]:
        """One optimiser step; returns the losses, their weighted total and the gradient norm before clipping."""
        with self.precision.region():
            losses = self.system.losses(batch)
        total = sum(self.system.loss_weights[name] * value for name, value in losses.items())
        values = {**{name: value.item() for name, value in losses.items()}, "loss": total.item()}
        if not torch.isfinite(total):
            raise InputError(
                f"the loss is not finite at epoch {self.epoch + 1}, step {self.step + 1}: {values}, on the studies "
                f"{', '.join(batch.ids)}. Lower --lr_ed and --lr_ve, or train in float32; last.pt holds the last whole epoch"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.scaler.scale(total).backward()
        self.precision.scaler.unscale_(self.optimizer)
        limit = self.args.clip_norm or float("inf")
        values["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, limit).item()
        if self.args.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.args.clip_value)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.step += 1
        return values

    def note(self, metrics: dict) -> bool:
        """Log the validation metrics; True when the monitored one is the best so far."""
        parts = monitor_parts(self.args.monitor_metric)
        known = all(metrics[name] is not None for name in parts)
        value = sum(weight * metrics[name] for name, weight in parts.items()) if known else None
        won = value is not None and (self.best is None or value > self.best)
        if won:
            self.best, self.best_epoch = value, self.epoch
        shown = {f"val/{name}": value for name, value in metrics.items()}
        self.log.write("val", epoch=self.epoch, **shown, best=self.best, best_epoch=self.best_epoch)
        return won

    def save(self, name: str, *, training: bool) -> None:
        """Write a checkpoint; training=False leaves out what only going on needs."""
        content = {
            **self.carried,
            "model": self.system.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "best_epoch": self.best_epoch,
        }
        if training:
            content |= {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.precision.scaler.state_dict(),
                "random": random_states(),
            }
        save_checkpoint(self.folder / name, content)

    def resume(self, path: Path) -> None:
        """Go on from a `last.pt`. InputError when it has no training state or was trained with other words."""
        state = load_checkpoint(path)
        if "optimizer" not in state:
            raise InputError(
                f"{path} holds no training state; --resume takes a last.pt, --load starts from its weights"
            )
        if state["tokenizer"] != self.carried["tokenizer"]:
            raise InputError(f"{path} was trained with another vocabulary: the training reports have changed")
        self.system.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        restore_random_states(state["random"])
        self.log.write("resume", epoch=self.epoch, step=self.step, checkpoint=str(path))
