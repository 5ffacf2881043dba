"""The SGD probe: presets and rates by hand, a probe that learns what can be learned, and every depth of a network."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from selfcluster import api
from selfcluster.evaluation.probing import Preset, Probe, Probes, rate_at
from selfcluster.evaluation.protocols.linear import PRESETS, LinearSettings
from selfcluster.models.pretrained import Network
from selfcluster.training.load import load_network

# epochs, rate for 256 images, weight decay, schedule, milestones, nesterov, norm, first weights, jitter, test crops
PUBLISHED = {
    "swav": (100, 0.3, 1e-6, "cosine", (), False, "none", "normal", 0, 1),
    "dino": (100, 0.001, 0, "cosine", (), False, "none", "normal", 0, 1),
    "moco": (100, 30, 0, "step", (60, 80), False, "none", "normal", 0, 1),
    "vissl": (28, 0.01, 5e-4, "step", (8, 16, 24), True, "affine", "normal", 0, 1),
    "deepcluster": (90, 0.01, 1e-4, "inverse_sqrt", (), False, "none", "default", 0, 10),
    "deepercluster": (100, 0.02, 1e-5, "inverse_sqrt", (), False, "none", "default", 0, 1),
    "odc": (90, 0.01, 1e-4, "step", (30, 60, 90), True, "plain", "normal", 0.4, 1),
}
FIELDS = (
    "epochs", "rate", "weight_decay", "schedule", "milestones", "nesterov", "norm", "start", "jitter", "test_crops",
)  # fmt: skip
VGG16_RATES = {1: 0.005, 2: 0.01, **dict.fromkeys((3, 4, 5, 6, 8, 9, 10), 0.03), **dict.fromkeys((7, 11, 12, 13), 0.02)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_value_of_a_preset(name):
    preset = PRESETS[name]
    assert tuple(getattr(preset, field) for field in FIELDS) == PUBLISHED[name]
    assert preset.tokens == (name == "dino")  # four class tokens of ViT-S, one and the patches of ViT-B
    # 224 of 256 pixels a side, or the usual random crop
    assert preset.area == ((0.765625, 0.765625) if name == "deepcluster" else (0.08, 1.0))
    rates = tuple(VGG16_RATES[layer] for layer in range(1, 14))
    assert preset.depth_rates == (rates if name == "deepercluster" else ())
    assert set(PRESETS) == set(PUBLISHED)
    assert LinearSettings().probe_batch == 256


def test_first_weights_and_norms_of_a_probe():
    shape = torch.Size([2, 50, 4, 4])
    normal, default = (Probe(shape, 30, PRESETS[name], 0).classifier for name in ("swav", "deepcluster"))
    assert float(normal.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not normal.bias.any()
    bound = 1 / math.sqrt(50 * 16)
    assert float(default.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(default.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    affine, plain = (Probe(shape, 30, PRESETS[name], 0).norm for name in ("vissl", "odc"))
    assert (len(list(affine.parameters())), len(list(plain.parameters()))) == (2, 0)  # 50 channels, not 800 features
    assert (affine.num_features, affine.momentum, affine.eps) == (50, 0.1, 1e-5)


def network_of(name, size) -> Network:
    return load_network(name, size)


def test_rates_of_depths_and_decay_of_norms():
    network = network_of("deepcluster_vgg16", 32)
    probes = Probes(network, "all", None, PRESETS["deepercluster"], 5, 0)
    assert len(probes.names) == 13
    groups = probes.groups(PRESETS["deepercluster"], None)
    assert [group["start"] for group in groups] == [VGG16_RATES[layer] for layer in range(1, 14)]
    assert {group["start"] for group in probes.groups(PRESETS["deepercluster"], 0.5)} == {0.5}
    groups = Probes(network, "all", 1, PRESETS["vissl"], 5, 0).groups(PRESETS["vissl"], None)
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]  # the norm's parameters do not decay


def test_dino_takes_four_class_tokens_of_a_small_transformer(monkeypatch):
    small = network_of("vit_tiny_patch8_64", 64)
    width = small.module.num_features
    assert [shape[1] for shape in Probes(small, None, None, PRESETS["dino"], 5, 0).shapes] == [4 * width]
    assert [shape[1] for shape in Probes(small, None, None, PRESETS["swav"], 5, 0).shapes] == [width]
    monkeypatch.setattr("selfcluster.evaluation.probing._WIDE", width - 1)  # wider than ViT-S: one token and patches
    assert [shape[1] for shape in Probes(small, None, None, PRESETS["dino"], 5, 0).shapes] == [2 * width]


def test_the_linear_layer_follows_its_update_from_the_equations():
    """One probe of random features, three steps of SGD with momentum, against NumPy in float64."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    preset = Preset(10, 0.5, 0.1, "cosine")
    probe = Probe(torch.Size([6, 4, 1, 1]), 3, preset, 0).double()
    weight = probe.classifier.weight.detach().numpy().copy()
    bias, momenta = np.zeros(3), [np.zeros_like(weight), np.zeros(3)]
    optimizer = torch.optim.SGD(probe.parameters(), 0.5, 0.9, weight_decay=0.1)
    for epoch in range(3):
        rate = rate_at(preset, 0.5, epoch, 10, 0)
        optimizer.param_groups[0]["lr"] = rate
        torch.nn.functional.cross_entropy(probe(x.double()[..., None, None]), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        scores = x.double().numpy() @ weight.T + bias
        share = np.exp(scores - scores.max(1, keepdims=True))
        error = (share / share.sum(1, keepdims=True) - np.eye(3)[y.numpy()]) / 6
        for k, (value, gradient) in enumerate(((weight, error.T @ x.double().numpy()), (bias, error.sum(0)))):
            momenta[k] = 0.9 * momenta[k] + gradient + 0.1 * value
            value -= rate * momenta[k]
    assert probe.classifier.weight.detach().numpy() == pytest.approx(weight, abs=1e-12)
    assert probe.classifier.bias.detach().numpy() == pytest.approx(bias, abs=1e-12)


def test_every_depth_is_probed_in_one_pass(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    common: dict[str, Any] = {"train": folders, "labels_from": "folders", "split": 0.25, "precision": "fp32"}
    common |= {"epochs": 5, "probe_batch": 12, "learning_rate": 2.0}
    result = api.evaluate("linear", tmp_path / "run", layer="all", **common)
    assert [row["layer"] for row in result.table] == [f"layer{n}" for n in range(1, 6)]
    assert result["top1"] == max(row["top1"] for row in result.table) >= 0.5
    assert result["best_layer"] in [row["layer"] for row in result.table if row["top1"] == result["top1"]]
    assert "chosen on the test images" in result.notes[1]
    # a depth does not depend on which others are probed beside it
    last = api.evaluate("linear", tmp_path / "run", layer="all", depths=2, **common)
    assert list(last.table) == list(result.table[3:])
    with pytest.raises(ValueError, match="--depths 2 needs --layer all"):
        api.evaluate("linear", tmp_path / "run", depths=2, **common)
    with pytest.raises(ValueError, match="--test-crops 3: choose 1 or 10"):
        api.evaluate("linear", tmp_path / "run", test_crops=3, **common)
    # the page holds the curve over the depths
    text = api.report(tmp_path / "run").read_text("utf-8")
    assert "top1 by layer" in text
    assert all(f"<td>layer{n}</td>" in text for n in range(1, 6))


def test_ten_crops_on_the_test_images(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    common: dict[str, Any] = {"train": folders, "labels_from": "folders", "split": 0.25, "precision": "fp32"}
    common |= {"epochs": 8, "probe_batch": 12, "learning_rate": 2.0}
    ten = api.evaluate("linear", tmp_path / "run", preset="deepcluster", **common)
    one = api.evaluate("linear", tmp_path / "run", preset="deepcluster", test_crops=1, **common)
    assert ten["loss"] == one["loss"]  # the training is the same
    assert ten["top1"] >= 0.5


def test_what_is_refused(folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    for name, label in (("one", "same"), ("few", "")):
        rows = "".join(f"kind{i % 4}/{i}.png,{label}\n" for i in range(48))
        (tmp_path / f"{name}.csv").write_text(f"id,label\n{rows}")
    for labels_from, words in (
        (str(tmp_path / "one.csv"), "train has 1 class"),
        (str(tmp_path / "few.csv"), "every label is missing"),
        (f"tags:{tmp_path}/one.csv", "one label per image, and these images have several"),
    ):
        with pytest.raises(ValueError, match=words):
            api.evaluate("linear", tmp_path / "run", train=folders, labels_from=labels_from, epochs=1)
    with pytest.raises(ValueError, match="not finite after 2 epochs; try a lower --learning-rate"):
        api.evaluate("linear", tmp_path / "run", train=folders, epochs=2, learning_rate=1e38, precision="fp32")
    assert not list((tmp_path / "run").glob("evaluations/*.json"))


def test_rates_by_hand():
    swav, moco, deepcluster, vissl = (PRESETS[name] for name in ("swav", "moco", "deepcluster", "vissl"))
    assert rate_at(swav, 0.3, 0, 100, 0) == 0.3
    assert rate_at(swav, 0.3, 50, 100, 7) == pytest.approx(0.15)
    assert [rate_at(moco, 30.0, e, 100, 0) for e in (59, 60, 80)] == pytest.approx([30.0, 3.0, 0.3])
    assert rate_at(moco, 30.0, 6, 10, 0) == pytest.approx(3.0)  # a shorter run keeps the shares
    assert rate_at(deepcluster, 0.01, 3, 90, 100) == pytest.approx(0.01 / math.sqrt(1 + 0.01 * 1e-4 * 100))
    assert [rate_at(vissl, 0.01, e, 28, 0) for e in (7, 8, 16, 24)] == pytest.approx([0.01, 0.001, 1e-4, 1e-5])


@pytest.mark.parametrize("preset", ["swav", "vissl", "odc"])
def test_kinds_that_differ_in_layout_are_told_apart_and_results_are_kept(preset, tiny, tmp_path, pictures):
    tiny("swav", tmp_path / "run")
    folder = tmp_path / "images"
    from PIL import Image

    for i, picture in enumerate(pictures):
        (folder / f"kind{i % 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"kind{i % 4}" / f"{i}.png")
    settings = {"preset": preset, "epochs": 8, "probe_batch": 12, "learning_rate": 2.0}
    result = api.evaluate("linear", tmp_path / "run", train=folder, labels_from="folders", split=0.25, **settings)
    assert result["classes"] == 4
    assert result["n_train"] + result["n_test"] == 48
    assert result["top1"] >= 0.5  # of four kinds
    assert np.isfinite(result["loss"])
    assert len(list((tmp_path / "run/evaluations").glob("linear-*.json"))) == 1
    again = api.evaluate("linear", tmp_path / "run", train=folder, labels_from="folders", split=0.25, **settings)
    assert again.numbers == result.numbers
