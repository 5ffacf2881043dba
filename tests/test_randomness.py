"""The same bits in NumPy and torch, uniform, and a sample's numbers belong to it alone."""

import numpy as np
import torch

from selfcluster.randomness import draw, key


def reference(seed, purpose, step, index, view, n):
    """SplitMix64's finalizer in Python's unbounded integers."""
    mask = (1 << 64) - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    base = key(seed, purpose, step, view)
    row = mix((index + base) & mask)
    return [(mix((row + (j + 1) * 0x9E3779B97F4A7C15) & mask) >> 40) / 2**24 for j in range(n)]


def test_numpy_and_torch_give_the_reference_bits():
    index = np.array([0, 1, 17, 2**40, 5])
    expected = np.array([reference(3, "crops", 9, int(i), 2, 6) for i in index], dtype=np.float32)
    assert np.array_equal(draw(3, "crops", 9, index, 2, 6), expected)
    assert np.array_equal(draw(3, "crops", 9, torch.from_numpy(index), 2, 6).numpy(), expected)


def test_a_row_depends_on_its_sample_only():
    whole = draw(0, "color", 1, np.arange(100), 0, 4)
    assert np.array_equal(draw(0, "color", 1, np.array([70, 3]), 0, 4), whole[[70, 3]])


def test_every_part_of_the_key_matters():
    index = np.arange(50)
    base = draw(0, "a", 0, index, 0, 3)
    for other in (draw(1, "a", 0, index, 0, 3), draw(0, "b", 0, index, 0, 3), draw(0, "a", 1, index, 0, 3)):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.3
    assert not np.array_equal(base, draw(0, "a", 0, index, 1, 3))


def test_uniform_and_uncorrelated():
    table = draw(0, "x", 0, np.arange(200_000), 0, 2)
    counts = np.histogram(table, bins=20, range=(0, 1))[0]
    expected = table.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, 0.1 %
    assert abs(np.corrcoef(table.T)[0, 1]) < 0.01
    assert abs(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]) < 0.01
    assert table.min() >= 0
    assert table.max() < 1
