"""Features of a frozen network at each of its depths, from one pass: what linear probes of every layer are fitted to.

A convolutional map is averaged over windows so that about 9,000 numbers are left of it (Zhang et al. 2017, arXiv
1611.09842; Goyal et al. 2019, arXiv 1905.01235). At the sizes of ImageNet's networks (224 pixels) the windows are those
of the released code: DeepCluster's for its AlexNet, DeeperCluster's for VGG-16, VISSL's and OpenSelfSup's for ResNet. A
map of another size is cut into as many nearly equal parts. A block of a transformer gives its class token behind the
network's last norm, as DINO's released probe; without a class token it gives the mean of its tokens.

B images, C channels of a map, F features, g x g parts of a map, h x w places.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.models.backbones import Backbone
from selfcluster.models.taps import channels_first, find_module

MOST = 9600  # numbers of a pooled map: 96 x 10 x 10 of AlexNet's first layer is the largest published one
Window = tuple[int, int, int]  # kernel, stride, zeros around the map
# by channels and side of the map
_ALEXNET = {(96, 55): (6, 6, 3), (256, 27): (4, 4, 0), (384, 13): (3, 3, 1), (256, 13): (2, 2, 0)}
_VGG16 = {
    (64, 224): (18, 18, 0), (128, 112): (14, 14, 0), (256, 56): (9, 9, 0), (512, 28): (6, 6, 0), (512, 14): (3, 3, 0),
}  # fmt: skip
_RESNET = {
    (64, 112): (10, 10, 4), (256, 56): (16, 8, 0), (512, 28): (13, 5, 0), (1024, 14): (8, 3, 0), (2048, 7): (6, 1, 0),
}  # fmt: skip


def windows_of(network: nn.Module) -> dict[tuple[int, int], Window]:
    """Return the published windows for a network's family, by channels and side of a map; empty for others."""
    name = str(getattr(network, "spec", {}).get("model_name", ""))
    families = {"alexnet": _ALEXNET, "vgg16": _VGG16, "resnet": _RESNET}
    return next((windows for family, windows in families.items() if family in name), {})


def pooled(maps: Tensor, windows: dict[tuple[int, int], Window]) -> Tensor:
    """Return (B, C, g, g) averages of maps (B, C, h, w), with C * g * g at most 9,600 and g at most h and w.

    >>> pooled(torch.zeros(1, 256, 13, 13), {}).shape
    torch.Size([1, 256, 6, 6])
    """
    channels, height, width = maps.shape[1:]
    window = windows.get((channels, height)) if height == width else None
    if window is not None:
        return F.avg_pool2d(maps, window[0], window[1], window[2])
    parts = max(1, min(math.isqrt(MOST // channels), height, width))
    return F.adaptive_avg_pool2d(maps, parts)


def depths_of(network: nn.Module, last: int | None = None) -> list[str]:
    """Return the modules whose outputs are a network's depths, from the first; `last` keeps the last so many.

    These are conv1 to conv5 of AlexNet, the 13 convolutions of VGG-16, the stem and the stages of a ResNet, and the
    blocks of a transformer, as timm lists them.

    Raises:
        ValueError: the network lists no depths.
    """
    listed = getattr(network, "feature_info", None)
    rows = getattr(listed, "info", listed) or ()
    names = [row["module"] for row in rows if row.get("module")]
    if not names:
        raise ValueError(f"{type(network).__name__} does not list its depths; name one with --layer")
    return names if last is None else names[-last:]


class Depths(nn.Module):
    """A frozen network that gives the pooled output of several of its modules.

    Args:
        network: from `make_backbone` or `load_backbone`; it is set to evaluation and no longer trained.
        names: of the modules.
    """

    def __init__(self, network: Backbone, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names
        self._outputs: dict[str, Tensor] = {}
        windows = windows_of(network)
        for name in names:
            module = find_module(network, name)

            # pooled at once: a later operation may write into the map
            def keep(module: nn.Module, given: object, out: Tensor, name: str = name) -> None:
                self._outputs[name] = self._pooled(channels_first(network, module, out), windows)

            module.register_forward_hook(keep)
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> Depths:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, height, width) to a map (B, F, g, g) float32 of each depth."""
        self._outputs.clear()
        self.network(images)
        found = [self._outputs[name].float() for name in self.names]
        self._outputs.clear()
        return found

    def _pooled(self, out: Tensor, windows: dict[tuple[int, int], Window]) -> Tensor:
        if out.dim() == 4:
            return pooled(out, windows)
        rows = class_token(self.network, out) if out.dim() == 3 else out
        return rows[:, :, None, None]


class LastTokens(nn.Module):
    """DINO's features for a linear probe: the class tokens of the last blocks side by side, each behind the last norm.

    Args:
        network: a vision transformer.
        blocks: how many of the last blocks.
        patches: add the mean of the last block's other tokens, as DINO does for ViT-B with one block.
    """

    def __init__(self, network: Any, blocks: int, patches: bool) -> None:
        super().__init__()
        self.network, self.patches = network, patches
        self._outputs: list[Tensor] = []
        for block in network.blocks[-blocks:]:
            block.register_forward_hook(lambda module, given, out: self._outputs.append(network.norm(out)))
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> LastTokens:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, height, width) to one map (B, F, 1, 1) float32."""
        self._outputs.clear()
        self.network(images)
        rows = [out[:, 0] for out in self._outputs]
        if self.patches:
            rows.append(self._outputs[-1][:, self.network.num_prefix_tokens :].mean(dim=1))
        self._outputs.clear()
        return [torch.cat(rows, dim=1).float()[:, :, None, None]]


def has_class_token(network: nn.Module) -> bool:
    """Whether a network is a plain vision transformer, whose blocks all hold the class token."""
    plain = hasattr(network, "num_prefix_tokens") and hasattr(network, "blocks") and hasattr(network, "norm")
    return plain and getattr(network, "cls_token", None) is not None


def class_token(network: Any, tokens: Tensor) -> Tensor:
    """Return (B, F) of tokens (B, T, F): the class token behind the network's last norm, else the tokens' mean."""
    return network.norm(tokens)[:, 0] if has_class_token(network) else tokens.mean(dim=1)
