"""Processes: who am I, and sums and gathers that gradients flow through. One process needs none of it set up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfcluster.heartbeat import Heartbeat, RankFailed

_COLLECTIVE_SECONDS = 1800  # for one operation on tensors; a process that is gone is noticed long before
T = TypeVar("T")
_alone = False
_heartbeat: Heartbeat | None = None


def start(device: torch.device | str = "cpu", timeout_seconds: float = 600) -> None:
    """Join the group that `torchrun` announces in the environment; nothing to do without one.

    Args:
        device: "cpu", or what the processes compute on.
        timeout_seconds: without a sign of life from a process after which the run ends; see `Heartbeat`.
    """
    global _heartbeat
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    device = torch.device(device)
    if device.type == "cuda":  # what nccl sends objects and barriers through; without it all ranks would share device 0
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # counts and k-means stay on the host
    timeout = timedelta(seconds=_COLLECTIVE_SECONDS)
    shared, number, world = next(iter(dist.rendezvous("env://", timeout=timeout)))
    # torchrun keeps the store over its restarts: what the last start left in it would be taken for this one's
    attempt = f"selfcluster {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(attempt, shared)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=timeout)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def connect() -> dist.Store:
        return dist.PrefixStore(attempt, dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10)))

    _heartbeat = Heartbeat(store, connect, number, world, timeout_seconds)


def at(where: Callable[[], str]) -> None:
    """Take a function that says in a few words where this process is, for the messages that name it."""
    if _heartbeat is not None:
        _heartbeat.at(where)


def on_end(call: Callable[[str], None]) -> None:
    """Take what to do with the reason when this process has to end because another one is silent."""
    if _heartbeat is not None:
        _heartbeat.on_end = call


def cause(error: BaseException) -> BaseException:
    """Return the first error of all processes as `RankFailed`; without a group the error itself."""
    return error if _heartbeat is None else _heartbeat.cause(error)


def agree(value: Any) -> Any:
    """Return the first process's small object; raise it where it is an exception, in words on that process only."""
    value = broadcast_object(value)
    if isinstance(value, Exception):
        raise value if rank() == 0 else RankFailed(str(value), type(value).__name__, told=True)
    return value


def stop() -> None:
    """Leave the group, if there is one."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.stop()
        _heartbeat = None
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if it were the only one, for the duration of the `with` block.

    For work of one rank that the others do not join, such as a small k-means: a collective there would wait for ever.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's number in the group, from 0."""
    return dist.get_rank(group) if dist.is_initialized() and not _alone else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """How many processes the group has; 1 without one."""
    return dist.get_world_size(group) if dist.is_initialized() and not _alone else 1


def share(n: int, r: int | None = None, world: int | None = None) -> slice:
    """The contiguous part of range(n) that belongs to a rank; the parts in rank order are the whole."""
    r = rank() if r is None else r
    world = world_size() if world is None else world
    return slice(n * r // world, n * (r + 1) // world)


def all_reduce(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `x` over all ranks, differentiable; `x` itself is left alone."""
    return x if world_size(group) == 1 else _AllReduce.apply(x, group)  # pyright: ignore[reportReturnType]


def all_gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The ranks' `x` concatenated along dimension 0 in rank order, differentiable; lengths may differ.

    The gradient of a rank's part is the sum over ranks of what each computed for it.
    """
    return x if world_size(group) == 1 else _AllGather.apply(x, group)  # pyright: ignore[reportReturnType]


def broadcast(x: Tensor, source: int = 0) -> Tensor:
    """Overwrite `x` in place with rank `source`'s and return it."""
    if world_size() > 1:
        dist.broadcast(x, source)
    return x


def broadcast_object(value: T, source: int = 0) -> T:
    """Rank `source`'s small Python object; the others wait as long as that process lives."""
    if world_size() == 1:
        return value
    if _heartbeat is not None:
        return _heartbeat.share(value, source)
    box = [value]
    dist.broadcast_object_list(box, source)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's small Python object, in rank order, on all ranks."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def barrier() -> None:
    """Wait for all ranks. Never while one of them has long work to do."""
    if world_size() > 1:
        dist.barrier()


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        # gloo aborts the process where lengths differ, so they are exchanged first and the parts padded
        length = torch.tensor([x.shape[0]], device=x.device)
        lengths = [torch.empty_like(length) for _ in range(world_size(group))]
        dist.all_gather(lengths, length, group=group)
        ctx.group, ctx.lengths = group, [int(n) for n in lengths]
        longest = max(ctx.lengths)
        mine = x.detach().contiguous()
        if x.shape[0] < longest:
            mine = torch.cat([mine, mine.new_zeros((longest - x.shape[0], *x.shape[1:]))])
        parts = [torch.empty_like(mine) for _ in ctx.lengths]
        dist.all_gather(parts, mine, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        before = sum(ctx.lengths[: rank(ctx.group)])
        return total[before : before + ctx.lengths[rank(ctx.group)]], None
