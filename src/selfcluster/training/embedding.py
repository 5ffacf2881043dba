"""Features of every image: one pass over this rank's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selfcluster import randomness
from selfcluster.data.loader import Loader
from selfcluster.distributed import all_gather, gather_objects
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
    """Return the function `embed` that `reassign` is given.

    `embed(fn, view="center", train=False)`: `fn` takes a list of (b, C, h, w) views, one center crop or all
    full-resolution training views of one decode, and returns (b, F). The result is this rank's share, in manifest
    order, on the device, or on the host with `on_host`. With `train=True` the module stays in training mode:
    batch-norm statistics move as they do in a step, and images come in random order as they do there.
    `kept`, for a single pass by a single process: what an earlier, interrupted pass has made. This one goes on from
    there.
    """

    @torch.no_grad()
    def embed(fn: Callable[[Sequence[Tensor]], Tensor], view: str = "center", train: bool = False) -> Embeddings:
        before = module.training
        module.train(train)
        first = 0 if kept is None else kept.batches
        rows = [] if kept is None or not first else [kept.rows]
        index = [] if kept is None or not first else [kept.index.to(device)]
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
                rows.append(found.cpu() if on_host else found)
                index.append(batch.index)
                if kept is not None:
                    kept.add(batch.index, found)
        finally:
            module.train(before)
        mine = torch.cat(index) if index else torch.zeros(0, dtype=torch.int64, device=device)
        width = int(max(gather_objects(rows[0].shape[1] if rows else 0)))  # a rank may have no image at all
        seen = torch.zeros(loader.num_samples, dtype=torch.bool, device=mine.device)
        seen[all_gather(mine)] = True
        place = torch.device("cpu") if on_host else device
        return Embeddings(torch.cat([torch.zeros(0, width, device=place), *rows]), mine, seen)

    return embed


def to_layout(views: Sequence[Tensor]) -> list[Tensor]:
    """Channels last, which convolutions in bf16 want; the same values. Patches (B, 9, C, p, p) stay as they are."""
    return [view.contiguous(memory_format=torch.channels_last) if view.dim() == 4 else view for view in views]


def gather_rows(shares: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Return all ranks' rows in manifest order on the host: index (n,), rows (n, F) float32.

    Ranks exchange blocks, so a device never holds more than a block of each rank beside its own share.
    """
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
