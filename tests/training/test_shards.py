"""Sub-classifiers on the ranks of their group alone: eight tiny processes, and the run of one."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.runs.checkpoint import load_newest
from selfcluster.training.load import trained_method
from selfcluster.training.parallel import join_ranks
from selfcluster.training.shards import Shards
from selfcluster.types import DatasetInfo
from tests.conftest import TINY, TINY_SETTINGS, Ranks
from tests.methods.test_contract import progress
from tests.methods.test_deepercluster import N, at_epoch, batch_of, embed_of, method_with_clusters, plan_rows

pytestmark = pytest.mark.slow
BATCH = 32


class EightRanks(Ranks):
    world = 8
    start = "forkserver"  # eight imports of torch would take a minute
    timeout = 400


@pytest.fixture(scope="module")
def eight():
    multiprocessing.set_forkserver_preload(["tests.training.test_shards", "selfcluster.api", "timm", "sklearn.cluster"])
    pool = EightRanks()
    yield pool
    pool.close()


def shard_of(count: int) -> tuple[int, int]:
    return distributed.rank() * count // distributed.world_size(), count


def one_step(shards: int) -> dict:
    """Loss, norm and gradients of this rank's part of a batch, as the loop makes them."""
    method = method_with_clusters(shard=shard_of(shards), batch_norm=True).train()
    model, held = join_ranks(method, torch.device("cpu")), Shards(method)
    rows = plan_rows(BATCH)[distributed.share(BATCH)]
    loss = model(batch_of(rows), progress()).loss
    loss.backward()
    held.reduce()
    norm = held.norm([p.grad for p in method.parameters()])
    method.on_backward(progress())
    gradients = {name: p.grad.numpy() for name, p in method.named_parameters()}
    return {"loss": loss.item(), "norm": norm.item(), "gradients": gradients}


@pytest.mark.parametrize("shards", [8, 4, 1])  # a group of one rank each, groups of two with two classifiers, none
def test_loss_and_gradients_are_those_of_one_process(eight, shards):
    whole = one_step(1)
    parts = eight.run(one_step, shards)
    assert np.mean([part["loss"] for part in parts]) == pytest.approx(whole["loss"], abs=1e-5)
    seen = set()
    for rank, part in enumerate(parts):
        assert part["norm"] == pytest.approx(whole["norm"], rel=1e-5)
        subs = [name for name in part["gradients"] if ".sub." in name]
        assert {int(name.split(".")[2]) * shards // 8 for name in subs} == ({rank * shards // 8} if shards > 1 else {0})
        seen |= part["gradients"].keys()
        for name, gradient in part["gradients"].items():
            np.testing.assert_allclose(gradient, whole["gradients"][name], rtol=0, atol=1e-5, err_msg=name)
    assert seen == whole["gradients"].keys()
    assert all(np.abs(whole["gradients"][name]).max() > 1e-3 for name in seen if ".sub." in name)


def reassigned(shards: int) -> dict:
    """What a reassignment makes where this rank embeds every eighth image and never sees another."""
    method = method_with_clusters(shard=shard_of(shards)).eval()
    log = method.reassign(at_epoch(0), embed_of(method, torch.arange(distributed.rank(), N, distributed.world_size())))
    return {"log": log, "state": {name: tensor.numpy() for name, tensor in method.state_dict().items()}}


def test_clusters_of_features_that_never_meet_are_those_of_one_process(eight):
    whole = reassigned(1)
    for part in eight.run(reassigned, 8):
        assert part["log"] == pytest.approx(whole["log"], rel=1e-5)
        for name in ("labels", "turns", "reassigned"):
            assert np.array_equal(part["state"][name], whole["state"][name])
        for name, tensor in part["state"].items():
            np.testing.assert_allclose(tensor, whole["state"][name], atol=1e-4, err_msg=name)


def train(out, pictures, shards: int, **settings) -> None:
    """`api.train` of DeeperCluster with this rank's shard of the classifiers."""
    from selfcluster import api
    from selfcluster.training import build

    plain, build.DatasetInfo = (
        build.DatasetInfo,
        lambda *a, **kw: DatasetInfo(*a, **{**kw, "shard": shard_of(shards)}),
    )
    try:
        chosen = TINY | TINY_SETTINGS["deepercluster"] | {"learning_rate": 1e-3, "checkpoint_every": 1} | settings
        api.train("deepercluster", pictures, out=out, **chosen)
    finally:
        build.DatasetInfo = plain


def losses(run) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_saves_a_file_a_shard_and_goes_on_with_other_processes(eight, tmp_path, pictures):
    train(tmp_path / "one", pictures, 1)
    eight.run(train, tmp_path / "eight", pictures, 8)
    assert losses(tmp_path / "eight") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    whole = load_newest(tmp_path / "one/checkpoints")[0].tensors
    common = load_newest(tmp_path / "eight/checkpoints")[0].tensors
    parts = [load_newest(tmp_path / f"eight/checkpoints/shard-{i:03d}")[0].tensors for i in range(8)]
    assert sum(map(len, parts)) + len(common) == len(whole)
    for number, part in enumerate(parts):
        assert {int(name.split(".")[3]) for name in part} == {number}
        assert any(name.startswith("optimizer.") for name in part)
    assert not any(".sub." in name for name in common)
    for name, tensor in whole.items():
        if name.startswith("method.heads."):
            merged = next(t[name] for t in (common, *parts) if name in t)
            torch.testing.assert_close(merged, tensor, rtol=0, atol=1e-3)
    reopened = trained_method(tmp_path / "eight")[0].state_dict()  # by one process, which holds all shards
    assert torch.equal(reopened["heads.sub.3.weight"], parts[3]["method.heads.sub.3.weight"])


def stopped_after(out, pictures, shards: int, steps: int) -> None:
    from selfcluster.methods.deepercluster import DeeperCluster

    on_step_end = DeeperCluster.on_step_end

    def stop(self, at, outputs):
        if at.step == steps:
            raise KeyboardInterrupt

    DeeperCluster.on_step_end = stop
    try:
        train(out, pictures, shards)
    except KeyboardInterrupt:
        pass
    finally:
        DeeperCluster.on_step_end = on_step_end


@pytest.mark.parametrize(("before", "after"), [(8, 1), (8, 4), (8, 8)])
def test_a_run_of_eight_processes_resumes_with_any_shards(eight, tmp_path, pictures, before, after):
    train(tmp_path / "whole", pictures, 1)
    eight.run(stopped_after, tmp_path / "cut", pictures, before, 4)
    if after == 1:
        train(tmp_path / "cut", pictures, 1)
    else:
        eight.run(train, tmp_path / "cut", pictures, after)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)


def test_one_broken_shard_sends_all_processes_to_the_checkpoint_before(eight, tmp_path, pictures):
    train(tmp_path / "whole", pictures, 1)
    eight.run(stopped_after, tmp_path / "cut", pictures, 8, 4)
    folder = tmp_path / "cut/checkpoints"
    newest = load_newest(folder)[0].path
    broken = folder / "shard-005" / newest.name / "tensors.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    found, complaints = load_newest(folder)
    assert found.path.name < newest.name
    size = broken.stat().st_size
    changed = f"has {size} bytes, and the manifest names {size + 1}"
    assert complaints == [f"{broken.parent}: {broken.name} {changed}"]
    eight.run(train, tmp_path / "cut", pictures, 4)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
    assert load_newest(folder)[1] == []


def test_shards_need_processes_to_share_them():
    with pytest.raises(ValueError, match="1 processes cannot share 8 shards equally"):
        Shards(method_with_clusters(shard=(0, 8)))
