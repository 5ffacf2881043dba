"""Two levels of k-means: the whole set into m parts, then each part into k clusters (DeeperCluster).

Caron et al. 2019, arXiv 1905.01278, section 3.2. This is m times cheaper than k-means with m k clusters, and
every cluster lies within one part.

Letters: n rows of this rank, d dimensions, m parts, k clusters per part.
Departs: if a part has fewer rows than clusters, the surplus clusters stay empty, with copies of members as centers. The
released code also draws with replacement, but may then split them.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.annotations import ArrayLike
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.rows import Rows


class HierarchicalKMeans(ClusterMixin, BaseEstimator):
    """K-means within the parts of a coarser k-means.

    Args:
        n_parts: m, clusters of the first level.
        n_clusters: k, clusters of each part; m k in all.
        spherical, init, max_iter, empty, donor, perturbation, random_state, exact: as in `KMeans`, for both levels.
            `init` is a name.

    Attributes:
        part_centers_: (m, d).
        cluster_centers_: (m k, d); cluster p k + j is the j-th of part p.
        labels_: (n,) int64 in [0, m k), this rank's rows; labels_ // k is the part, labels_ % k the cluster in it.
        inertia_: sum of squared distances to the clusters' centers, over all ranks.
        history_: one list per fit, as in `KMeans`: the first level's, then each part's.

    >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> model = HierarchicalKMeans(2, 2, random_state=0).fit(X)
    >>> len(set(model.labels_.tolist())), model.inertia_
    (4, 0.0)
    """

    def __init__(
        self,
        n_parts: int = 4,
        n_clusters: int = 8,
        *,
        spherical: bool = False,
        init: str = "random",
        max_iter: int = 10,
        empty: str = "split",
        donor: str = "uniform",
        perturbation: float = 1 / 1024,
        random_state: int | np.random.RandomState | None = None,
        exact: bool = True,
    ) -> None:
        self.n_parts = n_parts
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.init = init
        self.max_iter = max_iter
        self.empty = empty
        self.donor = donor
        self.perturbation = perturbation
        self.random_state = random_state
        self.exact = exact

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> HierarchicalKMeans:
        """Cluster the rows of X; arguments, errors and ranks as in `KMeans.fit`."""
        X = X if isinstance(X, Tensor | np.ndarray) else np.asarray(X)
        first = self._model(self.n_parts, self.random_state).fit(X, sample_weight=sample_weight)
        self.n_features_in_ = first.n_features_in_
        seed = first.seed_
        part = torch.as_tensor(first.labels_)
        weight = None if sample_weight is None else torch.as_tensor(sample_weight, device=part.device)
        labels = torch.empty_like(part)
        centers, self.history_ = [], [first.history_]
        self.inertia_ = 0.0
        for p in range(self.n_parts):
            own = (part == p).nonzero().squeeze(1)
            own_weight = None if weight is None else weight[own]
            counted = len(own) if own_weight is None else int((own_weight > 0).sum())  # none starts from weight zero
            size = int(distributed.all_reduce(torch.tensor([counted], device=part.device)))
            found = min(self.n_clusters, size)
            if found == 0:
                filled = torch.as_tensor(first.cluster_centers_)[p].expand(self.n_clusters, -1)
            else:
                model = self._model(found, randomness.key(seed, "part", p) >> 33)
                model.fit(self._part(X, own, weight), sample_weight=own_weight)
                labels[own] = torch.as_tensor(model.labels_) + p * self.n_clusters
                self.inertia_ += model.inertia_
                self.history_.append(model.history_)
                filled = torch.as_tensor(model.cluster_centers_)
                filled = filled[torch.arange(self.n_clusters, device=filled.device) % found]
            centers.append(filled)
        tensors = isinstance(X, Tensor)
        self.part_centers_ = first.cluster_centers_
        self.cluster_centers_ = torch.cat(centers) if tensors else torch.cat(centers).numpy()
        self.labels_ = labels if tensors else labels.numpy()
        return self

    def predict(self, X: ArrayLike) -> Tensor | np.ndarray:
        """Return the cluster of each row, (n,) int64: of the nearest part the nearest cluster."""
        check_is_fitted(self)
        X = X if isinstance(X, Tensor | np.ndarray) else np.asarray(X)
        first = self._fitted(self.part_centers_)
        part = torch.as_tensor(first.predict(X))
        labels = torch.empty_like(part)
        for p in part.unique().tolist():
            own = (part == p).nonzero().squeeze(1)
            rows = self._part(X, own, shared=False)
            span = slice(p * self.n_clusters, (p + 1) * self.n_clusters)
            labels[own] = torch.as_tensor(self._fitted(self.cluster_centers_[span]).predict(rows)) + span.start
        return labels if isinstance(X, Tensor) else labels.numpy()

    def _part(
        self, X: np.ndarray | Tensor, own: Tensor, weight: Tensor | None = None, shared: bool = True
    ) -> Tensor | np.ndarray | Rows:
        """Return the rows at these positions: a copy, or, for a file, a view with its weights."""
        if isinstance(X, np.memmap):
            return Rows(X, spherical=self.spherical, weight=weight, shared=shared).take(own.numpy())
        return X[own] if isinstance(X, Tensor) else X[own.numpy()]

    def _model(self, k: int, random_state: int | np.random.RandomState | None) -> KMeans:
        names = ("spherical", "init", "max_iter", "empty", "donor", "perturbation", "exact")
        return KMeans(k, random_state=random_state, **{name: getattr(self, name) for name in names})

    def _fitted(self, centers: Tensor | np.ndarray) -> KMeans:
        model = self._model(len(centers), None)
        model.cluster_centers_, model.n_features_in_ = centers, self.n_features_in_
        return model
