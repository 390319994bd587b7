"""How much a system uses the image: what its words cost more when it looks at another study's."""

import torch
from torch.nn import functional as F

from modules import processes
from modules.decoding import words_of
from modules.precision import at_least_float32


class ImageUse:
    """Teacher-forced cross-entropy with the studies' images exchanged within a batch, minus that with their own.

    In nats per word of the reference (BOS, EOS and padding do not count); 0 = the image is not looked at. A `watch` of
    modules/generation.py: what the system encoded of the images changes hands, each study's to the next, so it costs two passes
    of the decoder. The batches hold the references' tokens, the system has `logits(memory, tokens)`: of one without, nothing is
    known. A batch of one study has none to exchange with. Which studies share a batch is the loader's order.
    """

    def __init__(self, system) -> None:
        self.system = system
        self.sums = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, batch, memory: dict, reports) -> None:
        """One more prepared batch, and what the system encoded of it (first axis of every tensor: B)."""
        if len(batch) < 2:
            return
        tokens, targets = batch.tokens, batch.tokens[:, 1:]
        counted = words_of(self.system, targets)
        device = next(iter(memory.values())).device
        tokens, targets = tokens.to(device), targets.to(device)
        exchanged = {name: value.roll(1, 0) for name, value in memory.items()}
        try:
            true, other = (self._costs(part, tokens, targets) for part in (memory, exchanged))
        except NotImplementedError:  # a system without a teacher-forced pass
            return
        self.sums += torch.stack([((other - true).cpu() * counted).sum(), counted.sum()]).double()

    def _costs(self, memory: dict, tokens, targets) -> torch.Tensor:
        """Cross-entropy of each target [B, L]."""
        logits = at_least_float32(self.system.logits(memory, tokens[:, :-1]))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    def value(self) -> float | None:
        """Nats per word, over all processes; None where nothing could be exchanged."""
        parts = processes.gather({processes.rank(): self.sums.tolist()}).values()
        gain, words = (sum(column) for column in zip(*parts))
        return gain / words if words else None
