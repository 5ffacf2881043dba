"""Memories of a method between steps: queued features, one row per sample, one row per cluster, labels.

All of them are buffers that exist from construction, so a checkpoint always loads. They are identical on all ranks:
each rank computes the rows of its share of the batch, and the results are gathered. If a sample occurs twice in a
global batch, the last one in global order (rank order, then batch order) wins, for any number of ranks.

Letters: B this rank's batch, L queue length, N samples, K clusters, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfcluster import distributed

_EPS = 1e-10  # added to a norm before dividing, as in the released ODC


class FeatureQueue(nn.Module):
    """The newest L features of the global batches, newest batch first (SwAV's and MoCo's queue).

    Args:
        length: L, over all ranks.
        dim: D.

    >>> queue = FeatureQueue(3, 1)
    >>> queue.push(torch.tensor([[1.0], [2.0]]))
    >>> queue.push(torch.tensor([[3.0], [4.0]]))
    >>> queue.rows.flatten(), queue.full
    (tensor([3., 4., 1.]), True)
    """

    storage: Tensor
    count: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("storage", torch.zeros(length, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None  # `count` without asking the device; None: unknown, as after loading
        self.register_load_state_dict_post_hook(_forget_count)

    @property
    def full(self) -> bool:
        """Whether all L rows have been pushed."""
        if self._count is None:
            self._count = int(self.count)
        return self._count == self.length

    @property
    def rows(self) -> Tensor:
        """(<= L, D): the rows pushed so far, newest batch first; the same on all ranks. A view: do not write to it."""
        return self.storage if self.full else self.storage[: self._count]

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Put the features (B, D) of all ranks, in rank order, before the rows that the queue holds.

        If a global batch is longer than the queue, its first L rows are kept. B may differ between ranks.
        """
        new = distributed.all_gather(features.detach().to(self.storage.dtype))[: self.length]
        self.storage.copy_(torch.cat([new, self.storage[: self.length - len(new)]]))
        self.count.add_(len(new)).clamp_(max=self.length)
        self._count = None if self._count is None else min(self.length, self._count + len(new))

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Start from `rows` (L, D), equal on all ranks (MoCo starts from random directions)."""
        self.storage.copy_(rows)
        self.count.fill_(self.length)
        self._count = self.length


class SampleMemory(nn.Module):
    """One row per sample, and the epoch it was last written in.

    Args:
        num_samples: N.
        dim: D.
        momentum: None: a write replaces the row by the feature. Else m: a write moves the row to
            (1 - m) row + m f / |f| (ODC, arXiv 2006.10645, eq. 2; NPID); a row never written becomes f / |f|.
        normalize: with a momentum, whether the moved row is scaled to length 1 (the released ODC and NPID do; ODC's
            paper does not).

    >>> memory = SampleMemory(4, 2)
    >>> _ = memory.write(torch.tensor([2, 2]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), epoch=0)
    >>> memory.rows[2], memory.fresh(0)
    (tensor([0., 1.]), tensor([False, False,  True, False]))
    """

    rows: Tensor
    written: Tensor

    def __init__(self, num_samples: int, dim: int, momentum: float | None = None, normalize: bool = True) -> None:
        super().__init__()
        self.momentum = momentum
        self.normalize = normalize
        self.register_buffer("rows", torch.zeros(num_samples, dim))
        self.register_buffer("written", torch.full((num_samples,), -1, dtype=torch.int64))

    @torch.no_grad()
    def write(self, index: Tensor, features: Tensor, epoch: int) -> Tensor:
        """Write this rank's (B, D) features of the samples `index` (B,); every rank's writes reach all ranks.

        Returns:
            (B, D): the rows as this rank computed them from the memory as it was before the call.
        """
        rows = self.moved(index, features)
        everywhere, new = distributed.all_gather(index), distributed.all_gather(rows)
        self.rows.index_copy_(0, everywhere, new[last_of_each(everywhere)])
        self.written[everywhere] = epoch
        return rows

    def write_in_blocks(self, index: Tensor, features: Tensor, epoch: int, block: int = 1 << 16) -> None:
        """Call `write` for many samples, about `block` at a time over all ranks, so that additional memory is bounded.

        No sample may occur twice on any ranks: the second write would start from the row of the first.
        """
        count = -(-len(self.rows) // block)  # by N, not by what a rank has: all ranks must call `write` equally often
        for number in range(count):
            some = distributed.share(len(index), number, count)
            self.write(index[some], features[some], epoch)

    @torch.no_grad()
    def fill(self, rows: Tensor, epoch: int = 0) -> None:
        """Start from `rows` (N, D), equal on all ranks, as if written in `epoch`."""
        self.rows.copy_(rows)
        self.written.fill_(epoch)

    def fresh(self, epoch: int) -> Tensor:
        """(N,) bool: the rows written in `epoch` or later."""
        return self.written >= epoch

    @torch.no_grad()
    def moved(self, index: Tensor, features: Tensor) -> Tensor:
        """Return the rows (B, D) that `write` would store for the samples `index` (B,); nothing is written."""
        features = features.detach().to(self.rows.dtype)
        if self.momentum is None:
            return features
        unit = features / (features.norm(dim=1, keepdim=True) + _EPS)
        moved = torch.lerp(self.rows[index], unit, self.momentum)
        if self.normalize:
            moved = moved / (moved.norm(dim=1, keepdim=True) + _EPS)
        return torch.where(self.written[index, None] >= 0, moved, unit)


class LabelMemory(nn.Module):
    """One cluster per sample, `labels` (N,) int64; -1 = none yet.

    >>> memory = LabelMemory(3)
    >>> _ = memory.write(torch.tensor([1]), torch.tensor([7]))
    >>> memory.labels
    tensor([-1,  7, -1])
    """

    labels: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((num_samples,), -1, dtype=torch.int64))

    @torch.no_grad()
    def write(self, index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Write this rank's (B,) labels of the samples `index` (B,); every rank's writes reach all ranks.

        Returns:
            Two (G,) labels, before and after, of the writes of all ranks: what `CentroidMemory.move` counts by. Of a
            sample that was written twice the last write counts; the others name one label twice, which is no move.
        """
        everywhere, new = distributed.all_gather(index), distributed.all_gather(labels.to(torch.int64))
        last = last_of_each(everywhere)
        after = new[last]
        before = torch.where(last == torch.arange(len(last), device=last.device), self.labels[everywhere], after)
        self.labels.index_copy_(0, everywhere, after)
        return before, after


class CentroidMemory(nn.Module):
    """One row per cluster: the mean of its members' rows in a sample memory (ODC, section 3.1).

    `counts` (K,) are the members, kept up to date by `move` without counting all samples; `involved` (K,) are the
    clusters that a sample has joined or left since their centroid was last made.

    Args:
        num_clusters: K.
        dim: D.

    >>> memory = CentroidMemory(2, 1)
    >>> memory.recompute(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> memory.rows.flatten(), memory.counts
    (tensor([2., 5.]), tensor([2, 1]))
    """

    rows: Tensor
    counts: Tensor
    involved: Tensor

    def __init__(self, num_clusters: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_clusters, dim))
        self.register_buffer("counts", torch.zeros(num_clusters, dtype=torch.int64))
        self.register_buffer("involved", torch.zeros(num_clusters, dtype=torch.bool))

    @torch.no_grad()
    def move(self, before: Tensor, after: Tensor) -> None:
        """Count the samples that went from the clusters `before` (G,) to `after` (G,), equal on all ranks; -1: none.

        >>> memory = CentroidMemory(3, 1)
        >>> memory.move(torch.tensor([-1, -1, -1]), torch.tensor([0, 0, 2]))
        >>> memory.move(torch.tensor([0, 2]), torch.tensor([1, 2]))
        >>> memory.counts, memory.involved
        (tensor([1, 1, 1]), tensor([True, True, True]))
        """
        k = len(self.counts)
        touched = torch.zeros(k + 1, dtype=torch.bool, device=self.counts.device)  # the last entry: no cluster
        for labels, change in ((before, -1), (after, 1)):
            real = labels >= 0
            self.counts.index_add_(0, labels.clamp(min=0), change * real.to(torch.int64))
            touched[torch.where(real & (before != after), labels, k)] = True
        self.involved.logical_or_(touched[:k])

    @torch.no_grad()
    def recompute(self, rows: Tensor, labels: Tensor, clusters: Tensor | None = None) -> None:
        """Set each centroid to its members' mean; an empty cluster keeps the centroid it has.

        Each rank sums its share of the samples. `counts` is set for every cluster.

        Args:
            rows: (N, D), the sample memory, equal on all ranks.
            labels: (N,) int64, equal on all ranks; -1 belongs to no cluster.
            clusters: the clusters whose centroids change, as numbers or as a mask (K,); None: all.
        """
        k = len(self.rows)
        share = distributed.share(len(labels))
        mine = labels[share]
        chosen = torch.full((k + 1,), clusters is None, device=labels.device)  # the last entry is label -1's
        if clusters is not None:
            chosen[:k][clusters] = True
        chosen[k] = False
        members = chosen[mine].nonzero().squeeze(1)
        sums = torch.zeros(k, rows.shape[1], dtype=torch.float64, device=rows.device)
        for some in members.split(1 << 16):  # bounded: never a float64 copy of the whole memory
            sums.index_add_(0, mine[some], rows[share][some].double())
        sums = distributed.all_reduce(sums)
        self.counts.copy_(torch.bincount(labels[labels >= 0], minlength=k))
        change = chosen[:k] & (self.counts > 0)
        means = (sums / self.counts.clamp(min=1)[:, None]).to(self.rows.dtype)
        self.rows.copy_(torch.where(change[:, None], means, self.rows))
        self.involved.logical_and_(~chosen[:k])

    @torch.no_grad()
    def nearest(self, features: Tensor, metric: str = "l2") -> Tensor:
        """(B,) int64: each feature's nearest centroid, by "l2" (ODC's paper) or by "inner_product" (as released).

        Clusters without members are never chosen, unless all are empty.
        """
        if metric not in ("l2", "inner_product"):
            raise ValueError(f'metric={metric!r} must be "l2" or "inner_product"')
        with torch.autocast(features.device.type, enabled=False):
            scores = F.linear(features.to(self.rows.dtype), self.rows)  # (B, K)
            if metric == "l2":  # |f - c|^2 is smallest where f.c - |c|^2 / 2 is largest
                scores = scores - self.rows.square().sum(dim=1) / 2
            return scores.masked_fill(self.counts < 1, -torch.inf).argmax(dim=1)


def last_of_each(index: Tensor) -> Tensor:
    """For each entry of `index` (B,), the position of the last entry that equals it.

    Copying `rows[last_of_each(index)]` to `index` writes equal rows for equal entries, so the device's order of writing
    does not matter.

    >>> last_of_each(torch.tensor([5, 3, 5]))
    tensor([2, 1, 2])
    """
    ordered, order = index.sort(stable=True)
    return order[torch.searchsorted(ordered, index, right=True) - 1]


def _forget_count(module: Any, _: object) -> None:
    module._count = None
