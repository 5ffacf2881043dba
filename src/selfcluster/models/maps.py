"""What a network computes at every place of an image: maps of features, and a vision transformer's class token.

B images, C channels, F features, h x w places (patches of a transformer, cells of a convolutional map).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfcluster.models.taps import channels_first, output_of


@dataclass(frozen=True)
class Maps:
    """Features by place, (B, F, h, w) float32, and the class token (B, F); None for networks without one."""

    places: Tensor
    token: Tensor | None


@torch.no_grad()
def feature_maps(backbone: Any, images: Tensor, layer: str | None = None) -> Maps:
    """Return the maps of a network, or of a module inside it.

    Without `layer` a vision transformer gives the tokens of its last block behind its last norm, and a convolutional
    network its last map.

    Args:
        backbone: from `make_backbone` or `load_backbone`.
        images: (B, C, height, width), normalized.
        layer: name of a module, such as `blocks.2`.

    Raises:
        ValueError: the network has no such layer, or that layer has no places.
    """
    training = backbone.training
    backbone.eval()
    try:
        if layer is not None:
            out = output_of(backbone, images, layer)
        else:  # calling the network goes through its Sobel filters, `forward_features` does not
            out = backbone.forward_features(backbone.sobel(images) if hasattr(backbone, "sobel") else images)
    finally:
        backbone.train(training)
    name = f"the layer {layer}" if layer else "the network's last map"
    if out.dim() == 4:
        return Maps((channels_first(backbone, backbone, out) if layer is None else out).float(), None)
    if out.dim() != 3 or not hasattr(backbone, "patch_embed"):
        raise ValueError(
            f"{name} gives the shape {tuple(out.shape)}, which has no spatial positions; name a convolution or a "
            "transformer block"
        )
    height, width = grid_of(backbone, images)
    extra = out.shape[1] - height * width  # class and register tokens come first
    if extra < 0:
        raise ValueError(f"{name} gives {out.shape[1]} tokens for {height} x {width} patches")
    token = out[:, 0].float() if extra and getattr(backbone, "cls_token", None) is not None else None
    return Maps(out[:, extra:].float().transpose(1, 2).unflatten(2, (height, width)), token)


def grid_of(backbone: Any, images: Tensor) -> tuple[int, int]:
    """Return how many patches a transformer cuts the images into, down and across."""
    height, width = backbone.patch_embed.patch_size
    return images.shape[-2] // height, images.shape[-1] // width


def stride_of(backbone: Any) -> int:
    """Return the number of pixels that sides of images must be a multiple of; 1 for convolutional networks."""
    if not hasattr(backbone, "patch_embed"):
        return 1
    patch = backbone.patch_embed.patch_size
    return int(patch[0] if isinstance(patch, tuple) else patch)
