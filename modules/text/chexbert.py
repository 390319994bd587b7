"""CheXbert from a user's own file: its licence forbids shipping it, so `--chexbert_path chexbert.pth` brings it.

BERT-base in plain PyTorch, under the names of the file, so that it loads strictly and needs no further package: embeddings,
12 layers, the last state at [CLS], 14 linear heads. Sizes are read from the file.

Source: Smit et al. 2020 (CheXbert), Devlin et al. 2019 (BERT, WordPiece).
Differs: reports are batched by length; no dropout, as the labeler is only read.
"""

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from modules.errors import InputError
from modules.progress import tracked
from modules.safe_pickle import load_pickle
from modules.text.labels import CHEXPERT_14

# The order of the heads; 13 with the classes of clinical.STATES (absent, positive, negative, uncertain), the last with two.
HEADS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
CLASSES = (4,) * 13 + (2,)
MOST_TOKENS = 512
HEAD_WIDTH = 64  # of one attention head, in every BERT
BATCH_TOKENS = 8192  # tokens of one batch, padding counted
assert sorted(HEADS) == sorted(CHEXPERT_14)


class WordPiece:
    """BERT's uncased tokenizer on a vocabulary file: one piece a line, its number is its id.

    Text is lower-cased, accents dropped, cut at blanks and signs; a word is the longest pieces from left to right, or [UNK].
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        try:
            pieces = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--chexbert_vocab: cannot read {path} ({error}); it is vocab.txt of BERT-base-uncased"
            ) from error
        self.ids = {piece.strip(): number for number, piece in enumerate(pieces)}
        absent = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in self.ids]
        if absent:
            raise InputError(f"--chexbert_vocab: {path} lacks {', '.join(absent)}: it is no BERT vocabulary")
        self.size = len(pieces)

    def words(self, text: str) -> list[str]:
        """Words and signs of a text."""
        kept = []
        for letter in unicodedata.normalize("NFD", text.lower()):
            kind = unicodedata.category(letter)
            if letter in "\t\n\r" or kind == "Zs":
                kept.append(" ")
            elif kind == "Mn" or kind.startswith("C") or letter == "\ufffd":
                continue
            elif kind.startswith("P") or letter in "$+<=>^`|~" or _is_han(ord(letter)):
                kept.append(f" {letter} ")
            else:
                kept.append(letter)
        return "".join(kept).split()

    def pieces(self, word: str) -> list[int]:
        """Ids of a word's pieces, or [UNK] where none fit."""
        found, start = [], 0
        while start < len(word) <= 100:
            for end in range(len(word), start, -1):
                number = self.ids.get(("##" if start else "") + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return found or [self.ids["[UNK]"]]

    def encode(self, text: str) -> list[int]:
        """[CLS] pieces [SEP], cut at 512 tokens."""
        pieces = [number for word in self.words(" ".join(text.split())) for number in self.pieces(word)]
        return [self.ids["[CLS]"], *pieces[: MOST_TOKENS - 2], self.ids["[SEP]"]]


def _is_han(code: int) -> bool:
    blocks = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    return any(first <= code <= last for first, last in blocks)


class _Named(nn.Module):
    """A module whose parts are given by name; the names are those of the file."""

    def __init__(this, /, **parts: nn.Module) -> None:  # one part of BERT is named self
        super().__init__()
        for name, part in parts.items():
            this.add_module(name, part)

    if TYPE_CHECKING:  # what the names are, the call says

        def __getattr__(self, name: str) -> Any: ...


class _Layer(nn.Module):
    """One BERT layer, post-norm. states [B, L, D], seen [B, 1, 1, L] bool -> [B, L, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        linear, norm = nn.Linear, partial(nn.LayerNorm, eps=1e-12)
        self.heads = max(1, width // HEAD_WIDTH)
        self.attention = _Named(
            self=_Named(query=linear(width, width), key=linear(width, width), value=linear(width, width)),
            output=_Named(dense=linear(width, width), LayerNorm=norm(width)),
        )
        self.intermediate = _Named(dense=linear(width, hidden))
        self.output = _Named(dense=linear(hidden, width), LayerNorm=norm(width))

    def forward(self, states, seen):
        inner, outer = self.attention.get_submodule("self"), self.attention.output
        query, key, value = (
            part(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (inner.query, inner.key, inner.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        states = outer.LayerNorm(states + outer.dense(mixed.transpose(1, 2).flatten(2)))
        raised = functional.gelu(self.intermediate.dense(states))
        return self.output.LayerNorm(states + self.output.dense(raised))


class CheXbert(nn.Module):
    """tokens [B, L], lengths [B] -> 14 logits, [B, 4] or [B, 2], in the order of HEADS. Sizes as in the file."""

    def __init__(self, *, words: int, positions: int, kinds: int, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.bert = _Named(
            embeddings=_Named(
                word_embeddings=nn.Embedding(words, width),
                position_embeddings=nn.Embedding(positions, width),
                token_type_embeddings=nn.Embedding(kinds, width),
                LayerNorm=nn.LayerNorm(width, eps=1e-12),
            ),
            encoder=_Named(layer=nn.ModuleList(_Layer(width, hidden) for _ in range(layers))),
            pooler=_Named(dense=nn.Linear(width, width)),  # in the file, not used
        )
        self.linear_heads = nn.ModuleList(nn.Linear(width, classes) for classes in CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        table = self.bert.embeddings
        states = (
            table.word_embeddings(tokens) + table.position_embeddings(places) + table.token_type_embeddings.weight[0]
        )
        states = table.LayerNorm(states)
        seen = (places < lengths[:, None])[:, None, None, :]
        for layer in self.bert.encoder.layer:
            states = layer(states, seen)
        return [head(states[:, 0]) for head in self.linear_heads]


def load_chexbert(path: str | Path) -> CheXbert:
    """The model of a user's chexbert.pth, strictly: every key is accounted for, or InputError lists those that differ.

    The weights lie under `model_state_dict` (or are the file itself), with or without `module.` before each name; a buffer
    `position_ids` that some versions of the library saved is allowed and ignored.
    """
    content = load_pickle(path)
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"--chexbert_path: {path} holds no model_state_dict of tensors: it is no CheXbert file")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state.pop("bert.embeddings.position_ids", None)
    table = "bert.embeddings.{}_embeddings.weight".format
    try:
        (words, width), (positions, _), (kinds, _) = (state[table(n)].shape for n in ("word", "position", "token_type"))
        hidden = state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
    except (KeyError, ValueError):
        words, width, positions, kinds, hidden = (
            30522,
            768,
            512,
            2,
            3072,
        )  # the true sizes: the message below lists keys
    prefix = "bert.encoder.layer."
    layers = {int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)}
    with torch.device("meta"):
        model = CheXbert(
            words=words,
            positions=positions,
            kinds=kinds,
            width=width,
            hidden=hidden,
            layers=max(layers, default=11) + 1,
        )
    own = model.state_dict()
    shapes = [
        f"{name}: {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = {"missing": sorted(set(own) - set(state)), "unknown": sorted(set(state) - set(own)), "other shape": shapes}
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in parts.items()
        if names
    ]
    if problems:
        raise InputError(f"--chexbert_path: {path} is not CheXbert's layout:\n  - " + "\n  - ".join(problems))
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


class CheXbertLabeler:
    """Texts -> states [B, 14] (clinical.STATES, labels in CHEXPERT_14 order). Batches do not change a label."""

    def __init__(self, path: str | Path, vocab: str | Path, device: torch.device | str = "cpu") -> None:
        self.model = load_chexbert(path).to(device)
        self.tokenizer = WordPiece(vocab)
        self.device = device
        words = self.model.bert.embeddings.word_embeddings.num_embeddings
        if words != self.tokenizer.size:
            raise InputError(
                f"--chexbert_vocab: {vocab} has {self.tokenizer.size} pieces, {path} {words} embeddings; "
                "CheXbert takes vocab.txt of BERT-base-uncased (30522 lines)"
            )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        different = list(dict.fromkeys(texts))
        coded = sorted((self.tokenizer.encode(text), number) for number, text in enumerate(different))
        coded.sort(key=lambda item: len(item[0]))
        states = np.zeros((len(different), len(CHEXPERT_14)), dtype=np.int8)
        places = [CHEXPERT_14.index(label) for label in HEADS]
        batches = self._batches(coded)
        for batch in tracked(batches, desc="CheXbert"):
            lengths = torch.tensor([len(tokens) for tokens, _ in batch])
            padded = torch.full((len(batch), int(lengths.max())), self.tokenizer.ids["[PAD]"])
            for row, (tokens, _) in enumerate(batch):
                padded[row, : len(tokens)] = torch.tensor(tokens)
            logits = self.model(padded.to(self.device), lengths.to(self.device))
            classes = torch.stack([head.argmax(-1) for head in logits], dim=1).cpu().numpy()
            states[np.ix_([number for _, number in batch], places)] = classes
        place = {text: number for number, text in enumerate(different)}
        return states[[place[text] for text in texts]].reshape(len(texts), len(CHEXPERT_14))

    @staticmethod
    def _batches(coded: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
        """Neighbours in length together, at most BATCH_TOKENS tokens each."""
        batches: list[list] = [[]]
        for item in coded:
            if batches[-1] and (len(batches[-1]) + 1) * len(item[0]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(item)
        return [batch for batch in batches if batch]
