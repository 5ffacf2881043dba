"""Freed memory is kept where glibc allows it, and never against the user's own settings."""

import os
import subprocess
import sys

import pytest

# pages that the kernel gave out while 20 arrays of 16 MB were filled and freed one after the other
COUNT = """
import resource
{before}
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():
    for _ in range(20):
        blocks = [bytearray(b"1") * (16 << 20) for _ in range(2)]
fill()
start = faults()
fill()
print(faults() - start)
"""
KEEP = "from selfcluster.allocation import keep_freed_memory; print(keep_freed_memory())"


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.split()


def is_glibc():
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})


@pytest.mark.skipif(not is_glibc(), reason="glibc only")
def test_pages_are_given_out_once():
    kept, again = run(COUNT.format(before=KEEP))
    assert kept == "True"
    assert int(again) < 1_000  # of 163,840 pages of 4 kB


def test_the_users_own_settings_stay():
    assert run(KEEP, MALLOC_TRIM_THRESHOLD_="1000000") == ["False"]
    assert run(KEEP, GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000") == ["False"]


@pytest.mark.skipif(not is_glibc(), reason="glibc only")
def test_a_large_picture_is_given_back():
    """8,000 x 8,000 pixels are 244 MiB in Pillow, which cuts them into blocks below the size that is kept."""
    code = """
import os
from selfcluster.allocation import keep_freed_memory
keep_freed_memory()
from PIL import Image
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
before = megabytes()
picture = Image.new("RGB", (8_000, 8_000), (1, 2, 3))
with_picture = megabytes()
del picture
print(with_picture - before, megabytes() - before)
"""
    held, left = map(int, run(code))
    assert held > 200
    assert left < 20
