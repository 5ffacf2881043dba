"""Audit: exact and near copies, dark, blurred, constant and unreadable images, and leaks between two sets."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from selfcluster.cli import main
from selfcluster.commands.audit import audit
from selfcluster.data import audit as looks
from selfcluster.data.sources import open_source


def textured(seed: int, size: tuple[int, int] = (96, 128)) -> Image.Image:
    """A picture with detail at every scale, as photographs have (power falls with frequency)."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None]
    spectrum = np.exp(2j * np.pi * rng.random(size)) / np.maximum(np.hypot(fy, fx), 1 / max(size))
    values = np.fft.ifft2(spectrum).real
    values = (values - values.min()) / np.ptp(values)
    return Image.fromarray((values * 255).astype(np.uint8)).convert("RGB")


@pytest.fixture
def folder(tmp_path, encode):
    """20 textured pictures 00..19 and one of each problem."""
    data = tmp_path / "photos"
    data.mkdir()
    for i in range(20):
        textured(i).save(data / f"{i:02d}.png")
    (data / "copy of 03.png").write_bytes((data / "03.png").read_bytes())
    textured(5).resize((64, 48)).save(data / "small 05.jpg", quality=60)
    Image.fromarray((np.asarray(textured(6)) * 0.8 + 20).astype(np.uint8)).save(data / "brighter 06.webp")
    textured(40, (256, 256)).filter(ImageFilter.GaussianBlur(4)).save(data / "blurred.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 20, (40, 40), np.uint8)).save(data / "dark.png")
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(data / "constant.png")
    (data / "cut.png").write_bytes((data / "01.png").read_bytes()[:-40])
    (data / "pointer.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return data


def test_each_problem_is_found_and_nothing_else(folder):
    found = audit(folder, quiet=True)
    assert found["images"] == 28
    assert found["exact_duplicates"] == [["03.png", "copy of 03.png"]]
    assert sorted(found["near_duplicates"]) == [["05.png", "small 05.jpg"], ["06.png", "brighter 06.webp"]]
    assert found["dark"] == ["dark.png"]
    assert found["constant"] == ["constant.png"]
    assert found["blurred"] == ["blurred.png"]
    assert {group["reason"]: group["ids"] for group in found["unreadable"]} == {
        "truncated": ["cut.png"], "lfs_pointer": ["pointer.jpg"]
    }  # fmt: skip
    assert found["second"] is None


def test_leaks_between_two_folders(folder, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    for i in range(50, 55):
        textured(i).save(test / f"{i}.png")
    (test / "same.png").write_bytes((folder / "07.png").read_bytes())
    textured(8).save(test / "like 08.jpg", quality=50)
    found = audit(folder, test, quiet=True, workers=0)
    assert found["exact_leaks"] == [["07.png", "same.png"]]
    assert found["near_leaks"] == [["08.png", "like 08.jpg"]]
    assert found["second"]["images"] == 7


def test_sharpness_is_a_ratio_of_variances_as_computed_in_float64():
    gray = np.random.default_rng(0).integers(0, 256, (60, 41), dtype=np.uint8)
    for image in (gray, gray // 100 + 250, np.asarray(Image.fromarray(gray).filter(ImageFilter.GaussianBlur(2)))):
        x = image.astype(np.float64)
        around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
        expected = max(0.0, (around - 4 * x[1:-1, 1:-1]).var() - 20 / 12) / x.var()
        assert looks.sharpness(image) == pytest.approx(expected, rel=1e-4)
    assert looks.sharpness(np.full((9, 9), 200, np.uint8)) == 0.0


def test_row_12_a_thousand_copies_are_one_group():
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16), np.uint8)
    images[10:50] = images[3]
    found = audit(images, quiet=True)
    assert [len(group) for group in found["exact_duplicates"]] == [41]
    assert found["near_duplicates"] == []


def test_row_12_large_sets_find_the_same_near_copies_by_parts_of_a_hash(folder, monkeypatch):
    examined = looks.examine(open_source(folder))
    exhaustive = looks.near_groups(examined)
    monkeypatch.setattr(looks, "_BRUTE", 5)
    assert looks.near_groups(examined) == exhaustive
    monkeypatch.setattr(looks, "_BRUTE", 50_000)
    assert looks.near_groups(examined, near=1.0) == []


def test_the_command_prints_a_table_or_json(folder, capsys):
    assert main(["audit", str(folder)]) == 0
    table = capsys.readouterr().out
    assert f"{folder}: 28 images" in table
    assert "exact copies              1  03.png = copy of 03.png" in table
    assert "1  pointer.jpg (Git LFS pointer: the image itself was not fetched; run: git lfs pull)" in table
    assert main(["audit", str(folder), str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert len(result["exact_leaks"]) == 28  # unreadable files have bytes, too
    assert result["near_leaks"] == []  # equal files are not counted twice
    assert main(["audit", str(folder), "--near", "0.5"]) == 2


def test_row_2_bits_that_flip_are_found_by_their_hash(folder, tmp_path, capsys):
    hashes = tmp_path / "hashes.txt"
    assert main(["audit", str(folder), "--hashes", str(hashes)]) == 0
    assert "28 hashes written" in capsys.readouterr().out
    first = hashes.read_text().splitlines()[0]
    assert first == f"{hashlib.sha256((folder / '00.png').read_bytes()).hexdigest()}  00.png"
    data = bytearray((folder / "small 05.jpg").read_bytes())
    data[-100] ^= 0x10  # inside the scan: it still decodes
    (folder / "small 05.jpg").write_bytes(data)
    (folder / "19.png").rename(folder / "new.png")
    found = audit(folder, hashes=hashes, quiet=True)
    assert "small 05.jpg" not in [id for group in found["unreadable"] for id in group["ids"]]
    assert found["hashes"] == {
        "file": str(hashes), "changed": ["small 05.jpg"], "missing": ["19.png"], "added": ["new.png"]
    }  # fmt: skip
    assert main(["audit", str(folder), "--hashes", str(hashes)]) == 0
    assert "changed                   1  small 05.jpg" in capsys.readouterr().out
    hashes.write_text("nonsense\n")
    assert main(["audit", str(folder), "--hashes", str(hashes)]) == 2


def test_row_2_bits_that_flip_inside_the_pixels_are_seen_as_a_copy_that_is_not_equal(folder):
    """Such an image decodes without an error; beside the original it is a near copy, never an equal file."""
    data = bytearray((folder / "09.png").read_bytes())
    image = textured(9)
    pixels = np.asarray(image).copy()
    pixels[10, 10] ^= 0x40
    Image.fromarray(pixels).save(folder / "flipped 09.png")
    assert data != (folder / "flipped 09.png").read_bytes()
    assert ["09.png", "flipped 09.png"] in audit(folder, quiet=True)["near_duplicates"]
