"""Convolutions by tiles against float64: each transform, and outputs and gradients of many shapes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfcluster import compiler
from selfcluster.models import winograd
from selfcluster.models.winograd import convolve_by_tiles, tiles_of

pytestmark = pytest.mark.skipif(winograd.chosen() is None, reason="no AVX2 here, or no C++ compiler")

# of the paper's F(4 x 4, 3 x 3): Y = A^T [(G g G^T) . (B^T d B)] A
B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
).T
A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).T
SIZES = [(4, 4), (8, 12), (3, 3), (1, 1), (5, 7), (9, 6), (2, 17)]


def random(*shape, seed=0, layout=torch.channels_last):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made if layout is None else made.to(memory_format=layout)


def distance(ours, true):
    return float((ours - true).norm() / true.norm())


def in_tiles(images, side, before):
    """(B, C, h, w) -> (tiles, C, side, side) float64: what the tiles of 4 x 4 outputs see."""
    height, width = images.shape[2:]
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (before, 8), (before, 8)))
    tiles = [
        padded[i, :, y : y + side, x : x + side]
        for i in range(len(images))
        for y in range(0, height, 4)
        for x in range(0, width, 4)
    ]
    return np.stack(tiles)


def from_tiles(tiles, shape, before):
    """The sum of overlapping tiles (tiles, C, side, side) as images."""
    count, channels, height, width = shape
    padded = np.zeros((count, channels, height + 16, width + 16))
    rest = iter(tiles)
    side = tiles.shape[2]
    for i in range(count):
        for y in range(0, height, 4):
            for x in range(0, width, 4):
                padded[i, :, y : y + side, x : x + side] += next(rest)
    return padded[:, :, before : before + height, before : before + width]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "matrix", "before"), [("input_to_planes", B, 1), ("output_to_planes", A.T, 0)])
def test_planes_are_those_of_the_papers_matrices(name, matrix, before, size):
    images = random(3, 16, *size)
    planes = torch.full((36, 3 * tiles_of(*size), 16), torch.nan)
    winograd.chosen().call(name, images, planes)
    tiles = in_tiles(images, len(matrix), before)
    true = np.einsum("ip,tcij,jq->pqtc", matrix, tiles, matrix).reshape(planes.shape)
    np.testing.assert_allclose(planes, true, atol=2e-5 * np.abs(true).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "matrix", "before"), [("planes_to_output", A, 0), ("planes_to_input", B.T, 1)])
def test_images_are_those_of_the_papers_matrices(name, matrix, before, size):
    planes = random(36, 3 * tiles_of(*size), 16, layout=None)
    images = torch.full((3, 16, *size), torch.nan).to(memory_format=torch.channels_last)
    winograd.chosen().call(name, images, planes)
    tiles = np.einsum("ip,ijtc,jq->tcpq", matrix, planes.double().view(6, 6, -1, 16).numpy(), matrix)
    true = from_tiles(tiles, images.shape, before)
    np.testing.assert_allclose(images, true, atol=2e-5 * np.abs(true).max())


def test_a_kernel_that_copies_its_middle_returns_the_images():
    weight = torch.zeros(8, 8, 3, 3)
    weight[range(8), range(8), 1, 1] = 1
    images = random(2, 8, 7, 5)
    torch.testing.assert_close(convolve_by_tiles(images, weight), images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 20_000, 32 << 20])  # one image at a time; a shorter last block; all
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_float64s(size, layout, block, monkeypatch):
    monkeypatch.setattr(winograd, "_BLOCK", block)
    given = [
        random(5, 16, *size, layout=layout),
        random(8, 16, 3, 3, seed=1, layout=layout),
        random(5, 8, *size, seed=2),
    ]
    results = []
    for ours in (True, False):
        images, weight, change = (x.clone() if ours else x.double() for x in given)
        images.requires_grad_()
        weight.requires_grad_()
        out = convolve_by_tiles(images, weight) if ours else F.conv2d(images, weight, padding=1)
        out.backward(change)
        results.append((out.detach(), images.grad, weight.grad))
    for mine, true in zip(*results, strict=True):
        assert mine.shape == true.shape
        assert distance(mine, true) < 1e-5


def test_a_gradient_of_one_number_is_taken_and_fixed_images_get_none():
    images, weight = random(3, 8, 6, 6), random(8, 8, 3, 3, seed=1).requires_grad_()
    again = weight.detach().double().requires_grad_()
    convolve_by_tiles(images, weight).sum().backward()
    F.conv2d(images.double(), again, padding=1).sum().backward()
    assert distance(weight.grad, again.grad) < 1e-5


def test_the_callers_default_type_changes_nothing():
    images, weight = random(3, 8, 6, 6).requires_grad_(), random(8, 8, 3, 3, seed=1).requires_grad_()
    expected = torch.autograd.grad(convolve_by_tiles(images, weight).square().sum(), (images, weight))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = torch.autograd.grad(convolve_by_tiles(images, weight).square().sum(), (images, weight))
        assert winograd.chosen().agrees()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["input_to_planes", "output_to_planes", "planes_to_output", "planes_to_input"])
def test_the_number_of_threads_changes_no_bit_and_nothing_outside_is_written(name):
    kernel, results = winograd.chosen(), []
    before = torch.get_num_threads()
    for threads in (1, 3, 8):
        pixels, numbers = (random(*shape, layout=None) for shape in ((7 * 9 * 5, 8), (36, 7 * 6 + 2, 8)))
        room = torch.full((7 * 9 * 5 + 2, 8), 7.0)
        room[1:-1] = pixels
        numbers[:, [0, -1]] = 7.0
        images, planes = room[1:-1].view(7, 9, 5, 8).permute(0, 3, 1, 2), numbers[:, 1:-1]
        try:
            torch.set_num_threads(threads)
            kernel.call(name, images, planes)
        finally:
            torch.set_num_threads(before)
        assert (room[[0, -1]] == 7).all()
        assert (numbers[:, [0, -1]] == 7).all()
        results.append((images.clone(), planes.clone()))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="cannot take this"):
        convolve_by_tiles(random(2, 12, 4, 4), random(8, 12, 3, 3))


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    assert winograd.chosen() is None
    with pytest.raises(ValueError, match="cannot take this"):
        convolve_by_tiles(random(2, 8, 4, 4), random(8, 8, 3, 3))


@pytest.mark.parametrize("name", ["planes_to_output", "planes_to_input", "output_to_planes"])
def test_a_kernel_that_errs_is_not_used(name, monkeypatch):
    kernel = winograd.chosen()
    assert kernel.agrees()
    right = kernel.call

    def wrong(called, images, planes):
        right(called, images, planes)
        if called == name:
            (planes if called == "output_to_planes" else images)[0, 0, 0] += 1

    monkeypatch.setattr(kernel, "call", wrong)
    assert not kernel.agrees()


def test_a_compiler_that_fails_means_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert winograd.chosen.load() is None
    monkeypatch.setattr(compiler, "has_flag", lambda name: name != "fma")
    assert winograd.chosen.load() is None
