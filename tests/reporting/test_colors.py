"""Cluster colors."""

from __future__ import annotations

import numpy as np

from selfcluster.reporting.colors import cluster_colors


def test_they_are_distinct_and_do_not_depend_on_how_many():
    many = cluster_colors(60)
    assert len(set(many)) == 60
    assert cluster_colors(7) == many[:7]


def test_every_color_can_be_read_on_white_and_on_black():
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in cluster_colors(200)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]  # WCAG 2
    assert (1.05 / (luminance + 0.05)).min() > 1.8
    assert ((luminance + 0.05) / 0.05).min() > 4.5
