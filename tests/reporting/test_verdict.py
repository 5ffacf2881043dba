"""Health in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from selfcluster.reporting.verdict import judge
from selfcluster.runs.contents import read_contents
from tests.reporting.folders import make_run, write_clusters

IDS = [f"{i:02}" for i in range(30)]


def with_losses(tmp_path, losses):
    run = make_run(tmp_path / "run", IDS)
    rows = [{"step": i, "loss": loss, "chance_loss": float(np.log(30))} for i, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return read_contents(run)


def test_without_a_comparison_it_says_what_was_checked(tmp_path):
    verdict = judge(read_contents(make_run(tmp_path / "run", IDS)), rank=4.0)
    assert (verdict.level, verdict.headline) == ("good", "No collapse was seen")
    assert len(verdict.reasons) == 4
    assert "was not compared" in verdict.reasons[-1]


def judged(tmp_path, init="starter", **changes):
    """The verdict on a run whose comparison with its start came out as `changes` say."""
    run = make_run(tmp_path / "run", IDS)
    with (run / "config.yaml").open("a") as file:
        file.write(f"init: {init}\n" if init else "init: null\n")
    judgement = {"images": 30, "kept": "end", "compared": "end", "verdict": "better", "better": True}
    judgement |= {"start": {"retrieval": 0.8, "by_color": 0.05}, "end": {"retrieval": 0.85, "by_color": 0.05}}
    status = {"state": "finished", "summary": {"judgement": judgement | changes}}
    (run / "status.json").write_text(json.dumps(status))
    return judge(read_contents(run), rank=4.0)


def test_better_than_the_start(tmp_path):
    verdict = judged(tmp_path)
    assert (verdict.level, verdict.headline) == (
        "good",
        "Better than the start network: 85.0% of images matched with their own crops, 80.0% before",
    )
    assert any("85.0% of the searches" in reason and "80.0% before" in reason for reason in verdict.reasons)


def test_the_crops_that_decided_are_named(tmp_path):
    start, end = {"retrieval": 0.95, "small_retrieval": 0.678}, {"retrieval": 0.949, "small_retrieval": 0.652}
    verdict = judged(tmp_path, better=False, verdict="worse", kept="start", start=start, end=end)
    assert (
        "in 94.9% of the searches (95.0% before), and with a smaller crop in 65.2% (67.8% before)"
        in (verdict.reasons[0])
    )


def test_the_network_half_way_is_named(tmp_path):
    verdict = judged(tmp_path, kept="half", compared="half", half={"retrieval": 0.9})
    assert any("mean of start and trained weights" in r and "90.0%" in r for r in verdict.reasons)


@pytest.mark.parametrize("kept", ["start", "end"])
@pytest.mark.parametrize(
    ("outcome", "headline"),
    [("worse", "Worse than the start network"), ("unclear", "No clear difference from the start network")],
)
def test_not_better_than_the_start(tmp_path, kept, outcome, headline):
    end = {"retrieval": 0.7, "by_color": 0.05}
    verdict = judged(tmp_path, better=False, verdict=outcome, kept=kept, end=end)
    assert (verdict.level, verdict.headline) == ("look", headline)
    assert ("so the start network was kept" in verdict.reasons[0]) is (kept == "start")


@pytest.mark.parametrize(
    ("init", "before", "after", "follows"),
    [
        ("starter", 0.05, 0.3, True),  # training made it so
        ("starter", 0.4, 0.4, False),  # stained cells: color is content, and training changed nothing
        ("starter", 0.05, 0.15, False),  # little
        (None, 0.24, 0.24, True),  # no better than an untrained network
        (None, 0.4, 0.3, False),  # content was learned
    ],
)
def test_clusters_that_follow_color(tmp_path, init, before, after, follows):
    start, end = {"retrieval": 0.8, "by_color": before}, {"retrieval": 0.85, "by_color": after}
    verdict = judged(tmp_path, init, start=start, end=end)
    assert (verdict.headline == "The clusters agree with color") is follows
    assert verdict.level == ("look" if follows else "good")
    # the kept network counts, and not the one that was given up
    kept = judged(tmp_path, init, kept="start", better=False, start=start, end=end)
    assert kept.headline == "Worse than the start network"


def test_nothing_known_is_unknown(tmp_path):
    assert judge(read_contents(tmp_path)).level == "unknown"


@pytest.mark.parametrize(("end", "level"), [(0.98, "good"), (0.991, "bad"), (1.0, "bad"), (1.2, "bad")])
def test_a_loss_at_chance_is_bad(tmp_path, end, level):
    verdict = judge(with_losses(tmp_path, [end * np.log(30)] * 20))
    assert verdict.level == level
    assert level == "good" or "the training task was not learned" in verdict.reasons[0]


def test_the_loss_of_an_unfinished_run_has_not_ended(tmp_path):
    contents = with_losses(tmp_path, [1.2 * np.log(30)] * 20)
    contents.status["state"] = "preempted"
    verdict = judge(contents)
    assert verdict.level == "look"
    assert not any("not learned" in reason or "ended at" in reason for reason in verdict.reasons)
    assert any("At the last logged step the loss was 4.08" in reason for reason in verdict.reasons)


def test_a_loss_that_is_not_finite(tmp_path):
    assert judge(with_losses(tmp_path, [2.0, None])).level == "bad"
    assert judge(with_losses(tmp_path, [None] + [2.0] * 40)).level == "look"


@pytest.mark.parametrize(("rank", "level"), [(1.2, "bad"), (3.0, "good")])
def test_thin_features_are_bad(tmp_path, rank, level):
    assert judge(read_contents(make_run(tmp_path / "run", IDS)), rank).level == level


def test_few_images_are_no_collapse(tmp_path):
    contents = read_contents(make_run(tmp_path / "run", IDS))
    contents.vectors.dim = 2048
    assert judge(contents, rank=30.0, rows=40).level == "good"
    assert judge(contents, rank=30.0).level == "bad"


@pytest.mark.parametrize(
    ("cluster", "level"),
    [([0] * 30, "bad"), ([-1] * 30, "bad"), ([0] * 16 + list(range(14)), "look"), ([0] * 15 + [1] * 15, "good")],
)
def test_how_the_images_spread(tmp_path, cluster, level):
    run = make_run(tmp_path / "run", IDS)
    write_clusters(run / "clusters.parquet", IDS, cluster, np.zeros(30))
    assert judge(read_contents(run)).level == level


@pytest.mark.parametrize(
    ("state", "level"), [("finished", "good"), ("running", "look"), ("preempted", "look"), ("failed", "bad")]
)
def test_how_the_run_ended(tmp_path, state, level):
    run = make_run(tmp_path / "run", IDS)
    (run / "status.json").write_text(json.dumps({"state": state, "message": "step 7"}))
    verdict = judge(read_contents(run))
    assert verdict.level == level
    assert level == "good" or "step 7" in verdict.reasons[0]


def test_a_folder_without_training_says_so(tmp_path):
    run = make_run(tmp_path / "run", [f"{i}.jpg" for i in range(30)])
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").write_text("model: starter\ndata: photos\nabout: {}\n")
    contents = read_contents(run)
    assert not contents.missing
    assert "Nothing was trained" in judge(contents, rank=5.0).reasons[-1]
