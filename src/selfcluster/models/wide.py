"""ResNet-50 with all channels multiplied, registered with timm by importing this file: `resnet50_w2`, `_w4`, `_w5`.

He et al. 2016 (arXiv 1512.03385), with every channel, the stem's included, 2, 4 or 5 times as many, as SwAV (Caron et
al. 2020, arXiv 2006.09882) trained them: 94, 375 and 586 million parameters. timm's and torchvision's `wide_resnet50_2`
widens the inner convolutions alone. The names are torchvision's, so published weights fit.
Departs: nothing.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import Bottleneck
from torch import nn

from selfcluster.models.classic import CHANNELS, PlainStemResNet
from selfcluster.models.registration import entry, register

_WIDTHS = (2, 4, 5)


_CONFIGS: dict[str, Any] = {f"resnet50_w{width}": entry(224, "conv1") for width in _WIDTHS}
default_cfgs = generate_default_cfgs(_CONFIGS)


def _register(width: int) -> None:
    name = f"resnet50_w{width}"
    channels = tuple(width * c for c in CHANNELS)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        own = {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": channels, "stem": (7, 2, 3)}
        return build_model_with_cfg(PlainStemResNet, name, pretrained, **own | kwargs)

    register(name, create, f"stages of {channels} channels")


for _width in _WIDTHS:
    _register(_width)
