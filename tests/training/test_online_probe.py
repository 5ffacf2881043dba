"""The online probe: it changes nothing of the run, follows its equations, resumes exactly, and learns kinds."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from selfcluster import api
from selfcluster.data.errors import LabelsError
from selfcluster.runs.checkpoint import load_newest
from selfcluster.training.online_probe import OnlineProbe

TIMINGS = ("images_per_second", "seconds", "probe_accuracy")


class Watched(torch.nn.Module):
    """A method whose backbone halves what it sees, and sees a second view and a teacher's pass, too."""

    def __init__(self, width=3):
        super().__init__()
        self.backbone: Any = torch.nn.Linear(width, width, bias=False)
        torch.nn.init.eye_(self.backbone.weight).data.mul_(0.5)
        self.backbone.num_features = width

    def final_relu(self, features):
        return features

    def forward(self, batch, progress=None):
        return self.backbone(torch.cat(batch.views)) + self.backbone(-torch.cat(batch.views))


def batch_of(x, index) -> Any:
    return SimpleNamespace(views=[x, 10 * x], index=torch.as_tensor(index))


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["swav", "deepcluster", "dino", "jigsaw", "byol"])
def test_losses_and_weights_are_equal_with_and_without_it(name, tiny, kinds, tmp_path):
    shape = {"image_size": 24} if name == "jigsaw" else {}
    tiny(name, tmp_path / "with", probe_labels=kinds, **shape)
    tiny(name, tmp_path / "without", **shape)
    plain = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows_of(tmp_path / "with")]
    assert plain == [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows_of(tmp_path / "without")]
    assert all(0 <= row["probe_accuracy"] <= 1 for row in rows_of(tmp_path / "with"))
    first, second = (load_newest(tmp_path / run / "checkpoints")[0] for run in ("with", "without"))
    assert first is not None
    assert second is not None
    own = {k: v for k, v in first.tensors.items() if not k.startswith("probe.")}
    assert own.keys() == second.tensors.keys() != first.tensors.keys()
    assert all(torch.equal(own[key], value) for key, value in second.tensors.items())


def test_three_updates_from_the_equations():
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 0, 1, 2, -1, 2, 0, 1, 2] * 2)
    method = Watched()
    probe = OnlineProbe(cast(Any, method), labels, torch.device("cpu"), seed=1)
    held = probe.held_out.numpy()
    assert held.sum() == round(0.2 * (labels >= 0).sum())
    assert not held[labels < 0].any()
    weight, bias, speeds = np.zeros((3, 3)), np.zeros(3), [np.zeros((3, 3)), np.zeros(3)]
    hits = 0
    for _ in range(3):
        x = rng.normal(size=(20, 3))
        method(batch_of(torch.tensor(x, dtype=torch.float32), np.arange(20)))
        probe.learn(torch.arange(20))
        z = 0.5 * x  # the first view of the first pass
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) / np.sqrt(3)
        scores = z @ weight.T + bias
        hits += int((scores.argmax(1) == labels)[held].sum())
        share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        trains = (labels >= 0) & ~held
        error = (share - np.eye(3)[labels])[trains] / trains.sum()
        for k, (value, gradient) in enumerate(((weight, error.T @ z[trains]), (bias, error.sum(0)))):
            speeds[k] = 0.9 * speeds[k] + gradient
            value -= speeds[k]
    assert probe.tensors["weight"].numpy() == pytest.approx(weight, abs=1e-5)
    assert probe.tensors["bias"].numpy() == pytest.approx(bias, abs=1e-5)
    assert probe.report() == {"probe_accuracy": hits / (3 * held.sum())}
    assert probe.report() == {}


def test_it_learns_what_the_features_show_and_chance_where_they_show_nothing():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    for signal, low, high in ((1.0, 0.99, 1.0), (0.0, 0.15, 0.35)):
        method = Watched(4)
        probe = OnlineProbe(cast(Any, method), labels, torch.device("cpu"))
        for step in range(40):
            index = rng.permutation(400)[:100]
            x = 100 * (signal * np.eye(4)[labels[index]] + 0.05 * rng.normal(size=(100, 4)))
            method(batch_of(torch.tensor(x, dtype=torch.float32), index))
            probe.learn(torch.as_tensor(index))
            if step == 19:
                probe.report()
        assert low <= probe.report()["probe_accuracy"] <= high


def test_features_that_are_not_finite_count_as_errors_and_do_not_reach_the_weights():
    labels = np.arange(20) % 2
    method = Watched()
    probe = OnlineProbe(cast(Any, method), labels, torch.device("cpu"))
    method(batch_of(torch.full((20, 3), float("nan")), np.arange(20)))
    probe.learn(torch.arange(20))
    assert all(tensor.isfinite().all() for tensor in probe.tensors.values())
    assert probe.report() == {"probe_accuracy": 0.0}


def test_an_interrupted_run_has_the_same_accuracy(tiny, kinds, tmp_path, monkeypatch):
    tiny("swav", tmp_path / "whole", probe_labels=kinds, checkpoint_every=2)
    import selfcluster.runs.checkpoint as checkpoint

    save, count = checkpoint.save, [0]

    def failing(*given, **named):
        save(*given, **named)
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            tiny("swav", tmp_path / "cut", probe_labels=kinds, checkpoint_every=2)
    tiny("swav", tmp_path / "cut", checkpoint_every=2)  # the labels are those of the run
    whole, cut = ([row["probe_accuracy"] for row in rows_of(tmp_path / run)] for run in ("whole", "cut"))
    assert whole == cut


def test_bad_labels_are_refused_before_a_folder_is_made(tiny, pictures, tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"{i:02d}" for i in range(48)]
    for text, words in (
        ("".join(f"{name},one\n" for name in rows), "48 of 48 images have a label, of 1 class; a classifier needs two"),
        ("".join(f"{name},\n" for name in rows), "every label is missing"),
        ("00,a\n", "has no label for 47 of 48 images"),
    ):
        table.write_text("id,label\n" + text)
        with pytest.raises(LabelsError, match=words):
            tiny("swav", tmp_path / "run", probe_labels=str(table))
    table.write_text("id,label\n" + "".join(f"{name},a;b\n" for name in rows))
    with pytest.raises(LabelsError, match="takes one label per image, and these images have several"):
        tiny("swav", tmp_path / "run", probe_labels=f"tags:{table}")
    with pytest.raises(LabelsError, match="--probe-labels folders: cannot read labels from 'folders'"):
        tiny("swav", tmp_path / "run", probe_labels="folders")
    assert not (tmp_path / "run").exists()


def test_the_page_shows_it(tiny, kinds, tmp_path):
    tiny("swav", tmp_path / "run", probe_labels=kinds)
    assert "Online probe" in api.report(tmp_path / "run").read_text("utf-8")
