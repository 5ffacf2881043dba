"""SeLa against its equations in float64: the loss, the schedule by hand, balanced labels on one and two processes."""

import math

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.clustering.scores import nmi
from selfcluster.methods import sela
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Embeddings, Progress
from tests.clustering.test_balanced import reference
from tests.methods.test_contract import batch_of, make, progress


def rows(n: int = 48) -> torch.Tensor:
    return torch.randn(n, 512, generator=torch.Generator().manual_seed(3))


def embedding(shown: int = 48, world: int = 1, rank: int = 0):
    """An `embed` that shows images 0 to `shown` only, and gives a rank its share."""

    def embed(fn, view, train):
        mine = torch.arange(shown)[distributed.share(shown, rank, world)]
        return Embeddings(rows()[mine], mine, torch.arange(48) < shown)

    return embed


def at(step: int, total: int, per_epoch: int) -> Progress:
    return Progress(step, total, step // per_epoch, per_epoch, 0)


def test_loss_is_the_mean_cross_entropy_over_heads_views_and_labeled_images():
    method, batch = make("sela").eval(), batch_of("sela")
    batch.views.append(batch.views[0].flip(3))
    method.labels.copy_(torch.arange(48).expand(2, -1) % 9 - 1)  # -1 for every ninth image
    method.labels[1] = (method.labels[0] + 3) % 8
    with torch.no_grad():
        features = [method.encode(view).double().numpy() for view in batch.views]
        loss = method(batch, progress()).loss.item()
    means = []
    for head, labels in zip(method.heads, method.labels.tolist(), strict=True):
        w, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
        terms = []
        for x in features:
            for i in range(8):
                if labels[i] >= 0:
                    logits = w @ x[i] + b
                    terms.append(np.log(np.exp(logits).sum()) - logits[labels[i]])
        means.append(np.mean(terms))
    assert loss == pytest.approx(float(np.mean(means)), abs=1e-5)


def test_schedule_by_hand():
    """400 steps to spread over: 299 of the run and 1.01 epochs of 100."""
    method = make("sela", num_optimizations=5)
    now = at(0, 299, 100)
    assert method.schedule(now) == [0, 25, 100, 225, 400]  # 400 (i / 4)^2
    assert [s for s in range(299) if method.should_reassign(at(s, 299, 100))] == [0, 25, 100, 225]
    assert make("sela", num_optimizations=5, quadratic=False).schedule(now) == [0, 100, 200, 300, 400]
    assert make("sela", num_optimizations=1).schedule(now) == [0]


def test_schedule_of_the_paper_is_dense_at_first():
    """400 epochs of 5,004 steps: 401.01 epochs (i / 99)^2, each time the first step that is not before it."""
    steps = make("sela", num_optimizations=100).schedule(at(0, 400 * 5004, 5004))
    assert len(steps) == 100
    assert steps[:3] == [0, math.ceil(401.01 * 5004 / 99**2), math.ceil(401.01 * 5004 * 4 / 99**2)]
    gaps = np.diff(steps)
    assert (np.diff(gaps) >= -1).all()  # ever rarer, up to rounding
    assert gaps[0] < 5004 / 20  # many in the first epoch,
    assert gaps[-1] > 5004 * 8  # one in eight epochs at the end
    assert sum(s < 5004 for s in steps) == 5
    assert sum(s % 5004 == 0 for s in steps) == 1  # all but the first inside an epoch


def test_a_short_run_renews_once_a_step_at_most():
    method = make("sela", num_optimizations=100)
    assert method.schedule(at(0, 9, 3)) == [*range(14)]  # 12.03 steps


def test_labels_start_exactly_balanced_and_at_random():
    labels = make("sela").labels
    assert all(row.bincount().eq(6).all() for row in labels)  # 48 images in 8 clusters
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[0].sort().values)


def test_renewed_labels_are_the_sharp_balanced_plan():
    method = make("sela", tolerance=1e-5, max_iter=1000, sharpness=5.0)
    log = method.reassign(progress(0), embedding())
    for head, labels in zip(method.heads, method.labels, strict=True):
        with torch.no_grad():
            plan = reference(head(rows()), 5.0, torch.full((8,), 1 / 8, dtype=torch.float64))
        assert torch.equal(labels, plan.argmax(dim=1))
    assert log["row_error"] < 1e-5
    assert 0 <= log["nmi_previous"] < 0.7  # of random labels
    assert method.reassign(progress(3), embedding())["nmi_previous"] == pytest.approx(1)  # nothing has moved


def test_renewed_labels_are_balanced_where_predictions_are_not():
    method = make("sela")
    with torch.no_grad():
        method.heads[0].bias[0] = 5  # every image's first choice
    assert method.heads[0](rows()).argmax(dim=1).eq(0).all()
    method.reassign(progress(0), embedding())
    for labels in method.labels:
        assert (labels.bincount(minlength=8) - 6).abs().max() <= 1


def test_features_are_of_one_augmented_view_in_training_mode():
    method, batch = make("sela"), batch_of("sela", 48)
    asked = []

    def embed(fn, view, train):
        asked.append((view, train))
        with torch.no_grad():
            found = fn([batch.views[0], torch.full_like(batch.views[0], torch.nan)])
        return Embeddings(found, torch.arange(48), torch.ones(48, dtype=torch.bool))

    method.reassign(progress(0), embed)
    assert asked == [("train", True)]
    assert method.labels.min() >= 0


def test_images_that_were_not_seen_have_no_label():
    method = make("sela")
    method.reassign(progress(0), embedding(shown=40))
    assert method.labels[:, :40].min() >= 0
    assert method.labels[:, 40:].eq(-1).all()


def test_one_head_at_a_time_takes_turns():
    method = make("sela", one_head=True, num_optimizations=5)
    start = method.labels.clone()
    method.reassign(at(0, 299, 100), embedding())
    assert (method.labels != start).any(dim=1).all()  # all of them before the first step
    for step, head in ((25, 1), (100, 0), (225, 1)):
        method.labels.zero_()
        method.reassign(at(step, 299, 100), embedding())
        assert [len(labels.unique()) for labels in method.labels] == ([8, 1] if head == 0 else [1, 8])


def test_streamed_scores_give_the_labels_of_held_ones(monkeypatch):
    held, streamed = make("sela"), make("sela")
    held.reassign(progress(0), embedding())
    monkeypatch.setattr(sela, "_HELD", 0)
    monkeypatch.setattr(sela, "_BLOCK", 8 * 10)
    assert callable(sela.scores_of(streamed.heads[0], rows()))
    streamed.reassign(progress(0), embedding())
    assert torch.equal(held.labels, streamed.labels)


@pytest.mark.slow
def test_two_processes_make_the_labels_of_one(ranks):
    method = make("sela")
    log = method.reassign(progress(0), embedding(shown=43))
    for labels, row_error in ranks.run(renewed_on_a_rank):
        np.testing.assert_array_equal(labels, method.labels.numpy())
        assert row_error == pytest.approx(log["row_error"], rel=1e-3)


def renewed_on_a_rank() -> tuple[np.ndarray, float]:
    method = make("sela")
    log = method.reassign(progress(0), embedding(43, distributed.world_size(), distributed.rank()))
    return method.labels.numpy(), log["row_error"]


def test_assign_is_the_first_heads_prediction():
    method = make("sela").eval()
    found = method.assign(rows())
    p = method.heads[0](rows()).softmax(dim=1)
    assert torch.equal(found.cluster, p.argmax(dim=1))
    assert torch.allclose(found.distance, 1 - p.max(dim=1).values)


def test_more_clusters_than_images_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"--num-prototypes 8 is more than the 6 images; use --num-prototypes 2"):
        make("sela", num_samples=6)


def test_the_kinds_of_pictures_are_found(tiny, tmp_path):
    """Four kinds of pictures in four clusters; the untrained network's clusters are another matter (NMI below 0.4)."""
    tiny("sela", tmp_path / "run", num_prototypes=4, epochs=30, augment="weak")
    table = np.loadtxt(
        tmp_path / "run/clusters.csv", delimiter=",", quotechar='"', skiprows=1, usecols=(0, 2), dtype=int
    )
    assert nmi(table[:, 1], table[:, 0] % 4) > 0.8


def test_the_released_network_is_timms_pre_activation_form():
    """Asano's ResNet-50 has no norm behind its stem, and a norm before each convolution of a block."""
    module = make_backbone("resnetv2_50", channels=3, image_size=64)
    assert [name for name, _ in module.stem.named_children()] == ["conv", "pool"]
    names = [name for name, _ in module.stages[1].blocks[1].named_children() if name[:4] in ("norm", "conv")]
    assert names == ["norm1", "conv1", "norm2", "conv2", "norm3", "conv3"]
    assert module.num_features == 2048
