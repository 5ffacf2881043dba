"""Low-shot machines: what is drawn, by hand; the result by a second route; and what is refused."""

from typing import Any

import numpy as np
import pytest

from selfcluster import api, randomness
from selfcluster.evaluation.average_precision import class_precisions
from selfcluster.evaluation.one_vs_rest import machine_scores, unit_rows
from selfcluster.evaluation.protocols.low_shot import LowShotSettings, draw, low_shot

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(4), 30))
X = np.eye(4)[LABELS] + RNG.normal(size=(120, 4)) * 0.5
PARTS = (X[:80], LABELS[:80], X[80:], LABELS[80:])


def test_published_values():
    settings = LowShotSettings()
    assert (settings.shots, settings.samples) == ("1,2,4,8,16,32,64,96", 5)


def test_draws_by_hand():
    several = np.zeros((50, 3), int)
    several[:20, 0], several[10:40, 1], several[45:, 2] = 1, 1, 1
    several[:5, 2] = -1
    drawn = draw(several, 4, key=1)
    assert [(len(positive), len(negative)) for positive, negative in drawn] == [(4, 8)] * 3
    for c, (positive, negative) in enumerate(drawn):
        assert (several[positive, c] == 1).all()
        assert (several[negative, c] == 0).all()  # an image of -1 is not drawn
        assert len(set(positive)) == 4
        assert len(set(negative)) == 8
    several[25:45, 2] = 1
    # 30 images are not of class 0, of 20 the rest is known for class 1: more are not drawn
    assert [len(negative) for _, negative in draw(several, 18, key=1)] == [30, 20, 20]
    other = draw(several, 4, key=2)
    assert any(not np.array_equal(a, b) for first, second in zip(drawn, other) for a, b in zip(first, second))


def test_every_image_is_drawn_equally_often():
    labels = np.eye(2, dtype=int).repeat(10, axis=0)
    times = np.bincount(np.concatenate([draw(labels, 3, key)[0][0] for key in range(1000)]), minlength=20)
    assert np.abs(times[:10] - 300).max() < 5 * np.sqrt(1000 * 0.3 * 0.7)
    assert not times[10:].any()


def test_the_result_by_a_second_route():
    costs, samples, k = (0.1, 10.0), 3, 4
    numbers, rows, notes = low_shot(*PARTS, shots=(k,), samples=samples, costs=costs, seed=7)
    x, queries = unit_rows(PARTS[0]), unit_rows(PARTS[2])
    y, wanted = np.eye(4, dtype=int)[PARTS[1]], np.eye(4, dtype=int)[PARTS[3]]
    found = np.zeros((2, samples))
    for s in range(samples):
        drawn = draw(y, k, randomness.key(7, "low shot", k, s))
        for i, cost in enumerate(costs):
            ap = []
            for c, (positive, negative) in enumerate(drawn):
                both = np.r_[positive, negative]
                scores = machine_scores(x[both], y[both, c] > 0, cost, queries)
                ap.append(class_precisions(scores[:, None], wanted[:, [c]])[0])
            found[i, s] = np.mean(ap)
    best = found[found.mean(axis=1).argmax()]
    row = rows[0]
    assert (row["map"], row["deviation"]) == pytest.approx((best.mean(), best.std()))
    assert (row["least"], row["most"]) == pytest.approx((best.min(), best.max()))
    assert row["cost"] == costs[found.mean(axis=1).argmax()]
    assert numbers["map"] == row["map"]
    assert "as in the papers" in notes[0]
    assert low_shot(*PARTS, shots=(k,), samples=samples, costs=costs, seed=7)[0] == numbers


def test_more_images_help_and_perfect_features_are_perfect():
    _, rows, notes = low_shot(*PARTS, shots=(1, 8), costs=(1.0,))
    assert rows[1]["map"] > rows[0]["map"]
    assert rows[1]["top1"] > rows[0]["top1"] > 1 / 4
    assert notes == ()
    y = np.arange(40) % 4
    numbers, _, _ = low_shot(np.eye(4)[y], y, np.eye(4)[y], y, shots=(1,), costs=(1.0,))
    assert (numbers["map"], numbers["deviation"], numbers["top1"]) == (1, 0, 1)
    same = np.ones((40, 4))
    assert low_shot(same, y, same, y, shots=(2,), costs=(1.0,))[0]["map"] == pytest.approx(1 / 4)


def test_rare_and_absent_classes_end_in_a_sentence():
    train = np.where(PARTS[1] == 3, 0, PARTS[1])
    train[np.flatnonzero(train == 2)[1:]] = 0
    numbers, rows, notes = low_shot(X[:80], train, *PARTS[2:], costs=(1.0,), class_names=["a", "b", "rare", "absent"])
    assert [row["shots"] for row in rows] == [1]
    assert numbers["classes"] == 3
    assert notes[0] == "Shots above 1 were left out, because the class rare has 1 training image."
    assert notes[1] == "No training image of absent: their score is at chance level."
    with pytest.raises(ValueError, match=r"--shots 2,4: the class rare has 1 training images; give fewer shots"):
        low_shot(X[:80], train, *PARTS[2:], shots=(2, 4), costs=(1.0,), class_names=["a", "b", "rare", "absent"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({1: None}, "train: the images have no labels"),
        ({3: None}, "test: the images have no labels"),
        ({0: np.full((80, 4), np.nan)}, "train: the features of 80 of 80 labeled images are not finite"),
        ({1: np.zeros(80, int), 3: np.zeros(40, int)}, "train has 1 class"),
    ],
)
def test_what_is_refused(change, words):
    parts = [change.get(k, part) for k, part in enumerate(PARTS)]
    with pytest.raises(ValueError, match=words):
        low_shot(*parts, costs=(1.0,))


def test_a_run_keeps_the_result(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    common: dict[str, Any] = {"train": folders, "labels_from": "folders", "split": 0.25, "costs": "1"}
    with pytest.raises(ValueError, match="--shots 0: give whole numbers"):
        api.evaluate("low_shot", tmp_path / "run", shots="0", **common)
    assert not list((tmp_path / "run").glob("evaluations/*.json"))
    result = api.evaluate("low-shot", tmp_path / "run", shots="1,4", samples=2, **common)
    assert [row["shots"] for row in result.table] == [1, 4]
    assert len(list((tmp_path / "run/evaluations").glob("low_shot-*.json"))) == 1
