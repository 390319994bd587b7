"""GPT-2's decoder with cross-attention to patches, on the project's own layers and cache.

B studies, P patches, L tokens, K beams, D width. A layer is the pre-norm DecoderLayer of modules/nets/transformer.py with GPT-2's
feed-forward part. Source: Radford et al. 2019; names and numbers of the files as Hugging Face distributes them.
"""

import math
import re
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from modules.errors import InputError
from modules.nets.transformer import DecoderLayer, Linear, WordCache, few_rows

POSITIONS = 1024  # of GPT-2's files


class FeedForward(nn.Module):
    """Linear, GELU in its tanh form, Linear; no dropout between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = Linear(width, inner), Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.gelu(self.linear1(x), approximate="tanh"))


class GPT2(nn.Module):
    """Tokens and patches -> logits; the output layer is the word embedding. Dropout at four places, as published."""

    layers: Any  # of DecoderLayer; nn.ModuleList does not say of what

    def __init__(
        self, *, vocab_size: int, width: int = 768, heads: int = 12, inner: int = 3072, layers: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocab_size, width), nn.Embedding(POSITIONS, width)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        for layer in self.layers:
            layer.feed = FeedForward(width, inner)
        self._start()

    def _start(self) -> None:
        """Random start: normal 0.02, what is added to the residual stream 0.02 / sqrt(2 layers); biases 0."""
        small = 0.02 / math.sqrt(2 * len(self.layers))
        nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        for layer in self.layers:
            for attention in (layer.self_attention, layer.cross_attention):
                nn.init.normal_(attention.in_proj_weight, std=0.02)
                nn.init.normal_(attention.out_proj.weight, std=small)
            nn.init.normal_(layer.feed.linear1.weight, std=0.02)
            nn.init.normal_(layer.feed.linear2.weight, std=small)
            for linear in (layer.feed.linear1, layer.feed.linear2):
                nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def warm_start(self, state: dict, source: str) -> None:
        """Take a language model's weights (names as own_names gives them); InputError where they do not fit.

        What it has not stays random: cross-attention with its norm, and the last rows of the word embedding.
        """
        own = {n: p for n, p in self.state_dict().items() if "cross_attention" not in n and ".norm2." not in n}
        rows = state.get("word.weight", own["word.weight"][:0])
        fits = {n: tuple(p.shape) for n, p in own.items()} | {"word.weight": (len(rows), own["word.weight"].shape[1])}
        wrong = [name for name in {**own, **state} if name not in state or fits.get(name) != tuple(state[name].shape)]
        if wrong or not 0 < len(rows) <= len(own["word.weight"]):
            raise InputError(f"weights {source} do not fit the decoder: {len(wrong)} tensors, such as {', '.join(wrong[:3])}")
        for name, value in state.items():
            own[name][: len(value)].copy_(value)

    def memory(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys and values of the patches [B, P, D], once per study: "keys.i", "values.i" [B, heads, P, D / heads]."""
        made = {}
        for number, layer in enumerate(self.layers):
            made[f"keys.{number}"], made[f"values.{number}"] = layer.patches(patches, None)
        return made

    def forward(self, tokens: torch.Tensor, memory: dict) -> torch.Tensor:
        """Teacher-forced pass: tokens [B, L] -> logits [B, L, vocab_size]. Padding only follows the text: no mask for it."""
        length = tokens.shape[1]
        x = self.dropout(self.word(tokens) + self.position.weight[:length])
        past = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()[None, None]
        for number, layer in enumerate(self.layers):
            x = layer(x, None, memory[f"keys.{number}"], memory[f"values.{number}"], memory.get("mask"), past)
        return self.head(x)

    def step(self, tokens: torch.Tensor, memory: dict, cache: WordCache | None, length: int) -> tuple[torch.Tensor, WordCache]:
        """The next token of each beam: tokens [B, K] -> logits [B, K, vocab_size], cache. length: most tokens of a report."""
        if cache is None:
            cache = WordCache(memory["keys.0"], layers=len(self.layers), beams=tokens.shape[1], length=length)
        x = self.word(tokens) + self.position.weight[cache.at]
        for number, (layer, past) in enumerate(zip(self.layers, cache.layers())):
            x = layer.step(x, None, memory[f"keys.{number}"], memory[f"values.{number}"], memory.get("mask"), past)
        cache.at += 1
        return self.head(x), cache

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's output [B, any, D] -> logits."""
        return few_rows(self.norm(x), self.word.weight, None)


# -- files of others ---------------------------------------------------------------------------------------------------

# constant buffers that some versions of the library store: the causal mask and its fill value
CONSTANT = re.compile(r"^(?:transformer\.)?h\.\d+\.(?:attn|crossattention)\.(?:masked_)?bias$")
NAMES = {
    "ln_1": "norm1", "ln_cross_attn": "norm2", "ln_2": "norm3", "attn.c_proj": "self_attention.out_proj",
    "crossattention.c_proj": "cross_attention.out_proj", "mlp.c_fc": "feed.linear1", "mlp.c_proj": "feed.linear2",
    "attn.c_attn": "self_attention.in_proj",
}  # fmt: skip
OUTER = {"wte.weight": "word.weight", "wpe.weight": "position.weight", "ln_f.weight": "norm.weight", "ln_f.bias": "norm.bias"}
LAYER = re.compile(rf"^h\.(\d+)\.({'|'.join(map(re.escape, NAMES))})\.(weight|bias)$")
CROSS = re.compile(r"^h\.(\d+)\.crossattention\.(?:q_attn|c_attn)\.(weight|bias)$")


def own_names(state: dict, what: str) -> dict:
    """A GPT-2 state_dict -> ours: matrices are stored (in, out) there, queries of the cross-attention apart from the rest.

    Raises InputError for a key without a rule, and where `lm_head.weight` differs from the word embedding.
    """
    state = {key.removeprefix("transformer."): value for key, value in state.items() if not CONSTANT.match(key)}
    head = state.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, state.get("wte.weight", head[:0])):
        raise InputError(f"{what}: lm_head.weight and wte.weight differ, but the output layer is the word embedding")
    renamed, unknown = {}, []
    for key, value in state.items():
        layer, cross = LAYER.match(key), CROSS.match(key)
        if key in OUTER:
            renamed[OUTER[key]] = value
        elif layer:
            name, leaf = NAMES[layer[2]], layer[3]
            name += f"_{leaf}" if name.endswith("in_proj") else f".{leaf}"
            renamed[f"layers.{layer[1]}.{name}"] = value.t().contiguous() if value.dim() == 2 else value
        elif cross and {f"h.{cross[1]}.crossattention.{part}.{cross[2]}" for part in ("q_attn", "c_attn")} <= set(state):
            parts = [state[f"h.{cross[1]}.crossattention.{part}.{cross[2]}"] for part in ("q_attn", "c_attn")]
            joined = torch.cat(parts, -1)
            renamed[f"layers.{cross[1]}.cross_attention.in_proj_{cross[2]}"] = joined.t().contiguous()
        else:
            unknown.append(key)
    if unknown:
        raise InputError(f"{what}: {len(unknown)} unknown keys, such as {', '.join(unknown[:3])}")
    return renamed
