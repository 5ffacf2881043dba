"""View plans: how many views an image gets, how each is cropped, warped and colored.

A plan is data. `boxes` computes in NumPy what the loader cuts. `apply` does the rest in batches on the device. All
random numbers come from `selfcluster.randomness`, keyed by (seed, step, sample, view). A view therefore depends neither
on the rest of its batch, nor on the number of processes, nor on the device.
Departs: MoCo-v2, NPID and SeLa flip last and SimCLR blurs the batch. Here the flip is part of the crop, because it
commutes with all later operations. The order is jitter, gray, blur, solarize; gray comes first if the paper says so.

B samples, C channels, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfcluster import randomness
from selfcluster.devices import has_triton
from selfcluster.views import color as colors
from selfcluster.views import crops, geometry, pretext
from selfcluster.views.color import Color, ColorTable
from selfcluster.views.geometry import Affine
from selfcluster.views.operations import Operation


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """`count` views with the same settings.

    `size`: side in pixels. `scale`: range of the crop's area as a share of the image's area; None: the whole image,
    resized. `ratio`: range of width over height of the crop; None: squares, with `scale` as the share of the largest
    square's area. `operations` run after `color`, in their order.
    """

    count: int = 1
    size: int = 224
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] | None = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    interpolation: str = "bilinear"
    color: Color | None = None
    affine: Affine | None = None
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """All views of an image: `groups` in order, full resolution first.

    `pretext`: "rotation" turns all views of an image by the same angle, one of four. "jigsaw" cuts each view
    (B, C, s, s) into 9 patches, shown in one of `permutations` orders, (B, 9, C, p, p). `pretext_labels` returns the
    chosen angle or order.

    >>> plan = ViewPlan(groups=(ViewGroup(count=2, size=32), ViewGroup(count=4, size=16, scale=(0.05, 0.14))))
    >>> plan.num_views, plan.sizes
    (6, (32, 32, 16, 16, 16, 16))
    """

    groups: tuple[ViewGroup, ...]
    pretext: str | None = None
    permutations: int = 2000

    def __post_init__(self) -> None:
        if self.pretext not in (None, "rotation", "jigsaw"):
            raise ValueError(f"pretext={self.pretext!r} is neither 'rotation' nor 'jigsaw'")

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """The group of each view."""
        return tuple(group for group in self.groups for _ in range(group.count))

    @property
    def num_views(self) -> int:
        """V, the number of views of an image."""
        return len(self.views)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return tuple(group.size for group in self.views)

    def boxes(
        self, seed: int, step: int, index: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> list[np.ndarray]:
        """Return the crop box of each view.

        Args:
            seed: the run's seed.
            step: the global step.
            index: (B,) the samples.
            heights: (B,) of the source images, pixels.
            widths: (B,) of the source images, pixels.

        Returns:
            V arrays (B, 5) float32: top, left, height, width, flip.
        """
        index = np.asarray(index)
        return [
            crops.random_boxes(
                randomness.Uniforms(seed, "crops", step, index, view),
                heights,
                widths,
                group.scale,
                group.ratio,
                group.flip_p,
            )
            for view, group in enumerate(self.views)
        ]

    @torch.no_grad()
    def apply(
        self,
        views: Sequence[Tensor],
        seed: int,
        step: int,
        index: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> list[Tensor]:
        """Warp, color and normalize views that were cut, and apply the pretext task.

        Args:
            views: V tensors (B, C, size, size), uint8 or float in 0..255, on one device; they are not changed.
            seed: the run's seed.
            step: the global step.
            index: (B,) the samples, best on the CPU, because an index on the device costs a synchronization.
            mean: C numbers, of pixels in 0..1.
            std: C numbers, likewise.

        Returns:
            V float32 tensors (B, C, size, size), or (B, 9, C, p, p) with `pretext="jigsaw"`.
        """
        if len(views) != self.num_views:
            raise ValueError(f"the plan has {self.num_views} views, but {len(views)} were given")
        if any(len(view) != len(index) for view in views):
            raise ValueError(f"views of {[len(view) for view in views]} images for an index of {len(index)}")
        index = index.cpu()
        out: list[Tensor] = [torch.empty(0)] * len(views)
        for size in dict.fromkeys(self.sizes):
            numbers = [view for view, other in enumerate(self.sizes) if other == size]
            x = self._warped([views[v] for v in numbers], numbers, seed, step, index)
            table = self._table(numbers, seed, step, index)
            if table is not None and self._is_fused(x, numbers):
                from selfcluster.views.cuda import recolor_normalize_

                recolor_normalize_(x.flatten(0, 1), table, mean, std)
            else:
                if table is not None:
                    colors.recolor_(x.flatten(0, 1), table)
                for place, view in enumerate(numbers):
                    for operation in self.views[view].operations:
                        uniforms = randomness.draw(seed, operation.name, step, index, view, operation.uniforms)
                        x[place] = operation.apply(x[place], uniforms)
                _normalize_(x, mean, std)
            for view, done in zip(numbers, x, strict=True):
                out[view] = self._posed(done, view, seed, step, index)
        return out

    def pretext_labels(self, seed: int, step: int, index: Tensor) -> dict[str, Tensor]:
        """Return the pretext labels of the samples: {"rotation": (B,) quarter turns} or {"jigsaw": (B,)}."""
        if self.pretext is None:
            return {}
        choices = 4 if self.pretext == "rotation" else self.permutations
        return {self.pretext: (randomness.draw(seed, self.pretext, step, index, 0, 1)[:, 0] * choices).long()}

    def _warped(self, views: list[Tensor], numbers: list[int], seed: int, step: int, index: Tensor) -> Tensor:
        """Return the views of one size, warped, in one new float32 tensor (views, B, C, h, w)."""
        x = torch.empty((len(views), *views[0].shape), dtype=torch.float32, device=views[0].device)
        for place, view, number in zip(x, views, numbers, strict=True):
            affine = self.views[number].affine
            if affine is not None and len(index):
                uniforms = randomness.draw(seed, "affine", step, index, number, affine.uniforms)
                view = geometry.warp(view.to(torch.float32), affine, uniforms)
            place.copy_(view)
        return x

    def _table(self, numbers: list[int], seed: int, step: int, index: Tensor) -> ColorTable | None:
        palette = [self.views[v].color or Color() for v in numbers]
        if all(color == Color() for color in palette):
            return None
        # the random numbers depend on the stream's name, so it must not change
        draws = (randomness.draw(seed, "colour", step, index, v, colors.UNIFORMS) for v in numbers)
        return ColorTable.stack([color.table(u) for color, u in zip(palette, draws, strict=True)])

    def _is_fused(self, x: Tensor, numbers: list[int]) -> bool:
        """Whether one kernel can do all color operations: color images on CUDA, and no additional operation."""
        known = not any(self.views[v].operations for v in numbers)
        return known and x.is_cuda and x.shape[2] == 3 and x.numel() > 0 and has_triton()

    def _posed(self, x: Tensor, view: int, seed: int, step: int, index: Tensor) -> Tensor:
        """Apply the pretext task to one view."""
        if self.pretext == "rotation":
            return pretext.rotate(x, self.pretext_labels(seed, step, index)["rotation"])
        if self.pretext == "jigsaw":
            orders = pretext.permutations(self.permutations)[self.pretext_labels(seed, step, index)["jigsaw"]]
            offsets = randomness.draw(seed, "patches", step, index, view, pretext.JIGSAW_UNIFORMS)
            return pretext.patches(x, offsets, orders)
        return x


def _normalize_(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if not len(mean) == len(std) == x.shape[-3]:
        raise ValueError(f"mean={tuple(mean)} and std={tuple(std)} are not {x.shape[-3]} numbers each, one per channel")
    center, spread = (torch.tensor(v, dtype=torch.float32) for v in (mean, std))
    factor, offset = 1 / (colors.WHITE * spread), -center / spread
    if x.device.type != "cpu":
        factor, offset = (v[:, None, None].to(x.device, non_blocking=True) for v in (factor, offset))
        torch.addcmul(offset, x, factor, out=x)
        return
    for channel, (a, b) in enumerate(zip(factor.tolist(), offset, strict=True)):  # on a CPU broadcasting costs 4 times
        plane = x.select(-3, channel)
        torch.add(b, plane, alpha=a, out=plane)
