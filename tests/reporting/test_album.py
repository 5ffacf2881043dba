"""All images of a run in the order of the page, and what is packed of their embeddings."""

from __future__ import annotations

import base64

import numpy as np

from selfcluster.reporting.album import build_album, pack, reduce
from selfcluster.runs.contents import Vectors, read_contents
from tests.reporting.folders import make_run, write_clusters, write_vectors


def test_by_cluster_nearest_first_and_those_without_a_cluster_last(tmp_path):
    run = make_run(tmp_path, list("abcdef"))
    write_clusters(run / "clusters.parquet", list("abcde"), [1, 0, 1, -1, 0], [3, 2, 1, 0, 1])
    album = build_album(read_contents(run))
    assert album.ids == ["e", "b", "c", "a", "d", "f"]
    assert album.cluster.tolist() == [0, 0, 1, 1, -1, -1]
    assert album.table_rows.tolist() == [4, 1, 2, 0, 3, -1]
    assert album.distance[:5].tolist() == [1, 2, 1, 3, 0]
    assert np.isnan(album.distance[5])
    assert album.embedded.all()


def test_each_image_keeps_its_own_embedding(tmp_path):
    run = make_run(tmp_path, list("abc"))
    vectors = np.array([[1, 0], [0, 3], [np.nan, 1]], np.float32)
    write_vectors(run / "embeddings.parquet", ["c", "a", "b"], vectors)
    album = build_album(read_contents(run))
    assert album.embedded[[album.ids.index(name) for name in "abc"]].tolist() == [True, False, True]
    one, two = (album.reduced[album.ids.index(name)] for name in "ac")
    np.testing.assert_allclose(np.linalg.norm(one - two), np.sqrt(2), rtol=1e-6)  # between unit vectors at right angles


def test_a_run_with_neither_table_is_an_empty_album(tmp_path):
    album = build_album(read_contents(tmp_path))
    assert len(album) == 0
    assert not album.embedded.any()


def test_all_components_keep_every_distance_between_unit_vectors(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    write_vectors(tmp_path / "e.parquet", [str(i) for i in range(40)], x)
    kept = reduce(Vectors(tmp_path / "e.parquet"))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(kept[:, None] - kept[None], axis=2), expected, atol=1e-5)
    assert (np.diff(kept.var(axis=0)) <= 1e-6).all()


def test_fewer_components_agree_with_scikit_learn_up_to_signs(tmp_path):
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).standard_normal((60, 9)) * np.arange(1, 10)
    write_vectors(tmp_path / "e.parquet", [str(i) for i in range(60)], x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = PCA(3, svd_solver="full").fit_transform(unit)
    np.testing.assert_allclose(np.abs(reduce(Vectors(tmp_path / "e.parquet"), 3)), np.abs(expected), atol=1e-5)


def test_packed_numbers_come_back_to_half_a_step():
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    x[3] = np.nan
    steps = np.frombuffer(base64.b64decode(pack(x)), np.int8).reshape(5, 4)
    assert not steps[3].any()
    largest = np.nanmax(np.abs(x))
    assert np.abs(steps * (largest / 127) - np.nan_to_num(x)).max() <= largest / 254 * 1.001
    assert pack(np.zeros((2, 2), np.float32)) == base64.b64encode(bytes(4)).decode()
