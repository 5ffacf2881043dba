"""What is frozen does not move, in every copy of the backbone; layer-wise rates follow the depth."""

import copy

import pytest
import torch
from torch import nn

from selfcluster.models.backbones import make_backbone
from selfcluster.models.norm import _convert
from selfcluster.training.freezing import FixedStatistics, depths, freeze, rate_factors
from selfcluster.training.optim import make_optimizer, set_rates
from selfcluster.types import Group, Training


class Small(nn.Module):
    """A method of two copies of a backbone and a head with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.backbone = make_backbone("resnet18_small_w25", channels=3, image_size=16)
        self.teacher = copy.deepcopy(self.backbone)
        self.head = nn.BatchNorm1d(self.backbone.num_features)


def statistics(module):
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def test_statistics_stay_in_training_mode_in_every_copy():
    method = Small()
    assert freeze(method, "statistics") == "batch-norm statistics"
    before = statistics(method)
    images = torch.randn(8, 3, 16, 16)
    for mode in (True, False, True):
        method.train(mode)
        trained, evaluated = method.backbone(images), copy.deepcopy(method.backbone).eval()(images)
        assert torch.equal(trained, evaluated)  # training mode is evaluation mode
        method.head(method.teacher(images))
    after = statistics(method)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.running_mean", "head.running_var", "head.num_batches_tracked"}
    assert all(parameter.requires_grad for parameter in method.backbone.parameters())


def test_names_of_the_weights_do_not_change():
    method = Small()
    names = list(method.state_dict())
    freeze(method, "all", 0.5)
    assert list(method.state_dict()) == names


def test_fixed_statistics_are_not_shared_between_processes():
    method = Small()
    freeze(method, "statistics")
    _convert(method, None)
    fixed = [m for m in method.backbone.modules() if isinstance(m, FixedStatistics)]
    assert len(fixed) == 20
    assert not isinstance(method.head, FixedStatistics)


def test_early_layers_and_norms_take_no_step():
    method = Small()
    assert freeze(method, "all", 3) == "batch-norm statistics and the norms' weights and 3 of 9 layers"
    trained = {name.split(".")[0] for name, p in method.backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any(p.requires_grad for name, p in method.backbone.named_parameters() if "bn" in name)
    assert all(p.requires_grad for p in method.head.parameters())
    with pytest.raises(ValueError, match="9 layers, so at most 8 can be frozen"):
        freeze(Small(), "no", 9)


def test_depths_are_counted_from_the_input():
    for name in ("resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"):
        network = make_backbone(name, channels=3, image_size=32 if "vit" not in name else 224)
        depth = depths(network)
        assert set(depth) == {n for n, _ in network.named_parameters()}
        assert min(depth.values()) == 0
        assert set(depth.values()) == set(range(max(depth.values()) + 1))
    own = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert depths(own) == {"0.weight": 0, "0.bias": 0, "2.weight": 1, "2.bias": 1}


def test_rates_fall_by_the_decay_a_layer():
    """One SGD step with gradients of one moves each parameter by the rate times the factor of its depth."""
    method = Small()
    factors = rate_factors(method, 0.5)
    training = Training(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0)
    optimizer = make_optimizer([Group(list(method.parameters()))], training, factors)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, 0.25, 0.0)
    optimizer.step()
    depth = depths(method.backbone)
    for name, parameter in method.named_parameters():
        own = name.removeprefix("backbone.")
        factor = 0.5 ** (8 - depth[own]) if name != own else 1.0
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, 0.25 * factor), atol=1e-6), name
    assert rate_factors(method, 1.0) == {}
