"""Choose few rows that represent many: equal shares of the clusters, and rows far apart within each cluster.

Farthest-point traversal is Gonzalez 1985 ("Clustering to minimize the maximum intercluster distance"): every
row is within twice the smallest possible radius of one of the n chosen rows.
"""

from __future__ import annotations

import numpy as np


def equal_shares(sizes: np.ndarray, n: int) -> np.ndarray:
    """Divide n among groups, as equally as the sizes of the groups allow; return the shares (K,).

    Args:
        sizes: (K,) whole numbers.
        n: at most their sum.

    Returns:
        (K,) int64 whose sum is n. What small groups lack, the others give; of what cannot be divided, the largest
        groups give one more.

    >>> equal_shares(np.array([100, 3, 50]), 20).tolist()
    [9, 3, 8]
    """
    if not 0 <= n <= sizes.sum():
        raise ValueError(f"n={n} is not between 0 and the {int(sizes.sum())} rows in all groups")
    shares, order = np.zeros(len(sizes), np.int64), np.argsort(sizes, kind="stable")
    left = n
    for position, group in enumerate(order):  # the smallest group first: what it lacks goes to the rest
        shares[group] = min(int(sizes[group]), left // (len(order) - position))
        left -= int(shares[group])
    return shares


def farthest_points(rows: np.ndarray, n: int, first: int = 0) -> np.ndarray:
    """Return n positions of rows, each the farthest from all before it.

    Args:
        rows: (N, F).
        n: at most N.
        first: the position to begin with.

    Returns:
        (n,) int64, in the order of choice; of equally far rows the first.
    """
    if not 0 <= n <= len(rows):
        raise ValueError(f"n={n} is not between 0 and the {len(rows)} rows")
    x = np.asarray(rows, np.float64)
    chosen = np.empty(n, np.int64)
    distance = np.full(len(x), np.inf)
    at = first
    for step in range(n):
        chosen[step] = at
        distance = np.minimum(distance, ((x - x[at]) ** 2).sum(axis=1))
        distance[at] = -1.0  # chosen once, even among equal rows
        at = int(distance.argmax())
    return chosen
