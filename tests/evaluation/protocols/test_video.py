"""Tracking by propagated labels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfcluster import api
from selfcluster.evaluation.protocols.video import Tracker, VideoSettings, propagate, to_mask


def unit(*shape: int, seed: int) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    return x / x.norm(dim=-3, keepdim=True)


@pytest.mark.parametrize(("radius", "topk"), [(0, 5), (1, 3), (2, 50)])
def test_agrees_with_a_float64_reference(radius, topk):
    n, width, height, labels = 3, 5, 4, 3
    target, features = unit(6, height, width, seed=0), unit(n, 6, height, width, seed=1)
    soft = torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(labels), (n, height, width))).movedim(-1, 1)
    found = propagate(target, features, soft, radius, topk, 0.1)
    for y in range(height):
        for x in range(width):
            near = []
            for t in range(n):
                for v in range(height):
                    for u in range(width):
                        if radius == 0 or max(abs(v - y), abs(u - x)) <= radius:
                            near.append((math.exp(float(target[:, y, x] @ features[t, :, v, u]) / 0.1), t, v, u))
            near = sorted(near, reverse=True)[:topk]
            total = sum(weight for weight, *_ in near)
            expected = sum(weight * soft[t, :, v, u] for weight, t, v, u in near) / total
            torch.testing.assert_close(found[:, y, x], expected)


def test_labels_follow_an_object_that_moves():
    """Every place has features of its own, which move two places to the right: so must the labels. Columns that leave
    on the right come back on the left, so no radius is set."""
    places = unit(40, 6, 10, seed=3)
    mask = np.zeros((6, 10), np.int64)
    mask[2:4, 1:4] = 1
    tracker = Tracker(2, VideoSettings(radius=0, topk=1))
    tracker.begin(places, mask)
    for _ in range(3):
        places = places.roll(2, dims=2)
        mask = np.roll(mask, 2, axis=1)
        found = to_mask(tracker.step(places), (6, 10))
        assert (found == mask).all()


def test_the_context_is_the_first_frame_and_the_last_ones():
    tracker = Tracker(2, VideoSettings(context=2))
    tracker.begin(unit(4, 3, 3, seed=0), np.eye(3, dtype=np.int64))
    for seed in range(1, 6):
        tracker.step(unit(4, 3, 3, seed=seed))
    assert len(tracker.before) == 2


def test_each_label_is_stretched_before_the_largest_is_taken():
    soft = torch.tensor([[[0.9, 0.7]], [[0.1, 0.3]]])  # the object is never the largest until it is stretched
    assert to_mask(soft, (1, 2)).tolist() == [[0, 1]]


def video(root: Path, frames: int = 5, empty: bool = False) -> Path:
    """A bright square that moves right over noise."""
    rng = np.random.default_rng(0)
    for time in range(frames):
        pixels, mask = rng.integers(0, 60, (48, 64, 3)).astype(np.uint8), np.zeros((48, 64), np.uint8)
        pixels[16:32, 8 + 4 * time : 24 + 4 * time] = (250, 200, 40)
        mask[16:32, 8 + 4 * time : 24 + 4 * time] = 0 if empty else 255
        for kind, image, suffix in (("JPEGImages", pixels, "jpg"), ("Annotations", mask, "png")):
            folder = root / kind / "square"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{time:05d}.{suffix}")
    return root


def test_runs_on_a_folder_and_an_untrained_network(tmp_path):
    root = video(tmp_path / "davis")
    result = api.evaluate("video", "vit_tiny_patch4_32", train=root, frame_side=48)
    assert (result["objects"], result["sequences"]) == (1, 1)
    assert result.table[0]["frames"] == 3  # without the first and the last
    assert result["j_and_f"] == pytest.approx((result["j"] + result["f"]) / 2)
    assert result["j"] > 0.5
    maps = api.evaluate("video", "resnet18", train=root, frame_side=48, layer="layer1", max_frames=3)
    assert maps.table[0]["frames"] == 1


def test_what_cannot_be_tracked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not in DAVIS's layout"):
        api.evaluate("video", "vit_tiny_patch4_32", train=tmp_path)
    with pytest.raises(ValueError, match="is empty; it marks no object"):
        api.evaluate("video", "vit_tiny_patch4_32", train=video(tmp_path / "empty", empty=True), frame_side=48)
    root = video(tmp_path / "lacking")
    (root / "Annotations/square/00003.png").unlink()
    with pytest.raises(ValueError, match=r"1 frames have no mask.*00003.png"):
        api.evaluate("video", "vit_tiny_patch4_32", train=root)
    with pytest.raises(ValueError, match="not finite"):
        propagate(torch.full((2, 1, 1), math.nan), torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
