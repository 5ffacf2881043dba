"""Average precision of rankings with junk, by hand and against the area under the curve."""

import numpy as np
import pytest

from selfcluster.evaluation.retrieval import places_without_junk, precision_at, retrieval_scores, trapezoid_precision


def area(places, positives):
    """The area under precision against recall, in trapezoids, from the points of the curve themselves."""
    recall, precision, out = 0.0, 1.0, 0.0
    found = 0
    for rank in range(int(max(places)) + 1):
        found += rank in places
        new_recall, new_precision = found / positives, found / (rank + 1)
        out += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return out


def test_precision_is_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = np.sort(rng.choice(30, rng.integers(1, 12), replace=False))
        positives = len(places) + int(rng.integers(0, 4))
        assert trapezoid_precision(places, positives) == pytest.approx(area(places, positives), abs=1e-12)


def test_by_hand():
    assert trapezoid_precision(np.array([0, 1, 4]), 3) == pytest.approx((1 + 1 + (2 / 4 + 3 / 5) / 2) / 3)
    assert trapezoid_precision(np.array([1]), 1) == pytest.approx((0 / 1 + 1 / 2) / 2)
    assert np.isnan(trapezoid_precision(np.array([]), 0))
    assert precision_at(np.array([0, 3]), 10) == 2 / 4
    assert precision_at(np.array([0, 3]), 1) == 1


def test_junk_above_a_positive_leaves_the_score_unchanged():
    order = np.array([9, 4, 8, 2, 7, 1])
    assert places_without_junk(order, np.array([4, 1]), np.array([9, 8])).tolist() == [0, 3]
    similarity = -np.arange(10.0)[None]
    alone = retrieval_scores(similarity, [np.array([1, 4])], [np.array([], int)])
    with_junk = retrieval_scores(
        np.concatenate([np.full((1, 3), 5.0), similarity], axis=1), [np.array([4, 7])], [np.arange(3)]
    )
    assert alone == with_junk


def test_perfect_is_one_and_random_is_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 30)
    positives = [np.flatnonzero(labels == label) for label in range(20)]
    none = [np.array([], int)] * 20
    perfect = np.stack([(labels == label).astype(float) for label in range(20)])
    assert retrieval_scores(perfect, positives, none) == {"map": 1, "mp@1": 1, "mp@5": 1, "mp@10": 1}
    random = retrieval_scores(rng.random((20, 600)), positives, none)
    assert 0.03 < random["map"] < 0.09  # a share of 0.05 is right


def test_queries_without_positives_do_not_count_and_nan_is_refused():
    none = np.array([], int)
    scores = retrieval_scores(np.array([[1.0, 0], [0, 1]]), [np.array([0]), none], [none, none])
    assert scores["map"] == 1
    with pytest.raises(ValueError, match="no query"):
        retrieval_scores(np.zeros((1, 2)), [none], [none])
    with pytest.raises(ValueError, match="not finite"):
        retrieval_scores(np.array([[np.nan, 0]]), [np.array([0])], [none])


def test_only_the_best_count_where_that_is_asked():
    similarity = -np.arange(30.0)[None]
    positives = [np.array([0, 25])]
    assert retrieval_scores(similarity, positives, [np.array([], int)], 20)["map"] == 0.5
