"""Compares the attention mask of each head with true masks: Jaccard index of the best head.

Caron et al. 2021, arXiv 2104.14294, section 4.2.2: a head's mask is the fewest patches that hold 60 % of the class
token's attention. Each object gets the score of its best head. Scores are averaged over the objects of an image, then
over images. Departs: pixels that VOC marks as void (255) are left out of masks and scores. Images without an object do
not count.

H heads, h x w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from selfcluster.evaluation.descriptors import tensor_of
from selfcluster.evaluation.layouts.davis import read_frame, read_mask, read_sequences
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.segmentation import jaccard
from selfcluster.evaluation.subject import Subject
from selfcluster.models.attention import class_maps, last_attention, mass_mask
from selfcluster.setting import setting

_VOID = 255
_FOLDERS = ("SegmentationObject", "SegmentationClass")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    share: float = setting(0.6, "share of the attention that each head's mask contains", least=0.01, most=1)
    side: int = setting(480, "shorter side in pixels to which images are resized", least=16)
    every: int = setting(1, "use every Nth frame of videos", least=1)


class Attention(Protocol):
    Settings = AttentionSettings
    needs = ("network",)
    labels = "none"

    def run(self, subject: Subject, settings: AttentionSettings) -> Result:
        where = subject.folder("attention", "the layout of VOC or DAVIS, with masks,")
        if subject.layer is not None:
            raise ValueError(f"--layer {subject.layer} has no effect: the last block's attention is scored")
        found = list(pairs(where, settings.every))
        marked = [(image, file) for image, file in found if objects_of(read_mask(file))]
        if not marked:
            raise ValueError(f"no mask in {where} marks an object")
        network, device = subject.network_on_device()
        table = []
        for image, file in marked:
            pixels, mask = read_frame(image), read_mask(file)
            if pixels.shape[:2] != mask.shape:
                raise ValueError(f"{image} is {pixels.shape[1::-1]} pixels and its mask {mask.shape[::-1]}")
            objects = objects_of(mask)
            tensor = tensor_of(pixels, network, settings.side).to(device)
            attention, grid = last_attention(network.module, tensor)
            if not bool(attention.isfinite().all()):
                raise ValueError(f"{image}: the network's attention is not finite")
            heads = masks_of(attention, grid, mask.shape, settings.share)
            best = head_scores(heads, mask, objects).max(axis=1)  # (objects,)
            table.append({"image": image.name, "objects": len(objects), "jaccard": float(best.mean())})
        empty = len(found) - len(marked)
        numbers = {"jaccard": float(np.mean([row["jaccard"] for row in table])), "images": len(table), "empty": empty}
        return result_of("attention", numbers, subject, settings, table=tuple(table))


def masks_of(attention: torch.Tensor, grid: tuple[int, int], size: tuple[int, ...], share: float) -> np.ndarray:
    """Return the heads' masks (H, height, width) in an image's own size, of attention (1, H, T, T)."""
    masks = mass_mask(class_maps(attention, grid), share).float()  # (1, H, h, w)
    return F.interpolate(masks, (size[0], size[1]), mode="nearest")[0].bool().cpu().numpy()


def objects_of(mask: np.ndarray) -> list[int]:
    """Return the numbers of the objects in a mask (height, width); a mask of 0 and 255 alone has one object, 255."""
    values = [int(value) for value in np.unique(mask) if value]
    return values if values == [_VOID] else [value for value in values if value != _VOID]


def head_scores(heads: np.ndarray, mask: np.ndarray, objects: list[int]) -> np.ndarray:
    """Return the Jaccard index (objects, H) of each head's mask (H, height, width) with each object."""
    void = np.zeros(mask.shape, bool) if objects == [_VOID] else mask == _VOID
    return np.array([[jaccard(head & ~void, mask == number) for head in heads] for number in objects])


def pairs(root: Path, every: int = 1) -> Iterator[tuple[Path, Path]]:
    """Yield images with their masks, of VOC's layout or DAVIS's; raise ValueError where the folder has neither."""
    folder = next((root / name for name in _FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        for sequence in read_sequences(root):
            yield from list(zip(sequence.frames, sequence.masks, strict=True))[::every]
        return
    for mask in sorted(folder.glob("*.png")):
        image = root / "JPEGImages" / f"{mask.stem}.jpg"
        if not image.is_file():
            raise ValueError(f"{mask} is the mask of {image}, which is missing")
        yield image, mask
