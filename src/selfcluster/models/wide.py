"""ResNet-50 with all channels multiplied, registered with timm by importing this file: `resnet50_w2`, `_w4`, `_w5`.

He et al. 2016 (arXiv 1512.03385), with every channel, the stem's included, 2, 4 or 5 times as many, as SwAV (Caron et
al. 2020, arXiv 2006.09882) trained them: 94, 375 and 586 million parameters. timm's and torchvision's `wide_resnet50_2`
widens the inner convolutions alone. The names are torchvision's, so published weights fit.
Departs: nothing.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

_CHANNELS = (64, 128, 256, 512)  # of the four stages of the single width
_WIDTHS = (2, 4, 5)


class WideResNet(ResNet):
    """timm's ResNet, whose stem has as many channels as its first stage."""

    def __init__(self, *, channels: tuple[int, ...], in_chans: int = 3, **kwargs: Any) -> None:
        # the deep stem is the one whose width timm lets us set; its three convolutions are replaced by one
        super().__init__(channels=channels, in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, **kwargs)
        like = self.bn1.weight
        where: Any = {"device": like.device, "dtype": like.dtype}
        self.conv1 = nn.Conv2d(in_chans, channels[0], 7, stride=2, padding=3, bias=False, **where)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


def _config() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
    }


_CONFIGS: dict[str, Any] = {f"resnet50_w{width}": _config() for width in _WIDTHS}
default_cfgs = generate_default_cfgs(_CONFIGS)


def _register(width: int) -> None:
    name = f"resnet50_w{width}"
    channels = tuple(width * c for c in _CHANNELS)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": channels, **kwargs}
        return build_model_with_cfg(WideResNet, name, pretrained, **arguments)

    create.__name__ = create.__qualname__ = name  # what timm registers it under
    create.__doc__ = f"{name}: stages of {channels} channels."
    register_model(create)


for _width in _WIDTHS:
    _register(_width)
