"""What the words cost more beside another study's image."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from data.batches import Batch
from modules.image_use import ImageUse

TOKENS = torch.tensor([[0, 3, 4, 0, 0], [0, 4, 0, 0, 0], [0, 2, 2, 3, 0]])


def system_of(logits):
    return SimpleNamespace(padding=0, bos=0, eos=0, logits=logits)


def test_a_system_that_ignores_its_image_gives_zero():
    use = ImageUse(system_of(lambda memory, tokens: torch.randn(5, generator=torch.Generator().manual_seed(1)).expand(3, 4, 5)))
    use(Batch(["a", "b", "c"], tokens=TOKENS), {"x": torch.randn(3, 2)}, None)
    assert use.value() == 0


def test_nats_per_word_by_hand():
    """Each study's memory says its own word; EOS and padding do not count."""
    said = torch.tensor([3, 4, 2])

    def logits(memory, tokens):
        return one_hot(memory["x"], 5).float()[:, None].expand(-1, tokens.shape[1], -1)

    use = ImageUse(system_of(logits))
    use(Batch(["a", "b", "c"], tokens=TOKENS), {"x": said}, None)
    # a: 3 4, own 1 0 and from c 0 0; b: 4, own 1 and from a 0; c: 2 2 3, own 1 1 0 and from b 0 0 0
    assert use.value() == pytest.approx((1 + 1 + 2) / 6, abs=1e-6)
    use(Batch(["d"], tokens=TOKENS[:1]), {"x": said[:1]}, None)  # nothing to exchange with
    assert use.value() == pytest.approx(4 / 6, abs=1e-6)


def test_a_system_without_logits_and_a_single_study_are_not_known():
    def missing(memory, tokens):
        raise NotImplementedError

    use = ImageUse(system_of(missing))
    use(Batch(["a", "b", "c"], tokens=TOKENS), {"x": torch.zeros(3)}, None)
    assert use.value() is None
