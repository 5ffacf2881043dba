"""Metadata against clusters: tag rules, coverage, purity, edges and colors, by hand."""

import numpy as np
import pytest

from selfcluster.data.sources import open_source
from selfcluster.evaluation.metadata import (
    cluster_purity,
    color_deviations,
    mean_colors,
    neighbor_graph,
    one_tag,
    read_columns,
    same_label_edges,
)


def test_the_rarest_tag_is_the_papers():
    """sea 3 times, dog 2, sun 1: an image of several tags has the one that the fewest images have."""
    labels, names = one_tag(["sea;sun", "sea; dog", "dog", "sea", "", "none"], "rarest")
    assert names == ["dog", "sea", "sun"]
    assert [names[n] if n >= 0 else None for n in labels] == ["sun", "dog", "dog", "sea", None, None]


def test_equally_rare_tags_and_repeated_ones():
    labels, names = one_tag(["b;a", "a;b", "c;c;c", "c"])
    assert [names[n] for n in labels] == ["a", "a", "c", "c"]


def test_a_random_tag_is_one_of_the_images_own_and_depends_on_the_seed():
    cells = [f"common;only{i}" for i in range(400)]
    labels, names = one_tag(cells, "random", seed=3)
    chosen = [names[n] for n in labels]
    assert all(tag in cell.split(";") for tag, cell in zip(chosen, cells, strict=True))
    assert abs(chosen.count("common") - 200) < 50  # five standard deviations
    np.testing.assert_array_equal(labels, one_tag(cells, "random", seed=3)[0])
    assert one_tag(cells, "random", seed=4)[1] != names


def test_a_table_may_cover_some_images_and_name_them_in_four_ways(tmp_path):
    path = tmp_path / "about.csv"
    path.write_text("owner,id,camera\nann,a/1.png,x\nbob,2,y\nann,a/3,\nzoe,9.png,z\n")
    ids = ["a/1.png", "b/2.png", "a/3.png", "c/4.png"]
    columns = read_columns(str(path), ids)
    assert columns == {"owner": ["ann", "bob", "ann", ""], "camera": ["x", "y", "", ""]}
    assert read_columns(str(path), ["a/2.png", "b/2.png", "a/1.png"])["owner"] == ["", "", "ann"]  # 2 is not one image


@pytest.mark.parametrize(
    ("text", "message"),
    [("id\n1\n", "one more"), ("id,x\nother,1\n", "The file has 'other', the images have 'a.png'")],
)
def test_a_useless_table_is_refused(tmp_path, text, message):
    path = tmp_path / "about.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_columns(str(path), ["a.png"])
    with pytest.raises(ValueError, match="cannot be read"):
        read_columns(str(tmp_path / "none.csv"), ["a.png"])


def test_purity_counts_labeled_images_of_large_clusters():
    clusters = np.array([0] * 6 + [1] * 6 + [2] * 2 + [-1])
    labels = np.array([7, 7, 7, 7, -1, -1, 7, 3, 3, 5, 5, 3, 7, 7, 7])
    rows = cluster_purity(clusters, labels, least=3)
    assert rows == [
        {"cluster": 0, "images": 4, "share": 1.0, "label": 7},
        {"cluster": 1, "images": 6, "share": 0.5, "label": 3},
    ]


def test_edges_by_hand():
    """Of ten edges two touch the unlabeled image; three of the other eight join equal labels."""
    indices = np.array([[1, 2], [0, 2], [0, 3], [2, 1], [0, 3]])
    labels = np.array([0, 0, 1, 1, -1])
    same, chance = same_label_edges(indices, labels)
    assert same == 4 / 8  # 0-1, 1-0, 2-3, 3-2
    assert chance == pytest.approx((2 * 1 + 2 * 1) / (4 * 3))
    assert np.isnan(same_label_edges(indices, np.full(5, -1))).all()


def test_chance_is_what_unrelated_labels_give():
    rng = np.random.default_rng(0)
    graph = neighbor_graph(rng.standard_normal((1500, 8)), 10)
    same, chance = same_label_edges(graph, rng.choice(3, 1500, p=[0.6, 0.3, 0.1]))
    assert chance == pytest.approx(0.46, abs=0.02)
    assert same == pytest.approx(chance, abs=0.02)


def test_colors_by_hand():
    images = np.zeros((5, 8, 8, 3), np.uint8)
    images[0, ..., 0], images[1, ..., 1], images[3] = 255, 255, 255
    images[2, :4, :, 0] = 255  # half red
    colors = mean_colors(open_source(images), np.arange(5))
    np.testing.assert_allclose(colors, [[1, 0, 0], [0, 1, 0], [0.5, 0, 0], [1, 1, 1], [0, 0, 0]])
    found = color_deviations(np.array([0, 0, 1, 1, 2]), colors)
    # pure red and pure green lie sqrt(2) apart, each half of it from the mean
    assert found == {0: pytest.approx(np.sqrt(0.5)), 1: pytest.approx(np.sqrt(0.25 + 1 + 1) / 2)}
