"""Check features and labels for a protocol, make them tensors, and drop the images that have no label.

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
    """Return the rows that have a label.

    Args:
        features: (N, F), NumPy or torch, finite. float64 stays float64, all else becomes float32.
        labels: (N,) whole numbers, -1 = unlabeled.
        what: "train" or "test", for the messages.

    Returns:
        Features (n, F) and labels (n,) int64 on the features' device.

    Raises:
        ValueError: the shapes do not match, there are no labels, or a feature is not finite.
    """
    if labels is None:
        raise ValueError(f"{what}: the images have no labels; say where they are with --labels-from")
    x, y = torch.as_tensor(features), torch.as_tensor(labels)
    if y.dim() == 2:
        raise ValueError(f"{what}: {SEVERAL}")
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y):
        raise ValueError(
            f"{what}: features have the shape {tuple(x.shape)} and labels {tuple(y.shape)}; needed: (N, F) and (N,)"
        )
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{what}: labels are {y.dtype}; they must be whole numbers, -1 = unlabeled")
    keep = (y != UNLABELED).to(x.device)
    y = y.to(x.device, torch.int64)[keep]
    x = x if len(y) == len(x) else x[keep]  # if every image has a label, make no second copy of all features
    if not len(y):
        raise ValueError(f"{what}: none of the {len(keep)} images has a label")
    x = x if x.dtype == torch.float64 else x.float()
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"{what}: the features of {bad} of {len(y)} labeled images are not finite")
    return x, y


def with_tags(features: ArrayLike, labels: ArrayLike | None, what: str) -> tuple[Tensor, Tensor]:
    """Check and return features and several labels of each image.

    Args:
        features: (N, F), NumPy or torch, finite. float64 stays float64, all else becomes float32.
        labels: (N, L) of 1 (has the class), 0 (does not) and -1 (does not count).
        what: "train" or "test", for the messages.

    Returns:
        Features (N, F) and labels (N, L) int8 on the features' device.

    Raises:
        ValueError: there are no labels, shapes or values do not fit, or a feature is not finite.
    """
    if labels is None:
        raise ValueError(f"{what}: the images have no labels; say where they are with --labels-from")
    x, y = torch.as_tensor(features), torch.as_tensor(labels)
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not y.shape[1]:
        raise ValueError(
            f"{what}: features have the shape {tuple(x.shape)} and labels {tuple(y.shape)}; needed: (N, F) and (N, L)"
        )
    if y.is_floating_point() or y.is_complex() or (len(y) and (int(y.min()) < -1 or int(y.max()) > 1)):
        raise ValueError(f"{what}: several labels per image are 1, 0 or -1; these are {y.dtype} up to {y.max()}")
    x = x if x.dtype == torch.float64 else x.float()
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"{what}: the features of {bad} of {len(y)} labeled images are not finite")
    return x, y.to(x.device, torch.int8)


def with_label(source: Source, what: str) -> Source:
    """Return the images that have a label; all images if they have several labels each.

    Raises:
        ValueError: there are no labels; `what`, "train" or "test", is for the message.
    """
    if source.labels is None:
        raise ValueError(f"{what}: {source.where} has no labels; say where they are with --labels-from")
    if source.labels.ndim == 2:
        return source
    keep = np.flatnonzero(source.labels >= 0)
    if not len(keep):
        raise ValueError(f"{what}: none of the {len(source)} images has a label")
    return source.take(keep)


def same_width(train: Tensor, test: Tensor) -> None:
    """Raise ValueError unless both have the same number of features."""
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train has {train.shape[1]} features per image and test {test.shape[1]}; embed both with the same network"
        )


def top(scores: Tensor, y: Tensor, n: int) -> float:
    """Return the share of rows with their class y among the n best scores.

    y is a column of `scores`; -1: no column, an error. Of equal scores the lowest column wins.
    """
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :n]
    return float((best == y[:, None]).any(dim=1).double().mean())


def positions(classes: Tensor, y: Tensor) -> Tensor:
    """Return the position of each label in the sorted `classes`; -1 for a label that is not there."""
    at = torch.searchsorted(classes, y).clamp(max=len(classes) - 1)
    return torch.where(classes[at] == y, at, -1)
