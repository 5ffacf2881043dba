"""The papers' sets of view operations, by name, and the plan that the crop flags describe.

To add a set: write its `ViewGroup`s here and give them a name in `AUGMENTATIONS`. A new operation is one class
with the form of `operations.Operation`; list it in a group's `operations`. Other packages call `register_augmentation`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from selfcluster.types import Crops
from selfcluster.views.color import Color
from selfcluster.views.geometry import Affine
from selfcluster.views.plans import ViewGroup, ViewPlan

_BASE = ViewGroup(color=Color(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, gray_p=0.2, blur_p=0.5))
_SOFT = Color(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.5)
_JIGSAW_AREA = (255 / 256) ** 2  # a square of 255 px where the shorter side has 256
_NPID = Color(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.2, gray_first=True)


def _alike(group: ViewGroup) -> Callable[[], tuple[ViewGroup, ...]]:
    return lambda: (group, group, group)


def _teacher_and_student() -> tuple[ViewGroup, ...]:
    """BYOL's and DINO's views: the first is always blurred, the second rarely, but it may be solarized."""
    base = ViewGroup(interpolation="bicubic", color=_SOFT)
    first = replace(base, color=replace(_SOFT, blur_p=1.0))
    second = replace(base, color=replace(_SOFT, blur_p=0.1, solarize_p=0.2))
    return first, second, base


def _asymmetric() -> tuple[ViewGroup, ...]:
    """solo-learn's set for 32 px: no blur, and only the second view may be solarized."""
    sharp = replace(_SOFT, blur_p=0.0)
    first = ViewGroup(interpolation="bicubic", color=sharp)
    second = replace(first, color=replace(sharp, solarize_p=0.2))
    return first, second, first


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
    "asymmetric": _asymmetric,
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
"""Name -> groups of the first view, of the other full-resolution views and of the small views, without sizes."""
AUGMENTATIONS |= {"color": AUGMENTATIONS["swav"], "cifar": AUGMENTATIONS["gentle"]}


def register_augmentation(name: str, views: Callable[[], tuple[ViewGroup, ViewGroup, ViewGroup]]) -> None:
    """Make a set of view operations known to `--augment` under `name`.

    Args:
        name: of the set.
        views: a function that returns the groups of the first view, of the other full-resolution views and of the
            small views. The crop flags set counts, sizes and scales.

    Raises:
        ValueError: the name is taken.
    """
    if name in AUGMENTATIONS:
        raise ValueError(f"the augmentation {name!r} exists already; choose another name")
    AUGMENTATIONS[name] = views


def check_augmentation(name: str) -> None:
    """Raise ValueError if no set of view operations has this name; the message names the nearest."""
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(name, AUGMENTATIONS, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(AUGMENTATIONS))
        raise ValueError(f"--augment {name}: unknown; did you mean {near}? There are: {known}")


def plan_from_crops(crops: Crops, channels: int = 3) -> ViewPlan:
    """Return the plan that the shared crop flags describe.

    Args:
        crops: counts, sizes and scales; `crops.augment` names a set of `AUGMENTATIONS`.
        channels: of the images. Images without three channels get no operation that needs color.

    Raises:
        ValueError: the set is unknown (the message names the nearest), there is no full-resolution view, or a count is
            negative.

    >>> plan_from_crops(Crops(local_crops=6), channels=3).num_views
    8
    """
    check_augmentation(crops.augment)
    if crops.global_crops < 1 or crops.local_crops < 0:
        raise ValueError(
            f"--global-crops {crops.global_crops} --local-crops {crops.local_crops}: "
            "give at least one full-resolution view, and 0 or more small ones"
        )
    first, other, small = (_for_channels(group, channels) for group in AUGMENTATIONS[crops.augment]())

    def sized(group: ViewGroup, count: int, size: int, scale: tuple[float, float]) -> ViewGroup:
        fixed = group.scale is None or group.ratio is None  # then the set decides which part is shown
        return replace(group, count=count, size=size, scale=group.scale if fixed else scale)

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
