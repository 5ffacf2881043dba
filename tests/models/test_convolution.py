"""The weights' gradient as a product equals torch's; only the convolutions meant for it change, and only for a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfcluster.models import convolution, winograd
from selfcluster.models.backbones import make_backbone
from selfcluster.models.convolution import (
    convolve,
    convolve_densely,
    quick_convolutions,
    uses_tiles,
    weight_gradient,
)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_one_position_by_hand():
    # a 2 x 2 image seen once by a 2 x 2 kernel: the gradient is the image times the output's gradient
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    found = weight_gradient(images, torch.tensor([[[[10.0]]]]), kernel=2, stride=1, padding=0)
    assert found.tolist() == [[[[10, 20], [30, 40]]]]


@pytest.mark.parametrize("block", [1, 64 << 20])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (5, 1, 2), (2, 2, 0), (4, 3, 1)]
)
def test_equals_torch_in_double_precision(kernel, stride, padding, block, monkeypatch):
    monkeypatch.setattr(convolution, "_BLOCK", block)  # one image at a time, or all
    given = [random(5, 3, 11, 9), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    output = convolve(*ours, stride, padding)
    expected = F.conv2d(*theirs, stride, padding)
    assert torch.equal(output, expected)
    change = random(*output.shape, seed=3)
    output.backward(change)
    expected.backward(change)
    exact = block > 1  # sums over blocks are kept in single precision
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12 if exact else 1e-5, atol=1e-12 if exact else 1e-5)


@pytest.mark.parametrize("block", [1, 64 << 20])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (5, 2, 2), (2, 1, 1)])
def test_the_parts_that_are_products_equal_torch_in_double_precision(kernel, stride, padding, block, monkeypatch):
    monkeypatch.setattr(convolution, "_MANY", 1)  # as if 3 channels were many
    monkeypatch.setattr(convolution, "_BLOCK", block)
    given = [random(5, 3, 4, 4), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    output, expected = convolve(*ours, stride, padding), F.conv2d(*theirs, stride, padding)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    change = random(*output.shape, seed=3)
    output.backward(change)
    expected.backward(change)
    for mine, other in zip(ours, theirs, strict=True):
        tolerance = 1e-12 if block > 1 else 1e-5  # sums over blocks are kept in single precision
        torch.testing.assert_close(mine.grad, other.grad, rtol=tolerance, atol=tolerance)


def test_a_dense_layer_by_hand():
    # two positions beside each other and a kernel of three: each output sees the middle weight and one neighbor's
    images = torch.tensor([[[[1.0, 2.0]]]])
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = torch.tensor([3.0, 5.0, 7.0])
    assert convolve_densely(images, weight, None, 1, 1).tolist() == [[[[1 * 5 + 2 * 7, 1 * 3 + 2 * 5]]]]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (5, 1, 2), (2, 2, 1), (4, 3, 2)]
)
def test_a_dense_layer_equals_torch_in_double_precision(kernel, stride, padding, size):
    given = [random(5, 3, *size), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    output, expected = convolve_densely(*ours, stride, padding), F.conv2d(*theirs, stride=stride, padding=padding)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    change = random(*output.shape, seed=3)
    output.backward(change)
    expected.backward(change)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_frozen_images_get_no_gradient_and_no_bias_is_needed():
    weight = random(4, 3, 3, 3, seed=1).requires_grad_()
    images = random(2, 3, 5, 5)
    again = weight.detach().clone().requires_grad_()
    F.conv2d(images, again, None, 1, 1).sum().backward()
    for ours in (convolve, convolve_densely):
        weight.grad = None
        ours(images, weight, None, 1, 1).sum().backward()
        torch.testing.assert_close(weight.grad, again.grad)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.few, self.many = nn.Conv2d(3, 256, 3, padding=1), nn.Conv2d(256, 8, 3, stride=2, padding=1)
        self.point, self.grouped = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 3, padding=1, groups=256)

    def forward(self, x):
        return self.many(self.grouped(self.point(self.few(x))))


def gradients(module, x):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def test_a_step_in_bfloat16_has_the_same_loss_and_gradients():
    module, x = Small(), random(4, 3, 8, 8, dtype=torch.float32)
    loss, expected = gradients(module, x)
    with quick_convolutions(module, True):
        again, found = gradients(module, x)
    assert again == loss
    for name, gradient in expected.items():
        distance = (found[name] - gradient).norm() / gradient.norm()
        assert distance < (0.01 if name.startswith("many") else 1e-6), name  # eps of bfloat16: 0.008


@pytest.mark.parametrize("side", [4, 7])
def test_a_layer_of_many_channels_has_the_same_output_and_gradients_in_bfloat16(side):
    layer, images = nn.Conv2d(512, 8, 3, padding=1), random(2, 512, side, side, dtype=torch.float32)
    results = []
    for wanted in (False, True):
        layer.zero_grad()
        x = images.clone().requires_grad_()
        with quick_convolutions(layer, wanted), torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.float().square().mean().backward()
        results.append((out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for mine, other in zip(*reversed(results), strict=True):
        assert (mine.float() - other.float()).norm() / other.float().norm() < 0.008  # eps of bfloat16


def test_only_the_suitable_one_changes_and_only_in_the_block(monkeypatch):
    module, x, used = Small(), random(2, 3, 8, 8, dtype=torch.float32), []
    real = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *args: used.append(args[0].shape) or real(*args))
    with quick_convolutions(module, True):
        assert [name for name, inner in module.named_children() if "_conv_forward" in vars(inner)] == ["many"]
        gradients(module, x)
        assert used == [(2, 256, 8, 8)]  # too few images for one product
        module(x).sum().backward()  # single precision: torch's own
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            module(x)
    assert len(used) == 1
    assert not any("_conv_forward" in vars(inner) for inner in module.modules())
    with quick_convolutions(module, False):
        gradients(module, x)
    assert len(used) == 1


@pytest.mark.parametrize(
    ("count", "side", "low", "dense"),
    [
        (128, 2, True, True),
        (128, 2, False, True),
        (127, 2, True, False),  # too few images
        (288, 3, True, True),
        (288, 3, False, False),  # in float32 only up to 2 x 2
        (512, 5, True, False),  # too many positions
    ],
)
def test_a_layer_of_few_positions_and_many_images_is_one_product(count, side, low, dense, monkeypatch):
    used = []
    real = convolution.convolve_densely
    monkeypatch.setattr(convolution, "convolve_densely", lambda *args: used.append(args[0].dtype) or real(*args))
    layer = nn.Conv2d(256, 4, 3, padding=1)
    x = random(count, 256, side, side, dtype=torch.float32)
    results = []
    for wanted in (False, True):
        layer.zero_grad()
        with quick_convolutions(layer, wanted), torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = layer(x)
            out.float().square().mean().backward()
        results.append((out.detach().float(), layer.weight.grad.clone()))
    assert used == ([torch.bfloat16 if low else torch.float32] if dense else [])
    for mine, other in zip(*reversed(results), strict=True):
        assert (mine - other).norm() / other.norm() < (0.01 if low else 1e-5)  # eps of bfloat16: 0.008


@pytest.mark.skipif(winograd.chosen() is None, reason="no AVX2 here, or no C++ compiler")
@pytest.mark.parametrize(
    ("count", "channels", "out", "side", "stride", "low", "by_tiles"),
    [
        (16, 64, 64, 8, 1, False, True),
        (15, 64, 64, 8, 1, False, False),  # too few tiles
        (16, 56, 64, 8, 1, False, False),  # too few channels
        (16, 64, 68, 8, 1, False, False),  # channels that the kernel cannot take
        (16, 64, 64, 8, 2, False, False),
        (64, 64, 64, 4, 1, False, True),
        (64, 64, 64, 2, 1, False, False),  # most of a tile is outside the image
        (16, 64, 64, 8, 1, True, False),
        (64, 256, 64, 4, 1, False, True),  # too few images for one product
    ],
)
def test_other_layers_in_float32_are_computed_by_tiles(count, channels, out, side, stride, low, by_tiles, monkeypatch):
    used, real = [], winograd.convolve_by_tiles
    monkeypatch.setattr(winograd, "convolve_by_tiles", lambda *args: used.append(args[0].shape) or real(*args))
    layer = nn.Conv2d(channels, out, 3, stride, padding=1)
    x = random(count, channels, side, side, dtype=torch.float32)
    results = []
    for wanted in (False, True):
        layer.zero_grad()
        images = x.clone().requires_grad_()
        with quick_convolutions(layer, wanted), torch.autocast("cpu", torch.bfloat16, enabled=low):
            made = layer(images)
            made.float().square().mean().backward()
        results.append((made.detach().float(), images.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert len(used) == by_tiles
    for mine, other in zip(*reversed(results), strict=True):
        assert (mine - other).norm() / other.norm() < (0.01 if low else 1e-5)  # eps of bfloat16: 0.008


def test_whether_a_network_is_computed_by_tiles_is_known_before(monkeypatch):
    large, small = (make_backbone(name, channels=3, image_size=16) for name in ("resnet18_small", "tiny_layout"))
    assert uses_tiles(large) == (winograd.chosen() is not None)
    monkeypatch.setattr(winograd, "chosen", lambda: pytest.fail("no kernel is built for a network without such layers"))
    assert not uses_tiles(small)
