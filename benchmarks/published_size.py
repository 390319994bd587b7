"""EKAGen of the published size with random weights, and the way its authors' code trains and writes: the naive baseline.

The baseline's habits, each of which ours avoids: the DiagnosisBot (Swin-Tiny) runs inside every forward pass, also at every
word; a word costs a whole pass over images and report; the teacher is passed with gradients and so is its backward pass.
Its layers are the same modules as ours: what is compared is the way of working, not the kernels.
"""

import torch
from torch.nn import functional as F

from data.batches import Batch
from models.ekagen import EKAGen, distillation
from modules.nets.knowledge_base import KnowledgeBase
from modules.nets.visual_extractor import Classifier, VisualExtractor

VOCABULARY, POSITIONS, LABELS = 760, 128, 14


def system(seed: int = 0) -> EKAGen:
    """The generator with a base of one entry."""
    torch.manual_seed(seed)
    base = KnowledgeBase(torch.zeros(1, LABELS, dtype=torch.long), entries=torch.randn(1, POSITIONS, 256))
    extractor = VisualExtractor("resnet101", freeze="stem", dilate=True)
    return EKAGen(extractor, vocab_size=VOCABULARY, knowledge=base)


def batch_of(studies: int, device: torch.device, side: int = 300) -> Batch:
    """Random images, reports and an all-zero diagnosis."""
    made = Batch(
        [str(number) for number in range(studies)],
        images=torch.randn(studies, 1, 3, side, side),
        masked_images=torch.randn(studies, 1, 3, side, side),
        tokens=torch.randint(3, VOCABULARY, (studies, POSITIONS + 1)),
        diagnosis=torch.zeros(studies, LABELS, dtype=torch.long),
    )
    return made.to(device)


class Naive:
    """The published way around the same layers."""

    def __init__(self, student: EKAGen, teacher: EKAGen | None, device: torch.device) -> None:
        self.student, self.teacher = student, teacher
        self.bot = Classifier("swin_t", LABELS).to(device).eval()

    def _passed(self, system: EKAGen, batch: Batch, view: str, tokens: torch.Tensor) -> torch.Tensor:
        """One forward pass as released: diagnosis, images and report, every time."""
        with torch.no_grad():
            images = F.interpolate(batch.images[:, 0], size=(224, 224))
            (self.bot(images).sigmoid() > 2).long()
        return system.logits(system.encode(batch, view), tokens)

    def losses(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy and distillation; the teacher's pass is part of the graph."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        said = self._passed(self.student, batch, "masked", inputs).float()
        expert = self._passed(self.teacher, batch, "complete", inputs).float()
        return F.cross_entropy(said.flatten(0, 1), targets.flatten()) + 0.01 * distillation(said, expert, 4.0)

    @torch.no_grad()
    def word(self, batch: Batch) -> torch.Tensor:
        """The next word of every report: one pass over everything; it costs the same at each of the 127 places."""
        return self._passed(self.student, batch, "masked", batch.tokens[:, :-1])[:, -1].argmax(-1)
