"""Choose the number of clusters without labels: three measures vote, and the spread of their votes is reported.

For each candidate k, k-means is fitted to several random subsets (80 % of a sample of the rows) and to equally many
sets without clusters. These are drawn uniformly from the bounding box along the sample's principal axes (Tibshirani,
Walther, Hastie 2001, J. R. Stat. Soc. B 63(2), reference b). Each repeat gives three votes:

- inertia: the smallest k whose gap, log inertia of the reference minus log inertia, is within one standard error of the
  largest gap; 1 if dividing the data gains nothing. (The paper takes the first k that is as good as the next one; for
  symmetric arrangements of clusters this stops far too early.)
- silhouette: the k with the largest mean silhouette;
- stability: the largest k whose adjusted Rand index between repeats, on all rows of the sample, is within 0.02 of the
  best one. A k that is too small can be stable too, one that is too large seldom is.

The recommendation is the median of the three votes on the averaged curves. `low` and `high` are the smallest and the
largest vote of any repeat, widened to the next candidate. It is `certain` if that range is narrow and the silhouette
exceeds the reference's. If the silhouette does not exceed the reference's, k-means finds no clusters in the data, and
the range is all candidates.

Rows of many dimensions are clustered along their 64 leading principal axes. If the user names no candidates, a quick
pass over 1,500 rows finds the ones to compare in full: those that it votes for, and their neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from selfcluster import distributed, randomness
from selfcluster.annotations import ArrayLike
from selfcluster.clustering import scores
from selfcluster.clustering.kmeans import KMeans
from selfcluster.waiting import map_on_single_threads

_SHARE = 0.8  # of the sample that a repeat is fitted to
_RESTARTS = 3
_SILHOUETTE_ROWS = 1000
_DIMS = 64  # of the rows that are clustered; more cost time, and at most 100 clusters are told apart
_FEW = 8  # candidates that are all compared in full
_COARSE_ROWS = 1500
_COARSE_REPEATS = 2
_STABLE = 0.02
_BEATEN = 0.03  # a silhouette must exceed the reference's best by this
_NARROW = 1.5  # high / low of a range that counts as certain


@dataclass(frozen=True)
class KChoice:
    """The result of `choose_k`.

    `k`: recommended. `low`, `high`: the range of other plausible values. `certain`, `reason`: whether that range is
    narrow and the data have clusters at all, in words. `votes`: each measure's k on the mean curves. `table`: one dict
    a candidate with k, inertia (mean squared distance), gap, gap_error, silhouette, reference_silhouette, stability.
    """

    k: int
    low: int
    high: int
    certain: bool
    reason: str
    votes: dict[str, int]
    table: list[dict[str, float]]


def choose_k(
    X: ArrayLike,
    candidates: Sequence[int] | None = None,
    seed: int = 0,
    *,
    spherical: bool = False,
    sample: int = 5000,
    repeats: int = 5,
    say: Callable[[str], None] = lambda text: None,
) -> KChoice:
    """Recommend a number of clusters for k-means, with its uncertainty.

    Args:
        X: (N, D) features, a tensor, array or memory-mapped file; only the sampled rows are read.
        candidates: numbers of clusters to try; None: 2 to 100 in steps of a fifth, at most a twentieth of the rows.
        seed: of the sample and every start; the same seed gives the same answer.
        spherical: cluster directions.
        sample: rows used at most. Clusters much smaller than N / sample rows cannot be found.
        repeats: fits a candidate gets, on data and on the reference each.
        say: called with lines of progress.

    Raises:
        ValueError: for fewer than 10 rows, candidates outside 2 to half the sampled rows, or under
            `torch.distributed` with several processes: choose k in one; sampled rows that are not finite.

    >>> blobs = np.random.default_rng(0).normal(size=(3, 40, 2)) * 0.1 + np.array([[[0, 0]], [[4, 0]], [[0, 4]]])
    >>> choose_k(blobs.reshape(-1, 2), range(2, 7)).k
    3
    """
    if distributed.world_size() > 1:
        raise ValueError(f"choose_k works in one process and this group has {distributed.world_size()}")
    rows = _sampled(X, sample, seed)
    grid = _candidates(candidates, len(rows))
    if repeats < 2:
        raise ValueError(f"repeats={repeats} must be at least 2: stability compares fits")
    rows = _compressed(rows, spherical)
    tried = grid
    if candidates is None and len(grid) > _FEW:
        say(
            f"trying {len(grid)} numbers of clusters, {grid[0]} to {grid[-1]}, on {min(len(rows), _COARSE_ROWS):,} rows"
        )
        tried = _promising(rows, grid, seed, spherical)
    say(f"comparing k = {', '.join(map(str, tried))} on {len(rows):,} rows, {repeats} times")
    fits = _Fits(rows, tried, repeats, seed, spherical, _RESTARTS)
    votes = fits.votes(np.arange(repeats))
    single = [fits.votes(np.array([r])) for r in range(repeats)]
    k = max(tried[0], sorted(votes.values())[1])
    every = [v for vote in single for v in vote.values()] + [k]
    low, high = _widened(max(tried[0], min(every)), max(every), grid)
    at = tried.index(k)
    beats = fits.silhouette[:, at].mean() > fits.reference_silhouette[:, at].max() + _BEATEN
    if not beats:
        certain, low, high = False, grid[0], grid[-1]
        reason = f"at k={k} the clusters are separated no better than in random data, so there may be none"
    elif high > _NARROW * low:
        certain, reason = False, f"the measures disagree: they recommend between {low} and {high} clusters"
    else:
        certain, reason = True, f"inertia, silhouette and stability agree on k between {low} and {high}"
    return KChoice(k, low, high, certain, reason, votes, fits.table())


class _Fits:
    """Curves (R, C) over R repeats and C candidates, of the data and of the reference; agreements (R, R, C)."""

    def __init__(
        self, rows: np.ndarray, tried: list[int], repeats: int, seed: int, spherical: bool, restarts: int
    ) -> None:
        self.tried, self.repeats = tried, repeats
        repeat = partial(self._repeat, rows, seed, spherical, restarts)
        curves, ones, labels = zip(*map_on_single_threads(repeat, range(repeats)), strict=True)
        self.inertia, self.silhouette, self.reference_inertia, self.reference_silhouette = np.stack(curves, axis=1)
        self.one, self.reference_one = np.array(ones).T  # inertia at k = 1
        self.stability = np.zeros((repeats, repeats, len(tried)))
        for a, b in combinations(range(repeats), 2):
            for c in range(len(tried)):
                self.stability[a, b, c] = self.stability[b, a, c] = scores.ari(labels[a][c], labels[b][c])

    def _repeat(
        self, rows: np.ndarray, seed: int, spherical: bool, restarts: int, r: int
    ) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:
        """Fit every candidate once: curves (4, C), the two inertias at k = 1, and labels (C, N)."""
        random = np.random.default_rng(randomness.key(seed, "choose_k", r))
        part = rows[np.sort(random.permutation(len(rows))[: int(_SHARE * len(rows))])]
        flat = _reference(rows, random)
        one, flat_one = (_best(x, x, 1, 0, spherical, 1)[1] for x in (rows, flat))
        near, near_flat = (_Silhouette(x, r, spherical) for x in (rows, flat))
        curves = np.empty((4, len(self.tried)))
        labels = np.empty((len(self.tried), len(rows)), dtype=np.int64)
        for c, k in enumerate(self.tried):
            start = randomness.key(seed, "choose_k", r, k) >> 33
            labels[c], inertia = _best(part, rows, k, start, spherical, restarts)
            found, flat_inertia = _best(flat, flat, k, start, spherical, restarts)
            curves[:, c] = inertia, near(labels[c]), flat_inertia, near_flat(found)
        return curves, (one, flat_one), labels

    def votes(self, which: np.ndarray) -> dict[str, int]:
        """Each measure's choice by the repeats `which`."""
        tried = self.tried
        gap, error = self._gap(which)
        stable = self._stability(which)
        return {
            "inertia": _within_an_error([1, *tried], gap, error),
            "silhouette": tried[int(self.silhouette[which].mean(axis=0).argmax())],
            "stability": tried[int(np.flatnonzero(stable >= stable.max() - _STABLE)[-1])],
        }

    def _stability(self, which: np.ndarray) -> np.ndarray:
        """(C,): mean agreement of these repeats with all others."""
        return self.stability[which].sum(axis=(0, 1)) / (len(which) * (self.repeats - 1))

    def _gap(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(1 + C,) gaps for k = 1 and the candidates, and their standard errors."""
        mine = _log(np.column_stack([self.one, self.inertia])[which])
        reference = _log(np.column_stack([self.reference_one, self.reference_inertia]))
        error = reference.std(axis=0) * np.sqrt(1 + 1 / self.repeats)
        return reference.mean(axis=0) - mine.mean(axis=0), error

    def table(self) -> list[dict[str, float]]:
        every = np.arange(self.repeats)
        gap, error = self._gap(every)
        columns = {
            "inertia": self.inertia.mean(axis=0),
            "gap": gap[1:],
            "gap_error": error[1:],
            "silhouette": self.silhouette.mean(axis=0),
            "reference_silhouette": self.reference_silhouette.mean(axis=0),
            "stability": self._stability(every),
        }
        return [{"k": k, **{name: float(v[c]) for name, v in columns.items()}} for c, k in enumerate(self.tried)]


def _sampled(X: Any, sample: int, seed: int) -> np.ndarray:
    if X.ndim != 2 or len(X) < 10:
        raise ValueError(f"X has shape {tuple(X.shape)}; choosing k needs (N, D) with at least 10 rows")
    drawn = np.arange(len(X))
    if len(X) > sample:
        drawn = np.sort(np.random.default_rng(randomness.key(seed, "choose_k")).choice(len(X), sample, replace=False))
    rows = X[drawn].detach().cpu().numpy() if hasattr(X, "detach") else np.asarray(X[drawn])
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"row {drawn[finite.argmin()]} of {tuple(X.shape)} holds NaN or infinity")
    return rows


def _compressed(rows: np.ndarray, spherical: bool) -> np.ndarray:
    """Return the rows along their leading principal axes, where they have many dimensions.

    At most 100 clusters lie in 99 dimensions. Directions of cluster centers are not changed by the mean, so rows are
    centered only where distances count.
    """
    if rows.shape[1] <= _DIMS or len(rows) <= _DIMS:
        return rows
    middle = np.zeros(rows.shape[1]) if spherical else rows.mean(axis=0, dtype=np.float64)
    centered = rows - middle.astype(np.float32)
    values, axes = np.linalg.eigh(centered.T @ centered)
    return np.ascontiguousarray(centered @ axes[:, np.argsort(values)[-_DIMS:]], dtype=np.float32)


def _promising(rows: np.ndarray, grid: list[int], seed: int, spherical: bool) -> list[int]:
    """Return the candidates that a quick pass over part of the rows votes for, and their neighbors."""
    part = rows[np.random.default_rng(randomness.key(seed, "coarse")).permutation(len(rows))[:_COARSE_ROWS]]
    fits = _Fits(part, grid, _COARSE_REPEATS, seed, spherical, 1)
    chosen: set[int] = set()
    for which in (np.arange(_COARSE_REPEATS), *(np.array([r]) for r in range(_COARSE_REPEATS))):
        for k in fits.votes(which).values():
            at = grid.index(k) if k in grid else 0  # the gap may vote for one cluster
            chosen |= set(range(max(0, at - 1), min(len(grid), at + 2)))
    return [grid[at] for at in sorted(chosen)]


def _candidates(candidates: Sequence[int] | None, n: int) -> list[int]:
    if candidates is not None:
        tried = sorted({int(k) for k in candidates})
        if not tried or tried[0] < 2 or tried[-1] > n // 2:
            raise ValueError(f"candidates={tried} must be at least 2 and at most {n // 2}, half the sampled rows")
        return tried
    tried, highest = [2], min(100, max(3, n // 20))
    while (k := max(tried[-1] + 1, round(1.2 * tried[-1]))) <= highest:
        tried.append(k)
    return tried


def _reference(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many rows, uniform in the box along the principal axes."""
    middle = rows.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(np.cov(rows, rowvar=False, dtype=np.float64).reshape(rows.shape[1], -1))[1]
    along = (rows - middle) @ axes
    box = random.uniform(along.min(axis=0), along.max(axis=0), size=rows.shape)
    return (box @ axes.T + middle).astype(np.float32)


def _best(
    part: np.ndarray, rows: np.ndarray, k: int, seed: int, spherical: bool, starts: int
) -> tuple[np.ndarray, float]:
    """Return the best of some starts fitted to `part`: labels and mean squared distance of all `rows`."""
    fits = [KMeans(k, spherical=spherical, init="k-means++", random_state=seed + i).fit(part) for i in range(starts)]
    best = min(fits, key=lambda fit: fit.inertia_)
    return np.asarray(best.predict(rows)), float(-best.score(rows)) / len(rows)


class _Silhouette:
    """Mean silhouette of clusterings of the same rows: the distances of a sample are computed once."""

    def __init__(self, rows: np.ndarray, seed: int, spherical: bool) -> None:
        random = np.random.default_rng(randomness.key(seed, "silhouette"))
        self.drawn = np.sort(random.permutation(len(rows))[:_SILHOUETTE_ROWS])
        x = rows[self.drawn].astype(np.float64)
        if spherical:
            x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            self.distances = np.maximum(1 - x @ x.T, 0)
        else:
            squares = (x**2).sum(axis=1)
            self.distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
        np.fill_diagonal(self.distances, 0)

    def __call__(self, labels: np.ndarray) -> float:
        """Return the score of labels (N,); -1 where it is not defined: one cluster, or only clusters of one."""
        found, own, sizes = np.unique(labels[self.drawn], return_inverse=True, return_counts=True)
        if not 2 <= len(found) < len(own):
            return -1.0
        sums = self.distances @ np.eye(len(found))[own]  # (n, k) of distances to each cluster's members
        at = np.arange(len(own)), own
        inside = sums[at] / np.maximum(sizes[own] - 1, 1)
        means = sums / sizes
        means[at] = np.inf
        outside = means.min(axis=1)
        score = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12)
        return float(np.where(sizes[own] > 1, score, 0).mean())


def _log(inertia: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(inertia, np.finfo(np.float32).tiny))


def _within_an_error(tried: list[int], gap: np.ndarray, error: np.ndarray) -> int:
    best = int(gap.argmax())
    return tried[int(np.flatnonzero(gap >= gap[best] - error[best])[0])]


def _widened(low: int, high: int, tried: list[int]) -> tuple[int, int]:
    below = [k for k in tried if k < low]
    above = [k for k in tried if k > high]
    return (below[-1] + 1 if below else low), (above[0] - 1 if above else high)
