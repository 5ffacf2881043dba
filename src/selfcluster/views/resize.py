"""The antialiased resize of one uint8 image, as Pillow does it: by the compiled kernel native_cut.cpp, or by torch.

The kernel takes color images. It is several times faster than torch, and its pixels are the same.
`selfcluster.compiler` builds it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from selfcluster import compiler

INTERPOLATIONS = ("bilinear", "bicubic")
_SIZE, _POINTER, _INT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int


def resize(
    image: np.ndarray,
    shape: tuple[int, int],
    interpolation: str = "bilinear",
    *,
    corner: tuple[int, int] = (0, 0),
    part: tuple[int, int] | None = None,
    flip: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return a resized image, or a part of it.

    Args:
        image: (H, W, C) uint8, C up to 4.
        shape: height and width of the resized image.
        interpolation: "bilinear" or "bicubic".
        corner: top and left of the part in the resized image.
        part: height h and width w of the part; None: all.
        flip: mirror the part left to right.
        out: (C, h, w) uint8, contiguous, which receives the result; None: a new array.

    Returns:
        (C, h, w) uint8, equal to torchvision's `resize(antialias=True)` of the uint8 image.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} is neither 'bilinear' nor 'bicubic'")
    height, width = shape if part is None else part
    if out is None:
        out = np.empty((image.shape[2], height, width), np.uint8)
    kernel = _kernel_for(image)
    if kernel is not None:
        kernel.resize(image, shape, corner, out, interpolation, flip)
    else:
        made = by_torch(image, shape, interpolation)[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        out[:] = made[:, :, ::-1] if flip else made
    return out


def by_torch(image: np.ndarray, shape: tuple[int, int], interpolation: str = "bilinear") -> np.ndarray:
    """Return the whole resized image, (C, h, w) uint8, as torch makes it."""
    # torch's uint8 resize is Pillow's fixed-point arithmetic, vectorized (2 to 3 times faster, at most 1/255 apart).
    # The copy is NumPy's: torch's would start a team of threads for each loader thread, and warns on read-only arrays.
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size=shape, mode=interpolation, antialias=True)[0].numpy()


def has_kernel() -> bool:
    """Whether the compiled kernel is used here. The first call may compile it (some seconds, once per user)."""
    return chosen() is not None


class Kernel:
    """The functions of a built library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._cut = library.selfcluster_cut
        self._cut.argtypes = [_POINTER, *[_SIZE] * 9, _INT, _INT, _POINTER]
        self._cut.restype = _SIZE

    def resize(
        self,
        image: np.ndarray,
        shape: tuple[int, int],
        corner: tuple[int, int],
        out: np.ndarray,
        interpolation: str = "bilinear",
        flip: bool = False,
    ) -> None:
        """Resize an image, antialiased, and write a part of the result.

        Args:
            image: (H, W, 3) uint8; the three numbers of a pixel lie next to each other, and so do a row's pixels.
            shape: height and width of the whole result.
            corner: top and left of the part that is written.
            out: (3, h, w) uint8, contiguous, receives the part.
            interpolation: "bilinear" or "bicubic".
            flip: mirror the part left to right.

        Raises:
            MemoryError: not enough memory.
        """
        place, height, width = image.ctypes.data, image.shape[0], image.shape[1]
        is_cubic = interpolation == "bicubic"
        if self._cut(
            place, height, width, image.strides[0], *shape, *corner, *out.shape[1:], is_cubic, flip, out.ctypes.data
        ):
            raise MemoryError(f"not enough memory to resize an image of {height} x {width} pixels")

    def agrees(self) -> bool:
        """Whether the results for a few images, smaller, larger and of odd sizes, equal torch's to the bit."""
        pixels = np.random.default_rng(0).integers(0, 256, (67, 53, 3), np.uint8)
        for image, shape in ((pixels, (24, 17)), (pixels[5:18, 3:14], (40, 33)), (pixels[:1, :1], (2, 3))):
            for interpolation in INTERPOLATIONS:
                out = np.zeros((3, *shape), np.uint8)
                self.resize(image, shape, (0, 0), out, interpolation)
                if not np.array_equal(out, by_torch(image, shape, interpolation)):
                    return False
        return True


def _kernel_for(image: np.ndarray) -> Kernel | None:
    """Return the kernel if it is available and can take this (H, W, C) image."""
    if image.dtype != np.uint8 or image.shape[2] != 3 or image.strides[1:] != (3, 1) or image.strides[0] <= 0:
        return None
    return chosen()


chosen = compiler.OnDemand(
    Kernel,
    [Path(__file__).parent / "native_cut.cpp"],
    ("-ffp-contract=off",),  # weights must be rounded as they are elsewhere
    ("avx2",),
)
