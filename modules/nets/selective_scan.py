"""The selective scan of Mamba, in plain PyTorch and by mamba_ssm's CUDA kernel. Source: Gu and Dao 2023.

B studies, L positions, E channels, N states per channel. From state 0, for every channel and state:
    H_t = exp(dt_t A) H_{t-1} + dt_t B_t x_t        y_t = sum_n C_t[n] H_t[n] + D x_t
"""

from functools import cache

import torch
from torch.autograd.function import once_differentiable

FORMS = ("auto", "sequential", "parallel", "kernel")


@cache
def kernel():
    """mamba_ssm's `selective_scan_fn`, or None where the package is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def chosen_form(form: str, device: torch.device) -> str:
    """What "auto" means on a device: CUDA: the kernel where it is installed, else parallel; CPU: sequential."""
    if form != "auto":
        return form
    if device.type != "cuda":
        return "sequential"
    return "parallel" if kernel() is None else "kernel"


def selective_scan(x, dt, A, B, C, D, *, form: str = "auto") -> torch.Tensor:
    """x, dt [B, L, E] (dt > 0), A [E, N] (below 0), B, C [B, L, N], D [E] -> y [B, L, E], float32 or float64.

    The forms give the same numbers up to rounding. sequential: one position after another. parallel: all positions at once,
    in ceil(log2 L) rounds. kernel: mamba_ssm's, CUDA and float32 alone. The first two keep the states for the backward
    pass, B * L * E * N numbers, and no other tensor of that size. Raises ValueError for an unknown form, or for a kernel
    that is not there.
    """
    form = chosen_form(form, x.device)
    if form == "kernel":
        if kernel() is None or x.device.type != "cuda":
            raise ValueError("the kernel of the selective scan needs the package mamba_ssm and CUDA tensors")
        x, dt, B, C = (part.mT.contiguous() for part in (x, dt, B, C))
        return kernel()(x, dt, A, B, C, D, delta_softplus=False).mT
    if form not in FORMS:
        raise ValueError(f"scan form {form}: choose {', '.join(FORMS)}")
    return _Scan.apply(x, dt, A, B, C, 1 if form == "sequential" else x.shape[1]) + D * x


def _accumulate(a: torch.Tensor, b: torch.Tensor) -> None:
    """In place, along axis 1: b_t <- b_t + a_t b_{t-1} + a_t a_{t-1} b_{t-2} + ..., a_t <- a_t a_{t-1} ... (by doubling).

    Every factor is at most 1, so nothing overflows; the closed form with exp of a cumulative sum does, from 7 positions on.
    """
    step = 1
    while step < a.shape[1]:
        b[:, step:] += a[:, step:] * b[:, :-step]
        a[:, step:] = a[:, step:] * a[:, :-step]
        step *= 2


class _Scan(torch.autograd.Function):
    """y without D x, `chunk` positions at a time: 1 is the sequential form, L the parallel one."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, chunk):
        studies, length, channels = x.shape
        states = x.new_zeros(studies, length + 1, channels, A.shape[1])  # the state before each position, and the last
        drive = dt * x
        for start in range(0, length, chunk):
            now = slice(start, start + chunk)
            a = torch.exp(dt[:, now, :, None] * A)
            b = drive[:, now, :, None] * B[:, now, None]
            _accumulate(a, b)
            states[:, start + 1 : start + 1 + chunk] = torch.addcmul(b, a, states[:, start, None])
        ctx.save_for_backward(x, dt, A, B, C, states)
        ctx.chunk = chunk
        return (states[:, 1:] @ C[..., None])[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """The same recurrence from the last position to the first: G_t = grad_t C_t + exp(dt_{t+1} A) G_{t+1}."""
        x, dt, A, B, C, states = ctx.saved_tensors
        grads = {name: torch.empty_like(value) for name, value in (("x", x), ("dt", dt), ("B", B))}
        grad_A = torch.zeros(A.shape, dtype=A.dtype, device=A.device)
        later = 0.0  # exp(dt A) G of the position behind the chunk
        for start in reversed(range(0, x.shape[1], ctx.chunk)):
            now = slice(start, start + ctx.chunk)
            xs, dts, Bs = x[:, now], dt[:, now], B[:, now]
            a = torch.exp(dts[..., None] * A)
            G = grad[:, now, :, None] * C[:, now, None]
            G[:, -1] += later
            if G.shape[1] > 1:  # reversed in time: a of the position behind belongs to each
                behind, G = a.roll(-1, 1).flip(1), G.flip(1)
                _accumulate(behind, G)
                G = G.flip(1)
            later = a[:, 0] * G[:, 0]
            by_B = (G @ Bs[..., None])[..., 0]
            slope = a * G * states[:, start : start + a.shape[1]]  # of dt A
            grads["x"][:, now] = dts * by_B
            grads["dt"][:, now] = (slope * A).sum(-1) + xs * by_B
            grads["B"][:, now] = ((dts * xs)[..., None, :] @ G)[..., 0, :]
            grad_A += (slope * dts[..., None]).sum((0, 1))
        grad_C = (grad[..., None, :] @ states[:, 1:])[..., 0, :]
        return grads["x"], grads["dt"], grad_A, grads["B"], grad_C, None
