"""Copies, near copies, and other images that deserve a second look."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfcluster.data.audit import examine
from selfcluster.data.sources import open_source
from selfcluster.reporting.album import Album
from selfcluster.reporting.suspects import find_suspects, near_threshold


def album(x: np.ndarray, ids: list[str] | None = None) -> Album:
    n = len(x)
    distance = np.arange(n, dtype=np.float32)
    return Album(ids or [str(i) for i in range(n)], np.zeros(n, np.int64), distance, x.astype(np.float32), np.arange(n))


def test_the_threshold_by_hand():
    logs = np.arange(-20, 21) / 100  # median 0, median absolute deviation 0.10
    assert near_threshold(np.exp(logs)) == pytest.approx(np.exp(-4 * 1.4826 * 0.10))
    assert near_threshold(np.r_[np.exp(logs), np.zeros(100)]) == near_threshold(np.exp(logs))  # copies do not count
    assert near_threshold(np.ones(5)) is None


def test_the_threshold_follows_the_scale_of_the_embeddings():
    distances = np.random.default_rng(0).lognormal(size=200)
    assert near_threshold(distances * 7) == pytest.approx(near_threshold(distances) * 7)


def test_copies_and_near_copies_are_grouped_apart():
    x = np.random.default_rng(0).standard_normal((200, 12))
    x[[50, 60]] = x[40]
    x[8] = x[7] + 1e-2
    found = find_suspects(album(x), None)
    assert found.exact == [[40, 50, 60]]
    assert found.near == [[7, 8]]
    assert found.near_distance is not None
    assert found.usual_distance is not None
    assert 0.01 * 12**0.5 < found.near_distance < found.usual_distance
    assert found.farthest[:3] == [199, 198, 197]
    assert not found.is_audited


def test_collapsed_or_absent_embeddings_have_no_copies():
    for x in (np.ones((30, 4)), np.full((30, 4), np.nan), np.empty((30, 0)), np.ones((1, 4))):
        found = find_suspects(album(x), None)
        assert (found.exact, found.near, found.near_distance) == ([], [], None)


def test_pixels_are_audited_where_they_can_be_read(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (40, 40, 3), np.uint8) for name in ("a.png", "b.png")}
    pictures["copy.png"] = pictures["a.png"]
    pictures["dark.png"] = rng.integers(0, 20, (40, 40, 3), np.uint8)
    pictures["plain.png"] = np.full((40, 40, 3), 200, np.uint8)
    pictures["black.png"] = np.zeros((40, 40, 3), np.uint8)  # constant, and not listed as dark once more
    pictures["smooth.png"] = np.tile(np.linspace(30, 220, 40).astype(np.uint8)[:, None, None], (1, 40, 3))
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    ids = [*sorted(pictures, reverse=True), "unknown.png"]
    found = find_suspects(album(np.empty((len(ids), 0)), ids), examine(open_source(tmp_path)))
    named = {kind: [ids[i] for i in getattr(found, kind)] for kind in ("dark", "constant", "blurred")}
    assert named == {"dark": ["dark.png"], "constant": ["plain.png", "black.png"], "blurred": ["smooth.png"]}
    assert [[ids[i] for i in group] for group in found.exact] == [["copy.png", "a.png"]]
    assert found.is_audited
