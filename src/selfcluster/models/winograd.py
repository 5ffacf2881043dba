"""Convolutions with 3 x 3 kernels by Winograd's minimal filtering, F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray 2016, arXiv 1509.09308: Y = A^T [(G g G^T) . (B^T d B)] A for a tile Y of 4 x 4 outputs, the 6 x 6 inputs
d that it sees, and a kernel g. The product of 36 numbers becomes 36 matrix products once it is summed over channels.
Gradients are those of the same formula. The compiled kernel native_winograd.cpp transforms images and gradients. The
matrix products are torch's. In float32 the results differ from those of F.conv2d by a few millionths of their norm.
`selfcluster.compiler` builds the kernel. When it pays is decided in `convolution.py`.

B images, C channels in, O channels out, T tiles an image.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfcluster import compiler

LANES = 8  # the numbers of channels must be multiples of it
_PLANES = 36
_TRANSFORMS = ("input_to_planes", "output_to_planes", "planes_to_output", "planes_to_input")
_BLOCK = 32 << 20  # bytes of the planes of inputs, and of those of outputs, that are held at a time
_APART = 80  # numbers between planes: those whose distance is a power of 2 would fight for the same cache lines
_G = [
    [1 / 4, 0, 0],
    [-1 / 6] * 3,
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_SIZE, _POINTER, _INT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int


class Kernel:
    """The functions of a built library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._functions = {name: getattr(library, f"selfcluster_{name}") for name in _TRANSFORMS}
        for function in self._functions.values():
            function.argtypes, function.restype = [_POINTER, *[_SIZE] * 4, _POINTER, _SIZE, _INT], _SIZE

    def call(self, name: str, images: Tensor, planes: Tensor) -> None:
        """Transform images to planes, or planes to images.

        Args:
            name: one of `_TRANSFORMS`.
            images: (B, C, h, w) float32 with the channels of a position next to each other.
            planes: (36, B T, C) float32.
        """
        count, channels, height, width = images.shape
        threads = torch.get_num_threads()
        if self._functions[name](
            images.data_ptr(), count, height, width, channels, planes.data_ptr(), planes.stride(0), threads
        ):
            raise RuntimeError("no thread could be started; SELFCLUSTER_NATIVE=0 uses torch instead")

    def agrees(self) -> bool:
        """Whether outputs and gradients of a few images equal float64's."""
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(shape, generator=generator) for shape in ((3, 16, 9, 6), (8, 16, 3, 3), (3, 8, 9, 6))]
        results = []
        for exact in (False, True):
            images, weight, change = (x.to(torch.float64 if exact else torch.float32) for x in given)
            images.requires_grad_()
            weight.requires_grad_()
            with torch.enable_grad():
                out: Any = F.conv2d(images, weight, padding=1) if exact else _Winograd.apply(images, weight, self)
                results.append([out.detach(), *torch.autograd.grad(out, (images, weight), change)])
        return all(bool((ours - true).norm() < 1e-5 * true.norm()) for ours, true in zip(*results, strict=True))


def tiles_of(height: int, width: int) -> int:
    """Return the number T of tiles of an image."""
    return -(-height // 4) * -(-width // 4)


def convolve_by_tiles(images: Tensor, weight: Tensor) -> Tensor:
    """Return `F.conv2d(images, weight, padding=1)` of images (B, C, h, w) with kernels (O, C, 3, 3), all float32.

    Raises:
        ValueError: the kernel is not available, or C or O is no multiple of `LANES`.
    """
    kernel = chosen()
    if kernel is None or weight.shape[0] % LANES or weight.shape[1] % LANES:
        raise ValueError("the compiled kernel cannot take this")
    return _Winograd.apply(images, weight, kernel)  # pyright: ignore[reportReturnType]


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.kernel = kernel
        images, weights = images.contiguous(memory_format=torch.channels_last), _to_planes(weight)
        count, _, height, width = images.shape
        out = images.new_empty(count, height, width, len(weight)).permute(0, 3, 1, 2)
        for rows, planes, products in _blocks(images, len(weight)):
            kernel.call("input_to_planes", images[rows], planes)
            torch.bmm(planes, weights.transpose(1, 2), out=products)
            kernel.call("planes_to_output", out[rows], products)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = ctx.saved_tensors
        kernel = ctx.kernel
        images, change = (x.contiguous(memory_format=torch.channels_last) for x in (images, gradients[0]))
        weights = _to_planes(weight)
        total, to_images = torch.zeros_like(weights), torch.empty_like(images) if ctx.needs_input_grad[0] else None
        for rows, planes, products in _blocks(images, len(weight)):
            kernel.call("output_to_planes", change[rows], products)
            kernel.call("input_to_planes", images[rows], planes)
            total.baddbmm_(products.transpose(1, 2), planes)
            if to_images is not None:
                torch.bmm(products, weights, out=planes)
                kernel.call("planes_to_input", to_images[rows], planes)
        to_weight = (_spread(weight).T @ total.flatten(1)).view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
        return to_images, to_weight, None


def _spread(weight: Tensor) -> Tensor:
    """Return the matrix (36, 9) that makes G g G^T of a kernel g."""
    matrix = weight.new_tensor(_G, dtype=torch.float64)
    return torch.kron(matrix, matrix).to(weight.dtype)


def _to_planes(weight: Tensor) -> Tensor:
    """Return G g G^T of kernels (O, C, 3, 3): (36, O, C)."""
    return (_spread(weight) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(_PLANES, *weight.shape[:2])


def _blocks(images: Tensor, channels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield which images are next, and room for the planes of their inputs and of their outputs of `channels`."""
    count, tiles = len(images), tiles_of(*images.shape[2:])
    most = max(1, _BLOCK // (4 * _PLANES * tiles * max(images.shape[1], channels)))
    at_once = -(-count // -(-count // most))  # as many images in each block
    planes = products = images.new_empty(0, 0)
    for first in range(0, count, at_once):
        rows = min(at_once, count - first) * tiles
        if planes.shape[1] != rows:
            planes, products = (_room(images, rows, size) for size in (images.shape[1], channels))
        yield slice(first, first + at_once), planes, products


def _room(images: Tensor, rows: int, channels: int) -> Tensor:
    return images.new_empty_strided((_PLANES, rows, channels), (rows * channels + _APART, channels, 1))


chosen = compiler.OnDemand(
    Kernel, [Path(__file__).parent / "native_winograd.cpp"], ("-mavx2", "-mfma"), ("avx2", "fma")
)
