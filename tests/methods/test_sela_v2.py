"""SeLa-v2: what it does otherwise than DeepCluster-v2, whose tests cover memories, missing labels and the loss."""

import numpy as np
import pytest
import torch

from selfcluster.clustering.scores import nmi
from tests.clustering.test_balanced import reference
from tests.methods.test_contract import batch_of, make, progress
from tests.methods.test_deepcluster_v2 import written


def test_loss_is_the_mean_cross_entropy_over_heads_views_and_labeled_images():
    method, batch = make("sela_v2").eval(), batch_of("sela_v2")
    method.labels.copy_(torch.arange(48).expand(3, -1) % 9 - 1)
    with torch.no_grad():
        z = [method.project(method.encode(view)).double().numpy() for view in batch.views]
        loss = method(batch, progress()).loss.item()
    terms = []
    for prototypes in method.heads:
        for view in z:
            logits = view @ prototypes.weight.detach().double().numpy().T / method.settings.temperature
            for i, label in enumerate(method.labels[0, :8].tolist()):
                if label >= 0:
                    terms.append(np.log(np.exp(logits[i]).sum()) - logits[i, label])
    assert loss == pytest.approx(float(np.mean(terms)), abs=1e-5)


def test_labels_are_the_balanced_plan_of_the_memories_and_prototypes_stay():
    """The plan in float64: the softmax of cosines over tau, to the power lambda, scaled to equal clusters."""
    method = make("sela_v2", sharpness=0.5, tolerance=1e-5, max_iter=1000)
    written(method, 1)
    written(method, 2, rows=40)  # images 40 to 47 were not shown in the last epoch
    before = [prototypes.weight.detach().clone() for prototypes in method.heads]
    log = method.reassign(progress(6), embed=None)
    for h, prototypes in enumerate(method.heads):
        assert torch.equal(prototypes.weight, before[h])
        with torch.no_grad():
            scores = prototypes(method.memories[h % 2].rows[:40]) / 0.1
        plan = reference(scores, 0.5, torch.full((8,), 1 / 8, dtype=torch.float64))
        assert torch.equal(method.labels[h, :40], plan.argmax(dim=1))
        assert log[f"row_error_{h}"] < 1e-5
    assert method.labels[:, 40:].eq(-1).all()


def test_labels_are_balanced_where_scores_are_not():
    method = make("sela_v2")
    written(method, 2)
    with torch.no_grad():
        for prototypes in method.heads[1:]:
            prototypes.weight.copy_(-prototypes.weight)
        mean = method.memories[0].rows.mean(dim=0)
        method.memories[0].rows.add_(10 * torch.nn.functional.normalize(mean, dim=0))
        method.memories[0].rows.copy_(torch.nn.functional.normalize(method.memories[0].rows, dim=1))
        assert method.heads[0](method.memories[0].rows).argmax(dim=1).bincount().max() > 24  # all look alike
    method.reassign(progress(6), embed=None)
    for labels in method.labels:
        assert (labels.bincount(minlength=8) - 6).abs().max() <= 1


def test_prototypes_are_learned_from_the_first_step_and_stay_unit_rows():
    method = make("sela_v2")
    method.labels.copy_(torch.arange(48).expand(3, -1) % 8)
    output = method(batch_of("sela_v2"), progress(0))
    output.loss.backward()
    method.on_backward(progress(0))
    assert all(p.weight.grad.abs().max() > 0 for p in method.heads)
    torch.optim.SGD(method.parameters(), lr=5.0).step()
    assert not torch.allclose(method.heads[0].weight.norm(dim=1), torch.ones(8), atol=1e-3)
    method.on_step_end(progress(0), [output])
    for prototypes in method.heads:
        assert torch.allclose(prototypes.weight.norm(dim=1), torch.ones(8), atol=1e-6)
    assert method.memories[0].written[:8].eq(1).all()  # what DeepCluster-v2 does after a step is done too


@pytest.mark.slow
def test_two_processes_make_the_labels_of_one(ranks):
    method = make("sela_v2")
    written(method, 2, rows=43)
    method.reassign(progress(6), embed=None)
    for labels in ranks.run(renewed_on_a_rank):
        np.testing.assert_array_equal(labels, method.labels.numpy())


def renewed_on_a_rank() -> np.ndarray:
    method = make("sela_v2")
    written(method, 2, rows=43)
    method.reassign(progress(6), embed=None)
    return method.labels.numpy()


def test_the_kinds_of_pictures_are_found(tiny, tmp_path):
    """Four kinds of pictures in four clusters; the untrained network's clusters are another matter (NMI below 0.4)."""
    tiny("sela_v2", tmp_path / "run", num_prototypes=4, epochs=30, augment="weak")
    table = np.loadtxt(
        tmp_path / "run/clusters.csv", delimiter=",", quotechar='"', skiprows=1, usecols=(0, 2), dtype=int
    )
    assert nmi(table[:, 1], table[:, 0] % 4) > 0.8
