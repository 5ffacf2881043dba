"""DeepCluster's two networks, registered with timm by importing this file: `deepcluster_alexnet`, `deepcluster_vgg16`.

AlexNet (Krizhevsky et al. 2012) without grouped convolutions or local response normalization and VGG-16 (Simonyan and
Zisserman 2014, arXiv 1409.1556), both with batch norm after every convolution, as Caron et al. 2018 (arXiv 1807.05520,
section 4) trained them. Features are those of the second linear layer, before its ReLU: what DeepCluster clusters.
Departs: images of other sizes than 224 pixels run too: their last map is averaged or repeated over the grid that the
linear layers want, and a map smaller than a pooling window is not pooled.

B images, C channels, h x w pixels, F features, G side of the grid that is flattened.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from selfcluster.models.entries import entry

# (channels, kernel, stride, padding) of a convolution, or "pool"
_ALEXNET = ((96, 11, 4, 2), "pool", (256, 5, 1, 2), "pool", (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), "pool")
_VGG16 = tuple(
    layer
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for layer in (*[(channels, 3, 1, 1)] * count, "pool")
)


class Pool(nn.Module):
    """Maximum over windows of `size` at stride 2; a map smaller than the window passes as it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x if min(x.shape[-2:]) < self.size else F.max_pool2d(x, self.size, 2)


class DeepClusterNet(nn.Module):
    """Convolutions with batch norm and ReLU (`conv1`, `conv2`, ...), poolings between, then `fc6` and `fc7`.

    Args:
        layers: (channels, kernel, stride, padding) of a convolution or "pool", in order.
        window: of the poolings.
        grid: G.
        drop: dropout before fc6 and before fc7, as shares of `drop_rate`.
        num_classes: outputs of the final linear layer behind the last ReLU; 0 leaves both out.
        in_chans: C; 2 behind Sobel filters.
        hidden: F, outputs of fc6 and fc7.
        drop_rate: dropout.
    """

    stops_before_relu = True  # features are fc7's, before its ReLU, as DeepCluster clusters them

    def __init__(
        self,
        layers: tuple[Any, ...],
        window: int,
        grid: int,
        drop: tuple[float, float],
        num_classes: int = 1000,
        in_chans: int = 3,
        hidden: int = 4096,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.grid = num_classes, in_chans, grid
        self.drops = tuple(share * drop_rate for share in drop)
        self.feature_info: list[dict[str, Any]] = []
        before, reduction = in_chans, 1
        for layer in layers:
            number = len(self.feature_info) + 1
            if layer == "pool":
                self.add_module(f"pool{number - 1}", Pool(window))
                reduction *= 2
                continue
            channels, kernel, stride, padding = layer
            convolution = nn.Conv2d(before, channels, kernel, stride, padding)
            nn.init.normal_(convolution.weight, std=sqrt(2 / (kernel**2 * channels)))  # as released: counts outputs
            nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
            block = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
            self.add_module(f"conv{number}", block)
            reduction *= stride
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"conv{number}"})
            before = channels
        self._maps = [name for name, _ in self.named_children()]
        self.fc6 = _linear(before * grid * grid, hidden)
        self.fc7 = _linear(hidden, hidden)
        self.num_features = self.head_hidden_size = hidden
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, h, w) to the last map (B, channels, G, G) for 224 pixels, or another side."""
        for name in self._maps:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to features (B, F), or to class scores where there is a classifier."""
        if x.shape[-2:] != (self.grid, self.grid):
            x = F.adaptive_avg_pool2d(x, self.grid)
        x = self.fc6(F.dropout(x.flatten(1), self.drops[0], self.training))
        x = self.fc7(F.dropout(F.relu(x), self.drops[1], self.training))  # (B, F), before the ReLU
        return x if pre_logits or not self.num_classes else self.fc(F.relu(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The final linear layer (an identity without classes), as timm's networks answer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new final layer; `global_pool` must stay None, since fc6 wants the whole map."""
        if global_pool:
            raise ValueError(f"this network flattens its last map: it has no global_pool={global_pool!r} to set")
        self.num_classes = num_classes
        self.fc = _linear(self.num_features, num_classes) if num_classes else nn.Identity()

    @property
    def released_names(self) -> dict[str, str]:
        """Our modules by their names in DeepCluster's checkpoints, which count ReLUs, poolings and dropout too."""
        names, place = {}, 0
        for name in self._maps:
            if name.startswith("conv"):
                names |= {f"features.{place}": f"{name}.0", f"features.{place + 1}": f"{name}.1"}
            place += 3 if name.startswith("conv") else 1
        first = 1 if self.drops[0] else 0  # behind the dropout, where there is one
        return names | {f"classifier.{first}": "fc6", f"classifier.{first + 3}": "fc7"}


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


_CONFIGS: dict[str, Any] = {name: entry(224, "conv1.0") for name in ("deepcluster_alexnet", "deepcluster_vgg16")}
default_cfgs = generate_default_cfgs(_CONFIGS)


@register_model
def deepcluster_alexnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AlexNet with batch norm; dropout before both linear layers."""
    own = {"layers": _ALEXNET, "window": 3, "grid": 6, "drop": (1.0, 1.0)}
    return build_model_with_cfg(DeepClusterNet, "deepcluster_alexnet", pretrained, **own, **kwargs)


@register_model
def deepcluster_vgg16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-16 with batch norm; dropout between the two linear layers only."""
    own = {"layers": _VGG16, "window": 2, "grid": 7, "drop": (0.0, 1.0)}
    return build_model_with_cfg(DeepClusterNet, "deepcluster_vgg16", pretrained, **own, **kwargs)
