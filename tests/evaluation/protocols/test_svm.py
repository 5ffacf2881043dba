"""The SVM protocol: the machine from its equations, the choice of costs by scikit-learn, and what is refused."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from selfcluster import api
from selfcluster.evaluation.one_vs_rest import COSTS, machine_scores, parse_costs, unit_rows
from selfcluster.evaluation.protocols.svm import svm

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6))
Y = (X[:, :3] + RNG.normal(size=(90, 3)) > [0.0, 0.6, 1.2]).astype(np.int64)  # (90, 3)
PARTS = (X[:60], Y[:60], X[60:], Y[60:])


def test_published_values():
    assert len(COSTS["vissl"]) == 27
    assert COSTS["vissl"][:11] == (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    assert len(COSTS["openselfsup"]) == 19
    assert COSTS["openselfsup"][:3] == (1, 10, 100)
    for name in COSTS:
        assert COSTS[name][-16:] == tuple(1 / 2**power for power in range(4, 20))
    assert parse_costs("0.5,2") == (0.5, 2)
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(
        np.array([[3 / 5.00001, 4 / 5.00001], [0, 0]])
    )


@pytest.mark.parametrize("cost", [0.01, 3.0, 1000.0])
def test_the_machine_from_its_equations(cost):
    """Squared hinge + |w|^2 / 2 with the bias among the weights; a positive image counts twice.

    The classes overlap, so that coordinate descent would not get there in 2,000 iterations at the highest cost.
    """
    x, positive = unit_rows(X[:60]), Y[:60, 0] > 0
    wide, signs = np.c_[x, np.ones(60)], np.where(positive, 1, -1)
    weights = np.where(positive, 2, 1)

    def objective(w):
        gap = np.maximum(0, 1 - signs * (wide @ w))
        gradient = w - 2 * cost * (weights * gap * signs) @ wide
        return w @ w / 2 + cost * np.sum(weights * gap**2), gradient

    best = minimize(objective, np.zeros(7), jac=True, options={"gtol": 1e-10, "maxiter": 10_000}).x
    queries = unit_rows(X[60:])
    expected = np.c_[queries, np.ones(30)] @ best
    assert machine_scores(x, positive, cost, queries) == pytest.approx(expected, abs=2e-3)  # the solver's tolerance


def test_costs_and_precision_as_scikit_learn_finds_them():
    costs = (0.01, 0.1, 1.0, 10.0)
    numbers, rows, _ = svm(*PARTS, costs=costs)
    x, queries = unit_rows(PARTS[0]), unit_rows(PARTS[2])
    machine: Any = {"class_weight": {1: 2, -1: 1}, "dual": False}
    for c, row in enumerate(rows):
        y = np.where(PARTS[1][:, c] > 0, 1, -1)
        found = [
            cross_val_score(LinearSVC(C=cost, **machine), x, y, cv=3, scoring="average_precision").mean()
            for cost in costs
        ]
        assert row["cost"] == costs[int(np.argmax(found))]
        scores = LinearSVC(C=row["cost"], **machine).fit(x, y).decision_function(queries)
        # the area under the envelope is never below the steps
        assert row["average_precision"] >= average_precision_score(PARTS[3][:, c], scores) - 1e-12
        assert (row["train"], row["test"]) == (Y[:60, c].sum(), Y[60:, c].sum())
    assert numbers["map"] == pytest.approx(np.mean([row["average_precision"] for row in rows]))
    flattered, _, notes = svm(*PARTS, costs=costs, choose="test")
    assert flattered["map"] >= numbers["map"]
    assert "chosen on the test images" in notes[0]


def test_perfect_and_random_features():
    y = np.arange(60) % 3
    numbers, _, notes = svm(np.eye(3)[y], y, np.eye(3)[y], y, costs=(1.0, 10.0))
    assert (numbers["map"], numbers["map_11_point"], numbers["top1"]) == (1, 1, 1)
    assert notes == ()
    # features that say nothing: every score is equal, and AP is the share of positive images
    same = np.ones((60, 3))
    numbers, rows, _ = svm(same, y, same, y, costs=(1.0,))
    assert [row["average_precision"] for row in rows] == pytest.approx([1 / 3] * 3)
    assert numbers["top1"] == pytest.approx(1 / 3)


def test_images_that_do_not_count_train_as_negative_ones_and_leave_the_test():
    train, test = PARTS[1].copy(), PARTS[3].copy()
    train[train[:, 0] == 0, 0] = np.where(np.arange((train[:, 0] == 0).sum()) % 2, -1, 0)
    numbers, _, notes = svm(PARTS[0], train, PARTS[2], test, costs=(1.0,))
    assert numbers["map"] == svm(*PARTS, costs=(1.0,))[0]["map"]
    assert "negative examples in training" in notes[0]
    test[:10, 0] = -1
    assert svm(PARTS[0], train, PARTS[2], test, costs=(1.0,))[1][0]["test"] == PARTS[3][10:, 0].sum()


def test_rare_and_absent_classes_end_in_a_sentence():
    train, test = np.r_[np.zeros(30, int), np.ones(29, int), 2], np.r_[np.arange(30) % 4]
    _, rows, notes = svm(X[:60], train, X[60:], test, costs=(0.1, 1.0), class_names=["a", "b", "rare", "absent"])
    assert rows[2]["train"] == 1
    assert rows[2]["cost"] in (0.1, 1.0)
    assert notes[0].startswith("Fewer than 3 positive or negative training images for rare: the usual cost")
    assert notes[1] == "No positive or no negative training images for absent: their score is at chance level."
    assert rows[3]["average_precision"] == pytest.approx((test == 3).mean())
    # of an absent class no image can be right
    assert svm(X[:60], train, X[60:], np.full(30, 3), costs=(1.0,))[0]["top1"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({1: None}, "train: the images have no labels"),
        ({0: np.full((60, 6), np.nan)}, "train: the features of 60 of 60 labeled images are not finite"),
        ({1: np.zeros(60, int), 3: np.zeros(30, int)}, "train has 1 class"),
        ({1: np.zeros((60, 3), int)}, "train: none of the 60 images has a label"),
        ({3: np.zeros((30, 3), int)}, "test: none of the 30 images has a label"),
        ({3: np.zeros(30, int)}, "train and test differ: one has several labels per image"),
        ({2: np.ones((30, 5))}, "train has 6 features per image and test 5"),
    ],
)
def test_what_is_refused(change, words):
    parts = [change.get(k, part) for k, part in enumerate(PARTS)]
    with pytest.raises(ValueError, match=words):
        svm(*parts, costs=(1.0,))


def test_a_run_keeps_the_result_and_a_refused_one_leaves_nothing(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    common: dict[str, Any] = {"train": folders, "labels_from": "folders", "split": 0.25}
    with pytest.raises(ValueError, match=r"--costs 1,x: give vissl, openselfsup, or numbers"):
        api.evaluate("svm", tmp_path / "run", costs="1,x", **common)
    table = tmp_path / "none.csv"
    table.write_text("id,label\nkind0/0.png,a\n")
    with pytest.raises(ValueError, match="no label for 47 of 48 images"):
        api.evaluate("svm", tmp_path / "run", train=folders, labels_from=str(table))
    assert not list((tmp_path / "run").glob("evaluations/*.json"))
    result = api.evaluate("svm", tmp_path / "run", costs="1,10", **common)
    assert result["top1"] >= 0.5  # of four kinds
    assert [row["class"] for row in result.table] == ["kind0", "kind1", "kind2", "kind3"]
    assert len(list((tmp_path / "run/evaluations").glob("svm-*.json"))) == 1
