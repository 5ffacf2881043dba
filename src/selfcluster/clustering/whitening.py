"""Whitening: center, project on the leading principal axes, scale each to variance 1, give each row length 1.

DeepCluster does this to features before k-means (Caron et al. 2018, arXiv 1807.05520, section 3.3: PCA to 256,
whitened, l2-normalized), and DeeperCluster with 4,096. One pass over the rows: counts, sums and outer products about a
shift (float64 between blocks); under `torch.distributed` each rank passes its share, and all ranks get the same
transform. Letters: N rows of this rank, D features, d axes kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from selfcluster import distributed
from selfcluster.annotations import ArrayLike

_BLOCK = 1 << 22  # numbers of a block of rows


class Whitening:
    """PCA, whitening and length normalization, fitted in one streaming pass.

    Args:
        dim: d; None: all D.
        whiten: scale each axis by its eigenvalue ** -1/2.
        eigenvalue_floor: eigenvalues below this share of the largest are raised to it (DeeperCluster's 1e-5), so that
            axes without variance are not amplified.
        normalize: scale each row to length 1.
        eps: added to a row's length before dividing: an all-zero row stays zero.

    Attributes:
        mean_ (D,), components_ (d, D) orthonormal, eigenvalues_ (d,) variances along them, largest first,
        n_samples_: NumPy float64 arrays and an int, equal on all ranks.

    >>> X = np.random.default_rng(0).normal(size=(100, 3)) * [5, 2, 1]
    >>> Y = Whitening(2).fit_transform(X)
    >>> bool(np.allclose(np.linalg.norm(Y, axis=1), 1))
    True
    """

    mean_: np.ndarray
    components_: np.ndarray
    eigenvalues_: np.ndarray
    n_samples_: int

    def __init__(
        self,
        dim: int | None = None,
        *,
        whiten: bool = True,
        eigenvalue_floor: float = 1e-5,
        normalize: bool = True,
        eps: float = 1e-10,
    ) -> None:
        self.dim = dim
        self.whiten = whiten
        self.eigenvalue_floor = eigenvalue_floor
        self.normalize = normalize
        self.eps = eps
        self._matrix: Tensor | None = None

    @torch.no_grad()
    def fit(self, X: ArrayLike) -> Whitening:
        """Fit to (N, D) rows: a tensor, a NumPy array or memory-mapped file, or an iterable of such blocks.

        Raises:
            ValueError: for fewer than two rows, `dim` above D, or rows that are not finite.
        """
        total, scatter, mean = _scatter(X)
        if total < 2:
            raise ValueError(f"Whitening needs at least 2 rows and got {total}")
        width = len(mean)
        dim = width if self.dim is None else self.dim
        if not 1 <= dim <= width:
            raise ValueError(f"dim={self.dim} must be between 1 and the {width} features the rows have")
        values, vectors = torch.linalg.eigh(scatter / total)
        values, axes = values.flip(0)[:dim].clamp(min=0), vectors.flip(1)[:, :dim].t()  # (d,), (d, D)
        # an eigenvector's sign is arbitrary: its largest entry is made positive, so that equal data fit equally
        signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        axes = axes * signs
        self.mean_, self.components_, self.eigenvalues_ = (x.cpu().numpy() for x in (mean, axes, values))
        self.n_samples_ = total
        self._matrix = None
        return self

    @overload
    def transform(self, X: Tensor) -> Tensor: ...

    @overload
    def transform(self, X: np.ndarray) -> np.ndarray: ...

    @torch.no_grad()
    def transform(self, X: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """(N, D) to (N, d) float32 (float64 for float64 rows), of X's kind, on its device."""
        if not hasattr(self, "mean_"):
            raise ValueError("this Whitening is not fitted yet: call fit first")
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise ValueError(f"X has shape {tuple(X.shape)}; this Whitening was fitted to {len(self.mean_)} features")
        blocks = [self._apply(block) for block in _blocks(X)]
        rows = torch.cat(blocks) if blocks else torch.empty(0, len(self.components_))
        return rows if isinstance(X, Tensor) else rows.numpy()

    @overload
    def fit_transform(self, X: Tensor) -> Tensor: ...

    @overload
    def fit_transform(self, X: np.ndarray) -> np.ndarray: ...

    def fit_transform(self, X: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X).transform(X)

    def _apply(self, block: Tensor) -> Tensor:
        dtype = torch.float64 if block.dtype == torch.float64 else torch.float32
        mean = torch.from_numpy(self.mean_).to(block.device, dtype)
        if self._matrix is None:
            values = np.maximum(self.eigenvalues_, self.eigenvalue_floor * self.eigenvalues_.max(initial=0.0))
            scale = np.where(values > 0, values, 1.0) ** -0.5 if self.whiten else np.ones_like(values)
            self._matrix = torch.from_numpy(self.components_.T * scale)  # (D, d)
        with torch.autocast(block.device.type, enabled=False):
            rows = (block.to(dtype) - mean) @ self._matrix.to(block.device, dtype)
        if self.normalize:
            rows /= rows.norm(dim=1, keepdim=True) + self.eps
        return rows


_FITTED = ("mean", "components", "eigenvalues")


class WhiteningMemory(nn.Module):
    """A fitted `Whitening` as part of a method's state: zeros until `fit_transform`, saved and resumed with the rest.

    Args:
        dim: d.
        width: D.
    """

    components: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("components", torch.zeros(dim, width, dtype=torch.float64))
        self.register_buffer("eigenvalues", torch.zeros(dim, dtype=torch.float64))

    def fit_transform(self, rows: Tensor) -> Tensor:
        """Fit to this rank's rows (N, D) of all ranks' and keep that; the rows whitened (N, d)."""
        found = Whitening(len(self.components)).fit(rows)
        for name in _FITTED:
            getattr(self, name).copy_(torch.from_numpy(getattr(found, f"{name}_")))
        return found.transform(rows)

    def transform(self, rows: Tensor) -> Tensor:
        """(N, D) to (N, d), as last fitted."""
        found = Whitening(len(self.components))
        for name in _FITTED:
            setattr(found, f"{name}_", getattr(self, name).cpu().numpy())
        return found.transform(rows)


def _scatter(X: ArrayLike) -> tuple[int, Tensor, Tensor]:
    """Number of rows, sum of outer products about the mean (D, D), and mean (D,), over all ranks, in float64.

    A rank sums about the mean of its first block, so that a large common offset costs no digits, and moves its sums to
    the common mean before they are added up.
    """
    n, start = 0, None
    for block in _blocks(X):
        rows = block.detach()
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if start is None:
            shift = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
            sums = torch.zeros(len(shift), dtype=torch.float64, device=rows.device)
            start = shift, sums, torch.zeros(len(shift), len(shift), dtype=torch.float64, device=rows.device)
        shift, sums, outer = start
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows - shift.to(rows.dtype)
            sums += rows.sum(dim=0, dtype=torch.float64)
            outer += (rows.t() @ rows).double()
        n += len(rows)
    if start is None:
        raise ValueError("Whitening got no block of rows; a rank without rows passes one of shape (0, features)")
    shift, sums, outer = start
    mine = shift.double() + sums / max(1, n)
    total = distributed.all_reduce(torch.cat([mine * n, mine.new_tensor([n])]))
    if not torch.isfinite(total).all():
        raise ValueError("the rows contain NaN or infinite values")
    count = int(total[-1])
    mean = total[:-1] / max(1, count)
    # sum (x - s)(x - s)' - n (m - s)(m - s)' is about this rank's mean m; + n (m - mean)(m - mean)' moves it
    outer = outer - torch.outer(sums, sums) / max(1, n) + n * torch.outer(mine - mean, mine - mean)
    return count, distributed.all_reduce(outer), mean


def _blocks(X: object) -> Iterator[Tensor]:
    if isinstance(X, (Tensor, np.ndarray)):
        if X.ndim != 2:
            raise ValueError(f"X has shape {tuple(X.shape)}; it must be (rows, features)")
        size = max(1, _BLOCK // max(1, X.shape[1]))
        for i in range(0, max(1, len(X)), size):
            block = X[i : i + size]
            yield block if isinstance(block, Tensor) else torch.from_numpy(np.array(block))  # a map may be read-only
    elif isinstance(X, Iterable):
        for block in X:
            yield from _blocks(block)
    else:
        raise ValueError(f"X is a {type(X).__name__}; it must be a tensor, an array or an iterable of these")
