"""Label-free measures against hand values, float64 references and independent routes."""

import colorsys

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from selfcluster.data.sources import open_source
from selfcluster.evaluation import unlabeled
from selfcluster.evaluation.unlabeled import Crops, Surface


def blobs(k=4, each=20, dim=6, spread=0.05, seed=0):
    generator = np.random.default_rng(seed)
    centers = np.linalg.qr(generator.standard_normal((dim, dim)))[0][:k]
    labels = np.repeat(np.arange(k), each)
    return centers[labels] + spread * generator.standard_normal((k * each, dim)), labels


def test_retrieval_by_hand():
    first = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 1.0]])
    # first -> second: row 0 finds 0, row 1 finds 2, row 2 finds 2; second -> first: 0 finds 0, 1 finds 0, 2 finds 2
    assert unlabeled.retrieval(first, second) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_retrieval_counts_a_tie_as_a_miss():
    assert unlabeled.retrieval(np.ones((5, 3)), np.ones((5, 3))) == 0


def test_retrieval_equals_a_loop():
    generator = np.random.default_rng(1)
    a = generator.standard_normal((40, 5))
    b = a + 0.7 * generator.standard_normal((40, 5))
    cosine = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
    hits = sum(int(np.argmax(cosine[i]) == i) + int(np.argmax([row[i] for row in cosine]) == i) for i in range(40))
    assert unlabeled.retrieval(a, b) == pytest.approx(hits / 80)
    assert unlabeled.retrieval(3 * a, b) == unlabeled.retrieval(b, a) == pytest.approx(hits / 80)


def test_neighbor_overlap_equals_sets_in_float64():
    generator = np.random.default_rng(2)
    a, b = generator.standard_normal((50, 8)), generator.standard_normal((50, 4))

    def lists(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = x @ x.T
        np.fill_diagonal(cosine, -2)
        return [set(np.argsort(-row)[:7].tolist()) for row in cosine]

    shared = np.mean([len(p & q) / 7 for p, q in zip(lists(a), lists(b), strict=True)])
    assert unlabeled.neighbor_overlap(a, b, k=7) == pytest.approx(shared)
    rotation = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    assert unlabeled.neighbor_overlap(a, 5 * a @ rotation) == 1  # neighbors do not depend on rotation or scale


def test_unrelated_spaces_share_neighbors_by_chance():
    generator = np.random.default_rng(3)
    a, b = generator.standard_normal((300, 8)), generator.standard_normal((300, 8))
    assert unlabeled.neighbor_overlap(a, b, k=10) == pytest.approx(10 / 299, abs=0.01)


def test_agreement_is_the_mean_over_pairs():
    labelings = np.random.default_rng(4).integers(0, 3, (3, 60))
    pairs = [(0, 1), (0, 2), (1, 2)]
    mean = np.mean([adjusted_mutual_info_score(labelings[i], labelings[j]) for i, j in pairs])
    assert unlabeled.agreement(labelings) == pytest.approx(mean)
    assert unlabeled.agreement(labelings) == pytest.approx(0, abs=0.05)
    assert unlabeled.agreement(labelings, adjusted=False) > unlabeled.agreement(labelings)


def test_clear_groups_are_found_by_every_seed():
    x, labels = blobs()
    found = unlabeled.clusterings(x, 4)
    assert unlabeled.agreement(found) > 0.8
    assert unlabeled.explained(found, labels) > 0.8


def test_quantile_groups():
    assert unlabeled.quantile_groups([3.0, 3.0, 3.0, 9.0], 2).tolist() == [0, 0, 0, 1]  # equal values stay together
    groups = unlabeled.quantile_groups(np.random.default_rng(5).random(100), 5)
    assert np.bincount(groups).tolist() == [20] * 5


def test_hsv_histogram_against_colorsys():
    generator = np.random.default_rng(6)
    pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    counts = np.zeros((12, 3, 4))
    for r, g, b in pixels.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        bright = min(3, int(v * 4))
        counts[int(h * 12) % 12, min(2, int(s * 3)), bright] += s
        counts[:, 0, bright] += (1 - s) / 12
    assert unlabeled.hsv_histogram(pixels) == pytest.approx(counts.ravel() / 64)


def test_a_gray_image_has_no_hue():
    gray = np.full((4, 4, 3), 200, np.uint8)
    counts = unlabeled.hsv_histogram(gray).reshape(12, 3, 4)
    assert counts[:, 0, 3] == pytest.approx(np.full(12, 1 / 12))
    assert counts.sum() == pytest.approx(1)


def test_clusters_by_color_are_called_so():
    x, labels = blobs(k=2, each=40)
    colors = np.zeros((80, 4))
    colors[np.arange(80), 2 * labels] = 0.9
    colors[:, 1] += 0.1
    surface = Surface(colors, np.arange(80.0), np.ones(80))
    two = Crops(x, x + 1e-3)
    result = unlabeled.measure(two, surface, two, labels)
    assert result["start_overlap"] == 1
    assert result["retrieval"] == 1
    assert result["knn"] == 1
    assert "by_aspect" not in result  # all images are square
    shuffled = np.random.default_rng(7).permutation(80)
    other = unlabeled.measure(two, Surface(colors[shuffled], np.arange(80.0)[shuffled], np.ones(80)))
    assert result["by_color"] > 0.3
    assert abs(other["by_color"]) < 0.1
    assert abs(other["by_file_size"]) < 0.15


def test_surface_of_arrays(tmp_path):
    from PIL import Image

    images = np.random.default_rng(8).integers(0, 256, (6, 10, 20, 3), dtype=np.uint8)
    rows, surface = unlabeled.read_surface(open_source(images), np.array([1, 4]))
    assert rows.tolist() == [1, 4]
    assert surface.aspect.tolist() == [2, 2]
    assert np.isnan(surface.file_size).all()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "7.png").write_bytes(b"no image")
    rows, surface = unlabeled.read_surface(open_source(tmp_path), np.arange(7))
    assert rows.tolist() == list(range(6))
    assert surface.file_size.tolist() == [(tmp_path / f"{i}.png").stat().st_size for i in range(6)]
    assert surface.colors.sum(axis=1) == pytest.approx(np.ones(6))


def test_too_few_images_are_refused():
    x = np.eye(4)
    with pytest.raises(ValueError, match="at least 8"):
        unlabeled.measure(Crops(x, x))


def test_the_change_and_its_interval_by_hand():
    before, after = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    change = unlabeled.paired_change(before, after)
    error = np.sqrt(((np.array([1, 0, 0, 0]) - 0.25) ** 2).sum() / 3 / 4)
    assert change.mean == 0.25
    assert (change.low, change.high) == pytest.approx((0.25 - 1.96 * error, 0.25 + 1.96 * error))


def test_hits_of_several_crops_are_their_mean():
    rng = np.random.default_rng(3)
    center, crops = rng.standard_normal((30, 4)), rng.standard_normal((3, 30, 4))
    hits = unlabeled.retrieval_hits(center, crops)
    assert hits == pytest.approx(np.mean([unlabeled.retrieval_hits(center, crop) for crop in crops], axis=0))
    assert hits.mean() == pytest.approx(np.mean([unlabeled.retrieval(center, crop) for crop in crops]))
