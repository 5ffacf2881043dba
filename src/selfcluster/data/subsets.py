"""Seeded subsets and corrupted labels, the same wherever the data is read. Images without a label are numbered -1.

`long_tail`: class sizes fall exponentially from the largest to largest / ratio (Cui et al. 2019, arXiv 1901.05555,
section 6.1). `label_noise`: a share of the labels is replaced by another class drawn uniformly, never the true one.
"""

from __future__ import annotations

import numpy as np

from selfcluster import randomness
from selfcluster.data.errors import DataError, LabelsError
from selfcluster.data.order import shuffled
from selfcluster.data.readers.rows import read_text
from selfcluster.files import reason_of


def read_classes(path: str, class_names: list[str]) -> list[int]:
    """Return the numbers of the classes that a file names, one a line.

    Raises:
        LabelsError: a name that is no class; the message names the classes that exist.
    """
    try:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"classes from {path}: {reason_of(error)}") from error
    if unknown := [name for name in names if name not in class_names]:
        raise LabelsError(
            f"{path} names {unknown[0]!r}, which is not a class; classes found: {', '.join(class_names[:20])}"
        )
    if not names:
        raise LabelsError(f"{path} names no class; classes found: {', '.join(class_names[:20])}")
    return sorted({class_names.index(name) for name in names})


def limited(n: int, limit: int, seed: int) -> np.ndarray:
    """Return `limit` of range(n), sorted; all of them where the limit is larger."""
    if limit < 1:
        raise DataError(f"--limit {limit}: must be 1 or more")
    return np.sort(shuffled(n, seed, "limit")[:limit])


def long_tailed(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Return the rows of a long-tailed subset, sorted; images without a label are left out.

    Classes are taken from the largest to the smallest (ties by number); class k of C keeps
    largest x ratio^(-k / (C - 1)) images, rounded, at least 1 and at most what it has.
    """
    if ratio < 1:
        raise DataError(
            f"--long-tail {ratio:g}: must be 1 or more; it is the size of the largest class divided by the smallest"
        )
    labeled = np.flatnonzero(labels >= 0)
    labels = labels[labeled]
    sizes = np.bincount(labels)
    classes = np.argsort(-sizes, kind="stable")
    rank_in_class = np.empty(len(labels), dtype=np.int64)  # 0, 1, 2 ... in random order within each class
    mixed = shuffled(len(labels), seed, "long_tail")
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    rank_in_class[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    keep = np.empty(len(sizes), dtype=np.int64)
    decay = np.arange(len(sizes)) / max(1, len(sizes) - 1)
    keep[classes] = np.maximum(1, np.round(sizes.max() * float(ratio) ** -decay)).astype(np.int64)
    return labeled[rank_in_class < keep[labels]]


def noisy(labels: np.ndarray, classes: int, rate: float, seed: int) -> np.ndarray:
    """Return the labels with round(rate x N) of them wrong; images without a label keep none."""
    if not 0 <= rate <= 1:
        raise DataError(f"--label-noise {rate:g}: must be from 0 to 1")
    if classes < 2 and rate > 0:
        raise LabelsError("--label-noise needs two classes or more")
    rows = shuffled(len(labels), seed, "label_noise")[: round(rate * len(labels))]
    rows = rows[labels[rows] >= 0]
    shift = randomness.draw(seed, "label_noise class", 0, rows, 0, 1)[:, 0]
    corrupted = labels.copy()
    corrupted[rows] = (labels[rows] + 1 + (shift * (classes - 1)).astype(np.int64)) % classes
    return corrupted
