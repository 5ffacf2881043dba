"""Compute features of every image in one pass over this rank's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selfcluster import randomness
from selfcluster.data.loader import Loader
from selfcluster.distributed import all_gather, gather_objects, world_size
from selfcluster.training.kept import KeptRows
from selfcluster.training.precision import autocast
from selfcluster.types import Embeddings
from selfcluster.views.plans import ViewPlan

_BLOCK = 65_536  # rows that ranks exchange at once


def make_embed(
    module: nn.Module,
    loader: Loader,
    plan: ViewPlan | None,
    *,
    device: torch.device,
    precision: str,
    seed: int = 0,
    step: int = 0,
    on_host: bool = False,
    kept: KeptRows | None = None,
) -> Callable[..., Embeddings]:
    """Return the function `embed` that `reassign` gets.

    `embed(fn, view="center", train=False)`: `fn` takes a list of views (b, C, h, w) and returns (b, F). The views are
    one center crop, or all full-resolution training views of an image that is decoded once. The result is this rank's
    share, in the order of the images, on the device, or on the CPU with `on_host`. With `train=True` the module stays
    in training mode: batch-norm statistics change and images come in random order, as in a training step. `kept`, for
    one pass by one process: the rows of an earlier, interrupted pass. This pass continues from there.
    """

    @torch.no_grad()
    def embed(fn: Callable[[Sequence[Tensor]], Tensor], view: str = "center", train: bool = False) -> Embeddings:
        before = module.training
        module.train(train)
        first = 0 if kept is None else kept.batches
        rows = _Rows(loader.share_size, torch.device("cpu") if on_host else device)
        index = []
        if kept is not None and first:
            rows.add(kept.rows)
            index.append(kept.index.to(device))
        batches = loader.iterate_all(view, plan=plan, step=step, mixed=train, first=first)
        try:
            for number, batch in enumerate(batches, start=first):
                if kept is not None and not len(batch.index):
                    kept.add(batch.index, torch.zeros(0, 0))
                if not len(batch.index) and not train:
                    continue  # in training mode it takes part in the statistics of all ranks
                torch.manual_seed(randomness.key(seed, "sweep", step, number) >> 1)
                with autocast(device, precision):
                    found = fn(to_layout(batch.views)).float()
                rows.add(found)
                index.append(batch.index)
                if kept is not None:
                    kept.add(batch.index, found)
        finally:
            module.train(before)
        mine = torch.cat(index) if index else torch.zeros(0, dtype=torch.int64, device=device)
        width = int(max(gather_objects(rows.width)))  # a rank may have no image at all
        seen = torch.zeros(loader.num_samples, dtype=torch.bool, device=mine.device)
        seen[all_gather(mine)] = True
        return Embeddings(rows.made(width), mine, seen)

    return embed


class _Rows:
    """The rows of a pass, in one tensor of their final size: a list and its concatenation would take twice the memory.

    Args:
        most: the number of rows if no image is bad.
        place: the device of the rows.
    """

    def __init__(self, most: int, place: torch.device) -> None:
        self._most, self._place = most, place
        self._rows: Tensor | None = None
        self._count = 0

    @property
    def width(self) -> int:
        """The number of features; 0 before the first row."""
        return 0 if self._rows is None else self._rows.shape[1]

    def add(self, rows: Tensor) -> None:
        """Add rows (b, F)."""
        if self._rows is None:
            self._rows = torch.empty(self._most, rows.shape[1], device=self._place)
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def made(self, width: int) -> Tensor:
        """Return all rows (n, F); (0, width) if none was added."""
        return torch.zeros(0, width, device=self._place) if self._rows is None else self._rows[: self._count]


def to_layout(views: Sequence[Tensor]) -> list[Tensor]:
    """Return views in channels-last layout, which is fast for bf16 convolutions; patches (B, 9, C, p, p) unchanged."""
    return [view.contiguous(memory_format=torch.channels_last) if view.dim() == 4 else view for view in views]


def gather_rows(shares: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Return all ranks' rows on the CPU, in the order of the images: index (n,), rows (n, F) float32.

    Ranks exchange blocks, so a device holds at most one block of each rank besides its own share. A single process
    gets its share without a copy if it is on the CPU and in order.
    """
    if world_size() == 1 and bool((shares.index[1:] > shares.index[:-1]).all()):
        return shares.index.cpu().numpy(), shares.rows.float().cpu().numpy()
    index = all_gather(shares.index)
    index = index.sort().values.cpu()  # (n,)
    out = np.empty((len(index), shares.rows.shape[1]), np.float32)
    blocks = int(max(gather_objects(-(-len(shares.rows) // _BLOCK))))
    for start in range(0, blocks * _BLOCK, _BLOCK):
        part = slice(start, start + _BLOCK)
        images = all_gather(shares.index[part])
        rows = all_gather(shares.rows[part].to(shares.index.device))
        out[torch.searchsorted(index, images.cpu()).numpy()] = rows.cpu().numpy()
    return index.numpy(), out
