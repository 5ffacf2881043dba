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
    """Return the module that the loop calls; with one process it is the method itself.

    Buffers are never synchronized in the forward: every rank writes the same memories, and sending one of 51 MB made a
    step 25 times slower. `Shards` takes care of parameters that only some ranks hold.
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
    """Return a context in which gradients are reduced only in the last micro-batch of a step."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def read(outputs: list[Output], norm: Tensor, stop: bool, due: bool) -> tuple[dict[str, float], bool, bool]:
    """Read a step's numbers from the device, once: loss and logs, averaged over micro-batches and ranks, and whether
    a rank wants to stop or to save. If the loss of one rank is not finite, the mean is not finite on all ranks."""
    names = ["loss", *outputs[0].log]
    means = [
        torch.stack([o.loss.detach().float() if n == "loss" else o.log[n].float() for o in outputs]) for n in names
    ]
    flags = norm.new_tensor([float(stop), float(due)])
    packed = all_reduce(torch.cat([torch.stack(means).mean(dim=1), flags])) / world_size()
    *numbers, stopping, saving, gradient_norm = torch.cat([packed, norm.reshape(1)]).tolist()
    return {**dict(zip(names, numbers, strict=True)), "gradient_norm": gradient_norm}, stopping > 0, saving > 0
