"""Limits of decoding and reading: megapixels, scans, memory, metadata, hanging reads; and reasons with true counts."""

from __future__ import annotations

import _thread
import io
import logging
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from selfcluster.data import threads
from selfcluster.data.budget import MemoryBudget
from selfcluster.data.decode import decode, open_image
from selfcluster.data.errors import BadImage
from selfcluster.data.images import BadImages, describe_images, remarks, survey
from selfcluster.data.kinds import recognize
from selfcluster.data.loader import Loader
from selfcluster.data.problems import Finding, accepting_share, grouped, listed
from selfcluster.data.quarantine import Quarantine, TooManyBadImages
from selfcluster.data.sources import open_source
from selfcluster.data.threads import DaemonThreads, ReadingStopped, ReadTimeout, result_of

SMOOTH = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)


# kinds and reasons


@pytest.mark.parametrize(
    ("start", "reason", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "lfs_pointer", "git lfs pull"),
        (b"\0\5\26\7\0\2\0\0Mac OS X", "not_an_image", "AppleDouble"),
        (b"  <!DOCTYPE html><html>", "not_an_image", "web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'>", "unsupported", "SVG"),
        (b"%PDF-1.7", "unsupported", "PDF"),
        (b"PK\3\4", "unsupported", "zip: unpack it"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported", "JPEG 2000"),
        (b"\xff\x0a", "unsupported", "JPEG XL"),
        (bytes(128) + b"DICM", "unsupported", "DICOM"),
        (b"\x93NUMPY\1\0", "unsupported", "give the array itself"),
    ],
)
def test_what_is_no_image_is_named_with_what_to_do(start, reason, words):
    with pytest.raises(BadImage) as caught:
        decode(start + bytes(40))
    assert caught.value.reason == reason
    assert words in caught.value.detail


def test_raw_files_name_the_extra_that_reads_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    for start in (b"II*\0\x10\0\0\0CR\2\0", b"FUJIFILMCCD-RAW ", b"\0\0\0\x18ftypcrx "):
        assert recognize(start).name == "RAW"
        with pytest.raises(BadImage, match=r"unsupported: a camera's raw file: .*selfcluster\[raw\]"):
            decode(start + bytes(100))


def test_a_dng_is_a_raw_file(monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="writes a DNG's tags")
    buffer = io.BytesIO()
    tags = [(50706, "B", 4, (1, 4, 0, 0), False)]
    tifffile.imwrite(buffer, np.zeros((64, 64), np.uint16), photometric=32803, extratags=tags)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(BadImage, match="a camera's raw file"):
        decode(buffer.getvalue())


def test_a_raw_file_is_developed():
    """A DNG with a Bayer pattern, written by hand: smooth gradients come back in the right channels."""
    tifffile = pytest.importorskip("tifffile", reason="writes a DNG")
    pytest.importorskip("rawpy", reason="reads raw files (the extra raw)")
    y, x = np.mgrid[:128, :160]
    light = np.stack([x / 159, y / 127, (x + y) / 286], axis=2) * 0.8 + 0.1
    sensor = (light**2.2 * 65535).astype(np.uint16)
    mosaic = sensor[:, :, 1].copy()
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = sensor[0::2, 0::2, 0], sensor[1::2, 1::2, 2]
    matrix = [3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570]  # XYZ to sRGB
    tags = [
        (50706, 1, 4, bytes((1, 4, 0, 0)), False), (50708, 2, 5, "Test", False), (33421, 3, 2, (2, 2), False),
        (33422, 1, 4, bytes((0, 1, 1, 2)), False), (50778, 3, 1, 21, False), (50717, 4, 1, 65535, False),
        (50721, 10, 9, tuple(n for value in matrix for n in (int(value * 10_000), 10_000)), False),
        (50728, 5, 3, (1, 1, 1, 1, 1, 1), False), (271, 2, 5, "Test", False), (272, 2, 5, "Test", False),
    ]  # fmt: skip
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, mosaic, photometric=32803, extratags=tags, metadata=None)
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (128, 160, 3)
    for channel in range(3):
        inner = pixels[8:-8, 8:-8, channel].ravel(), light[8:-8, 8:-8, channel].ravel()
        assert np.corrcoef(*inner)[0, 1] > 0.99
    with pytest.raises(BadImage):
        decode(buffer.getvalue()[:20_000])


def test_heic_and_avif_are_read_by_their_content(encode):
    pillow_heif = pytest.importorskip("pillow_heif", reason="writes HEIC (the extra heic)")
    color = np.stack([SMOOTH, 127 - SMOOTH, SMOOTH // 2], axis=2)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(color)).save(buffer, quality=95)
    for data in (buffer.getvalue(), encode(color, "AVIF", quality=95)):
        assert recognize(data).name in ("HEIC", "AVIF")
        pixels = decode(data)
        assert pixels.shape == (64, 64, 3)
        assert np.abs(pixels.astype(int) - color).mean() < 4
        with pytest.raises(BadImage):
            decode(data[: len(data) // 2])


def test_a_png_with_large_metadata_is_read(encode):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    text.add_itxt("more", "y" * 3_000_000, zip=True)
    data = encode(SMOOTH, pnginfo=text, icc_profile=bytes(5_000_000))
    np.testing.assert_array_equal(decode(data, channels=1)[:, :, 0], SMOOTH)
    with pytest.raises(BadImage, match="truncated"):
        decode(data[:-30])


# megapixels, scans, memory


def test_a_jpeg_above_the_limit_is_decoded_smaller(encode):
    data = encode(SMOOTH, "JPEG", quality=95)
    assert decode(data, max_pixels=64 * 64).shape == (64, 64, 3)
    assert decode(data, max_pixels=64 * 64 - 1).shape == (32, 32, 3)
    assert decode(data, max_pixels=64).shape == (8, 8, 3)
    image = open_image(data, max_pixels=64)
    assert (image.height, image.width) == (64, 64)
    with pytest.raises(BadImage, match=r"too_large: .*--max-megapixels"):
        decode(data, max_pixels=63)
    with pytest.raises(BadImage, match=r"too_large: .*progressive JPEG"):
        decode(encode(SMOOTH, "JPEG", progressive=True), max_pixels=64 * 64 - 1)


def test_the_limit_is_an_option_of_a_source(tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((100, 100), np.uint8)))
    seen = describe_images(open_source(tmp_path, max_megapixels=0.005))
    assert [finding.reason for finding in seen["findings"]] == ["too_large"]
    assert describe_images(open_source(tmp_path, max_megapixels=0.01))["side"] == [100, 100, 100]


def test_a_progressive_jpeg_of_many_scans_is_refused(encode):
    data = encode(SMOOTH, "JPEG", progressive=True)
    assert decode(data).shape == (64, 64, 3)
    scan = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(BadImage, match="too_large: progressive JPEG of 1"):
        decode(data[:-2] + scan * 100 + data[-2:])


def test_the_memory_budget_is_shared_and_never_refuses():
    budget = MemoryBudget(100)
    most, held, lock = [0], [0], threading.Lock()

    def work(count: int) -> None:
        with budget.hold(count):
            with lock:
                held[0] += count
                most[0] = max(most[0], held[0])
            time.sleep(0.01)
            with lock:
                held[0] -= count

    workers = [threading.Thread(target=work, args=(40,)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most[0] == 80  # two at a time
    with budget.hold(1000):  # alone
        assert budget.used == 1000
    assert budget.used == 0


def test_an_image_says_about_how_much_memory_decoding_takes(encode):
    small, large = (open_image(encode(np.zeros((s, s), np.uint8))) for s in (50, 100))
    assert large.decode_bytes == 4 * small.decode_bytes >= 100 * 100 * 8


# reasons and true counts


def test_reasons_are_grouped_with_counts_and_examples(tmp_path, encode):
    (tmp_path / "icon.png").write_bytes(encode(np.zeros((1, 1), np.uint8)))
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadImages) as caught:
        remarks(describe_images(open_source(tmp_path)), "here")
    lines = str(caught.value).splitlines()
    assert lines[0] == "none of 5 images looked at in here can be read:"
    assert lines[1].startswith("  4 lfs_pointer: 0.jpg, 1.jpg, 2.jpg, ... (Git LFS pointer: ")
    assert lines[2] == "  1 too_small: icon.png (1x1 pixels, the shorter side needs at least 8)"


def test_unsupported_formats_are_groups_of_their_own():
    findings = [Finding("a", "unsupported", "HEIC: x"), Finding("b", "unsupported", "PDF: y")] + [
        Finding(str(i), "damaged", f"JPEG: {i}") for i in range(9)
    ]
    assert [(group.reason, group.count) for group in grouped(findings)] == [
        ("damaged", 9), ("unsupported", 1), ("unsupported", 1)
    ]  # fmt: skip
    assert "9 damaged: 0, 1, 2, ... (JPEG: 0)" in listed(grouped(findings))


@pytest.mark.parametrize(("bad", "total"), [(32, 96), (1, 3), (2, 3), (96, 96), (7, 1_281_167), (999, 1000)])
def test_the_share_that_is_advised_accepts_as_many(bad, total):
    share = accepting_share(bad, total)
    assert int(share * total) >= bad
    assert share <= bad / total + 0.0021


def test_the_count_is_that_of_all_images_and_the_flag_passes(tmp_path, coded):
    for i in range(96):
        data = coded(i, (16 + i % 3, 20))
        (tmp_path / f"{i:02d}.png").write_bytes(data[:-30] if i % 3 == 0 else data)
    options = {"batch_size": 16, "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "workers": 2}
    loader = Loader(open_source(tmp_path), quarantine=tmp_path / "q.jsonl", **options)
    with pytest.raises(TooManyBadImages, match=r"32 of 96 images are bad \(33\.3%: 32 truncated\)") as caught:
        list(loader.iterate_all())
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 32
    share = float(str(caught.value).rpartition("--max-bad ")[2].removesuffix(" accepts them"))
    accepting = Loader(open_source(tmp_path), max_bad=share, **options)
    assert sum(len(batch.index) for batch in accepting.iterate_all()) == 64
    assert accepting.reading_report()["bad_images"] == 32


def test_a_survey_that_takes_too_long_gives_a_share(tmp_path, coded):
    for i in range(40):
        (tmp_path / f"{i:02d}.png").write_bytes(coded(i)[:-30])
    finds, count = survey(open_source(tmp_path), np.zeros(40, bool), 0.0, None)
    assert (finds, count) == ([], 0)
    quarantine = Quarantine(open_source(tmp_path).ids, None, 0.0, 0, lambda bad: ([(5, "damaged", "x")], 9))
    with pytest.raises(
        TooManyBadImages,
        match=r"(?s)2 of the 10 images read so far \(of 40 in all\) are bad .*similar, --max-bad 0\.2 accepts them",
    ):
        quarantine.add(3, BadImage("damaged", "x"))


def test_reasons_that_may_have_passed_are_tried_again(tmp_path):
    ids = open_source(np.zeros((9, 8, 8), np.uint8)).ids
    path = tmp_path / "q.jsonl"
    first = Quarantine(ids, path, 1.0, 0)
    for row, reason in enumerate(("damaged", "read_error", "vanished", "no_memory", "timeout")):
        first.add(row, BadImage(reason, "x"))
    later = Quarantine(ids, path, 1.0, 0)
    assert later.bad.nonzero()[0].tolist() == [0]
    assert later.retried == 4
    assert len(path.read_text().splitlines()) == 1


# reads that hang


class Hanging:
    """A source's reader whose image 7 never comes."""

    def __init__(self, reader):
        self.reader, self.release = reader, threading.Event()

    def read(self, i, log):
        if i == 7:
            self.release.wait(20)
        return self.reader.read(i, log)

    def __getattr__(self, name):
        return getattr(self.reader, name)


@pytest.fixture
def hanging(tmp_path, coded):
    for i in range(20):
        (tmp_path / f"{i:02d}.png").write_bytes(coded(i, (16 + i % 3, 20)))
    source = open_source(tmp_path)
    source._reader = reader = Hanging(source._reader)
    loader = Loader(
        source, batch_size=4, image_size=8, mean=[0.5] * 3, std=[0.5] * 3, workers=2, in_memory=False, timeout=0.2
    )
    yield loader
    reader.release.set()


def test_a_read_that_hangs_is_named_and_ends_the_pass(hanging, monkeypatch, caplog):
    monkeypatch.setattr(threads, "_POLL", 0.02)
    monkeypatch.setattr(threads, "_WARN_AFTER", 0.05)
    started = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, "selfcluster.data"),
        pytest.raises(ReadTimeout, match=r"did not end within 0\.2 s: 07\.png\. .*--timeout"),
    ):
        list(hanging.iterate_all())
    assert "reading 07.png takes longer than" in caplog.text
    hanging.close()  # does not wait for it
    assert time.monotonic() - started < 3


def test_a_read_that_hangs_before_the_loader_starts_is_named(hanging, monkeypatch):
    monkeypatch.setattr(threads, "_POLL", 0.02)
    hanging.source.timeout = 0.2
    for look in (describe_images, lambda source: source.summary()):
        with pytest.raises(ReadTimeout, match=r"0\.2 s: 07\.png"):
            look(hanging.source)


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_read(hanging, monkeypatch):
    monkeypatch.setattr(threads, "_POLL", 0.02)
    hanging.watch.timeout = None
    with hanging.watch.stopping(lambda: True), pytest.raises(ReadingStopped):
        list(hanging.iterate_all())
    hanging.close()


def test_ctrl_c_of_the_instant_before_a_wait_ends_it():
    """Another thread sets Python's flag, which wakes no lock: as a signal that comes just before the lock is taken."""
    pool, end = DaemonThreads(1, "test"), threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Timer(0.1, _thread.interrupt_main).start()
    try:
        future = pool.submit(end.wait, 30)
        with pytest.raises(KeyboardInterrupt):
            result_of(future)
        assert not future.done()
        end.set()
        assert result_of(pool.submit(lambda: 3)) == 3
        with pytest.raises(ZeroDivisionError):
            result_of(pool.submit(lambda: 1 // 0))
    finally:
        signal.signal(signal.SIGINT, before)
        end.set()
        pool.shutdown()


def test_threads_that_work_while_the_program_ends_do_not_abort_it():
    program = (
        "import torch\n"
        "from selfcluster.data.threads import DaemonThreads\n"
        "pool = DaemonThreads(2, 'test')\n"
        "x = torch.rand(200, 200)\n"
        "futures = [pool.submit(lambda: [x @ x for _ in range(100)]) for _ in range(200)]\n"
        "futures[0].result()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_threads_run_everything_once_in_any_order_and_pass_errors_on():
    pool = DaemonThreads(3, "test")
    assert list(pool.map(lambda x: x * x, range(50))) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    pool.shutdown()
    assert not any(thread.name.startswith("test-") for thread in threading.enumerate())
