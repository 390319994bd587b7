"""A GPU that needs no driver: what runs on it is computed on the CPU, and two mistakes of real GPUs are noticed.

Inside `pretended_gpu()` the device "cuda" exists. A tensor on it says cuda:0 to Python, is a meta tensor to autograd (whose
engine then asks no driver) and holds a CPU tensor with its numbers. An operation that mixes it with a CPU tensor of one or more
dimensions raises MixedDevices; whatever would make the CPU wait for the queue of a GPU is counted by source line.
Not covered: autocast, cuDNN, NCCL, pinned memory, torch.compile.
"""

import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
           aten.is_nonzero.default, aten.bincount.default, aten._unique2.default, aten.unique_dim.default,
           aten.repeat_interleave.Tensor}  # fmt: skip
HEALTH_CHECKS = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # by PyTorch's version
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class MixedDevices(RuntimeError):
    """An operation was given tensors of both devices."""


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU; `held` is the CPU tensor with its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        facts = {"dtype": real.dtype, "device": "meta", "requires_grad": False}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), real.stride(), real.storage_offset(), **facts)
        made.held = real
        return made

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_meta(self):
        return False

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):  # Module.to, of what is there already
        self.held = value.held

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self):
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {}, Counter())


def is_gpu(device) -> bool:
    """Autograd, to which these tensors are meta tensors, asks for more of them on "meta"."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


def compute(function, args, kwargs, waits: Counter):
    """One operation on the tensors inside; its results are on the pretended GPU if one of its tensors or its device is."""
    flat, spec = tree_flatten((args, kwargs))
    gpu = [value for value in flat if isinstance(value, OnGpu)]
    cpu = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, OnGpu) and value.dim()]
    device = kwargs.get("device")
    if any(value.is_meta for value in cpu):
        raise RuntimeError(f"{function} was given a meta tensor, which has no numbers")
    if function in INDEXED:  # indices on the CPU are uploaded
        cpu = [value for value in cpu if all(value is not index for index in args[1])]
    if gpu and cpu and function not in COPIES:
        raise MixedDevices(
            f"{function} of tensors {[list(t.shape) for t in gpu]} on cuda:0 and {[list(t.shape) for t in cpu]}"
        )
    if reason := why_waiting(function, args, kwargs, gpu):
        waits[f"{caller()}: {reason}"] += 1
    flat = [value.held if isinstance(value, OnGpu) else value for value in flat]
    plain_args, plain_kwargs = tree_unflatten(flat, spec)
    if is_gpu(device):
        plain_kwargs["device"] = torch.device("cpu")
    if function is aten._to_copy.default and not gpu and is_gpu(device) and plain_kwargs.get("dtype") is None:
        result = plain_args[0].detach().clone()  # a copy, also where a CPU would hand out the same tensor
    else:
        result = function(*plain_args, **plain_kwargs)
    if function.name() == "aten::_local_scalar_dense":
        return result
    away = function is aten._to_copy.default and device is not None and not is_gpu(device)
    if away or not (gpu or is_gpu(device)) or function is aten.copy_.default and not isinstance(args[0], OnGpu):
        return args[0] if function is aten.copy_.default else result
    own = {id(value.held): value for value in gpu}  # an operation in place gives back its tensor

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        return own[id(value)] if id(value) in own else OnGpu(value)

    return wrapped(result) if isinstance(result, torch.Tensor) else tree_map(wrapped, result)


def why_waiting(function, args, kwargs, gpu) -> str | None:
    """Why the CPU would wait here for all that was queued on the GPU before; None where it would not."""
    device = kwargs.get("device")
    if function is aten._to_copy.default and device is not None and is_gpu(device) != bool(gpu):
        if is_gpu(device):
            return "upload" if args[0].dim() and not kwargs.get("non_blocking") else None
        return "download"
    if function is aten.copy_.default and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu) and args[1].dim():
        return None if kwargs.get("non_blocking") or len(args) > 2 and args[2] else "copy"
    if gpu and function in WAITING:
        return function.name().removeprefix("aten::")
    if gpu and function in INDEXED:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, OnGpu) for index in indices):
            return "upload of an index"
        if any(index.dtype == torch.bool for index in indices) and (
            function is aten.index.Tensor or args[2].numel() > 1
        ):
            return "bool mask"  # one number for all that is chosen is filled in place
    return None


def caller() -> str:
    """file:line of the innermost frame of this project outside this file."""
    for frame in reversed(traceback.extract_stack()):
        if "site-packages" not in frame.filename and frame.filename != __file__ and "/torch/" not in frame.filename:
            return f"{'/'.join(frame.filename.rsplit('/', 2)[1:])}:{frame.lineno}"
    return "?"


class Gpu(TorchDispatchMode):
    """Catches what is made on "cuda", and counts. `waits`: how often the CPU would wait, by source line and reason."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {}, self.waits)


class Numbered(TorchFunctionMode):
    """Calls with "cuda" become calls with "cuda:0": the current device would be asked of the driver."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tuple(map(numbered, args)), {name: numbered(value) for name, value in (kwargs or {}).items()}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], listed(args[1]), *args[2:])
        if function in (torch.tensor, torch.as_tensor) and is_gpu(kwargs.get("device")):
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


def numbered(value):
    cuda = isinstance(value, torch.device) and value.type == "cuda" or isinstance(value, str) and value == "cuda"
    return CUDA if cuda else value


def listed(index):
    """An index without lists, of which PyTorch would make meta tensors without numbers."""
    if isinstance(index, tuple):
        return tuple(map(listed, index))
    return torch.tensor(index) if isinstance(index, list) else index


@contextmanager
def pretended_gpu():
    """The block in which the device "cuda" can be used; gives the Gpu with its counts."""
    gpu = Gpu()
    with ExitStack() as stack:
        for patched in (
            patch.object(torch.cuda, "_lazy_init", lambda: None),
            patch.object(torch.cuda, "is_available", lambda: True),
            *(patch.object(torch.optim.Optimizer, name, lambda self: None, create=True) for name in HEALTH_CHECKS),
            patch.object(torch.cuda, "get_rng_state_all", lambda: []),
        ):
            stack.enter_context(patched)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(Numbered())
        stack.enter_context(gpu)
        yield gpu
