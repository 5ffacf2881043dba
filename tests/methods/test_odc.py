"""ODC's memories by hand over three steps, its loss against the equations, its start, and both sets of rules."""

import math

import numpy as np
import pytest
import torch

from selfcluster.clustering.memory import CentroidMemory, LabelMemory, SampleMemory
from selfcluster.methods.odc import ODC, ODCSettings
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Batch, DatasetInfo, Embeddings
from tests.methods.test_contract import batch_of, make, progress

ROWS = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)


def by_hand(**settings):
    """Six images in two clusters at (1, 0) and (0, 1); a view's pixels are its features."""
    settings = {"num_prototypes": 2, "dim": 2, "min_cluster": 0, "centroids_every": 2, **settings}
    method = make("odc", num_samples=6, **settings)
    method.encode_views = lambda views: torch.cat([v.flatten(1) for v in views])
    method.compact = lambda f: f
    method.samples.fill(ROWS)
    method.pseudo.write(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1]))
    method.centroids.recompute(ROWS, method.pseudo.labels)
    return method


def see(method, step: int, index: list[int], features: list[list[float]]):
    views = [torch.tensor(features)[:, :, None, None]]
    output = method(Batch(views, torch.tensor(index)), progress(step))
    method.on_step_end(progress(step), [output])
    return output


def weighted(method, f: list[list[float]], labels: list[int], counts: list[int]) -> float:
    """Section 3.2 in float64: samples weigh as much as their clusters, one over the root of the size."""
    w, b = (p.detach().double().numpy() for p in (method.classifier.weight, method.classifier.bias))
    logits = np.array(f) @ w.T + b
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(f)), labels]
    weights = np.array(counts, dtype=float)[labels] ** -0.5
    return float((weights * losses).sum() / weights.sum())


def rows_of(method, *expected) -> None:
    torch.testing.assert_close(method.samples.rows, torch.tensor(expected))


def test_three_steps_by_hand():
    method = by_hand()
    torch.nn.init.normal_(method.classifier.weight, generator=torch.Generator().manual_seed(0))

    # 0.5 (1, 0) + 0.5 (0.6, 0.8) stays nearest to (1, 0)
    output = see(method, 0, [0, 3], [[3.0, 4.0], [0.0, 2.0]])
    assert output.loss.item() == pytest.approx(weighted(method, [[3, 4], [0, 2]], [0, 1], [3, 3]), rel=1e-6)
    assert output.log["change_ratio"].item() == 0
    rows_of(method, [0.8, 0.4], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1])
    assert method.pseudo.labels.tolist() == [0, 0, 0, 1, 1, 1]

    # image 0 crosses over; the centroids are those of before, and are reassigned behind this second step
    output = see(method, 1, [0, 4], [[0.0, 5.0], [4.0, 3.0]])
    assert output.loss.item() == pytest.approx(weighted(method, [[0, 5], [4, 3]], [0, 1], [3, 3]), rel=1e-6)
    assert output.log["change_ratio"].item() == 0.5
    rows_of(method, [0.4, 0.7], [1, 0], [1, 0], [0, 1], [0.4, 0.8], [0, 1])
    assert method.pseudo.labels.tolist() == [1, 0, 0, 1, 1, 1]
    assert method.centroids.counts.tolist() == [2, 4]
    torch.testing.assert_close(method.centroids.rows, torch.tensor([[1, 0], [0.2, 0.875]]))

    # images 0 and 1 change places; the loss has the labels and sizes that the last step left
    output = see(method, 2, [0, 1], [[2.0, 0.0], [0.0, 1.0]])
    assert output.loss.item() == pytest.approx(weighted(method, [[2, 0], [0, 1]], [1, 0], [2, 4]), rel=1e-6)
    assert output.log["change_ratio"].item() == 1
    rows_of(method, [0.7, 0.35], [0.5, 0.5], [1, 0], [0, 1], [0.4, 0.8], [0, 1])
    assert method.pseudo.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert method.centroids.counts.tolist() == [2, 4]
    torch.testing.assert_close(method.centroids.rows, torch.tensor([[1, 0], [0.2, 0.875]]))
    assert method.centroids.involved.all()


def test_released_rules_by_hand():
    """Unit rows, and the raw product: a long centroid wins over a near one."""
    method = by_hand(rules="released")
    method.centroids.rows.copy_(torch.tensor([[1.0, 0.0], [2.0, 2.0]]))
    output = see(method, 0, [0], [[4.0, 3.0]])
    torch.testing.assert_close(method.samples.rows[0], torch.tensor([1.8, 0.6]) / math.hypot(1.8, 0.6))
    assert output.codes.tolist() == [1]  # products 0.95 and 2.53, distances 0.32 and 1.67
    paper = by_hand()
    paper.centroids.rows.copy_(method.centroids.rows)
    assert see(paper, 0, [0], [[4.0, 3.0]]).codes.tolist() == [0]
    assert method.plan().replace
    assert not paper.plan().replace


@pytest.mark.parametrize(("rules", "remade"), [("paper", True), ("released", False)])
def test_the_threshold_itself_is_small_by_the_paper_only(rules, remade):
    """A cluster of two samples under the threshold 2."""
    method = by_hand(min_cluster=2, rules=rules)
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    method.pseudo.labels.copy_(labels)
    method.centroids.recompute(ROWS, labels)
    assert (method.refill(progress()) > 0) == remade
    assert method.centroids.counts.tolist() == ([3, 3] if remade else [2, 4])


def test_involved_centroids_only_are_renewed_by_the_paper():
    """An image that stays moves its row, not its centroid, until somebody joins or leaves; as released it does."""
    for rules, moves in (("paper", False), ("released", True)):
        method = by_hand(rules=rules, centroids_every=1)
        see(method, 0, [0], [[0.8, 0.6]])
        assert method.pseudo.labels[0] == 0
        assert (method.centroids.rows[0] != torch.tensor([1.0, 0.0])).any() == moves


def test_all_views_predict_and_full_ones_are_remembered():
    method = by_hand()
    big = [
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2),
        torch.tensor([[0.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2),
    ]
    small = [torch.tensor([9.0, 0.0]).view(1, 2, 1, 1)]
    method.encode_views = lambda views: torch.cat([v.sum(dim=3).flatten(1) for v in views])
    output = method(Batch(big + small, torch.tensor([0])), progress())
    _, mean, _ = output.state
    torch.testing.assert_close(mean, torch.tensor([[0.5, 0.5]]))  # of (1, 0) and (0, 1); the small view is left out
    expected = weighted(method, [[1, 0], [0, 3], [9, 0]], [0, 0, 0], [3, 3])
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


def test_an_image_without_a_label_reaches_no_loss_and_gets_one():
    method = by_hand()
    method.pseudo.labels[0] = -1
    method.centroids.counts[0] -= 1
    views = [torch.tensor([[7.0, 1.0], [1.0, 2.0]])[:, :, None, None]]
    output = method(Batch(views, torch.tensor([0, 3])), progress(0))
    assert output.loss.item() == pytest.approx(weighted(method, [[1, 2]], [1], [2, 3]), abs=1e-6)
    method.on_step_end(progress(0), [output])
    assert method.pseudo.labels[0] == 0
    assert method.centroids.counts.tolist() == [3, 3]
    method.pseudo.labels.fill_(-1)
    assert method(Batch(views, torch.tensor([0, 3])), progress(0)).loss.item() == 0


def test_counts_follow_the_labels_without_counting_all():
    """Three hundred random moves, with repeats in a batch and no reassignment: counts are still those of the labels."""
    method = by_hand(centroids_every=10_000)
    g = torch.Generator().manual_seed(1)
    for step in range(100):
        index = torch.randint(6, (3,), generator=g).tolist()
        see(method, step, index, torch.rand(3, 2, generator=g).tolist())
        assert method.centroids.counts.tolist() == torch.bincount(method.pseudo.labels, minlength=2).tolist()


def test_the_start_is_k_means_of_all_images_once():
    method = make("odc")
    asked = []

    def embed(fn, view="center", train=False):
        asked.append((view, train))
        rows = fn(batch_of("odc", 48).views).detach()
        seen = torch.ones(48, dtype=torch.bool)
        seen[47] = False  # a file that could not be read
        return Embeddings(rows[:47], torch.arange(47), seen)

    log = method.eval().reassign(progress(0), embed)
    assert asked == [("center", True)]
    assert {"inertia", "remade_at_start"} <= log.keys()
    rows, labels = method.samples.rows, method.pseudo.labels
    torch.testing.assert_close(rows[:47].norm(dim=1), torch.ones(47))
    assert labels[47] == -1
    assert method.centroids.counts.min() > method.settings.min_cluster
    for c in range(8):
        torch.testing.assert_close(method.centroids.rows[c], rows[labels == c].mean(dim=0), atol=1e-6, rtol=0)
    assert [method.should_reassign(progress(step)) for step in (0, 1, 3, 6)] == [True, False, False, False]
    make("odc", rules="released").eval().reassign(progress(0), embed)
    assert asked[1:] == [("center", False)]


def test_a_transformer_and_small_views():
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    def embed(fn, view="center", train=False):
        rows = fn(batch_of("odc", 48).views).detach()
        return Embeddings(rows, torch.arange(48), torch.ones(48, dtype=torch.bool))

    torch.manual_seed(0)
    method = ODC(vit, ODCSettings(dim=16, hidden=32, num_prototypes=8, min_cluster=1), DatasetInfo(48, 16, 3))
    method.reassign(progress(0), embed)
    before = method.samples.rows.clone()
    output = method(Batch([*batch_of("odc").views, torch.rand(8, 3, 8, 8)], torch.arange(8)), progress())
    output.loss.backward()
    method.on_step_end(progress(), [output])
    assert 0 < output.loss.item() < math.inf
    assert all(p.grad is not None and p.grad.any() for p in method.backbone.parameters())
    assert (method.samples.rows != before).any(dim=1).tolist() == [True] * 8 + [False] * 40
    assert method.centroids.counts.tolist() == torch.bincount(method.pseudo.labels, minlength=8).tolist()


def test_the_classifier_has_no_momentum():
    method = make("odc")
    body, classifier = method.groups()
    assert classifier.momentum == 0
    assert body.momentum is None
    assert {id(p) for p in classifier.params} == {id(p) for p in method.classifier.parameters()}
    assert [g.momentum for g in make("odc", head_momentum=0.9).groups()] == [None, 0.9]


def test_clusters_are_the_nearest_centroids():
    method = make("odc").eval()
    method.centroids.recompute(torch.rand(48, 16), torch.arange(48) % 7)  # cluster 7 is empty
    features = method.encode(batch_of("odc").views[0])
    assignment = method.assign(features)
    z = torch.nn.functional.normalize(method.compact(features), dim=1)
    distance = torch.cdist(z.double(), method.centroids.rows[:7].double())
    assert torch.equal(assignment.cluster, distance.argmin(dim=1))
    torch.testing.assert_close(assignment.distance.double(), distance.min(dim=1).values, atol=1e-5, rtol=0)


def test_a_threshold_above_the_mean_size_is_refused_with_the_way_out():
    words = (
        r"--min-cluster 20 is too high: 48 images in 8 clusters are 6.0 per cluster on average. Use --min-cluster 1$"
    )
    with pytest.raises(ValueError, match=words):
        make("odc", min_cluster=20)
    with pytest.raises(ValueError, match="--min-cluster 6 is too high"):
        make("odc", min_cluster=6)  # not larger than 6 is small by the paper
    assert make("odc", min_cluster=6, rules="released").settings.min_cluster == 6
    with pytest.raises(ValueError, match="rules='peper': choose from paper, released; did you mean paper"):
        make("odc", rules="peper")


def test_the_memories_of_imagenet_take_what_the_header_says():
    from selfcluster.methods import odc

    with torch.device("meta"):
        memories = SampleMemory(1_281_167, 256, 0.5), LabelMemory(1_281_167), CentroidMemory(10_000, 256)
    held = sum(buffer.nbytes for memory in memories for buffer in memory.buffers())
    assert f"{held:,} bytes" in odc.__doc__
    assert f"{memories[0].rows.nbytes:,} of them" in odc.__doc__
    assert f"its share of F ({2 * memories[0].rows.nbytes:,} bytes" in odc.__doc__
