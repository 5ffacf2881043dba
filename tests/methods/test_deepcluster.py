"""DeepCluster: whitened features, clusters drawn alike, a classifier that starts anew, power iteration, assignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from selfcluster.clustering.pic import PowerIterationClustering
from selfcluster.clustering.scores import purity
from selfcluster.data.order import epoch_order
from selfcluster.methods.deepcluster import DeepCluster
from selfcluster.training.optim import forget, make_optimizer
from selfcluster.types import Embeddings, Training
from tests.methods.test_contract import batch_of, make, progress

CHI_SQUARE = 44.26  # 99.9 % point of 19 degrees of freedom


def embed_of(rows: torch.Tensor, index: torch.Tensor | None = None, num_samples: int | None = None):
    """An `embed` that answers with the given features, and checks that center crops are asked for."""
    index = torch.arange(len(rows)) if index is None else index
    seen = torch.zeros(num_samples or len(rows), dtype=torch.bool)
    seen[index] = True

    def embed(fn, view, train=False):
        assert (view, train) == ("center", False)
        return Embeddings(rows, index, seen)

    return embed


def blobs(n: int, sizes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features (n, 512) around as many centers as `sizes` has shares, and where each belongs."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    assert len(truth) == n
    centers = rng.normal(size=(len(sizes), 512)) * 5
    return torch.from_numpy(centers[truth] + rng.normal(size=(n, 512))).float(), truth


def reassigned(rows: torch.Tensor, step: int = 6, **settings) -> DeepCluster:
    method = make("deepcluster", num_samples=len(rows), **settings)
    method.reassign(progress(step), embed_of(rows))
    return method


def whitened(x: np.ndarray, d: int) -> np.ndarray:
    """PCA to d axes, variance 1 along each, rows of length 1: float64, from a singular value decomposition."""
    x = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    _, s, axes = np.linalg.svd(x, full_matrices=False)
    y = x @ axes[:d].T / (s[:d] / np.sqrt(len(x)))
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def test_labels_are_the_nearest_centroids_of_features_whitened_in_float64():
    scales = np.geomspace(10, 0.01, 512)  # axes that differ in variance are well determined
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 512)) * scales).float() + 3
    method = reassigned(rows)
    y = whitened(rows.numpy(), 16)
    centroids = method.centroids.double().numpy()
    # an axis may point either way
    kept = method.whitening
    axes = kept.components.numpy()
    ours = (rows.double().numpy() - kept.mean.numpy()) @ axes.T / np.sqrt(kept.eigenvalues.numpy())
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    signs = np.sign((ours * y).sum(axis=0))
    np.testing.assert_allclose(ours * signs, y, atol=1e-5)
    distances = ((y[:, None] - centroids * signs) ** 2).sum(axis=-1)  # (N, K)
    assert np.array_equal(distances.argmin(axis=1), method.labels.numpy())
    found = method.assign(rows)
    assert torch.equal(found.cluster, method.labels)
    np.testing.assert_allclose(found.distance.numpy(), np.sqrt(distances.min(axis=1)), atol=1e-4)
    assert len(np.unique(method.labels)) == 8, "empty clusters are split"


def test_well_separated_groups_are_found_and_stability_is_the_geometric_nmi():
    rows, truth = blobs(320, (120, 80, 80, 40))
    method = make("deepcluster", num_samples=320, num_prototypes=16, pca_dim=3)
    first = method.reassign(progress(0), embed_of(rows))
    assert "nmi_previous" not in first
    assert first["clusters"] == 16
    before = method.labels.clone()
    second = method.reassign(progress(3), embed_of(rows.flip(0)))
    expected = normalized_mutual_info_score(before, method.labels, average_method="geometric")
    assert second["nmi_previous"] == pytest.approx(expected)
    assert purity(truth, before) > 0.99


def test_a_batch_by_hand():
    """Two images of clusters 1 and 0, the third without a label: a mean over two, behind the ReLU."""
    method = make("deepcluster").eval()
    batch = batch_of("deepcluster", 3, views=1)
    method.labels[:3] = torch.tensor([1, 0, -1])
    torch.nn.init.normal_(method.head.weight)
    with torch.no_grad():
        z = method.encode(batch.views[0]).double().clamp(min=0).numpy()
        logits = z @ method.head.weight.double().numpy().T + method.head.bias.double().numpy()
        loss = method(batch, progress()).loss.item()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-(np.log(p[0, 1]) + np.log(p[1, 0])) / 2, abs=1e-5)


class Signed(torch.nn.Module):
    """A backbone whose features have both signs, as AlexNet's have before the last ReLU."""

    num_features = 4

    def __init__(self, stops_before_relu: bool):
        super().__init__()
        self.stops_before_relu = stops_before_relu

    def forward(self, images):
        return images.flatten(2).mean(dim=2).repeat(1, 2)[:, :4] * torch.tensor([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize("stops", [True, False])
def test_the_classifier_stands_behind_the_relu_that_features_stop_before_and_clusters_before_it(stops):
    from selfcluster.types import Batch, DatasetInfo

    method = DeepCluster(lambda: Signed(stops), DeepCluster.Settings(num_prototypes=4), DatasetInfo(8, 4, 3)).eval()
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    method.labels.copy_(torch.arange(8) % 4)
    assert (method.encode(images) < 0).any()
    output = method(Batch([images], torch.arange(8)), progress())
    seen = method.encode(images).relu() if stops else method.encode(images)
    expected = F.cross_entropy(method.head(seen), method.labels)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert method.whitening.components.shape == (4, 4), "no more axes than features"


def test_the_uniform_sampler_is_flat_over_clusters_on_the_labels_of_the_images_drawn():
    """A long tail of clusters; an epoch's images, looked up by what they are, come from all clusters alike."""
    sizes = tuple(int(x) for x in np.geomspace(10, 1000, 20))
    rows, truth = blobs(sum(sizes), sizes)
    statistic = {}
    for weighting in ("uniform", "none", "released"):
        method = make("deepcluster", num_samples=len(rows), num_prototypes=20, weighting=weighting)
        method.labels.copy_(torch.from_numpy(truth))
        n = len(rows) // 64 * 64
        order = epoch_order(len(rows), 64, n // 64, seed=0, epoch=3, plan=method.plan()).ravel()
        drawn = np.bincount(truth[order], minlength=20)
        statistic[weighting] = float(((drawn - n / 20) ** 2 / (n / 20)).sum())
        if weighting == "uniform":
            assert drawn.max() - drawn.min() <= 1
        if weighting == "released":
            assert np.corrcoef(drawn, sizes)[0, 1] > 0.99, "what the released code draws follows the clusters' sizes"
    assert statistic["uniform"] < 0.1 < CHI_SQUARE < min(statistic["none"], statistic["released"])


def test_k_means_own_clusters_are_drawn_alike():
    rows, _ = blobs(640, (400, 120, 60, 30, 20, 10))
    method = reassigned(rows)
    order = epoch_order(640, 64, 10, seed=1, epoch=0, plan=method.plan()).ravel()
    drawn = np.bincount(method.assign(rows[order]).cluster, minlength=8)
    assert drawn.tolist() == [80] * 8


@pytest.mark.parametrize(("weighting", "power"), [("inverse", -1.0), ("inverse_sqrt", -0.5), ("uniform", 0.0)])
def test_losses_are_weighted_by_the_size_of_the_cluster(weighting, power):
    rows, _ = blobs(320, (200, 80, 30, 10))
    method = reassigned(rows, num_prototypes=4, pca_dim=3, weighting=weighting)
    sizes = np.bincount(method.labels, minlength=4)
    np.testing.assert_allclose(method.weight.numpy(), sizes.astype(float) ** power, rtol=1e-6)
    assert (method.plan().balance is None) == (weighting != "uniform")


def test_weighting_by_the_inverse_size_is_uniform_sampling():
    """Over all images once, the weighted loss is the mean over clusters of each cluster's mean loss (the thesis)."""
    method = make("deepcluster", weighting="inverse").eval()
    labels = torch.arange(48) % 3 * (torch.arange(48) % 2)
    rows, _ = blobs(48, (48,))
    method.labels.copy_(labels)
    method.weight.copy_(torch.bincount(labels, minlength=8).clamp(min=1).float().reciprocal())
    torch.nn.init.normal_(method.head.weight, std=0.1)
    with torch.no_grad():
        losses = F.cross_entropy(method.head(rows.relu()), labels, reduction="none").double()
        from selfcluster.methods.base import labeled_cross_entropy

        weighted = labeled_cross_entropy(method.logits(rows.relu()), labels, method.weight)
    by_cluster = torch.stack([losses[labels == c].mean() for c in labels.unique()]).mean()
    assert weighted.item() == pytest.approx(by_cluster.item(), rel=1e-5)


def test_the_classifier_starts_anew_and_its_momentum_is_forgotten():
    method = make("deepcluster").train()
    optimizer = make_optimizer(method.groups(), Training(optimizer="adamw", learning_rate=0.1))
    method.labels.zero_()
    method(batch_of("deepcluster"), progress()).loss.backward()
    optimizer.step()
    body = method.backbone.layer1[0].weight
    assert {id(method.head.weight), id(method.head.bias), id(body)} <= {id(p) for p in optimizer.state}
    with torch.no_grad():
        method.head.weight.fill_(7), method.head.bias.fill_(7)
    weight = method.head.weight
    method.reassign(progress(3), embed_of(torch.randn(48, 512, generator=torch.Generator().manual_seed(0))))
    forget(optimizer, method, method.plan().reset)
    left = {id(p) for p in optimizer.state}
    assert id(method.head.weight) not in left
    assert id(method.head.bias) not in left
    assert id(body) in left, "the body's state lives on"
    assert method.head.weight is weight
    assert method.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(method.head.weight.mean().item()) < 1e-3
    assert (method.head.bias == 0).all()


def test_the_classifier_has_no_momentum():
    method = make("deepcluster")
    optimizer = make_optimizer(method.groups(), method.paper)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.0]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in method.head.parameters()}


def test_the_thesis_gives_the_classifier_its_momentum_too():
    method = make("deepcluster", head_momentum=0.9)
    optimizer = make_optimizer(method.groups(), method.paper)  # SGD at 0.05
    start = method.head.bias.detach().clone()
    for _ in range(2):
        method.head.bias.grad = torch.ones_like(start)
        optimizer.step()
    # the decay of 1e-5 moves a bias of 0 by nothing, and then by 5e-7: 0.05 (1 + 1.9)
    torch.testing.assert_close(method.head.bias.detach(), start - 0.05 * 2.9, rtol=1e-5, atol=1e-6)


def test_the_thesis_moves_an_empty_cluster_in_a_random_direction():
    """40 of 48 images are copies of two, so that k-means starts from equal centroids and has empty ones to move."""
    first = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([first.repeat(20, 1), torch.randn(8, 512, generator=torch.Generator().manual_seed(1))])
    ways = [reassigned(rows, split=split, num_prototypes=8).centroids for split in ("alternating", "random")]
    again = reassigned(rows, split="random", num_prototypes=8).centroids
    assert not torch.equal(*ways)
    assert torch.equal(again, ways[1])


def test_a_reassignment_depends_on_seed_and_step_alone():
    rows, _ = blobs(96, (48, 48))
    one, same, later = (reassigned(rows, step=step) for step in (6, 6, 9))
    for (name, a), b in zip(one.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.head.weight, later.head.weight)
    assert not torch.equal(one.centroids, later.centroids)


def test_images_that_were_not_seen_have_no_label_and_are_not_drawn():
    method = make("deepcluster", num_samples=60)
    rows, _ = blobs(48, (24, 24))
    index = torch.arange(60)[torch.arange(60) % 5 != 0]
    method.reassign(progress(), embed_of(rows, index, 60))
    assert (method.labels[::5] == -1).all()
    assert (method.labels[index] >= 0).all()
    assert set(epoch_order(60, 15, 4, 0, 0, method.plan()).ravel()) <= set(index.tolist())


@pytest.mark.parametrize("every", [1, 2, 3])
def test_reassignment_every_n_epochs(every):
    method = make("deepcluster", reassign_epochs=every)
    due = [step for step in range(18) if method.should_reassign(progress(step))]
    assert due == list(range(0, 18, 3 * every))  # an epoch is 3 steps


def test_unused_logits_of_power_iteration_get_no_gradient_and_no_probability():
    rows, _ = blobs(120, (40, 40, 40))
    method = reassigned(rows, clustering="pic", max_clusters=60, pca_dim=2)
    found = int(method.clusters)
    assert 1 < found < 60
    assert sorted(method.labels.unique().tolist()) == list(range(found))
    method.train()
    output = method(batch_of("deepcluster"), progress())
    output.loss.backward()
    for gradient in (method.head.weight.grad, method.head.bias.grad):
        assert (gradient[found:] == 0).all()
        assert (gradient[:found] != 0).reshape(found, -1).any(dim=1).all()
    assert torch.isfinite(output.loss)
    probability = method.logits(torch.rand(5, 512)).softmax(dim=1)
    assert (probability[:, found:] == 0).all()
    torch.testing.assert_close(probability[:, :found].sum(dim=1), torch.ones(5))


def test_power_iteration_keeps_the_largest_clusters_where_it_finds_too_many():
    rows, _ = blobs(200, (80, 60, 40, 20))
    wide, narrow = (reassigned(rows, clustering="pic", max_clusters=k, pca_dim=3) for k in (100, 3))
    sizes = torch.bincount(wide.labels)
    assert (sizes.diff() <= 0).all(), "the largest comes first"
    assert len(sizes) > 3
    assert int(narrow.clusters) == 3
    assert torch.equal(narrow.labels, torch.where(wide.labels < 3, wide.labels, -1))
    x = whitened(rows.numpy(), 3)
    by_itself = PowerIterationClustering().fit_predict(x.astype("float32"))
    assert normalized_mutual_info_score(by_itself, wide.labels) > 0.999
    means = torch.stack([torch.from_numpy(x[wide.labels.numpy() == c].mean(axis=0)) for c in range(len(sizes))])
    lengths = wide.centroids.double().norm(dim=1)
    torch.testing.assert_close(lengths[: len(sizes)], means.norm(dim=1), atol=1e-5, rtol=0)
    assert (lengths[len(sizes) :] == 0).all()
    # rows without members lie at 0 and would be nearest to what is between the clusters
    assert int(wide.assign(rows[:1].repeat(2, 1) * 0 + wide.whitening.mean).cluster.max()) < len(sizes)


def test_axes_are_no_more_than_features_or_images():
    assert make("deepcluster", pca_dim=256).whitening.components.shape == (48, 512)
    assert make("deepcluster", num_samples=5000, pca_dim=4096).whitening.components.shape == (512, 512)
    assert make("deepcluster", num_samples=5000).centroids.shape == (8, 16)


def test_settings_that_mean_nothing_are_refused():
    for settings, message in (
        ({"num_samples": 6}, r"--num-prototypes 8 is more than the 6 images; use --num-prototypes 2"),
        ({"clustering": "ward"}, "clustering='ward'"),
        ({"weighting": "even"}, "weighting='even': choose from uniform, inverse"),
        ({"reassign_epochs": 0}, "reassign_epochs=0"),
    ):
        with pytest.raises(ValueError, match=message):
            make("deepcluster", **settings)


def shared_renewal(clustering: str) -> dict[str, np.ndarray]:
    """A rank's part of a reassignment of 300 images."""
    from selfcluster.distributed import share

    rows, _ = blobs(300, (120, 80, 60, 40))
    # as a sweep deals images: a part of every batch
    mine = torch.cat([part[share(len(part))] for part in torch.arange(300).chunk(7)])
    method = make("deepcluster", num_samples=300, clustering=clustering, max_clusters=40, pca_dim=3)
    method.reassign(progress(), embed_of(rows[mine], mine, 300))
    return {k: v.numpy() for k, v in method.state_dict().items() if "backbone" not in k}


@pytest.mark.slow
@pytest.mark.parametrize("clustering", ["kmeans", "pic"])
def test_two_processes_renew_as_one(clustering, ranks):
    whole = shared_renewal(clustering)
    for part in ranks.run(shared_renewal, clustering):
        for key, expected in whole.items():
            np.testing.assert_allclose(part[key], expected, atol=1e-4, rtol=1e-6, err_msg=key)
