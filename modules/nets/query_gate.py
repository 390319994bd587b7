"""CSR-LMCA's gate on the queries of an attention, after TripletAttention (Misra et al. 2021).

B studies, T positions, heads and d = D / heads. Queries [B, heads, T, d].
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

TAPS = 7
ORDERS = ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3))  # of the axes; each is its own inverse


def gated(q: torch.Tensor, weights, normed) -> torch.Tensor:
    """Mean over three views of q of view * sigmoid(normed(convolution of [max, mean] over axis 1)).

    weights: per view [1, 2, 7, 7]; normed: per view, a function [B, 1, H, W] -> the same.
    """
    parts = []
    for order, weight, norm in zip(ORDERS, weights, normed):
        x = q.permute(order)
        pooled = torch.stack((x.amax(1), x.mean(1)), 1)
        gate = torch.sigmoid(norm(F.conv2d(pooled, weight.to(pooled.dtype), padding=TAPS // 2)))
        parts.append((x * gate).permute(order))
    return (parts[0] + parts[1] + parts[2]) / 3


class QueryGate(nn.Module):
    """The gate with trained weights and batch norm: for patches, which have no order that a later one could leak into."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(2, 1, TAPS, padding=TAPS // 2, bias=False) for _ in ORDERS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(1) for _ in ORDERS)

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return gated(q, [convolution.weight for convolution in self.convolutions], self.norms)


class RandomGate:
    """The released gate: new weights at every call, never trained, statistics of the batch even in evaluation.

    draw: the generator the weights come from, None = PyTorch's own, on the CPU. by_beam: the T positions are beams of one
    word, [B, heads, K, d], not positions of a report. A report then depends on the batch it is generated in, and cached
    decoding does not equal teacher forcing.
    """

    def __init__(self) -> None:
        self.draw: torch.Generator | None = None
        self.by_beam = False

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        bound = 1 / math.sqrt(2 * TAPS * TAPS)
        weights = [torch.empty(1, 2, TAPS, TAPS).uniform_(-bound, bound, generator=self.draw) for _ in ORDERS]
        weights = [weight.to(q.device, non_blocking=True) for weight in weights]
        norms = [lambda x: F.batch_norm(x, None, None, training=True)] * len(ORDERS)
        if not self.by_beam:
            return gated(q, weights, norms)
        each = q.transpose(1, 2).flatten(0, 1)[:, :, None]  # B K, heads, 1, d
        return gated(each, weights, norms)[:, :, 0].unflatten(0, (len(q), -1)).transpose(1, 2)
