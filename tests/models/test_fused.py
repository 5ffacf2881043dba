"""A fused network gives the same outputs as the network itself, or is the network itself."""

import pytest
import timm
import torch
from torch import nn

from selfcluster.models.fused import fuse_norms


def with_statistics(module, seed=0):
    """Give every normalization statistics and weights as training would: channels that differ."""
    generator = torch.Generator().manual_seed(seed)
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            for tensor, low in ((inner.running_mean, -1), (inner.running_var, 0.2), (inner.weight, 0.5)):
                tensor.data.uniform_(low, 2, generator=generator)
            inner.bias.data.uniform_(-1, 1, generator=generator)
    return module.double().eval()


def norms(module):
    return sum(isinstance(inner, nn.BatchNorm2d) for inner in module.modules())


def image(side=8, channels=3):
    return torch.zeros(1, channels, side, side, dtype=torch.float64)


@torch.no_grad()
def outputs(module, side, channels=3):
    return module(torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(5)).double())


def test_one_channel_by_hand():
    # weight 3, bias 1, mean 2, variance 8 (eps 1: sd 3), scale 6, shift 5: 6 (3 x + 1 - 2) / 3 + 5 = 6 x + 3
    convolution, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0)
    for tensor, value in (
        (convolution.weight, 3),
        (convolution.bias, 1),
        (norm.running_mean, 2),
        (norm.running_var, 8),
        (norm.weight, 6),
        (norm.bias, 5),
    ):
        tensor.data.fill_(value)
    fused = fuse_norms(nn.Sequential(convolution, norm).eval(), torch.zeros(1, 1, 4, 4))
    assert norms(fused) == 0
    assert torch.allclose(fused[0].weight, torch.tensor(6.0))
    assert torch.allclose(fused[0].bias, torch.tensor(3.0))


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet18", 0), ("tf_efficientnet_lite0", 0), ("mobilenetv3_small_050", 0), ("densenet121", 62), ("vgg11_bn", 0)],
)
def test_outputs_equal_in_double_precision(name, left):
    network = with_statistics(timm.create_model(name, num_classes=0))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fused = fuse_norms(network, image(64))
    assert fused is not network
    assert norms(fused) == left  # densenet normalizes what it has concatenated: no convolution's own output
    assert torch.allclose(outputs(fused, 64), outputs(network, 64), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_an_output_that_is_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.convolution(x)
            return y + self.norm(y)

    network = with_statistics(Twice())
    assert fuse_norms(network, image()) is network


def test_modules_that_are_called_twice_are_left_alone():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.second(self.norm(self.first(x))))

    network = with_statistics(Again())
    assert fuse_norms(network, image()) is network


def test_weights_that_change_before_use_are_left_alone():
    network = with_statistics(timm.create_model("resnetv2_50d_gn", num_classes=0))  # standardized weights, group norm
    assert fuse_norms(network, image(64)) is network


def test_a_network_without_batch_normalization_is_returned():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).double().eval()
    assert fuse_norms(network, image(32)) is network


def test_no_hook_stays():
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    fused = fuse_norms(network, image())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in [*network.modules(), *fused.modules()])
