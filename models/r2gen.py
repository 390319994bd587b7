"""R2Gen (Chen et al., EMNLP 2020): a relational memory that drives the decoder's norms (Memory-driven Transformer).

B studies, L words, K beams, N = B or B * K rows, S memory slots, D width, d = D / heads. Source of the numbers and of the
order of operations: the paper and the behaviour of the released code (cuhksz-nlp/R2Gen).
"""

from functools import partial

import torch
from torch import nn

from models.family import PUBLISHED_FLAGS, FamilySystem, captioner_settings, family_presets
from modules.flag_help import Theirs
from modules.flags import Flag, positive_int
from modules.nets.captioner import Norm, Scaled, start_matrices
from modules.nets.transformer import Attention

# fmt: off
FLAGS = (
    Flag("r2gen", "relational_memory", bool, True, "drive the decoder by a relational memory (off: plain transformer, the "
         "paper's base)", keep="shape"),
    Flag("r2gen", "mcln", bool, True, "memory-driven conditional layer norm (off: the memory joins the output layer's input)",
         keep="shape"),
    Flag("r2gen", "rm_num_slots", positive_int, 3, "slots of the relational memory", keep="shape"),
)
# fmt: on
_GATES = {"gamma": "scale", "beta": "shift"}


def two_layers(inside: int, width: int) -> list[nn.Module]:
    return [nn.Linear(inside, width), nn.ReLU(), nn.Linear(width, width)]


class RelationalMemory(nn.Module):
    """S slots that each word updates: attention over [slots; word], a feed-forward part, input and forget gates."""

    first: torch.Tensor

    def __init__(self, slots: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(*two_layers(width, width), nn.ReLU())
        self.word_gates, self.slot_gates = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.register_buffer("first", torch.eye(slots, width), persistent=False)
        start_matrices(self)

    def read(self, words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What depends on the words [N, L, D] alone: keys, values [N, heads, L, d] and gates [N, L, 2 D]."""
        a = self.attention
        return a.project("k", words), a.project("v", words), self.word_gates(words)

    def move(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """One word: slots [N, S, D], key, value [N, heads, 1, d], gates [N, 1, 2 D] -> the next slots."""
        a = self.attention
        keys, values = torch.cat([a.project("k", slots), key], 2), torch.cat([a.project("v", slots), value], 2)
        following = slots + a.attend(a.project("q", slots), keys, values)
        following = following + self.mlp(following)
        take, keep = (gates + self.slot_gates(slots.tanh())).sigmoid().chunk(2, -1)
        return take * following.tanh() + keep * slots

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """words [B, L, D] -> the slots after each word, flat [B, L, S * D]."""
        slots, states = self.first.expand(len(words), -1, -1), []
        keys, values, gates = self.read(words)
        for at in range(words.shape[1]):
            now = slice(at, at + 1)
            slots = self.move(slots, keys[:, :, now], values[:, :, now], gates[:, now])
            states.append(slots.flatten(1))
        return torch.stack(states, 1)


class ConditionalNorm(Scaled):
    """Norm whose scale and shift a memory state changes (MCLN)."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__(width)
        self.scale, self.shift = (nn.Sequential(*two_layers(condition, width)) for _ in range(2))
        for part in (self.scale, self.shift):
            start_matrices(part)
            nn.init.constant_(part.get_parameter("0.bias"), 0.1)
            nn.init.constant_(part.get_parameter("2.bias"), 0.1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """x [B, L, D], state [B, L, S * D] -> [B, L, D]."""
        return (self.weight + self.scale(state)) * self.normed(x) + self.bias + self.shift(state)


class R2Gen(FamilySystem):
    """relational_memory=False: a plain transformer (the paper's base); mcln=False: the memory joins the output layer's input."""

    title = "R2Gen"
    flags = (*FamilySystem.flags, *FLAGS)
    published_flags = PUBLISHED_FLAGS | {
        "rm_num_heads": Theirs("", "the memory has the heads of --num_heads, as published"),
        "rm_d_model": Theirs("", "the memory is as wide as --d_model, as published"),
    }
    presets = family_presets(
        iu={"lr_ve": 5e-5, "lr_ed": 1e-4, "step_size": 50, "lr_gamma": 0.1, "clip_value": 0.1, "seed": 9223},
        mimic={"step_size": 1, "lr_gamma": 0.8, "seed": 456789},
        miniature={},
    )
    rules = (
        (r"^encoder_decoder\.model\.rm\.attn\.(.+)$", r"relational.attention.\1"),
        (r"^encoder_decoder\.model\.rm\.mlp\.(.+)$", r"relational.mlp.\1"),
        (r"^encoder_decoder\.model\.rm\.W\.(.+)$", r"relational.word_gates.\1"),
        (r"^encoder_decoder\.model\.rm\.U\.(.+)$", r"relational.slot_gates.\1"),
        (
            r"^encoder_decoder\.model\.decoder\.layers\.(\d+)\.sublayer\.(\d)\.norm\.mlp_(gamma|beta)\.(.+)$",
            lambda m: f"decoder.{m[1]}.norm{int(m[2]) + 1}.{_GATES[m[3]]}.{m[4]}",
        ),
    )

    def __init__(self, *, slots: int = 3, relational_memory: bool = True, mcln: bool = True, width: int, heads: int,
                 dropout: float, **settings) -> None:  # fmt: skip
        flat, conditional = slots * width, relational_memory and mcln
        settings["norm"] = partial(ConditionalNorm, condition=flat) if conditional else Norm
        settings["beside"] = flat if relational_memory and not mcln else 0
        super().__init__(width=width, heads=heads, dropout=dropout, place_patches=False, **settings)
        self.conditional = conditional
        self.relational = RelationalMemory(slots, width, heads, dropout) if relational_memory else None

    def condition(self, tokens):
        if self.relational is None:
            return ()
        # embedded once more, as published: in training its dropout differs from the decoder's
        return (self.relational(self.embed(tokens, self.places[: tokens.shape[1]])),)

    def condition_step(self, words, state):
        if self.relational is None:
            return (), []
        flat = words.reshape(-1, 1, self.width)
        slots = state[0] if state else self.relational.first.expand(len(flat), -1, -1)
        slots = self.relational.move(slots, *self.relational.read(flat))
        return (slots.view(*words.shape[:2], -1),), [slots]

    def say(self, x, condition):
        return self.head(torch.cat([x, *condition], -1) if condition and not self.conditional else x)

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "R2Gen":
        memory = {"slots": args.rm_num_slots, "relational_memory": args.relational_memory, "mcln": args.mcln}
        return cls(**memory, **captioner_settings(args, tokenizer))
