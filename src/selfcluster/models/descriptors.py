"""One vector of an image from a network's map: generalized mean, and maxima over regions.

F features, h x w places, R regions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_OVERLAP = 0.4  # of neighboring regions of the first level
_STEPS = range(2, 8)


def gem(places: Tensor, p: float = 3.0, eps: float = 1e-6) -> Tensor:
    """Return the generalized mean (B, F) of maps (B, F, h, w): (mean of max(x, eps)^p)^(1/p).

    Radenović et al. 2018, arXiv 1711.02512, equation 3. p = 1 is the mean of rectified values; the larger p, the nearer
    to the maximum.
    """
    return places.clamp(min=eps).pow(p).mean(dim=(2, 3)).pow(1 / p)


def regions(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """Return the square regions (top, left, side) of R-MAC on a grid of places.

    Tolias et al. 2016, arXiv 1511.05879, section 3.2: at level l the side is floor(2 min(h, w) / (l + 1)). Regions are
    spaced evenly. There are l of them along the shorter side and more along the longer one; how many more is chosen so
    that neighbors of the first level overlap by about 40 %.

    >>> regions(2, 4, 1)
    [(0, 0, 2), (0, 1, 2), (0, 2, 2)]
    """
    short, long = min(height, width), max(height, width)
    more = 0
    if long > short:
        overlaps = [abs((short**2 - short * (long - short) / (steps - 1)) / short**2 - _OVERLAP) for steps in _STEPS]
        more = overlaps.index(min(overlaps)) + 1
    found = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if not side:
            continue  # the map is too small for this level
        tops, lefts = (
            [int(k * (length - side) / max(1, count - 1)) for k in range(count)]
            for length, count in (
                (height, level + (more if height > width else 0)),
                (width, level + (more if width > height else 0)),
            )
        )
        found += [(top, left, side) for top in tops for left in lefts]
    return found


def region_maxima(places: Tensor, levels: int = 3) -> Tensor:
    """Return unit maxima (R, F) over the regions of a map (F, h, w)."""
    parts = [
        places[:, top : top + side, left : left + side].amax(dim=(1, 2))
        for top, left, side in regions(places.shape[1], places.shape[2], levels)
    ]
    return F.normalize(torch.stack(parts), dim=1)


def rmac(places: Tensor, levels: int = 3, whiten: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the unit descriptor (F,) of a map (F, h, w): the sum of its regions' maxima, each whitened first.

    Args:
        places: the map.
        levels: L of the regions.
        whiten: (R, F) to (R, d) with rows of length 1; None: as they are.
    """
    maxima = region_maxima(places, levels)
    return F.normalize((maxima if whiten is None else whiten(maxima)).sum(dim=0), dim=0)
