"""Convolutions as matrix products, where oneDNN's own kernels are slow.

On processors with AMX, oneDNN computes the gradient of a convolution's weights in bfloat16 slowly if a layer has many
channels and few positions: 2 to 7 times slower than its own matrix product (512 channels, 4 x 4 positions, 256 images:
213 ms against 49 ms; 64 channels, 32 x 32 positions: 41 ms against 135 ms). These are the last stages of a ResNet.
With very few positions the whole layer is faster as one product with a matrix of all pairs of an input and an output
position, in float32, too: most of a kernel lies outside such small images. 512 channels, 2 x 2 positions, 512 images,
output and both gradients: bfloat16 194 ms against 31 ms, float32 348 ms against 75 ms. Other layers of 3 x 3 kernels
are computed by tiles in float32, see `winograd.py`: 1.5 to 3 times faster with AVX2, 1 to 3 times with AVX512.
Measured: docs/LOG.md, 2026-11-28.

B images, C channels in, O channels out, k kernel; I positions of the input, P of the output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfcluster.models import winograd

_CHANNELS = 256  # least number of input channels for which products were faster in every shape tried
_MANY = 512  # the same for the output and the images' gradient
_OUTPUTS = 9  # most positions of the output of a layer that is one product
_INPUTS, _INPUTS_FLOAT32 = 16, 4  # and of its input
_IMAGES = 32  # and least images for each position of the input, because making the matrix takes time
_NUMBERS = 1 << 25  # most numbers in the matrix
_BLOCK = 64 << 20  # bytes of the patches that are made at a time
_TILED, _TILES = 64, 64  # least channels, in and out, and tiles of a batch, for which Winograd's products were faster


def weight_gradient(images: Tensor, gradient: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the gradient (O, C, k, k) of a convolution's weights.

    It is the sum over images and positions of (outer product of an output's gradient and the patch that it saw).

    Args:
        images: (B, C, h, w), the convolution's input.
        gradient: (B, O, H, W) of its output.
        kernel, stride, padding: of the convolution, the same in both directions.
    """
    outputs = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, O)
    total: Any = None
    for patches in _patches(images, kernel, stride, padding):
        wanted, outputs = outputs[: len(patches)], outputs[len(patches) :]
        product = wanted.T @ patches
        total = product if total is None else total.float() + product
    return total.to(images.dtype).view(gradient.shape[1], kernel, kernel, -1).permute(0, 3, 1, 2)


def as_product(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return `F.conv2d` of images (B, C, h, w) with kernels (O, C, k, k), as products of patches and weights."""
    kernel = weight.shape[2]
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, len(weight))  # (k k C, O)
    parts = _patches(images, kernel, stride, padding)
    rows = [part @ matrix if bias is None else torch.addmm(bias, part, matrix) for part in parts]
    down, across = _outputs(images.shape[2:], kernel, stride, padding)
    return torch.cat(rows).view(len(images), down, across, -1).permute(0, 3, 1, 2)


def _outputs(sides: Sequence[int], kernel: int, stride: int, padding: int) -> list[int]:
    """Return the height and width of a convolution's output."""
    return [(side + 2 * padding - kernel) // stride + 1 for side in sides]


def _patches(images: Tensor, kernel: int, stride: int, padding: int) -> Iterator[Tensor]:
    """Yield what each output position sees, a few images at a time: (positions, k k C)."""
    rows = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # (B, h, w, C)
    down, across = _outputs(images.shape[2:], kernel, stride, padding)
    at_once = max(1, _BLOCK // (down * across * kernel**2 * images.shape[1] * images.element_size()))
    for part in rows.split(at_once):
        image, row, column, channel = part.stride()
        yield part.as_strided(  # a view: (b, H, W, k, k, C)
            (len(part), down, across, kernel, kernel, part.shape[3]),
            (image, row * stride, column * stride, row, column, channel),
        ).reshape(len(part) * down * across, -1)


class _Convolve(torch.autograd.Function):
    """A convolution whose weights get their gradient from `weight_gradient`, and other parts as products if faster."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        if weight.shape[1] < _MANY:
            return F.conv2d(images, weight, bias, stride, padding)
        return as_product(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        places = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1
        few, kernel = math.prod(images.shape[2:]) <= _INPUTS, weight.shape[2]
        turned = few and ctx.stride == 1 and weight.shape[1] >= _MANY and ctx.padding < kernel
        asked = [ctx.needs_input_grad[0] and not turned, False, ctx.has_bias]
        sizes = [weight.shape[0]] if ctx.has_bias else None
        to_images, _, to_bias = torch.ops.aten.convolution_backward(gradient, images, weight, sizes, *places, asked)
        if turned and ctx.needs_input_grad[0]:  # the convolution of the output's gradient with the turned kernels
            to_images = as_product(gradient, weight.flip(2, 3).transpose(0, 1), None, 1, kernel - 1 - ctx.padding)
        to_weight = weight_gradient(images, gradient, weight.shape[2], ctx.stride, ctx.padding)
        return to_images, to_weight, to_bias, None, None


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return `F.conv2d` of images (B, C, h, w) with square kernels (O, C, k, k); see the top of this file."""
    return _Convolve.apply(images, weight, bias, stride, padding)  # pyright: ignore[reportReturnType]


class _Dense(torch.autograd.Function):
    """A convolution as one product; its gradients are two more."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        (height, width), (out, channels, kernel, _) = images.shape[2:], weight.shape
        down, across = _outputs((height, width), kernel, stride, padding)
        matrix = weight.new_zeros(down * across, out, height * width, channels)
        taps = list(_taps(height, width, kernel, stride, padding))
        for to, position, y, x in taps:
            matrix[to, :, position] = weight[:, :, y, x]
        matrix = matrix.flatten(2).flatten(0, 1)  # (P O, I C)
        rows = images.permute(0, 2, 3, 1).reshape(len(images), -1)  # (B, I C)
        ctx.save_for_backward(rows, matrix)
        ctx.taps, ctx.shape, ctx.kernel, ctx.has_bias = taps, images.shape, kernel, bias is not None
        made = rows @ matrix.T if bias is None else torch.addmm(bias.repeat(down * across), rows, matrix.T)
        return made.view(len(images), down, across, out).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, matrix = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        outputs = gradients[0].permute(0, 2, 3, 1)  # (B, down, across, O)
        wanted, out = outputs.reshape(count, -1), outputs.shape[3]
        to_images = None
        if ctx.needs_input_grad[0]:
            to_images = (wanted @ matrix).view(count, height, width, channels).permute(0, 3, 1, 2)
        pairs = (wanted.T @ rows).view(-1, out, height * width, channels)
        total = pairs.new_zeros(
            out, ctx.kernel, ctx.kernel, channels, dtype=torch.promote_types(pairs.dtype, torch.float32)
        )
        for to, position, y, x in ctx.taps:
            total[:, y, x] += pairs[to, :, position]
        to_bias = outputs.sum(dim=(0, 1, 2)) if ctx.has_bias else None
        return to_images, total.to(rows.dtype).permute(0, 3, 1, 2), to_bias, None, None


def convolve_densely(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return `F.conv2d` of images (B, C, h, w) with square kernels (O, C, k, k), for few positions h w."""
    return _Dense.apply(images, weight, bias, stride, padding)  # pyright: ignore[reportReturnType]


def _taps(height: int, width: int, kernel: int, stride: int, padding: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield position of the output, position of the input, and row and column of the weight that joins them."""
    down, across = _outputs((height, width), kernel, stride, padding)
    for to, y, x in itertools.product(range(down * across), range(kernel), range(kernel)):
        row, column = to // across * stride + y - padding, to % across * stride + x - padding
        if 0 <= row < height and 0 <= column < width:
            yield to, row * width + column, y, x


@contextmanager
def quick_convolutions(module: nn.Module, wanted: bool) -> Iterator[None]:
    """In this block, convolutions of many channels are computed by matrix products or by tiles where that is faster.

    It applies to bfloat16 and float32 on a CPU, when gradients are kept. At the end the modules have their own
    `_conv_forward` back, so that copies and exports are torch's.

    Args:
        module: contains the convolutions.
        wanted: if False, nothing changes.
    """
    changed: list[Any] = [inner for inner in module.modules() if _is_suitable(inner)] if wanted else []
    for convolution in changed:
        convolution._conv_forward = _chosen(convolution)
    try:
        yield
    finally:
        for convolution in changed:
            del convolution._conv_forward


def _is_suitable(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != "zeros":
        return False
    shapes = (module.kernel_size, module.stride, module.padding, module.dilation)
    square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in shapes)
    large = square and module.kernel_size[0] > 1 and module.dilation[0] == 1
    return large and (module.in_channels >= _CHANNELS or _fits_tiles(module))


def _fits_tiles(convolution: nn.Conv2d) -> bool:
    channels = convolution.in_channels, convolution.out_channels
    shape = convolution.kernel_size[0], convolution.stride[0], convolution.padding[0]
    return shape == (3, 1, 1) and min(channels) >= _TILED and not any(size % winograd.LANES for size in channels)


def uses_tiles(module: nn.Module) -> bool:
    """Return whether `quick_convolutions` computes some convolutions of a module by tiles in float32."""
    some = any(_is_suitable(inner) and _fits_tiles(inner) for inner in module.modules() if isinstance(inner, nn.Conv2d))
    return some and winograd.chosen() is not None


def _chosen(convolution: nn.Conv2d) -> Any:
    own, stride, padding = convolution._conv_forward, convolution.stride[0], int(convolution.padding[0])
    kernel, area = convolution.kernel_size[0], convolution.in_channels * convolution.out_channels
    many, tiled = convolution.in_channels >= _CHANNELS, _fits_tiles(convolution)

    def is_dense(images: Tensor, most: int) -> bool:
        sides = images.shape[2:]
        inputs, outputs = math.prod(sides), math.prod(_outputs(sides, kernel, stride, padding))
        few = inputs <= most and outputs <= _OUTPUTS and inputs * outputs * area <= _NUMBERS
        return few and len(images) >= _IMAGES * inputs

    def saves(images: Tensor) -> bool:
        """Whether tiles, of which those at the edges are only partly used, need at most half of the products."""
        tiles = winograd.tiles_of(*images.shape[2:])
        enough = len(images) * tiles >= _TILES and 2 * tiles * 36 <= 9 * math.prod(images.shape[2:])
        return tiled and enough and winograd.chosen() is not None

    def forward(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if images.device.type != "cpu" or not torch.is_grad_enabled() or not weight.requires_grad:
            return own(images, weight, bias)
        if low and many:
            low_bias = None if bias is None else bias.bfloat16()
            quick = convolve_densely if is_dense(images, _INPUTS) else convolve
            return quick(images.bfloat16(), weight.bfloat16(), low_bias, stride, padding)
        if low or images.dtype != torch.float32 or weight.dtype != torch.float32:
            return own(images, weight, bias)
        if many and is_dense(images, _INPUTS_FLOAT32):
            return convolve_densely(images, weight, bias, stride, padding)
        if not saves(images):
            return own(images, weight, bias)
        made = winograd.convolve_by_tiles(images, weight)
        return made if bias is None else made + bias[:, None, None]

    return forward
