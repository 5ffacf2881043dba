"""A trained network that others learn from: it keeps its own image size and normalization and is never trained.

B images, C channels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster.models.backbones import Backbone, final_relu
from selfcluster.models.taps import averaged, channels_first, find_module

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow turns colors into gray


class Frozen(nn.Module):
    """A network that always stays in evaluation mode.

    Args:
        network: from `make_backbone` or `load_backbone`.
        layer: the name of a module inside it whose output, averaged over positions, is taken for the features; None:
            the network's own.
        classifier: features (B, F) to logits (B, K); None where the network has none.
        mean, std: by which the images are normalized that `forward` is given; None: as the network's own.
        flag: what named the layer, for messages.

    Attributes:
        size, mean, std: of the images that the network wants, as `features` takes them.
        width: F, or K with a classifier.

    Raises:
        ValueError: the network has no such layer (names those it has), or that gives no row an image.
    """

    given_mean: Tensor
    given_std: Tensor
    own_mean: Tensor
    own_std: Tensor

    def __init__(
        self,
        network: Backbone,
        *,
        layer: str | None = None,
        classifier: nn.Linear | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        flag: str = "--teacher-layer",
    ) -> None:
        super().__init__()
        own = network.spec["pretrained_cfg_overlay"]
        self.size, self.mean, self.std = own["input_size"][1], tuple(own["mean"]), tuple(own["std"])
        self.network, self.classifier = network, classifier
        self._tapped: list[Tensor] = []
        self._taps = layer is not None
        if layer is not None:
            tapped = find_module(network, layer, flag)
            tapped.register_forward_hook(lambda m, given, out: self._tapped.append(channels_first(network, m, out)))
        pairs = {"given_mean": mean or self.mean, "given_std": std or self.std, "own_mean": self.mean}
        for name, numbers in {**pairs, "own_std": self.std}.items():
            self.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        self.requires_grad_(False).train()
        with torch.no_grad():
            probe = self.features(torch.zeros(2, len(self.mean), self.size, self.size))
            if len(probe) != 2:
                raise ValueError(f"{flag} {layer}: it gives {len(probe)} rows for 2 images; name another layer")
            self.width = self._told(probe).shape[1]

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w), normalized as was said at the beginning, to features (B, F), or to logits (B, K)."""
        pixels = _with_channels(images.float() * self.given_std + self.given_mean, len(self.mean))
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        rows = self.features((pixels - self.own_mean) / self.own_std)
        return self._told(rows)

    def _told(self, rows: Tensor) -> Tensor:
        """Features (n, F), or with a classifier its logits (n, K)."""
        return rows if self.classifier is None else self.classifier(final_relu(self.network, rows)).float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, C, size, size), normalized as the network wants them, to (B, F) float32."""
        rows = self.network(images)
        if self._taps:
            rows = averaged(self._tapped[-1])
            self._tapped.clear()
        return rows.float()


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    if channels == 1:
        return (pixels * pixels.new_tensor(_GRAY)[:, None, None]).sum(dim=1, keepdim=True)
    return pixels.expand(-1, channels, -1, -1)
