"""Querying a memory and responding with the mix of its best rows, per head. Source: Chen et al., ACL 2021.

B studies, L positions (words or patches), M memory rows, D width, d = D / heads.
"""

import math

import torch
from torch.nn import functional as F

from modules.nets.transformer import Attention
from modules.precision import at_least_float32


class MemoryResponse(Attention):
    """Attention over the `topk` rows that fit best, for each query and head; the others get no weight.

    Differs from the published code: only the chosen rows are read, where it expands the memory to [B, heads, L, M, d].
    """

    def __init__(self, width: int, heads: int, topk: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.topk = topk

    def rows(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """memory [B, M, D], or [1, M, D] for all studies -> keys and values [B or 1, heads, M, d]."""
        if memory.shape[1] < self.topk:
            raise ValueError(f"topk {self.topk} exceeds the {memory.shape[1]} rows of the memory")
        return self.project("k", memory), self.project("v", memory)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask=None) -> torch.Tensor:
        """x [B, L, D] -> [B, L, D]. mask: bool [B, M], True = a real row; None = all are."""
        q = self.project("q", x.reshape(len(keys), -1, x.shape[-1]))  # one memory: all studies are one row of queries
        scores = at_least_float32(q @ keys.mT) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        best, places = scores.topk(self.topk)
        weights = F.dropout(best.softmax(-1), self.dropout, self.training)
        mixed = _mix(values, places, weights)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)).view_as(x)


def _mix(values: torch.Tensor, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums of chosen rows: values [B, heads, M, d], places and weights [B, heads, L, k] -> [B, heads, L, d]."""
    studies, heads, rows, _ = values.shape
    first = rows * torch.arange(studies * heads, device=values.device).view(studies, heads, 1, 1)
    table, bags = values.reshape(studies * heads * rows, -1), (places + first).flatten(0, 2)
    mixed = F.embedding_bag(bags, table, per_sample_weights=weights.flatten(0, 2).to(table.dtype), mode="sum")
    return mixed.view(*places.shape[:3], -1)
