"""Optimiser and learning-rate schedule from flags."""

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


def make_scheduler(optimizer: torch.optim.Optimizer, args):
    """StepLR per epoch, as every system of the family publishes it."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=args.step_size, gamma=args.lr_gamma)
