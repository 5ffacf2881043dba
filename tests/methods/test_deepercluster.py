"""DeeperCluster against its equations in float64: the loss and its alternatives, the gradients of the sub-classifiers,
what each epoch shows, and the two clusterings one after the other."""

import numpy as np
import pytest
import torch
from torch import nn

from selfcluster.data.order import epoch_order
from selfcluster.methods.deepercluster import DeeperCluster, DeeperClusterSettings
from selfcluster.types import Batch, DatasetInfo, Embeddings, Progress
from selfcluster.views.pretext import shuffles
from tests.methods.test_contract import progress

N, M, K = 96, 2, 6  # images, super-clusters, clusters in each


class TinyNet(nn.Module):
    """4 x 4 images to 5 features that may be negative."""

    num_features = 5
    stops_before_relu = True  # as VGG's do

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
        if batch_norm:
            self.layers.extend([nn.BatchNorm1d(8)])
        self.layers.extend([nn.Linear(8, 5)])

    def forward(self, images):
        self.shown = images.detach()
        return self.layers(images)


def method_with_clusters(
    combination: str = "hierarchical", shard: tuple[int, int] = (0, 1), batch_norm: bool = False, unknown: int = 0
) -> DeeperCluster:
    """A method whose images have clusters and turns already, the first `unknown` none."""
    torch.manual_seed(0)
    settings = DeeperClusterSettings(num_prototypes=M * K, num_super_clusters=M, pca_dim=4, combination=combination)
    method = DeeperCluster(lambda: TinyNet(batch_norm), settings, DatasetInfo(N, 4, 3, shard=shard))
    generator = torch.Generator().manual_seed(1)
    # the generator serves all classifiers there could be, so that a shard's are those of the whole
    heads = {
        f"heads.sub.{s}.{kind}": torch.randn(shape, generator=generator)
        for s in range(4 * M)
        for kind, shape in (("weight", (K, 5)), ("bias", (K,)))
    }
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name in heads:
                p.copy_(heads[name])
    method.labels.copy_(torch.randint(0, M * K, (N,), generator=generator))
    method.turns.copy_(torch.randint(0, 4, (N,), generator=generator))
    method.labels[:unknown] = -1
    return method


def images(count: int = N) -> torch.Tensor:
    return torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(2))


def batch_of(index: torch.Tensor) -> Batch:
    return Batch([images()[index]], index)


def negative_log_softmax(logits: np.ndarray, target: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[target])


def rectified(method: DeeperCluster, index: torch.Tensor) -> np.ndarray:
    turned = [torch.rot90(images()[i], int(method.turns[i]), (1, 2)) for i in index.tolist()]
    with torch.no_grad():
        return method.backbone(torch.stack(turned)).clamp(min=0).double().numpy()


def linear(head) -> tuple[np.ndarray, np.ndarray]:
    return head.weight.detach().double().numpy(), head.bias.detach().double().numpy()


def terms_of(method: DeeperCluster, combination: str, f: np.ndarray, index: torch.Tensor, p: int) -> list[float]:
    """Eq. 5, eq. 1 + 2 or eq. 4 of each image that has a cluster, with p pretext labels; f (n, 5) features."""
    terms = []
    for row, i in zip(f, index.tolist(), strict=True):
        label, change = int(method.labels[i]), int(method.turns[i])
        if label < 0:
            continue

        def term(head, target, row=row):
            weight, bias = linear(head)
            return negative_log_softmax(weight @ row + bias, target)

        if combination == "hierarchical":
            s = p * (label // K) + change
            terms.append(term(method.heads.super, s) + term(method.heads.sub[str(s)], label % K))
        elif combination == "sum":
            terms.append(term(method.heads.rotation, change) + term(method.heads.cluster, label))
        else:  # the outer product of two one-hot vectors, read row by row
            y, z = np.eye(p)[change], np.eye(M * K)[label]
            terms.append(term(method.heads.joint, int(np.outer(z, y).ravel().argmax())))
    return terms


@pytest.mark.parametrize("combination", ["hierarchical", "sum", "product"])
def test_the_loss_is_the_papers(combination):
    """Images of no cluster count in nothing; all others as eq. 5, eq. 1 + 2 or eq. 4 have it."""
    method, index = method_with_clusters(combination, unknown=3), torch.arange(20)
    terms = terms_of(method, combination, rectified(method, index), index, 4)
    output = method(batch_of(index), progress())
    assert len(terms) == 17
    assert output.loss.item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert torch.equal(output.codes, method.labels[index])


@pytest.mark.parametrize("combination", ["hierarchical", "sum", "product"])
def test_without_knowledge_the_loss_is_the_logarithm_of_all_classes(combination):
    method = method_with_clusters(combination)
    for p in method.heads.parameters():
        nn.init.zeros_(p)
    loss = method(batch_of(torch.arange(32)), progress()).loss.item()
    assert loss == pytest.approx(np.log(4 * M * K), abs=1e-5)
    assert method.chance_loss() == pytest.approx(np.log(4 * M * K))


def test_a_sub_classifiers_gradient_is_the_mean_over_its_own_super_class():
    method, index = method_with_clusters(), plan_rows(16)
    method(batch_of(index), progress()).loss.backward()
    body = method.backbone.layers[1].weight.grad.clone()
    method.on_backward(progress())
    assert torch.equal(method.backbone.layers[1].weight.grad, body)
    f, labels, turns = rectified(method, index), method.labels[index].numpy(), method.turns[index].numpy()
    groups = 4 * (labels // K) + turns
    assert np.bincount(groups).tolist() == [2] * 8
    for s in range(8):
        weight, bias = linear(method.heads.sub[str(s)])
        expected = np.zeros_like(weight)
        for row, label in zip(f[groups == s], labels[groups == s], strict=True):
            p = np.exp(weight @ row + bias)
            p = p / p.sum() - np.eye(K)[label % K]
            expected += np.outer(p, row) / 2
        np.testing.assert_allclose(method.heads.sub[str(s)].weight.grad.numpy(), expected, atol=1e-5)


def plan_rows(batch_size: int, steps: int = 1, epoch: int = 0) -> torch.Tensor:
    order = epoch_order(N, batch_size, steps, 0, epoch, method_with_clusters().plan())
    return torch.from_numpy(order.reshape(-1))


def test_a_batch_holds_equal_shares_of_the_super_classes_side_by_side():
    method = method_with_clusters(unknown=5)
    rows = torch.from_numpy(epoch_order(N, 16, 40, 0, 0, method.plan()))
    groups = 4 * (method.labels[rows] // K) + method.turns[rows]
    assert torch.equal(groups, torch.arange(8).repeat_interleave(2).expand(40, -1))
    for s in range(8):  # uniformly over the clusters that have images in the super-class
        drawn = method.labels[rows[groups == s]].bincount()
        drawn = drawn[drawn > 0]
        assert drawn.max() - drawn.min() <= 1
    assert rows.min() >= 5


def test_the_network_sees_each_image_turned_as_the_epoch_has_it():
    method = method_with_clusters()
    method(batch_of(torch.arange(N)), progress())
    for i in range(N):
        assert torch.equal(method.backbone.shown[i], torch.rot90(images()[i], int(method.turns[i]), (1, 2)))


@pytest.mark.parametrize("combination", ["hierarchical", "sum", "product"])
def test_permutations_of_tiles_take_the_place_of_rotations(combination):
    """With P = 5 orders of the tiles, eq. 5, eq. 1 + 2 and eq. 4 in float64; the network sees images cut up by hand."""
    torch.manual_seed(0)
    choice = {"num_prototypes": M * K, "num_super_clusters": M, "pca_dim": 4, "combination": combination}
    settings = DeeperClusterSettings(**choice, pretext="jigsaw", num_permutations=5)
    method = DeeperCluster(TinyNet, settings, DatasetInfo(N, 4, 3))
    method.reassign(at_epoch(0), embed_of(method))
    labels, orders, index = method.labels, method.turns, torch.arange(N)
    for cluster in labels.unique():  # every cluster is shown in all orders, as evenly as its size allows
        times = orders[labels == cluster].bincount(minlength=5)
        assert times.max() - times.min() <= 1
    output = method(batch_of(index), progress())
    table, shown = shuffles(5), images().clone()
    for i in range(N):
        for place, tile in enumerate(table[orders[i]].tolist()):  # tiles of one pixel: a 3 x 3 corner of 4 x 4
            shown[i, :, place // 3, place % 3] = images()[i, :, tile // 3, tile % 3]
    assert torch.equal(method.backbone.shown, shown)
    assert torch.equal(shown[orders == 0], images()[orders == 0])
    with torch.no_grad():
        f = method.backbone(shown).clamp(min=0).double().numpy()
    terms = terms_of(method, combination, f, index, 5)
    assert output.loss.item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert set(output.log) == {"permutation_accuracy"}
    assert method.chance_loss() == pytest.approx(np.log(5 * M * K))
    groups = 5 * (labels // K) + orders
    assert torch.equal(method.plan().groups, groups)


def embed_of(method: DeeperCluster, index: torch.Tensor | None = None):
    """What the loop gives to `reassign`: this rank's rows, of the images `index`."""
    index = torch.arange(N) if index is None else index

    def embed(fn, view="center", train=False):
        return Embeddings(fn([images()[index]]).detach(), index, torch.ones(N, dtype=torch.bool))

    return embed


def at_epoch(epoch: int) -> Progress:
    return Progress(6 * epoch, 60, epoch, 6, 0)


def test_renewal_turns_every_epoch_and_clusters_every_third():
    method = method_with_clusters()
    embed, logs, labels, turns, weights, resets = embed_of(method), [], [], [], [], []
    for epoch in range(5):
        assert method.should_reassign(at_epoch(epoch))
        logs.append(method.reassign(at_epoch(epoch), embed))
        labels.append(method.labels.clone())
        turns.append(method.turns.clone())
        weights.append(method.heads.sub["3"].weight.detach().clone())
        resets.append(method.plan().reset)
    assert [bool(log) for log in logs] == [True, False, False, True, False]
    assert 0 < logs[3]["nmi_previous"] <= 1
    assert torch.equal(labels[0], labels[2])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert weights[3].abs().max() <= 5**-0.5
    assert all(not torch.equal(turns[e], turns[e + 1]) for e in range(4))
    assert resets[1] == resets[2] == resets[4] == ()
    assert set(resets[0]) == {name for name, _ in method.named_parameters() if name.startswith("heads.")}
    for epoch in range(5):  # every cluster is shown in all four rotations, as evenly as its size allows
        for cluster in labels[epoch].unique():
            times = turns[epoch][labels[epoch] == cluster].bincount(minlength=4)
            assert times.max() - times.min() <= 1


def test_clusters_are_two_consecutive_k_means_of_whitened_features():
    """In float64: each image is nearest to its super-cluster's mean, and to its cluster's mean among those in it."""
    torch.manual_seed(0)
    settings = DeeperClusterSettings(num_prototypes=M * K, num_super_clusters=M, kmeans_iterations=100)
    method = DeeperCluster(TinyNet, settings, DatasetInfo(N, 4, 3)).eval()
    log = method.reassign(at_epoch(0), embed_of(method))
    with torch.no_grad():
        features = method.backbone(images())
    x = features.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    rows = (x - x.mean(axis=0)) @ vectors / np.sqrt(values) @ vectors.T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = method.labels.numpy()
    supers = labels // K

    def distances(groups, members):
        means = np.stack([rows[members & (groups == g)].mean(axis=0) for g in np.unique(groups[members])])
        return ((rows[members, None] - means) ** 2).sum(axis=2), np.unique(groups[members])

    everyone = np.ones(N, dtype=bool)
    far, names = distances(supers, everyone)
    assert names.tolist() == [0, 1]
    assert np.array_equal(names[far.argmin(axis=1)], supers)
    assert log["inertia_super"] == pytest.approx(far.min(axis=1).sum(), rel=1e-5)
    inertia = 0.0
    for part in range(M):
        far, names = distances(labels, supers == part)
        assert len(names) == K
        assert np.array_equal(names[far.argmin(axis=1)], labels[supers == part])
        inertia += far.min(axis=1).sum()
    assert log["inertia"] == pytest.approx(inertia, rel=1e-5)
    found = method.assign(features)
    assert torch.equal(found.cluster, method.labels)
    assert found.distance.double().square().sum().item() == pytest.approx(inertia, rel=1e-4)


def test_settings_that_cannot_be_are_refused():
    for wrong, message in [
        ({"num_prototypes": 97}, "--num-prototypes 97, which must be at most the number of images, 96"),
        ({"num_prototypes": 3, "num_super_clusters": 4}, "--num-super-clusters 4 must be from 1 to --num-prototypes 3"),
        ({"combination": "both", "num_prototypes": 8}, "combination='both': choose from hierarchical, sum, product"),
        ({"reassign_epochs": 0, "num_prototypes": 8}, "reassign_epochs=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            DeeperCluster(TinyNet, DeeperClusterSettings(**wrong), DatasetInfo(N, 4, 3))
    with pytest.raises(ValueError, match="3 shards"):
        DeeperCluster(TinyNet, DeeperClusterSettings(num_prototypes=8), DatasetInfo(N, 4, 3, shard=(0, 3)))


def test_a_shard_holds_its_own_classifiers_alone():
    whole = method_with_clusters()
    assert whole.sharded() == ()
    names = []
    for shard in range(4):
        part = method_with_clusters(shard=(shard, 4))
        own = [name for name in part.state_dict() if name.startswith("heads.sub.")]
        assert tuple(own) == part.sharded()
        assert {int(name.split(".")[2]) for name in own} == {2 * shard, 2 * shard + 1}
        names += own
    assert set(names) == {name for name in whole.state_dict() if name.startswith("heads.sub.")}
    assert DeeperCluster.shards(whole.settings) == 8
    assert DeeperCluster.shards(DeeperClusterSettings(num_super_clusters=2, combination="sum")) == 1
    assert DeeperCluster.shards(DeeperClusterSettings(num_super_clusters=2, pretext="jigsaw", num_permutations=5)) == 10
