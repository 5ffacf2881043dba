"""Features of every image of a source by one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfcluster.data.images import check_images
from selfcluster.data.loader import Loader
from selfcluster.data.sources import Source
from selfcluster.models.frozen import Frozen
from selfcluster.models.pretrained import Network
from selfcluster.training.embedding import gather_rows, make_embed
from selfcluster.training.precision import pick_device, pick_precision


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
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images could be read (n,), rising, and their features (n, F) float32.

    Args:
        source: the images.
        network: prepares them in its own way.
        layer: a module of the network whose output, averaged over positions, is taken; None: the network's features.
        batch_size: images at a time.
        workers, device, precision, max_bad: as in training.
        quarantine: file for the images that cannot be read.
        timeout: seconds after which a read that hangs ends the call.
    """
    if len(source) > 1:  # one picture to search with is the user's own choice
        check_images(source)
    target = pick_device(device)
    loader = Loader(
        source,
        batch_size=min(batch_size, len(source)),
        **network.preprocessing.loader_arguments(),
        device=target,
        workers=workers,
        max_bad=max_bad,
        quarantine=quarantine,
        timeout=timeout,
    )
    module = network.module.to(target).eval()
    frozen = None if layer is None else Frozen(module, layer=layer)
    embed = make_embed(module, loader, None, device=target, precision=pick_precision(precision, target))
    try:
        return gather_rows(embed(lambda views: module(views[0]) if frozen is None else frozen.features(views[0])))
    finally:
        loader.close()
