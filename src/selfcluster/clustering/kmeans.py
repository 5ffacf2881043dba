"""K-means (Lloyd 1982) as in scikit-learn: Euclidean or spherical, one process or many, in memory or streamed.

Each iteration assigns every row to its nearest centroid and moves centroids to the mean of their rows; After at most
`max_iter` such iterations a last assignment gives the labels. Under `torch.distributed` each rank passes a contiguous
slice of the rows (the slices in rank order are the whole) and gets its own labels; centroids are equal on all ranks.

Letters: n rows of this rank, N of all, d dimensions, k centroids.
"""

from __future__ import annotations

import numbers
import warnings
from typing import Any, TypedDict

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.annotations import ArrayLike
from selfcluster.clustering import init as starts
from selfcluster.clustering.assign import nearest_centroid, unit_rows
from selfcluster.clustering.lloyd import DONORS, Empty, Pass, assignment_pass, average
from selfcluster.clustering.rows import Rows

_INITS = {
    "random": starts.random_members,
    "k-means++": starts.k_means_plus_plus,
    "k-means||": starts.k_means_parallel,
}


class Iteration(TypedDict):
    """An entry of `history_`: the assignment before an update. Stage 0 uses a subsample, stage 1 all rows."""

    stage: int
    inertia: float
    moved: int
    empty: int
    largest: float


class KMeans(ClusterMixin, BaseEstimator):
    """K-means clustering.

    Args:
        n_clusters: k.
        spherical: cluster directions: rows are scaled to length 1, centroids are means scaled to length 1, and
            squared distances are 2 - 2 cos.
        init: "random" (k rows, drawn at random; the default here and in faiss), "k-means++" over at most 65,536 rows,
            "k-means||", or an array (k, d) of centroids.
        max_iter: maximum number of centroid updates; one more assignment gives the labels.
        tol: stop if the inertia falls by this share or less in an iteration; 0: stop only if no label changes.
        empty: "split" gives an empty cluster half of a donor cluster. "split_randomly" puts its centroid beside the
            donor's centroid, in a random direction. "keep" does not move its centroid.
        donor: which cluster is split: drawn uniformly from the non-empty clusters ("uniform"), drawn in proportion to
            size ("size", as in faiss), or the largest one ("largest", as in ODC).
        perturbation: p, by which a split moves the donor's centroid to make two of it. The first is multiplied by
            1 + p in even dimensions and by 1 - p in odd ones, the second the other way round.
        max_points_per_centroid: iterate on at most k times this many rows drawn at random, then assign all rows;
            None uses all rows in every iteration (faiss's default is 256).
        subsample: iterate first on this many rows drawn at random (ClusterFit's two stages), then on all rows.
        subsample_iter: maximum number of updates in this first stage; None means `max_iter`.
        random_state: None, an int or a `numpy.random.RandomState`. The same int gives the same result every time. On
            another number of ranks, centroids may differ by rounding (up to 1e-5).
        exact: give the labels of a float64 computation, even on bfloat16 hardware. False accepts the labels of the
            fast low-precision computation without a check.
        approximate: for thousands of clusters: compare each row with only 192 candidate centroids (`two_level.py`).
            This is ten times faster at k = 10,000, with about the same inertia. `labels_` are approximate, too;
            `predict` is exact.

    Attributes:
        cluster_centers_: (k, d), a tensor if X was one.
        labels_: (n,) int64, this rank's rows.
        inertia_: sum over all ranks' rows of weight times squared distance.
        seed_: the seed that `random_state` gave.
        n_iter_: number of centroid updates on all rows (with `max_points_per_centroid`: on the sample).
        history_: a list of dicts, one per assignment: stage, inertia, moved (number of rows whose label changed),
            empty (number of empty clusters), largest (size of the largest cluster).

    >>> KMeans(2, random_state=0).fit(np.array([[0.0], [1.0], [9.0]])).inertia_
    0.5
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        spherical: bool = False,
        init: str | ArrayLike = "random",
        max_iter: int = 20,
        tol: float = 0.0,
        empty: str = "split",
        donor: str = "uniform",
        perturbation: float = 1 / 1024,
        max_points_per_centroid: int | None = None,
        subsample: int | None = None,
        subsample_iter: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        exact: bool = True,
        approximate: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.spherical = spherical
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.empty = empty
        self.donor = donor
        self.perturbation = perturbation
        self.max_points_per_centroid = max_points_per_centroid
        self.subsample = subsample
        self.subsample_iter = subsample_iter
        self.random_state = random_state
        self.exact = exact
        self.approximate = approximate

    def fit(self, X: ArrayLike | Rows, y: object = None, sample_weight: ArrayLike | None = None) -> KMeans:
        """Cluster the rows of X.

        Args:
            X: (n, d) tensor (any device), array, or `np.memmap` (read in blocks, never loaded as a whole).
            y: ignored.
            sample_weight: (n,) non-negative; None counts every row 1.

        Raises:
            ValueError: a setting or X cannot be used; the message names the value or the row.

        Warns:
            UserWarning: fewer different rows than clusters; rows of zeros where directions count.
        """
        self._check_settings()
        rows = self._rows(X, sample_weight, reset=True)
        k = self.n_clusters
        if rows.total < k:
            raise ValueError(f"n_samples={rows.total} is fewer than n_clusters={k}")
        rows.check()
        self.seed_ = seed = self._seed()
        self.history_: list[Iteration] = []
        working, finish = rows, True
        if self.max_points_per_centroid is not None and rows.total > k * self.max_points_per_centroid:
            working, finish = rows.sample(k * self.max_points_per_centroid, randomness.key(seed, "points")), False
        centroids = None
        if self.subsample is not None and self.subsample < working.total:
            sample = working.sample(max(k, self.subsample), randomness.key(seed, "subsample"))
            steps = self.max_iter if self.subsample_iter is None else self.subsample_iter
            centroids = self._iterate(sample, self._start(sample, seed), steps, seed, stage=0)[0]
        centroids = self._start(working, seed) if centroids is None else centroids
        centroids, last, self.n_iter_ = self._iterate(working, centroids, self.max_iter, seed, stage=1)
        if not finish:
            last = assignment_pass(rows, centroids, None, exact=self.exact, approximate=0 if self.approximate else None)
        self._warn_if_few(rows, int((last.counts == 0).sum()))
        self.inertia_ = last.inertia
        self.cluster_centers_ = centroids if rows.is_tensor else centroids.numpy()
        self.labels_ = last.labels if rows.is_tensor else last.labels.numpy()
        return self

    def predict(self, X: ArrayLike | Rows) -> Tensor | np.ndarray:
        """Return the nearest centroid of each row: (n,) int64, a tensor if X is one."""
        return self._assign(X)[0]

    def score(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> float:
        """Return minus the inertia of X (this rank's rows) for the fitted centroids."""
        distances = torch.as_tensor(self._assign(X)[1]).double()
        if sample_weight is not None:
            distances = distances * torch.as_tensor(sample_weight, device=distances.device)
        return -float(distances.sum())

    def _assign(self, X: ArrayLike | Rows) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        rows = self._rows(X, None, reset=False, shared=False)
        rows.check()
        centroids = torch.as_tensor(self.cluster_centers_).to(device=rows.device, dtype=rows.dtype)
        labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        distances = torch.empty(len(rows), dtype=rows.dtype, device=rows.device)
        for part, x in rows.blocks():
            labels[part], distances[part] = nearest_centroid(x, centroids, exact=self.exact)
        return (labels, distances) if rows.is_tensor else (labels.numpy(), distances.numpy())

    def _iterate(self, rows: Rows, centroids: Tensor, steps: int, seed: int, stage: int) -> tuple[Tensor, Pass, int]:
        empty = Empty(self.empty, self.donor, self.perturbation)
        draw = np.random.default_rng(randomness.key(seed, "empty", stage))
        found = None
        for step in range(steps + 1):
            before = found
            found = assignment_pass(
                rows,
                centroids,
                None if before is None else before.labels,
                exact=self.exact,
                approximate=step if self.approximate else None,
            )
            self.history_.append(
                Iteration(
                    stage=stage,
                    inertia=found.inertia,
                    moved=found.moved,
                    empty=int((found.counts == 0).sum()),
                    largest=float(found.counts.max()),
                )
            )
            settled = found.moved == 0 or (
                before is not None and self.tol > 0 and before.inertia - found.inertia <= self.tol * before.inertia
            )
            if step == steps or settled:
                return centroids, found, step
            centroids = average(found, centroids, spherical=self.spherical, empty=empty, draw=draw)
        raise AssertionError("unreachable")

    def _start(self, rows: Rows, seed: int) -> Tensor:
        if isinstance(self.init, str):
            return _INITS[self.init](rows, self.n_clusters, randomness.key(seed, "init"))
        given = torch.as_tensor(self.init).detach().to(device=rows.device, dtype=rows.dtype, copy=True)
        if given.shape != (self.n_clusters, rows.d):
            raise ValueError(f"init has shape {tuple(given.shape)}, expected {(self.n_clusters, rows.d)}")
        if not torch.isfinite(given).all():
            raise ValueError("init holds NaN or infinity")
        return unit_rows(given) if self.spherical else given

    def _rows(self, X: Any, weight: Any, *, reset: bool, shared: bool = True) -> Rows:
        if isinstance(X, Rows):  # a part of a file, say
            self.n_features_in_ = X.d
            return X
        if isinstance(X, Tensor):
            if X.ndim != 2:
                raise ValueError(f"X has shape {tuple(X.shape)}, expected 2 dimensions (n, d)")
            if reset:
                self.n_features_in_ = X.shape[1]
            elif X.shape[1] != self.n_features_in_:
                raise ValueError(f"X has {X.shape[1]} features, but KMeans was fitted with {self.n_features_in_}")
        else:  # finiteness is checked by row, in blocks
            types = [np.float64, np.float32, np.float16]
            keep = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiu"
            wanted = {"dtype": None if keep else types, "ensure_all_finite": False, "ensure_min_samples": 0}
            checked = validate_data(self, X=X, reset=reset, **wanted)  # pyright: ignore[reportArgumentType]
            X = X if isinstance(X, np.memmap) and keep else checked  # a file stays known as one
        if weight is not None:
            weight = weight if isinstance(weight, Tensor) else torch.from_numpy(np.array(weight, dtype=np.float64))
            weight = weight.detach().double()
            if weight.shape != (len(X),):
                raise ValueError(f"sample_weight has shape {tuple(weight.shape)}, expected {(len(X),)}")
            if not bool((weight >= 0).all()) or not bool(torch.isfinite(weight).all()):
                raise ValueError("sample_weight holds negative or non-finite values")
            weight = weight.to(X.device) if isinstance(X, Tensor) else weight
        return Rows(X, spherical=self.spherical, weight=weight, shared=shared)

    def _seed(self) -> int:
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return distributed.broadcast_object(int(check_random_state(self.random_state).randint(2**31 - 1)))

    def _warn_if_few(self, rows: Rows, empty: int) -> None:
        if empty == 0:
            return
        distinct = rows.distinct(self.n_clusters)
        if distinct < self.n_clusters:
            found, clusters = (
                f"{n} {word}{'s' * (n != 1)}" for n, word in ((distinct, "distinct row"), (empty, "cluster"))
            )
            warnings.warn(
                f"the data have {found}, fewer than n_clusters={self.n_clusters}: {clusters} "
                f"{'is' if empty == 1 else 'are'} empty. Ask for n_clusters={distinct} or fewer.",
                stacklevel=3,
            )

    def _check_settings(self) -> None:
        if not isinstance(self.n_clusters, numbers.Integral) or self.n_clusters < 1:
            raise ValueError(f"n_clusters={self.n_clusters!r} is not an integer above 0")
        if isinstance(self.init, str) and self.init not in _INITS:
            raise ValueError(f"init={self.init!r} must be one of {', '.join(map(repr, _INITS))}, or an array")
        if self.empty not in ("split", "split_randomly", "keep"):
            raise ValueError(f"empty={self.empty!r}: choose from split, split_randomly, keep")
        if self.donor not in DONORS:
            raise ValueError(f"donor={self.donor!r} must be one of {', '.join(map(repr, DONORS))}")
        for name in ("max_iter", "max_points_per_centroid", "subsample", "subsample_iter"):
            value = getattr(self, name)
            least = 0 if name in ("max_iter", "subsample_iter") else 1
            if value is not None and (not isinstance(value, numbers.Integral) or value < least):
                raise ValueError(f"{name}={value!r} is not an integer of at least {least}")
