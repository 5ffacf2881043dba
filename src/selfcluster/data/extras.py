"""HEIC and cameras' raw files, through libraries that are installed on request: the extras `heic` and `raw`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from selfcluster.data.errors import BadImage

Read = Callable[[], np.ndarray]  # returns (H, W, 3) uint8, upright


def read_heic(data: bytes) -> tuple[int, int, Read]:
    """Return (width, height, what decodes) of a HEIC file.

    Raises:
        BadImage: unsupported where pillow-heif is missing.
    """
    try:
        import pillow_heif
    except ImportError as error:
        advice = "install the extra that reads it: pip install 'selfcluster[heic]'"
        raise BadImage("unsupported", f"the file is HEIC, even if its name ends otherwise: {advice}") from error
    file: Any = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    width, height = file.size

    def read() -> np.ndarray:
        return np.asarray(file[file.primary_index].to_pillow().convert("RGB"))

    return width, height, read


def read_raw(data: bytes) -> tuple[int, int, Read]:
    """Return (width, height, what decodes) of a camera's raw file, developed with the camera's white balance.

    Raises:
        BadImage: unsupported where rawpy is missing.
    """
    try:
        import rawpy
    except ImportError as error:
        advice = "install the extra that reads it: pip install 'selfcluster[raw]'"
        raise BadImage("unsupported", f"a camera's raw file: {advice}") from error
    raw: Any = rawpy.imread(io.BytesIO(data))
    turned = raw.sizes.flip in (5, 6)
    width, height = (raw.sizes.height, raw.sizes.width) if turned else (raw.sizes.width, raw.sizes.height)

    def read() -> np.ndarray:
        return np.asarray(raw.postprocess(use_camera_wb=True, no_auto_bright=False, output_bps=8))

    return width, height, read
