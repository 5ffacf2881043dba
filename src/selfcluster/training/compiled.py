"""`--compile`: the backbones' training passes are compiled by torch for the duration of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def compiled(method: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the backbones of a method in this block, for passes in training mode whose gradients are kept.

    Other passes are not compiled: they are few, have other sizes, and each would need a compilation of its own. At the
    end the modules get their own `forward` back, so that copies and exports contain nothing compiled.

    Args:
        method: its backbones are the modules from `make_backbone`. A teacher keeps no gradients, so it is not compiled.
        wanted: if False, nothing is compiled.
    """
    backbones: list[Any] = [module for module in method.modules() if hasattr(module, "spec")] if wanted else []
    for module in backbones:
        module.forward = _in_training(module, module.forward)
    try:
        yield
    finally:
        for module in backbones:
            del module.forward


def _in_training(module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    fast = torch.compile(forward, dynamic=False)  # one program for each size of view

    def chosen(*images: Tensor) -> Tensor:
        return fast(*images) if module.training and torch.is_grad_enabled() else forward(*images)

    return chosen
