import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from selfcluster.randomness import draw
from selfcluster.views import crops

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

ROUNDING = {"bilinear": 1, "bicubic": 2}  # gray levels: uint8 resizing rounds its weights and between its passes


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes, hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 120 * np.sin(y[..., None] / 7 + np.arange(channels)) * np.cos(x[..., None] / 11)
    waves[height // 3 : height // 2, width // 4 : width // 2] = 255
    return np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def some_boxes(count: int, height: int, width: int, **kwargs) -> np.ndarray:
    uniforms = draw(1, "crops", 0, np.arange(count), 0, crops.UNIFORMS)
    return crops.random_boxes(uniforms, np.full(count, height), np.full(count, width), **kwargs)


def box_by_the_rule(u, height, width, scale, ratio):
    """RandomResizedCrop one image at a time, as its documentation states it."""
    for t in range(crops.TRIES):
        area = height * width * (scale[0] + float(u[t]) * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + float(u[crops.TRIES + t]) * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(float(u[-3]) * (height - h + 1)), int(float(u[-2]) * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("shape", [(375, 500), (32, 32), (20, 200), (200, 20), (8, 9)])
def test_boxes_follow_the_rule_one_by_one(shape):
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    uniforms = draw(5, "crops", 2, np.arange(200), 0, crops.UNIFORMS)
    boxes = crops.random_boxes(uniforms, np.full(200, shape[0]), np.full(200, shape[1]), scale, ratio)
    expected = [box_by_the_rule(u, *shape, scale, ratio) for u in uniforms]
    np.testing.assert_array_equal(boxes[:, :4], expected)


@pytest.mark.parametrize(
    ("shape", "scale"), [((375, 500), (0.08, 1.0)), ((60, 90), (0.05, 0.14)), ((40, 200), (0.3, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(shape, scale):
    count, ratio = 4000, (3 / 4, 4 / 3)
    ours = some_boxes(count, *shape, scale=scale, ratio=ratio)[:, :4]
    torch.manual_seed(0)
    image = torch.empty(3, *shape, device="meta")
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)], float)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
    np.testing.assert_array_less(np.abs(ours.mean(0) - theirs.mean(0)), 4.5 * error + 1e-9)
    for share in (0.1, 0.5, 0.9):
        spread = np.abs(np.quantile(ours, share, axis=0) - np.quantile(theirs, share, axis=0))
        np.testing.assert_array_less(spread, 0.05 * np.array([*shape, *shape]))


def test_boxes_lie_inside_images_of_any_shape():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 60, 2000), rng.integers(1, 60, 2000)
    uniforms = draw(0, "crops", 0, np.arange(2000), 0, crops.UNIFORMS)
    for ratio in ((3 / 4, 4 / 3), None):
        top, left, height, width, flip = crops.random_boxes(uniforms, heights, widths, (0.01, 1.0), ratio).T
        assert (height >= 1).all()
        assert (width >= 1).all()
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height <= heights).all()
        assert (left + width <= widths).all()
        assert 0.45 < flip.mean() < 0.55


def test_no_scale_is_the_whole_image_and_no_ratio_is_squares_anywhere():
    assert some_boxes(3, 7, 9, scale=None, flip_p=0.0).tolist() == [[0, 0, 7, 9, 0]] * 3
    assert some_boxes(3, 7, 9, scale=None, flip_p=1.0)[:, 4].tolist() == [1, 1, 1]
    boxes = some_boxes(500, 256, 300, scale=((255 / 256) ** 2,) * 2, ratio=None)
    assert (boxes[:, 2:4] == 255).all()
    assert set(boxes[:, 0]) == {0, 1}
    assert set(boxes[:, 1]) == set(range(46))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_cut_is_torchvisions_resized_crop_and_pillows_to_one_gray_level(interpolation, channels):
    image = picture(90, 120, channels)
    image.flags.writeable = False  # as Pillow's decoder hands them out
    for size in (16, 32, 100):
        for box in some_boxes(6, 90, 120):
            top, left, height, width = (int(v) for v in box[:4])
            view = crops.cut(image, box, size, interpolation)
            assert view.shape == (channels, size, size)
            assert view.dtype == np.uint8
            view = view.transpose(1, 2, 0)
            upright = view[:, ::-1] if box[4] else view
            tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
            theirs = tv.resized_crop(
                tensor, top, left, height, width, [size, size], MODES[interpolation], antialias=True
            )
            assert np.abs(upright.astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 1
            region = Image.fromarray(image[top : top + height, left : left + width].squeeze())
            pillow = np.asarray(region.resize((size, size), FILTERS[interpolation])).reshape(size, size, channels)
            assert np.abs(upright.astype(int) - pillow).max() <= ROUNDING[interpolation]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("channels", "height", "width", "size"), [(3, 32, 32, 32), (1, 40, 28, 16), (3, 24, 30, 48)])
def test_cut_batch_is_torchvisions_float_crop_and_cut(interpolation, channels, height, width, size):
    count = 24
    images = np.stack([picture(height, width, channels, seed) for seed in range(count)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    boxes = some_boxes(count, height, width)
    views = crops.cut_batch(batch, torch.from_numpy(boxes), size, interpolation)
    assert views.shape == (count, channels, size, size)
    assert views.min() >= 0
    assert views.max() <= 255
    for b, box in enumerate(boxes):
        top, left, h, w = (int(v) for v in box[:4])
        # across first, then down, and kept in 0..255 between, as uint8 routes do: a bicubic filter overshoots
        region, mode = batch[b].float()[:, top : top + h, left : left + w], MODES[interpolation]
        across = tv.resize(region, [h, size], mode, antialias=True).clamp(0, 255)
        theirs = tv.resize(across, [size, size], mode, antialias=True).clamp(0, 255)
        if interpolation == "bilinear":
            whole = tv.resized_crop(batch[b].float(), top, left, h, w, [size, size], mode, antialias=True)
            assert (theirs - whole).abs().max() < 1e-3
        theirs = theirs.flip(2) if box[4] else theirs
        assert (views[b] - theirs).abs().max() < 2.4e-4 * 255
        one = crops.cut(images[b], box, size, interpolation).astype(int)
        assert np.abs(views[b].round().numpy() - one).max() <= ROUNDING[interpolation]


def test_cut_batch_under_autocast_keeps_its_precision_and_its_input():
    batch = torch.from_numpy(picture(32, 32)).permute(2, 0, 1)[None]
    before, boxes = batch.clone(), torch.from_numpy(some_boxes(1, 32, 32))
    plain = crops.cut_batch(batch, boxes, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crops.cut_batch(batch, boxes, 24), plain)
    assert torch.equal(batch, before)


@pytest.mark.parametrize(("height", "width", "size"), [(300, 400, 224), (130, 90, 96), (40, 28, 32), (8, 8, 16)])
def test_center_is_resize_then_center_crop(height, width, size):
    image = picture(height, width)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    short = size if size <= 64 else size * 256 // 224  # rounded down, as timm does
    theirs = tv.center_crop(tv.resize(tensor, [short], antialias=True), [size, size]).numpy()
    view = crops.center(image, size)
    assert np.abs(view.astype(int) - theirs).max() <= 1
    batch = crops.center_batch(torch.stack([tensor, tensor.flip(0)]), size)
    assert np.abs(batch[0].round().numpy() - view).max() <= 1
    assert torch.equal(batch[1], batch[0].flip(0))


def test_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match="'nearest' is neither"):
        crops.cut(picture(8, 8), np.array([0, 0, 8, 8, 0], np.float32), 4, "nearest")
    with pytest.raises(ValueError, match="'nearest' is neither"):
        crops.cut_batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[0.0, 0, 8, 8, 0]]), 4, "nearest")
