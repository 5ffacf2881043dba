"""Fits a logistic regression to frozen features until it converges: a linear probe without crops.

Features are standardized with the training images' mean and deviation. The penalty on the weights is chosen on held-out
*training* images. Then the classifier is fitted to all training images and scored once on the test images. Published
probes that report the best of many epochs on the test images get scores that are too high.
L-BFGS minimizes mean cross-entropy + penalty / 2 * |W|^2 (no penalty on the bias) on all images at once. There is one
minimum, so the result does not depend on a learning rate. scikit-learn's C is 1 / (penalty * N).

N training images, M test images, F features, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfcluster.annotations import ArrayLike
from selfcluster.evaluation.labeled import labeled, positions, same_width, top
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # from strong to weak: each fit starts where the last ended


@dataclass(frozen=True, kw_only=True)
class LogisticSettings:
    penalty: float | None = setting(
        None, "penalty on half the squared weights; default: the best on held-out images", least=0
    )
    held_out: float = setting(
        0.2, "share of the training images to hold out for choosing the penalty", least=0.01, most=0.9
    )
    max_iter: int = setting(1000, "maximum number of L-BFGS iterations", least=1)


class Logistic(Protocol):
    Settings = LogisticSettings

    def run(self, subject: Subject, settings: LogisticSettings) -> Result:
        train, test = subject.parts
        numbers = logistic(
            train.vectors, train.labels, test.vectors, test.labels, penalty=settings.penalty,
            held_out=settings.held_out, max_iter=settings.max_iter, seed=subject.seed,
        )  # fmt: skip
        return result_of("logistic", numbers, subject, settings)


def logistic(
    train_features: ArrayLike,
    train_labels: ArrayLike | None,
    test_features: ArrayLike,
    test_labels: ArrayLike | None,
    *,
    penalty: float | None = None,
    held_out: float = 0.2,
    max_iter: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return the test accuracy of a logistic regression fitted to the training images.

    Args:
        train_features, train_labels: (N, F) and (N,), NumPy or torch; images labeled -1 are left out. float64
            features are computed in float64, all others in float32, on their own device.
        test_features, test_labels: (M, F) and (M,).
        penalty: on half the squared weights, beside the mean cross-entropy; None = the best of `PENALTIES` on the
            held-out images; of equals the strongest. The strongest is tried first, until two in a row are worse.
        held_out: share of each class's training images that is used to choose the penalty.
        max_iter: L-BFGS iterations per fit.
        seed: of the draw of the held-out images.

    Returns:
        top1, top5 (only with more than 5 classes), penalty, converged (whether the last fit needed fewer than
        `max_iter` iterations), classes, n_train, n_test; accuracies in [0, 1].

    Raises:
        ValueError: there are no labels or only one class, or features are not finite or differ in width.
    """
    x, y = labeled(train_features, train_labels, "train")
    queries, wanted = labeled(test_features, test_labels, "test")
    same_width(x, queries)
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError(f"train has one class only, {int(classes[0])}: at least two are needed")
    y, wanted = positions(classes, y), positions(classes, wanted)
    if penalty is None:
        penalty = _choose(x, y, len(classes), held_out, max_iter, seed)
    probe = _Probe(x, y, len(classes))
    # from strong to weak, as in the choice: a fit from zero weights may stop before it converges
    for each in (*(p for p in PENALTIES if p > penalty), penalty):
        probe.fit(each, max_iter)
    scores = probe.scores(queries)
    result = {"top1": top(scores, wanted, 1)}
    if len(classes) > 5:
        result["top5"] = top(scores, wanted, 5)
    result |= {"penalty": penalty, "converged": probe.converged}
    return result | {"classes": len(classes), "n_train": len(x), "n_test": len(queries)}


class _Probe:
    """Standardization, weights (L, F) and bias (L,) of a logistic regression; `fit` continues from these weights."""

    def __init__(self, x: Tensor, y: Tensor, num_classes: int) -> None:
        deviation, self.mean = torch.std_mean(x, dim=0, correction=0)
        self.scale = torch.where(deviation > 0, deviation, 1)  # a constant feature would divide by 0
        self.x, self.y = (x - self.mean) / self.scale, y
        self.weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
        self.bias = x.new_zeros(num_classes, requires_grad=True)
        self.converged = False

    def fit(self, penalty: float, max_iter: int) -> _Probe:
        small = 1e-7 if self.x.dtype == torch.float32 else 1e-10
        solver = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=max_iter,
            max_eval=4 * max_iter,
            tolerance_grad=small,
            tolerance_change=small / 100,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(F.linear(self.x, self.weight, self.bias), self.y)
            loss = loss + penalty / 2 * self.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            solver.step(objective)  # pyright: ignore[reportArgumentType]
        self.converged = solver.state[self.weight]["n_iter"] < max_iter
        return self

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        return F.linear((x - self.mean) / self.scale, self.weight, self.bias)  # (M, L)


def _choose(x: Tensor, y: Tensor, num_classes: int, held_out: float, max_iter: int, seed: int) -> float:
    """Return the penalty that is best on the held-out training images after a fit to the others."""
    out = _hold_out(y.cpu(), num_classes, held_out, seed).to(x.device)
    if not out.any():
        return PENALTIES[len(PENALTIES) // 2]  # every class has one image, so none can be held out
    probe, best, accuracy = _Probe(x[~out], y[~out], num_classes), PENALTIES[0], [-1.0]
    for penalty in PENALTIES:
        accuracy.append(top(probe.fit(penalty, max_iter).scores(x[out]), y[out], 1))
        if accuracy[-1] > max(accuracy[:-1]):
            best = penalty
        elif max(accuracy[-2:]) < max(accuracy):  # worse twice in a row: weaker penalties take longer and overfit more
            break
    return best


def _hold_out(y: Tensor, num_classes: int, share: float, seed: int) -> Tensor:
    """Return (N,) bool with a random share of every class; at least one image of each class is not held out."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(len(y), dtype=torch.bool)
    for label in range(num_classes):
        members = order[y[order] == label]
        out[members[: min(len(members) - 1, round(share * len(members)))]] = True
    return out
