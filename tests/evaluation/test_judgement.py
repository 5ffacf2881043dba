"""What a run hands over is the better of start and end, by a rule that knows no labels; both networks are kept."""

import json

import numpy as np
import pytest
import torch

from selfcluster.evaluation import judgement
from selfcluster.evaluation.judgement import decide
from selfcluster.evaluation.unlabeled import Crops, measure
from selfcluster.models.backbones import load_backbone, make_backbone, save_backbone
from selfcluster.runs.folder import read_metrics, read_status
from selfcluster.runs.tables import EMBEDDINGS, read_embeddings
from selfcluster.training.load import kept_other, own_clusters, projected


@pytest.fixture
def start(tmp_path) -> str:
    torch.manual_seed(3)
    module = make_backbone("tiny_layout", channels=3, image_size=16)
    save_backbone(tmp_path / "network", module, (0.5,) * 3, (0.5,) * 3, 16)
    return str(tmp_path / "network")


def weights(folder):
    return load_backbone(folder)[0].state_dict()


def same(first, second) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("verdict", ["worse", "unclear", "better"])
def test_the_better_network_is_handed_over(tiny, tmp_path, start, monkeypatch, verdict):
    monkeypatch.setattr(judgement, "decide", lambda *networks: (verdict, "as the test says"))
    run = tmp_path / "run"
    summary = tiny("swav", run, init=start)
    better = verdict == "better"
    assert summary["judgement"]["kept"] == ("half" if better else "start")
    assert kept_other(run)
    first, last, kept = weights(run / "start"), weights(run / "end"), weights(run)
    assert same(first, weights(start))
    assert not same(last, first)  # the trained network is not lost
    expected = {name: (first[name] + last[name]) / 2 if last[name].is_floating_point() else last[name] for name in last}
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, expected[name] if better else first[name])
    vectors = read_embeddings(run / EMBEDDINGS).vectors
    assert np.array_equal(projected(run, vectors), vectors)  # the method's head belongs to the other network
    assert own_clusters(run, vectors)[0].max() < len(vectors)
    stored = json.loads((run / "status.json").read_text())["summary"]["judgement"]
    assert stored["start"]["retrieval"] >= 0
    assert stored["end"]["start_overlap"] <= 1
    assert "knn" not in stored["start"]  # no labels were given


def test_embeddings_are_the_kept_networks(tiny, tmp_path, start):
    tiny("byol", tmp_path / "kept", init=start, keep="start", epochs=1)
    tiny("byol", tmp_path / "still", init=start, learning_rate=0.0, epochs=1, keep="end", freeze_norm="statistics")
    kept, still = (read_embeddings(tmp_path / name / EMBEDDINGS).vectors for name in ("kept", "still"))
    # a target network that begins as the start and a rate of 0: the end is the start
    assert np.allclose(kept, still, atol=1e-5)


def test_without_init_the_end_is_kept_and_the_comparison_is_told(tiny, tmp_path):
    summary = tiny("swav", tmp_path / "run")
    assert summary["judgement"]["kept"] == "end"
    assert summary["judgement"]["better"] in (True, False)
    assert not (tmp_path / "run/start/backbone.safetensors").exists()
    for keep in ("start", "half"):
        with pytest.raises(ValueError, match=f"--keep {keep} needs --init: without it the run stores no start network"):
            tiny("swav", tmp_path / "other", keep=keep)
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_compares_with_the_same_start(tiny, tmp_path, start, monkeypatch):
    from selfcluster.methods import METHODS

    whole = tiny("swav", tmp_path / "whole", init=start)
    end, seen = METHODS["swav"].on_step_end, []

    def stopped(self, progress, outputs):
        end(self, progress, outputs)
        seen.append(progress.step)
        if progress.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["swav"], "on_step_end", stopped)
        with pytest.raises(KeyboardInterrupt):
            tiny("swav", tmp_path / "cut", init=start)
    assert read_status(tmp_path / "cut")["state"] == "preempted"
    again = tiny("swav", tmp_path / "cut", init=start)
    assert again["judgement"] == whole["judgement"]


def test_every_epoch_is_measured_where_asked(tiny, tmp_path):
    tiny("swav", tmp_path / "run", judge_every=1, epochs=2)
    rows = read_metrics(tmp_path / "run")
    measured = [row for row in rows if "judge_retrieval" in row]
    assert [row["epoch"] for row in measured] == [0, 1]
    assert 0 <= measured[0]["judge_start_overlap"] <= 1


def test_no_comparison_where_none_is_wanted(tiny, tmp_path):
    assert "judgement" not in tiny("swav", tmp_path / "run", judge_sample=0, epochs=1)
    assert not (tmp_path / "run/start").exists()


def test_without_a_comparison_a_start_network_is_kept_unless_the_user_chooses(tiny, tmp_path, start, monkeypatch):
    """Too few images to compare, or none wanted: training may not replace the start unseen."""
    monkeypatch.setattr(judgement, "_FEWEST", 10**6)
    first = weights(start)
    for keep, same_as_first in ((None, True), ("best", True), ("start", True), ("half", False), ("end", False)):
        run = tmp_path / f"run-{keep}"
        summary = tiny("swav", run, init=start, keep=keep, epochs=1)
        assert summary["judgement"]["kept"] == (keep if keep in ("half", "end") else "start")
        assert summary["judgement"]["verdict"] is None
        assert summary["judgement"]["reason"].endswith("are fewer than 1000000, so nothing was compared")
        assert same(first, weights(run)) == same_as_first
        assert same(first, weights(run / "start"))
        assert (run / "end").exists() == (keep != "end")
    with pytest.raises(ValueError, match=r"--judge-sample 0: .* --keep start, half or end"):
        tiny("swav", tmp_path / "none", init=start, judge_sample=0)
    assert not (tmp_path / "none").exists()
    summary = tiny("swav", tmp_path / "end", init=start, judge_sample=0, keep="end", epochs=1)
    assert summary["judgement"]["kept"] == "end"
    assert summary["judgement"]["reason"] == "--judge-sample is 0, so nothing was compared"


def views(hits: list[int], small: list[int]) -> Crops:
    """Features by which image i finds its crop, and its smaller crop, where the lists say 1."""
    n = len(hits)
    center = np.eye(n, n + 1)
    elsewhere = np.zeros(n + 1)
    elsewhere[n] = 1.0
    crop, little = (np.where(np.array(found)[:, None] == 1, center, elsewhere) for found in (hits, small))
    return Crops(center, crop[None], little[None])


@pytest.mark.parametrize(
    ("before", "after", "small_before", "small_after", "pretrained", "verdict"),
    [
        (50, 70, 40, 50, True, "better"),
        (50, 70, 50, 40, True, "worse"),  # the crops that training did not aim at were lost
        (50, 70, 40, 40, True, "unclear"),  # the measures disagree
        (50, 52, 40, 50, True, "unclear"),  # 2 of 100 images: within the noise
        (50, 50, 40, 40, True, "unclear"),  # no difference is no gain
        (70, 50, 40, 50, True, "worse"),
        (50, 70, 50, 40, False, "better"),  # an untrained network knows nothing that could be lost
    ],
)
def test_the_rule(before, after, small_before, small_after, pretrained, verdict):
    first, last = (
        views([1] * large + [0] * (100 - large), [1] * small + [0] * (100 - small))
        for large, small in ((before, small_before), (after, small_after))
    )
    found, reason = decide(first, last, pretrained)
    assert found == verdict
    assert f"start network {before / 100:.1%}, trained network {after / 100:.1%} (" in reason


def test_without_given_weights_best_is_the_end(tiny, tmp_path):
    assert tiny("swav", tmp_path / "run", keep="best", epochs=1)["judgement"]["kept"] == "end"


def test_half_way_may_be_asked_for(tiny, tmp_path, start):
    summary = tiny("swav", tmp_path / "run", init=start, keep="half", epochs=1)
    assert summary["judgement"]["kept"] == summary["judgement"]["compared"] == "half"
    assert {"start", "half", "end"} <= summary["judgement"].keys()


def test_labels_add_a_number_and_decide_nothing(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8))
    sample = Crops(x, x + 0.3 * rng.standard_normal((60, 8)))
    plain, labeled = measure(sample), measure(sample, labels=rng.integers(0, 3, 60))
    assert "knn" in labeled
    assert plain == {name: value for name, value in labeled.items() if name != "knn"}
