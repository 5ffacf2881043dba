"""Classifies images by a weighted vote of their nearest neighbors, on frozen features; trains nothing.

Wu et al. 2018, arXiv 1805.01978, section 3.4, with the settings of Caron et al. 2021, arXiv 2104.14294: features of
unit length and k = 20 neighbors. Each neighbor votes for its class with weight exp(cosine / 0.07). DINO's sweep is `--k
10,20,100,200`: neighbors are searched once, for the largest k. Images with several labels are scored by mean average
precision. The score of a class is its share of the votes (Caron's thesis, table 5.5). Departs: nothing. Among classes
with equal votes the lowest label wins. A class without votes is never in the top 5.

N training images, M test images, F features, L classes, K numbers of neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfcluster.annotations import ArrayLike
from selfcluster.clustering.neighbors import nearest
from selfcluster.distributed import world_size
from selfcluster.evaluation.average_precision import class_precisions, mean_precision
from selfcluster.evaluation.labeled import labeled, positions, same_width, with_tags
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

_HELD = 1 << 24  # most votes and neighbors' labels per tile of test images: 64 MB of float32


@dataclass(frozen=True, kw_only=True)
class KNNSettings:
    k: str = setting("20", "number of neighbors that vote; you can give several, such as 10,20,100,200", repeat=True)
    temperature: float = setting(0.07, "smaller values give nearer neighbors more weight", least=1e-4)


class KNN(Protocol):
    Settings = KNNSettings
    labels = "any"

    def run(self, subject: Subject, settings: KNNSettings) -> Result:
        ks = parse_numbers(settings.k)
        train, test = subject.parts
        images = (train.vectors, train.labels, test.vectors, test.labels)
        several = train.labels is not None and train.labels.ndim == 2
        rows = (knn_map if several else knn_sweep)(*images, ks=ks, temperature=settings.temperature)
        score = "map" if several else "top1"
        numbers, notes = rows[0], ()
        if len(rows) > 1:
            best = max(rows, key=lambda row: row[score])
            numbers = numbers | {f"best_{score}": best[score], "best_k": best["k"]}
            notes = (
                f"{score} is the score with the first k of the list. best_k was chosen on the test images, as in "
                f"DINO's table, so best_{score} is optimistic.",
            )
        return result_of("knn", numbers, subject, settings, table=tuple(rows) if len(rows) > 1 else (), notes=notes)


def parse_numbers(text: str, flag: str = "--k") -> tuple[int, ...]:
    """Return the whole numbers of a list such as "10,20"; raise ValueError with the flag for anything else.

    >>> parse_numbers("10, 20")
    (10, 20)
    """
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{flag} {text}: give whole numbers of at least 1, separated by commas, such as {flag} 10,20")
    return tuple(dict.fromkeys(int(part) for part in parts))


def knn(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Return the accuracy of the weighted vote of the k nearest training images.

    Args:
        train_features: (N, F), NumPy or torch.
        train_labels: (N,) whole numbers; images labeled -1 are left out.
        test_features, test_labels: (M, F) and (M,); without them each training image is classified by all the
            others (leave one out).
        k: number of neighbors, at most the number of training images. The number used is in the result.
        temperature: a smaller value gives the nearest neighbors more weight.

    Returns:
        top1, top5 (only with more than 5 classes), k, classes, n_train, n_test; accuracies in [0, 1]. A test image of a
        class that train lacks counts as an error.

    Raises:
        ValueError: there are no labels or only one class, features are not finite or differ in width, or k < 1.
        RuntimeError: there is more than one process.

    >>> knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[2.0, 1.0]], [0], k=1)["top1"]
    1.0
    """
    return knn_sweep(train_features, train_labels, test_features, test_labels, ks=(k,), temperature=temperature)[0]


def knn_sweep(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
) -> list[dict[str, float]]:
    """Return the result of `knn` for each of several k; neighbors are searched only once."""
    x, y = labeled(train_features, train_labels, "train")
    leave_one_out = test_features is None
    queries, wanted = (x, y) if leave_one_out else labeled(test_features, test_labels, "test")
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError(f"train has one class only, {int(classes[0])}: at least two are needed")
    ks, cosines, neighbors = _search(x, queries, ks, temperature, leave_one_out)
    numbers, wanted = positions(classes, y), positions(classes, wanted)
    hits = torch.zeros(len(ks), 2, dtype=torch.int64)
    tile = max(1, _HELD // len(classes))
    for start in range(0, len(queries), tile):
        part = slice(start, start + tile)
        voted = sweep_votes(cosines[part], numbers[neighbors[part]], len(classes), ks, temperature)
        for i, votes in enumerate(voted):
            place = rank_of(votes, wanted[part])
            hits[i] += torch.stack([(place < 1).sum(), (place < 5).sum()]).cpu()
    rows = []
    for k, (first, among_five) in zip(ks, (hits.double() / len(queries)).tolist(), strict=True):
        row = {"top1": first} | ({"top5": among_five} if len(classes) > 5 else {})
        rows.append(row | {"k": k, "classes": len(classes), "n_train": len(x), "n_test": len(queries)})
    return rows


def knn_map(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike,
    test_labels: ArrayLike | None,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
) -> list[dict[str, float]]:
    """Return mean average precision for each of several k; images have several labels.

    Args:
        train_features, train_labels: (N, F) and (N, L) of 1, 0 and -1. -1 does not vote, like 0.
        test_features, test_labels: (M, F) and (M, L); -1 does not count. Test may have more classes than train.
        ks, temperature: as in `knn_sweep`.

    Returns:
        A row for each k: map (area), map_11_point, k, classes (those with a test image), n_train, n_test.
    """
    x, y = with_tags(train_features, train_labels, "train")
    queries, wanted = with_tags(test_features, test_labels, "test")
    if wanted.shape[1] < y.shape[1]:
        raise ValueError(
            f"train has {y.shape[1]} classes and test {wanted.shape[1]}: use the same list of classes for both"
        )
    ks, cosines, neighbors = _search(x, queries, ks, temperature, False)
    tags = F.pad((y > 0).to(cosines.dtype), (0, wanted.shape[1] - y.shape[1]))  # (N, L)
    scores = torch.zeros(len(ks), *wanted.shape, dtype=cosines.dtype, device=cosines.device)
    tile = max(1, _HELD // (max(ks) * wanted.shape[1]))
    for start in range(0, len(queries), tile):
        part = slice(start, start + tile)
        weights, voters = _weights(cosines[part], temperature), tags[neighbors[part]]  # (m, k), (m, k, L)
        for i, k in enumerate(ks):
            share = weights[:, :k] / weights[:, :k].sum(dim=1, keepdim=True)
            scores[i, part] = torch.einsum("mk,mkl->ml", share, voters[:, :k])
    truth, rows = wanted.cpu().numpy(), []
    for k, votes in zip(ks, scores.cpu().numpy(), strict=True):
        area, eleven = class_precisions(votes, truth), class_precisions(votes, truth, "eleven")
        numbers = {"map": mean_precision(area), "map_11_point": mean_precision(eleven), "k": k}
        rows.append(numbers | {"classes": int((~np.isnan(area)).sum()), "n_train": len(x), "n_test": len(queries)})
    if not rows[0]["classes"]:
        raise ValueError("test: no image has a label, so there is no average precision")
    return rows


def _search(
    x: Tensor, queries: Tensor, ks: Sequence[int], temperature: float, leave_one_out: bool
) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Return the possible values of k, and cosines and neighbors (M, k) for the largest, best first."""
    if not ks or min(ks) < 1 or temperature <= 0:
        shown = ",".join(map(str, ks))
        raise ValueError(f"k={shown} and temperature={temperature}: k must be at least 1 and temperature above 0")
    if world_size() > 1:
        raise RuntimeError("k-NN needs all images in one process: evaluate without torchrun")
    same_width(x, queries)
    available = tuple(dict.fromkeys(min(k, len(x) - leave_one_out) for k in ks))
    x = F.normalize(x, dim=1)
    queries = x if leave_one_out else F.normalize(queries, dim=1)
    found = nearest(queries, x, max(available), metric="inner_product", exclude_self=leave_one_out)
    return available, found.values, found.indices


def sweep_votes(
    cosines: Tensor, classes: Tensor, num_classes: int, ks: Sequence[int], temperature: float
) -> Iterator[Tensor]:
    """Yield the votes (m, L) for each k, from cosines and classes of the neighbors (m, max k), best first.

    -inf means no vote.
    """
    weights = _weights(cosines, temperature)
    for k in ks:
        votes = weights.new_zeros(len(cosines), num_classes).scatter_add_(1, classes[:, :k], weights[:, :k])
        voted = torch.zeros(votes.shape, dtype=torch.bool, device=votes.device)
        voted.scatter_(1, classes[:, :k], True)  # a weight that underflows to 0 is still a vote
        yield votes.masked_fill_(~voted, float("-inf"))


def _weights(cosines: Tensor, temperature: float) -> Tensor:
    # the common factor keeps small temperatures from overflowing, and the nearest from vanishing
    return ((cosines - cosines.amax(dim=1, keepdim=True)) / temperature).exp()


def rank_of(scores: Tensor, y: Tensor) -> Tensor:
    """Return the rank (m,), from 0, of class y (m,) among scores (m, L); L if y is -1 or its score is -inf.

    Of equal scores the lowest class comes first.
    """
    of_class = scores.gather(1, y.clamp(min=0)[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < y[:, None]
    rank = ((scores > of_class) | ((scores == of_class) & before)).sum(dim=1)
    missing = (y < 0) | (of_class[:, 0] == float("-inf"))
    return rank.masked_fill_(missing, scores.shape[1])
