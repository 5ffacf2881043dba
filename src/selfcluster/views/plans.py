"""View plans: how many views of an image, how they are cropped, warped and colored, and the papers' own sets.

A plan is data. `boxes` says in NumPy what the loader cuts; `finish` does the rest in batches on the device. All numbers
come from `selfcluster.randomness` by (seed, step, sample, view): a view does not depend on the batch it is in, on the
number of processes or on the device.
Departs: MoCo-v2, NPID and SeLa flip last and SimCLR blurs the batch; here the flip is part of the crop (it commutes
with all that follows) and the order is jitter, gray, blur, solarize, with gray before jitter where the paper has it.

B samples, C channels, V views.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selfcluster import randomness
from selfcluster.types import Crops
from selfcluster.views import color as colors
from selfcluster.views import crops, geometry, pretext
from selfcluster.views.color import Color, ColorTable
from selfcluster.views.geometry import Affine

__all__ = ["AUGMENTATIONS", "Affine", "Color", "ViewGroup", "ViewPlan", "plan_from_crops"]


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """`count` views that are made alike.

    `size`: side in pixels. `scale`: the crop's area as a share of the image's; None: the whole image, resized.
    `ratio`: width over height of the crop; None: squares, `scale` being the share of the largest square's area.
    """

    count: int = 1
    size: int = 224
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] | None = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    interpolation: str = "bilinear"
    color: Color | None = None
    affine: Affine | None = None


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """All views of an image: `groups` in order, full resolution first.

    `pretext`: "rotation" turns all views of an image by the same one of four angles; "jigsaw" makes of each view
    (B, C, s, s) its 9 patches in one of `permutations` orders, (B, 9, C, p, p). What was chosen is in `drawn`.

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
        """V."""
        return len(self.views)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return tuple(group.size for group in self.views)

    def boxes(
        self, seed: int, step: int, index: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> list[np.ndarray]:
        """What each view shows of its image.

        Args:
            seed: the run's seed.
            step: the global step.
            index: (B,) the samples.
            heights: (B,) of the source images, pixels.
            widths: (B,) likewise.

        Returns:
            V arrays (B, 5) float32: top, left, height, width, flip.
        """
        index = np.asarray(index)
        return [
            crops.random_boxes(
                randomness.draw(seed, "crops", step, index, view, crops.UNIFORMS),
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
        """Warp, color, turn and normalize cut views.

        Args:
            views: V tensors (B, C, size, size), uint8 or float in 0..255, on one device; not changed.
            seed: the run's seed.
            step: the global step.
            index: (B,) the samples; on the host, or the device has to be waited for.
            mean: C numbers, of pixels in 0..1.
            std: likewise.

        Returns:
            V float32 tensors (B, C, size, size), or (B, 9, C, p, p) with `pretext="jigsaw"`.
        """
        if len(views) != self.num_views:
            raise ValueError(f"the plan has {self.num_views} views, {len(views)} were given")
        if any(len(view) != len(index) for view in views):
            raise ValueError(f"views of {[len(view) for view in views]} images for an index of {len(index)}")
        index = index.cpu()
        out: list[Tensor] = [torch.empty(0)] * len(views)
        for size in dict.fromkeys(self.sizes):
            numbers = [view for view, other in enumerate(self.sizes) if other == size]
            x = self._warped([views[v] for v in numbers], numbers, seed, step, index)
            table = self._table(numbers, seed, step, index)
            if table is not None:
                colors.recolor_(x.flatten(0, 1), table)
            _normalize_(x, mean, std)
            for view, done in zip(numbers, x, strict=True):
                out[view] = self._posed(done, view, seed, step, index)
        return out

    def pretext_labels(self, seed: int, step: int, index: Tensor) -> dict[str, Tensor]:
        """What the pretext operation chooses for the samples: {"rotation": (B,) quarter turns} or {"jigsaw": (B,)}."""
        if self.pretext is None:
            return {}
        choices = 4 if self.pretext == "rotation" else self.permutations
        return {self.pretext: (randomness.draw(seed, self.pretext, step, index, 0, 1)[:, 0] * choices).long()}

    def _warped(self, views: list[Tensor], numbers: list[int], seed: int, step: int, index: Tensor) -> Tensor:
        """The views of one size, each through its group's affine map, in one new float32 tensor (views, B, C, h, w)."""
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
        draws = (randomness.draw(seed, "colour", step, index, v, colors.UNIFORMS) for v in numbers)
        return ColorTable.stack([color.table(u) for color, u in zip(palette, draws, strict=True)])

    def _posed(self, x: Tensor, view: int, seed: int, step: int, index: Tensor) -> Tensor:
        """The pretext operation, of one view."""
        if self.pretext == "rotation":
            return pretext.rotate(x, self.pretext_labels(seed, step, index)["rotation"])
        if self.pretext == "jigsaw":
            orders = pretext.permutations(self.permutations)[self.pretext_labels(seed, step, index)["jigsaw"]]
            offsets = randomness.draw(seed, "patches", step, index, view, pretext.JIGSAW_UNIFORMS)
            return pretext.patches(x, offsets, orders)
        return x


def _normalize_(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if not len(mean) == len(std) == x.shape[-3]:
        raise ValueError(f"mean={tuple(mean)} and std={tuple(std)} are not {x.shape[-3]} numbers each, one a channel")
    center, spread = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
    factor = (1 / (colors.WHITE * spread)).to(x.device, non_blocking=True)
    offset = (-center / spread).to(x.device, non_blocking=True)
    torch.addcmul(offset, x, factor, out=x)


_BASE = ViewGroup(color=Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, gray_p=0.2, blur_p=0.5))
_SOFT = Color(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.5)
_JIGSAW_AREA = (255 / 256) ** 2  # a square of 255 px where the shorter side has 256
_NPID = Color(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.2, gray_first=True)


def _alike(group: ViewGroup) -> Callable[[], tuple[ViewGroup, ...]]:
    return lambda: (group, group, group)


def _teacher_and_student() -> tuple[ViewGroup, ...]:
    """BYOL's and DINO's views: the first always blurred, the second seldom but solarized, small ones half the time."""
    base = ViewGroup(interpolation="bicubic", color=_SOFT)
    first = replace(base, color=replace(_SOFT, blur_p=1.0))
    second = replace(base, color=replace(_SOFT, blur_p=0.1, solarize_p=0.2))
    return first, second, base


def _layout() -> tuple[ViewGroup, ...]:
    """Grayscale images and fixed layouts: no crop of the large views, no flip, no color."""
    affine = Affine(degrees=12, scale=(0.75, 1.15), shear=0.2, shift=0.12, elastic=0.03, elastic_sigma=0.2)
    whole = ViewGroup(scale=None, flip_p=0.0, color=Color(gamma=(0.6, 1.6)), affine=affine)
    return whole, whole, replace(whole, scale=Crops.local_scale)


AUGMENTATIONS: dict[str, Callable[[], tuple[ViewGroup, ...]]] = {
    "swav": _alike(_BASE),  # also DeepCluster-v2 and SeLa-v2
    "simclr": _alike(replace(_BASE, interpolation="bicubic")),
    "moco_v2": _alike(replace(_BASE, color=Color(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.5))),
    "byol": _teacher_and_student,
    "dino": _teacher_and_student,
    "npid": _alike(ViewGroup(color=_NPID)),
    "sela": _alike(ViewGroup(color=_NPID)),
    "odc": _alike(
        ViewGroup(
            color=Color(jitter=(0.4, 0.4, 1.0, 0.5), jitter_p=1.0, gray_p=0.2), affine=Affine(degrees=2, fill=0.0)
        )
    ),
    "clusterfit": _alike(ViewGroup(color=Color(jitter=(0.4, 0.4, 0.4, 0.2), jitter_p=1.0))),
    "jigsaw": _alike(ViewGroup(scale=(_JIGSAW_AREA, _JIGSAW_AREA), ratio=None, color=Color(gray_p=0.66))),
    # SimCLR's for 32 px: half the strength, no blur
    "gentle": _alike(ViewGroup(color=Color(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2))),
    "layout": _layout,
    "weak": _alike(ViewGroup()),
    "none": _alike(ViewGroup(scale=None, flip_p=0.0)),
}
"""Name -> groups of the first view, of the other full-resolution views and of the small ones; sizes are not theirs."""
AUGMENTATIONS |= {"color": AUGMENTATIONS["swav"], "cifar": AUGMENTATIONS["gentle"]}


def plan_from_crops(crops: Crops, channels: int = 3) -> ViewPlan:
    """The plan that the shared crop flags describe.

    Args:
        crops: counts, sizes and scales; `crops.augment` names a set of `AUGMENTATIONS`.
        channels: of the images; without three, what color alone gives meaning is left out.

    Raises:
        ValueError: for an unknown set, naming the nearest.

    >>> plan_from_crops(Crops(local_crops=6), channels=3).num_views
    8
    """
    if crops.augment not in AUGMENTATIONS:
        near = difflib.get_close_matches(crops.augment, AUGMENTATIONS, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(AUGMENTATIONS))
        raise ValueError(f"augment={crops.augment!r} is unknown; did you mean {near!r}? There are: {known}")
    if crops.global_crops < 1 or crops.local_crops < 0:
        raise ValueError(
            f"global_crops={crops.global_crops}, local_crops={crops.local_crops}: "
            "at least one full-resolution view is needed, and no negative number of small ones"
        )
    first, other, small = (_for_channels(group, channels) for group in AUGMENTATIONS[crops.augment]())

    def sized(group: ViewGroup, count: int, size: int, scale: tuple[float, float]) -> ViewGroup:
        own = group.scale is None or group.ratio is None  # the set decides what is shown
        return replace(group, count=count, size=size, scale=group.scale if own else scale)

    if first == other:
        groups = [sized(first, crops.global_crops, crops.global_size, crops.global_scale)]
    else:
        groups = [
            sized(first, 1, crops.global_size, crops.global_scale),
            sized(other, crops.global_crops - 1, crops.global_size, crops.global_scale),
        ]
    groups.append(sized(small, crops.local_crops, crops.local_size, crops.local_scale))
    return ViewPlan(groups=tuple(group for group in groups if group.count))


def _for_channels(group: ViewGroup, channels: int) -> ViewGroup:
    if channels == 3 or group.color is None:
        return group
    brightness, contrast, _, _ = group.color.jitter
    return replace(group, color=replace(group.color, jitter=(brightness, contrast, 0.0, 0.0), gray_p=0.0))
