"""DeepCluster-v2 against its equations in float64, and its own rules: memories, reassignment, missing labels."""

import math

import numpy as np
import pytest
import torch

from selfcluster.methods.base import labeled_cross_entropy
from selfcluster.types import Embeddings
from tests.methods.test_contract import batch_of, make, progress


def test_loss_is_the_mean_cross_entropy_over_heads_views_and_labeled_images():
    method = make("deepcluster_v2").eval()
    method.labels.copy_(torch.arange(48).expand(3, -1) % 9 - 1)  # -1 for every ninth image
    batch = batch_of("deepcluster_v2")
    with torch.no_grad():
        z = [method.project(method.encode(v)).double().numpy() for v in batch.views]
        loss = method(batch, progress()).loss.item()
    terms = []
    for head in range(3):
        c = method.heads[head].weight.double().numpy()
        for i in range(8):
            label = int(method.labels[head, i])
            if label < 0:
                continue
            for view in z:
                logits = view[i] @ c.T / method.settings.temperature
                terms.append(np.log(np.exp(logits).sum()) - logits[label])
    assert loss == pytest.approx(float(np.mean(terms)), abs=1e-5)


def test_a_batch_without_labels_gives_zero():
    logits = torch.randn(4, 5, requires_grad=True)
    loss = labeled_cross_entropy(logits, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.eq(0).all()


def test_labeled_cross_entropy_weighs_clusters():
    logits, target = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, -1, 2, 2, 0])
    weight = torch.tensor([0.5, 2.0, 1.0])
    p = torch.log_softmax(logits.double(), dim=1)
    rows = [i for i in range(6) if target[i] >= 0]
    by_hand = -sum(weight[target[i]] * p[i, target[i]] for i in rows) / sum(weight[target[i]] for i in rows)
    assert labeled_cross_entropy(logits, target, weight).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_labeled_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    loss = labeled_cross_entropy(logits, torch.tensor([0, 1, -1]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)


def plain_spherical_kmeans(x: np.ndarray, c: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        nearest = (x @ c.T).argmax(axis=1)
        for k in range(len(c)):
            if (nearest == k).any():
                c[k] = x[nearest == k].mean(axis=0)
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    return (x @ c.T).argmax(axis=1)


def written(method, epoch: int, rows: int = 48) -> None:
    torch.manual_seed(5)
    for memory in method.memories:
        z = torch.nn.functional.normalize(torch.randn(rows, 16), dim=1)
        memory.write(torch.arange(rows), z, epoch=epoch)


def test_renewal_clusters_what_the_last_epoch_wrote():
    method = make("deepcluster_v2")
    written(method, 1)
    written(method, 2, rows=40)  # images 40 to 47 were not shown in the last epoch
    log = method.reassign(progress(6), embed=None)  # epoch 2
    assert method.labels[:, :40].min() >= 0
    assert method.labels[:, 40:].eq(-1).all()
    assert {"inertia_0", "inertia_1", "inertia_2"} <= log.keys()
    for head in range(3):
        z = method.memories[head % 2].rows[:40]
        c = method.heads[head].weight
        assert torch.allclose(c.norm(dim=1), torch.ones(8), atol=1e-5)
        assert torch.equal(method.labels[head, :40], (z @ c.T).argmax(dim=1))
        # a fixed point of further updates is not reached in 10, but none makes labels that differ by much
        again = plain_spherical_kmeans(z.double().numpy(), c.double().numpy().copy(), 0)
        assert np.array_equal(again, method.labels[head, :40].numpy())


def test_heads_are_independent_and_renewal_is_repeatable():
    one, two = make("deepcluster_v2"), make("deepcluster_v2")
    for method in (one, two):
        written(method, 2)
        method.reassign(progress(6), embed=None)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.labels[0], one.labels[2])  # the same memory from another draw


def test_stability_is_logged_from_the_second_renewal_on():
    method = make("deepcluster_v2")
    written(method, 2)
    assert "nmi_previous" not in method.reassign(progress(6), embed=None)
    written(method, 3)
    assert 0 <= method.reassign(progress(9), embed=None)["nmi_previous"] <= 1


def test_the_first_renewal_fills_the_memories():
    method = make("deepcluster_v2")
    asked = []

    def embed(fn, view, train):
        asked.append((view, train))
        images = batch_of("deepcluster_v2", 48).views[:2]
        return Embeddings(fn(images).detach(), torch.arange(48), torch.ones(48, dtype=torch.bool))

    method.reassign(progress(0), embed)
    assert asked == [("train", True)]
    for memory in method.memories:
        assert torch.allclose(memory.rows.norm(dim=1), torch.ones(48), atol=1e-5)
    assert not torch.equal(method.memories[0].rows, method.memories[1].rows)
    assert method.labels.min() >= 0


def test_a_step_writes_both_memories():
    method = make("deepcluster_v2").eval()
    batch = batch_of("deepcluster_v2", 8, start=16)
    output = method(batch, progress(4))
    method.on_step_end(progress(4), [output])
    with torch.no_grad():
        for view, memory in zip(batch.views, method.memories, strict=False):
            assert torch.allclose(memory.rows[16:24], method.project(method.encode(view)), atol=1e-5)
            assert memory.written[16:24].eq(2).all()  # epoch 1 writes for the reassignment of epoch 2
            assert memory.written[:16].eq(-1).all()


def test_centroids_get_no_gradient():
    method = make("deepcluster_v2")
    method.labels.zero_()
    method(batch_of("deepcluster_v2"), progress()).loss.backward()
    assert all(p.grad is None for p in method.heads.parameters())


def test_more_clusters_than_images_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"--num-prototypes 8 is more than the 6 images; use --num-prototypes 2"):
        make("deepcluster_v2", num_samples=6)


def test_the_first_memory_takes_both_views_in_one_pass():
    """Released code passes one view after the other: batch norm in training mode then sees each alone."""
    method, batch = make("deepcluster_v2").train(), batch_of("deepcluster_v2")
    a, b = batch.views[:2]
    with torch.no_grad():
        pair = method.project_pair([a, b])
        joint = method.project(method.backbone(torch.cat([a, b])))
        apart = torch.cat([method.project(method.backbone(view)) for view in (a, b)], dim=1)
    torch.testing.assert_close(pair, torch.cat(joint.chunk(2), dim=1))
    assert (pair - apart).abs().max() > 1e-3
