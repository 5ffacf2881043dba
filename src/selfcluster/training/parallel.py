"""Several processes under `torchrun`: gradients averaged by DDP, batch norm over all ranks, buffers left alone."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfcluster.distributed import all_reduce, world_size
from selfcluster.methods.base import Method
from selfcluster.models.norm import convert_sync
from selfcluster.types import Output


def join_ranks(method: Method, device: torch.device) -> nn.Module:
    """The module whose forward the loop calls; with one process the method itself.

    Buffers are never synchronized in the forward: memories are written alike on every rank, and sending a 51 MB one
    along made a step 25 times slower. Parameters that not every rank holds are left to `Shards`.
    """
    if world_size() == 1:
        return method
    convert_sync(method)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, method.sharded())
    known = inspect.signature(DistributedDataParallel).parameters
    quiet: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=ids, gradient_as_bucket_view=True, **quiet)


def reducing(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Gradients are reduced in the last micro-batch of a step only."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def read(outputs: list[Output], norm: Tensor, stop: bool, due: bool) -> tuple[dict[str, float], bool, bool]:
    """The one host read of a step: mean loss and logs over micro-batches and ranks, and whether anyone wants to stop
    or to save. A loss that is not finite on one rank is so on all."""
    names = ["loss", *outputs[0].log]
    means = [
        torch.stack([o.loss.detach().float() if n == "loss" else o.log[n].float() for o in outputs]) for n in names
    ]
    flags = norm.new_tensor([float(stop), float(due)])
    packed = all_reduce(torch.cat([torch.stack(means).mean(dim=1), flags])) / world_size()
    *numbers, stopping, saving, gradient_norm = torch.cat([packed, norm.reshape(1)]).tolist()
    return {**dict(zip(names, numbers, strict=True)), "gradient_norm": gradient_norm}, stopping > 0, saving > 0
