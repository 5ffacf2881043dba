"""Scores by hand, from their definitions in float64, and under permutation of names."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster.clustering import scores

LABELINGS = st.integers(2, 25).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n) for _ in range(2)])
)


def mutual_information(a: list[int], b: list[int]) -> tuple[float, float, float]:
    """I(A; B), H(A), H(B) from counts, in nats: I = H(A) + H(B) - H(A, B)."""
    ha, hb, hab = (
        -sum(p * math.log(p) for p in (n / len(a) for n in Counter(x).values())) for x in (a, b, zip(a, b, strict=True))
    )
    return ha + hb - hab, ha, hb


@settings(max_examples=60, deadline=None)
@given(pair=LABELINGS)
def test_nmi_is_its_definition(pair: tuple[list[int], list[int]]) -> None:
    mutual, ha, hb = mutual_information(*pair)
    if ha > 0 and hb > 0:
        assert scores.nmi(*pair) == pytest.approx(mutual / math.sqrt(ha * hb), abs=1e-9)
        assert scores.nmi(*pair, average="arithmetic") == pytest.approx(2 * mutual / (ha + hb), abs=1e-9)
    assert scores.entropy(pair[0]) == pytest.approx(ha, abs=1e-12)
    assert scores.effective_clusters(pair[0]) == pytest.approx(math.exp(ha))


@settings(max_examples=60, deadline=None)
@given(pair=LABELINGS)
def test_matching_accuracy_is_the_best_over_all_matchings(pair: tuple[list[int], list[int]]) -> None:
    labels, clusters = pair
    best = max(
        sum(label == names[cluster] for label, cluster in zip(labels, clusters, strict=True))
        for names in itertools.permutations(range(4))
    )
    assert scores.matching_accuracy(labels, clusters) == pytest.approx(best / len(labels))
    assert scores.purity(labels, clusters) >= best / len(labels) - 1e-12


@settings(max_examples=30, deadline=None)
@given(pair=LABELINGS, names=st.permutations(range(4)))
def test_names_of_clusters_do_not_matter(pair: tuple[list[int], list[int]], names: list[int]) -> None:
    labels, clusters = pair
    renamed = [names[c] for c in clusters]
    for score in (scores.nmi, scores.ami, scores.ari, scores.matching_accuracy, scores.purity):
        assert score(labels, renamed) == pytest.approx(score(labels, clusters), abs=1e-9)


def test_by_hand() -> None:
    assert scores.matching_accuracy([0, 0, 0, 1], [2, 2, 5, 5]) == 0.75
    assert scores.matching_accuracy([0, 0, 0, 0], [0, 1, 2, 3]) == 0.25  # three clusters are left over
    assert scores.purity([0, 0, 0, 0], [0, 1, 2, 3]) == 1.0
    assert scores.entropy([4, 4, 9, 9]) == pytest.approx(math.log(2))
    assert scores.label_switch_ratio([0, 1, 2, -1], [0, 2, 2, 5]) == pytest.approx(1 / 3)
    assert scores.successive_nmi([0, 0, 1, 1, -1], [3, 3, 2, 2, 9]) == pytest.approx(1.0)
    assert math.isnan(scores.successive_nmi([-1, 0], [0, -1]))
    assert math.isnan(scores.label_switch_ratio([-1], [0]))


def test_samples_without_a_label_are_left_out() -> None:
    a, b = np.array([0, 0, 1, 1, -1, 2]), np.array([1, 0, 1, 1, 0, -1])
    for score in (scores.nmi, scores.ami, scores.ari, scores.matching_accuracy, scores.purity):
        assert score(a, b) == score(a[:4], b[:4])


def test_tensors_lists_and_arrays_are_one() -> None:
    a, b = [0, 0, 1, 2], [0, 1, 1, 1]
    assert scores.nmi(torch.tensor(a), torch.tensor(b)) == scores.nmi(np.array(a), b)


def test_chance_is_zero_after_adjustment() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 10, 2000), rng.integers(0, 10, 2000)
    assert abs(scores.ari(a, b)) < 0.01
    assert abs(scores.ami(a, b)) < 0.01
    assert scores.nmi(a, b) > 0.005  # unadjusted: above zero by chance alone


def silhouette_by_definition(X: np.ndarray, labels: np.ndarray) -> float:
    values = []
    for i, x in enumerate(X):
        d = np.sqrt(((X - x) ** 2).sum(axis=1))
        own = labels == labels[i]
        if own.sum() == 1:
            values.append(0.0)
            continue
        a = d[own].sum() / (own.sum() - 1)
        b = min(d[labels == other].mean() for other in set(labels.tolist()) - {labels[i]})
        values.append((b - a) / max(a, b))
    return float(np.mean(values))


def test_silhouette() -> None:
    rng = np.random.default_rng(1)
    X, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    expected = silhouette_by_definition(X, labels)
    assert scores.silhouette(X, labels) == pytest.approx(expected)
    assert scores.silhouette(torch.from_numpy(X), torch.from_numpy(labels)) == pytest.approx(expected)
    some = scores.silhouette(X, labels, sample=30, seed=3)
    assert some == scores.silhouette(X, labels, sample=30, seed=3)
    assert some != pytest.approx(expected)
    assert math.isnan(scores.silhouette(X, np.zeros(60, dtype=int)))
    assert math.isnan(scores.silhouette(X, np.arange(60)))


def test_rankme() -> None:
    rng = np.random.default_rng(2)
    Z = rng.normal(size=(50, 8)) * np.arange(1, 9)
    s = np.sqrt(np.linalg.eigvalsh(Z.T @ Z))
    p = s / s.sum() + 1e-7
    assert scores.rankme(Z) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert scores.rankme(torch.from_numpy(3 * Z)) == pytest.approx(scores.rankme(Z))  # scale-free
    assert scores.rankme(np.outer(rng.normal(size=50), rng.normal(size=8))) == pytest.approx(1.0, abs=1e-4)
    assert scores.rankme(np.zeros((5, 3))) == 1.0
    assert scores.rankme(Z, sample=20, seed=1) == scores.rankme(Z, sample=20, seed=1)


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="3 and 2 samples"):
        scores.nmi([0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="average='mean'"):
        scores.nmi([0, 1], [0, 1], average="mean")
    with pytest.raises(ValueError, match="no sample"):
        scores.ari([-1, 0], [0, -1])
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        scores.entropy([[0, 1]])
