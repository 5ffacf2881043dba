"""Convolutional networks that timm lacks, registered with it by importing this file.

`resnet18_small`, `resnet34_small`, `resnet50_small` are the residual networks of He et al. 2016 (arXiv 1512.03385) for
images of up to 64 pixels. Their stem is one 3x3 convolution of stride 1 without pooling, as in SimCLR's appendix B.9
(arXiv 2002.05709). `*_w50` and `*_w25` have a half and a quarter of the channels.
`resnet50_w2`, `_w4` and `_w5` are ResNet-50 with 2, 4 or 5 times as many channels everywhere, the stem included. SwAV
trained them (Caron et al. 2020, arXiv 2006.09882): 94, 375 and 586 million parameters. timm's and torchvision's
`wide_resnet50_2` widens the inner convolutions only. The names inside are torchvision's, so published weights fit.
`tiny_layout` is a convolutional network for digits and other pictures in which position carries the meaning: its last
map is flattened, never averaged away.

B images, C channels, h x w pixels, F features, G side of the grid that is flattened.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from selfcluster.models.entries import entry, register

CHANNELS = (64, 128, 256, 512)  # of the four stages of every residual network in the paper


class PlainStemResNet(ResNet):
    """timm's ResNet whose stem is one convolution as wide as the first stage: (kernel, stride, padding)."""

    def __init__(
        self, *, stem: tuple[int, int, int], channels: tuple[int, ...] = CHANNELS, in_chans: int = 3, **kwargs: Any
    ) -> None:
        # the deep stem is the one whose width timm lets us set; its three convolutions are replaced by one
        super().__init__(channels=channels, in_chans=in_chans, stem_type="deep", stem_width=channels[0] // 2, **kwargs)
        like = self.bn1.weight
        where: Any = {"device": like.device, "dtype": like.dtype}
        self.conv1 = nn.Conv2d(in_chans, channels[0], *stem, bias=False, **where)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


class SmallResNet(PlainStemResNet):
    """A ResNet for small images: 3x3, stride 1, no pooling. Its strides multiply to 8, not 32."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stem=(3, 1, 1), **kwargs)
        self.maxpool = nn.Identity()
        for stage, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=True):
            stage["reduction"] = reduction


class TinyLayout(nn.Module):
    """Five convolutions and a flattened G x G map, so that features know where a stroke is.

    An image whose last map is not G x G (any input but 4 G pixels) is brought to it by averaging over G x G cells.

    Args:
        num_classes: outputs of the final linear layer; 0 leaves it out.
        in_chans: channels of the images.
        widths: channels of the five convolutions; the second and fourth halve the map.
        grid: G; there are widths[-1] * G * G features.
        drop_rate: dropout before the final linear layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        widths: tuple[int, ...] = (16, 32, 32, 64, 32),
        grid: int = 4,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.grid, self.drop_rate = num_classes, in_chans, grid, drop_rate
        before = in_chans
        self.feature_info = []
        for number, (width, stride) in enumerate(zip(widths, (1, 2, 1, 2, 1), strict=True), start=1):
            convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.add_module(f"layer{number}", nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
            reduction = (1, 2, 2, 4, 4)[number - 1]
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"layer{number}"})
            before = width
        self.num_features = self.head_hidden_size = before * grid * grid
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, h, w) to the last map (B, widths[-1], h / 4, w / 4)."""
        for number in range(1, 6):
            x = getattr(self, f"layer{number}")(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to features (B, F), or to class scores where there is a classifier."""
        if x.shape[-2:] != (self.grid, self.grid):
            x = F.adaptive_avg_pool2d(x, self.grid)
        x = x.flatten(1)  # (B, F)
        if pre_logits:
            return x
        return self.fc(F.dropout(x, self.drop_rate, self.training))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The final linear layer (an identity without classes), as timm's networks answer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new final layer; `global_pool` must stay None, since this network never pools its layout away."""
        if global_pool:
            raise ValueError(f"tiny_layout flattens its map: it has no global_pool={global_pool!r} to set")
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


_RESNETS = [f"{name}_small{width}" for name in ("resnet18", "resnet34", "resnet50") for width in ("", "_w50", "_w25")]
_WIDTHS = (2, 4, 5)
_CONFIGS: dict[str, Any] = {name: entry(32, "conv1", num_classes=10, crop_pct=1.0) for name in _RESNETS}
_CONFIGS |= {f"resnet50_w{width}": entry(224, "conv1") for width in _WIDTHS}
_CONFIGS["tiny_layout"] = entry(16, "layer1.0", channels=1, num_classes=10, crop_pct=1.0)
default_cfgs = generate_default_cfgs(_CONFIGS)


def _register_small(name: str, block: type[nn.Module], layers: tuple[int, ...], divisor: int) -> None:
    channels = tuple(c // divisor for c in CHANNELS)

    def create(pretrained: bool = False, **kwargs: object) -> nn.Module:
        arguments = {"block": block, "layers": layers, "channels": channels, **kwargs}
        return build_model_with_cfg(SmallResNet, name, pretrained, **arguments)

    register(name, create, f"3x3 stem of stride 1, stages of {channels} channels, {layers} blocks")


def _register_wide(width: int) -> None:
    name, channels = f"resnet50_w{width}", tuple(width * c for c in CHANNELS)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        own = {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": channels, "stem": (7, 2, 3)}
        return build_model_with_cfg(PlainStemResNet, name, pretrained, **own | kwargs)

    register(name, create, f"stages of {channels} channels")


for _width in _WIDTHS:
    _register_wide(_width)
for _suffix, _divisor in (("", 1), ("_w50", 2), ("_w25", 4)):
    _register_small(f"resnet18_small{_suffix}", BasicBlock, (2, 2, 2, 2), _divisor)
    _register_small(f"resnet34_small{_suffix}", BasicBlock, (3, 4, 6, 3), _divisor)
    _register_small(f"resnet50_small{_suffix}", Bottleneck, (3, 4, 6, 3), _divisor)


@register_model
def tiny_layout(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The digits' five convolutions with their layout kept."""
    return build_model_with_cfg(TinyLayout, "tiny_layout", pretrained, **kwargs)
