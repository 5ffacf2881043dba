"""What a camera wrote beside the pixels: which camera it was, on which day, and where.

EXIF 2.32 (JEITA CP-3451E): tags 271 and 272 (maker, model), 36867 or 306 (time), and the block 34853 (GPS).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

from PIL import Image

_MAKE, _MODEL, _TIME, _TAKEN = 271, 272, 306, 36867
_EXIF, _GPS = 0x8769, 0x8825
_DAY = re.compile(r"(\d{4})\D(\d\d)\D(\d\d)")
_JPEG, _JPEG_EXIF = b"\xff\xd8\xff", b"Exif\0"
FIELDS = ("camera", "day", "place")


def read_exif(data: bytes, degrees: float = 1.0) -> dict[str, str]:
    """Return what an image file says of its origin; a field that it lacks, or that is damaged, is left out.

    Args:
        data: the file.
        degrees: side of a cell of the place, in degrees of latitude and of longitude.

    Returns:
        camera ("NIKON COOLPIX P6000"), day ("2008-10-22") and place (the cell's south-west corner, "43,11").
    """
    if data.startswith(_JPEG) and _JPEG_EXIF not in data:
        return {}  # in microseconds: most sets have no EXIF
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged blocks; they count as missing
            with Image.open(io.BytesIO(data)) as image:
                tags = image.getexif()
                inner, gps = tags.get_ifd(_EXIF), tags.get_ifd(_GPS)
    except Exception:  # whatever a damaged file does to Pillow, it has no EXIF that could be used
        return {}
    make, model = (_text(tags.get(tag)) for tag in (_MAKE, _MODEL))
    day = _DAY.match(_text(inner.get(_TAKEN)) or _text(tags.get(_TIME)))
    found = {
        "camera": model if model.startswith(make) else f"{make} {model}".strip(),
        "day": "-".join(day.groups()) if day and day[1] != "0000" else "",
        "place": _cell(gps, degrees),
    }
    return {name: value for name, value in found.items() if value}


def _text(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return " ".join(text.replace("\0", " ").split())


def _cell(gps: dict[int, Any], degrees: float) -> str:
    """The south-west corner of the cell, in degrees; empty where the position is missing or impossible."""
    try:
        position = []
        for reference, value, negative, most in ((1, 2, "S", 90), (3, 4, "W", 180)):
            parts = [float(part) for part in gps[value]]
            # some telephones write seconds of 0/0
            angle = parts[0] + sum(part / 60**i for i, part in enumerate(parts[1:], 1) if math.isfinite(part))
            if not angle <= most:  # NaN too
                return ""
            position.append(-angle if _text(gps.get(reference)).upper().startswith(negative) else angle)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""
    if position == [0, 0]:
        return ""  # cameras without a fix write zeros
    return ",".join(f"{math.floor(angle / degrees) * degrees:g}" for angle in position)
