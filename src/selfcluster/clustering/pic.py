"""Power iteration clustering: follow a neighbor graph to the local maxima of a diffusion. It finds k by itself.

DeepCluster's variant (Caron et al. 2018, arXiv 1807.05520, appendix; after Lin and Cohen 2010): W = A + A' with
A_ij = exp(-|x_i - x_j|^2 / sigma^2) over the nearest neighbors j of i; v starts at 1/N and is 200 times replaced by
alpha W v + (1 - alpha) / N, scaled to sum 1; every node points to the neighbor j with the largest W_ij (v_j - v_i) if
that is positive, and the node its pointers lead to names its cluster. A cluster of one joins its nearest neighbor
that is in a larger one.

Departs: neighbors leave out a row by its number, where the released code drops the first answer and so may keep the
row itself if it has duplicates; rows at distance 0 climb as one, where each would be a local maximum of its own.
Letters: N rows (n of this rank), D features, m neighbors.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from selfcluster import distributed
from selfcluster.annotations import ArrayLike
from selfcluster.clustering.neighbors import nearest


class PowerIterationClustering(ClusterMixin, BaseEstimator):
    """Clusters a nearest-neighbor graph; the number of clusters follows from the data.

    Under `torch.distributed` each rank passes its contiguous slice of the rows and gets its own labels; the graph
    (N x n_neighbors) is gathered and climbed on every rank alike.

    Args:
        n_neighbors: m, neighbors of a row in the graph.
        sigma: width of the weights; for rows of length 1.
        alpha: share of the diffusion in an iteration.
        iterations: of the diffusion.

    Attributes:
        labels_: (n,) int64 from 0, this rank's rows; a tensor if X was one. Numbered by first appearance over all rows.
        n_clusters_: number of clusters over all ranks.

    >>> X = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]], dtype="float32")
    >>> PowerIterationClustering(n_neighbors=2).fit_predict(X)
    array([0, 0, 0, 1, 1, 1])
    """

    def __init__(
        self, n_neighbors: int = 5, *, sigma: float = 0.2, alpha: float = 0.001, iterations: int = 200
    ) -> None:
        self.n_neighbors = n_neighbors
        self.sigma = sigma
        self.alpha = alpha
        self.iterations = iterations

    def fit(self, X: np.ndarray | Tensor, y: object = None) -> PowerIterationClustering:
        """Cluster (n, D) rows: a tensor, a NumPy array or a memory-mapped file. `y` is ignored.

        Raises:
            ValueError: for settings out of range, fewer than n_neighbors + 1 rows, or rows that are not finite.
        """
        for name, value, good, limits in (
            ("n_neighbors", self.n_neighbors, self.n_neighbors >= 1, "1 or more"),
            ("sigma", self.sigma, self.sigma > 0, "above 0"),
            ("alpha", self.alpha, 0 < self.alpha < 1, "above 0 and below 1"),
            ("iterations", self.iterations, self.iterations >= 1, "1 or more"),
        ):
            if not good:
                raise ValueError(f"{name}={value} must be {limits}")
        total = sum(distributed.gather_objects(len(X)))
        if total <= self.n_neighbors:
            raise ValueError(f"n_samples={total} is too few for n_neighbors={self.n_neighbors}")
        found = nearest(X, X, self.n_neighbors, metric="l2", exclude_self=True, precision="float32")
        square, near = (_whole(x) for x in found)  # each (N, m)
        labels = self._labels(near, square.astype(np.float64))
        before = sum(distributed.gather_objects(len(X))[: distributed.rank()])
        mine = labels[before : before + len(X)]
        self.labels_ = torch.from_numpy(mine).to(X.device) if isinstance(X, Tensor) else mine
        self.n_clusters_ = int(labels.max()) + 1
        if self.n_clusters_ == len(labels):
            warnings.warn(
                f"every row is a cluster of its own, because sigma={self.sigma} is too small: the median distance to a "
                f"neighbor is {np.median(square) ** 0.5:.3g}. Scale the rows to length 1, or raise sigma",
                stacklevel=2,
            )
        return self

    def _labels(self, near: np.ndarray, square: np.ndarray) -> np.ndarray:
        n, m = near.shape
        rows = np.repeat(np.arange(n), m)
        weights = np.exp(-square.ravel() / self.sigma**2)
        graph = sparse.csr_matrix((weights, (rows, near.ravel())), shape=(n, n))
        graph = (graph + graph.T).tocsr()
        pointer = _ascend(graph, self._diffuse(graph), _twins(near, square))
        return _numbered(_merge_singletons(_follow(pointer), near))

    def _diffuse(self, graph: Any) -> np.ndarray:
        v = np.full(graph.shape[0], 1 / graph.shape[0])
        for _ in range(self.iterations):
            v = self.alpha * (graph @ v) + (1 - self.alpha) / len(v)
            v /= v.sum()
        return v


def _whole(x: ArrayLike) -> np.ndarray:
    return distributed.all_gather(torch.as_tensor(x)).cpu().numpy()


def _twins(near: np.ndarray, square: np.ndarray) -> np.ndarray:
    """(N,): rows linked by distances of 0 share a number."""
    i, column = np.nonzero(square == 0)
    links = sparse.coo_matrix((np.ones(len(i)), (i, near[i, column])), shape=(len(near), len(near)))
    return csgraph.connected_components(links, directed=False)[1]


def _ascend(graph: sparse.csr_matrix, v: np.ndarray, twin: np.ndarray) -> np.ndarray:
    """(N,): where each node points; rows of one place all point to their highest, which alone climbs on."""
    order = np.lexsort((np.arange(len(v)), -v, twin))  # by place, highest first, then by number
    first = np.r_[True, np.diff(twin[order]) != 0]
    leader = order[first][np.cumsum(first) - 1]
    pointer = np.empty(len(v), dtype=np.int64)
    pointer[order] = leader
    edges = graph.tocoo()
    gain = edges.data * (v[edges.col] - v[edges.row])
    climbs = (gain > 0) & (pointer[edges.row] == edges.row)
    row, column, gain = edges.row[climbs], edges.col[climbs], gain[climbs]
    best = np.lexsort((column, -gain, row))  # of equal gains the lowest number
    row, column = row[best], column[best]
    top = np.r_[True, np.diff(row) != 0][: len(row)]
    pointer[row[top]] = column[top]
    return pointer


def _follow(pointer: np.ndarray) -> np.ndarray:
    """Where the pointers end: each step doubles their length."""
    while True:
        further = pointer[pointer]
        if np.array_equal(further, pointer):
            return pointer
        pointer = further


def _merge_singletons(label: np.ndarray, near: np.ndarray) -> np.ndarray:
    size = np.bincount(label, minlength=len(label))
    alone = np.flatnonzero(size[label] == 1)
    large = size[label[near[alone]]] > 1  # (alone, m)
    some = large.any(axis=1)
    merged = label.copy()
    merged[alone[some]] = label[near[alone[some], large[some].argmax(axis=1)]]
    return merged


def _numbered(label: np.ndarray) -> np.ndarray:
    """Clusters numbered from 0 by their first member."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
