"""SGRRG on small networks: what must not matter, what must; its searches and its schedule on the fixture's numbers.

Equality with the authors' code at full size: test_parity_sgrrg.py.
"""

import dataclasses
import json

import family
import numpy as np
import pytest
import torch

from data.batches import Batch
from models.sgrrg import SGRRG
from modules.decoding import DecodingSettings, decode
from modules.nets.scene_graph import AttributeHeads, contrast_loss, side_by_side
from modules.nets.visual_extractor import VisualExtractor
from modules.text.regions import REGIONS, GraphLayout

SIZES = (3, 2, 0, 4, 1)
LAYOUT = GraphLayout(REGIONS[:5], tuple(tuple(f"yes|{n}" for n in range(size)) for size in SIZES))
WORDS, SIDE = 40, 64


def small(layout=LAYOUT, seed: int = 0, **settings) -> SGRRG:
    torch.manual_seed(seed)
    extractor = VisualExtractor("resnet18", freeze="norm", dilate=False)
    shape = {"width": 32, "heads": 2, "inner": 48, "layers": 2, "vocab_size": WORDS, "max_tokens": 12}
    rates = {"dropout": 0.0, "feature_dropout": 0.0, "region_heads": 4, "region_topk": 8, "region_memory": 16}
    system = SGRRG(extractor=extractor, layout=layout, **shape, **(rates | settings)).eval()
    system.head.weight.data.normal_(std=0.5)  # words that differ from study to study
    if layout is not None:
        system.select.head.weight.data.normal_()
    return system


def made(studies: int = 4, boxes: int = 6, seed: int = 1) -> Batch:
    """Studies with boxes of every region, one region twice; the last study has none."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(studies, boxes, 2, generator=draw) * SIDE / 2
    batch = Batch([f"study{n}" for n in range(studies)], images=torch.randn(studies, 1, 3, SIDE, SIDE, generator=draw))
    batch.tokens = torch.zeros(studies, 12, dtype=torch.long)
    batch.tokens[:, 1:7] = torch.randint(1, WORDS, (studies, 6), generator=draw)
    batch.labels = torch.randint(0, 2, (studies, 14), generator=draw)
    batch.boxes = torch.cat([corner, corner + 8 + torch.rand(corner.shape, generator=draw) * SIDE / 2], -1)
    batch.box_regions = torch.arange(boxes).remainder(5).repeat(studies, 1)
    batch.box_regions[-1] = -1
    real = batch.box_regions >= 0
    batch.box_chosen = torch.rand(real.shape, generator=draw).lt(0.7) & real
    batch.box_abnormal = torch.rand(real.shape, generator=draw).lt(0.5) & real
    batch.region_labels = torch.rand(studies, 5, generator=draw) < 0.5
    own = torch.arange(4) < torch.tensor(SIZES)[batch.box_regions.clamp(min=0)][..., None]
    batch.attributes = torch.rand(own.shape, generator=draw).lt(0.6) & own & real[..., None]
    return batch


def rows(batch: Batch, chosen: list[int]) -> Batch:
    """These studies alone."""
    fields = {name: value[chosen] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    part = dataclasses.replace(batch, ids=[batch.ids[row] for row in chosen])
    vars(part).update(fields)
    return part


@torch.no_grad()
def predicted(system, batch) -> torch.Tensor:
    return system.logits(system.encode(batch), batch.tokens[:, :8])


def without_boxes(batch: Batch) -> Batch:
    part = rows(batch, list(range(len(batch))))
    part.boxes, part.box_regions = part.boxes[:, :0], part.box_regions[:, :0]
    return part


def test_a_study_without_boxes_equals_no_scene_graph():
    system, plain, batch = small(), small(layout=None), made()
    plain.load_state_dict({key: system.state_dict()[key] for key in plain.state_dict()})
    expected = predicted(plain, batch)
    torch.testing.assert_close(predicted(system, without_boxes(batch)), expected)
    torch.testing.assert_close(predicted(system, batch)[-1], expected[-1])
    assert (predicted(system, batch)[:-1] - expected[:-1]).abs().max() > 1e-3


@pytest.mark.parametrize("oracle", [False, True])
def test_a_report_ignores_neighbours_and_padded_boxes(oracle):
    system, batch = small(oracle=oracle), made()
    together = predicted(system, batch)
    for row in range(len(batch)):
        alone = rows(batch, [row])
        torch.testing.assert_close(predicted(system, alone)[0], together[row], atol=1e-5, rtol=1e-4)
    padded = rows(batch, [0, 1])
    for name, fill in (("boxes", 0.0), ("box_regions", -1), ("box_chosen", False), ("attributes", False)):
        value = getattr(padded, name)
        more = value.new_full((2, 3, *value.shape[2:]), fill)
        vars(padded)[name] = torch.cat([value, more], 1)
    torch.testing.assert_close(predicted(system, padded), together[:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("search", ["mean", "released", "ours"])
def test_a_decoded_report_ignores_its_neighbours(search):
    system, batch = small(), made(6)
    settings = DecodingSettings(beam_size=3, max_length=10, beam_search=search)
    with torch.no_grad():
        together = decode(system, system.encode(batch), settings, batch.ids)
        for row, name in enumerate(batch.ids):
            assert decode(system, system.encode(rows(batch, [row])), settings, [name]) == [together[row]]


def test_order_of_boxes_and_attributes_does_not_matter():
    """The nodes of a graph have no positions: boxes in any order, attributes numbered anew with their weights."""
    system, batch = small(oracle=True), made()
    expected = predicted(system, batch)
    turned = rows(batch, list(range(len(batch))))
    for name in ("boxes", "box_regions", "box_chosen", "box_abnormal", "attributes"):
        vars(turned)[name] = getattr(batch, name).flip(1)
    torch.testing.assert_close(predicted(system, turned), expected, atol=1e-5, rtol=1e-4)
    start = int(system.graph_encoder.starts[3])
    order = torch.tensor([2, 0, 3, 1])
    table = system.graph_encoder.attribute.weight.data
    table[start : start + 4] = table[start : start + 4][order]
    third = batch.box_regions == 3
    batch.attributes[third] = batch.attributes[third][:, order]
    torch.testing.assert_close(predicted(system, batch), expected, atol=1e-5, rtol=1e-4)


def test_a_region_with_two_boxes_makes_two_sub_graphs():
    system, batch = small(oracle=True), made()
    batch.box_chosen = batch.box_regions == 0  # boxes 0 and 5
    memory = system.encode(batch)
    assert memory["graph_mask"][:, 0, 0].sum(1).tolist() == [2, 2, 2, 0]
    assert not torch.equal(memory["graph_keys.0"][0, :, 0], memory["graph_keys.0"][0, :, 1])


def test_a_batch_without_any_sub_graph():
    system = small().train()
    batch = made()
    batch.box_chosen[:] = False
    losses = system.losses(batch)
    assert losses["attribute"] == losses["contrast"] == 0 and system.loss_counts(batch)["attribute"] == 0
    sum(system.loss_weights[name] * value for name, value in losses.items()).backward()
    assert system.select.head.weight.grad is not None and system.graph_encoder.project.weight.grad is None


def test_losses_and_counts_by_hand():
    system, batch = small().train(), made()
    losses, memory = system.losses(batch), system.encode(batch)
    of = batch.box_regions[batch.box_chosen]
    entries = [
        torch.nn.functional.binary_cross_entropy_with_logits(
            logits[: SIZES[r]], truth[: SIZES[r]].float(), reduction="sum"
        )
        for logits, truth, r in zip(memory["logits"], batch.attributes[batch.box_chosen], of.tolist())
    ]
    count = sum(SIZES[r] for r in of.tolist())
    assert losses["attribute"].item() == pytest.approx(sum(entries).item() / count, rel=1e-5)
    assert system.loss_counts(batch)["attribute"] == count
    assert set(losses) == set(system.loss_weights) == {"ce", "disease", "region", "attribute", "contrast"}


def test_a_head_without_boxes_gets_no_gradient():
    heads = AttributeHeads(8, SIZES)
    logits = heads(torch.randn(3, 8), torch.tensor([3, 0, 3]))
    assert logits.shape == (3, 4) and (logits[1, 3] == -1e4) and (logits[[0, 2]] > -1e4).all()
    logits.sum().backward()
    assert heads.heads["1"].weight.grad is None and heads.heads["0"].weight.grad is not None


def test_contrast_of_known_pairs():
    graphs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    regions, abnormal = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, False])
    # pairs of region 0: 3 with themselves (0), (0, 1) alike: 1 twice, (0, 2) unlike: cosine 1 - .4 twice, (1, 2): 0; region 1: 0
    assert contrast_loss(graphs, regions, abnormal, 0.4).item() == pytest.approx((2 + 2 * 0.6) / 10)


def test_sub_graphs_stand_in_the_order_of_their_boxes():
    chosen = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    beside, real = side_by_side(torch.tensor([[1.0], [2.0], [3.0]]), chosen)
    assert beside[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]] and real.sum(1).tolist() == [2, 0, 1]


@pytest.mark.parametrize("changed", [{"region_memory": 0}, {"contrast": 0.0}, {"regions": 2}])
def test_ablations(changed):
    system, batch = small(**changed).train(), made()
    losses = system.losses(batch)
    sum(system.loss_weights[name] * value for name, value in losses.items()).backward()
    if "regions" in changed:
        memory = system.encode(batch)
        assert memory["regions"].shape == (4, 2) and memory["of"].max() <= 1
    if "contrast" in changed:
        assert losses["contrast"] == 0
    if "region_memory" in changed:
        assert not any("memory" in name for name, _ in system.select.named_parameters())


class Table:
    """The fixture's system: the next word's logits follow from study, position and last word."""

    bos = eos = padding = 0
    released_search, padding_ends = "slots", True

    def __init__(self) -> None:
        draw = np.random.RandomState(family.facts("sgrrg")["search_seed"])
        self.table = torch.from_numpy((2 * draw.standard_normal((60, 12, 8, 8))).astype(np.float32))

    def step(self, tokens, memory, cache):
        cache = cache or Position()
        cache.at += 1
        return self.table[memory["study"][:, None], cache.at - 1, tokens], cache


class Position:
    at = 0

    def keep(self, studies, source):
        """A table has no past."""


@pytest.mark.parametrize("together", [1, 60])
def test_the_released_search(together):
    """The authors' tokens of 60 searches; alone and as one batch the same."""
    table, found = Table(), []
    settings = DecodingSettings(beam_size=3, max_length=12, beam_search="released")
    for first in range(0, 60, together):
        studies = torch.arange(first, first + together)
        found += decode(table, {"study": studies}, settings, [str(n) for n in studies.tolist()])
    assert found == [cut(row) for row in family.outputs("sgrrg")["search_tokens"]]


def cut(row) -> list[int]:
    row = list(row)
    return row[: row.index(0)] if 0 in row else row


def test_the_published_schedule():
    """Rates of the first 82 steps, 4 to an epoch."""
    from types import SimpleNamespace

    from modules.optimizers import make_scheduler

    facts = json.loads((family.FIXTURES / "sgrrg" / "expected.json").read_text())["schedule"]
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in (1e-4, 2e-4)]
    optimizer = torch.optim.SGD(groups)
    args = SimpleNamespace(lr_schedule="step", warmup_epochs=5, lr_start=1e-6, step_size=10, lr_gamma=0.8)
    scheduler, step = make_scheduler(optimizer, args, facts["steps_per_epoch"]), 0
    for number, *rates in facts["rows"]:
        while step < number:
            optimizer.step()
            scheduler.step()
            step += 1
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates, rel=1e-9)
