"""All images as one uint8 tensor on the device, where they have one size and are small enough together."""

from __future__ import annotations

import math
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed
from selfcluster.data.budget import decoding, host_memory
from selfcluster.data.errors import BadImage
from selfcluster.data.images import open_row
from selfcluster.data.quarantine import Find, Quarantine
from selfcluster.data.sources import Source
from selfcluster.data.threads import Watch

_SHARE = 4  # a quarter of the device's memory
_PROBES = 64  # headers looked at before anything is decoded
_BLOCK_BYTES = 1 << 28  # decoded on the host at a time
_CHUNK = 32  # images a thread takes at once


def load_in_memory(
    source: Source, channels: int, device: torch.device, pool: Executor | None, quarantine: Quarantine, watch: Watch
) -> Tensor | None:
    """Return (N, H, W, C) uint8 on `device`, or None where the images differ in size or are too many.

    Bad images are quarantined and stay black. All ranks decide alike.
    """
    shape = _common_shape(source)
    fits = shape is not None and len(source) * shape[0] * shape[1] * channels <= memory(device) // _SHARE
    # the ranks' devices may differ in memory, but all ranks must decide alike
    images = _fill(source, (*shape, channels), device, pool, quarantine, watch) if shape and _all(fits) else None
    if not _all(images is not None):
        return None
    quarantine.sync()
    return images


def memory(device: torch.device) -> int:
    """Return the bytes of memory of a device; of the host, this process's part of it."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else host_memory()


def _all(yes: bool) -> bool:
    return all(distributed.gather_objects(yes))


def _common_shape(source: Source) -> tuple[int, int] | None:
    """(H, W) of a few images spread over the source, if they have one size."""
    shapes = set()
    for i in np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(np.int64)):
        try:
            image = open_row(source, int(i), in_time=True)
        except BadImage:
            continue
        shapes.add((image.height, image.width))
        if len(shapes) > 1:
            return None
    return shapes.pop() if shapes else None


def _fill(
    source: Source,
    shape: tuple[int, int, int],
    device: torch.device,
    pool: Executor | None,
    quarantine: Quarantine,
    watch: Watch,
) -> Tensor | None:
    images = torch.zeros((len(source), *shape), dtype=torch.uint8, device=device)
    order = source.storage_order()
    each = max(_CHUNK, _BLOCK_BYTES // math.prod(shape))
    for start in range(0, len(order), each):
        rows = order[start : start + each]
        block = np.zeros((len(rows), *shape), np.uint8)

        def decode(first: int, rows: np.ndarray = rows, block: np.ndarray = block) -> list[Find] | None:
            return _decode(source, rows[first : first + _CHUNK], block[first : first + _CHUNK], quarantine.bad, watch)

        for finds in watch.run(pool, decode, range(0, len(rows), _CHUNK)):
            if finds is None:
                return None
            for row, reason, detail in finds:
                quarantine.add(row, BadImage(reason, detail))
        images[torch.from_numpy(rows).to(device)] = torch.from_numpy(block).to(device)
    return images


def _decode(source: Source, rows: np.ndarray, out: np.ndarray, bad: np.ndarray, watch: Watch) -> list[Find] | None:
    """Decode `rows` into `out` (n, H, W, C); None where an image has another size."""
    finds: list[Find] = []
    for k, row in enumerate(rows.tolist()):
        if bad[row]:
            continue
        try:
            with watch.reading(row):
                image = open_row(source, row)
            if (image.height, image.width) != out.shape[1:3]:
                return None
            with decoding().hold(image.decode_bytes):
                out[k] = image.pixels(out.shape[3])
        except BadImage as error:
            finds.append((row, error.reason, error.detail))
    return finds
