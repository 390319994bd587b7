"""Optimiser and learning-rate schedule from flags."""

import math
from functools import partial

import torch


def make_optimizer(groups: dict[str, list], args) -> torch.optim.Optimizer:
    """AdamW or Adam over named groups: "extractor" takes --lr_ve, every other group --lr_ed. An empty group is left out."""
    rates = {"extractor": args.lr_ve}
    rows = [
        {"params": parameters, "lr": rates.get(name, args.lr_ed), "name": name}
        for name, parameters in groups.items()
        if parameters
    ]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[args.optimizer]
    settings = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_eps, "amsgrad": args.amsgrad}
    return kind(rows, lr=args.lr_ed, weight_decay=args.weight_decay, fused=True, **settings)


class EpochSteps(torch.optim.lr_scheduler.StepLR):
    by_step = False


class Factors(torch.optim.lr_scheduler.LambdaLR):
    by_step = True


def make_scheduler(optimizer: torch.optim.Optimizer, args, steps_per_epoch: int):
    """--lr_schedule; one that changes with every step has `by_step` True, the others are stepped after an epoch."""
    if args.warmup_epochs:
        return _warm_up(optimizer, args, steps_per_epoch)
    if args.lr_schedule == "step":
        return EpochSteps(optimizer, step_size=args.step_size, gamma=args.lr_gamma)
    last = max(1, args.epochs * steps_per_epoch)
    return Factors(optimizer, [partial(_cosine, group["lr"], args.lr_min, last) for group in optimizer.param_groups])


def _warm_up(optimizer: torch.optim.Optimizer, args, steps_per_epoch: int):
    """Rates climb linearly from --lr_start in --warmup_epochs, then fall as by "step", counted from the start of training.

    The rate of u steps is set after step u and serves step u + 1, as in SGRRG's code.
    """
    warm, fall = args.warmup_epochs * steps_per_epoch, args.step_size * steps_per_epoch

    def factor(rate: float, done: int) -> float:
        past = max(done - 1, 0)
        if past >= warm:
            return args.lr_gamma ** (past // fall)
        return (args.lr_start + (rate - args.lr_start) * past / warm) / rate if rate else 1.0

    return Factors(optimizer, [partial(factor, group["lr"]) for group in optimizer.param_groups])


def _cosine(start: float, end: float, last: int, done: int) -> float:
    """Factor on `start` for the step after `done` others: step k of `last` has end + (start - end)(1 + cos(pi k / last)) / 2.

    The first step has k = 1, as in CSR-LMCA's code, which moves the rate before the weights.
    """
    share = (1 + math.cos(math.pi * min(done + 1, last) / last)) / 2
    return (end + (start - end) * share) / start if start else 1.0
