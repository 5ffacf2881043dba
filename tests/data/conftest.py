"""Image files made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


def _encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encode() -> Encode:
    """encode(image or array, format="PNG", **options) -> bytes of a file."""
    return _encode


@pytest.fixture(scope="session")
def coded() -> Callable[[int, tuple[int, int]], bytes]:
    """coded(i, (height, width)) -> a PNG of one color that spells i: red is i % 16 x 16, green is i // 16 x 16."""

    def make(i: int, size: tuple[int, int] = (16, 16)) -> bytes:
        return _encode(np.full((*size, 3), (i % 16 * 16, i // 16 * 16, 99), np.uint8))

    return make


@pytest.fixture
def coded_folder(tmp_path: Path, coded: Callable[..., bytes]) -> Callable[..., Path]:
    """coded_folder(n, ragged=False, bad=()) -> a folder of n coded images, those in `bad` cut in the middle."""

    def make(n: int, ragged: bool = False, bad: tuple[int, ...] = ()) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for i in range(n):
            data = coded(i, (16 + 3 * (i % 4), 16 + 2 * (i % 3)) if ragged else (16, 16))
            (folder / f"{i:03d}.png").write_bytes(data[:-30] if i in bad else data)
        return folder

    return make
