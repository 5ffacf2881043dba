"""Which centroid is nearest: the step of k-means that costs everything, exact on every engine.

A product in low precision (or float32) proposes; wherever the two best centroids are closer than the product's error
bound, the candidates within the bound are compared again in float64. Labels therefore are those of float64
arithmetic, ties going to the lowest number, and depend neither on the engine nor on how rows are cut into chunks.

With u = x - m, v = c - m and m the mean centroid, the nearest centroid maximises s = u.v - |v|^2 / 2; the shift keeps
bits that a data set far from the origin would lose. A computed product differs from the true one by at most
|u - u'| |v| + |u'| |v - v'| (Cauchy-Schwarz; u', v' are the rounded factors) plus d eps |u| |v| for the additions.

Letters: n rows, d dimensions, k centroids, P pairs of a row and a candidate.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from selfcluster.clustering import native

_CHUNK_BYTES = 8 << 20  # scores of a chunk stay in cache on a CPU
_CHUNK_BYTES_CUDA = 1 << 30
_PAIR_ELEMENTS = 1 << 22  # float64 numbers held at once when candidates are compared
_TIGHT = 0.03  # share of |u|^2 below which a distance is computed from the difference
_GROUP = 32  # centroids reduced to one maximum
_EPS32 = 2.0**-24  # unit roundoff of float32
_EPS16 = 2.0**-9  # of bfloat16


class Nearest(NamedTuple):
    """`labels` (n,) int64 and `distances` (n,) float32 (float64 for float64 rows), squared Euclidean."""

    labels: Tensor
    distances: Tensor


@torch.no_grad()
def nearest_centroid(
    x: Tensor, centroids: Tensor, *, spherical: bool = False, exact: bool = True, engine: str | None = None
) -> Nearest:
    """The nearest centroid of every row and its squared distance.

    Args:
        x: (n, d) floating-point rows, on any device.
        centroids: (k, d), on the same device.
        spherical: compare directions: rows and centroids are scaled to length 1 first, so that the squared
            distance is 2 - 2 cos. A row of zeros keeps length 0.
        exact: labels equal float64's; False takes the fast product's word, which is right but for near ties.
        engine: "native" (compiled int8 proposals, CPU), "bfloat16" or "float32"; None takes the fastest at hand.

    Returns:
        `Nearest(labels, distances)`. Never holds more than a few MB of scores on a CPU (1 GB on CUDA).

    Raises:
        ValueError: the shapes do not fit, or the engine is unknown or cannot run here.

    >>> nearest_centroid(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [7.0]]))
    Nearest(labels=tensor([0, 1]), distances=tensor([1., 4.]))
    """
    if x.ndim != 2 or centroids.ndim != 2 or x.shape[1] != centroids.shape[1] or len(centroids) == 0:
        raise ValueError(f"x {tuple(x.shape)} and centroids {tuple(centroids.shape)} are not (n, d) and (k, d), k > 0")
    x = _working(x)
    centroids = centroids.to(x.dtype)
    if spherical:
        x, centroids = unit_rows(x), unit_rows(centroids)
    engine = engine or _fastest(x)
    if engine == "native":
        labels, distances, done = native.nearest(x, centroids)
        if done == len(x):
            return Nearest(labels, distances)
        rest = _Scorer(centroids, "float32", exact).nearest(x[done:])
        return Nearest(torch.cat([labels, rest.labels]), torch.cat([distances, rest.distances]))
    if engine not in ("bfloat16", "float32"):
        raise ValueError(f"engine={engine!r} is none of 'native', 'bfloat16', 'float32'")
    return _Scorer(centroids, engine, exact).nearest(x)


def unit_rows(x: Tensor) -> Tensor:
    """Rows scaled to Euclidean length 1; a row of zeros stays."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norms > 0, norms, torch.ones_like(norms))


def _working(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _fastest(x: Tensor) -> str:
    if x.device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if native.takes(x):
        return "native"
    return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    # private names, absent from some releases and processors: absent means no
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        check = getattr(torch.cpu, name, None)
        if check is not None and check():
            return True
    return False


class _Scorer:
    """Centroids made ready once, then any number of rows against them."""

    def __init__(self, centroids: Tensor, engine: str, exact: bool) -> None:
        self.centroids, self.exact, self.low = centroids, exact, engine == "bfloat16"
        k, d = centroids.shape
        self.middle = centroids.double().mean(dim=0).to(centroids.dtype)  # (d,)
        shifted = (centroids.double() - self.middle.double()).float()  # (k, d)
        dtype = torch.bfloat16 if self.low else torch.float32
        padded = -(-k // _GROUP) * _GROUP
        # u.v - |v|^2 / 2 as one product: u gets a column of ones, v one of -|v|^2 / 2 (-inf where there is no centroid)
        self.factor = torch.zeros(padded, d + 1, dtype=dtype, device=centroids.device)
        self.factor[:k, :d] = shifted
        self.factor[:k, d] = shifted.double().square().sum(dim=1).div(-2)
        self.factor[k:, d] = -torch.inf
        self.longest = float(shifted.norm(dim=1).max())
        self.rounding = float((shifted - self.factor[:k, :d].float()).norm(dim=1).max())
        budget = _CHUNK_BYTES_CUDA if centroids.device.type == "cuda" else _CHUNK_BYTES
        self.rows_per_chunk = max(64, budget // (padded * self.factor.element_size()))

    def nearest(self, x: Tensor) -> Nearest:
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        distances = torch.empty(len(x), dtype=x.dtype, device=x.device)
        # buffers for all chunks: touching fresh memory for each would cost as much as half of the products
        most = min(len(x), self.rows_per_chunk)
        scores, gap = self.factor.new_empty(most, len(self.factor)), x.new_empty(most, x.shape[1])
        shifted = torch.ones(most, x.shape[1] + 1, device=x.device)
        for start in range(0, len(x), self.rows_per_chunk):
            part = slice(start, start + self.rows_per_chunk)
            n = len(x[part])
            torch.sub(x[part], self.middle, out=shifted[:n, :-1])
            length = torch.linalg.vector_norm(shifted[:n, :-1], dim=1)
            labels[part], best = self._labels(x[part], shifted[:n], length, scores[:n])
            if self.low or x.dtype == torch.float64:
                # from the difference itself, as below
                torch.index_select(self.centroids, 0, labels[part], out=gap[:n]).sub_(x[part])
                distances[part] = torch.linalg.vector_norm(gap[:n], dim=1).square_()
                continue
            square = length.square_()
            found = square - 2 * best
            # |u|^2 - 2 s loses the bits of rows close to their centroid: those from the difference itself
            tight = (found < _TIGHT * square).nonzero().squeeze(1)
            if len(tight):
                gaps = self.centroids[labels[part][tight]] - x[part][tight]
                found[tight] = torch.linalg.vector_norm(gaps, dim=1).square_()
            distances[part] = found
        return Nearest(labels, distances)

    def _labels(self, x: Tensor, shifted: Tensor, length: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (n,) and the best computed scores (n,)."""
        factor = shifted.to(self.factor.dtype)  # (n, d + 1)
        torch.mm(factor, self.factor.T, out=scores)  # (n, k padded)
        # an arg-max over groups' maxima and one within a group: five times faster than one over all
        peaks = scores.view(len(x), -1, _GROUP).amax(dim=2)  # (n, groups)
        best, group = peaks.max(dim=1)
        first = torch.arange(0, peaks.numel(), peaks.shape[1], device=x.device)
        inside = scores.view(-1, _GROUP).index_select(0, first + group)  # (n, _GROUP)
        labels = group * _GROUP + inside.argmax(dim=1)
        if not self.exact:
            return labels, best
        tolerance = 2 * self._error(shifted[:, :-1], length, factor[:, :-1])
        if self.low:  # the product is stored in bfloat16 too
            tolerance = tolerance + 4 * _EPS16 * (best.float().abs() + tolerance)
        least = (best.float() - tolerance)[:, None]
        close = ((peaks >= least).sum(dim=1) > 1) | ((inside >= least).sum(dim=1) > 1)
        close = close.nonzero().squeeze(1)
        if len(close):
            labels[close] = self._compare(x[close], scores[close].float() >= least[close])
        return labels, best

    def _error(self, u: Tensor, length: Tensor, factor: Tensor) -> Tensor:
        """The bound on |computed score - true score| for each row, (n,)."""
        adding = (u.shape[1] + 8) * _EPS32 * (length * self.longest + self.longest**2)
        if not self.low:
            return adding
        lost = torch.linalg.vector_norm(u - factor.float(), dim=1)
        return adding + lost * self.longest + (length + lost) * self.rounding + _EPS16 * self.longest**2 / 2

    def _compare(self, x: Tensor, near: Tensor) -> Tensor:
        """For each row the candidate at the least float64 distance, the lowest number among equals."""
        row, candidate = near.nonzero().unbind(dim=1)  # each (P,)
        distance = torch.empty(len(row), dtype=torch.float64, device=x.device)
        step = max(1, _PAIR_ELEMENTS // x.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            gap = x[row[part]].double() - self.centroids[candidate[part]].double()
            distance[part] = gap.square_().sum(dim=1)
        least = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        least.scatter_reduce_(0, row, distance, "amin")
        k = len(self.centroids)
        candidate = torch.where(distance == least[row], candidate, k)
        return torch.full((len(x),), k, device=x.device).scatter_reduce_(0, row, candidate, "amin")
