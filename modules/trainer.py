"""The training loop. It knows no system by name: a system gives losses, their weights and its parameter groups."""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules import processes
from modules.checkpoint import (
    CheckpointWriter,
    check_finite,
    load_checkpoint,
    load_weights,
    random_states,
    restore_random_states,
    snapshot,
)
from modules.errors import InputError
from modules.optimizers import make_optimizer, make_scheduler
from modules.precision import Precision
from modules.progress import EpochTable, tracked

# flags of the optimiser and its schedule that may change when a run goes on
RATES = frozenset(
    "lr_ve lr_ed weight_decay adam_beta1 adam_beta2 adam_eps lr_schedule lr_min step_size lr_gamma warmup_epochs lr_start".split()
)
SUMS = {
    "r2gen/xsum": {"r2gen/BLEU_4": 1.0, "r2gen/BLEU_1": 0.33, "r2gen/METEOR": 0.67},  # Wang et al. 2022
    "r2gen/bmsum": {"r2gen/BLEU_4": 1.0, "r2gen/METEOR": 0.5},  # Wang et al. 2025
}


def monitor_parts(name: str) -> dict[str, float]:
    """The metrics that --monitor_metric adds up, and their weights."""
    return SUMS.get(name, {name: 1.0})


class Losses(nn.Module):
    """A system seen as what training calls: batch -> {name: scalar}. Gradients are averaged at this door.

    Cross-entropy as the system states it; modules/self_critical.py gives the Trainer another one.
    """

    trained = False  # whether the start is a trained system, to be validated before the first step

    def __init__(self, system) -> None:
        super().__init__()
        self.system, self.epoch = system, 0
        self.weights = system.loss_weights  # by the names of the losses; one of weight 0 is shown only
        self.idle = getattr(system, "idle_parameters", False)  # whether a parameter may be left without a gradient

    def counts(self, batch) -> dict[str, float]:
        """What each loss of a batch is a mean over: the studies, unless the system says otherwise."""
        own: Callable[..., dict] = getattr(self.system, "loss_counts", lambda batch: {})
        return {"studies": len(batch), **own(batch)}

    def prepare(self, batch):
        """The batch as `forward` reads it, still on the CPU."""
        return self.system.prepare(batch)

    def forward(self, batch) -> dict[str, torch.Tensor]:
        return self.system.losses(batch)

    def state(self) -> dict:
        """What a run that goes on needs beside the weights."""
        return {}

    def load_state(self, state: dict) -> None:
        """Take what `state` gave."""


class Trainer:
    """Trains `system`, validates each epoch, keeps `last.pt` and `best.pt` in `folder`.

    validate: function (system) -> {metric key: value or None}, called in every process. carried: what a checkpoint holds
    beside the training state (flags, tokenizer, parts). Everything random is drawn from generators whose states are saved,
    so that a run of 4 epochs equals 2 and a resumed 2, to the last bit on a CPU. A step's studies may be split over
    processes (torchrun) and in time (--accumulate): its gradient stays that of the whole step. objective: what is trained
    for, the system's own losses when None.
    """

    def __init__(self, system, loader, validate, *, args, device, folder: Path, log, carried: dict, objective=None) -> None:
        self.system, self.loader, self.validate = system.to(device), loader, validate
        self.args, self.device, self.folder, self.log, self.carried = args, device, folder, log, carried
        self.objective = objective or Losses(self.system)
        if args.compile:
            self.objective.compile()
        self.losses = processes.replicate(self.objective, device, idle=self.objective.idle)
        self.precision = Precision(args.precision, device, scale=args.fp16_scale)
        self.optimizer = make_optimizer(system.parameter_groups(), args)
        self.scheduler = make_scheduler(self.optimizer, args, max(1, math.ceil(len(loader) / args.accumulate)))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.epoch = self.step = 0  # finished so far
        self.first_validation = min(args.validate_from, args.epochs)  # the last epoch is always validated
        self.table = EpochTable(args.epochs, args.monitor_metric)
        self.best: float | None = None
        self.best_epoch = 0
        if processes.rank() > 0:
            torch.manual_seed(args.seed + processes.rank())  # every process draws its own dropout

    def fit(self) -> Path:
        """Train up to --epochs; returns the path of the best checkpoint."""
        with CheckpointWriter() as writer:
            if self.objective.trained and not self.epoch:
                self.save(writer, self.note(self.validate(self.system)) is not None)
            while self.epoch < self.args.epochs and not self.patience_over():
                means, speed = self.train_epoch()
                self.epoch += 1
                if not self.scheduler.by_step:
                    self.scheduler.step()
                processes.same_buffers(self.system)
                value = None
                if self.epoch >= self.first_validation:
                    value = self.note(self.validate(self.system))
                won = value is not None and self.best_epoch == self.epoch
                row = self.table.row(self.epoch, means, speed, value=value, best=self.best, best_epoch=self.best_epoch)
                self.log.say(row)
                self.save(writer, won)
        if self.patience_over():
            reason = f"no better value in {self.args.early_stop} epochs (--early_stop)"
            self.log.write("stop", say=f"stopped after epoch {self.epoch}: {reason}", epoch=self.epoch, reason=reason)
        processes.barrier()  # best.pt is whole before anyone reads it
        return self.folder / "best.pt"

    def patience_over(self) -> bool:
        """Whether --early_stop epochs have passed without a better value."""
        since = self.epoch - max(self.best_epoch, self.first_validation - 1)
        return bool(self.args.early_stop) and since >= self.args.early_stop

    def train_epoch(self) -> tuple[dict[str, float], float]:
        """One pass over the training studies; returns the mean of each loss and studies per second."""
        self.system.train()
        self.loader.dataset.epoch = self.objective.epoch = self.epoch
        start = mark = time.perf_counter()
        waited, studies = 0.0, 0
        seen: dict[str, list[float]] = {}
        steps = math.ceil(len(self.loader) / self.args.accumulate)
        title = f"epoch {self.epoch + 1}/{self.args.epochs}"
        bar = tracked(self._steps(), total=steps, desc=title)
        for number, batches in enumerate(bar, 1):
            waited += time.perf_counter() - mark
            losses = self.update(batches)
            studies += int(losses.pop("studies"))
            for name, value in losses.items():
                seen.setdefault(name, []).append(value)
            mark = time.perf_counter()
            facts = {"wait": waited / (mark - start), "studies_per_s": studies / (mark - start)}
            bar.set_postfix({k: f"{v:.3g}" for k, v in {**losses, **facts}.items()}, refresh=False)
            if number % self.args.log_every == 0:
                self.log.write("step", epoch=self.epoch + 1, step=self.step, **losses, **facts)
        means = {f"train/{name}": sum(values) / len(values) for name, values in seen.items()}
        rates = {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        self.log.write("epoch", epoch=self.epoch + 1, step=self.step, **means, **rates, **facts)
        losses = {name: means[f"train/{name}"] for name in seen if name == "loss" or name in self.objective.weights}
        return losses, facts["studies_per_s"]

    def _steps(self):
        """The loader's batches, --accumulate at a time."""
        batches = iter(self.loader)
        while step := list(itertools.islice(batches, self.args.accumulate)):
            yield step

    def update(self, batches: list) -> dict[str, float]:
        """One optimiser step over this process's share of it, in one or more batches that are still on the CPU.

        Returns the step's losses, their weighted total, the number of studies and the gradient norm before clipping.
        """
        counts = [self._counts(batch) for batch in batches]
        own = torch.tensor([sum(row[name] for row in counts) for name in counts[0]], dtype=torch.float64)
        totals = dict(zip(counts[0], processes.total(own).tolist()))
        batches = [self.objective.prepare(batch).to(self.device) for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)
        names: list[str] = []
        parts: Any = 0.0  # a tensor from the first batch on
        for batch, row in zip(batches, counts):
            apart = batch is not batches[-1]
            with processes.unsynchronised(self.losses) if apart else contextlib.nullcontext():
                with self.precision.region():
                    losses = self.losses(batch)
                names = list(losses)
                shares = {n: row.get(n, row["studies"]) / max(totals.get(n, totals["studies"]), 1) for n in names}
                weighted = {n: self.objective.weights[n] * losses[n] * shares[n] for n in names}
                # the gradients of the processes are averaged, their losses are to be summed
                self.precision.scaler.scale(sum(weighted.values()) * processes.count()).backward()
            shown = [losses[n].detach() * shares[n] for n in names] + [sum(weighted.values()).detach()]
            parts = parts + torch.stack([value.float() for value in shown])
        self.precision.scaler.unscale_(self.optimizer)
        limit = self.args.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        if self.args.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.args.clip_value)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        if self.scheduler.by_step:
            self.scheduler.step()
        # the one question to the device in a step, asked when all of the step is queued
        *sums, norm = torch.cat((processes.total(parts), norm[None])).tolist()
        values: dict[str, float] = {**dict(zip([*names, "loss"], sums)), "studies": totals["studies"]}
        if self.precision.scaler.is_enabled():  # gradients beyond fp16: the scaler skips the step and lowers its scale
            values["skipped_steps"] = float(not math.isfinite(norm))
        if math.isfinite(norm) or not self.precision.scaler.is_enabled():
            values["grad_norm"] = norm
        if not math.isfinite(values["loss"]):
            studies = ", ".join(name for batch in batches for name in batch.ids)
            raise InputError(
                f"the loss is not finite at epoch {self.epoch + 1}, step {self.step + 1}: {values}, on the studies "
                f"{studies}. Lower --lr_ed and --lr_ve, or train in float32; last.pt holds the last whole epoch"
            )
        self.step += 1
        return values

    def _counts(self, batch) -> dict[str, float]:
        """What each loss of a batch is a mean over; nothing where it only keeps the process busy."""
        return {name: 0 if batch.fill else float(value) for name, value in self.objective.counts(batch).items()}

    def note(self, metrics: dict) -> float | None:
        """Log the validation metrics and keep the best value; returns the monitored one, None where it is n/a."""
        parts = monitor_parts(self.args.monitor_metric)
        known = all(metrics[name] is not None for name in parts)
        value = sum(weight * metrics[name] for name, weight in parts.items()) if known else None
        if value is not None and (self.best is None or value > self.best):
            self.best, self.best_epoch = value, self.epoch
        shown = {f"val/{name}": value for name, value in metrics.items()}
        self.log.write("val", epoch=self.epoch, **shown, best=self.best, best_epoch=self.best_epoch)
        return value

    def save(self, writer: CheckpointWriter, won: bool) -> None:
        """Write best.pt, if this epoch won, which lacks what only going on needs; then last.pt. The first process writes.

        In this order: a last.pt that names a best value never stands beside an older best.pt. InputError for weights that
        are not finite.
        """
        random = processes.gather({processes.rank(): random_states()})
        check_finite(self.system.state_dict(), f"the weights after epoch {self.epoch}")
        if processes.rank() > 0:
            return
        content = {
            **self.carried,
            "model": snapshot(self.system.state_dict()),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "objective": self.objective.state(),
        }
        training = {
            "optimizer": snapshot(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "random": [random[rank] for rank in sorted(random)],
        }
        best = {self.folder / "best.pt": content} if won else {}
        writer.write(best | {self.folder / "last.pt": content | training})

    def resume(self, path: Path) -> None:
        """Go on from a `last.pt`. InputError when it has no training state or was trained with other words."""
        state = load_checkpoint(path)
        if "optimizer" not in state:
            raise InputError(
                f"{path} holds no training state; --resume takes a last.pt, --load starts from its weights"
            )
        if state["tokenizer"] != self.carried["tokenizer"]:
            raise InputError(f"{path} was trained with another vocabulary: the training reports have changed")
        load_weights(self.system, state["model"], str(path))
        self._resume_optimizer(state)
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.objective.load_state(state.get("objective", {}))
        if processes.rank() < len(state["random"]):
            restore_random_states(state["random"][processes.rank()])
        say = f"{path}: going on after epoch {self.epoch} of {self.args.epochs}"
        if self.epoch >= self.args.epochs or self.patience_over():
            say = f"{path}: this training has ended, after epoch {self.epoch}; a larger --epochs (or --early_stop) goes on"
        self.log.write("resume", say=say, epoch=self.epoch, step=self.step, checkpoint=str(path))

    def _resume_optimizer(self, state: dict) -> None:
        """Moments and schedule of a checkpoint; rates and decays that were typed beside --resume win."""
        fresh = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"])
        if not RATES & self.args.typed:
            self.scheduler.load_state_dict(state["scheduler"])
            return
        for group, settings in zip(self.optimizer.param_groups, fresh):
            group.update({name: value for name, value in settings.items() if name != "params"})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step\\(\\)`")
            for _ in range(state["step"] if self.scheduler.by_step else state["epoch"]):
                self.scheduler.step()
