import itertools
import math
from dataclasses import fields, replace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from selfcluster.randomness import draw
from selfcluster.views import color
from selfcluster.views.color import Color

NEAR = 0.02  # of 255: what float32 rounding leaves; the promise is 2
STRONG = Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, gray_p=0.2, blur_p=0.5, solarize_p=0.2, gamma=(0.5, 2.0))


def images(count: int = 8, channels: int = 3, side: int = 12) -> torch.Tensor:
    """Noise, a gray image, a black one, a white one and pure colors."""
    x = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 255
    x[1] = x[1, :1]
    x[2], x[3] = 0, 255
    if channels == 3:
        for pixel, values in enumerate(itertools.product((0.0, 128.0, 255.0), repeat=3)):
            x[4].view(3, -1)[:, pixel] = torch.tensor(values)
    return x


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return draw(seed, "color", 0, torch.arange(count), 0, color.UNIFORMS)


THEIRS = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}


@pytest.mark.parametrize("kind", THEIRS)
def test_each_jitter_operation_is_torchvisions(kind):
    x = images()
    amounts = torch.linspace(-0.5, 0.5, 8) if kind == "hue" else torch.linspace(0, 1.9, 8)
    ours = color.jitter(x, kind, amounts)
    theirs = torch.stack([THEIRS[kind](i / 255, float(a)) * 255 for i, a in zip(x, amounts, strict=True)])
    assert (ours - theirs).abs().max() < NEAR


def test_hue_by_hand():
    red = torch.tensor([200.0, 20.0, 20.0]).view(1, 3, 1, 1)
    green, blue = (color.jitter(red, "hue", torch.tensor([turn])).flatten() for turn in (1 / 3, -1 / 3))
    torch.testing.assert_close(green, torch.tensor([20.0, 200.0, 20.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(blue, torch.tensor([20.0, 20.0, 200.0]), atol=1e-3, rtol=0)


def test_every_order_of_the_jitter_is_that_order_of_torchvisions():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    x = torch.rand(24, 3, 9, 7, generator=torch.Generator().manual_seed(1)) * 255
    table = Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=1.0).table(draws(24))
    table = replace(table, order=orders)
    expected = []
    for b in range(24):
        y = x[b] / 255
        for kind in orders[b].tolist():
            name = list(THEIRS)[kind]
            y = THEIRS[name](y, float(getattr(table, name)[b]))
        expected.append(y * 255)
    assert (color.recolor_(x.clone(), table) - torch.stack(expected)).abs().max() < NEAR


def test_all_orders_are_drawn_equally_often():
    order = STRONG.table(draws(24_000)).order
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)


def test_tables_have_the_shares_and_ranges_asked_for():
    table = STRONG.table(draws(20_000))
    for chosen, share in ((table.jitter, 0.8), (table.gray, 0.2), (table.sigma > 0, 0.5), (table.solarize, 0.2)):
        assert abs(chosen.float().mean() - share) < 0.02
    for values, low, high in (
        (table.brightness, 0.2, 1.8),
        (table.saturation, 0.2, 1.8),
        (table.hue, -0.2, 0.2),
        (table.sigma[table.sigma > 0], 0.1, 2.0),
        (table.gamma.log(), math.log(0.5), math.log(2)),
    ):
        assert low - 1e-6 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    assert Color(jitter=(1.5, 0, 0, 0)).table(draws(500)).brightness.min() >= 0


def test_the_default_color_changes_nothing():
    x = images()
    assert torch.equal(color.recolor_(x.clone(), Color().table(draws(8))), x)


def test_rows_that_are_not_chosen_stay_as_they_are():
    x = images(64)
    table = replace(STRONG, gamma=None, jitter_p=0.3).table(draws(64))
    y = color.recolor_(x.clone(), table)
    idle = ~(table.jitter | table.gray | table.solarize | (table.sigma > 0))
    assert 3 < idle.sum() < 60
    assert torch.equal(y[idle], x[idle])
    assert (y[~idle] != x[~idle]).flatten(1).any(dim=1).sum() > 10


def test_a_samples_colors_do_not_depend_on_its_batch_mates():
    x, table = images(32), STRONG.table(draws(32))
    together = color.recolor_(x.clone(), table)
    for part in (slice(0, 1), slice(5, 19), slice(31, 32)):
        alone = color.recolor_(x[part].clone(), table.rows(part))
        torch.testing.assert_close(alone, together[part], atol=1e-4, rtol=0)
    assert together.min() >= 0
    assert together.max() <= 255


def test_stacked_tables_are_their_rows():
    first, second = (STRONG.table(draws(3, seed)) for seed in (1, 2))
    both = color.ColorTable.stack([first, second])
    for field in fields(both):
        assert torch.equal(getattr(both.rows(slice(3, 6)), field.name), getattr(second, field.name))


def test_grayscale_is_torchvisions():
    x = images()
    assert (color.grayscale(x) - tv.rgb_to_grayscale(x / 255, 3) * 255).abs().max() < NEAR


def test_gray_before_the_jitter_stays_gray_and_after_it_too():
    for gray_first in (True, False):
        table = Color(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=1.0, gray_first=gray_first).table(draws(8))
        y = color.recolor_(images(), table)
        torch.testing.assert_close(y[:, 0], y[:, 1], atol=1e-2, rtol=0)
        torch.testing.assert_close(y[:, 0], y[:, 2], atol=1e-2, rtol=0)


def test_the_place_of_gray_matters_for_the_hue():
    kwargs = {"jitter": (0.0, 0.0, 0.0, 0.5), "jitter_p": 1.0, "gray_p": 1.0}
    x = images()
    first = color.recolor_(x.clone(), Color(gray_first=True, **kwargs).table(draws(8)))
    torch.testing.assert_close(first, color.grayscale(x), atol=1e-2, rtol=0)  # hue has nothing to turn
    last = color.recolor_(x.clone(), Color(**kwargs).table(draws(8)))
    assert (first - last).abs().max() > 10


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 40), (3, 3), (2, 5)])
def test_blur_is_torchvisions_with_a_sigma_a_sample(height, width):
    x = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(2)) * 255
    sigmas = torch.tensor([0.1, 0.3, 0.7, 1.0, 1.4, 2.0])
    ours = color.blur(x, sigmas)
    for b, sigma in enumerate(sigmas.tolist()):
        taps = 1 + 2 * min(math.ceil(3 * sigma), min(height, width) - 1)
        theirs = tv.gaussian_blur(x[b] / 255, [taps, taps], [sigma, sigma]) * 255
        assert (ours[b] - theirs).abs().max() < NEAR


def test_blur_keeps_flat_images_and_single_pixels():
    flat = torch.full((2, 1, 8, 8), 77.0)
    torch.testing.assert_close(color.blur(flat, torch.tensor([0.5, 2.0])), flat)
    dot = torch.full((1, 3, 1, 1), 9.0)
    torch.testing.assert_close(color.blur(dot, torch.tensor([2.0])), dot)


def test_solarize_and_gamma_by_hand_and_against_torchvision():
    x = torch.tensor([0.0, 127.0, 128.0, 200.0, 255.0]).view(1, 1, 1, 5)
    assert color.solarize(x).flatten().tolist() == [0, 127, 127, 55, 0]
    assert torch.equal(color.solarize(x), tv.solarize(x.to(torch.uint8), 128).float())
    y, exponents = images(), torch.linspace(0.4, 2.5, 8)
    for b, exponent in enumerate(exponents.tolist()):
        theirs = tv.adjust_gamma(y[b] / 255, exponent) * 255
        assert (color.gamma(y, exponents)[b] - theirs).abs().max() < NEAR


@pytest.mark.parametrize("channels", [1, 4])
def test_without_three_channels_brightness_and_contrast_remain(channels):
    x = images(channels=channels)
    table = Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=1.0, gray_p=1.0).table(draws(8))
    y = color.recolor_(x.clone(), table)
    for b in range(8):
        expected = x[b]
        for kind in table.order[b].tolist():
            if kind == 0:
                expected = (expected * table.brightness[b]).clamp(0, 255)
            elif kind == 1:
                f = table.contrast[b]
                expected = (expected * f + expected.mean() * (1 - f)).clamp(0, 255)
        torch.testing.assert_close(y[b], expected, atol=1e-2, rtol=0)


def test_a_large_batch_is_colored_in_parts_to_the_same_values(monkeypatch) -> None:
    """On a CPU few images pass through all operations together; a sample's values do not depend on the others."""
    x, table = images(40), STRONG.table(draws(40))
    whole = color.recolor_(x.clone(), table)
    assert not torch.equal(whole, x)
    for together in (1, 7, 39):
        monkeypatch.setattr(color, "_TOGETHER", together * x[0].numel())
        torch.testing.assert_close(color.recolor_(x.clone(), table), whole, rtol=0, atol=1e-3)
