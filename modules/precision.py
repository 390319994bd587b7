"""The one owner of device and arithmetic."""

import contextlib
from collections.abc import Iterator

import torch

from modules.errors import InputError


def choose_device(name: str) -> torch.device:
    """--device -> torch.device; InputError when CUDA is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "PyTorch sees no CUDA device" if built else "this PyTorch is built without CUDA"
        raise InputError(f"--device cuda: {reason}; leave the flag out to run on the CPU")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Precision:
    """Autocast region and gradient scaler (from `scale` on) for --precision float32, tf32, bf16 or fp16.

    float32 on CUDA means float32: PyTorch's own default rounds the inputs of convolutions to TF32 (10 bits of mantissa).
    tf32 does so for convolutions and matrix products; bf16 and fp16 do for the little that autocast leaves in float32.
    """

    KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def __init__(self, kind: str, device: torch.device, scale: float = 65536.0) -> None:
        if kind == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs CUDA; on a CPU take bf16 or float32")
        self.kind, self.device = self.KINDS.get(kind), device
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind != "float32"
        self.scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=kind == "fp16")

    def region(self, *, keep_casts: bool = True):
        """Context of the forward pass. keep_casts: a weight is cast once, not at every use."""
        if self.kind is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.kind, cache_enabled=keep_casts)

    @contextlib.contextmanager
    def generation(self, system: torch.nn.Module) -> Iterator[None]:
        """Context of many passes without gradients: the weights that autocast would cast at every word are cast once.

        These are the weights and biases of linear layers and convolutions, and what a module names in `multiplied`. An
        autocast region inside computes the same numbers, since it would multiply by the same rounded weights. A weight that is
        also an embedding stays as it is: autocast looks words up in float32; so does a module that says `in_float32`.
        """
        kept, cast = [], {}
        looked_up = {id(module.weight) for module in system.modules() if isinstance(module, torch.nn.Embedding)}
        exact = {inner for module in system.modules() if getattr(module, "in_float32", False) for inner in module.modules()}
        for module in system.modules() if self.kind is not None else ():
            for name in _multiplied(module) if module not in exact else ():
                weight = module._parameters[name]
                if weight is not None and weight.dtype == torch.float32 and id(weight) not in looked_up:
                    kept.append((module, name, weight))
                    if id(weight) not in cast:
                        cast[id(weight)] = torch.nn.Parameter(weight.detach().to(self.kind), requires_grad=False)
        try:
            for module, name, weight in kept:
                module._parameters[name] = cast[id(weight)]
            yield
        finally:
            for module, name, weight in kept:
                module._parameters[name] = weight


def _multiplied(module: torch.nn.Module) -> tuple[str, ...]:
    """Names of the module's own parameters that only enter products, which autocast computes in half precision."""
    if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
        return "weight", "bias"
    return getattr(module, "multiplied", ())


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x, out of half precision: for what must stay exact inside an autocast region."""
    return x.float() if x.dtype.itemsize < 4 else x


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed every generator; with `deterministic` PyTorch refuses kernels that are not."""
    import os
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # images of a run have one size: cuDNN times its kernels once and takes the fastest, which may differ from run to run
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
