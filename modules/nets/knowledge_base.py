"""The knowledge base: label vector -> embedded expert report (EKAGen's RKS), and its total look-up (IEK).

Our base keeps the expert reports as token ids beside the embedding layer that made the base, so an entry weighs 256
bytes instead of 131 kB and a person can read it. A base of the authors keeps their tensors as they are.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from modules.errors import InputError
from modules.safe_pickle import load_pickle

FORMAT = 1
LAYER = ("word", "position", "weight", "bias")


def embed(ids: torch.Tensor, layer: dict) -> torch.Tensor:
    """E(r) = LayerNorm(word_embedding(ids) + position_embedding): ids int [..., L] -> float [..., L, D], eps 1e-12."""
    mixed = layer["word"][ids] + layer["position"][: ids.shape[-1]]
    return F.layer_norm(mixed, mixed.shape[-1:], layer["weight"], layer["bias"], eps=1e-12)


class KnowledgeBase(nn.Module):
    """N entries, ordered by group size (large first), then by key. Look-up is total: the nearest key answers.

    keys: int [N, K] of 0/1. Either `entries` float [N, L, D] (the authors' file) or `ids` int [N, L] with `layer`, the
    embedding layer's four tensors. kind: "vector" (a key is a whole diagnosis) or "disease" (N = K one-hot keys, and a
    diagnosis gets the mean of its labels' entries). reports: per entry {"id", "report", "studies"}, for people.
    """

    keys: torch.Tensor
    ids: torch.Tensor | None  # None: `entries` are there, else the embedding layer's four tensors
    entries: torch.Tensor
    word: torch.Tensor

    def __init__(
        self, keys, *, entries=None, ids=None, layer=None, sizes=None, kind="vector", reports=None, facts=None
    ):
        super().__init__()
        keys = keys.to(torch.long)
        sizes = torch.zeros(len(keys), dtype=torch.long) if sizes is None else torch.as_tensor(sizes)
        order = sorted(range(len(keys)), key=lambda n: (-int(sizes[n]), keys[n].tolist()))
        self.kind, self.facts, self.sizes = kind, dict(facts or {}), sizes[order]
        self.reports = [reports[n] for n in order] if reports else None
        self.register_buffer("keys", keys[order], persistent=False)
        self.register_buffer("ids", None if ids is None else ids.to(torch.long)[order], persistent=False)
        self.register_buffer("entries", None if entries is None else entries[order], persistent=False)
        for name in LAYER:
            self.register_buffer(name, None if layer is None else layer[name].clone(), persistent=False)

    def _entries(self, rows: torch.Tensor) -> torch.Tensor:
        if self.ids is None:
            return self.entries[rows]
        return embed(self.ids[rows], self.layer())

    def layer(self) -> dict[str, torch.Tensor]:
        """The embedding layer that made this base (ours only)."""
        return {name: getattr(self, name) for name in LAYER}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N entries, L positions, D width)."""
        if self.ids is None:
            length, width = self.entries.shape[1:]
            return len(self.keys), length, width
        return len(self.keys), self.ids.shape[1], self.word.shape[1]

    @torch.no_grad()
    def nearest(self, diagnosis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """diagnosis int [B, K] -> (row of the nearest key [B], Hamming distance [B]); 0 = the key itself.

        Ties go to the larger group, then to the smaller key (the order of the rows).
        """
        distance = (diagnosis[:, None, :] != self.keys[None]).sum(-1)
        rank = distance * len(self.keys) + torch.arange(len(self.keys), device=distance.device)
        row = rank.argmin(-1)
        return row, distance.gather(1, row[:, None])[:, 0]

    @torch.no_grad()
    def forward(self, diagnosis: torch.Tensor) -> torch.Tensor:
        """IEK of each study: diagnosis int [B, K] -> float [B, L, D]. Constant: no gradient."""
        if self.kind == "vector":
            return self._entries(self.nearest(diagnosis)[0])
        share = (diagnosis[:, None, :] * self.keys[None]).sum(-1).float()  # [B, N]: labels met
        share[:, 0] += share.sum(-1) == 0  # no label met: the largest group's entry
        share = share / share.sum(-1, keepdim=True)
        return torch.einsum("bn,nld->bld", share, self._entries(torch.arange(len(self.keys), device=share.device)))

    def fallbacks(self, diagnosis: torch.Tensor) -> int:
        """How many of the diagnoses [B, K] have no entry of their own."""
        if self.kind == "disease":
            return int(((diagnosis[:, None, :] * self.keys[None]).sum((1, 2)) == 0).sum())
        return int((self.nearest(diagnosis)[1] > 0).sum())

    def expert(self, diagnosis: torch.Tensor) -> dict:
        """For people: key, distance and group size of the entry that serves one diagnosis [K]; with our bases also the
        expert report itself ("id", "report")."""
        return self.experts(diagnosis[None])[0]

    def experts(self, diagnosis: torch.Tensor) -> list[dict]:
        """`expert` of each diagnosis of [B, K], on whatever device; the base's own device is asked once."""
        row, distance = self.nearest(diagnosis.to(self.keys.device, non_blocking=True))
        found = torch.cat([row[:, None], distance[:, None], self.keys[row]], 1).tolist()
        texts = self.reports or [{}] * len(self.keys)
        return [{**texts[n], "key": key, "distance": d, "group": int(self.sizes[n])} for n, d, *key in found]

    def state(self) -> dict:
        """Plain tensors and values, enough to build the base again."""
        kept = {
            "keys": self.keys.cpu().to(torch.uint8),
            "sizes": self.sizes,
            "kind": self.kind,
            "reports": self.reports,
        }
        if self.ids is None:
            kept["entries"] = self.entries.cpu()
        else:
            kept |= {
                "ids": self.ids.cpu().to(torch.int32),
                "layer": {name: getattr(self, name).cpu() for name in LAYER},
            }
        return {"format": FORMAT, "what": "knowledge base", "facts": self.facts, **kept}

    @classmethod
    def from_state(cls, state: dict) -> "KnowledgeBase":
        """The base of what `state` returned. InputError when that is damaged."""
        state = {name: value for name, value in state.items() if name not in ("format", "what")}
        try:
            base = cls(state.pop("keys"), **state)
            sound = base.keys.dim() == 2 and len(base.keys) == len(base.sizes) > 0 and len(base.shape) == 3
            sound = sound and base.kind in ("vector", "disease")
            sound = sound and isinstance(base.facts, dict) and (base.reports is None or len(base.reports) == len(base.keys))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the knowledge base is damaged ({error}); build it again") from error
        if not sound:
            raise InputError("the knowledge base is damaged: its parts do not fit together; build it again")
        return base


def load_knowledge(
    path: str | Path, *, labels: tuple[str, ...], length: int | None = None, width: int | None = None
) -> KnowledgeBase:
    """Read our base or the authors' knowledge_prompt_*.pkl and check it against the run; None = of any length and width.

    Raises InputError: label order, split, shape; a base built on other than training reports is refused.
    """
    path = Path(path)
    content = load_pickle(path)
    if isinstance(content, dict) and content.get("what") == "knowledge base":
        base = KnowledgeBase.from_state(content)
        facts = base.facts
        if tuple(facts.get("labels", ())) != tuple(labels):
            raise InputError(f"{path} was built for the labels {facts.get('labels')}, this run has {list(labels)}")
        if facts.get("split") != "train":
            raise InputError(
                f"{path} was built on the {facts.get('split')} split: only training reports may be knowledge; build it again"
            )
    else:
        base = _released_base(content, path)
    entries, positions, found = base.shape
    length, width = length or positions, width or found
    if base.keys.shape[1] != len(labels) or (positions, found) != (length, width):
        raise InputError(
            f"{path}: {entries} entries of {positions} positions x width {found} for {base.keys.shape[1]} labels; this run "
            f"has {length} x {width} for {len(labels)}: build it with the run's --max_seq_length and --d_model"
        )
    return base


def _released_base(content, path: Path) -> KnowledgeBase:
    """dict[tuple of 0/1 -> tensor (L, D)], as the authors pickle it."""
    hint = f"{path} is not a knowledge base: expected a dict from label tuples to tensors"
    if not isinstance(content, dict) or not content:
        raise InputError(hint)
    keys, entries = [], []
    for key, entry in content.items():
        if not isinstance(key, tuple) or not all(bit in (0, 1) for bit in key):
            raise InputError(f"{hint}; found the key {str(key)[:80]}")
        if not isinstance(entry, (torch.Tensor, np.ndarray, list)):
            raise InputError(f"{hint}; found a {type(entry).__name__} under {str(key)[:80]}")
        try:
            entry = torch.as_tensor(entry).detach().float()
        except (TypeError, ValueError) as error:  # text, ragged lists
            raise InputError(f"{hint}; {error}") from error
        keys.append([int(bit) for bit in key])
        entries.append(entry.reshape(entry.shape[-2:]) if entry.dim() > 2 and entry.shape[:-2].numel() == 1 else entry)
    if len({len(key) for key in keys}) > 1 or len({entry.shape for entry in entries}) > 1 or entries[0].dim() != 2:
        raise InputError(f"{hint}, all of one shape")
    facts = {"source": "released", "entries": len(keys)}
    return KnowledgeBase(torch.tensor(keys), entries=torch.stack(entries), facts=facts)
