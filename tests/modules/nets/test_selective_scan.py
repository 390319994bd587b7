"""The selective scan: each form against a float64 loop over the positions, its gradients, and what chooses a form."""

import sys
from types import ModuleType

import pytest
import torch

from modules.nets import selective_scan as scan
from modules.nets.sr_mamba import SRMamba, rearranged, restored

FORMS = ("sequential", "parallel")


def reference(x, dt, A, B, C, D):
    """The formula, position by position, by autograd."""
    state, rows = x.new_zeros(len(x), *A.shape), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        rows.append((state * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(rows, 1)


def inputs(length: int, step: float, *, studies: int = 2, channels: int = 64, states: int = 16):
    draw = torch.Generator().manual_seed(length)
    shapes = ((studies, length, channels), (studies, length, states), (studies, length, states))
    x, B, C = (torch.randn(shape, generator=draw) for shape in shapes)
    dt = 2 * step * torch.rand(x.shape, generator=draw)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1) * (1 + 0.1 * torch.rand(channels, states, generator=draw))
    return x, dt, A, B, C, torch.rand(channels, generator=draw)


def with_gradients(function, values, grad):
    values = [value.clone().requires_grad_() for value in values]
    y = function(*values)
    return y.detach(), torch.autograd.grad(y, values, grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [0.02, 0.8])
@pytest.mark.parametrize("length", [1, 7, 49, 50, 98, 100])
def test_each_form_is_the_loop(form, step, length):
    values = inputs(length, step)
    grad = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(1))
    exact, exact_grads = with_gradients(reference, [value.double() for value in values], grad.double())
    y, grads = with_gradients(lambda *v: scan.selective_scan(*v, form=form), values, grad)
    assert (y - exact).abs().max() < 3e-5
    for ours, theirs in zip(grads, exact_grads):
        if length > 1 or theirs.abs().max() > 0:  # one position: the first state is 0, so A has no gradient
            assert (ours - theirs).abs().max() < 1e-5 * theirs.square().mean().sqrt()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_finite_differences(form):
    values = [value.double().requires_grad_() for value in inputs(5, 0.5, channels=3, states=2)]
    assert torch.autograd.gradcheck(lambda *v: scan.selective_scan(*v, form=form), values)


def test_nothing_overflows_where_the_closed_form_does():
    x, dt, A, B, C, D = inputs(98, 4.0)
    assert torch.exp(-(dt[..., None] * A).cumsum(1)).isinf().any()
    exact = reference(*(value.double() for value in (x, dt, A, B, C, D)))
    for form in FORMS:
        assert (scan.selective_scan(x, dt, A, B, C, D, form=form) - exact).abs().max() < 1e-4


def test_a_later_position_changes_nothing_before_it():
    x, dt, A, B, C, D = inputs(20, 0.5)
    changed = x.clone()
    changed[:, 12:] = 9.0
    for form in FORMS:
        before, after = (scan.selective_scan(v, dt, A, B, C, D, form=form) for v in (x, changed))
        assert torch.equal(before[:, :12], after[:, :12]) and not torch.equal(before[:, 12], after[:, 12])


def test_what_auto_means(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(scan, "kernel", lambda: None)
    assert (scan.chosen_form("auto", cpu), scan.chosen_form("auto", cuda)) == ("sequential", "parallel")
    monkeypatch.setattr(scan, "kernel", lambda: object())
    assert (scan.chosen_form("auto", cpu), scan.chosen_form("auto", cuda)) == ("sequential", "kernel")
    assert scan.chosen_form("parallel", cpu) == "parallel"


def test_the_kernel_is_found_by_its_import_path_and_refused_on_a_cpu(monkeypatch):
    package = ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = lambda *args, **more: None
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    scan.kernel.cache_clear()
    try:
        assert scan.kernel() is package.selective_scan_fn
        with pytest.raises(ValueError, match="needs the package mamba_ssm and CUDA tensors"):
            scan.selective_scan(*inputs(3, 0.1), form="kernel")
    finally:
        scan.kernel.cache_clear()
    with pytest.raises(ValueError, match="choose auto, sequential, parallel, kernel"):
        scan.selective_scan(*inputs(3, 0.1), form="fast")


def test_rearranging():
    """Position k * 10 + j goes to j * K + k, and comes back; padded positions are zeros."""
    for length in (7, 49, 98, 100):
        x = torch.arange(1.0, length + 1).view(1, length, 1)
        groups = -(-length // 10)
        there = rearranged(x)[0, :, 0]
        for position in range(length):
            assert there[position % 10 * groups + position // 10] == position + 1
        assert len(there) == 10 * groups and (there == 0).sum() == 10 * groups - length
        assert torch.equal(restored(rearranged(x), length), x)


def test_starts():
    """Careful: steps between 0.001 and 0.1, alike for both readings, matrices not; zero: about 0.69, as released."""
    torch.manual_seed(3)
    for start, low, high in (("mamba", 0.001, 0.1), ("zero", 0.6931, 0.6932)):
        block = SRMamba(32, start=start)
        paths = (block.ordered, block.rearranged)
        steps = [torch.nn.functional.softplus(path.dt_proj.bias) for path in paths]
        assert torch.equal(*steps) and low <= steps[0].min() * 1.0001 and steps[0].max() <= high * 1.0001
        assert not torch.equal(paths[0].x_proj.weight, paths[1].x_proj.weight)
        for path in paths:
            torch.testing.assert_close(path.A_log.exp(), torch.arange(1.0, 17).expand(64, 16))
            assert (path.D == 1).all()


def test_float32_inside_autocast():
    """The block computes in float32 whatever autocast says, and takes half-precision input."""
    torch.manual_seed(4)
    block, x = SRMamba(32), torch.randn(2, 12, 32)
    plain = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = block(x)
        from_half = block(x.bfloat16())
    assert inside.dtype == from_half.dtype == torch.float32 and torch.equal(inside, plain)
    torch.testing.assert_close(from_half, block(x.bfloat16().float()))
