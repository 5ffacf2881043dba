"""The embeddings as a plane: which images to draw, and where.

N images, n drawn, F features. PCA to 50 dimensions, then t-SNE (van der Maaten and Hinton 2008) for the neighborhoods.
"""

from __future__ import annotations

import numpy as np

_PCA_DIM = 50
_PERPLEXITY = 30.0
_ITERATIONS = 500  # half of the usual number: neighbors move little after that, and a page should not take minutes
_TOO_FEW_FOR_NEIGHBORHOODS = 12
_EACH = 3  # points that every cluster gets, so that small ones are not lost


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


def lay_out(vectors: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Places in the unit square.

    Args:
        vectors: (n, F) finite float32.
        seed: of t-SNE; the same vectors always give the same map.

    Returns:
        (n, 2) float64 in [0, 1], or None where there is nothing to see: no rows, or all vectors equal.
    """
    if not len(vectors) or not vectors.shape[1]:
        return None
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    size = np.linalg.norm(centered, axis=1).max()
    if size <= 1e-6 * np.linalg.norm(vectors.astype(np.float64), axis=1).max():
        return None
    places = _plane(centered / size, seed)
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
        perplexity=min(_PERPLEXITY, (n - 1) / 3), init=start.astype(np.float32), max_iter=_ITERATIONS, random_state=seed
    )
    with threadpool_limits(1):  # its threads meet a thousand times a second: on a busy machine they wait, not work
        return tsne.fit_transform(x.astype(np.float32)).astype(np.float64)
