"""One run in several processes (started by torchrun) or in one; the rest of the code need not know which.

Every process has the whole annotation and its share of each step's studies. What is written, printed or decided once is
done by the first process; the others wait or are told. A control group over gloo serves for that, also beside NCCL.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

from modules.errors import InputError

# the first process may build artefacts for hours while the others wait; a process that died is noticed at once anyway
PATIENCE = timedelta(days=7)


def start(device: torch.device) -> torch.device:
    """Join the run that torchrun started, if it did; returns this process's own device. Only the first one prints."""
    own = os.getpid()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        for asked in (signal.SIGTERM, signal.SIGHUP):  # leave as on Ctrl-C: a checkpoint that is being written gets whole
            signal.signal(asked, lambda number, _: sys.exit(128 + number) if os.getpid() == own else os._exit(128 + number))
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise InputError(
            f"the processes of torchrun cannot meet ({str(error).splitlines()[0]}); where the port is another run's, choose one: "
            "torchrun --master_port 29501, or --standalone"
        ) from error
    signal.signal(signal.SIGTERM, lambda *_: ended() if os.getpid() == own else os._exit(143))
    if rank() > 0:
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return device


_alone = False  # within from_first


def rank() -> int:
    """Number of this process, the first is 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes this run has; within `from_first` one, since the others wait for its result."""
    return distributed.get_world_size() if distributed.is_initialized() and not _alone else 1


def from_first(function: Callable):
    """What `function()` returns in the first process, in every process; it is called nowhere else."""
    global _alone
    outside, _alone = _alone, True
    try:
        value = function() if rank() == 0 else None
    finally:
        _alone = outside
    if count() > 1:
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        value = box[0]
    return value


def first_then_others(function: Callable):
    """`function()` in every process, in the first one before the others: they find what it has made."""
    value = function() if rank() == 0 else None
    barrier()
    return value if rank() == 0 else function()


def gather(table: dict) -> dict:
    """The union of every process's `table`, in every process. ValueError when two hold the same key."""
    if count() == 1:
        return table
    tables: list = [None] * count()
    distributed.all_gather_object(tables, table)
    union: dict = {}
    for part in tables:
        doubled = union.keys() & part.keys()
        if doubled:
            raise ValueError(f"two processes hold {sorted(doubled)[:3]}")
        union |= part
    return union


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over the processes; in place, float64 or float32 on this process's device."""
    if count() > 1:
        distributed.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    from_first(lambda: None)


def replicate(module: torch.nn.Module, device: torch.device, *, idle: bool = False) -> torch.nn.Module:
    """`module` with gradients averaged over the processes; the module itself where there is one.

    idle: some parameters may get no gradient at a step; one that gets none in any process is left without.
    """
    if count() == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    # buffers (running means, a knowledge base) need not travel at every step: see same_buffers
    return torch.nn.parallel.DistributedDataParallel(
        module, device_ids=ids, broadcast_buffers=False, find_unused_parameters=idle
    )


def unsynchronised(module: torch.nn.Module):
    """Context in which a backward pass keeps its gradients to this process (all but the last of an accumulation)."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def same_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers, such as running means, before they are used to write reports."""
    if count() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def ended() -> None:
    """Say that this run cannot go on since another process has died, or torchrun was told to stop it; and leave."""
    print("error: another process of this run has ended, or the run was stopped; last.pt holds the last whole epoch: go on "
          "with --resume", file=sys.stderr, flush=True)  # fmt: skip
    os._exit(3)  # the group cannot be left in order any more


def lost_another(error: RuntimeError) -> bool:
    """Whether an error only says that another process of this run has ended."""
    return count() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))
