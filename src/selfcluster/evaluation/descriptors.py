"""Compute a network's descriptors of image files of any size: class token, generalized mean or R-MAC.

n images, F features, h x w positions of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfcluster.clustering.whitening import Whitening
from selfcluster.evaluation.layouts.davis import read_frame
from selfcluster.models.descriptors import gem
from selfcluster.models.maps import Maps, feature_maps, stride_of
from selfcluster.models.pretrained import Network

Box = tuple[float, float, float, float]
T = TypeVar("T")
Shape = Literal["longer", "square"]


def map_of(
    file: Path,
    network: Network,
    side: int,
    *,
    shape: Shape = "longer",
    box: Box | None = None,
    layer: str | None = None,
    device: torch.device | str = "cpu",
) -> Maps:
    """Return a network's features at each position of an image file.

    Args:
        file: the image.
        network: the image is normalized with this network's mean and standard deviation.
        side: pixels of the longer side, or of both.
        shape: "longer" keeps the proportions, "square" does not.
        box: (left, top, right, bottom) in pixels of the file: use this part only. It is cut out after the resizing,
            so the scale is that of the whole image.
        layer: as in `feature_maps`.
        device: where the network is.
    """
    pixels = read_frame(file)  # (H, W, 3)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (side, side) if shape == "square" else (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(pixels).convert("L" if len(network.mean) == 1 else "RGB")
    image = image.resize(size, Image.Resampling.BICUBIC if shape == "square" else Image.Resampling.BILINEAR)
    if box is not None:
        left, top, right, bottom = (round(value * size[k % 2] / (width, height)[k % 2]) for k, value in enumerate(box))
        left, top = min(max(0, left), size[0] - 1), min(max(0, top), size[1] - 1)
        image = image.crop((left, top, min(max(left + 1, right), size[0]), min(max(top + 1, bottom), size[1])))
    stride = stride_of(network.module)
    whole = [max(stride, length // stride * stride) for length in image.size]
    if stride > 1 and tuple(whole) != image.size:
        image = image.crop((0, 0, min(whole[0], image.width), min(whole[1], image.height))).resize((whole[0], whole[1]))
    maps = any_size(network, _normalized(image, network).to(device), layer)
    if not bool(maps.places.isfinite().all()):
        raise ValueError(f"{file}: the network's features of this image are not finite")
    return maps


def tensor_of(pixels: np.ndarray, network: Network, side: int) -> Tensor:
    """Return pixels (H, W, 3) uint8 as the network's input (1, C, h, w), whose shorter side is about `side`.

    Both sides are whole numbers of a transformer's patches.
    """
    height, width = pixels.shape[:2]
    scale, stride = side / min(height, width), stride_of(network.module)
    size = [max(stride, round(length * scale) // stride * stride) for length in (width, height)]
    image = Image.fromarray(pixels).convert("L" if len(network.mean) == 1 else "RGB")
    return _normalized(image.resize((size[0], size[1]), Image.Resampling.BILINEAR), network)


def any_size(network: Network, images: Tensor, layer: str | None = None) -> Maps:
    """Return `feature_maps`; raise ValueError if the network takes images of one size only."""
    try:
        return feature_maps(network.module, images, layer)
    except AssertionError as error:  # timm's patch embedding of a fixed size
        raise ValueError(f"{network.name} takes images of one size only: {error}") from error


def _normalized(image: Image.Image, network: Network) -> Tensor:
    values = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (network.mean, network.std))
    return ((torch.from_numpy(values).permute(2, 0, 1) - mean) / std)[None]


def token_of(maps: Maps) -> Tensor:
    """Return the class token (F,), or the mean of the map if the network has no class token."""
    return (maps.places.mean(dim=(2, 3)) if maps.token is None else maps.token)[0]


def token_and_gem(maps: Maps, p: float = 4.0) -> Tensor:
    """Return token and generalized mean of the map side by side, (2F,); only that mean, (F,), if there is no token."""
    pooled = gem(maps.places, p)[0]
    return pooled if maps.token is None else torch.cat([maps.token[0], pooled])


def fit_whitening(rows: Tensor, kept: int) -> Whitening:
    """Return a whitening to at most `kept` dimensions of rows (n, F); raise ValueError for fewer than two rows."""
    if len(rows) < 2:
        raise ValueError(f"a whitening needs at least 2 images, and --train has {len(rows)}; leave it out: --whiten 0")
    return Whitening(min(kept, rows.shape[1], len(rows) - 1)).fit(rows)


def describe_all(items: Iterable[T], describe: Callable[[T], Tensor]) -> np.ndarray:
    """Return unit descriptors (n, F) float32, one per item."""
    rows = [F.normalize(describe(item).float(), dim=0).cpu() for item in items]
    return torch.stack(rows).numpy()
