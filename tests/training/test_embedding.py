"""All rows reach the host in manifest order, whatever their order on the ranks and however small the blocks."""

import numpy as np
import torch

from selfcluster.training import embedding
from selfcluster.types import Embeddings


def shuffled(rank: int, world: int) -> Embeddings:
    """Every `world`-th of 11 images, in an order of its own; image i has the features (i, i / 2)."""
    index = torch.arange(rank, 11, world).flip(0)
    rows = torch.stack([index.float(), index / 2], dim=1)
    return Embeddings(rows, index, torch.ones(11, dtype=torch.bool))


def gather(rank: int, world: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    embedding._BLOCK = block
    return embedding.gather_rows(shuffled(rank, world))


def gather_here(block: int):
    import torch.distributed as dist

    return gather(dist.get_rank(), dist.get_world_size(), block)


def check(found) -> None:
    index, rows = found
    assert index.tolist() == list(range(11))
    assert np.array_equal(rows, np.stack([np.arange(11), np.arange(11) / 2], axis=1).astype(np.float32))


def test_one_process(monkeypatch):
    monkeypatch.setattr(embedding, "_BLOCK", 4)
    check(embedding.gather_rows(shuffled(0, 1)))


def test_two_processes(ranks):
    for found in ranks.run(gather_here, 2):
        check(found)
