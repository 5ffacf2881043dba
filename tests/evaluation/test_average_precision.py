"""Average precision, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from selfcluster.evaluation.average_precision import average_precision, class_precisions, mean_precision


def test_values_by_hand():
    """Positives at ranks 1, 4 and 5: precision 1, 1/2, 3/5 at recalls 1/3, 2/3, 1."""
    scores, positives = np.array([9, 8, 7, 6, 5, 4.0]), np.array([1, 0, 0, 1, 1, 0])
    assert average_precision(scores, positives, "steps") == pytest.approx((1 + 1 / 2 + 3 / 5) / 3)
    assert average_precision(scores, positives, "area") == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)
    # recalls 0, .1, .2, .3 reach precision 1; .4 to 1 reach 3/5
    assert average_precision(scores, positives, "eleven") == pytest.approx((4 * 1 + 7 * 3 / 5) / 11)


def test_eleven_points_at_recalls_that_are_met_exactly():
    positives = np.array([1, 0] * 10)  # precision falls from 1 to 10/19 at recalls .1, .2 ... 1
    expected = [1.0] + [r / (2 * r - 1) for r in range(1, 11)]
    found = average_precision(-np.arange(20.0), positives, "eleven")
    assert found == pytest.approx(np.mean(expected))


def test_steps_agree_with_scikit_learn_also_with_equal_scores():
    rng = np.random.default_rng(0)
    for levels in (5, 1000):
        scores, positives = rng.integers(0, levels, 300) / levels, rng.integers(0, 2, 300)
        expected = average_precision_score(positives, scores)
        assert average_precision(scores, positives, "steps") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("form", ["area", "eleven", "steps"])
def test_perfect_scores_give_one_constant_scores_the_share_and_the_order_is_irrelevant(form):
    rng = np.random.default_rng(1)
    positives = np.arange(200) % 4 == 0
    assert average_precision(positives * 1.0, positives, form) == 1
    assert average_precision(np.zeros(200), positives, form) == pytest.approx(0.25)
    scores, order = rng.integers(0, 9, 200) * 1.0, rng.permutation(200)
    plain = average_precision(scores, positives, form)
    assert average_precision(scores[order], positives[order], form) == pytest.approx(plain)
    # images that do not count change nothing, wherever they stand
    ignored = np.r_[positives.astype(int), [-1] * 50]
    assert average_precision(np.r_[scores, rng.integers(0, 9, 50)], ignored, form) == pytest.approx(plain)


def test_random_scores_give_chance():
    rng = np.random.default_rng(2)
    found = [average_precision(rng.random(4000), np.arange(4000) % 5 == 0, "area") for _ in range(5)]
    assert np.mean(found) == pytest.approx(0.2, abs=0.02)


def test_a_class_without_a_positive_is_left_out_of_the_mean():
    scores, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[1, 0], [0, 0]])
    found = class_precisions(scores, labels)
    assert found[0] == 1
    assert np.isnan(found[1])
    assert mean_precision(found) == 1
    assert np.isnan(mean_precision(np.array([np.nan])))


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        average_precision(np.array([np.nan, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="must both be"):
        average_precision(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="choose area, eleven or steps"):
        average_precision(np.zeros(2), np.ones(2), "ten")  # pyright: ignore
