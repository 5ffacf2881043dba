"""Cluster colors: equally bright, so none shouts, and readable on light and on dark paper.

Hues step by the golden angle in OKLCH (Ottosson 2020), so that the first k of them are far apart for every k.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# OKLab to the cube roots of cone responses, and cone responses to linear sRGB (Ottosson's matrices)
_TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def cluster_colors(k: int) -> list[str]:
    """`k` colors as `#rrggbb`; the i-th does not depend on `k`.

    >>> cluster_colors(2)[0] == cluster_colors(5)[0]
    True
    """
    turn = np.arange(k)
    hue = 0.5 + turn * _GOLDEN_ANGLE
    light = np.array([0.68, 0.60, 0.74])[turn % 3]  # a second cue beside the hue
    chroma = 0.135
    lab = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)  # (k, 3)
    linear = np.clip((lab @ _TO_CONES.T) ** 3 @ _TO_RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return ["#{:02x}{:02x}{:02x}".format(*row) for row in np.round(srgb * 255).astype(int).tolist()]
