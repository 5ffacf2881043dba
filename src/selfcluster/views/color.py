"""Color operations on a batch; every sample has its own parameters and its own order.

Brightness, contrast, saturation and hue in any order (torchvision's `ColorJitter`), grayscale, Gaussian blur,
solarization (Grill et al. 2020) and gamma. Values equal those of torchvision's functional forms on float images, here
in 0..255. A row of a `ColorTable` holds the parameters of one sample. The table is on the CPU, so it is known without
waiting for the device which rows an operation changes. Images without three channels skip color operations.
Departs: the blur's kernel extends three sigmas at any size, as in Pillow (SwAV, MoCo). SimCLR limits its kernel to a
tenth of the side (23 taps at 224 px, 3 at 32 px).

B samples, C channels, h x w pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from selfcluster.views.crops import sandwich

UNIFORMS = 11  # a sample's draw for a ColorTable's row
WHITE = 255.0
_GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, to torchvision's digits
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4)
_THRESHOLD = 128.0  # solarize from mid-gray, as DINO and BYOL
_TOGETHER = 1 << 20  # numbers that pass through all operations together on a CPU: 4 MB stay in its cache
_SIGMAS = 3.0  # the kernel's radius; 0.3 % of the weight lies outside


@dataclass(frozen=True, kw_only=True)
class Color:
    """How the colors of a view change; the defaults change nothing.

    `jitter`: strengths of brightness, contrast, saturation (factors in [1 - x, 1 + x]) and hue (turns in [-x, x]).
    They apply in random order to a share `jitter_p` of the samples. `gray_p`: share of samples that become gray.
    `blur_p`: share that is blurred, with a sigma (pixels) from `blur_sigma`. `solarize_p`: share that is solarized.
    `gamma`: range of the exponent, drawn uniformly in its logarithm. `gray_first`: gray before the jitter (NPID, SeLa).
    """

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0
    gamma: tuple[float, float] | None = None
    gray_first: bool = False

    def table(self, uniforms: Tensor) -> ColorTable:
        """Return the parameters for uniforms (B, UNIFORMS) in [0, 1)."""
        u = uniforms.to("cpu", torch.float32).unbind(1)

        def factor(x: Tensor, strength: float) -> Tensor:
            low = max(0.0, 1 - strength)
            return low + x * (1 + strength - low)

        low, high = self.blur_sigma
        bottom, top = (math.log(g) for g in self.gamma) if self.gamma else (0.0, 0.0)
        return ColorTable(
            jitter=u[0] < self.jitter_p,
            order=_ORDERS[(u[1] * len(_ORDERS)).long()],
            brightness=factor(u[2], self.jitter[0]),
            contrast=factor(u[3], self.jitter[1]),
            saturation=factor(u[4], self.jitter[2]),
            hue=(2 * u[5] - 1) * self.jitter[3],
            gray=u[6] < self.gray_p,
            gray_first=torch.full(u[6].shape, self.gray_first),
            sigma=torch.where(u[7] < self.blur_p, low + u[8] * (high - low), 0.0),
            solarize=u[9] < self.solarize_p,
            gamma=torch.exp(bottom + u[10] * (top - bottom)),
        )


@dataclass(frozen=True, kw_only=True)
class ColorTable:
    """Parameters of B samples, CPU tensors (B,). `order` (B, 4): 0 to 3 are brightness, contrast, saturation, hue.

    Neutral values: False, factors and gamma 1, hue and sigma 0.
    """

    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    gray_first: Tensor
    sigma: Tensor
    solarize: Tensor
    gamma: Tensor

    @staticmethod
    def stack(tables: Sequence[ColorTable]) -> ColorTable:
        """Concatenate the rows of several tables."""
        if len(tables) == 1:
            return tables[0]
        columns = (field.name for field in fields(ColorTable))
        return ColorTable(**{name: torch.cat([getattr(table, name) for table in tables]) for name in columns})

    def rows(self, part: slice) -> ColorTable:
        """Return some of the rows."""
        return ColorTable(**{field.name: getattr(self, field.name)[part] for field in fields(self)})


@torch.no_grad()
def recolor_(x: Tensor, table: ColorTable) -> Tensor:
    """Apply a table to a batch in place: jitter and gray (in either order), blur, solarize, gamma.

    Args:
        x: (B, C, h, w) float32 in 0..255, on any device; overwritten.
        table: B rows.

    Returns:
        `x`, still in 0..255.
    """
    size = max(1, _TOGETHER // max(1, x[0].numel())) if len(x) and x.device.type == "cpu" else max(1, len(x))
    for start in range(0, len(x), size):
        _recolor_(x[start : start + size], table if size >= len(x) else table.rows(slice(start, start + size)))
    return x


def _recolor_(x: Tensor, table: ColorTable) -> None:
    colors = x.shape[1] == 3
    if colors:
        _on_rows(x, table.gray & table.gray_first, grayscale)
    _jitter_(x, table, colors)
    if colors:
        _on_rows(x, table.gray & ~table.gray_first, grayscale)
    _on_rows(x, table.sigma > 0, blur, table.sigma)
    _on_rows(x, table.solarize, solarize)
    _on_rows(x, table.gamma != 1, gamma, table.gamma)


def _on_rows(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return
    if len(rows) == len(x):
        x.copy_(operation(x, *parameters))
    else:
        there = rows.to(x.device, non_blocking=True)
        x.index_copy_(0, there, operation(x.index_select(0, there), *(p[rows] for p in parameters)))


def _jitter_(x: Tensor, table: ColorTable, colors: bool) -> None:
    """The four operations in each sample's own order.

    The rows are sorted by the number of operations before the hue. Then each operation before or after the hue changes
    a contiguous slice of rows, and the expensive hue runs once. The other three operations are a blend with one weight
    per sample.
    """
    rows = table.jitter.nonzero()[:, 0]
    if not len(rows):
        return
    order = table.order[rows]
    before = (order == _HUE).long().argmax(dim=1)  # (b,) operations before the hue's
    before, by = before.sort(stable=True)
    rows, order = rows[by], order[by]
    factors = torch.stack([table.brightness, table.contrast, table.saturation], dim=1)[rows]  # (b, 3)
    kinds = order[order != _HUE].view(-1, 3)
    factors = factors.gather(1, kinds).to(x.device, non_blocking=True)
    hue = table.hue[rows]
    there, on_device = rows.to(x.device, non_blocking=True), kinds.to(x.device, non_blocking=True)

    part = x.index_select(0, there)
    first = [
        int((before <= step).sum()) for step in range(3)
    ]  # rows from this one on apply operation `step` before the hue
    for step in range(3):
        _blend_(part[first[step] :], on_device[first[step] :, step], factors[first[step] :, step], colors)
    if colors and bool((hue != 0).any()):
        _turn_(part, hue.to(x.device, non_blocking=True))
    for step in range(3):
        _blend_(part[: first[step]], on_device[: first[step], step], factors[: first[step], step], colors)
    x.index_copy_(0, there, part)


def _blend_(x: Tensor, kind: Tensor, factor: Tensor, colors: bool) -> None:
    """x <- clamp(f x + (1 - f) y); y is 0 for brightness, the mean gray for contrast, the gray for saturation."""
    if not len(x):
        return
    if not colors:  # gray images have no saturation
        factor = torch.where(kind == _SATURATION, 1.0, factor)
    kind, factor = kind[:, None, None, None], factor[:, None, None, None]
    other = _gray(x) if colors else x.mean(dim=1, keepdim=True)
    mean = other.mean(dim=(2, 3), keepdim=True)
    rest = 1 - factor
    other.mul_(rest * (kind == _SATURATION)).add_(mean * rest * (kind == _CONTRAST))
    torch.addcmul(other, x, factor, out=x).clamp_(0, WHITE)


def _gray(x: Tensor) -> Tensor:
    red, green, blue = _GRAY
    return torch.mul(x[:, :1], red).add_(x[:, 1:2], alpha=green).add_(x[:, 2:], alpha=blue)


def _turn_(x: Tensor, turns: Tensor) -> None:
    """Turn the hue, in sixths of a turn. Largest and smallest channel stay, as in HSV, so only the hue is computed."""
    red, green, blue = x.unbind(1)  # each (B, h, w)
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    inverse = chroma.clamp_min(1e-6).reciprocal_()
    # if two channels are largest, the formulas agree, so a blend by 0 or 1 chooses: torch.where is five times slower
    hue = (red - green).mul_(inverse).add_(4)
    hue.lerp_((blue - red).mul_(inverse).add_(2), _indicator(high, green))
    hue.lerp_((green - blue).mul_(inverse), _indicator(high, red))
    hue.add_(6 * turns[:, None, None])
    hue.sub_(torch.floor(hue * (1 / 6)), alpha=6)  # in [0, 6]
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(low, chroma, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=green)
    torch.addcmul(low, chroma, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=blue)


def _indicator(x: Tensor, y: Tensor) -> Tensor:
    """1.0 where equal, else 0.0."""
    return torch.eq(x, y, out=torch.empty_like(x))


def jitter(x: Tensor, kind: str, amount: Tensor) -> Tensor:
    """Apply "brightness", "contrast" or "saturation" (factors), or "hue" (turns), with one value per sample.

    x (B, C, h, w) float32 in 0..255, amount (B,) -> a new tensor.
    """
    out, colors = x.clone(), x.shape[1] == 3
    names = ("brightness", "contrast", "saturation")
    if kind == "hue":
        if colors:
            _turn_(out, amount)
    else:
        _blend_(out, torch.full_like(amount, names.index(kind), dtype=torch.long), amount, colors)
    return out


def grayscale(x: Tensor) -> Tensor:
    """Return the gray of images (B, 3, h, w) in all three channels."""
    return _gray(x).expand_as(x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur x (B, C, h, w) by Gaussians of sigma (B,) pixels, one per sample, on the CPU; the border is reflected.

    Equals torchvision's `gaussian_blur` with a kernel of 1 + 2 * ceil(3 * sigma) taps (fewer if the image is
    smaller). Both passes are banded matrices: two batched products cost less than 2 B C convolutions.
    """
    radius = min(math.ceil(_SIGMAS * float(sigma.max())), min(x.shape[2:]) - 1)
    taps = torch.arange(radius + 1, dtype=torch.float32)
    half = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    half *= taps <= torch.ceil(_SIGMAS * sigma)[:, None]  # each sample has its own radius
    half /= 2 * half.sum(dim=1, keepdim=True) - half[:, :1]
    half = torch.nn.functional.pad(half, (0, 1)).to(x.device, non_blocking=True)  # (B, radius + 2): 0 beyond the radius
    rows = _band(half, x.shape[2])
    columns = rows if x.shape[2] == x.shape[3] else _band(half, x.shape[3])
    return sandwich(rows, x, columns.mT)


def _band(half: Tensor, size: int) -> Tensor:
    """Return the (B, size, size) matrices that convolve. The border is reflected without its edge pixel.

    Pixel j reaches pixel i directly, through its mirror image left of the border, and through that right of it.
    """
    i = torch.arange(size, device=half.device)[:, None]
    j, last = i.T, half.shape[1] - 1
    left = torch.where(j > 0, i + j, last)
    right = torch.where(j < size - 1, 2 * (size - 1) - i - j, last)
    band = sum(half.index_select(1, d.clamp_max(last).reshape(-1)) for d in ((i - j).abs(), left, right))
    return band.view(-1, size, size)  # pyright: ignore[reportAttributeAccessIssue]


def solarize(x: Tensor) -> Tensor:
    """Invert values of 128 and above."""
    return torch.lerp(x, WHITE - x, torch.ge(x, _THRESHOLD, out=torch.empty_like(x)))


def gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """x (B, C, h, w) in 0..255 -> 255 (x / 255) ** exponent, one exponent (B,) per sample, on the CPU."""
    power = exponent.to(x.device, non_blocking=True)[:, None, None, None]
    return (x * (1 / WHITE)).pow_(power).mul_(WHITE)
