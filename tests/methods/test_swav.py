"""SwAV against its equations in float64, and what is particular to it: queue, freezing, unit prototypes."""

import math

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.clustering.sinkhorn import sinkhorn
from selfcluster.methods.swav import SwAV, SwAVSettings
from selfcluster.models.norm import convert_sync
from selfcluster.setting import options_of
from selfcluster.types import Batch, Output
from tests.methods.test_contract import assert_same_run, batch_of, make, progress


def plain_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm box of the paper: exponentiate, then normalize prototypes and samples in turn. (B, K) to (B, K)."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


def equation_6(z: list[np.ndarray], c: np.ndarray, queues: list[np.ndarray], s, teacher=None) -> float:
    """Mean over swapped pairs of the cross-entropy of one view's code and the other's prediction (eq. 2, 3, 6).

    `teacher`: the rows and the prototypes that codes are computed from, where these are not z and c.
    """
    y, d = teacher or (z, c)
    codes = []
    for t in range(len(z) if s.codes_from == "all" else 2):
        rows = np.concatenate([queues[t % 2], y[t]]) if len(queues) else y[t]
        code = plain_sinkhorn(rows @ d.T, s.epsilon, s.sinkhorn_iterations)[-len(y[t]) :]
        codes.append(np.eye(len(d))[code.argmax(axis=1)] if s.rounded_codes else code)
    terms = []
    for t in range(len(codes)):
        for v in range(len(z)):
            if v != t:
                logits = z[v] @ c.T / s.temperature
                logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                terms.append(-(codes[t] * logp).sum(axis=1).mean())
    return float(np.mean(terms))


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"rounded_codes": True},
        {"codes_from": "all"},
        {"momentum_encoder": 0.9},
        {"rounded_codes": True, "codes_from": "all", "momentum_encoder": 0.9},
    ],
)
def test_loss_is_equation_6(queued, switches):
    method = make("swav", queue_length=32 if queued else 0, **switches).eval()
    if queued:
        for queue in method.queues:
            queue.push(torch.nn.functional.normalize(torch.randn(32, 16), dim=1))
    with torch.no_grad():
        for parameter in method.teachers.parameters():  # another network than the student
            parameter.add_(0.1 * torch.randn(parameter.shape))
        batch = with_small_views(batch_of("swav", views=2))
        z = [method.project(method.encode(v)).double().numpy() for v in batch.views]
        teacher = None
        if method.teachers:
            backbone, head, prototypes = method.teachers
            rows = [torch.nn.functional.normalize(head(backbone(v)), dim=1).double().numpy() for v in batch.views]
            teacher = rows, prototypes.network.weight.double().numpy()
        loss = method(batch, progress()).loss.item()
    c = method.prototypes.weight.detach().double().numpy()
    queues = [q.rows.double().numpy() for q in method.queues]
    assert loss == pytest.approx(equation_6(z, c, queues, method.settings, teacher), abs=1e-5)


def with_small_views(batch: Batch) -> Batch:
    return Batch([*batch.views, *(v[:, :, 4:12, 4:12] for v in batch.views)], batch.index)


def test_each_switch_changes_the_loss():
    """The reference above could be blind to a switch: three settings, three losses."""
    losses = set()
    for switches in ({}, {"rounded_codes": True}, {"codes_from": "all"}):
        method = make("swav", **switches).eval()
        losses.add(round(method(with_small_views(batch_of("swav", views=2)), progress()).loss.item(), 4))
    assert len(losses) == 3


def test_the_momentum_encoder_follows_and_alone_gives_the_codes():
    method = make("swav", momentum_encoder=0.75)
    start = method.backbone.layer1[0].weight.detach().clone()
    output = method(batch_of("swav"), progress())
    output.loss.backward()
    assert all(p.grad is None for p in method.teachers.parameters())
    assert all(p.grad is not None for p in method.backbone.parameters())
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    method.on_step_end(progress(), [output])
    backbone, _, prototypes = method.teachers
    assert torch.allclose(backbone.network.layer1[0].weight, start + 0.25, atol=1e-6)
    assert torch.allclose(prototypes.network.weight.norm(dim=1), torch.ones(8), atol=1e-6)
    output = method(batch_of("swav"), progress())
    assert not torch.allclose(output.state[0], output.features)
    method.on_step_end(progress(), [output])
    assert torch.equal(method.queues[0].rows[:8], output.state[0])  # the teacher's rows, not the student's


def test_at_momentum_one_the_encoder_stays_to_the_bit():
    method = make("swav", momentum_encoder=1.0)
    before = [p.clone() for p in method.teachers.parameters()]
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    for step in range(20):
        method.on_step_end(progress(step), [])
    assert all(torch.equal(a, b) for a, b in zip(before, method.teachers.parameters(), strict=True))


def test_a_momentum_encoder_that_copies_is_no_momentum_encoder():
    """At 0 it is the network of the last step's end: the same codes, the same loss, as without one."""
    plain, copied = make("swav"), make("swav", momentum_encoder=0.0)
    for step in range(2):
        losses = []
        for method in (plain, copied):
            method.eval().zero_grad()  # batch norm's statistics are each network's own
            output = method(batch_of("swav", start=8 * step), progress(step))
            output.loss.backward()
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.1 * parameter.grad)
            method.on_step_end(progress(step), [output])
            losses.append(output.loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("switches", [{"codes_from": "local"}, {"momentum_encoder": 1.5}])
def test_switches_that_make_no_sense_are_refused(switches):
    with pytest.raises(ValueError, match=r"local|1\.5"):
        make("swav", **switches)


@pytest.mark.slow
def test_two_processes_are_one_with_every_switch(ranks):
    whole, parts = switched_step(8, 0), ranks.run(rank_switched_step)
    for key, expected in whole.items():
        own = (
            [part[key] for part in parts] if key.startswith("teachers") else [np.mean([p[key] for p in parts], axis=0)]
        )
        for value in own:
            np.testing.assert_allclose(value, expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=key)


def switched_step(size: int, start: int) -> dict[str, np.ndarray]:
    """Loss and gradients of the first step, and the momentum encoder after it."""
    method = make("swav", rounded_codes=True, codes_from="all", momentum_encoder=0.5).train()
    convert_sync(method)
    output = method(with_small_views(batch_of("swav", size, start, views=2)), progress())
    output.loss.backward()
    method.on_step_end(progress(), [output])
    trained = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach().numpy(), **trained} | {
        n: p.numpy() for n, p in method.named_parameters() if n.startswith("teachers")
    }


def rank_switched_step() -> dict[str, np.ndarray]:
    return switched_step(4, 4 * distributed.rank())


def test_a_run_with_every_switch_resumes_exactly(tiny, tmp_path, monkeypatch):
    settings = {"rounded_codes": True, "codes_from": "all", "momentum_encoder": 0.9, "checkpoint_every": 1}
    small = {"local_crops": 1, "local_size": 8}
    tiny("swav", tmp_path / "whole", **settings, **small)
    end = SwAV.on_step_end

    def interrupted(self, at, outputs):
        if at.step == 4:
            raise KeyboardInterrupt
        end(self, at, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(SwAV, "on_step_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny("swav", tmp_path / "cut", **settings, **small)
    tiny("swav", tmp_path / "cut", **settings, **small)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_chance_level():
    """Prototypes that are all alike predict 1/K for every cluster: the loss is ln K."""
    method = make("swav")
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight[:1].expand(8, -1))
    assert method(batch_of("swav"), progress()).loss.item() == pytest.approx(math.log(8), abs=1e-5)
    assert method.chance_loss() == pytest.approx(math.log(8))


def test_codes_carry_no_gradient():
    method = make("swav").eval()
    z = torch.randn(8, 16, requires_grad=True)
    assert not method.code(0, z).requires_grad


def test_prototypes_are_frozen_for_the_first_epochs_only():
    method = make("swav", freeze_epochs=1.0)
    method(batch_of("swav"), progress(0)).loss.backward()
    method.on_backward(progress(2))  # epoch 2/3
    assert method.prototypes.weight.grad is None
    method(batch_of("swav"), progress(0)).loss.backward()
    method.on_backward(progress(3))  # epoch 1
    assert method.prototypes.weight.grad is not None


def test_prototypes_are_unit_rows_after_a_step():
    method = make("swav")
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    method.on_step_end(progress(0), [])
    assert torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(8), atol=1e-6)


def test_queue_fills_from_its_epoch_on_and_is_used_once_full():
    method = make("swav", queue_length=16, queue_from_epoch=1.0)
    state = [torch.ones(8, 16), torch.zeros(8, 16)]
    output = Output(torch.zeros(()), state=state)
    method.on_step_end(progress(2), [output])
    assert len(method.queues[0].rows) == 0  # epoch 2/3: too early
    method.on_step_end(progress(3), [output])
    assert len(method.queues[0].rows) == 8
    assert not method.queues[0].full
    method.on_step_end(progress(4), [output])
    assert method.queues[0].full
    assert method.queues[0].rows.eq(1).all()
    assert method.queues[1].rows.eq(0).all()  # a queue a view


def test_views_of_one_resolution_share_a_pass():
    method = make("swav").eval()
    passes = []
    method.backbone.register_forward_pre_hook(lambda module, args: passes.append(tuple(args[0].shape)))
    views = batch_of("swav", views=2).views + [torch.rand(8, 3, 8, 8) for _ in range(3)]
    features = method.encode_views(views)
    assert passes == [(16, 3, 16, 16), (24, 3, 8, 8)]
    apart = torch.cat([method.encode(v) for v in views])
    assert torch.allclose(features, apart, atol=1e-5)


def test_assign_is_the_nearest_prototype():
    method = make("swav").eval()
    features = method.encode(batch_of("swav").views[0])
    assignment = method.assign(features)
    z = method.project(features)
    distance = ((z[:, None] - method.prototypes.weight) ** 2).sum(dim=2)  # (B, K), of unit vectors: 2 - 2 cos
    assert torch.equal(assignment.cluster, distance.argmin(dim=1))
    assert torch.allclose(assignment.distance, distance.min(dim=1).values / 2, atol=1e-5)


def test_a_single_image_has_a_finite_loss():
    method = make("swav").eval()
    batch = batch_of("swav", 1)
    assert torch.isfinite(method(Batch(batch.views, batch.index), progress()).loss)


def test_the_loss_alone_is_equation_6_in_float64():
    from selfcluster.methods.swav import swav_loss

    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(5, 4, generator=generator) for _ in range(3)]
    codes = [torch.softmax(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2)]
    p = [np.exp(s.double().numpy() / 0.1) for s in scores]
    p = [e / e.sum(axis=1, keepdims=True) for e in p]
    terms = [-(codes[t].double().numpy() * np.log(p[s])).sum(axis=1).mean() for t in (0, 1) for s in range(3) if s != t]
    assert swav_loss(scores, codes, 0.1).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_one_round_of_the_codes_scales_clusters_and_then_images():
    """`--sinkhorn-iterations` counts whole rounds: one round is the one-step form, not half of it."""
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double() / 4
    q = (scores / 0.05).exp()
    q = q / q.sum(dim=0)  # clusters
    q = q / q.sum(dim=1, keepdim=True)  # images
    torch.testing.assert_close(sinkhorn(scores, 0.05, 1), q)
    assert "rounds" in options_of(SwAVSettings)["sinkhorn_iterations"].help
