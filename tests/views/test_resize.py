"""The compiled resize against torch's to the bit, and both against the weights' definition in float64."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster import compiler
from selfcluster.views import resize as module
from selfcluster.views.resize import by_torch, has_kernel, resize

compiled = pytest.mark.skipif(not has_kernel(), reason="no AVX2 here, or no C++ compiler")
PIXELS = np.random.default_rng(0).integers(0, 256, (130, 120, 3), np.uint8)


def weights(extent: int, size: int, interpolation: str) -> np.ndarray:
    """(size, extent) float64: a triangle, or Keys' cubic, widened where the axis shrinks; each row sums to 1."""
    scale = extent / size
    wide = max(scale, 1.0)
    x = np.abs(np.arange(extent) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / wide
    if interpolation == "bilinear":
        w = np.clip(1 - x, 0, None)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        w = np.where(x < 1, near, np.where(x < 2, far, 0))
    return w / w.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("native", ["0", pytest.param("1", marks=compiled)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(24, 17), (130, 120), (150, 200), (1, 1)])
def test_pixels_are_those_of_the_definition_in_float64(shape, interpolation, native, monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", native)
    rows, columns = weights(130, shape[0], interpolation), weights(120, shape[1], interpolation)
    across = np.clip(np.einsum("wx,yxc->cyw", columns, PIXELS.astype(np.float64)), 0, 255)
    true = np.clip(np.einsum("hy,cyw->chw", rows, across), 0, 255)
    rounding = 0.5 * np.abs(rows).sum(axis=1).max() + 0.5  # of the first pass, seen through the second, and of that one
    assert np.abs(resize(PIXELS, shape, interpolation) - true).max() <= rounding + 0.06  # and of the weights


@compiled
@settings(max_examples=150, deadline=None)
@given(
    image=st.tuples(st.integers(1, 130), st.integers(1, 120)),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    flip=st.booleans(),
)
def test_the_kernel_is_torchs_resize_to_the_bit(image, shape, interpolation, flip):
    pixels = PIXELS[130 - image[0] :, 120 - image[1] :]  # its last row ends with the memory
    theirs = by_torch(pixels, shape, interpolation)
    assert np.array_equal(resize(pixels, shape, interpolation, flip=flip), theirs[:, :, ::-1] if flip else theirs)


@pytest.mark.parametrize("native", ["0", pytest.param("1", marks=compiled)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_part_is_cut_out_of_the_whole(native, channels, monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", native)
    pixels = np.concatenate([PIXELS, PIXELS], axis=2)[:, :, :channels]
    whole = by_torch(pixels, (70, 90))
    out = np.zeros((channels, 20, 33), np.uint8)
    made = resize(pixels, (70, 90), corner=(50, 8), part=(20, 33), flip=True, out=out)
    assert made is out
    assert np.array_equal(out, whole[:, 50:70, 8:41][:, :, ::-1])


@pytest.mark.parametrize("turned", [PIXELS[::-1], PIXELS[:, ::-1], PIXELS.swapaxes(0, 1), PIXELS[:, ::2]])
def test_any_layout_in_memory_is_taken(turned):
    assert np.array_equal(resize(turned, (40, 50)), by_torch(np.ascontiguousarray(turned), (40, 50)))


def test_an_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match="interpolation='lanczos' is neither"):
        resize(PIXELS, (9, 9), "lanczos")


@compiled
def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    assert not has_kernel()


@compiled
def test_a_kernel_that_errs_is_not_used(monkeypatch):
    kernel = module.chosen()
    assert kernel is not None
    assert kernel.agrees()
    right = kernel.resize

    def wrong(image, shape, corner, out, interpolation="bilinear", flip=False):
        right(image, shape, corner, out, interpolation, flip)
        out[0, 0, 0] ^= 1

    monkeypatch.setattr(kernel, "resize", wrong)
    assert not kernel.agrees()


@compiled
def test_a_compiler_that_fails_means_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert module.chosen.load() is None
    monkeypatch.setattr(compiler, "is_known_platform", lambda: False)
    assert module.chosen.load() is None


OUTSIDE = """
import ctypes, mmap
import numpy as np
from selfcluster.views.resize import has_kernel, resize
assert has_kernel()
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * page)
whole = np.frombuffer(memory, np.uint8)
libc = ctypes.CDLL(None, use_errno=True)
for number in (0, 2):
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + number * page), page, 0) == 0, ctypes.get_errno()
for height, width in ((1, 1), (2, 3), (5, 7), (30, 40)):
    for start in (page, 2 * page - height * width * 3):
        image = whole[start : start + height * width * 3].reshape(height, width, 3)
        image[:] = 7
        for shape in ((1, 1), (6, 9), (50, 60)):
            for name in ("bilinear", "bicubic"):
                assert (resize(image, shape, name) == 7).all()
print("done")
"""


@compiled
def test_nothing_outside_the_image_is_read():
    """The pages before and behind the image may not be read: the process would be killed."""
    done = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True)
    assert done.stdout == "done\n", (done.returncode, done.stderr)
