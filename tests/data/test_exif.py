"""Camera, day and place from a file's EXIF; damaged or impossible values are left out."""

import io
from pathlib import Path

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from selfcluster.data.exif import read_exif

PHOTOGRAPHS = Path(__file__).parents[3] / "shared/data/exif"


def photograph(tags: dict[int, str], gps: dict[int, object] | None = None) -> bytes:
    exif = Image.Exif()
    exif.update(tags)
    if gps is not None:
        exif.get_ifd(0x8825).update(gps)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_all_fields():
    """23 degrees 33 minutes south lies in the cell from -24 to -23, or from -23.6 to -23.4."""
    gps = {1: "S", 2: (23.0, 33.0, 0.0), 3: "W", 4: (46.0, 38.0, 24.0)}
    data = photograph({271: "NIKON", 272: "COOLPIX P6000", 306: "2008:10:22 16:28:39"}, gps)
    assert read_exif(data) == {"camera": "NIKON COOLPIX P6000", "day": "2008-10-22", "place": "-24,-47"}
    assert read_exif(data, degrees=0.2)["place"] == "-23.6,-46.8"
    gps[2] = (23.0, 33.0, IFDRational(0, 0))  # as some telephones write
    assert read_exif(photograph({}, gps))["place"] == "-24,-47"


def test_the_maker_is_not_said_twice():
    assert read_exif(photograph({271: "Canon", 272: "Canon EOS 40D"})) == {"camera": "Canon EOS 40D"}


@pytest.mark.parametrize(
    ("tags", "gps"),
    [
        ({}, None),
        ({306: "0000:00:00 00:00:00"}, None),
        ({306: "yesterday"}, None),
        ({271: "  \0 "}, {1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}),
        ({}, {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}),  # no fix
        ({}, {1: "N", 2: (10.0, 0.0, 0.0)}),
    ],
)
def test_what_means_nothing_is_left_out(tags, gps):
    assert read_exif(photograph(tags, gps)) == {}


def test_a_damaged_block_or_file_is_no_error():
    data = photograph({271: "NIKON", 272: "COOLPIX P6000"})
    assert read_exif(data[:60]) == {}
    assert read_exif(b"") == {}
    at = data.index(b"Exif\0\0") + 6
    assert read_exif(data[:at] + b"\xff" * 8 + data[at + 8 :]) == {}


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs with EXIF are not on this machine")
def test_photographs_of_real_cameras():
    found = {path.name: read_exif(path.read_bytes()) for path in PHOTOGRAPHS.glob("*.jpg")}
    assert found["DSCN0010.jpg"] == {"camera": "NIKON COOLPIX P6000", "day": "2008-10-22", "place": "43,11"}
    assert sum("camera" in fields for fields in found.values()) == 48
    assert sum("place" in fields for fields in found.values()) == 22  # of 23 GPS blocks one holds zeros
