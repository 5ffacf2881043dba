"""Views on CUDA: a kernel that cuts them out of the images, and one that makes all color operations.

The first computes a pixel directly from the few source pixels under its filter. In the second, one program handles one
image. It applies gray and jitter in the sample's own order, then solarization, gamma and the normalization, so each
pixel is read and written once. Contrast needs the mean gray after the operations before it, so images of more than one
tile are read twice. A blur adds two passes, over the blurred views only. Values equal those of `crops.cut_batch`,
`color.recolor_` and the normalization to 2/255.

N images, h x w pixels, P = h * w.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# Triton's types say `constexpr` where its launcher takes plain numbers.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from selfcluster.devices import to_device
from selfcluster.views.color import ColorTable

_TILE = 1024  # pixels per tile
_COLUMNS = ("brightness", "contrast", "saturation", "hue", "sigma", "gamma")  # floating-point columns of a table


@torch.no_grad()
def cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`crops.cut_batch` with the triangle filter.

    Args:
        images: (N, C, H, W) uint8 or float32 in 0..255, of any strides.
        boxes: (N, 5) rows of `crops.random_boxes`, on any device.
        size: side of the views in pixels.

    Returns:
        (N, C, size, size) float32 in 0..255, not rounded.
    """
    n, channels = images.shape[:2]
    out = torch.empty(n, channels, size, size, device=images.device)
    boxes = to_device(boxes.to(torch.float32), images.device).contiguous()
    grid = (n, triton.cdiv(size * size, _TILE))
    _cut[grid](images, boxes, out, size, *images.stride(), CHANNELS=channels, TILE=_TILE)
    return out


@torch.no_grad()
def recolor_normalize_(x: Tensor, table: ColorTable, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Apply a table to images and normalize them, in place.

    Args:
        x: (N, 3, h, w) float32 in 0..255, contiguous; overwritten.
        table: N rows, on the CPU.
        mean: 3 numbers, of pixels in 0..1.
        std: 3 numbers, likewise.

    Returns:
        `x`: (N, 3, h, w), normalized.
    """
    n, _, height, width = x.shape
    numbers = torch.stack([getattr(table, name).float() for name in _COLUMNS], dim=1)  # (N, 6)
    order = (table.order * torch.tensor([1, 4, 16, 64])).sum(dim=1)  # two bits per operation
    flags = table.jitter + 2 * table.gray + 4 * table.gray_first + 8 * table.solarize
    numbers = to_device(numbers, x.device)
    codes = to_device(torch.stack([order, flags], dim=1).int(), x.device)  # (N, 2)
    constants = (*(float(m) for m in mean), *(1 / (255.0 * s) for s in std))
    _recolor[(n,)](x, numbers, codes, height * width, *constants, TILE=_TILE)
    blurred = (table.sigma > 0).nonzero()[:, 0]
    if len(blurred):
        rows = to_device(blurred.int(), x.device)
        between = torch.empty(len(blurred), 3, height, width, device=x.device)
        grid = (len(blurred), 3, triton.cdiv(height * width, _TILE))
        _blur_rows[grid](x, between, rows, numbers, height, width, TILE=_TILE)
        _blur_columns[grid](between, x, rows, numbers, codes, height, width, *constants, TILE=_TILE)
    return x


@triton.jit
def _cut(images, boxes, out, size, s_image, s_channel, s_row, s_column, CHANNELS: tl.constexpr, TILE: tl.constexpr):
    """Write a tile of one view. Source pixels outside the crop have no weight, and the weights are scaled to sum 1."""
    image = tl.program_id(0).to(tl.int64)
    box = boxes + image * 5
    top, left, height, width = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    line, column = at // size, at % size
    column = tl.where(tl.load(box + 4) > 0.5, size - 1 - column, column)
    step_y, step_x = height / size, width / size
    wide_y, wide_x = tl.maximum(step_y, 1.0), tl.maximum(step_x, 1.0)  # half the filter's width, in source pixels
    center_y, center_x = top + (line + 0.5) * step_y - 0.5, left + (column + 0.5) * step_x - 0.5
    first_y, first_x = tl.ceil(center_y - wide_y), tl.ceil(center_x - wide_x)
    source = images + image * s_image
    mass = tl.zeros((TILE,), tl.float32)
    r = tl.zeros((TILE,), tl.float32)
    g = tl.zeros((TILE,), tl.float32)
    b = tl.zeros((TILE,), tl.float32)
    for tap_y in range(tl.ceil(2 * wide_y).to(tl.int32) + 1):
        y = first_y + tap_y
        weight_y = tl.maximum(1 - tl.abs(y - center_y) / wide_y, 0.0)
        weight_y = tl.where((y >= top) & (y < top + height), weight_y, 0.0)
        for tap_x in range(tl.ceil(2 * wide_x).to(tl.int32) + 1):
            x = first_x + tap_x
            weight = weight_y * tl.maximum(1 - tl.abs(x - center_x) / wide_x, 0.0)
            weight = tl.where((x >= left) & (x < left + width) & (at < size * size), weight, 0.0)
            place = source + y.to(tl.int64) * s_row + x.to(tl.int64) * s_column
            r += weight * tl.load(place, mask=weight > 0, other=0).to(tl.float32)
            if CHANNELS > 1:
                g += weight * tl.load(place + s_channel, mask=weight > 0, other=0).to(tl.float32)
            if CHANNELS > 2:
                b += weight * tl.load(place + 2 * s_channel, mask=weight > 0, other=0).to(tl.float32)
            mass += weight
    target = out + image * CHANNELS * size * size + at
    mass = tl.where(at < size * size, mass, 1.0)
    tl.store(target, r / mass, mask=at < size * size)
    if CHANNELS > 1:
        tl.store(target + size * size, g / mass, mask=at < size * size)
    if CHANNELS > 2:
        tl.store(target + 2 * size * size, b / mass, mask=at < size * size)


@triton.jit
def _recolor(x, numbers, codes, pixels, m0, m1, m2, s0, s1, s2, TILE: tl.constexpr):
    """Color one image. If a blur follows, the image stays in 0..255; if not, it is solarized and normalized."""
    image = tl.program_id(0).to(tl.int64)
    row = numbers + image * 6
    brightness, contrast, saturation = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    hue, sigma, gamma = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    order, flags = tl.load(codes + image * 2), tl.load(codes + image * 2 + 1)
    start = x + image * 3 * pixels
    jitter, gray, first = flags & 1, (flags >> 1) & 1, (flags >> 2) & 1
    place = 4  # of contrast in the order
    for step in tl.static_range(4):
        place = tl.where((order >> (2 * step)) & 3 == 1, step, place)
    mean = 0.0
    if jitter == 1:
        total = 0.0
        for offset in range(0, pixels, TILE):
            at = offset + tl.arange(0, TILE)
            inside = at < pixels
            r = tl.load(start + at, mask=inside, other=0.0)
            g = tl.load(start + pixels + at, mask=inside, other=0.0)
            b = tl.load(start + 2 * pixels + at, mask=inside, other=0.0)
            r, g, b = _grayed(r, g, b, gray & first)
            r, g, b = _jittered(r, g, b, order, place, brightness, contrast, saturation, hue, 0.0)
            total += tl.sum(tl.where(inside, _luma(r, g, b), 0.0), axis=0)
        mean = total / pixels
    for offset in range(0, pixels, TILE):
        at = offset + tl.arange(0, TILE)
        inside = at < pixels
        r = tl.load(start + at, mask=inside, other=0.0)
        g = tl.load(start + pixels + at, mask=inside, other=0.0)
        b = tl.load(start + 2 * pixels + at, mask=inside, other=0.0)
        r, g, b = _grayed(r, g, b, gray & first)
        if jitter == 1:
            r, g, b = _jittered(r, g, b, order, 4, brightness, contrast, saturation, hue, mean)
        r, g, b = _grayed(r, g, b, gray & (1 - first))
        if sigma == 0:
            r = (_toned(r, flags, gamma) - 255 * m0) * s0
            g = (_toned(g, flags, gamma) - 255 * m1) * s1
            b = (_toned(b, flags, gamma) - 255 * m2) * s2
        tl.store(start + at, r, mask=inside)
        tl.store(start + pixels + at, g, mask=inside)
        tl.store(start + 2 * pixels + at, b, mask=inside)


@triton.jit
def _luma(r, g, b):
    """Gray by ITU-R BT.601, to torchvision's digits."""
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def _grayed(r, g, b, chosen):
    """Gray in all channels where `chosen`."""
    gray = _luma(r, g, b)
    return tl.where(chosen == 1, gray, r), tl.where(chosen == 1, gray, g), tl.where(chosen == 1, gray, b)


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _jittered(r, g, b, order, steps, brightness, contrast, saturation, hue, mean):
    """The first `steps` jitter operations of the order: 0 to 3 are brightness, contrast, saturation, hue."""
    for step in tl.static_range(4):
        kind = (order >> (2 * step)) & 3
        if step < steps:
            if kind == 3:
                r, g, b = _turned(r, g, b, hue)
            else:
                gray = _luma(r, g, b)
                factor = tl.where(kind == 0, brightness, tl.where(kind == 1, contrast, saturation))
                other = tl.where(kind == 2, gray, tl.where(kind == 1, mean + 0 * gray, 0 * gray)) * (1 - factor)
                r, g, b = _clamped(r * factor + other), _clamped(g * factor + other), _clamped(b * factor + other)
    return r, g, b


@triton.jit
def _turned(r, g, b, turns):
    """Turn the hue; largest and smallest channel stay, as in HSV."""
    low = tl.minimum(tl.minimum(r, g), b)
    high = tl.maximum(tl.maximum(r, g), b)
    chroma = high - low
    inverse = 1 / tl.maximum(chroma, 1e-6)
    hue = (r - g) * inverse + 4
    hue = tl.where(high == g, (b - r) * inverse + 2, hue)
    hue = tl.where(high == r, (g - b) * inverse, hue) + 6 * turns
    hue = hue - 6 * tl.floor(hue / 6)
    red = low + chroma * tl.minimum(tl.maximum(tl.abs(hue - 3) - 1, 0.0), 1.0)
    green = low + chroma * tl.minimum(tl.maximum(2 - tl.abs(hue - 2), 0.0), 1.0)
    blue = low + chroma * tl.minimum(tl.maximum(2 - tl.abs(hue - 4), 0.0), 1.0)
    return red, green, blue


@triton.jit
def _toned(x, flags, gamma):
    """Solarize and gamma, in 0..255."""
    x = tl.where(((flags >> 3) & 1 == 1) & (x >= 128), 255 - x, x)
    powered = tl.where(x > 0, 255 * tl.exp2(gamma * tl.log2(tl.maximum(x, 1e-30) / 255)), 0.0)
    return tl.where(gamma == 1, x, powered)


@triton.jit
def _mirrored(at, size):
    """Positions reflected at both ends without the edge pixel."""
    at = tl.abs(at)
    return tl.where(at >= size, 2 * (size - 1) - at, at)


@triton.jit
def _blur_rows(x, out, rows, numbers, height, width, TILE: tl.constexpr):
    """Blur along rows, from the listed images of x to `out`."""
    image = tl.load(rows + tl.program_id(0)).to(tl.int64)
    sigma = tl.load(numbers + image * 6 + 4)
    radius = tl.minimum(tl.ceil(3 * sigma).to(tl.int32), tl.minimum(height, width) - 1)
    at = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = at < height * width
    line, column = at // width, at % width
    source = x + (image * 3 + tl.program_id(1)) * height * width
    total = tl.zeros((TILE,), tl.float32)
    mass = 0.0
    for tap in range(-radius, radius + 1):
        weight = tl.exp(-0.5 * (tap / sigma) * (tap / sigma))
        total += weight * tl.load(source + line * width + _mirrored(column + tap, width), mask=inside, other=0.0)
        mass += weight
    target = out + (tl.program_id(0).to(tl.int64) * 3 + tl.program_id(1)) * height * width
    tl.store(target + at, total / mass, mask=inside)


@triton.jit
def _blur_columns(source, x, rows, numbers, codes, height, width, m0, m1, m2, s0, s1, s2, TILE: tl.constexpr):
    """Blur along columns, solarize and normalize, to the listed images of x."""
    image = tl.load(rows + tl.program_id(0)).to(tl.int64)
    channel = tl.program_id(1)
    sigma, gamma = tl.load(numbers + image * 6 + 4), tl.load(numbers + image * 6 + 5)
    flags = tl.load(codes + image * 2 + 1)
    radius = tl.minimum(tl.ceil(3 * sigma).to(tl.int32), tl.minimum(height, width) - 1)
    at = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = at < height * width
    line, column = at // width, at % width
    plane = source + (tl.program_id(0).to(tl.int64) * 3 + channel) * height * width
    total = tl.zeros((TILE,), tl.float32)
    mass = 0.0
    for tap in range(-radius, radius + 1):
        weight = tl.exp(-0.5 * (tap / sigma) * (tap / sigma))
        total += weight * tl.load(plane + _mirrored(line + tap, height) * width + column, mask=inside, other=0.0)
        mass += weight
    mean = tl.where(channel == 0, m0, tl.where(channel == 1, m1, m2))
    factor = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    value = (_toned(total / mass, flags, gamma) - 255 * mean) * factor
    tl.store(x + (image * 3 + channel) * height * width + at, value, mask=inside)
