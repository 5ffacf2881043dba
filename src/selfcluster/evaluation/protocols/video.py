"""Tracks objects through videos: propagates the masks of the first frame with frozen features.

Caron et al. 2021, arXiv 2104.14294, section 4.2.2, on DAVIS 2017 (`layouts/davis.py`). Each position of a new frame
gets a mean of the labels of its 5 most similar positions, weighted by exp(cosine / 0.1). They are searched in the first
frame and the 7 frames before, at most 12 positions away. J and F are computed here; as in the benchmark, the first and
the last frame of a video do not count. Departs: frames are resized with Pillow, in the released code with OpenCV. Their
sides are rounded down to whole patches, in that code to multiples of 64 pixels.

P = h x w positions, F features, C labels (0 = background), n context frames.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfcluster.evaluation.descriptors import any_size, tensor_of
from selfcluster.evaluation.layouts.davis import Sequence, read_frame, read_mask, read_sequences
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.segmentation import boundary_f, decay, jaccard
from selfcluster.evaluation.subject import Subject
from selfcluster.models.pretrained import Network
from selfcluster.setting import setting

_TOGETHER = 1 << 25  # similarities computed at a time


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    context: int = setting(
        7, "number of previous frames, in addition to the first, that give labels to a frame", least=0
    )
    radius: int = setting(12, "search this many spatial positions in each direction; 0: search everywhere", least=0)
    topk: int = setting(5, "number of most similar spatial positions whose labels count", least=1)
    temperature: float = setting(0.1, "smaller values give more similar positions more weight", least=1e-4)
    frame_side: int = setting(480, "shorter side in pixels to which frames are resized", least=8)
    max_frames: int | None = setting(None, "use only the first N frames of each video", least=3)


class Video(Protocol):
    Settings = VideoSettings
    needs = ("network",)
    labels = "none"

    def run(self, subject: Subject, settings: VideoSettings) -> Result:
        sequences = read_sequences(subject.folder("video", "DAVIS's layout, with JPEGImages and Annotations,"))
        for sequence in sequences:  # all first masks, before the first video is tracked
            objects_of(sequence)
        network, device = subject.network_on_device()
        table: list[dict[str, Any]] = []
        for sequence in sequences:
            table += score(sequence, network, settings, subject.layer, device)
        return result_of("video", summarize(table), subject, settings, table=tuple(table))


def score(
    sequence: Sequence, network: Network, settings: VideoSettings, layer: str | None, device: torch.device
) -> list[dict[str, Any]]:
    """Return a row for each object of a video: sequence, object, frames, j, j_recall, j_decay, f, f_recall, f_decay."""
    frames, masks = sequence.frames[: settings.max_frames], sequence.masks[: settings.max_frames]
    first, objects = objects_of(sequence)
    numbered = np.zeros(first.shape, np.int64)
    for number, value in enumerate(objects, start=1):
        numbered[first == value] = number
    scores: list[tuple[list[float], list[float]]] = [([], []) for _ in objects]
    tracker = Tracker(len(objects) + 1, settings)
    for time, (frame, file) in enumerate(zip(frames, masks, strict=True)):
        pixels = read_frame(frame)
        places = frame_features(pixels, network, settings.frame_side, layer, device)  # (F, h, w)
        if time == 0:
            if pixels.shape[:2] != first.shape:
                raise ValueError(f"{frame} is {pixels.shape[1::-1]} pixels and its mask {first.shape[::-1]}")
            tracker.begin(places, numbered)
            continue
        soft = tracker.step(places)
        if time == len(frames) - 1 and len(frames) > 2:
            break  # the benchmark leaves the last frame out
        truth, found = read_mask(file), to_mask(soft, pixels.shape[:2])
        if truth.shape != found.shape:
            raise ValueError(f"{frame} is {pixels.shape[1::-1]} pixels and its mask {truth.shape[::-1]}")
        for number, value in enumerate(objects, start=1):
            scores[number - 1][0].append(jaccard(found == number, truth == value))
            scores[number - 1][1].append(boundary_f(found == number, truth == value))
    return [
        {"sequence": sequence.name, "object": value, "frames": len(j)} | _columns("j", j) | _columns("f", f)
        for value, (j, f) in zip(objects, scores, strict=True)
    ]


def objects_of(sequence: Sequence) -> tuple[np.ndarray, list[int]]:
    """Return the first frame's mask (H, W) and the numbers of its objects; raise ValueError where it marks none."""
    first = read_mask(sequence.masks[0])
    objects = [int(value) for value in np.unique(first) if value]
    if not objects:
        raise ValueError(
            f"{sequence.name}: the mask of the first frame, {sequence.masks[0]}, is empty; it marks no object"
        )
    return first, objects


def summarize(table: list[dict[str, Any]]) -> dict[str, object]:
    """Return the means over all objects (j_and_f, j, j_recall, j_decay, f, f_recall, f_decay), and the counts."""
    names = ("j", "j_recall", "j_decay", "f", "f_recall", "f_decay")
    means = {name: float(np.mean([row[name] for row in table])) for name in names}
    counts = {"objects": len(table), "sequences": len({row["sequence"] for row in table})}
    return {"j_and_f": (means["j"] + means["f"]) / 2, **means, **counts}


class Tracker:
    """Soft labels of one video, frame after frame."""

    def __init__(self, labels: int, settings: VideoSettings) -> None:
        self.labels, self.settings = labels, settings
        self.first: tuple[Tensor, Tensor] | None = None
        self.before: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.context)

    def begin(self, places: Tensor, mask: np.ndarray) -> None:
        """Take the first frame's features (F, h, w) and its objects (H, W) numbered from 1."""
        height, width = places.shape[1:]
        small = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        soft = F.one_hot(torch.from_numpy(np.array(small, np.int64)), self.labels).permute(2, 0, 1)  # (C, h, w)
        self.first = (places, soft.to(places))

    def step(self, places: Tensor) -> Tensor:
        """Return the soft labels (C, h, w) of the next frame, and remember them."""
        assert self.first is not None
        s, context = self.settings, [self.first, *self.before]
        features = torch.stack([frame for frame, _ in context])  # (n, F, h, w)
        labels = torch.stack([soft for _, soft in context])  # (n, C, h, w)
        soft = propagate(places, features, labels, s.radius, s.topk, s.temperature)
        self.before.append((places, soft))
        return soft


def propagate(
    target: Tensor, features: Tensor, labels: Tensor, radius: int = 12, topk: int = 5, temperature: float = 0.1
) -> Tensor:
    """Return the soft labels (C, h, w) of a frame.

    Args:
        target: (F, h, w) unit features of the frame.
        features: (n, F, h, w) unit features of the context frames.
        labels: (n, C, h, w) their soft labels.
        radius: largest distance of a position, horizontally and vertically; 0: no limit.
        topk: number of most similar positions that count. If several tie for the last one, all of them count, as in the
            released code.
        temperature: of the weights exp(cosine / temperature).

    Raises:
        ValueError: the features are not finite.
    """
    n, _, height, width = features.shape
    places = height * width
    sources, values = features.flatten(2).permute(1, 0, 2).flatten(1), labels.flatten(2).permute(1, 0, 2).flatten(1)
    queries = target.flatten(1).T  # (P, F); sources (F, nP), values (C, nP)
    if not bool(sources.isfinite().all() and queries.isfinite().all()):
        raise ValueError("video: the network's features are not finite; they cannot track objects")
    row, column = (
        part.flatten().to(queries.device)
        for part in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    out = []
    for part in torch.arange(places, device=queries.device).split(max(1, _TOGETHER // (n * places))):
        weights = (queries[part] @ sources / temperature).exp()  # (p, nP)
        if radius:
            near = ((row[part][:, None] - row).abs() <= radius) & ((column[part][:, None] - column).abs() <= radius)
            weights = weights * near.repeat(1, n)
        least = weights.topk(min(topk, weights.shape[1]), dim=1).values[:, -1:]
        weights = torch.where(weights >= least, weights, 0)
        out.append(weights @ values.T / weights.sum(dim=1, keepdim=True))
    return torch.cat(out).T.unflatten(1, (height, width))


def to_mask(soft: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the label (H, W) of each pixel of soft labels (C, h, w).

    Labels are resized to the frame, and each label's range is stretched to 0..1. The largest one wins.
    """
    large = F.interpolate(soft[None].float(), size, mode="bilinear", align_corners=False)[0]  # (C, H, W)
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    large = torch.where(high > 0, (large - low) / (high - low).clamp(min=1e-12), large)
    return large.argmax(dim=0).cpu().numpy()


@torch.no_grad()
def frame_features(pixels: np.ndarray, network: Network, side: int, layer: str | None, device: torch.device) -> Tensor:
    """Return unit features (F, h, w) of a frame (H, W, 3) uint8, resized so that its shorter side is `side`."""
    return F.normalize(any_size(network, tensor_of(pixels, network, side).to(device), layer).places[0], dim=0)


def _columns(name: str, scores: list[float]) -> dict[str, float]:
    values = np.array(scores)
    return {name: float(values.mean()), f"{name}_recall": float((values > 0.5).mean()), f"{name}_decay": decay(values)}
