"""SwAV against its equations in float64, and what is particular to it: queue, freezing, unit prototypes."""

import math

import numpy as np
import pytest
import torch

from selfcluster.types import Batch, Output
from tests.methods.test_contract import batch_of, make, progress


def plain_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm box of the paper: exponentiate, then normalise prototypes and samples in turn. (B, K) to (B, K)."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


def equation_6(z: list[np.ndarray], c: np.ndarray, queues: list[np.ndarray], s) -> float:
    """Mean over swapped pairs of the cross-entropy of one view's code and the other's prediction (eq. 2, 3, 6)."""
    codes = []
    for t in (0, 1):
        rows = np.concatenate([queues[t], z[t]]) if len(queues) else z[t]
        codes.append(plain_sinkhorn(rows @ c.T, s.epsilon, s.sinkhorn_iterations)[-len(z[t]) :])
    terms = []
    for t in (0, 1):
        for v in range(len(z)):
            if v != t:
                logits = z[v] @ c.T / s.temperature
                logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                terms.append(-(codes[t] * logp).sum(axis=1).mean())
    return float(np.mean(terms))


@pytest.mark.parametrize("queued", [False, True])
def test_loss_is_equation_6(queued):
    method = make("swav", queue_length=32 if queued else 0).eval()
    if queued:
        for queue in method.queues:
            queue.push(torch.nn.functional.normalize(torch.randn(32, 16), dim=1))
    batch = batch_of("swav")
    with torch.no_grad():
        z = [method.project(method.encode(v)).double().numpy() for v in batch.views]
        loss = method(batch, progress()).loss.item()
    c = method.prototypes.weight.detach().double().numpy()
    queues = [q.rows.double().numpy() for q in method.queues]
    assert loss == pytest.approx(equation_6(z, c, queues, method.settings), abs=1e-5)


def test_chance_level():
    """Prototypes that are all alike predict 1/K for every cluster: the loss is ln K."""
    method = make("swav")
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight[:1].expand(8, -1))
    assert method(batch_of("swav"), progress()).loss.item() == pytest.approx(math.log(8), abs=1e-5)
    assert method.chance_loss() == pytest.approx(math.log(8))


def test_codes_carry_no_gradient():
    method = make("swav").eval()
    scores = torch.randn(8, 8, requires_grad=True)
    assert not method.code(0, scores).requires_grad


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
