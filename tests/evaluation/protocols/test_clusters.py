"""Agreement of clusters and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfcluster.evaluation.protocols.clusters import clusters


def test_values_by_hand():
    """Six images, classes 3 + 3; one image of class 1 lies in class 0's cluster."""
    found = clusters([0, 0, 0, 0, 5, 5], [2, 2, 2, 9, 9, 9])
    assert found["accuracy"] == found["purity"] == pytest.approx(5 / 6)
    by_class, by_cluster = math.log(2), -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    joint = -(1 / 2 * math.log(1 / 2) + 1 / 6 * math.log(1 / 6) + 1 / 3 * math.log(1 / 3))
    mutual = by_class + by_cluster - joint
    assert found["nmi_geometric"] == pytest.approx(mutual / math.sqrt(by_class * by_cluster))
    assert found["nmi_arithmetic"] == pytest.approx(mutual / ((by_class + by_cluster) / 2))
    # pairs: 15 in all; together in both 3 + 1 = 4, in classes 6, in clusters 6 + 1 = 7, expected 6 * 7 / 15
    assert found["ari"] == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    assert (found["clusters"], found["classes"], found["n"]) == (2, 2, 6)


def test_perfect_up_to_names_and_without_the_unlabeled():
    labels = np.array([0, 0, 1, 1, 2, 2, -1, 0])
    assigned = torch.tensor([5, 5, 0, 0, 3, 3, 0, -1])
    found = clusters(assigned, labels)
    assert found["n"] == 6
    for name in ("accuracy", "purity", "nmi_geometric", "nmi_arithmetic", "ami", "ari"):
        assert found[name] == pytest.approx(1), name


def test_chance_is_zero_where_a_score_is_adjusted_for_it():
    rng = np.random.default_rng(0)
    found = clusters(rng.integers(0, 50, 2000), rng.integers(0, 4, 2000))
    assert abs(found["ami"]) < 0.01
    assert abs(found["ari"]) < 0.01
    assert found["purity"] > 0.3  # not adjusted: rises with K
    assert found["accuracy"] < 0.1  # 46 of 50 clusters have no class left


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="3 clusters and 2 labels"):
        clusters([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="none of the 2"):
        clusters([0, 1], [-1, -1])
    with pytest.raises(ValueError, match="whole numbers"):
        clusters([0.5, 1.0], [0, 1])
