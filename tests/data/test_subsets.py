"""Subsets: exact sizes, the same for a seed, and noise that is never the truth."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selfcluster.data import subsets
from selfcluster.data.sources import DataError, LabelsError, open_source


def digits(**options):
    return open_source("builtin:digits", labels_from="labels", **options)


def test_a_limit_is_a_seeded_sample_in_manifest_order():
    whole, part = digits(), digits(limit=300, seed=1)
    assert len(part) == 300
    assert part.ids[:] == sorted(part.ids)
    assert part.ids[:] == digits(limit=300, seed=1).ids[:] != digits(limit=300, seed=2).ids[:]
    rows = [whole.ids.index(id) for id in part.ids]
    np.testing.assert_array_equal(part.labels, whole.labels[rows])
    for i in (0, 150, 299):
        np.testing.assert_array_equal(part.read(i), whole.read(rows[i]))
    assert len(digits(limit=10**6)) == 1797
    assert part.describe()["limit"] == 300


def test_every_image_is_as_likely_to_be_kept():
    kept = np.zeros(50)
    for seed in range(2000):
        kept[subsets.limited(50, 10, seed)] += 1
    chi = ((kept - 400) ** 2 / (400 * 0.8)).sum()  # variance 2000 x 0.2 x 0.8
    assert chi < 86  # 99.9 % point of chi-square with 49 degrees


def test_classes_are_renumbered_and_unknown_ones_named(tmp_path):
    (tmp_path / "some.txt").write_text("7\n\n3\n")
    part = digits(classes=tmp_path / "some.txt")
    assert part.class_names == ["3", "7"]
    assert np.bincount(part.labels).tolist() == [183, 179]
    (tmp_path / "wrong.txt").write_text("3\nseven\n")
    with pytest.raises(LabelsError, match="'seven', which is not a class; classes found: 0, 1"):
        digits(classes=tmp_path / "wrong.txt")


def test_a_long_tail_falls_exponentially_to_the_ratio():
    labels = np.repeat(np.arange(5), 100)
    rows = subsets.long_tailed(labels, 16, seed=0)
    assert np.bincount(labels[rows]).tolist() == [100, 50, 25, 12, 6]  # 100 x 16^(-k/4); 12.5 and 6.25 rounded
    assert (np.diff(rows) > 0).all()
    uneven = np.repeat(np.arange(3), [10, 100, 60])
    rows = subsets.long_tailed(uneven, 4, seed=0)
    assert np.bincount(uneven[rows]).tolist() == [10, 100, 50]  # class 0 would keep 25 and has 10


def test_label_noise_is_exact_in_number_and_never_true():
    labels = np.repeat(np.arange(4), 250)
    spoilt = subsets.noisy(labels, 4, 0.3, seed=0)
    wrong = spoilt != labels
    assert wrong.sum() == 300
    shift = np.bincount((spoilt - labels)[wrong] % 4, minlength=4)
    assert shift[0] == 0
    assert ((shift[1:] - 100) ** 2 / 100).sum() < 13.8  # 99.9 % point, 2 degrees
    np.testing.assert_array_equal(spoilt, subsets.noisy(labels, 4, 0.3, seed=0))
    assert (subsets.noisy(labels, 4, 1.0, seed=0) != labels).all()
    assert (subsets.noisy(labels, 4, 0.0, seed=0) == labels).all()


def test_subsets_combine_and_are_written_down():
    part = digits(long_tail=10, limit=200, label_noise=0.5, seed=4)
    assert len(part) == 200
    assert part.subset == {"limit": 200, "long_tail": 10, "label_noise": 0.5, "subset_seed": 4}
    truth = digits()
    true_labels = truth.labels[[truth.ids.index(id) for id in part.ids]]
    assert (part.labels != true_labels).sum() == 100


@pytest.mark.parametrize("option", [{"long_tail": 10}, {"label_noise": 0.1}, {"classes": "x"}])
def test_what_needs_labels_says_so(option):
    with pytest.raises(LabelsError, match=f"{next(iter(option))} needs labels"):
        open_source("builtin:digits", **option)


@pytest.mark.parametrize("option", [{"long_tail": 0.5}, {"label_noise": 1.5}, {"limit": 0}, {"classes": "/nowhere"}])
def test_values_without_sense_are_refused(option):
    with pytest.raises(DataError, match=r"0\.5|1\.5|limit 0|nowhere"):
        digits(**option)


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_only_the_images_of_a_limited_run_need_a_label(tmp_path, kind):
    for i in range(12):
        where = tmp_path / "data" / ("" if i >= 8 else "ab"[i % 2])
        where.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(where / f"{i:02}.png")
    data = str(tmp_path / "data")
    table = tmp_path / "labels.csv"
    names = [name for name in open_source(data).ids if "/" in name]
    table.write_text("id,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    labels_from = "folders" if kind == "folders" else str(table)
    fits = {seed: all("/" in name for name in open_source(data, limit=2, seed=seed).ids) for seed in range(20)}
    assert set(fits.values()) == {True, False}
    for seed, labeled in fits.items():
        if labeled:
            part = open_source(data, labels_from=labels_from, limit=2, seed=seed)
            assert part.labels is not None
            assert [part.class_names[k] for k in part.labels] == [name[0] for name in part.ids]
        else:
            with pytest.raises(DataError, match="of 2 images"):
                open_source(data, labels_from=labels_from, limit=2, seed=seed)
    with pytest.raises(DataError, match="4 of 12 images"):
        open_source(data, labels_from=labels_from)
