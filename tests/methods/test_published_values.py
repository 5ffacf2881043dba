"""Published numbers of the methods that the papers here compare with: defaults, rates by epoch, and views."""

import pytest

from selfcluster.methods import METHODS
from selfcluster.training.optim import learning_rate_at
from selfcluster.types import Progress
from selfcluster.views.augmentations import plan_from_crops

# of the papers, else of the released code (lemniscate, moco, deepmind-research/byol, vissl)
SETTINGS = {
    "npid": {"dim": 128, "hidden": 0, "temperature": 0.07, "num_negatives": 4096, "memory_momentum": 0.5},
    "moco_v2": {"dim": 128, "hidden": 2048, "temperature": 0.2, "queue_length": 65536, "teacher_momentum": 0.999},
    "byol": {"dim": 256, "hidden": 4096, "predictor": True, "batch_norm": True, "teacher_momentum": 0.996},
    "clusterfit": {"num_prototypes": 16000, "kmeans_iterations": 50, "distill_weight": 0.75, "distill_temperature": 20},
}
TRAINING = {
    "npid": {"epochs": 200, "batch_size": 256, "weight_decay": 1e-4, "optimizer": "sgd", "momentum": 0.9},
    "moco_v2": {"epochs": 200, "batch_size": 256, "weight_decay": 1e-4, "optimizer": "sgd", "momentum": 0.9},
    "byol": {"epochs": 1000, "batch_size": 4096, "weight_decay": 1.5e-6, "optimizer": "lars", "momentum": 0.9},
    "clusterfit": {"epochs": 105, "batch_size": 256, "weight_decay": 1e-4, "optimizer": "sgd", "momentum": 0.9},
}
# epoch -> rate, for 256 images
RATES = {
    "npid": {0: 0.03, 119: 0.03, 120: 0.003, 160: 0.0003, 199: 0.0003},
    "moco_v2": {0: 0.03, 100: 0.015, 200: 0.0},
    "byol": {0: 0.0, 5: 0.1, 10: 0.2, 505: 0.1, 1000: 0.0},
    "clusterfit": {0: 0.1, 29: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4, 104: 1e-4},
}
# smallest area, jitter, its share, gray, blur of the first and the second view, solarizing of the second
VIEWS = {
    "npid": (0.2, (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0, 0.0),
    "moco_v2": (0.2, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.5, 0.0),
    "byol": (0.08, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.1, 0.2),
    "clusterfit": (0.08, (0.4, 0.4, 0.4, 0.2), 1.0, 0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_are_the_published_ones(name):
    settings, training = METHODS[name].Settings(), METHODS[name].paper
    assert {key: getattr(settings, key) for key in SETTINGS[name]} == SETTINGS[name]
    assert {key: getattr(training, key) for key in TRAINING[name]} == TRAINING[name]
    assert (training.backbone, training.per) == ("resnet50", 256)


@pytest.mark.parametrize("name", RATES)
def test_rates_follow_the_published_schedule(name):
    training = METHODS[name].paper
    steps = 10
    for epoch, rate in RATES[name].items():
        at = Progress(epoch * steps, int(training.epochs * steps), epoch, steps, seed=0)
        assert learning_rate_at(training, at) == pytest.approx(rate, abs=1e-9), epoch


@pytest.mark.parametrize("name", VIEWS)
def test_views_have_the_published_operations(name):
    groups = plan_from_crops(METHODS[name].paper.crops).groups
    first, second = groups[0], groups[min(1, len(groups) - 1)]
    colors = [first.color, second.color]
    found = (first.scale[0], first.color.jitter, first.color.jitter_p, first.color.gray_p)
    assert (*found, *(color.blur_p for color in colors), second.color.solarize_p) == VIEWS[name]
    assert {group.flip_p for group in groups} == {0.5}
    assert first.color.gray_first == (name == "npid")


def test_the_last_layers_of_byol_have_no_bias():
    from selfcluster.methods.byol import mlp

    layers = mlp(2048, 4096, 256)
    shapes = {name: tuple(parameter.shape) for name, parameter in layers.named_parameters()}
    linear = {"0.weight": (4096, 2048), "0.bias": (4096,), "3.weight": (256, 4096)}
    assert shapes == linear | {"1.weight": (4096,), "1.bias": (4096,)}
