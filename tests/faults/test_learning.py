"""Rows 44 and 45 in whole runs and in the clustering: values that are not finite, and collapse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from selfcluster import KMeans
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.runs.checkpoint import load_newest
from selfcluster.training.optim import clip
from selfcluster.types import Training


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_row_44_an_infinite_gradient_is_not_clipped_into_nan_and_touches_neither_weights_nor_teacher(
    tiny, tmp_path, monkeypatch
):
    """One image is infinite in one step: weights, the teacher's average and the statistics stay finite."""
    from selfcluster.data.loader import Loader

    batches = Loader.batches

    def poisoned(self, *words):
        for number, batch in enumerate(batches(self, *words)):
            if words[2] == 1 and number == 1:
                batch.views[0][3].fill_(float("inf"))
            yield batch

    monkeypatch.setattr(Loader, "batches", poisoned)
    tiny("dino", tmp_path / "run")
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == [0, 1, 1]
    found = load_newest(tmp_path / "run/checkpoints")[0]
    assert found is not None
    assert any("teacher" in name for name in found.tensors)
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())


def test_row_44_clipping_keeps_what_is_not_finite_visible():
    gradient = torch.tensor([torch.inf, 1.0])
    clip([gradient], gradient.norm(), Training(clip=1.0, batch_size=1, epochs=1))
    assert not gradient.isfinite().all()


def test_row_45_equal_features_are_said_within_the_run(tiny, tmp_path, capsys):
    """Images that are all alike: nothing can be told apart, and the run says so by its end."""
    same = np.full((48, 16, 16, 3), 90, np.uint8)
    tiny("swav", tmp_path / "run", data=same, epochs=8, quiet=True)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "48 of 48 images looked at are nearly constant" in said
    assert "The loss does not show that the training task was learned." in said


@pytest.mark.parametrize("rows_of", [1, 3])
def test_row_45_more_clusters_than_distinct_rows_end_with_as_many_as_there_are(rows_of):
    x = np.repeat(np.eye(4, dtype=np.float32)[:rows_of], 10, axis=0)
    with pytest.warns(UserWarning, match=rf"{rows_of} distinct rows?, fewer than n_clusters=6"):
        kmeans = KMeans(6, random_state=0).fit(x)
    assert len(np.unique(kmeans.labels_)) <= rows_of
    np.testing.assert_allclose(
        kmeans.cluster_centers_[kmeans.labels_], x, atol=2 / 1024
    )  # an empty cluster starts beside its donor


def test_row_45_rows_that_are_not_finite_are_named():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    x[[7, 31], 1] = np.nan
    with pytest.raises(ValueError, match=r"\b7\b.*\b31\b"):
        KMeans(3).fit(x)
    with pytest.raises(ValueError, match="NaN"):
        sinkhorn(torch.tensor([[1.0, torch.nan]]), 0.05, 3)


def test_row_45_fewer_rows_than_clusters_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"2.*5|5.*2"):
        KMeans(5).fit(np.eye(2, dtype=np.float32))


def test_row_45_rows_of_zeros_on_the_sphere_get_a_cluster():
    x = np.concatenate([np.zeros((5, 3)), np.eye(3).repeat(5, axis=0)]).astype(np.float32)
    with pytest.warns(UserWarning, match="5 of 20 rows of X are all zero"):
        kmeans = KMeans(3, spherical=True, random_state=0).fit(x)
    labels = kmeans.labels_
    assert set(labels) <= {0, 1, 2}
    assert all(len(set(labels[start : start + 5])) == 1 for start in (5, 10, 15))
    np.testing.assert_allclose(np.linalg.norm(kmeans.cluster_centers_, axis=1), 1, atol=1e-5)
