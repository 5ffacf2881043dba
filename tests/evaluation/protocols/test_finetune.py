"""Fine-tuning: rates by hand, a frozen network against a probe in float64, ten crops, and mAP beside scikit-learn's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcluster import api, randomness
from selfcluster.data.loader import Loader
from selfcluster.data.sources import open_source
from selfcluster.evaluation.finetuning import Classifier, Recipe, fine_tune, predict, ten_crops
from selfcluster.evaluation.protocols.finetune import PRESETS, VOC_ALL, average_precisions
from selfcluster.training.load import load_network
from selfcluster.types import EpochPlan
from selfcluster.views.plans import ViewGroup, ViewPlan

FP32 = {"precision": "fp32", "device": "cpu", "workers": 1}


def test_factors_of_the_rates_by_hand():
    swav, voc, dino = PRESETS["swav"], PRESETS["voc"], PRESETS["dino"]
    assert [swav.factor(e * 7, 35 * 7) for e in (20, 21, 28)] == pytest.approx([1, 0.2, 0.04])  # 7 steps an epoch
    assert [swav.factor(e, 10) for e in (5, 6, 8)] == pytest.approx([1, 0.2, 0.04])  # a shorter run keeps the shares
    # 80,000 iterations, halved every 5,000; for ALL 150,000 and every 20,000
    assert [voc.factor(i, 80_000) for i in (4_999, 5_000, 79_999)] == pytest.approx([1, 0.5, 0.5**15])
    assert [VOC_ALL.factor(i, 150_000) for i in (19_999, 20_000, 149_999)] == pytest.approx([1, 0.5, 0.5**7])
    assert [replace(dino, epochs=10).factor(step, 100) for step in (0, 49)] == pytest.approx([1 / 50, 49 / 50 + 1 / 50])
    assert replace(dino, warmup_epochs=0).factor(50, 100) == pytest.approx(0.5)


def test_a_frozen_network_is_a_linear_probe_in_float64(folders):
    recipe = Recipe(epochs=3, trunk_rate=0.0, head_rate=2.0, batch=12, weight_decay=0.01, milestones=(2,))
    network = load_network("tiny_layout", 16)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    source = open_source(folders, labels_from="folders")
    targets = torch.as_tensor(source.labels)
    model, _ = fine_tune(network, source, targets, recipe, 3, FP32)
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())

    # the same crops, a float64 softmax regression by the equations, momentum 0.9
    generator = torch.Generator().manual_seed(randomness.key(3, "linear probe") >> 1)
    W = (torch.randn(4, network.module.num_features, generator=generator) * 0.01).double()
    b, speed_W, speed_b = torch.zeros(4).double(), torch.zeros_like(W), torch.zeros(4).double()
    loader = Loader(source, batch_size=12, seed=3, workers=1, **network.preprocessing.loader_arguments())
    plan = ViewPlan(groups=(ViewGroup(size=16),))
    for epoch in range(3):
        for batch in loader.batches(plan, EpochPlan(), epoch, 0, 4, epoch * 4):
            with torch.no_grad():
                x = network.module.eval()(batch.views[0]).double()
            y = torch.nn.functional.one_hot(targets[batch.index], 4).double()
            slope = ((x @ W.T + b).softmax(dim=1) - y) / len(x)
            rate = 2.0 * 12 / 256 * (0.1 if epoch == 2 else 1)
            speed_W = 0.9 * speed_W + slope.T @ x + 0.01 * W
            speed_b = 0.9 * speed_b + slope.sum(dim=0) + 0.01 * b
            W, b = W - rate * speed_W, b - rate * speed_b
    loader.close()
    torch.testing.assert_close(model.head.weight.detach().double(), W, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.head.bias.detach().double(), b, atol=1e-5, rtol=1e-4)


def test_only_the_named_layers_are_trained():
    def trained(network, tune):
        model = Classifier(network, 3, Recipe(epochs=1, trunk_rate=1.0, head_rate=1.0, tune=tune), 0).train()
        frozen = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.training]
        return {name for name, p in model.named_parameters() if p.requires_grad}, bool(frozen)

    alexnet = load_network("deepcluster_alexnet", 32)
    fully_connected = {f"trunk.{layer}.{kind}" for layer in ("fc6", "fc7") for kind in ("weight", "bias")}
    classifier = {"head.weight", "head.bias"}
    assert trained(alexnet, "fc") == (fully_connected | classifier, True)
    assert trained(alexnet, "head") == (classifier, True)
    names, frozen = trained(alexnet, "all")
    assert {"trunk.conv1.0.weight", "trunk.fc6.weight", "head.weight"} <= names
    assert not frozen
    with pytest.raises(ValueError, match=r"--tune fc: resnet18_small has no fully connected layers.*--tune all"):
        trained(load_network("resnet18", 16), "fc")


def test_ten_crops_of_a_numbered_image():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    crops = [crop[0, 0].tolist() for crop in ten_crops(image, 2)]
    assert crops[:2] == [[[0, 1], [4, 5]], [[1, 0], [5, 4]]]
    assert [crop[0][0] for crop in crops[::2]] == [0, 2, 8, 10, 5]


def test_ten_crops_average_probabilities(folders):
    recipe = Recipe(epochs=1, trunk_rate=0.0, head_rate=1.0, test_crops=10)
    source = open_source(folders, labels_from="folders")
    network = load_network("tiny_layout", 16)
    model = Classifier(network, 4, recipe, 0)
    _, scores = predict(model, network, source, recipe, FP32)
    assert scores.shape == (48, 4)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(48))
    _, plain = predict(model, network, source, replace(recipe, test_crops=1), FP32)
    assert not torch.allclose(plain.softmax(dim=1), scores, atol=1e-6)


def test_average_precision_by_hand_with_ties_against_the_positive():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.1, 0.3]])
    labels = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    first, tied, absent = average_precisions(scores, labels)
    assert first == pytest.approx((1 + 2 / 3) / 2)
    assert tied == pytest.approx(1 / 2)  # the positive ranks behind its equal
    assert np.isnan(absent)
    difficult = labels.clone()
    difficult[1, 0] = -1
    assert average_precisions(scores, difficult)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("preset", ["odc", "dino", "deepercluster"])
def test_a_network_learns_kinds_and_the_result_is_kept(preset, folders, tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    settings = {"preset": preset, "epochs": 12, "tune_batch": 12, "trunk_rate": 0.1, "head_rate": 1.0, **FP32}
    if preset == "dino":
        settings |= {"trunk_rate": 0.05, "head_rate": 0.05}
    result = api.evaluate("finetune", tmp_path / "run", train=folders, labels_from="folders", split=0.25, **settings)
    assert (result["classes"], result["n_train"], result["n_test"]) == (4, 36, 12)
    assert result["top1"] >= 0.7
    file = next((tmp_path / "run/evaluations").glob("finetune-*.json"))
    assert json.loads(file.read_text())["settings"]["preset"] == preset
    assert sum(row["images"] for row in result.table) == 12


def test_several_labels_an_image(folders, tmp_path):
    rows = ["path,left,top"]
    for file in sorted(folders.rglob("*.png")):
        kind = int(file.parent.name[-1])
        rows.append(f"{file},{int(kind in (1, 2))},{int(kind in (0, 2))}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    result = api.evaluate(
        "finetune", "tiny_layout", train=tmp_path / "list.csv", labels_from="columns:left,top", image_size=16,
        split=0.25, preset="voc", tune="all", epochs=15, tune_batch=12, trunk_rate=0.05, head_rate=0.05, **FP32,
    )  # fmt: skip
    assert result["mean_ap"] >= 0.8
    assert [row["class"] for row in result.table] == ["left", "top"]


def test_a_class_absent_from_train_is_an_error_and_settings_without_effect_are_refused(folders, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    for folder, names in ((two, ("kind0", "kind1")), (one, ("kind0",))):
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(folders / name)
    common = {"labels_from": "folders", "image_size": 16, "epochs": 1, "tune_batch": 12, **FP32}
    result = api.evaluate("finetune", "tiny_layout", train=two, test=folders, **common)
    assert (result["classes"], result["n_test"]) == (2, 48)
    assert result["top1"] <= 0.5  # half of the test images are of kinds that train lacks
    with pytest.raises(ValueError, match="--layer fc has no effect"):
        api.evaluate("finetune", "tiny_layout", train=two, layer="fc", **common)
    with pytest.raises(ValueError, match="--test-crops 3: choose 1 or 10"):
        api.evaluate("finetune", "tiny_layout", train=two, test_crops=3, **common)
    with pytest.raises(ValueError, match="train has 1 class: a classifier needs two"):
        api.evaluate("finetune", "tiny_layout", train=one, test=two, **common)
