"""LMCA's regions by their properties: what may depend on what. The released layout is compared in test_csr_lmca.py."""

import pytest
import torch
from torch.nn import functional as F

from modules.nets.query_gate import QueryGate, RandomGate
from modules.nets.region_attention import LMCA, CrossRegions, Heads, cut, joined

WIDTH = 32


def lmca(**settings) -> LMCA:
    torch.manual_seed(2)
    return LMCA(WIDTH, 4, dropout=0.0, **settings).eval()


def patches(studies=2, views=2, side=7):
    x = torch.randn(studies, views * side * side, WIDTH, generator=torch.Generator().manual_seed(1))
    return x, torch.zeros(studies, views, side, side, dtype=torch.bool)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_cutting_and_joining(size):
    grid = torch.arange(2 * 3 * 7 * 5.0).view(2, 3, 7, 5, 1) + 1
    regions = cut(grid, size)
    rows, columns = -(-7 // size), -(-5 // size)
    assert regions.shape == (2, 3 * rows * columns, size * size, 1)
    assert torch.equal(joined(regions, (3, 7, 5), size), grid)
    first = regions[0, 0, :, 0]  # upper left of the first view, row by row
    assert torch.equal(first, F.pad(grid[0, 0, :size, :size, 0], (0, max(0, size - 5), 0, max(0, size - 7))).flatten())


def test_a_region_knows_no_other():
    """R-MSA: changing the upper left 2 x 2 patches changes those, and nothing else."""
    net, (x, outside) = lmca(sizes=(2,), cross=False), patches()
    changed = x.clone()
    inside = torch.zeros(2, 7, 7, dtype=torch.bool)
    inside[0, :2, :2] = True
    inside = inside.flatten()
    changed[:, inside] = torch.randn(2, 4, WIDTH)
    before, after = net(x, outside), net(changed, outside)
    assert torch.equal(before[:, ~inside], after[:, ~inside])
    assert ((before - after)[:, inside].abs() > 1e-4).any(-1).all()


def test_across_regions_everything_of_a_study_is_seen_and_no_other_study():
    x, outside = patches()
    changed = x.clone()
    changed[0, 0] = 3 * torch.randn(WIDTH)
    for scope, reached in (("study", False), ("batch", True)):
        net = lmca(scope=scope)
        difference = (net(x, outside) - net(changed, outside)).abs().amax(-1)
        assert (difference[0] > 1e-5).all() and bool((difference[1] > 1e-5).any()) == reached
        assert reached or (difference[1] == 0).all()


def test_one_region_for_the_whole_view_is_attention_with_epeg():
    """sizes 8: 49 patches and 15 masked ones; the formula written out."""
    net, (x, outside) = lmca(sizes=(8,), cross=False), patches(views=1)
    heads, y = net.regions[0], net.region_norms[0](x)
    square = F.pad(y.unflatten(1, (7, 7)), (0, 0, 0, 1, 0, 1)).flatten(1, 2)
    real = F.pad(torch.ones(7, 7), (0, 1, 0, 1)).flatten().bool()
    q, k, v = heads.qkv(square).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / (WIDTH // 4) ** 0.5 * (real[:, None] & real)
    weight, padded = heads.epeg.weight[:, 0, :, 0], F.pad(scores, (0, 0, 7, 7))
    added = torch.stack([padded[:, :, t : t + 64] * weight[:, t, None, None] for t in range(15)]).sum(0)
    scores = scores + added + heads.epeg.bias[:, None, None]
    mixed = scores.masked_fill(~real, -torch.inf).softmax(-1) @ v
    known = x + heads.proj(mixed.transpose(1, 2).flatten(2)[:, real])
    torch.testing.assert_close(net(x, outside), net.norm(known), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(2, 4, 8), (3,), (7,)])
def test_an_absent_view_changes_nothing(sizes):
    net, (x, outside) = lmca(sizes=sizes), patches()
    alone = net(x[:, :49], outside[:, :1])
    outside[:, 1] = True
    beside = net(x, outside)
    assert torch.isfinite(beside).all()
    torch.testing.assert_close(beside[:, :49], alone, atol=1e-6, rtol=1e-5)


def test_cross_regions_written_out():
    """The formulas of CR-MSA for one region after another; a region with one real position has m = 1."""
    torch.manual_seed(3)
    net = CrossRegions(WIDTH, 4, dropout=0.0).eval()
    x = torch.randn(1, 3, 4, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]]).bool()
    answer = net([x], [mask[None]])[0][0]
    slots = torch.stack([(x[0, r, m] @ net.phi).softmax(0).T @ x[0, r, m] for r, m in enumerate(mask)])
    mixed = torch.stack([net.attention(slots[:, j][None])[0] for j in range(3)], 1)
    for r, m in enumerate(mask):
        fit = x[0, r, m] @ net.phi
        low, high = fit.amin(0), fit.amax(0)
        share = torch.ones_like(fit) if m.sum() == 1 else (fit - low) / (high - low + 1e-8)
        torch.testing.assert_close(answer[r, m], (fit.softmax(-1) * share) @ mixed[r], atol=1e-6, rtol=1e-5)
        assert (answer[r, ~m] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"sizes": ()}, {"sizes": (2,)}, {"regions": False}, {"cross": False}])
def test_gradients_reach_every_parameter(settings):
    net, (x, outside) = lmca(**settings), patches()
    outside[1, 1] = True
    net(x.requires_grad_(), outside).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if not name.endswith("epeg.bias"):  # cannot change the softmax: zero up to rounding
            assert parameter.grad.abs().max() > 0, name
    assert torch.isfinite(x.grad).all()


def test_start():
    net = lmca()
    bound = 3**-0.5
    assert net.cross.phi.abs().max() <= bound and net.cross.phi.abs().max() > 0.9 * bound
    assert len(net.regions) == 3 and len(lmca(sizes=()).regions) == 1


def test_scores_stay_float32_under_autocast():
    heads, x = Heads(WIDTH, 4, dropout=0.0, taps=15), torch.randn(2, 16, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        half = heads(x, torch.ones(16, dtype=torch.bool))
    assert torch.isfinite(half).all() and (half - heads(x)).abs().max() < 0.05


# -- the gate on the queries -------------------------------------------------------------------------------------------


def test_the_random_gate_mixes_studies_and_is_new_at_every_call():
    q = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    gate = RandomGate()

    def drawn(queries, seed=5):
        gate.draw = torch.Generator().manual_seed(seed)
        return gate(queries)

    first = drawn(q)
    assert torch.equal(first, drawn(q)) and not torch.equal(first, drawn(q, 6)) and not torch.equal(first, gate(q))
    other = q.clone()
    other[1] += 1
    assert not torch.equal(first[0], drawn(other)[0])  # batch norm in training mode even here


def test_beams_are_no_positions():
    """One word of K beams: each beam is a sequence of one position, whatever stands beside it in the row."""
    q = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(1))
    gate = RandomGate()
    gate.draw, gate.by_beam = torch.Generator().manual_seed(5), True
    beams = gate(q)
    gate.draw, gate.by_beam = torch.Generator().manual_seed(5), False
    apart = gate(q.transpose(1, 2).reshape(6, 4, 1, 8)).view(2, 3, 4, 8).transpose(1, 2)
    assert torch.equal(beams, apart) and beams.shape == q.shape


def test_the_trained_gate_keeps_studies_apart_in_evaluation():
    torch.manual_seed(1)
    gate, q = QueryGate().eval(), torch.randn(3, 4, 6, 8)
    torch.testing.assert_close(gate(q)[:1], gate(q[:1]))
    assert sum(parameter.numel() for parameter in gate.parameters()) == 3 * (98 + 2)
