"""The loader: every view knows its image, whatever is bad, however many threads and processes (faults 1, 10, 46)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.data.loader import Loader
from selfcluster.data.quarantine import TooManyBadImages
from selfcluster.data.sources import DataError, open_source
from selfcluster.types import Crops, EpochPlan
from selfcluster.views.augmentations import plan_from_crops
from selfcluster.views.plans import ViewGroup, ViewPlan

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CROPS = ViewPlan(groups=(ViewGroup(count=2, size=12), ViewGroup(count=3, size=6, scale=(0.1, 0.3))))


def loader(data, batch_size=4, **options) -> Loader:
    settings = {"image_size": 16, "workers": 2, "max_bad": 0.5, **PLAIN, **options}
    return Loader(open_source(data), batch_size=batch_size, **settings)


def spelt(views: torch.Tensor) -> list[int]:
    """The number that each image's color spells (`coded`); any crop of it says the same."""
    level = (views.mean(dim=(2, 3)) * 255).round().long()
    assert (level[:, 2] == 99).all()
    return (level[:, 0] // 16 + level[:, 1]).tolist()


def collect(batches) -> list[tuple[list[torch.Tensor], list[int]]]:
    return [(batch.views, batch.index.tolist()) for batch in batches]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(
        i == j and all(torch.equal(v, w) for v, w in zip(x, y, strict=True))
        for (x, i), (y, j) in zip(a, b, strict=True)
    )


# every view knows its image


@pytest.mark.parametrize("ragged", [False, True], ids=["in_memory", "threads"])
def test_row_46_index_and_pixels_agree_with_bad_images_in_the_middle(coded_folder, ragged):
    bad = (0, 13, 14, 15, 40)
    images = loader(coded_folder(50, ragged, bad), batch_size=10)
    assert images.in_memory is not ragged
    shown = []
    for batch in images.batches(CROPS, epoch=2, global_step=10):
        assert [tuple(v.shape) for v in batch.views] == [(10, 3, 12, 12)] * 2 + [(10, 3, 6, 6)] * 3
        for view in batch.views:
            assert spelt(view) == batch.index.tolist()
        shown += batch.index.tolist()
    assert len(shown) == 50
    assert not set(shown) & set(bad)
    assert len(set(shown)) >= 40  # 45 good ones once each, and 5 replacements
    for view, plan in (("center", None), ("train", CROPS)):
        rows = []
        for batch in images.iterate_all(view, plan=plan, batch_size=7):
            assert len(batch.views) == (1 if view == "center" else 2)
            for pixels in batch.views:
                assert spelt(pixels) == batch.index.tolist()
            rows += batch.index.tolist()
        assert rows == [i for i in range(50) if i not in bad]


def test_row_46_ranks_sweeps_are_the_manifest_in_order(coded_folder):
    """Side by side, the ranks' batches are those of one process, in the order of the manifest."""
    folder = coded_folder(23, ragged=True, bad=(11,))
    whole = [batch.index.tolist() for batch in loader(folder, batch_size=6).iterate_all()]
    assert [i for rows in whole for i in rows] == [i for i in range(23) if i != 11]
    for world in (2, 3):
        parts = [loader(folder, batch_size=6, rank=rank, world=world).iterate_all() for rank in range(world)]
        together = [[i for batch in batches for i in batch.index.tolist()] for batches in zip(*parts, strict=True)]
        assert together == whole


def test_a_mixed_sweep_shows_every_image_once_alike_for_any_number_of_ranks(coded_folder):
    """Batches of neighbors, one class of a folder of classes, would have their own statistics."""
    folder = coded_folder(60, bad=(11,))
    batches = list(loader(folder, batch_size=12).iterate_all(step=3, mixed=True))
    whole = [batch.index.tolist() for batch in batches]
    assert sorted(i for rows in whole for i in rows) == [i for i in range(60) if i != 11]
    assert all(max(rows) - min(rows) > 24 for rows in whole)  # neighbors would lie within 12
    assert all(spelt(batch.views[0]) == rows for batch, rows in zip(batches, whole, strict=True))
    parts = [loader(folder, batch_size=12, rank=rank, world=2).iterate_all(step=3, mixed=True) for rank in range(2)]
    assert [a.index.tolist() + b.index.tolist() for a, b in zip(*parts, strict=True)] == whole
    assert [b.index.tolist() for b in loader(folder, batch_size=12).iterate_all(step=4, mixed=True)] != whole


# bad images


def test_row_1_bad_images_are_listed_and_replaced_alike_in_every_layout(coded_folder, tmp_path):
    folder = coded_folder(40, bad=(3, 21))
    layouts = {
        "in_memory": {},
        "one thread": {"in_memory": False, "workers": 1},
        "four threads": {"in_memory": False, "workers": 4},
        "no thread": {"in_memory": False, "workers": 0},
    }
    seen = {}
    for name, options in layouts.items():
        images = loader(folder, batch_size=8, quarantine=tmp_path / f"{name}.jsonl", **options)
        seen[name] = [batch.index.tolist() for batch in images.batches(CROPS)]
        listed = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert sorted(line["path"] for line in listed) == ["003.png", "021.png"]
        assert {line["reason"] for line in listed} == {"truncated"}
    assert len({json.dumps(order) for order in seen.values()}) == 1
    assert 36 <= len({i for batch in seen["in_memory"] for i in batch}) <= 38


def test_row_1_known_bad_images_are_not_read_again(coded_folder, tmp_path, monkeypatch):
    folder = coded_folder(30, ragged=True, bad=(5,))
    first = loader(folder, quarantine=tmp_path / "q.jsonl")
    list(first.iterate_all())
    again = loader(folder, quarantine=tmp_path / "q.jsonl")
    read, real = [], again.source.read
    monkeypatch.setattr(again.source, "read", lambda i: read.append(i) or real(i))
    assert [i for batch in again.iterate_all() for i in batch.index.tolist()] == [i for i in range(30) if i != 5]
    assert 5 not in read
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1


def test_row_1_too_many_bad_images_end_the_run_with_their_names(coded_folder):
    folder = coded_folder(40, ragged=True, bad=(3, 4, 5))
    with pytest.raises(
        TooManyBadImages, match=r"(?s)3 of 40 images are bad .*00\d\.png \(truncated\).*--max-bad 0\.075 accepts"
    ):
        list(loader(folder, max_bad=0.01).iterate_all())


def test_row_1_one_bad_image_of_a_tiny_folder_is_allowed(coded_folder, tmp_path):
    images = loader(coded_folder(20, bad=(7,)), max_bad=0.01, quarantine=tmp_path / "q.jsonl")
    assert sum(len(batch.index) for batch in images.iterate_all()) == 19
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1


def test_row_10_an_image_that_vanishes_during_the_run_is_quarantined(coded_folder, tmp_path):
    folder = coded_folder(20, ragged=True)
    images = loader(folder, quarantine=tmp_path / "q.jsonl", max_bad=0.1)
    (folder / "009.png").unlink()
    shown = [i for batch in images.batches(CROPS) for i in batch.index.tolist()]
    assert 9 not in shown
    assert len(shown) == 20
    assert json.loads((tmp_path / "q.jsonl").read_text())["reason"] == "vanished"


# the same whatever the layout


@pytest.fixture
def photographs(tmp_path, encode):
    """30 JPEGs of different sizes, large enough for scaled decoding."""
    rng = np.random.default_rng(0)
    for i in range(30):
        coarse = rng.integers(0, 255, (6, 7, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        (tmp_path / f"{i:02d}.jpg").write_bytes(encode(coarse[: 100 + i, : 120 + i % 5], "JPEG"))
    return tmp_path


def test_views_are_bit_identical_for_any_number_of_threads(photographs):
    plan = plan_from_crops(Crops(local_crops=2, global_size=24, local_size=12))
    runs = [collect(loader(photographs, 10, workers=w).batches(plan, epoch=1, global_step=3)) for w in (0, 1, 4)]
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])
    sweeps = [collect(loader(photographs, 10, workers=w).iterate_all("train", plan=plan)) for w in (1, 4)]
    assert equal(*sweeps)


def test_an_epoch_can_be_entered_in_the_middle(photographs):
    whole = collect(loader(photographs, 5).batches(CROPS, epoch=1, global_step=6))
    rest = collect(loader(photographs, 5).batches(CROPS, epoch=1, first_step_in_epoch=4, global_step=10))
    assert equal(whole[4:], rest)


def test_ranks_batches_in_rank_order_are_the_one_process_batch(photographs):
    whole = collect(loader(photographs, 8).batches(CROPS))
    for world in (2, 8):
        parts = [collect(loader(photographs, 8, rank=r, world=world).batches(CROPS)) for r in range(world)]
        joined = [
            (
                [torch.cat(views) for views in zip(*(part[step][0] for part in parts))],
                [i for part in parts for i in part[step][1]],
            )
            for step in range(len(whole))
        ]
        assert [index for _, index in joined] == [index for _, index in whole]
        for (a, _), (b, _) in zip(joined, whole):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_resident_and_threaded_views_differ_by_rounding_only(tmp_path, encode):
    rng = np.random.default_rng(0)
    for i in range(24):
        image = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
        (tmp_path / f"{i:02d}.png").write_bytes(encode(image))
    for plan in (CROPS, replace(CROPS, groups=(replace(CROPS.groups[0], interpolation="bicubic"),))):
        a = collect(loader(tmp_path, 8).batches(plan))
        b = collect(loader(tmp_path, 8, in_memory=False).batches(plan))
        for (x, i), (y, j) in zip(a, b, strict=True):
            assert i == j
            for v, w in zip(x, y, strict=True):
                assert (v - w).abs().max() <= 1.5 / 255
    a, b = collect(loader(tmp_path, 8).iterate_all()), collect(loader(tmp_path, 8, in_memory=False).iterate_all())
    for (x, i), (y, j) in zip(a, b, strict=True):
        assert i == j
        assert (x[0] - y[0]).abs().max() <= 1.5 / 255


def test_large_resident_images_are_cut_by_threads_on_a_cpu_with_the_same_result(tmp_path, encode):
    rng = np.random.default_rng(0)
    for i in range(12):
        image = encode(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8))
        (tmp_path / f"{i:02d}.png").write_bytes(image[:-30] if i == 5 else image)
    kept, read = loader(tmp_path, 4), loader(tmp_path, 4, in_memory=False)
    assert kept.in_memory
    assert not read.in_memory
    assert equal(collect(kept.batches(CROPS)), collect(read.batches(CROPS)))
    assert equal(collect(kept.iterate_all()), collect(read.iterate_all()))


def test_scaled_decoding_shows_the_same_part_of_the_image(tmp_path, encode, monkeypatch):
    y, x = np.mgrid[:256, :320] / 40
    for i in range(10):
        wave = np.stack([np.sin(x + i), np.cos(y - i), np.sin(x * y / 4)], axis=2)
        (tmp_path / f"{i}.jpg").write_bytes(encode((wave * 120 + 128).astype(np.uint8)[i:, 2 * i :], "JPEG"))
    plan = ViewPlan(groups=(ViewGroup(count=2, size=32, scale=(0.3, 1.0)),))
    quick = collect(loader(tmp_path, 10).batches(plan))
    from selfcluster.data.pixels import PillowImage

    whole = PillowImage.pixels
    monkeypatch.setattr(PillowImage, "pixels", lambda self, channels=3, shrink_to=None: whole(self, channels))
    full = collect(loader(tmp_path, 10).batches(plan))
    differences = [(v - w).abs() for (x, _), (y, _) in zip(quick, full) for v, w in zip(x, y)]
    assert max(float(d.max()) for d in differences) > 0  # it did decode smaller
    assert sum(float(d.mean()) for d in differences) / len(differences) < 0.02


def test_a_sweeps_views_belong_to_sweeps_alone_and_to_their_step(photographs):
    images = loader(photographs, 10)
    first, again, other = (collect(images.iterate_all("train", plan=CROPS, step=s)) for s in (4, 4, 5))
    assert equal(first, again)
    assert not equal(first, other)
    epoch = {i: v for views, index in collect(images.batches(CROPS, global_step=4)) for v, i in zip(views[0], index)}
    assert not any(
        torch.equal(view, epoch[i]) for views, index in first[:1] for view, i in zip(views[0], index) if i in epoch
    )


# plans and edges


def test_a_plan_of_the_epoch_is_followed(coded_folder):
    folder = coded_folder(40)
    labels = torch.tensor([-1] * 10 + [0] * 10 + [1] * 20)
    shown = [i for b in loader(folder).batches(CROPS, EpochPlan(balance=labels), steps_per_epoch=10) for i in b.index]
    assert torch.bincount(labels[torch.stack(shown)]).tolist() == [20, 20]


def test_normalization_and_channels(coded_folder):
    folder = coded_folder(8)
    plain = next(iter(loader(folder, 8).iterate_all())).views[0]
    scaled = next(iter(loader(folder, 8, mean=(0.5,) * 3, std=(0.25,) * 3).iterate_all())).views[0]
    torch.testing.assert_close(scaled, (plain - 0.5) / 0.25)
    gray = next(iter(loader(folder, 8, channels=1, mean=(0.0,), std=(1.0,)).iterate_all())).views[0]
    luma = (plain * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    assert (gray - luma).abs().max() <= 1 / 255


def test_a_pretext_is_passed_on(coded_folder):
    folder = coded_folder(8)
    images = loader(folder, 8)
    plan = ViewPlan(groups=(ViewGroup(count=2, size=16),), pretext="rotation")
    batch = next(iter(images.batches(plan)))
    assert batch.views[0].shape == (8, 3, 16, 16)
    assert torch.equal(batch.pretext_labels["rotation"], plan.pretext_labels(0, 0, batch.index)["rotation"])
    center = next(iter(images.iterate_all("center", plan=plan)))
    assert center.views[0].shape == (8, 3, 16, 16)
    assert center.pretext_labels == {}


def test_row_13_fewer_images_than_a_batch_name_both_numbers_but_can_be_embedded(coded_folder):
    images = loader(coded_folder(5), batch_size=256)
    with pytest.raises(DataError, match="5 images are fewer than one batch of 256"):
        list(images.batches(CROPS))
    assert [i for batch in images.iterate_all() for i in batch.index.tolist()] == [0, 1, 2, 3, 4]


def test_wrong_arguments_are_named(coded_folder):
    folder = coded_folder(4)
    with pytest.raises(ValueError, match="--batch-size 5: must be a positive multiple of the number of processes, 2"):
        loader(folder, 5, world=2)
    images = loader(folder)
    with pytest.raises(ValueError, match="view='side'"):
        list(images.iterate_all("side"))
    with pytest.raises(ValueError, match="needs a plan"):
        list(images.iterate_all("train"))


def test_abandoning_a_batch_leaves_the_loader_usable(photographs):
    images = loader(photographs, 5)
    for _ in range(3):
        batches = images.batches(CROPS)
        next(batches)
        batches.close()
    images.close()
    assert equal(collect(images.batches(CROPS)), collect(loader(photographs, 5).batches(CROPS)))


def test_threads_leave_no_open_files(photographs):
    images = loader(photographs, 10)
    list(images.iterate_all())
    before = len(os.listdir("/proc/self/fd"))
    for epoch in range(5):
        list(images.batches(CROPS, epoch=epoch))
    assert len(os.listdir("/proc/self/fd")) == before


# two processes


def _one_of_two(rank: int, folder: str, where: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=2)
    images = loader(folder, 6, rank=rank, world=2, quarantine=f"{where}/quarantine.jsonl")
    seen = [batch.index.tolist() for batch in images.batches(CROPS)]
    swept = [i for batch in images.iterate_all() for i in batch.index.tolist()]
    gathered = distributed.gather_objects((images.in_memory, seen, swept, images.quarantine.bad.nonzero()[0].tolist()))
    if rank == 0:
        with open(f"{where}/seen.json", "w") as file:
            json.dump(gathered, file)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_one_list_of_bad_images_and_see_one_process_batches(coded_folder, tmp_path):
    folder = coded_folder(24, ragged=True, bad=(2, 19, 20))
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (in_memory, first, early, bad), (_, second, late, bad_too) = json.loads((tmp_path / "seen.json").read_text())
    whole = [batch.index.tolist() for batch in loader(folder, 6).batches(CROPS)]
    assert not in_memory
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert sorted(early + late) == [i for i in range(24) if i not in (2, 19, 20)]
    assert bad == bad_too == [2, 19, 20]
    listed = [json.loads(line)["path"] for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["002.png", "019.png", "020.png"]


if __name__ == "__main__":
    _one_of_two(int(sys.argv[1]), sys.argv[2], sys.argv[3])
