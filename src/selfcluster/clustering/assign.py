"""Find the nearest centroid of each row: the most expensive step of k-means. The result is exact on every engine.

Scores are computed in low precision (or float32). If the two best centroids of a row are closer than the error bound,
the candidates within the bound are compared again in float64. So labels are those of float64 arithmetic; of equals the
lowest number wins. They depend neither on the engine nor on how rows are divided into chunks.

With u = x - m, v = c - m and m the mean centroid, the nearest centroid maximizes s = u.v - |v|^2 / 2. Without the
shift, a data set far from the origin would lose precision. A computed product differs from the true one by at most
|u - u'| |v| + |u'| |v - v'| (Cauchy-Schwarz; u', v' are the rounded factors) plus d eps |u| |v| for the additions.

Letters: n rows, d dimensions, k centroids, P pairs of a row and a candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfcluster.clustering import native
from selfcluster.devices import has_triton, multiplies_bfloat16

ENGINES = ("native", "triton", "bfloat16", "float32")
_CHUNK_BYTES = 4 << 20  # scores of a chunk stay in cache on a CPU
_CHUNK_BYTES_CUDA = 1 << 30
_PAIR_ELEMENTS = 1 << 19  # float64 numbers held at once when candidates are compared; out of cache it takes five times
_PAIR_ELEMENTS_CUDA = 1 << 24
_TIGHT = 0.03  # share of |u|^2 below which a distance is computed from the difference
_GROUP = 32  # centroids reduced to one maximum
_ALIGN = 4  # numbers: a product over 257 columns takes a third longer than one over 260
_MUCH = 1 / 256  # share of the centroids compared in float64 above which a product in float32 is faster
_EPS32 = 2.0**-24  # unit roundoff of float32
_EPS16 = 2.0**-8  # of bfloat16


class Nearest(NamedTuple):
    """`labels` (n,) int64 and `distances` (n,) float32 (float64 for float64 rows), squared Euclidean."""

    labels: Tensor
    distances: Tensor


@torch.no_grad()
def nearest_centroid(
    x: Tensor, centroids: Tensor, *, spherical: bool = False, exact: bool = True, engine: str | None = None
) -> Nearest:
    """Return the nearest centroid of every row and its squared distance.

    Args:
        x: (n, d) floating-point rows, on any device.
        centroids: (k, d), on the same device.
        spherical: compare directions: rows and centroids are scaled to length 1 first, so that the squared
            distance is 2 - 2 cos. A row of zeros keeps length 0.
        exact: labels equal float64's. False: labels by the fast product only, which may be wrong for near ties.
        engine: "native" (compiled int8 proposals, CPU), "triton" (one fused kernel, CUDA), "bfloat16" or "float32";
            None: the fastest that runs here.

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
    chosen = engine or _fastest(x)
    if chosen not in ENGINES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(map(repr, ENGINES))}")
    if chosen == "triton":
        from selfcluster.clustering.cuda import assign as cuda

        return Nearest(*cuda.nearest(x, centroids))
    if chosen == "native":
        labels, distances, done = native.nearest(x, centroids)
        found = Nearest(labels, distances)
    elif chosen == "bfloat16" and exact and engine is None:
        scorer = _Scorer(centroids, chosen, exact)
        found = scorer.nearest(x[: scorer.rows_per_chunk])
        done = len(found.labels)
        if scorer.compared <= _MUCH * done * len(centroids):
            found, done = _joined(found, scorer.nearest(x[done:])), len(x)
    else:
        return _Scorer(centroids, chosen, exact).nearest(x)
    # the first rows had too many candidates, so float32 is faster for the others
    return found if done == len(x) else _joined(found, _Scorer(centroids, "float32", exact).nearest(x[done:]))


def _joined(first: Nearest, rest: Nearest) -> Nearest:
    return Nearest(torch.cat([first.labels, rest.labels]), torch.cat([first.distances, rest.distances]))


def unit_rows(x: Tensor) -> Tensor:
    """Return rows scaled to Euclidean length 1; a row of zeros is unchanged."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norms > 0, norms, torch.ones_like(norms))


def _working(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _fastest(x: Tensor) -> str:
    if native.takes(x):
        return "native"
    if x.is_cuda and has_triton():
        from selfcluster.clustering.cuda import assign as cuda

        if cuda.takes(x):
            return "triton"
    return "bfloat16" if multiplies_bfloat16(x.device) else "float32"


class _Scorer:
    """Prepares centroids once, then compares any number of rows with them."""

    def __init__(self, centroids: Tensor, engine: str, exact: bool) -> None:
        self.centroids, self.exact, self.low = centroids, exact, engine == "bfloat16"
        k, d = centroids.shape
        self.middle = centroids.double().mean(dim=0).to(centroids.dtype)  # (d,)
        shifted = (centroids.double() - self.middle.double()).float()  # (k, d)
        dtype = torch.bfloat16 if self.low else torch.float32
        padded, width = -(-k // _GROUP) * _GROUP, -(-(d + 1) // _ALIGN) * _ALIGN
        # u.v - |v|^2 / 2 as one product: u gets a column of ones, v one of -|v|^2 / 2 (-inf where there is no centroid)
        self.factor = torch.zeros(padded, width, dtype=dtype, device=centroids.device)
        self.factor[:k, :d] = shifted
        self.factor[:k, d] = shifted.double().square().sum(dim=1).div(-2)
        self.factor[k:, d] = -torch.inf
        self.longest = float(shifted.norm(dim=1).max())
        self.rounding = float((shifted - self.factor[:k, :d].float()).norm(dim=1).max())
        budget = _CHUNK_BYTES_CUDA if centroids.device.type == "cuda" else _CHUNK_BYTES
        self.rows_per_chunk = max(64, budget // (padded * self.factor.element_size()))
        self.compared = 0  # pairs, in float64

    def nearest(self, x: Tensor) -> Nearest:
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        distances = torch.empty(len(x), dtype=x.dtype, device=x.device)
        # buffers shared by all chunks: new memory for each would cost half as much time as the products
        most = min(len(x), self.rows_per_chunk)
        scores, gap = self.factor.new_empty(most, len(self.factor)), x.new_empty(most, x.shape[1])
        d = x.shape[1]
        shifted = torch.zeros(most, self.factor.shape[1], device=x.device)
        shifted[:, d] = 1
        for start in range(0, len(x), self.rows_per_chunk):
            part = slice(start, start + self.rows_per_chunk)
            n = len(x[part])
            torch.sub(x[part], self.middle, out=shifted[:n, :d])
            length = torch.linalg.vector_norm(shifted[:n, :d], dim=1)
            labels[part], best = self._labels(x[part], shifted[:n], length, scores[:n])
            if self.low or x.dtype == torch.float64:
                # from the difference itself, as below
                torch.index_select(self.centroids, 0, labels[part], out=gap[:n]).sub_(x[part])
                distances[part] = torch.linalg.vector_norm(gap[:n], dim=1).square_()
                continue
            square = length.square_()
            found = square - 2 * best
            # |u|^2 - 2 s is imprecise for rows close to their centroid, so their distances come from the difference
            tight = (found < _TIGHT * square).nonzero().squeeze(1)
            if len(tight):
                gaps = self.centroids[labels[part][tight]] - x[part][tight]
                found[tight] = torch.linalg.vector_norm(gaps, dim=1).square_()
            distances[part] = found
        return Nearest(labels, distances)

    def _labels(self, x: Tensor, shifted: Tensor, length: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (n,) and the best computed scores (n,)."""
        factor, d = shifted.to(self.factor.dtype), x.shape[1]  # (n, d + 1, padded)
        torch.mm(factor, self.factor.T, out=scores)  # (n, k padded)
        # an arg-max over groups' maxima and one within a group: five times faster than one over all
        peaks = _peaks(scores)  # (n, groups)
        best, group = peaks.max(dim=1)
        groups = peaks.shape[1]
        members = scores.view(len(x), _GROUP, groups)
        if not self.exact:
            inside = members[torch.arange(len(x), device=x.device), :, group]  # (n, _GROUP)
            return inside.argmax(dim=1) * groups + group, best
        tolerance = 2 * self._error(shifted[:, :d], length, factor[:, :d])
        if self.low:  # the product is stored in bfloat16 too
            tolerance = tolerance + 2.1 * _EPS16 * (best.float().abs() + tolerance)
        # rows whose numbers overflow have no candidate; they are handled separately
        least = torch.where(tolerance.isfinite(), best.float() - tolerance, torch.inf)[:, None]
        row, group = (peaks >= least).nonzero().unbind(dim=1)
        pair, place = (members[row, :, group] >= least[row]).nonzero().unbind(dim=1)
        row, candidate = row[pair], place * groups + group[pair]  # each (P,)
        labels = row.new_zeros(len(x)).index_put_((row,), candidate)
        found = torch.bincount(row, minlength=len(x))
        several = (found[row] > 1).nonzero().squeeze(1)
        if len(several):
            self._compare(x, row[several], candidate[several], labels)
        wild = (found == 0).nonzero().squeeze(1)
        if len(wild):
            k = len(self.centroids)
            everyone = torch.arange(k, device=x.device).repeat(len(wild))
            self._compare(x, wild.repeat_interleave(k), everyone, labels)
        return labels, best

    def _error(self, u: Tensor, length: Tensor, factor: Tensor) -> Tensor:
        """The bound on |computed score - true score| for each row, (n,)."""
        adding = (u.shape[1] + 8) * _EPS32 * (length * self.longest + self.longest**2)
        if not self.low:
            return adding
        lost = torch.linalg.vector_norm(u - factor.float(), dim=1)
        return adding + lost * self.longest + (length + lost) * self.rounding + _EPS16 * self.longest**2 / 2

    def _compare(self, x: Tensor, row: Tensor, candidate: Tensor, labels: Tensor) -> None:
        """Label each `row` (P,) by its candidate at the least float64 distance, the lowest number among equals."""
        self.compared += len(row)
        distance = torch.empty(len(row), dtype=torch.float64, device=x.device)
        step = max(1, (_PAIR_ELEMENTS_CUDA if x.is_cuda else _PAIR_ELEMENTS) // x.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            gap = x[row[part]].double() - self.centroids[candidate[part]].double()
            distance[part] = gap.square_().sum(dim=1)
        least = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        least.scatter_reduce_(0, row, distance, "amin")
        winner = (distance == least[row]).nonzero().squeeze(1)
        labels[row[winner]] = len(self.centroids)  # above every number
        labels.scatter_reduce_(0, row[winner], candidate[winner], "amin")


def _peaks(scores: Tensor) -> Tensor:
    """The maxima (n, groups) of groups of `_GROUP` scores; every `groups`-th score (n, k) belongs to the same one."""
    if scores.device.type != "cpu" or scores.dtype != torch.bfloat16:
        return scores.view(len(scores), _GROUP, -1).amax(dim=1)
    for _ in range(_GROUP.bit_length() - 1):  # a CPU's amax in bfloat16 takes eight times longer than this
        scores = torch.maximum(*scores.chunk(2, dim=1))
    return scores
