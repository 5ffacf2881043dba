"""What the loop promises beside exact resume: bad numbers never get in, accumulation is one batch, signals save."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfcluster import api
from selfcluster.data.quarantine import TooManyBadImages
from selfcluster.methods import METHODS
from selfcluster.runs.checkpoint import load, load_newest
from selfcluster.runs.folder import RunError, read_status
from selfcluster.runs.verify import verify_run
from selfcluster.training.loop import Collapsed, Diverged, Preempted
from selfcluster.training.micro_batches import split
from selfcluster.training.optim import clip
from selfcluster.types import Batch, Training
from tests.methods.test_contract import assert_same_run


def poisoned(kind, at: set[int], monkeypatch):
    """The method's loss is NaN at the steps `at`."""
    forward = kind.forward

    def bad(self, batch, progress):
        output = forward(self, batch, progress)
        if progress.step in at:
            output = type(output)(output.loss * math.nan, features=output.features, state=output.state)
        return output

    monkeypatch.setattr(kind, "forward", bad)


def test_row_44_a_step_that_is_not_finite_changes_nothing(tiny, tmp_path, monkeypatch):
    """A run whose last step is poisoned ends with the weights, statistics and queue of the step before."""
    poisoned(METHODS["swav"], {8}, monkeypatch)
    tiny("swav", tmp_path / "bad", checkpoint_every=1)
    checkpoints = sorted((tmp_path / "bad/checkpoints").iterdir())
    before, after = (load(path) for path in checkpoints)
    assert (before.meta["step"], after.meta["step"]) == (8, 9)
    assert (before.meta["skipped"], after.meta["skipped"]) == (0, 1)
    for name, tensor in before.tensors.items():
        if not name.startswith("health."):
            assert torch.equal(tensor, after.tensors[name]), name
            assert tensor.isfinite().all(), name


def test_row_44_too_many_in_a_row_stop_the_run_and_name_the_images(tiny, tmp_path, monkeypatch):
    poisoned(METHODS["swav"], set(range(3, 99)), monkeypatch)
    with pytest.raises(Diverged, match=r"10 steps in a row, up to step 12.*the last batch held \d\d"):
        tiny("swav", tmp_path / "run", epochs=6)
    assert read_status(tmp_path / "run")["state"] == "failed"
    loaded, _ = load_newest(tmp_path / "run/checkpoints")
    assert all(t.isfinite().all() for t in loaded.tensors.values())


def test_row_44_a_run_that_diverges_keeps_the_weights_and_the_images_that_repeat_it(
    tiny, tmp_path, pictures, monkeypatch
):
    kind, forward, seen = METHODS["swav"], METHODS["swav"].forward, {}

    def watched(self, batch, progress):
        weights = {name: tensor.clone() for name, tensor in self.named_parameters()}
        seen[progress.step] = weights, batch.index.tolist()
        return forward(self, batch, progress)

    monkeypatch.setattr(kind, "forward", watched)
    poisoned(kind, set(range(4, 99)), monkeypatch)
    with pytest.raises(Diverged) as told:
        tiny("swav", tmp_path / "run", epochs=6)
    (folder,) = (tmp_path / "run/diverged").iterdir()
    assert f"{folder} holds the weights and the images of these steps" in str(told.value)
    kept = load(folder)
    steps = kept.meta["skipped"]
    assert [each["step"] for each in steps] == list(range(4, 14))
    assert {each["loss"] for each in steps} == {"nan"}
    for each in steps:
        weights, index = seen[each["step"]]
        assert [int(name) for name in each["images"]] == index
        for name, tensor in weights.items():
            assert torch.equal(kept.tensors[f"method.{name}"], tensor), name
    assert f"diverged/{folder.name}" in [each.name for each in verify_run(tmp_path / "run") if each.state == "whole"]


def test_row_45_collapse_stops_the_run_if_asked(tiny, tmp_path, monkeypatch):
    from selfcluster.training.health import Health

    monkeypatch.setattr(Health, "verdict", lambda self, row: "collapse: told so")
    with pytest.raises(Collapsed, match="told so"):
        tiny("swav", tmp_path / "run", on_collapse="stop")
    tiny("swav", tmp_path / "other", on_collapse="warn")


def test_a_signal_saves_and_the_run_goes_on(tiny, tmp_path, monkeypatch):
    import os
    import signal

    tiny("swav", tmp_path / "whole")
    kind, seen = METHODS["swav"], []
    end = kind.on_step_end

    def signaled(self, progress, outputs):
        end(self, progress, outputs)
        seen.append(progress.step)
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_step_end", signaled)
        with pytest.raises(Preempted, match=r"SIGTERM after step \d of 9: saved"):
            tiny("swav", tmp_path / "cut")
    assert seen[-1] in (3, 4)  # at the next safe point
    assert read_status(tmp_path / "cut")["state"] == "preempted"
    tiny("swav", tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_epochs_shorter_than_a_device_saves_leave_no_checkpoint_but_the_last(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("selfcluster.training.loop._EPOCH_SECONDS", {"cpu": 1e9})
    tiny("simclr", tmp_path / "rare")
    tiny("simclr", tmp_path / "asked", checkpoint_every=1)
    monkeypatch.undo()
    tiny("simclr", tmp_path / "usual")
    counts = [len(list((tmp_path / run / "checkpoints").iterdir())) for run in ("rare", "asked", "usual")]
    assert counts == [1, 2, 2]  # of each run the two newest are kept


def test_metrics_beyond_the_checkpoint_are_cut_back(tiny, tmp_path):
    tiny("swav", tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    rows = path.read_text()
    path.write_text(rows + '{"step": 10}\n{"ste')
    (tmp_path / "run/status.json").write_text('{"state": "running"}')
    tiny("swav", tmp_path / "run")
    assert path.read_text() == rows


def test_a_finished_run_is_returned_and_not_trained_again(tiny, tmp_path):
    first = tiny("swav", tmp_path / "run")
    weights = (tmp_path / "run/backbone.safetensors").stat().st_mtime_ns
    assert tiny("swav", tmp_path / "run") == first
    assert (tmp_path / "run/backbone.safetensors").stat().st_mtime_ns == weights


def test_row_43_other_settings_are_refused_with_the_difference(tiny, tmp_path):
    tiny("swav", tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"--num-prototypes was 8 and is now 9"):
        tiny("swav", tmp_path / "run", epochs=1, num_prototypes=9)
    with pytest.raises(RunError, match="holds a run of swav, not deepcluster_v2"):
        tiny("deepcluster_v2", tmp_path / "run")
    tiny("swav", tmp_path / "run", epochs=1, workers=2)  # where and how fast it runs is free


def test_row_17_other_data_is_refused_with_the_difference(tiny, tmp_path, pictures):
    tiny("swav", tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match="there were 48 images, there are 40"):
        tiny("swav", tmp_path / "run", data=pictures[:40], epochs=1)


def test_row_35_a_second_process_is_refused(tiny, tmp_path):
    from selfcluster.runs.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run/x").write_text("")
    (tmp_path / "run/x").unlink()
    with pytest.raises(RunError, match=r"in use by process \d+ on"):
        tiny("swav", tmp_path / "run")
    folder.close()
    tiny("swav", tmp_path / "run", epochs=1)


def test_row_35_a_folder_removed_under_a_run_is_not_written_to_again(tmp_path):
    import shutil

    from selfcluster.runs.folder import RunFolder

    one = RunFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RuntimeError, match="removed or replaced"):
        _ = one.checkpoints
    two = RunFolder(tmp_path / "run")  # another run begins in its place
    with pytest.raises(RuntimeError, match="removed or replaced"):
        _ = one.checkpoints
    assert two.checkpoints == tmp_path / "run/checkpoints"
    one.close()
    two.close()


def test_row_24_an_unwritable_place_is_refused_before_anything_else(tiny, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="choose another --out"):
        tiny("swav", tmp_path / "file/run")


def test_images_seen_sets_the_length(tiny, tmp_path):
    assert tiny("swav", tmp_path / "run", images_seen=80)["steps"] == 5


def test_less_than_an_epoch(tiny, tmp_path):
    """Settings counted in epochs keep their meaning below one."""
    summary = tiny("swav", tmp_path / "run", epochs=0.7, warmup_epochs=0.34, freeze_epochs=0.34)
    assert summary["steps"] == 2
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1


def test_order_and_views_do_not_depend_on_workers_or_residence(tiny, tmp_path, pictures, monkeypatch):
    from selfcluster.data import loader

    tiny("swav", tmp_path / "in_memory", epochs=1)
    monkeypatch.setattr(loader, "load_in_memory", lambda *args: None)
    for workers in (1, 3):
        tiny("swav", tmp_path / str(workers), epochs=1, workers=workers)
    assert_same_run(tmp_path / "1", tmp_path / "3")
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("in_memory", "1")]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.02)  # crops agree to a gray level


def test_accumulation_is_refused_where_it_is_not_one_batch(tiny, tmp_path):
    with pytest.raises(ValueError, match="swav compares the images of a batch"):
        tiny("swav", tmp_path / "run", accumulate=2)
    assert tiny("deepcluster_v2", tmp_path / "run2", accumulate=2)["steps"] == 9


def test_split_is_the_batch():
    batch = Batch([torch.rand(6, 3, 4, 4), torch.rand(6, 3, 2, 2)], torch.arange(6), {"turn": torch.arange(6)})
    parts = split(batch, 3)
    for view in range(2):
        assert torch.equal(torch.cat([p.views[view] for p in parts]), batch.views[view])
    assert torch.equal(torch.cat([p.index for p in parts]), batch.index)
    assert torch.equal(torch.cat([p.pretext_labels["turn"] for p in parts]), batch.pretext_labels["turn"])


def test_clipping_by_hand():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    clip(gradients, torch.tensor(5.0), Training(clip=1.0))
    assert [g.item() for g in gradients] == pytest.approx([0.6, 0.8], abs=1e-5)
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.5])]
    clip(gradients, torch.tensor(0.0), Training(clip_each=1.0))
    assert gradients[0].tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    assert gradients[1].tolist() == [0.5]


def test_a_run_goes_on_when_the_file_it_was_started_from_is_gone(tiny, tmp_path, monkeypatch):
    kind, init = METHODS["deepcluster_v2"], tmp_path / "one"
    tiny("swav", init)
    finish_step = kind.on_step_end

    def stop(self, progress, outputs):
        finish_step(self, progress, outputs)
        if progress.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny("deepcluster_v2", tmp_path / "two", init=str(init), checkpoint_every=2)
    tiny("deepcluster_v2", tmp_path / "whole", init=str(init), checkpoint_every=2)
    shutil.rmtree(init)
    tiny("deepcluster_v2", tmp_path / "two", init=str(init), checkpoint_every=2)
    assert (tmp_path / "two/clusters.csv").read_bytes() == (tmp_path / "whole/clusters.csv").read_bytes()


def test_init_starts_from_other_weights(tiny, tmp_path):
    tiny("swav", tmp_path / "one", epochs=1)
    weights = tmp_path / "one/backbone.safetensors"
    tiny("deepcluster_v2", tmp_path / "two", images_seen=1, learning_rate=0.0, init=str(weights))
    a, b = ((tmp_path / name / "backbone.safetensors") for name in ("one", "two"))
    from safetensors.torch import load_file

    one, two = load_file(a), load_file(b)
    for name, tensor in one.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, two[name]), name


def test_embeddings_are_the_exported_networks(tiny, tmp_path, pictures):
    """timm alone rebuilds the network, and its features of the images are the run's, row by row."""
    import timm

    from selfcluster.runs.tables import read_embeddings

    tiny("swav", tmp_path / "run")
    spec = json.loads((tmp_path / "run/backbone.json").read_text())
    network = timm.create_model(**spec, checkpoint_path=str(tmp_path / "run/backbone.safetensors")).eval()
    mean, std = (np.array(spec["pretrained_cfg_overlay"][k], dtype=np.float32) for k in ("mean", "std"))
    images = torch.from_numpy(((pictures / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = network(images).numpy()
    table = read_embeddings(tmp_path / "run/embeddings.parquet")
    assert table.ids == [f"{i:02d}" for i in range(48)]
    np.testing.assert_allclose(table.vectors, features, atol=2e-4)
    again = api.embed(tmp_path / "run", pictures, precision="fp32")
    np.testing.assert_allclose(again["vectors"], table.vectors, atol=1e-5)


def test_micro_batches_are_whole_on_every_process(tiny, tmp_path, monkeypatch):
    four = SimpleNamespace(world_size=lambda: 4, rank=lambda: 0)
    monkeypatch.setattr("selfcluster.training.build.distributed", four)
    with pytest.raises(ValueError, match="--batch-size 12 must be a multiple of --accumulate 2 times 4 processes, 8"):
        tiny("deepcluster_v2", tmp_path / "run", accumulate=2, batch_size=12)


def test_row_25_a_disk_that_is_full_for_a_moment_loses_no_row(tmp_path, caplog):
    import resource

    from selfcluster.runs.folder import RunFolder, read_metrics

    folder = RunFolder(tmp_path / "run")
    folder.log({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "run/metrics.jsonl").stat().st_size + 4, hard))
    try:
        folder.log({"step": 2})
        folder.log({"step": 3})
        assert (folder.rows, folder.lost_rows) == (1, 2)
        folder.status("running")  # a warning, and no error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder.log({"step": 4})
    folder.close()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert (folder.rows, folder.lost_rows) == (4, 0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2  # one for each file
    assert re.search(
        r"metrics.jsonl cannot be written \(File too large, [\d,]+ bytes are free\); training goes on", said[0]
    )


def test_repaired_images_are_no_longer_bad_in_a_run_that_never_began(tiny, tmp_path, pictures):
    from PIL import Image

    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number:02}.png")
    whole = (tmp_path / "03.png").read_bytes()
    for number in (3, 4, 5):
        (tmp_path / f"{number:02}.png").write_bytes(whole[:100])
    with pytest.raises(TooManyBadImages, match="Repair or remove them"):
        tiny("swav", tmp_path / "run", data=tmp_path)
    for number in (3, 4, 5):
        (tmp_path / f"{number:02}.png").write_bytes(whole)
    assert tiny("swav", tmp_path / "run", data=tmp_path)["bad_images"] == 0
