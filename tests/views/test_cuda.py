"""The kernels for views against the general route: in Triton's interpreter, or compiled where there is a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcluster.randomness import draw
from selfcluster.views import color, crops
from selfcluster.views.color import Color

pytest.importorskip("triton", reason="torch for CUDA brings Triton; this torch has none")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRONG = Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, gray_p=0.3, blur_p=0.5, solarize_p=0.3, gamma=(0.5, 2.0))
KINDS = {
    "strong": STRONG,
    "gray first": replace(STRONG, gray_first=True),
    "jitter alone": Color(jitter=(0.4, 0.4, 0.4, 0.5), jitter_p=1.0),
    "nothing": Color(),
}


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 32), ((3, 50, 70), 24), ((1, 20, 20), 33), ((2, 9, 9), 4)])
def test_cuts_as_the_matrix_products_do(shape, size):
    from selfcluster.views.cuda import cut

    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)  # as images in memory are
    sides = [np.full(9, side) for side in shape[1:]]
    boxes = torch.from_numpy(crops.random_boxes(draw(3, "crops", 0, np.arange(9), 0, crops.UNIFORMS), *sides))
    boxes[0] = torch.tensor([0, 0, *shape[1:], 1])  # all of the image, mirrored
    found = cut(images.to(DEVICE), boxes, size).cpu()
    assert (found - crops.cut_batch(images, boxes, size)).abs().max() < 0.01  # gray levels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(12, 12), (3, 5), (40, 30)])  # the last takes two tiles an image
def test_equals_the_general_route(kind, height, width):
    from selfcluster.views.cuda import recolor_normalize_

    count = 12
    x = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    x[1], x[2], x[3] = x[1, :1].clone(), 0, 255
    table = KINDS[kind].table(draw(0, "test", 0, torch.arange(count), 0, color.UNIFORMS))
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    expected = (color.recolor_(x.clone(), table) / 255 - mean) / std
    found = recolor_normalize_(x.to(DEVICE, copy=True), table, MEAN, STD).cpu()
    assert ((found - expected) * std * 255).abs().max() < 0.02  # the promise is 2
