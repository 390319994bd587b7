"""R2GenCMN (Chen et al., ACL 2021): a memory matrix that patches and words query alike (Cross-modal Memory Networks).

B studies, P patches, L words, D width, M memory rows. Source of the numbers and of the order of operations: the paper and
the behaviour of the released code (zhjohnchan/R2GenCMN).
"""

import math

import torch
from torch import nn

from modules.nets.captioner import Captioner, start_matrices
from modules.nets.captioner_build import (
    captioner_settings,
    check_captioner,
    load_captioner,
    load_pretrained,
    make_tokenizer,
    released_layout,
)
from modules.nets.memory import MemoryResponse

__all__ = ["build", "check", "inputs", "load_pretrained", "load_start", "make_tokenizer", "parts", "released_state"]


class R2GenCMN(Captioner):
    """x + response(x) for patches and words, from one matrix [M, D]; mem_size 0 = no memory (the paper's base)."""

    def __init__(self, *, mem_size: int = 2048, topk: int = 32, width: int, heads: int, dropout: float, **settings):
        super().__init__(width=width, heads=heads, dropout=dropout, **settings)
        self.memory = None
        if mem_size:
            self.memory = nn.Parameter(torch.randn(mem_size, width) / math.sqrt(width))
            self.respond = MemoryResponse(width, heads, topk, dropout)
            start_matrices(self.respond)

    def bank(self):
        return () if self.memory is None else self.respond.rows(self.memory[None])

    def read_patches(self, patches, memory, bank):
        return patches + self.respond(patches, *bank) if bank else patches

    def read_words(self, words, memory, bank):
        return words + self.respond(words, *bank) if bank else words


def check(args, problems, *, training: bool, carried: bool = False) -> None:
    """What would fail later."""
    check_captioner(args, problems, training=training)
    text = f"--topk {args.topk} exceeds --mem_size {args.mem_size}"
    problems.check(args.mem_size == 0 or args.topk <= args.mem_size, text)


def inputs(args, *, training: bool) -> set[str]:
    """Nothing beside images and reports."""
    return set()


def build(args, tokenizer, parts=None) -> R2GenCMN:
    """The generator of the flags with random weights."""
    return R2GenCMN(mem_size=args.mem_size, topk=args.topk, **captioner_settings(args, tokenizer))


def parts(system) -> dict:
    """What a checkpoint holds beside the weights."""
    return {}


def released_state(state: dict) -> dict:
    """The authors' state_dict -> ours; the memory's layers stand in it twice."""
    own = (
        (r"^encoder_decoder\.memory_matrix$", "memory"),
        (r"^encoder_decoder\.(?:model\.)?cmn\.(.+)$", r"respond.\1"),
    )
    return released_layout(state, own, "R2GenCMN")


def load_start(system, content: dict, source: str, args) -> None:
    """Weights to test or to start from: ours or the authors'."""
    load_captioner(system, content, source, released_state)
