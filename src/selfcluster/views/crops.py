"""Random and central crops: the part of an image that a view shows, and the antialiased resize.

Boxes follow torchvision's `RandomResizedCrop` rule (Szegedy et al. 2015, section 6): area and aspect are drawn up to
ten times; if no draw fits, the box is the largest central part of an allowed aspect. A box is one float32 row, `top,
left, height, width, flip`, in whole pixels of the source. The flip is part of the row because the resize can flip at no
cost. Two functions do the same resize, with a triangle or cubic filter. If the image shrinks, the filter is widened by
the scale. The filter is renormalized at the crop's borders. `cut` takes one decoded image in a loader thread.
`cut_batch` takes images on the device and multiplies two batches of matrices, `rows (S, H) @ image (H, W) @ columns (W,
S)`.

B images, C channels, H x W source, S side of a view.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from selfcluster.devices import has_triton
from selfcluster.randomness import Uniforms
from selfcluster.views.resize import INTERPOLATIONS, resize

TRIES = 10
UNIFORMS = 2 * TRIES + 3  # area and aspect a try, then top, left, flip
_CUBIC = -0.5  # Keys' (1981) coefficient, as Pillow and torch use it with antialiasing
_CROP_PCT = 0.875  # 224 of 256 pixels
_SMALL = 64  # up to this side the center view keeps the whole shorter side


def random_boxes(
    uniforms: np.ndarray | Uniforms,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float] | None = (0.08, 1.0),
    ratio: tuple[float, float] | None = (3 / 4, 4 / 3),
    flip_p: float = 0.5,
) -> np.ndarray:
    """Return the boxes of random crops; they depend on the uniforms only.

    Args:
        uniforms: (B, UNIFORMS) in [0, 1). Few of them are read: the first try usually fits.
        heights: (B,) source heights in pixels.
        widths: (B,) source widths in pixels.
        scale: the crop's area as a share of the image's, drawn uniformly; None: the whole image, unless it flips.
        ratio: width over height, drawn uniformly in its logarithm. None: squares anywhere in the image, `scale` then
            being the share of the largest square's area.
        flip_p: share of the views that are mirrored left to right.

    Returns:
        (B, 5) float32: top, left, height, width (whole pixels), flip (0 or 1).

    >>> random_boxes(np.full((1, UNIFORMS), 0.5), np.array([8]), np.array([6]), scale=None).tolist()
    [[0.0, 0.0, 8.0, 6.0, 0.0]]
    """
    h, w = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    top_u, left_u, flip_u = uniforms[:, range(2 * TRIES, UNIFORMS)].astype(np.float64).T
    if scale is None:
        height, width = h, w
    elif ratio is None:
        share = uniforms[:, [0]].astype(np.float64)[:, 0]
        side = np.sqrt(scale[0] + share * (scale[1] - scale[0])) * np.minimum(h, w)
        height = width = np.clip(np.rint(side), 1, np.minimum(h, w))
    else:
        height, width, found = _try_shapes(uniforms[:, [0, TRIES]], h, w, scale, ratio)
        again = np.flatnonzero(~found)
        if len(again):
            tried = _try_shapes(uniforms[again[:, None], range(2 * TRIES)], h[again], w[again], scale, ratio)
            height[again], width[again], found[again] = tried
        fallback_height, fallback_width = _central_shape(h, w, ratio)
        top_u, left_u = np.where(found, top_u, -1), np.where(found, left_u, -1)
        height, width = np.where(found, height, fallback_height), np.where(found, width, fallback_width)
    top = np.where(top_u < 0, (h - height) // 2, np.floor(top_u * (h - height + 1)))
    left = np.where(left_u < 0, (w - width) // 2, np.floor(left_u * (w - width + 1)))
    return np.stack([top, left, height, width, flip_u < flip_p], axis=1).astype(np.float32)


def _try_shapes(
    u: np.ndarray, h: np.ndarray, w: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return height, width and whether a try fits, (B,) each, for the first of the tries u (B, 2 T) that fits."""
    shares, aspects = np.split(u.astype(np.float64), 2, axis=1)
    area = (h * w)[:, None] * (scale[0] + shares * (scale[1] - scale[0]))  # (B, T)
    low, high = np.log(ratio)
    aspect = np.exp(low + aspects * (high - low))
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (width > 0) & (height > 0) & (width <= w[:, None]) & (height <= h[:, None])
    first = fits.argmax(axis=1)[:, None]
    take = np.take_along_axis
    return take(height, first, 1)[:, 0], take(width, first, 1)[:, 0], fits.any(axis=1)


def _central_shape(h: np.ndarray, w: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the shape of the largest part with an allowed aspect."""
    width = np.where(w / h > ratio[1], np.rint(h * ratio[1]), w)
    height = np.where(w / h < ratio[0], np.rint(w / ratio[0]), h)
    return np.maximum(height, 1), np.maximum(width, 1)


def cut(
    image: np.ndarray, box: np.ndarray, size: int, interpolation: str = "bilinear", out: np.ndarray | None = None
) -> np.ndarray:
    """Return one view of one decoded image: crop, antialiased resize, flip. A loader thread calls it.

    Args:
        image: (H, W, C) uint8, C up to 4.
        box: (5,) a row of `random_boxes`.
        size: side of the view in pixels.
        interpolation: "bilinear" or "bicubic".
        out: (C, size, size) uint8, contiguous, which receives the view; None: a new array.

    Returns:
        (C, size, size) uint8, equal to torchvision's `resized_crop(antialias=True)` of the uint8 image.
    """
    top, left, height, width, flip = (round(v) for v in box.tolist())
    crop = image[top : top + height, left : left + width]
    return resize(crop, (size, size), interpolation, flip=bool(flip), out=out)


def center(
    image: np.ndarray,
    size: int,
    interpolation: str = "bilinear",
    crop_pct: float | None = None,
    crop_mode: str = "center",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return the evaluation view: resize the image to `size / crop_pct` pixels and cut out its center, as timm does.

    Args:
        image: (H, W, C) uint8.
        size: side of the view in pixels.
        interpolation: "bilinear" or "bicubic".
        crop_pct: `size` divided by the side after the resize; None: 0.875, and 1 up to 64 px.
        crop_mode: "center" resizes the shorter side; "squash" resizes both sides and changes the aspect ratio.
        out: (C, size, size) uint8, contiguous, which receives the view; None: a new array.

    Returns:
        (C, size, size) uint8, equal to torchvision's `resize` followed by `center_crop`.
    """
    height, width, top, left = _center_shape(image.shape[0], image.shape[1], size, crop_pct, crop_mode)
    return resize(image, (height, width), interpolation, corner=(top, left), part=(size, size), out=out)


def decoded_side(size: int, crop_pct: float | None = None) -> int:
    """Return the shorter side that a decoded image needs so that a center view of `size` pixels loses no detail."""
    return _resized_side(size, crop_pct)


def _resized_side(size: int, crop_pct: float | None) -> int:
    share = (1.0 if size <= _SMALL else _CROP_PCT) if crop_pct is None else crop_pct
    return max(size, math.floor(size / share))


def _center_shape(
    height: int, width: int, size: int, crop_pct: float | None = None, crop_mode: str = "center"
) -> tuple[int, int, int, int]:
    short = _resized_side(size, crop_pct)
    longer = short if crop_mode == "squash" else int(short * max(height, width) / min(height, width))
    height, width = (longer, short) if height > width else (short, longer)
    return height, width, round((height - size) / 2), round((width - size) / 2)


@torch.no_grad()
def cut_batch(images: Tensor, boxes: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Cut one view of each image of a batch on the device.

    Args:
        images: (B, C, H, W) uint8 (or float in 0..255).
        boxes: (B, 5) rows of `random_boxes`, on any device.
        size: side of the views in pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (B, C, size, size) float32 in 0..255, not rounded. It equals `cut` of each image to 1/255 (bicubic: 2/255,
        because `cut` rounds its fixed-point weights).
    """
    _known(interpolation)
    if images.is_cuda and interpolation == "bilinear" and images.shape[1] <= 3 and images.numel() and has_triton():
        from selfcluster.views import cuda

        return cuda.cut(images, boxes, size)
    top, left, height, width, flip = boxes.to(images.device, torch.float32, non_blocking=True).unbind(1)
    rows = _filter(top, height, size, images.shape[2], interpolation, torch.zeros_like(flip))  # (B, S, H)
    columns = _filter(left, width, size, images.shape[3], interpolation, flip)  # (B, S, W)
    return sandwich(rows, images.to(torch.float32), columns.mT, bounded=True)


@torch.no_grad()
def center_batch(
    images: Tensor,
    size: int,
    interpolation: str = "bilinear",
    crop_pct: float | None = None,
    crop_mode: str = "center",
) -> Tensor:
    """Apply `center` on the device: (B, C, H, W) uint8 -> (B, C, size, size) float32 in 0..255."""
    _known(interpolation)
    height, width, top, left = _center_shape(images.shape[2], images.shape[3], size, crop_pct, crop_mode)

    def along(extent: int, resized: int, offset: int) -> Tensor:  # (1, S, extent)
        zero = torch.zeros(1, device=images.device)
        return _filter(zero, zero + extent, resized, extent, interpolation, zero)[:, offset : offset + size]

    rows, columns = along(images.shape[2], height, top), along(images.shape[3], width, left)
    count = images.shape[0]
    pixels = images.to(torch.float32)
    return sandwich(rows.expand(count, -1, -1), pixels, columns.mT.expand(count, -1, -1), bounded=True)


def sandwich(left: Tensor, images: Tensor, right: Tensor, bounded: bool = False) -> Tensor:
    """Return left (B, S, H) @ images (B, C, H, W) @ right (B, W, T), (B, C, S, T), in float32 under any autocast.

    `bounded` clamps both products to 0..255, as uint8 images between the two passes of a resize are: a bicubic filter
    overshoots at edges. The matrices are repeated for each channel, because one flat batch of products is four times
    faster than a broadcast one.
    """
    b, c, h, w = images.shape
    s, t = left.shape[1], right.shape[2]
    with full_precision(images.device):
        wide = torch.bmm(images.reshape(b * c, h, w), right[:, None].expand(b, c, w, t).reshape(b * c, w, t))
        wide = wide.clamp_(0, 255) if bounded else wide
        out = torch.bmm(left[:, None].expand(b, c, s, h).reshape(b * c, s, h), wide)
        out = out.clamp_(0, 255) if bounded else out
    return out.view(b, c, s, t)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context in which matrix products on `device` are float32, even inside an autocast region."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _filter(start: Tensor, length: Tensor, size: int, extent: int, interpolation: str, flip: Tensor) -> Tensor:
    """Return weights (B, size, extent) that resample [start, start + length) to `size` pixels; rows sum to 1."""
    steps = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    pixels = torch.arange(extent, device=start.device, dtype=torch.float32) + 0.5
    steps = torch.where(flip[:, None] > 0.5, size - steps, steps)  # (B, S)
    scale = length / size
    centers = start[:, None] + steps * scale[:, None]
    narrow = scale.clamp_min(1).reciprocal()[:, None]
    x = torch.sub((pixels * narrow)[:, None, :], (centers * narrow)[:, :, None]).abs_()  # (B, S, extent)
    weights = x.neg_().add_(1).clamp_min_(0) if interpolation == "bilinear" else _cubic(x)
    inside = (pixels > start[:, None]) & (
        pixels < (start + length)[:, None]
    )  # (B, extent): only pixels inside the crop count
    weights *= inside[:, None, :]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    a = _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _known(interpolation: str) -> str:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} is neither 'bilinear' nor 'bicubic'")
    return interpolation
