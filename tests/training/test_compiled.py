"""`--compile` changes the speed of a run and not its values, and leaves networks as they were."""

import json

import pytest
import torch

from selfcluster.models.backbones import make_backbone
from selfcluster.training.compiled import compiled


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["swav", "byol"])
def test_a_compiled_run_has_the_losses_of_any_other(tiny, tmp_path, method):
    for name, wanted in (("plain", False), ("compiled", True)):
        tiny(method, tmp_path / name, epochs=2, learning_rate=1e-4, compile=wanted)
    plain, fast = rows(tmp_path / "plain"), rows(tmp_path / "compiled")
    for a, b in zip(plain, fast, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_networks_are_compiled_for_training_alone_and_are_themselves_again(monkeypatch):
    calls = []

    def compile_(forward, dynamic):
        assert not dynamic
        return lambda *images: (calls.append("fast"), forward(*images))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    network = make_backbone("tiny_layout", channels=3, image_size=16)
    images = torch.rand(2, 3, 16, 16)
    with compiled(torch.nn.Sequential(network), True):
        network.train()(images)
        assert calls == ["fast"]
        network.eval()(images)
        with torch.no_grad():
            network.train()(images)
        assert calls == ["fast"]
    assert "forward" not in vars(network)
    network(images)
    with compiled(torch.nn.Sequential(network), False):
        network(images)
    assert calls == ["fast"]
