"""The one owner of device and arithmetic."""

import contextlib

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
    """Autocast region and gradient scaler (from `scale` on) for --precision float32, bf16 or fp16."""

    KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def __init__(self, kind: str, device: torch.device, scale: float = 65536.0) -> None:
        if kind == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs CUDA; on a CPU take bf16 or float32")
        self.kind, self.device = self.KINDS.get(kind), device
        self.scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=kind == "fp16")

    def region(self):
        """Context of the forward pass."""
        if self.kind is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.kind)


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
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
