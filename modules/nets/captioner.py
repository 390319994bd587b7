"""The encoder-decoder of a family of report generators (Chen et al. 2020, 2021; Wang et al. 2022), and what they add to.

B studies, V views, P patches of all views, L word positions, D width, K beams. A system of the family is a subclass: it
may change the patches before the encoder, the words before the decoder, and condition the decoder's norms.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from modules.nets.transformer import Attention, DecoderLayer, EncoderLayer, WordCache, causal_mask
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import at_least_float32

PLACES = 5000  # sinusoidal positions, as published


class Scaled(nn.Module):
    """What Norm and norms that are given a condition share: weight, bias and the normed x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        x = at_least_float32(x)
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


class Norm(Scaled):
    """weight (x - mean) / (std + 1e-6) + bias with the unbiased standard deviation: not PyTorch's LayerNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * self.normed(x) + self.bias


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Positions 0.. as sines (even columns) and cosines (odd) -> [count, width]. Source: Vaswani et al. 2017."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def start_matrices(part: nn.Module) -> None:
    """Every matrix of the transformer starts xavier-uniform, each of the three stacked in an attention on its own."""
    for module in part.modules():
        if isinstance(module, Attention):  # as three Linear layers start
            for matrix in module.in_proj_weight.data.chunk(3):
                nn.init.xavier_uniform_(matrix)
            bound = 1 / math.sqrt(module.in_proj_weight.shape[1])
            nn.init.uniform_(module.in_proj_bias, -bound, bound)
            nn.init.uniform_(module.out_proj.bias, -bound, bound)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.xavier_uniform_(module.weight)


class Captioner(nn.Module):
    """Patches of all views, an encoder, a decoder. BOS, EOS and padding are id 0; log-probabilities cover vocab_size ids.

    max_tokens: ids of a report, BOS and EOS included. place_patches: the encoder's input gets positions too.
    norm, plain_norm: functions width -> norm, of the decoder's layers and of all else. activation: of the feed-forward
    layers. beside: further columns of the output layer's input.
    A view that is absent (batch.view_mask) is never looked at: neither by attention nor by batch norm.
    """

    padding = bos = eos = 0
    padding_ends = True
    conditional = False  # whether the decoder's norms are given the condition
    places: torch.Tensor
    encoder: Any  # of EncoderLayer, and
    decoder: Any  # of DecoderLayer; nn.ModuleList does not say of what

    def __init__(
        self,
        extractor: VisualExtractor,
        *,
        vocab_size: int,
        width: int = 512,
        heads: int = 8,
        inner: int = 512,
        layers: int = 3,
        max_tokens: int = 60,
        dropout: float = 0.1,
        feature_dropout: float = 0.5,
        place_patches: bool = True,
        norm=Norm,
        beside: int = 0,
        plain_norm=Norm,
        activation=F.relu,
        decoder_layer=DecoderLayer,
    ) -> None:
        super().__init__()
        self.extractor, self.width, self.max_tokens = extractor, width, max_tokens
        self.place_patches = place_patches
        self.project, self.feature_dropout = nn.Linear(extractor.width, width), nn.Dropout(feature_dropout)
        self.word = nn.Embedding(vocab_size, width)
        self.register_buffer("places", sinusoids(PLACES, width), persistent=False)
        self.dropout = nn.Dropout(dropout)
        shape = {"width": width, "heads": heads, "inner": inner, "dropout": dropout, "activation": activation}
        self.encoder = nn.ModuleList(EncoderLayer(**shape, norm=plain_norm) for _ in range(layers))
        self.decoder = nn.ModuleList(decoder_layer(**shape, norm=norm) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = plain_norm(width), plain_norm(width)
        self.head = nn.Linear(width + beside, vocab_size)
        self.loss_weights = {"ce": 1.0}
        for part in (self.encoder, self.decoder, self.word):
            start_matrices(part)

    # -- what a system of the family may change --------------------------------------------------------------------

    def lookup(self, batch, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is looked up once per study, beside the patches; features [B, P, C] as the extractor gives them."""
        return {}

    def embed_patches(self, features: torch.Tensor) -> torch.Tensor:
        """Features of the extractor [B, P, C] -> patches [B, P, D]."""
        return self.feature_dropout(F.relu(self.project(features)))

    def bank(self) -> tuple[torch.Tensor, ...]:
        """What is looked up and the same for every study; made once per batch, kept in the cache."""
        return ()

    def view_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images of one view [B, 3, H, W] -> patches [B, h * w, F] before their projection."""
        return self.extractor(images).flatten(2).mT

    def read_patches(self, patches: torch.Tensor, memory: dict, bank: tuple) -> torch.Tensor:
        """patches [B, P, D] as they go to the encoder, positions not yet added. memory: "outside", "mask", the lookup."""
        return patches

    def encoded(self, patches: torch.Tensor, memory: dict, sampling: bool) -> torch.Tensor:
        """patches [B, P, D] as they leave the encoder."""
        return patches

    def read_words(self, words: torch.Tensor, memory: dict, bank: tuple) -> torch.Tensor:
        """Embedded words [B, L or K, D] as they go to the decoder."""
        return words

    def condition(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What drives the decoder beside its input at each position of tokens [B, L]; first axes B, L."""
        return ()

    def condition_step(self, words: torch.Tensor, state: list) -> tuple[tuple[torch.Tensor, ...], list]:
        """The same for one word per beam: words [B, K, D] and the state so far ([] at first) -> condition, state.

        state: tensors with first axis B * K.
        """
        return (), []

    # -- what the Trainer needs ------------------------------------------------------------------------------------

    def losses(self, batch) -> dict[str, torch.Tensor]:
        """Named scalars of one batch; the trainer sums them with `loss_weights`."""
        return self.word_losses(batch, self.encode(batch, sampling=False))

    def prepare(self, batch):
        """The tokens are cut to the batch's longest report."""
        return batch if batch.tokens is None else dataclasses.replace(batch, tokens=self.report(batch.tokens)[0])

    def word_losses(self, batch, memory: dict) -> dict[str, torch.Tensor]:
        """ "ce": mean over the words of all reports and their EOS."""
        tokens = batch.tokens[:, : self.max_tokens]
        counted = self.counted(tokens)
        logits = at_least_float32(self.logits(memory, tokens[:, :-1]))
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(counted)
        return {"ce": (each * counted).sum() / counted.sum()}

    def loss_counts(self, batch) -> dict[str, float]:
        """What "ce" is a mean over, so that a step split over processes keeps the gradient of the whole."""
        return {"ce": float(self.report(batch.tokens)[1].sum())}

    def counted(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which targets of ids [B, L + 1] count, bool [B, L]: the words and EOS."""
        lengths = (tokens != self.padding).sum(1) + 2  # the words, BOS and EOS
        return torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]

    def report(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded ids [B, any] -> ids [B, L + 1] of the batch's longest report, and which targets count, bool [B, L]."""
        tokens = tokens[:, : self.max_tokens]
        longest = int((tokens != self.padding).sum(1).max()) + 2
        tokens = tokens[:, :longest]
        return tokens, self.counted(tokens)

    # -- what decoding needs ---------------------------------------------------------------------------------------

    def encode(self, batch, *, sampling: bool = True) -> dict[str, torch.Tensor]:
        """Everything about a study that no token changes, made once. First axis of every tensor: B.

        sampling: for generation, not for teacher forcing; the same but for a system that overrides `encoded`.
        "patches" [B, P, D], the encoder's output; "outside" bool [B, V, h, w], their grid (True = no image there); per
        layer i "keys.i", "values.i" [B, heads, P, D / heads]; "mask" bool [B, 1, 1, P] (True = a real patch) where a view is
        absent; what `lookup` gives.
        """
        features, mask = self.features(batch)
        memory = self.lookup(batch, features) | ({} if mask is None else {"mask": mask})
        memory["outside"] = self._outside(batch, features)
        patches = self.read_patches(self.embed_patches(features), memory, self.bank())
        if self.place_patches:
            patches = self.dropout(patches + self.places[: patches.shape[1]])
        for layer in self.encoder:
            patches = layer(patches, None, mask)
        memory["patches"] = patches = self.encoded(self.encoder_norm(patches), memory, sampling)
        for number, layer in enumerate(self.decoder):
            memory[f"keys.{number}"], memory[f"values.{number}"] = layer.patches(patches, None)
        return memory

    def features(self, batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The extractor's features [B, P, C] of all views, one view after another, and their mask [B, 1, 1, P] or None.

        Each view goes through the extractor on its own, as published: batch norm sees one kind of image at a time.
        """
        features = []
        for number in range(batch.images.shape[1]):
            images, rows = batch.images[:, number], batch.studies_with(number)
            if rows is None:
                features.append(self.view_features(images))
            else:
                real = self.view_features(images.index_select(0, rows))
                features.append(real.new_zeros(len(images), *real.shape[1:]).index_copy(0, rows, real))
        mask = None
        if batch.view_mask is not None:
            mask = batch.view_mask.repeat_interleave(features[0].shape[1], 1)[:, None, None, :]
        return torch.cat(features, 1), mask

    def looked_at(self, memory: dict, number: int) -> tuple:
        """Keys, values and mask of what the decoder's layer `number` looks at."""
        return memory[f"keys.{number}"], memory[f"values.{number}"], memory.get("mask")

    @staticmethod
    def _outside(batch, patches: torch.Tensor) -> torch.Tensor:
        """bool [B, V, h, w], the grid of the patches [B, P, D], True = no image there."""
        studies, views = batch.images.shape[:2]
        side = math.isqrt(patches.shape[1] // views)  # images are square
        absent = patches.new_zeros(studies, views, dtype=torch.bool) if batch.view_mask is None else ~batch.view_mask
        return absent[:, :, None, None].expand(-1, -1, side, side)

    def embed(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """tokens [B, L] and their positions, broadcast to [B, L, D] -> [B, L, D]."""
        return self.dropout(self.word(tokens) * math.sqrt(self.width) + places)

    def logits(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        """Teacher-forced pass: tokens [B, L] -> [B, L, vocab_size]."""
        x = self.read_words(self.embed(tokens, self.places[: tokens.shape[1]]), memory, self.bank())
        condition = self.condition(tokens)
        for_norms = condition if self.conditional else ()
        padding = tokens == self.padding
        padding[:, 0] = False  # BOS
        report_mask = causal_mask(padding)
        for number, layer in enumerate(self.decoder):
            x = layer(x, None, *self.looked_at(memory, number), report_mask, for_norms)
        return self.say(self.decoder_norm(x), condition)

    def say(self, x: torch.Tensor, condition: tuple) -> torch.Tensor:
        """The decoder's output [B, L, D] -> [B, L, vocab_size]."""
        return self.head(x)

    def step(self, tokens: torch.Tensor, memory: dict, cache: WordCache | None) -> tuple[torch.Tensor, WordCache]:
        """The next word of each beam: tokens [B, K] (the last ones written) -> logits [B, K, vocab_size], cache."""
        if cache is None:
            cache = WordCache(
                memory["keys.0"], layers=len(self.decoder), beams=tokens.shape[1], length=self.max_tokens
            )
            cache.bank = self.bank()
        words = self.embed(tokens, self.places[cache.at])
        condition, cache.state = self.condition_step(words, cache.state)
        x = self.read_words(words, memory, cache.bank)
        for_norms = condition if self.conditional else ()
        for number, (layer, past) in enumerate(zip(self.decoder, cache.layers())):
            x = layer.step(x, None, *self.looked_at(memory, number), past, for_norms)
        cache.at += 1
        return self.say(self.decoder_norm(x), condition), cache
