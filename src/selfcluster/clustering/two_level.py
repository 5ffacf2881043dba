"""Two-level assignment for many clusters: first the region of a row, then the nearest of the region's centroids.

Regions are directions, seen from the centroids' mean: about 1.3 sqrt(k) centroids, a little improved by spherical
k-means over all centroids. A region has a list of the `width` centroids closest to its direction. A row goes to the
region with the direction closest to its own. It is compared with the centroids in that region's list, and with its last
centroid. New regions are drawn at every iteration of k-means, so their borders change, and no row ever moves to a
farther centroid. The loss against the exact assignment shrinks with every iteration. The cost of a row
falls from k to 1.3 sqrt(k) + `width` distances. The compiled kernel uses 8-bit products without a
check here, so if two centroids differ by less than a percent, either may win.

Regions are directions because by distance most centroids would fall into the few regions near the mean.

Letters: n rows, d dimensions, k centroids, g regions, m centroids in a region's list.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from selfcluster.clustering import native
from selfcluster.clustering.assign import Nearest, nearest_centroid, unit_rows

WIDTH = 192
_FIRST = 2  # times wider where rows have no centroid yet
_REGIONS = 1.3  # in units of sqrt(k)
_FEW = 4  # dimensions below which directions are too few to tell centroids apart: the assignment is exact
_PANEL = 64  # the compiled kernel multiplies by so many at once
_STEPS = 2  # of the k-means over centroids: regions need no more than a rough shape


class Regions:
    """The two levels over one set of centroids.

    Args:
        centroids: (k, d).
        width: m, at most k; with k the assignment is exact. Rows without a last centroid get twice this.
        seed: draws the regions.
    """

    def __init__(self, centroids: Tensor, width: int = WIDTH, *, seed: int = 0) -> None:
        k = len(centroids)
        count = min(k, _PANEL * max(1, round(_REGIONS * math.sqrt(k) / _PANEL)))
        self.centroids, self.width = centroids, width
        mean = centroids.mean(dim=0)
        away = centroids - mean
        self._away = unit_rows(away)  # (k, d)
        start = torch.randperm(k, generator=torch.Generator().manual_seed(seed))[:count]
        directions = self._away[start.to(centroids.device)]  # (g, d)
        for _ in range(_STEPS):
            of = nearest_centroid(self._away, directions).labels
            sums = torch.zeros_like(directions).index_add_(0, of, self._away)
            directions = unit_rows(torch.where((sums != 0).any(dim=1, keepdim=True), sums, directions))
        self._directions = directions
        # points equally far from the mean are ordered by direction
        self.middles = mean + directions * away.norm(dim=1).mean()  # (g, d)
        self._made: dict[int, Tensor] = {}

    def nearest(self, x: Tensor, last: Tensor | None = None) -> Nearest:
        """Return the nearest centroid in the list of a row's region, or its last one if that is nearer.

        Args:
            x: (n, d).
            last: (n,) int64, the rows' last centroids, or None.
        """
        wide = self.width * (_FIRST if last is None else 1)
        if wide >= len(self.centroids) or x.shape[1] < _FEW:
            return nearest_centroid(x, self.centroids)
        lists = self._lists(wide)
        fast = native.takes(x)
        region = native.nearly_nearest(x, self.middles) if fast else nearest_centroid(x, self.middles).labels
        order = region.argsort(stable=True)
        begin = torch.zeros(len(self.middles) + 1, dtype=torch.int64, device=x.device)
        begin[1:] = torch.bincount(region, minlength=len(self.middles)).cumsum(0)
        if fast:
            return Nearest(*native.nearest_listed(x, self.centroids, order, begin, lists, last))
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        distances = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for g, (start, stop) in enumerate(itertools.pairwise(begin.tolist())):
            if start < stop:
                rows, names = order[start:stop], lists[g]
                found = nearest_centroid(x[rows], self.centroids[names])
                labels[rows], distances[rows] = names[found.labels], found.distances
        if last is not None:
            before = (x - self.centroids[last]).square_().sum(dim=1)
            labels = torch.where(before < distances, last, labels)
            distances = torch.minimum(before, distances)
        return Nearest(labels, distances)

    def _lists(self, m: int) -> Tensor:
        """(g, m): the centroids that lie most in each region's direction, numbers rising."""
        if m not in self._made:
            wanted = (self._directions @ self._away.T).topk(m, dim=1).indices
            self._made[m] = wanted.sort(dim=1).values
        return self._made[m]
