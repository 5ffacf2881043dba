"""Two-level assignment for many clusters: first the region of a row, then the nearest of the region's centroids.

The k centroids are themselves clustered into about 4 sqrt(k) regions; a region knows the `width` centroids nearest to
its middle, its own and its neighbours'. A row whose last centroid is known is in that centroid's region: later
iterations of k-means skip the first level, and what the first level got wrong mends itself as rows move from centroid
to neighbouring centroid. The cost of a row falls from k to `width` distances.

Letters: n rows, d dimensions, k centroids, g regions, m centroids a region looks at (`width`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfcluster.clustering import native
from selfcluster.clustering.assign import Nearest, nearest_centroid

WIDTH = 256
_REGIONS = 4.0  # in units of sqrt(k)
_STEPS = 4  # of the k-means over centroids; regions need no more than a rough shape
_SAMPLE = 2048  # rows of scores held at once


class Regions:
    """The two levels over one set of centroids.

    Args:
        centroids: (k, d).
        width: m; with width >= k the assignment is exact.
    """

    def __init__(self, centroids: Tensor, width: int = WIDTH) -> None:
        k = len(centroids)
        self.centroids = centroids
        count = max(1, min(k, round(_REGIONS * math.sqrt(k))))
        # every (k / count)-th centroid starts a region: no randomness, the same on all ranks
        self.middles = centroids[torch.linspace(0, k - 1, count, device=centroids.device).round().long()]
        for _ in range(_STEPS):
            of = nearest_centroid(centroids, self.middles).labels
            size = torch.bincount(of, minlength=count)
            sums = torch.zeros_like(self.middles).index_add_(0, of, centroids)
            self.middles = torch.where(size[:, None] > 0, sums / size.clamp(min=1)[:, None], self.middles)
        self.of = nearest_centroid(centroids, self.middles).labels  # (k,) the region of each centroid
        self.lists = _nearest_lists(self.middles, centroids, min(width, k))  # (g, m)

    def nearest(self, x: Tensor, last: Tensor | None = None) -> Nearest:
        """The nearest centroid a region knows.

        Args:
            x: (n, d).
            last: (n,) the rows' last centroids, whose regions they are in; None looks the region up.
        """
        region = nearest_centroid(x, self.middles).labels if last is None else self.of[last]
        order = region.argsort(stable=True)
        begin = torch.zeros(len(self.middles) + 1, dtype=torch.int64, device=x.device)
        begin[1:] = torch.bincount(region, minlength=len(self.middles)).cumsum(0)
        if x.dtype == torch.float32 and x.device.type == "cpu" and native.available():
            return Nearest(*native.nearest_listed(x, self.centroids, order, begin, self.lists))
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        distances = torch.empty(len(x), dtype=x.dtype, device=x.device)
        edges = begin.tolist()
        for g, (start, stop) in enumerate(zip(edges[:-1], edges[1:])):
            if start < stop:
                rows, names = order[start:stop], self.lists[g]
                found = nearest_centroid(x[rows], self.centroids[names])
                labels[rows], distances[rows] = names[found.labels], found.distances
        return Nearest(labels, distances)


def _nearest_lists(points: Tensor, centroids: Tensor, m: int) -> Tensor:
    """(g, m): the m centroids nearest to each point, their numbers rising so that ties go to the lowest."""
    middle = centroids.mean(dim=0)
    shifted = centroids - middle
    half = shifted.square().sum(dim=1) / 2
    parts = [
        torch.addmm(-half, part - middle, shifted.T).topk(m, dim=1).indices for part in points.split(_SAMPLE)
    ]
    return torch.cat(parts).sort(dim=1).values
