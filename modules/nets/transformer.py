"""Pre-norm transformer layers with cached decoding, in the form of DETR (Carion et al. 2020) and its captioning child.

B studies, P patches, L tokens, K beams, D width. Position codes are added to queries and keys only, never to values;
position None: the caller has added them to the input. `norm`: function width -> layer; a decoder's norms are given
`condition` (a tuple of tensors, usually empty) beside their input.
Keys and values of the words already written are cached (WordCache), so a word costs one row, not a whole pass.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear, the other way round where decoding on a CPU brings a few rows: up to twice as fast there."""
    rows = x.numel() // x.shape[-1]
    if x.is_cuda or not 2 <= rows <= 16 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()
    product = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return product.t().contiguous().view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """nn.Linear for words that are written one by one; see few_rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return few_rows(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head attention with one stacked projection, parameters as in nn.MultiheadAttention."""

    multiplied = ("in_proj_weight", "in_proj_bias")  # see Precision.generation

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not split into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.seen: list[torch.Tensor] | None = None  # see `watched`
        self.gate: Callable | None = None  # function of the queries, see modules/nets/query_gate.py
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, part: str, x: torch.Tensor) -> torch.Tensor:
        """x [B, L, D] -> the queries, keys or values ("q", "k", "v") [B, heads, L, D / heads]."""
        width = x.shape[-1]
        rows = slice(width * "qkv".index(part), width * ("qkv".index(part) + 1))
        return self._split(few_rows(x, self.in_proj_weight[rows], self.in_proj_bias[rows]))

    def attend(self, q, k, v, *, mask: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        """Projected queries, keys, values -> [B, L, D]. mask: bool, True = may be looked at, broadcast to [B, 1, L, S]."""
        dropout = self.dropout if self.training else 0.0
        q = q if self.gate is None else self.gate(q)
        if self.seen is not None:
            scores = (q @ k.mT).float() / math.sqrt(q.shape[-1])
            scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
            self.seen.append(scores.softmax(-1).mean(1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@contextmanager
def watched(attentions: Iterable[Attention]) -> Iterator[list[torch.Tensor]]:
    """Collects what these (not causal) attentions look at inside the `with`: per call [B, L, S], mean over the heads."""
    attentions = list(attentions)
    seen: list[torch.Tensor] = []
    for attention in attentions:
        attention.seen = seen
    try:
        yield seen
    finally:
        for attention in attentions:
            attention.seen = None


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear."""

    def __init__(self, width: int, inner: int, dropout: float, activation=F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.linear1, self.linear2 = Linear(width, inner), Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


def placed(x: torch.Tensor, position: torch.Tensor | None) -> torch.Tensor:
    """x with its position code."""
    return x if position is None else x + position


class EncoderLayer(nn.Module):
    """x [B, P, D] -> [B, P, D]."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, norm=nn.LayerNorm, activation=F.relu) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed = FeedForward(width, inner, dropout, activation)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, position: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        a, y = self.attention, self.norm1(x)
        there = placed(y, position)
        x = x + self.dropout(a.attend(a.project("q", there), a.project("k", there), a.project("v", y), mask=mask))
        return x + self.dropout(self.feed(self.norm2(x)))


class DecoderLayer(nn.Module):
    """Self-attention over the report, cross-attention to the patches, feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, norm=nn.LayerNorm, activation=F.relu) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed = FeedForward(width, inner, dropout, activation)
        self.norm1, self.norm2, self.norm3 = (norm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def patches(self, memory: torch.Tensor, position: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the patches, made once per study: memory [B, P, D] -> two of [B, heads, P, D / heads]."""
        keys, values = self.cross_attention.project("k", placed(memory, position)), self.cross_attention.project("v", memory)
        return keys.contiguous(), values.contiguous()  # read at every word: head by head without gaps

    def forward(self, x, position, keys, values, memory_mask, report_mask, condition=()) -> torch.Tensor:
        """Teacher-forced pass. x [B, L, D]; report_mask bool [B, 1, L, L], memory_mask bool [B, 1, 1, P] or None."""
        a, y = self.self_attention, self.norm1(x, *condition)
        there = placed(y, position)
        q, k, v = a.project("q", there), a.project("k", there), a.project("v", y)
        x = x + self.dropout(a.attend(q, k, v, mask=report_mask))
        return self._rest(x, position, keys, values, memory_mask, condition)

    def step(self, x, position, keys, values, memory_mask, past, condition=()) -> torch.Tensor:
        """One word per beam. x [B, K, D]; past: this layer's function of WordCache.layers()."""
        a, y, width = self.self_attention, self.norm1(x, *condition), x.shape[-1]
        # one projection for queries and keys: at batch sizes of decoding the weights' traffic is what costs
        q, k = few_rows(placed(y, position), a.in_proj_weight[: 2 * width], a.in_proj_bias[: 2 * width]).chunk(2, -1)
        old_keys, old_values, mask = past(a._split(k), a.project("v", y))
        x = x + a.attend(a._split(q), old_keys, old_values, mask=mask)
        return self._rest(x, position, keys, values, memory_mask, condition)

    def _rest(self, x, position, keys, values, memory_mask, condition):
        a = self.cross_attention
        q = a.project("q", placed(self.norm2(x, *condition), position))
        x = x + self.dropout(a.attend(q, keys, values, mask=memory_mask))
        return x + self.dropout(self.feed(self.norm3(x, *condition)))


class WordCache:
    """Keys and values of the words written so far, of every layer; the cache that modules/decoding.py knows.

    The K beams of a study write into one store [B, heads, L * K, d], word after word, K slots each. `origin` [B, K, L] says
    in which slot a beam's word lies, so a beam that goes on from another takes over a row of numbers: no key or value
    moves. Of the system's own: `state`, tensors whose first axis is B * K, which do move, and `bank`, the same for all.
    """

    def __init__(self, like: torch.Tensor, *, layers: int, beams: int, length: int) -> None:
        """like [B, heads, any, d]: for shape, type and device."""
        studies, heads, _, depth = like.shape
        self.rows = [like.new_zeros(studies, heads, length * beams, depth) for _ in range(2 * layers)]
        self.slots = torch.arange(beams, device=like.device)
        self.origin = self.slots[:, None].repeat(studies, 1, length)
        self.at = 0
        self.state: list[torch.Tensor] = []
        self.bank: tuple[torch.Tensor, ...] = ()

    def layers(self) -> Iterator[Callable]:
        """Per layer: a function that takes the new word's keys and values [B, heads, K, d], and returns those of all words
        so far, [B, heads, words * K, d], and the mask bool [B, 1, K, words * K] of each beam's own (None for one beam)."""
        beams, mask = len(self.slots), None
        start, end = self.at * beams, (self.at + 1) * beams
        if beams > 1:
            mask = (self.origin[:, :, : self.at + 1, None] == self.slots).flatten(2)[:, None]

        def past(number: int, keys: torch.Tensor, values: torch.Tensor):
            for row, new in zip(self.rows[2 * number :], (keys, values)):
                row[:, :, start:end] = new
            return *(row[:, :, :end] for row in self.rows[2 * number : 2 * number + 2]), mask

        return (partial(past, number) for number in range(len(self.rows) // 2))

    def keep(self, studies: torch.Tensor | None = None, source: torch.Tensor | None = None) -> None:
        """Only these studies [b] stay (None: all); then beam k goes on from beam source[:, k] of its study [b, K]."""
        beams = len(self.slots)
        if studies is not None:
            self.rows = [row.index_select(0, studies) for row in self.rows]
            self.origin = self.origin.index_select(0, studies)
            self.state = [row.unflatten(0, (-1, beams)).index_select(0, studies).flatten(0, 1) for row in self.state]
        if source is not None:
            written = self.origin[:, :, : self.at]
            self.origin[:, :, : self.at] = written.gather(1, source[..., None].expand_as(written))
            moved = (torch.arange(len(source), device=source.device)[:, None] * beams + source).flatten()
            self.state = [row.index_select(0, moved) for row in self.state]


def causal_mask(padding: torch.Tensor) -> torch.Tensor:
    """padding bool [B, L], True = padding -> bool [B, 1, L, L], True = may be looked at (past or self, and a token).

    A row whose every key is padding would have nothing to look at; position 0 is BOS, so there is none.
    """
    length = padding.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=padding.device).tril()
    return past & ~padding[:, None, None, :]


def sine_positions(padding: torch.Tensor, width: int) -> torch.Tensor:
    """DETR's 2-D sine code. padding bool [B, h, w] (True = no image) -> [B, h * w, width]: half for y, then half for x.

    Row and column numbers count real cells only and are scaled to 2 pi; temperature 10000. Source: Carion et al. 2020.
    """
    real = (~padding).long()  # a running sum of integers is deterministic on every device
    half = width // 2
    scale = 10000 ** (2 * (torch.arange(half, device=padding.device) // 2) / half)
    codes = []
    for axis in (1, 2):
        count = real.cumsum(axis).float()
        last = count[:, -1:, :] if axis == 1 else count[:, :, -1:]
        angle = (count / (last + 1e-6) * 2 * math.pi)[..., None] / scale
        codes.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2))
    return torch.cat(codes, -1).flatten(1, 2)


def start_small(part: nn.Module) -> None:
    """Every matrix of the transformer starts xavier-uniform, as DETR's: word and position codes stay small beside content."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class Embedding(nn.Module):
    """Words with learned positions: ids [B, L] -> [B, L, D]; LayerNorm with BERT's eps 1e-12."""

    def __init__(self, vocab_size: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocab_size, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        start_small(self)

    def forward(self, ids: torch.Tensor, at: int = 0) -> torch.Tensor:
        places = self.position.weight[at : at + ids.shape[1]]
        return self.dropout(self.norm(self.word(ids) + places))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer's parameters by the names of modules.nets.knowledge_base.embed."""
        return {
            "word": self.word.weight.detach(),
            "position": self.position.weight.detach(),
            "weight": self.norm.weight.detach(),
            "bias": self.norm.bias.detach(),
        }

    def take(self, layer: dict[str, torch.Tensor]) -> None:
        """Start from the embedding layer that made a knowledge base."""
        for name, value in self.tensors().items():
            value.copy_(layer[name])
