"""The embeddings as a plane: a place for every image.

N images, n landmarks, F features. PCA to 50 dimensions, then t-SNE (van der Maaten and Hinton 2008) for the
neighborhoods. Above `LANDMARKS` images t-SNE places a sample, and every other image stands where its nearest ones of
the sample stand (as openTSNE starts points that are added to a map; Policar et al. 2019).
"""

from __future__ import annotations

import numpy as np

_PCA_DIM = 50
_PERPLEXITY = 30.0
_ITERATIONS = 500  # half of the usual number: neighbors move little after that, and a page should not take minutes
# Barnes and Hut's angle. For 5,398 photographs 0.5, scikit-learn's own, takes 18 s on one core, and 0.8 takes 13 s.
# Both keep 31 % of the 15 nearest neighbors, and 56 % of an image's 15 neighbors on the map are of its class.
_ANGLE = 0.8
_TOO_FEW_FOR_NEIGHBORHOODS = 12
_EACH = 3  # points that every cluster gets, so that small ones are not lost
LANDMARKS = 6_000  # images that t-SNE places itself; see `_ANGLE` for its time
_BESIDE = 5  # landmarks whose median is the place of another image
_JITTER = 0.004  # of the map's side: images with the same landmarks stay apart


def sample_rows(n: int, at_most: int, cluster: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Sorted positions of the images to draw: a few of every cluster, the rest at random.

    Args:
        n: how many images there are, N.
        at_most: how many are drawn when there are more.
        cluster: (N,) cluster numbers; None: all at random.
        seed: of the draw.
    """
    if n <= at_most:
        return np.arange(n)
    shuffled = np.random.default_rng(seed).permutation(n)
    if cluster is not None:
        by_cluster = shuffled[np.argsort(cluster[shuffled], kind="stable")]
        _, starts, sizes = np.unique(cluster[by_cluster], return_index=True, return_counts=True)
        place = np.arange(n) - np.repeat(starts, sizes)  # 0, 1, 2, ... within the cluster
        first = by_cluster[place < _EACH]
        first = first if len(first) <= at_most // 2 else shuffled[:0]
        shuffled = np.concatenate([first, shuffled[~np.isin(shuffled, first)]])
    return np.sort(shuffled[:at_most])


def lay_out(
    vectors: np.ndarray, cluster: np.ndarray | None = None, seed: int = 0, landmarks: int = LANDMARKS
) -> np.ndarray | None:
    """Places in the unit square.

    Args:
        vectors: (N, F) finite float32.
        cluster: (N,) cluster numbers, so that the landmarks hold some of every cluster; None: all at random.
        seed: of the landmarks and of t-SNE; the same vectors always give the same map.
        landmarks: above so many images t-SNE places so many only.

    Returns:
        (N, 2) float64 in [0, 1], or None where there is nothing to see: no rows, or all vectors equal.
    """
    if not len(vectors) or not vectors.shape[1]:
        return None
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    size = np.linalg.norm(centered, axis=1).max()
    if size <= 1e-6 * np.linalg.norm(vectors.astype(np.float64), axis=1).max():
        return None
    scaled = centered / size
    chosen = sample_rows(len(scaled), landmarks, cluster, seed)
    places = _plane(scaled[chosen], seed)
    if len(chosen) < len(scaled):
        places = _beside(scaled.astype(np.float32), chosen, places, seed)
    low, high = places.min(axis=0), places.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (places - low) / span, 0.5)


def _plane(x: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n, dim = x.shape
    x = PCA(min(n, dim, _PCA_DIM), svd_solver="full", random_state=seed).fit_transform(x)
    if n < _TOO_FEW_FOR_NEIGHBORHOODS or x.shape[1] < 2:
        return np.pad(x, ((0, 0), (0, 2)))[:, :2]
    start = x[:, :2] / x[:, 0].std() * 1e-4  # the size scikit-learn's own start has
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (n - 1) / 3),
        init=start.astype(np.float32),
        max_iter=_ITERATIONS,
        angle=_ANGLE,
        random_state=seed,
    )
    with threadpool_limits(1):  # its threads meet a thousand times a second: on a busy machine they wait, not work
        return tsne.fit_transform(x.astype(np.float32)).astype(np.float64)


def _beside(x: np.ndarray, chosen: np.ndarray, places: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) places: the landmarks' own, and the median of the nearest landmarks' places for every other image."""
    from selfcluster.clustering.neighbors import nearest

    others = np.setdiff1d(np.arange(len(x)), chosen)
    near = nearest(x[others], x[chosen], min(_BESIDE, len(chosen)), metric="l2").indices
    out = np.empty((len(x), 2))
    out[chosen] = places
    out[others] = np.median(places[near], axis=1)
    out[others] += np.random.default_rng(seed).normal(scale=_JITTER, size=(len(others), 2)) * np.ptp(places, axis=0)
    return out
