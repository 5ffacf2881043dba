"""Edges instead of colors: the fixed filters that DeepCluster puts before a network.

Caron et al. 2018, arXiv 1807.05520, section 4; without them clusters follow color (DeeperCluster, arXiv 1905.01278,
table 8). They stand in front of any network with two input channels, after mean and standard deviation are taken off.
Departs: nothing.

B images, C channels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 2
M = TypeVar("M", bound=nn.Module)


class Sobel(nn.Module):
    """Two edge channels of the mean gray, fixed weights: normalized (B, C, h, w) -> (B, 2, h', w').

    Channel 0 answers to vertical edges, channel 1 to horizontal ones. The weights follow from the definition, so they
    are no part of `state_dict`.

    Args:
        padding: zeros around the gray image; 1 keeps the size (DeepCluster), 0 takes a pixel off each side
            (DeeperCluster, which pads the image by 2 beforehand).

    >>> Sobel()(torch.ones(1, 3, 4, 4))[0, :, 1:3, 1:3].abs().max().item()
    0.0
    """

    weight: Tensor

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        horizontal = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        vertical = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])
        self.register_buffer("weight", torch.stack([horizontal, vertical])[:, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 2, h', w')."""
        return F.conv2d(images.mean(dim=1, keepdim=True), self.weight, padding=self.padding)


def put_before(module: M, padding: int = 1) -> M:
    """Let a network of two input channels take images: its `forward` sees their edges. Its `state_dict` stays as it is.

    With a `padding` of 2 edges reach a pixel further than the image, and `fold_sobel` is exact (`folding.py`). Only
    calling the network goes through the filters; its inner functions (`forward_features`) still want edges.
    """
    module.sobel = Sobel(padding)
    module.register_forward_pre_hook(_edges)
    return module


def take_away(module: M) -> M:
    """Undo `put_before`: the network takes edges again."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _edges]:
        del module._forward_pre_hooks[key]
    del module.sobel
    return module


def _edges(module: Any, args: tuple[object, ...]) -> tuple[object, ...]:
    return module.sobel(args[0]), *args[1:]
