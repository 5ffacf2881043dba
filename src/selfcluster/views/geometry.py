"""Small affine maps and smooth elastic fields, for images whose color carries no information.

They suit digits, scans and microscopy: images without color or with a fixed layout, which random crops would destroy.
Map and field are composed into one sampling grid, so each image is interpolated once (bilinearly; scales far below 1
would alias). Affine maps work like torchvision's `affine`: the inverse map, about the image's center, gives the source
of each output pixel. Elastic fields follow Simard et al. 2003: white noise smoothed by a Gaussian. Here the noise is
drawn on a lattice with a spacing of one sigma, so it takes only tens of numbers per sample at any resolution.

B samples, C channels, h x w pixels, G lattice points per side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfcluster.views.crops import full_precision

UNIFORMS = 5  # of an affine map: angle, scale, shear, two shifts
_MARGIN = 2  # lattice points outside the image, in sigmas, so that borders move as much as the middle


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Small geometric changes; the defaults change nothing.

    `degrees`: rotation in [-degrees, degrees]. `scale`: range of the magnification. `shear`: horizontal shear in
    [-shear, shear], as a share of the height (the tangent of the slant). `shift`: in [-shift, shift] of the side, both
    ways. `elastic`: standard deviation of the elastic displacement, as a share of the side, smooth over
    `elastic_sigma` of the side. `fill`: value of pixels from outside, 0 to 255; None: the median of the image's border.
    """

    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    elastic_sigma: float = 0.2
    fill: float | None = None

    @property
    def lattice(self) -> int:
        """G, the number of lattice points per side of an elastic field."""
        return math.ceil(1 / self.elastic_sigma) + 2 * _MARGIN + 1

    @property
    def uniforms(self) -> int:
        """Return how many uniforms the map of one sample takes."""
        return UNIFORMS + (2 * self.lattice**2 if self.elastic else 0)


@torch.no_grad()
def warp(x: Tensor, affine: Affine, uniforms: Tensor) -> Tensor:
    """Warp each sample by its own affine map and elastic field.

    Args:
        x: (B, C, h, w) float32, on any device.
        affine: the ranges.
        uniforms: (B, affine.uniforms) in [0, 1).

    Returns:
        (B, C, h, w), a new tensor.
    """
    u = uniforms.to(x.device, torch.float32)
    signed = 2 * u - 1
    low, high = affine.scale
    matrix = inverse_map(
        degrees=signed[:, 0] * affine.degrees,
        scale=low + u[:, 1] * (high - low),
        shear=signed[:, 2] * affine.shear,
        shift=signed[:, 3:5] * affine.shift,
        aspect=x.shape[3] / x.shape[2],
    )
    field = elastic_field(signed[:, UNIFORMS:], affine, x.shape[2], x.shape[3]) if affine.elastic else None
    return sample(x, matrix, field, affine.fill)


def inverse_map(degrees: Tensor, scale: Tensor, shear: Tensor, shift: Tensor, aspect: float = 1.0) -> Tensor:
    """Return the maps from output to input coordinates, both in [-1, 1] as in `grid_sample` without aligned corners.

    The forward map slants, then magnifies, rotates clockwise and shifts, about the center.

    Args:
        degrees: (B,) clockwise rotation.
        scale: (B,) magnification.
        shear: (B,) horizontal slant, x <- x + shear * y with y pointing down.
        shift: (B, 2) right and down, as shares of width and height.
        aspect: width / height.

    Returns:
        (B, 2, 3).
    """
    angle = degrees * (math.pi / 180)
    cos, sin, one = torch.cos(angle), torch.sin(angle), torch.ones_like(angle)
    # inverse of (rotate @ slant * scale), in pixels; then both sides in units of half a side
    across, down = torch.stack([cos + shear * sin, sin - shear * cos]), torch.stack([-sin, cos])
    linear = torch.stack([across, down]).permute(2, 0, 1) / scale[:, None, None]  # (B, 2, 2)
    units = torch.tensor([[1.0, 1 / aspect], [aspect, 1.0]], device=linear.device)
    linear = linear * units
    offset = -(linear @ (2 * shift * one[:, None])[:, :, None])
    return torch.cat([linear, offset], dim=2)


def elastic_field(noise: Tensor, affine: Affine, height: int, width: int) -> Tensor:
    """Return displacements (B, height, width, 2) in grid units (2 = the side) from noise (B, 2 G G) in [-1, 1).

    Every pixel's displacement has the standard deviation `affine.elastic` of the side, borders included.
    """
    g = affine.lattice
    lattice = noise.reshape(-1, 2, g, g) * (math.sqrt(3) * 2 * affine.elastic)  # unit variance, times the amplitude
    rows, columns = (_gaussians(n, affine.elastic_sigma, g, noise) for n in (height, width))  # (h, G), (w, G)
    with full_precision(noise.device):
        return (rows @ lattice @ columns.T).permute(0, 2, 3, 1)


def _gaussians(size: int, sigma: float, points: int, like: Tensor) -> Tensor:
    at = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size
    lattice = 0.5 + (torch.arange(points, device=like.device) - (points - 1) / 2) * sigma
    weights = torch.exp(-0.5 * ((at[:, None] - lattice) / sigma) ** 2)
    return weights / weights.norm(dim=1, keepdim=True)


def sample(x: Tensor, matrix: Tensor, field: Tensor | None = None, fill: float | None = None) -> Tensor:
    """Sample x (B, C, h, w) at the positions of matrix (B, 2, 3) plus field (B, h, w, 2); outside pixels are `fill`."""
    with full_precision(x.device):
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        grid = grid if field is None else grid + field
        outside = _border_median(x) if fill is None else fill
        return F.grid_sample(x - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside


def _border_median(x: Tensor) -> Tensor:
    border = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], dim=2)
    return border.median(dim=2).values[:, :, None, None]
