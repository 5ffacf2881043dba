"""MoCo-v2 against its equation in float64, and what is particular to it: keys, queue, groups of batch norm."""

import math

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.methods.moco_v2 import MoCoV2, MoCoV2Settings, info_nce
from selfcluster.models.backbones import make_backbone
from selfcluster.models.norm import convert_sync
from selfcluster.types import Batch, DatasetInfo, Output
from tests.methods.test_contract import batch_of, make, progress


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random unit rows."""
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


def equation_1(q: np.ndarray, k: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Mean of -log of the key's share of the softmax over the key and the queue: logits with the key in place 0."""
    logits = np.concatenate([(q * k).sum(axis=1, keepdims=True), q @ queue.T], axis=1) / temperature
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]))


def small_views(count: int = 2) -> list[torch.Tensor]:
    return [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("local_crops", [0, 2])
def test_loss_is_equation_1(symmetric, local_crops):
    """One way: the second view gives the key and all others ask for it. Both ways: each full view gives one."""
    method = make("moco_v2", symmetric=symmetric).eval()
    with torch.no_grad():
        for parameter in method.key_backbone.parameters():
            parameter.mul_(0.9)  # not the query network any more
        batch = batch_of("moco_v2")
        views = [*batch.views, *small_views(local_crops)]
        q = [method.query([view]).double().numpy() for view in views]
        k = [method.key([view]).double().numpy() for view in views[:2]]
        loss = method(Batch(views, batch.index), progress()).loss.item()
    queue = method.queue.rows.double().numpy()
    pairs = [(v, g) for g in ((0, 1) if symmetric else (1,)) for v in range(len(views)) if v != g]
    assert loss == pytest.approx(np.mean([equation_1(q[v], k[g], queue, 0.2) for v, g in pairs]), abs=1e-5)


def test_a_predictor_stands_behind_the_query_alone():
    method = make("moco_v2", predictor=True).eval()
    batch = batch_of("moco_v2")
    with torch.no_grad():
        z = [method.head(method.backbone(view)) for view in batch.views]
        q = torch.nn.functional.normalize(method.predictor(z[0]), dim=1).double().numpy()
        k = torch.nn.functional.normalize(z[1], dim=1).double().numpy()  # the key network is still a copy
        loss = method(batch, progress()).loss.item()
    assert loss == pytest.approx(equation_1(q, k, method.queue.rows.double().numpy(), 0.2), abs=1e-5)


@pytest.mark.parametrize(("batch_norm", "count"), [(False, 0), (True, 3)])
def test_batch_norm_in_the_heads_is_a_switch_and_is_split_too(batch_norm, count):
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    settings = MoCoV2Settings(dim=8, hidden=16, queue_length=32, bn_splits=4, batch_norm=batch_norm, predictor=True)
    method = MoCoV2(vit, settings, DatasetInfo(48, 16, 3))
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in method.modules()) == count
    assert method.splits == (4 if batch_norm else 1)


def test_two_images_by_hand():
    """Queries equal their keys and are orthogonal to all 3 queued: each term is log(e^(1/t) + 3) - 1/t."""
    q = torch.eye(5, dtype=torch.float64)[:2][None]
    queue = torch.eye(5, dtype=torch.float64)[2:]
    expected = math.log(math.exp(2) + 3) - 2
    assert info_nce(q, q, queue, [(0, 0)], 0.5).item() == pytest.approx(expected, abs=1e-12)


def test_features_that_are_all_alike_have_the_chance_loss():
    q = torch.ones(1, 4, 9) / 3
    loss = info_nce(q, q, q[0, :1].expand(32, -1), [(0, 0)], 0.2)
    assert loss.item() == pytest.approx(math.log(33), abs=1e-5)
    assert make("moco_v2").chance_loss() == pytest.approx(math.log(33))


def test_keys_carry_no_gradient():
    method = make("moco_v2", symmetric=True)
    output = method(batch_of("moco_v2"), progress())
    output.loss.backward()
    assert not output.state.requires_grad
    assert all(p.grad is None for p in [*method.key_backbone.parameters(), *method.key_head.parameters()])
    assert all(p.grad is not None for p in [*method.backbone.parameters(), *method.head.parameters()])


def test_the_key_network_starts_as_a_copy_and_follows_after_the_step():
    method = make("moco_v2", teacher_momentum=0.75)
    pairs = [
        *zip(method.key_backbone.network.parameters(), method.backbone.parameters(), strict=True),
        *zip(method.key_head.network.parameters(), method.head.parameters(), strict=True),
    ]
    assert all(torch.equal(k, q) for k, q in pairs)
    with torch.no_grad():
        for _, q in pairs:
            q.add_(1)
    before = [k.clone() for k, _ in pairs]
    method.on_step_end(progress(), [])
    for (k, q), was in zip(pairs, before, strict=True):
        assert torch.allclose(k, 0.75 * was + 0.25 * q, atol=1e-6)


def test_momentum_1_leaves_the_key_network_untouched():
    method = make("moco_v2", teacher_momentum=1.0)
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1)
    before = {name: p.clone() for name, p in method.key_backbone.named_parameters()}
    method.on_step_end(progress(), [])
    assert all(torch.equal(p, before[name]) for name, p in method.key_backbone.named_parameters())


def test_the_queue_starts_as_directions_and_takes_keys_newest_first():
    method = make("moco_v2", queue_length=6)
    start = method.queue.rows.clone()
    assert method.queue.full
    assert torch.allclose(start.norm(dim=1), torch.ones(6), atol=1e-6)
    first, second = rows(1, 2, 16, seed=1), rows(2, 2, 16, seed=2)
    method.on_step_end(progress(), [Output(torch.zeros(()), state=first)])
    assert torch.equal(method.queue.rows, torch.cat([first[0], start[:4]]))
    method.on_step_end(progress(), [Output(torch.zeros(()), state=second)])
    assert torch.equal(method.queue.rows, torch.cat([second[1], second[0], first[0]]))


def test_a_batch_is_not_among_its_own_negatives():
    method = make("moco_v2").eval()
    batch = batch_of("moco_v2")
    before = method.queue.rows.clone()
    output = method(batch, progress())
    assert torch.equal(method.queue.rows, before)
    method.on_step_end(progress(), [output])
    assert torch.equal(method.queue.rows[:8], output.state[0])
    assert method(batch, progress()).loss > output.loss  # now the same keys are negatives too


def test_groups_of_batch_norm_pass_apart():
    """Each group's features are those of the group alone, whatever else is in the batch."""
    method = make("moco_v2", bn_splits=2).train()
    view = batch_of("moco_v2").views[0]
    both = method.in_groups(method.query, [view])[0]
    apart = torch.cat([method.query([view[:4]]), method.query([view[4:]])])
    assert torch.allclose(both, apart, atol=1e-6)
    assert not torch.allclose(both, method.query([view]), atol=1e-3)


def test_keys_are_shuffled_between_groups_and_come_back_in_order():
    method = make("moco_v2", bn_splits=2)
    view = batch_of("moco_v2").views[1]
    order = torch.randperm(8, generator=progress().generator("shuffled batch norm"))
    assert sorted(order[:4].tolist()) != [0, 1, 2, 3]
    keys = method.train().keys([view], progress())[0]
    expected = torch.cat([method.key([view[order[:4]]]), method.key([view[order[4:]]])])[order.argsort()]
    assert torch.allclose(keys, expected, atol=1e-6)
    assert torch.allclose(method.eval().keys([view], progress())[0], method.key([view]), atol=1e-6)


def test_a_group_has_two_images_at_least():
    method = make("moco_v2", bn_splits=8)
    sizes = []
    method.backbone.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert torch.isfinite(method(batch_of("moco_v2"), progress()).loss)
    assert sizes == [2] * 4
    sizes.clear()
    method.eval()(batch_of("moco_v2", 1), progress())
    assert sizes == [1]


@pytest.mark.slow
def test_a_group_lies_across_ranks(ranks):
    """Of 8 images on two ranks the first group holds the first two of each rank, with their statistics together."""
    method = make("moco_v2").train()
    view = batch_of("moco_v2").views[0]
    first, second = method.query([view[[0, 1, 4, 5]]]), method.query([view[[2, 3, 6, 7]]])
    expected = torch.stack([first[0], first[1], second[0], second[1], first[2], first[3], second[2], second[3]])
    np.testing.assert_allclose(np.concatenate(ranks.run(rank_queries)), expected.detach().numpy(), atol=1e-5)


def rank_queries() -> np.ndarray:
    method = make("moco_v2", bn_splits=2).train()
    convert_sync(method)
    view = batch_of("moco_v2", 4, 4 * distributed.rank()).views[0]
    return method.in_groups(method.query, [view])[0].detach().numpy()


def test_the_loss_is_float32_under_autocast():
    q, k, queue = rows(1, 8, 16), rows(1, 8, 16, seed=1), rows(32, 16, seed=2)
    plain = info_nce(q, k, queue, [(0, 0)], 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(q, k, queue, [(0, 0)], 0.07), plain)


def test_a_transformer_and_small_views():
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    method = MoCoV2(vit, MoCoV2Settings(hidden=32, queue_length=32), DatasetInfo(48, 16, 3))
    assert method.splits == 1  # there is no batch norm
    output = method(Batch([*batch_of("moco_v2").views, *small_views()], torch.arange(8)), progress())
    output.loss.backward()
    method.on_step_end(progress(), [output])
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in method.backbone.parameters())
