"""Ranking without labels: the measures are the ones defined elsewhere, ranks are by hand, the same images for all."""

import json

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from selfcluster import api
from selfcluster.evaluation import unlabeled
from selfcluster.evaluation.protocol import Result
from selfcluster.evaluation.protocols.unlabeled import ranked
from selfcluster.evaluation.ranking import MEASURES, mean_ranks, measures
from selfcluster.evaluation.unlabeled import Crops


def test_measures_of_features_that_are_known():
    """Four tight groups: the silhouette is scikit-learn's over every seed's clusters, and each crop finds its image."""
    rng = np.random.default_rng(0)
    center = np.repeat(np.eye(4, 6), 8, axis=0) + 0.05 * rng.standard_normal((32, 6))
    found = measures(Crops(center, np.stack([center, 2 * center])))
    labelings = unlabeled.clusterings(center, 4)
    assert found["k"] == 4
    assert found["retrieval"] == 1
    expected = np.mean([silhouette_score(center, each, metric="cosine") for each in labelings])
    assert found["silhouette"] == pytest.approx(expected, abs=1e-12)
    assert found["agreement"] == pytest.approx(1)
    s = np.linalg.svd(center, compute_uv=False)
    p = s / s.sum()
    assert found["rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    with pytest.raises(ValueError, match="7 images: at least 8"):
        measures(Crops(center[:7], center[None, :7]))


def test_ranks_by_hand():
    """Retrieval ranks 1 2.5 2.5 (a tie), agreement 3 2 1, silhouette 1 2 3 (NaN is worst), RankMe 2 3 1."""
    values = [(0.9, 0.1, 0.5, 20.0), (0.4, 0.2, 0.1, 10.0), (0.4, 0.3, float("nan"), 30.0)]
    rows = [dict(zip(MEASURES, row, strict=True)) for row in values]
    np.testing.assert_allclose(mean_ranks(rows), [(1 + 3 + 1 + 2) / 4, (2.5 + 2 + 2 + 3) / 4, (2.5 + 1 + 3 + 1) / 4])


def result(model, value, train="photos", images=10, **more):
    numbers = dict.fromkeys(MEASURES, value) | {"k": 2, "images": images}
    return Result("unlabeled", numbers, subject={"model": model, "train": train}, **more)


def test_the_best_comes_first_and_the_last_checkpoint_is_the_run():
    earlier, last = dict.fromkeys(MEASURES, 0.7) | {"step": 5}, dict.fromkeys(MEASURES, 0.2) | {"step": 9}
    found = ranked([result("a", 0.5), result("b", 0.2, table=(earlier, last))])
    assert [row["network"] for row in found.table] == ["b step 5", "a", "b"]
    assert [row["mean_rank"] for row in found.table] == [1, 2, 3]
    assert (found["best"], found["networks"]) == ("b step 5", 3)
    with pytest.raises(ValueError, match=r"different images \(10 of birds and 10 of photos\); name one set"):
        ranked([result("a", 0.5), result("b", 0.2, train="birds")])


def test_runs_are_ranked_and_keep_their_results(tmp_path, folders):
    from tests.conftest import TINY, TINY_SETTINGS

    runs = [tmp_path / name for name in ("rotnet", "swav")]
    for run in runs:
        api.train(run.name, folders, out=run, **TINY | TINY_SETTINGS[run.name] | {"epochs": 2})
    found = api.evaluate("unlabelled", runs, device="cpu")
    assert {row["network"] for row in found.table} >= {str(run) for run in runs}
    kept = json.loads(next((runs[0] / "evaluations").glob("unlabeled-*.json")).read_text())
    assert kept["table"][-1]["step"] == 6  # the last checkpoint is the exported network
    assert {name: kept["table"][-1][name] for name in MEASURES} == {name: kept["numbers"][name] for name in MEASURES}
    same = api.evaluate("unlabeled", runs[0], device="cpu")
    assert same["retrieval"] == kept["numbers"]["retrieval"]
    with pytest.raises(ValueError, match="two different runs"):
        api.evaluate("unlabeled", [runs[0], runs[0]])
    with pytest.raises(ValueError, match="evaluate knn takes one run, not 2; compare"):
        api.evaluate("knn", runs)
    with pytest.raises(ValueError, match="--layer layer1: unlabeled measures"):
        api.evaluate("unlabeled", runs[0], layer="layer1")
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace(f"data: {folders}", "data: elsewhere"))
    with pytest.raises(ValueError, match=rf"the runs have different images \({folders} and elsewhere\); name one set"):
        api.evaluate("unlabeled", runs)
