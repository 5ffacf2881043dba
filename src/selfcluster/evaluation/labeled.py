"""What every protocol begins with: features and labels as tensors, checked, without the images that have no label.

N images, F features, L classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfcluster.annotations import ArrayLike
from selfcluster.data.sources import Source

UNLABELED = -1
SEVERAL = "the images have several labels each; this protocol takes one (knn, svm, low_shot and finetune take several)"


def labeled(features: ArrayLike, labels: ArrayLike | None, what: str) -> tuple[Tensor, Tensor]:
    """The rows that have a label.

    Args:
        features: (N, F), NumPy or torch, finite. float64 stays so, everything else becomes float32.
        labels: (N,) whole numbers, -1 = unlabeled.
        what: "train" or "test", for the messages.

    Returns:
        Features (n, F) and labels (n,) int64 on the features' device.

    Raises:
        ValueError: shapes that do not belong together, no labels at all, or features that are not finite.
    """
    if labels is None:
        raise ValueError(f"{what}: the images have no labels; say where they are with --labels-from")
    x, y = torch.as_tensor(features), torch.as_tensor(labels)
    if y.dim() == 2:
        raise ValueError(f"{what}: {SEVERAL}")
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y):
        raise ValueError(f"{what}: features {tuple(x.shape)} and labels {tuple(y.shape)}; needed are (N, F) and (N,)")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{what}: labels are {y.dtype}; needed are whole numbers, -1 = unlabeled")
    keep = (y != UNLABELED).to(x.device)
    y = y.to(x.device, torch.int64)[keep]
    x = x if len(y) == len(x) else x[keep]  # no second copy of all features where every image has a label
    if not len(y):
        raise ValueError(f"{what}: not one of {len(keep)} images has a label")
    x = x if x.dtype == torch.float64 else x.float()
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"{what}: the features of {bad} of {len(y)} labeled images are not finite")
    return x, y


def with_tags(features: ArrayLike, labels: ArrayLike | None, what: str) -> tuple[Tensor, Tensor]:
    """Features and several labels of each image, checked.

    Args:
        features: (N, F), NumPy or torch, finite. float64 stays so, everything else becomes float32.
        labels: (N, L) of 1 (has the class), 0 (does not) and -1 (does not count).
        what: "train" or "test", for the messages.

    Returns:
        Features (N, F) and labels (N, L) int8 on the features' device.

    Raises:
        ValueError: no labels, shapes or values that do not fit, or features that are not finite.
    """
    if labels is None:
        raise ValueError(f"{what}: the images have no labels; say where they are with --labels-from")
    x, y = torch.as_tensor(features), torch.as_tensor(labels)
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not y.shape[1]:
        raise ValueError(f"{what}: features {tuple(x.shape)} and labels {tuple(y.shape)}; needed are (N, F) and (N, L)")
    if y.is_floating_point() or y.is_complex() or (len(y) and (int(y.min()) < -1 or int(y.max()) > 1)):
        raise ValueError(f"{what}: several labels an image are 1, 0 or -1; these are {y.dtype} up to {y.max()}")
    x = x if x.dtype == torch.float64 else x.float()
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"{what}: the features of {bad} of {len(y)} labeled images are not finite")
    return x, y.to(x.device, torch.int8)


def with_label(source: Source, what: str) -> Source:
    """Return the images that have a label; all images where they have several labels each.

    Raises:
        ValueError: no labels at all; `what`, "train" or "test", is for the message.
    """
    if source.labels is None:
        raise ValueError(f"{what}: {source.where} has no labels; say where they are with --labels-from")
    if source.labels.ndim == 2:
        return source
    keep = np.flatnonzero(source.labels >= 0)
    if not len(keep):
        raise ValueError(f"{what}: not one of {len(source)} images has a label")
    return source.take(keep)


def same_width(train: Tensor, test: Tensor) -> None:
    """Raise ValueError unless both have the same number of features."""
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train has {train.shape[1]} features an image and test {test.shape[1]}: not the same network's"
        )


def top(scores: Tensor, y: Tensor, n: int) -> float:
    """Share of rows whose class y (position in `scores`'s columns, or -1: not among them) is in the n best.

    Among equal scores the lowest position is better.
    """
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :n]
    return float((best == y[:, None]).any(dim=1).double().mean())


def positions(classes: Tensor, y: Tensor) -> Tensor:
    """Where each label stands in the sorted `classes`; -1 where it does not."""
    at = torch.searchsorted(classes, y).clamp(max=len(classes) - 1)
    return torch.where(classes[at] == y, at, -1)
