"""Health says what has collapsed, and only then."""

import math

import pytest
import torch

from selfcluster.training.health import SAMPLE, Health
from selfcluster.types import Output


def feed(health: Health, steps: int, loss: float, codes: torch.Tensor, features: torch.Tensor, first: int = 0):
    for step in range(first, first + steps):
        output = Output(torch.tensor(loss), features=features, codes=codes)
        health.see(step, {"loss": loss}, [output], sample=True)


def test_numbers_by_hand():
    health = Health(4, math.log(4), 0, 100)
    feed(health, 1, 1.0, torch.tensor([0, 0, 1, -1]), torch.eye(4))
    feed(health, 1, 3.0, torch.tensor([1, 0, 0, -1]), torch.eye(4), first=1)
    row = health.report()
    assert row["loss"] == 2.0
    assert row["used_codes"] == 2  # counts 4 and 2 of 6; -1 counts nowhere
    assert row["largest_share"] == pytest.approx(4 / 6)
    assert row["effective_clusters"] == pytest.approx(math.exp(-(4 / 6) * math.log(4 / 6) - (2 / 6) * math.log(2 / 6)))
    assert row["rankme"] == pytest.approx(4.0, rel=1e-3)
    assert row["chance_loss"] == math.log(4)
    assert "used_codes" not in health.report(), "counting starts anew"


def test_a_run_that_learns_is_left_alone():
    health = Health(10, math.log(10), 0, 1000)
    for part in range(5):
        feed(health, 100, 1.5, torch.arange(10), torch.randn(64, 16), first=100 * part)
        assert health.verdict(health.report()) is None


def test_row_45_loss_at_chance_is_said_after_its_patience_and_not_before_warm_up():
    health = Health(10, math.log(10), quiet_steps=100, total_steps=10_000, advice="Try a lower --epsilon.")  # 5 %: 500
    varied = torch.arange(10), torch.randn(64, 16)
    feed(health, 599, math.log(10) * 1.005, *varied)
    assert health.verdict(health.report()) is None
    feed(health, 1, math.log(10), *varied, first=599)
    words = health.verdict(health.report())
    assert "chance level 2.303 for 500 steps" in words
    assert "--epsilon" in words


def test_a_step_off_the_chance_level_starts_the_count_again():
    health = Health(10, math.log(10), 0, 1000)
    varied = torch.arange(10), torch.randn(64, 16)
    feed(health, 199, math.log(10), *varied)
    feed(health, 1, 2.0, *varied, first=199)
    feed(health, 199, math.log(10), *varied, first=200)
    assert health.verdict(health.report()) is None


def test_row_45_thin_features_twice_running():
    health = Health(10, None, 0, 1000)
    line = torch.randn(SAMPLE, 1) * torch.ones(1, 128)
    feed(health, 1, 0.5, torch.arange(10), line)
    assert health.verdict(health.report()) is None
    feed(health, 1, 0.5, torch.arange(10), line, first=1)
    assert "the features use only" in health.verdict(health.report())


def test_row_45_one_cluster_takes_all():
    health = Health(10, None, 0, 1000)
    codes = torch.zeros(100, dtype=torch.int64)
    feed(health, 1, 0.5, codes, torch.randn(64, 16))
    assert "100% of the images share one cluster" in health.verdict(health.report())


def test_row_45_a_handful_of_many_clusters_twice_running():
    """Two of 256 clusters: fewer than 2 % of them. Six are not, nor are two of 64."""
    varied = torch.randn(64, 16)
    for clusters, used, collapses in ((256, 2, True), (256, 6, False), (64, 2, False)):
        health = Health(clusters, None, 0, 1000, advice="Try centering.")
        for report, said in enumerate((False, collapses)):
            feed(health, 8, 1.0, torch.arange(64) % used, varied, first=8 * report)
            verdict = health.verdict(health.report())
            assert (verdict is not None) == said
        if collapses:
            assert verdict == "collapse: nearly all images share 2.0 of 256 clusters. Try centering."
    health = Health(256, None, 0, 1000)
    for report in range(3):  # a report of 64 images may not have seen more
        feed(health, 1, 1.0, torch.arange(64) % 2, varied, first=report)
        assert health.verdict(health.report()) is None


def test_state_survives_a_checkpoint():
    one, two = Health(10, math.log(10), 0, 1000), Health(10, math.log(10), 0, 1000)
    torch.manual_seed(0)
    features = torch.randn(40, 8)
    feed(one, 5, 2.3, torch.arange(10), features)
    two.load(one.state(), {k: v.clone() for k, v in one.tensors.items()})
    for health in (one, two):
        feed(health, 3, 2.31, torch.arange(5), features, first=5)
    assert one.report() == two.report()
    assert one.counts == two.counts


def test_a_chance_level_that_the_method_logs_counts_as_well():
    health = Health(0, None, 0, 1000)
    features = torch.randn(64, 16)
    for step in range(300):
        values = {"loss": 5.54, "chance_loss": 5.541, "gradient_norm": 1.0}
        health.see(step, values, [Output(torch.tensor(0.0), features=features)], sample=True)
    assert "chance level 5.541" in health.verdict(health.report())


def test_row_45_features_that_point_one_way_are_said_though_their_rank_is_not_low():
    health = Health(0, None, 0, 1000, advice="Keep the --predictor.")
    features = torch.randn(64, 16)
    for _ in range(2):
        for step in range(10):
            values = {"loss": 1.0, "spread": 0.07, "gradient_norm": 1.0}
            health.see(step, values, [Output(torch.tensor(0.0), features=features)], sample=True)
        row = health.report()
    assert row["rankme"] > 10
    assert "(spread 0.07; 0: all are equal)" in health.verdict(row)
    assert "--predictor" in health.verdict(row)
