"""R2GenCMN (Chen et al., ACL 2021): a memory matrix that patches and words query alike (Cross-modal Memory Networks).

B studies, P patches, L words, D width, M memory rows. Source of the numbers and of the order of operations: the paper and
the behaviour of the released code (zhjohnchan/R2GenCMN).
"""

import math
from typing import ClassVar

import torch
from torch import nn

from models.family import NOAM, PUBLISHED_FLAGS, TOPK, FamilySystem, captioner_settings, family_presets
from modules.flag_help import Theirs
from modules.flags import Flag, natural
from modules.nets.captioner import start_matrices
from modules.nets.memory import MemoryResponse

MEM_SIZE = Flag("memory", "mem_size", natural, 2048, "rows of the memory matrix, 0 = no memory (the paper's base)", keep="shape")


class R2GenCMN(FamilySystem):
    """x + response(x) for patches and words, from one matrix [M, D]; mem_size 0 = no memory (the paper's base)."""

    title = "R2GenCMN"
    flags: ClassVar[tuple[Flag, ...]] = (*FamilySystem.flags, MEM_SIZE, TOPK)
    published_flags = PUBLISHED_FLAGS | {
        "cmm_size": Theirs("--mem_size"),
        "cmm_dim": Theirs("", "the memory is as wide as --d_model"),
    }
    presets = family_presets(
        iu={**NOAM, "lr_ve": 1e-4, "lr_ed": 5e-4, "step_size": 10, "seed": 7580},
        mimic={"step_size": 3, "seed": 9153},
        miniature={"mem_size": 256, "topk": 16},
    )
    rules: ClassVar[tuple] = (  # the memory's layers stand twice in the released file
        (r"^encoder_decoder\.memory_matrix$", "memory"),
        (r"^encoder_decoder\.(?:model\.)?cmn\.(.+)$", r"respond.\1"),
    )

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

    @classmethod
    def check(cls, args, problems, *, training, carried=False) -> None:
        super().check(args, problems, training=training, carried=carried)
        text = f"--topk {args.topk} exceeds --mem_size {args.mem_size}"
        problems.check(args.mem_size == 0 or args.topk <= args.mem_size, text)

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "R2GenCMN":
        return cls(mem_size=args.mem_size, topk=args.topk, **captioner_settings(args, tokenizer))
