import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from selfcluster.randomness import draw
from selfcluster.views import geometry
from selfcluster.views.geometry import Affine

DIGITS = Affine(degrees=12, scale=(0.75, 1.15), shear=0.2, shift=0.12, elastic=0.03, elastic_sigma=0.2)


def images(count: int, height: int = 16, width: int = 16, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 255


def uniforms(affine: Affine, count: int) -> torch.Tensor:
    return draw(0, "affine", 0, torch.arange(count), 0, affine.uniforms)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_the_affine_map_is_torchvisions(height, width):
    x = images(5, height, width, 3)
    degrees = torch.tensor([0.0, 12.0, -30.0, 5.0, 90.0])
    scale = torch.tensor([1.0, 0.75, 1.3, 0.9, 1.1])
    shear = torch.tensor([0.0, 0.2, -0.1, 0.3, 0.05])
    shift = torch.tensor([[0.0, 0.0], [0.1, -0.05], [0.0, 0.2], [-0.1, 0.0], [0.05, 0.05]])
    matrix = geometry.inverse_map(degrees, scale, shear, shift, aspect=width / height)
    ours = geometry.sample(x, matrix, fill=0.0)
    for b in range(5):
        theirs = tv.affine(
            x[b],
            angle=float(degrees[b]),
            translate=[float(shift[b, 0] * width), float(shift[b, 1] * height)],
            scale=float(scale[b]),
            shear=[-math.degrees(math.atan(float(shear[b]))), 0.0],
            interpolation=tv.InterpolationMode.BILINEAR,
        )
        assert (ours[b] - theirs).abs().max() < 0.02


def test_a_shift_by_hand():
    x = images(1, 4, 8)
    matrix = geometry.inverse_map(torch.zeros(1), torch.ones(1), torch.zeros(1), torch.tensor([[0.25, -0.5]]), aspect=2)
    moved = geometry.sample(x, matrix, fill=7.0)  # two pixels to the right, two up
    torch.testing.assert_close(moved[0, 0, :2, 2:], x[0, 0, 2:, :6], atol=1e-3, rtol=0)
    torch.testing.assert_close(moved[0, 0, 2:], torch.full((2, 8), 7.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved[0, 0, :, :2], torch.full((4, 2), 7.0), atol=1e-3, rtol=0)


def test_the_elastic_field_is_torchvisions():
    x = images(2, 14, 18, 3)
    affine = replace(DIGITS, elastic=0.05)
    field = geometry.elastic_field(2 * uniforms(affine, 2)[:, geometry.UNIFORMS :] - 1, affine, 14, 18)
    identity = geometry.inverse_map(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.zeros(2, 2))
    ours = geometry.sample(x, identity, field, fill=0.0)
    for b in range(2):
        theirs = tv.elastic(x[b], field[b : b + 1], interpolation=tv.InterpolationMode.BILINEAR)
        assert (ours[b] - theirs).abs().max() < 0.02
    assert (ours - x).abs().max() > 10


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5])
def test_the_field_has_its_amplitude_everywhere_and_its_smoothness(sigma):
    affine = Affine(elastic=0.04, elastic_sigma=sigma)
    noise = 2 * uniforms(affine, 1500)[:, geometry.UNIFORMS :] - 1
    field = geometry.elastic_field(noise, affine, 20, 30)
    deviation = field.std(dim=0) / 2  # 2 grid units are the side
    assert (deviation / 0.04 - 1).abs().max() < 0.1
    assert (field.mean(dim=0) / 2).abs().max() < 0.006
    # two Gaussians of width sigma a distance d apart correlate by exp(-(d / 2 sigma)^2)
    left, right = field[:, 10, 10, 0], field[:, 10, 10 + round(30 * sigma), 0]
    assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1] - math.exp(-0.25)) < 0.08


def test_neutral_maps_change_nothing_and_the_input_is_left_alone():
    x = images(3, 9, 13, 3)
    before = x.clone()
    torch.testing.assert_close(geometry.warp(x, Affine(), uniforms(Affine(), 3)), x, atol=1e-3, rtol=0)
    geometry.warp(x, DIGITS, uniforms(DIGITS, 3))
    assert torch.equal(x, before)


def test_parameters_span_their_ranges():
    affine, u = Affine(shift=0.25), torch.full((2, geometry.UNIFORMS), 0.5)
    u[0, 3], u[1, 3] = 0.0, 1.0  # a quarter of the side left, and right
    x = images(2, 8, 8)
    y = geometry.warp(x, replace(affine, fill=0.0), u)
    torch.testing.assert_close(y[0, 0, :, :6], x[0, 0, :, 2:], atol=1e-3, rtol=0)
    torch.testing.assert_close(y[1, 0, :, 2:], x[1, 0, :, :6], atol=1e-3, rtol=0)


def test_what_comes_in_from_outside():
    flat = torch.tensor([30.0, 200.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16).clone()
    wild = replace(DIGITS, degrees=90, shift=0.5)
    torch.testing.assert_close(geometry.warp(flat, wild, uniforms(wild, 2)), flat, atol=1e-3, rtol=0)
    flat[:, :, 4:12, 4:12] = 255  # the border is still flat
    corners = geometry.warp(flat, replace(wild, scale=(0.3, 0.3)), uniforms(wild, 2))[:, 0, 0, 0]
    assert corners[0] < 200
    black = geometry.warp(torch.full((1, 1, 8, 8), 99.0), Affine(scale=(0.5, 0.5), fill=0.0), torch.zeros(1, 5))
    assert black[0, 0, 0].abs().max() == 0


def test_a_samples_map_does_not_depend_on_its_batch_mates():
    x, u = images(9), uniforms(DIGITS, 9)
    together = geometry.warp(x, DIGITS, u)
    torch.testing.assert_close(geometry.warp(x[4:6], DIGITS, u[4:6]), together[4:6], atol=1e-4, rtol=0)
    assert (together - x).flatten(1).abs().amax(dim=1).min() > 1
