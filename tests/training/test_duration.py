"""Timing a step changes nothing, and a run of so many minutes gets the steps that fit."""

import pytest
import torch
import yaml

from selfcluster import api
from selfcluster.training import duration
from selfcluster.training.duration import in_words, spend
from selfcluster.training.loop import LoopSettings, planned_steps
from selfcluster.types import Training
from tests.conftest import TINY, TINY_SETTINGS
from tests.methods.test_contract import assert_same_run


def test_as_many_steps_as_fit():
    config = {"epochs": 20.0, "warmup_epochs": 1.0}
    loop = LoopSettings(training=Training(epochs=20, warmup_epochs=1.0, batch_size=8))
    loop = spend(2.0, 0.5, config, loop, per_epoch=60)
    assert planned_steps(loop, 60) == 240
    assert config == {"epochs": 4.0, "warmup_epochs": pytest.approx(0.4)}
    assert planned_steps(spend(1e-6, 0.5, config, loop, 60), 60) == 1


@pytest.mark.parametrize("method", ["swav", "deepcluster", "byol", "odc", "moco_v2", "npid", "sela_v2"])
def test_timing_a_step_changes_nothing(tiny, tmp_path, monkeypatch, method):
    tiny(method, tmp_path / "timed")
    monkeypatch.setattr(duration, "seconds_per_step", lambda *arguments: None)
    tiny(method, tmp_path / "plain")
    assert_same_run(tmp_path / "timed", tmp_path / "plain")


def test_minutes_set_the_length_once(tiny, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(duration, "seconds_per_step", lambda *arguments: 6.0)
    settings = {name: value for name, value in (TINY | TINY_SETTINGS["swav"]).items() if name != "epochs"}
    first = api.train("swav", pictures, out=tmp_path / "run", minutes=0.4, **settings)
    assert first["steps"] == 4
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["minutes"] == 0.4
    with pytest.raises(ValueError, match="--minutes and --images-seen"):
        api.train("swav", pictures, out=tmp_path / "other", minutes=1, images_seen=9, **settings)
    with pytest.raises(ValueError, match="--minutes and --epochs both set the length"):
        tiny("swav", tmp_path / "other", minutes=1, epochs=2)


def test_words():
    assert [in_words(s) for s in (50, 1000, 40_000)] == ["50 s", "17 min", "11.1 h"]
    assert torch.is_grad_enabled()
