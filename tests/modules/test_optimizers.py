"""The cosine schedule: the rates of CSR-LMCA's code, per step, and the same ones after --resume."""

import math
from argparse import Namespace

import pytest
import torch

from modules.optimizers import make_optimizer, make_scheduler

FLAGS = {"lr_ve": 5e-5, "lr_ed": 7e-4, "optimizer": "adam", "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_eps": 1e-9,
         "amsgrad": True, "weight_decay": 0.0, "lr_schedule": "cosine", "lr_min": 1e-6, "epochs": 5, "step_size": 2,
         "lr_gamma": 0.1, "warmup_epochs": 0}  # fmt: skip


def made(**changes):
    args = Namespace(**{**FLAGS, **changes})
    weights = {name: [torch.nn.Parameter(torch.ones(1))] for name in ("extractor", "rest")}
    optimizer = make_optimizer(weights, args)
    return optimizer, make_scheduler(optimizer, args, steps_per_epoch=2)


def step(optimizer, schedule) -> list[float]:
    """The rates of one step."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    return rates


def test_cosine_rates():
    """Step k of K = 10 has 1e-6 + (base - 1e-6)(1 + cos(pi k / K)) / 2; the first step is k = 1, the last k = K."""
    optimizer, schedule = made()
    assert schedule.by_step
    for k in range(1, 11):
        share = (1 + math.cos(math.pi * k / 10)) / 2
        assert step(optimizer, schedule) == pytest.approx([1e-6 + (base - 1e-6) * share for base in (5e-5, 7e-4)], rel=1e-12)
    assert step(optimizer, schedule) == pytest.approx([1e-6, 1e-6]), "beyond the last step the rate stays"


def test_cosine_goes_on_after_a_stop():
    optimizer, schedule = made()
    whole = [step(optimizer, schedule) for _ in range(10)]
    optimizer, schedule = made()
    first = [step(optimizer, schedule) for _ in range(4)]
    kept = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = made()
    optimizer.load_state_dict(kept[0])
    schedule.load_state_dict(kept[1])
    assert first + [step(optimizer, schedule) for _ in range(6)] == whole


def test_steps_fall_by_epoch():
    optimizer, schedule = made(lr_schedule="step")
    assert not schedule.by_step
    assert [step(optimizer, schedule)[0] for _ in range(4)] == pytest.approx([5e-5, 5e-5, 5e-6, 5e-6])


def test_an_extractor_that_is_not_trained():
    optimizer, schedule = made(lr_ve=0.0)
    assert all(step(optimizer, schedule)[0] == 0 for _ in range(3))
