"""Compute one network's features of every image of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfcluster.data.images import check_images
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.models.backbones import Backbone
from selfcluster.models.frozen import Frozen
from selfcluster.models.fused import fuse_norms
from selfcluster.models.pretrained import Network
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.kept import KeptRows
from selfcluster.training.precision import pick_device, pick_precision

# Most pixels per channel in a batch on a CPU. Larger batches do not fit into memory that the allocator reuses, and
# clearing new pages then takes as long as the network's computation
# (EfficientNet-Lite0, 224 px, fp32, channels last: 19.5 ms an image at 4, 33 ms at 16).
_TOGETHER = 4 * 224 * 224


def network_loader(source: Source, network: Network, batch_size: int, device: torch.device, **more: Any) -> Loader:
    """Return a loader of images prepared in a network's own way; `more` are further arguments of `Loader`."""
    arguments = network.preprocessing.loader_arguments()
    return Loader(source, batch_size=min(batch_size, len(source)), device=device, **arguments, **more)


def on_device(network: Network, device: torch.device) -> Backbone:
    """Return the module of a network on the device, in evaluation mode and in channels-last layout."""
    return network.module.to(device).to(memory_format=torch.channels_last).eval()  # pyright: ignore


def embed_source(
    source: Source,
    network: Network,
    *,
    layer: str | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_bad: float = 0.01,
    quarantine: Path | None = None,
    timeout: float = 600.0,
    on_batch: Callable[[int], None] = lambda count: None,
    kept: KeptRows | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions (n,) of the images that could be read, in rising order, and their features (n, F) float32.

    Args:
        source: the images.
        network: images are prepared as it needs them.
        layer: take this module's output, averaged over positions; None: the network's features.
        batch_size: images at a time.
        workers, device, precision, max_bad: as in training.
        quarantine: file for the images that cannot be read.
        timeout: seconds after which a hanging read ends the call.
        on_batch: called with the number of images in a batch that has been embedded.
        kept: rows that an interrupted call with the same arguments has stored; this call continues there and stores its
            own rows.
    """
    if len(source) > 1:  # a single image, such as a search query, is not checked
        check_images(source)
    target = pick_device(device)
    reading = {"workers": workers, "max_bad": max_bad, "quarantine": quarantine, "timeout": timeout}
    loader, module = network_loader(source, network, batch_size, target, **reading), on_device(network, target)
    frozen = None if layer is None else Frozen(module, layer=layer, flag="--layer")
    if frozen is not None:
        compute = frozen.features
    else:
        compute = fuse_norms(module, _blank(network)) if target.type == "cpu" else module

    def features(views: Sequence[Tensor]) -> Tensor:
        rows = run_network(compute, views[0])
        on_batch(len(rows))
        return rows

    picked = pick_precision(precision, target)
    embed = make_embed(module, loader, None, device=target, precision=picked, on_host=True, kept=kept)
    try:
        return gather_rows(embed(features))
    finally:
        loader.close()
        if kept is not None:
            kept.write()


def _blank(network: Network) -> Tensor:
    return torch.zeros(1, network.preprocessing.channels, network.image_size, network.image_size)


def run_network(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return features (B, F) of images (B, C, h, w); on a CPU a few images at a time, which is faster there."""
    if images.device.type != "cpu":
        return network(images)
    pixels = _TOGETHER * (2 if torch.is_autocast_enabled("cpu") else 1)  # half as many bytes each
    count = max(1, pixels // (images.shape[2] * images.shape[3]))
    return torch.cat([network(part) for part in images.split(count)])
