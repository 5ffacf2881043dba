"""Curves of a run as SVG that takes its colors from the page, so that it is at home on light and on dark paper.

Names of metrics never enter the drawing: they may hold anything, and the page's template escapes them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from selfcluster.runs.contents import Contents

_INK, _GRID, _LINE, _CHANCE = "#010203", "#010204", "#010205", "#010206"  # stand-ins that no palette uses
_THEME = {_INK: "currentColor", _GRID: "var(--rule)", _LINE: "var(--accent)", _CHANCE: "var(--chance)"}
_POINTS = 300  # a curve is averaged down to this many
_MOST_CURVES = 12
_FIRST = ("learning_rate", "used_codes", "effective_clusters", "largest_share", "rankme", "nmi_previous", "nmi_labels")
_FIRST += ("probe_accuracy",)
_ACROSS = ("layer", "shots", "k")  # columns of a result that order its rows, and the scores that they order
_SCORES = ("top1", "map", "mean_ap")
_NOT_CURVES = {"loss", "epoch", "chance_loss", "seconds"}
_TITLES = {
    "learning_rate": ("Learning rate", "factor of each update"),
    "images_per_second": ("Images per second", "training speed"),
    "used_codes": ("Clusters in use", "number of clusters with images; close to 1: collapse"),
    "effective_clusters": ("Effective clusters", "number of equal clusters with the same entropy"),
    "largest_share": ("Share of the largest cluster", "close to 1: collapse"),
    "rankme": ("Feature rank (RankMe)", "number of dimensions that the features of recent training views use"),
    "gradient_norm": ("Gradient norm", "length of all gradients together; a rise by orders of magnitude is divergence"),
    "skipped_steps": ("Skipped steps", "steps so far whose loss or gradient was not finite"),
    "nmi_previous": ("NMI with the previous assignment", "agreement from 0 to 1; 1: the clusters no longer change"),
    "probe_accuracy": ("Online probe", "share of held-out images that a linear classifier of the features gets right"),
    "nmi_labels": ("Agreement with the given labels", "NMI of the clusters of training with the given labels"),
    "change_ratio": ("Labels that changed", "share of the images of a step that moved to another cluster"),
    "remade_at_start": (
        "Clusters refilled at the start",
        "number of small clusters that were refilled after the first k-means",
    ),
    "inertia": ("Inertia", "sum of squared distances to the centers, as of the last k-means"),
    "inertia_super": (
        "Inertia of the super-clusters",
        "sum of squared distances to their centers, as of the last k-means",
    ),
    "clusters": ("Clusters with images", "number, as of the last clustering"),
    "largest_cluster": ("Largest cluster", "number of images, as of the last clustering"),
    "row_error": ("Imbalance of the labeling", "error of the balanced assignment when it stopped; 0: exact"),
}


@dataclass(frozen=True)
class Curve:
    """A drawing and the words around it. `svg` is ours from first to last byte; empty: there is nothing to draw."""

    title: str
    meaning: str
    svg: Markup
    last: float | None


def loss_curve(contents: Contents) -> Curve | None:
    """The loss with the chance level as a dashed line; None without a finite loss."""
    if contents.last("loss") is None:
        return None
    chance = contents.last("chance_loss")
    steps, values = contents.metrics["loss"]
    points = np.flatnonzero(np.isfinite(values) & np.isfinite(steps))
    if len(points) < 2:
        at = f" at step {steps[points[0]]:,.0f}" if len(points) else ""
        level = "" if chance is None else f"; chance is {chance:.3g}{_as_logarithm(chance)}"
        meaning = f"{contents.last('loss'):.3g}{at} is the only value that was logged, so there is no curve{level}"
        return Curve("Loss", meaning, Markup(""), None)
    meaning = "lower is better"
    if chance is not None:
        meaning = (
            f"the dashed line at {chance:.3g}{_as_logarithm(chance)} is chance, the loss of a network that has learned "
            "nothing; a curve that stays on it is a collapsed run"
        )
    return Curve("Loss", meaning, _draw(steps, values, (5.6, 2.3), "loss", chance), contents.last("loss"))


def other_curves(contents: Contents) -> list[Curve]:
    """Learning rate and health first, then whatever else was logged, at most a dozen."""
    names = [name for name in contents.metrics if name not in _NOT_CURVES and _is_curve(contents, name)]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return [
        Curve(
            *_TITLES.get(name, (name, "")),
            _draw(*contents.metrics[name], (3.3, 1.75), f"curve{n}"),
            contents.last(name),
        )
        for n, name in enumerate(names[:_MOST_CURVES])
    ]


def table_curve(rows: Sequence[Mapping[str, object]], salt: str) -> Curve | None:
    """The score of a result's rows in their order, such as accuracy by layer; None where its rows form no curve."""
    across = next((name for name in _ACROSS if rows and name in rows[0]), None)
    score = next((name for name in _SCORES if rows and isinstance(rows[0].get(name), float)), None)
    if across is None or score is None or len(rows) < 2:
        return None
    values = np.array([row.get(score) if row.get(score) is not None else np.nan for row in rows], np.float64)
    if np.isfinite(values).sum() < 2:
        return None
    numbers = [row[across] for row in rows]
    places = numbers if all(isinstance(n, int) for n in numbers) else range(1, len(rows) + 1)
    x = np.array(list(places), np.float64)
    return Curve(f"{score} by {across}", "", _draw(x, values, (3.3, 1.75), salt, across=across), None)


def _is_curve(contents: Contents, name: str) -> bool:
    """One point is no curve, and a count of skipped steps that stays 0 says nothing."""
    steps, values = contents.metrics[name]
    finite = values[np.isfinite(values) & np.isfinite(steps)]
    return len(finite) > 1 and not (name == "skipped_steps" and not finite.any())


def _as_logarithm(chance: float) -> str:
    k = round(math.exp(min(chance, 20.0)))
    return f" = ln {k:,}" if k > 1 and abs(math.log(k) - chance) < 1e-3 else ""


def _draw(
    steps: np.ndarray,
    values: np.ndarray,
    inches: tuple[float, float],
    salt: str,
    level: float | None = None,
    across: str = "step",
) -> Markup:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    kept = np.isfinite(values) & np.isfinite(steps)
    x, y = _thin(steps[kept], values[kept])
    rc: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 8, "axes.unicode_minus": False}
    with mpl.rc_context(rc):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.plot(x, y, color=_LINE, linewidth=1.6, solid_joinstyle="round")
        if level is not None:
            axes.axhline(level, color=_CHANCE, linewidth=1.2, linestyle=(0, (5, 3)))
            axes.set_ylim(top=max(level, float(y.max())) * 1.04)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=6 if inches[0] > 4 else 4, integer=True)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_GRID)
        axes.tick_params(colors=_INK, length=0)
        axes.set_xlabel(across, color=_INK, loc="right")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_themed(buffer.getvalue()))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighboring points, so that a million steps draw as fast as a hundred."""
    if len(x) <= _POINTS:
        return x, y
    parts = np.linspace(0, len(x), _POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(parts, len(x)))
    return np.add.reduceat(x, parts) / counts, np.add.reduceat(y, parts) / counts


def _themed(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[a-z0-9]+_\d+(\.[\w.]+)?">', "<g>", svg)  # several drawings share a page, ids must not meet
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    for stand_in, color in _THEME.items():
        svg = svg.replace(stand_in, color)
    return svg
