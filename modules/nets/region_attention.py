"""LMCA: attention within regions of the patches (R-MSA) and across them (CR-MSA). Source: Tang et al. 2024 (RRT-MIL), CSR-LMCA.

B studies, V views, h x w patches of a view, R regions of a study, n positions of a region, D width, k slots.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from modules.precision import at_least_float32

FLAT = 8  # the released layout cuts its square into 8 x 8 regions


def cut(grid: torch.Tensor, size: int) -> torch.Tensor:
    """[B, V, h, w, D] -> regions of size x size positions [B, R, size * size, D], zeros added at the right and below."""
    rows, columns = (-(-length // size) for length in grid.shape[2:4])
    grid = F.pad(grid, (0, 0, 0, columns * size - grid.shape[3], 0, rows * size - grid.shape[2]))
    grid = grid.unflatten(3, (columns, size)).unflatten(2, (rows, size))  # B, V, rows, size, columns, size, D
    return grid.transpose(3, 4).flatten(4, 5).flatten(1, 3)


def joined(regions: torch.Tensor, shape: tuple[int, ...], size: int) -> torch.Tensor:
    """The inverse of `cut`: regions [B, R, size * size, D] -> [B, V, h, w, D] of `shape` = (V, h, w)."""
    views, height, width = shape
    rows, columns = -(-height // size), -(-width // size)
    grid = regions.unflatten(2, (size, size)).unflatten(1, (views, rows, columns)).transpose(3, 4)
    return grid.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


class Heads(nn.Module):
    """Multi-head attention within sequences, queries, keys and values from one Linear layer. x [..., n, D] -> [..., n, D].

    taps: width of EPEG, a convolution of the scores along the queries that is added to them, one per head; 0 = none.
    mask: bool [..., n], True = a real position; the others are no keys, and their scores are 0 before the convolution.
    """

    def __init__(self, width: int, heads: int, *, dropout: float, taps: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.epeg = nn.Conv2d(heads, heads, (taps, 1), padding=(taps // 2, 0), groups=heads) if taps else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        lead, x = x.shape[:-2], x.flatten(0, -3)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = at_least_float32((q / math.sqrt(q.shape[-1])) @ k.mT)
        if mask is not None:
            mask = mask.expand(*lead, -1).flatten(0, -2)[:, None, None]
            scores = scores * (mask & mask.mT)
        if self.epeg is not None:
            scores = scores + self.epeg(scores)
        if mask is not None:  # a finite number: a sequence without a real position has no scores to compare
            scores = at_least_float32(scores).masked_fill(~mask, torch.finfo(torch.float32).min)
        mixed = scores.softmax(-1).to(v.dtype) @ v
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2))).unflatten(0, lead)


class CrossRegions(nn.Module):
    """CR-MSA: each region is summed up in k slots, slots look at those of the other regions, and are handed back.

    With l = x phi for the positions p of a region: r_j = sum_p softmax_p(l_jp) x_p; r'_j = attention over the r_j of all regions;
    output_p = sum_j softmax_j(l_jp) m_jp r'_j, m_jp = (l_jp - min_p l_jp) / (max_p l_jp - min_p l_jp + 1e-8).
    scope: "study", or "batch" = as released: the regions of all studies of a batch are one sequence.
    """

    def __init__(self, width: int, heads: int, *, slots: int = 3, dropout: float, scope: str = "study") -> None:
        super().__init__()
        if scope not in ("study", "batch"):
            raise ValueError(f"scope of CR-MSA {scope}: choose study or batch")
        self.scope = scope
        self.phi = nn.Parameter(torch.empty(width, slots))
        nn.init.kaiming_uniform_(self.phi, a=math.sqrt(5))  # its fan-in is `slots`: uniform in +-1/sqrt(slots)
        self.attention = Heads(width, heads, dropout=dropout)

    def forward(self, scales: list[torch.Tensor], masks: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Regions of each scale [B, R_s, n_s, D] -> the same shapes; masks: bool [B or 1, R_s, n_s], True = a real position."""
        known: Sequence[torch.Tensor | None] = masks or [None] * len(scales)
        logits = [at_least_float32(x @ self.phi) for x in scales]
        combined = [_over_positions(fit, mask).to(x.dtype).mT @ x for x, fit, mask in zip(scales, logits, known)]
        slots = torch.cat(combined, 1).transpose(1, 2)  # B, k, R, D
        real = None if masks is None else torch.cat([m.any(-1).expand(len(slots), -1) for m in masks], 1)
        slots = self._attend(slots, real).transpose(1, 2).split([x.shape[1] for x in scales], 1)
        return [_shares(fit, mask).to(slot.dtype) @ slot for fit, mask, slot in zip(logits, known, slots)]

    def _attend(self, slots: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """Slots [B, k, R, D] of regions that exist where real [B, R] -> [B, k, R, D]."""
        if self.scope == "study":
            return self.attention(slots, None if real is None else real[:, None])
        studies = len(slots)
        together = slots.transpose(0, 1).flatten(1, 2)  # k, B R, D
        mixed = self.attention(together, None if real is None else real.flatten())
        return mixed.unflatten(1, (studies, -1)).transpose(0, 1)


def _over_positions(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the real positions of a region: [B, R, n, k] -> the same; finite where there is none."""
    if mask is not None:
        logits = logits.masked_fill(~mask[..., None], torch.finfo(torch.float32).min)
    return logits.softmax(-2)


def _shares(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax_j(l_jp) m_jp [B, R, n, k], in a masked layout 1 * softmax where a region has one real position."""
    if mask is None:
        low, high = logits.amin(-2, keepdim=True), logits.amax(-2, keepdim=True)
        return logits.softmax(-1) * (logits - low) / (high - low + 1e-8)
    far = torch.finfo(torch.float32).max
    low = logits.masked_fill(~mask[..., None], far).amin(-2, keepdim=True)
    high = logits.masked_fill(~mask[..., None], -far).amax(-2, keepdim=True)
    counts = mask.sum(-1)[..., None, None]
    spread = torch.where(counts > 1, high - low, torch.ones_like(high))
    share = torch.where(counts > 1, (logits - low) / (spread + 1e-8), torch.ones_like(logits))
    return torch.where(mask[..., None], logits.softmax(-1) * share, torch.zeros_like(logits))


class LMCA(nn.Module):
    """Local multi-scale cross-region attention: patches [B, P, D] -> [B, P, D].

    sizes: of the regions, in patches; per size y_s = x + R-MSA_s(norm_s(x)); one CR-MSA over the regions of all sizes and views,
    z_s = y_s + CR-MSA(norm(y_s)); output = norm(mean_s z_s). sizes (): the released layout, in which the list of all patches is
    laid out row by row in a square, zeros at its end, and the square cut into 8 x 8 regions, whatever lies where in the image.
    regions, cross: off = without R-MSA, without CR-MSA.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        *,
        sizes: tuple[int, ...] = (2, 4, 8),
        slots: int = 3,
        taps: int = 15,
        dropout: float = 0.1,
        scope: str = "study",
        regions: bool = True,
        cross: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        scales = max(1, len(self.sizes)) if regions else 0
        self.region_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(scales))
        self.regions = nn.ModuleList(Heads(width, heads, dropout=dropout, taps=taps) for _ in range(scales))
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = CrossRegions(width, heads, slots=slots, dropout=dropout, scope=scope) if cross else None
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """outside: bool [B, V, h, w], the grid of the patches, True = an absent view; the flat layout reads its shape alone."""
        _, views, high, wide = outside.shape
        shape, sizes = (views, high, wide), self.sizes
        masks = None
        if sizes:
            masks = [cut(~outside[..., None], size)[..., 0] for size in sizes]
        else:
            side = FLAT * math.ceil(math.sqrt(x.shape[1]) / FLAT)
            shape, sizes = (1, side, side), (side // FLAT,)
        ys = [x] * len(sizes)
        if len(self.regions):
            ys = [x + self.within(number, x, shape, size, masks) for number, size in enumerate(sizes)]
        if self.cross is not None and self.cross_norm is not None:
            scales = [cut(_grid(self.cross_norm(y), shape), size) for y, size in zip(ys, sizes)]
            answers = self.cross(scales, masks)
            ys = [y + _patches(a, shape, size, x.shape[1]) for y, a, size in zip(ys, answers, sizes)]
        return self.norm(torch.stack(ys).mean(0))

    def within(self, number: int, x, shape, size: int, masks) -> torch.Tensor:
        """R-MSA of one scale."""
        regions = cut(_grid(self.region_norms[number](x), shape), size)
        mixed = self.regions[number](regions, None if masks is None else masks[number])
        return _patches(mixed, shape, size, x.shape[1])


def _grid(x: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Patches [B, P, D], zeros behind them -> [B, V, h, w, D]."""
    return F.pad(x, (0, 0, 0, math.prod(shape) - x.shape[1])).unflatten(1, shape)


def _patches(regions: torch.Tensor, shape: tuple[int, int, int], size: int, count: int) -> torch.Tensor:
    """Regions [B, R, n, D] -> the first `count` patches [B, count, D]."""
    return joined(regions, shape, size).flatten(1, 3)[:, :count]
