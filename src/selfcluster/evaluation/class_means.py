"""Classes on a plane: the mean features of each class, by t-SNE.

Caron 2021 (the thesis), section 5.3 and figure 5.2: means of the validation images, PCA to 30 dimensions, t-SNE with a
perplexity of 20, a rate of 200 and 5,000 iterations.
Departs: with few classes the perplexity is (L - 1) / 3, because t-SNE needs more points than its perplexity.

N images, L classes, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

COMPONENTS, PERPLEXITY, RATE, STEPS = 30, 20.0, 200.0, 5000
FEWEST = 4  # classes


def class_means(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (L,) that have images, and the means (L, F) of their features.

    `vectors` (N, F); `labels` (N,) whole numbers, -1 = none.
    """
    classes = np.unique(labels[labels >= 0])
    means = [vectors[labels == each].mean(axis=0, dtype=np.float64) for each in classes]
    return classes, np.array(means).reshape(len(classes), vectors.shape[1])


def place_classes(means: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return positions (L, 2) of class means (L, F) on a plane.

    Raises:
        ValueError: fewer than 4 classes.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(means)
    if count < FEWEST:
        raise ValueError(f"{count} classes: t-SNE needs at least {FEWEST}")
    components = min(COMPONENTS, count - 1, means.shape[1])
    reduced = PCA(components, random_state=seed).fit_transform(means)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    rate: Any = RATE  # scikit-learn's annotation says str
    tsne = TSNE(2, perplexity=perplexity, learning_rate=rate, max_iter=STEPS, random_state=seed)
    return np.asarray(tsne.fit_transform(reduced))
