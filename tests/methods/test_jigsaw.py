"""Jigsaw against its definition in float64, and its puzzles: that a patch order can be read off, and is learned."""

import math

import numpy as np
import pytest
import torch

from selfcluster.methods import METHODS
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Batch, Crops, DatasetInfo
from selfcluster.views.pretext import permutations
from tests.methods.test_contract import batch_of, make, progress

JIGSAW = METHODS["jigsaw"]


def puzzles(count: int, num_permutations: int, size: int = 18, views: int = 1) -> Batch:
    """Images whose nine cells have the gray values 0, 10, ..., 80, as the method's own plan cuts and shuffles them."""
    crops = Crops(global_crops=views, global_size=size, augment="none")
    plan = JIGSAW.views(JIGSAW.Settings(num_permutations=num_permutations), crops, 3)
    cells = torch.arange(9).view(3, 3).repeat_interleave(size // 3, 0).repeat_interleave(size // 3, 1) * 10
    images = cells.to(torch.uint8).expand(count, 3, size, size)
    index = torch.arange(count)
    finished = plan.apply([images] * views, 0, 4, index, (0.0,) * 3, (1.0,) * 3)
    return Batch(finished, index, plan.pretext_labels(0, 4, index))


def test_loss_is_the_cross_entropy_of_the_nine_projections_side_by_side():
    method, batch = make("jigsaw").eval(), batch_of("jigsaw")
    assert batch.views[0].shape[:2] == (8, 9)
    linear, norm, _ = method.projection.double()
    method.classifier.double()
    w, b = method.classifier.weight.detach().numpy(), method.classifier.bias.detach().numpy()
    terms = []
    with torch.no_grad():
        for puzzle, label in zip(batch.views[0], batch.pretext_labels["jigsaw"].tolist(), strict=True):
            side_by_side = []
            for patch in puzzle:
                x = method.encode(patch[None]).double().numpy()[0]
                x = linear.weight.numpy() @ x + linear.bias.numpy()
                x = (x - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
                side_by_side.append(np.maximum(norm.weight.numpy() * x + norm.bias.numpy(), 0))
            logits = w @ np.concatenate(side_by_side) + b
            terms.append(np.log(np.exp(logits).sum()) - logits[label])
        method.float()
        assert method(batch, progress()).loss.item() == pytest.approx(float(np.mean(terms)), abs=1e-5)


def test_the_label_can_be_read_off_the_patches():
    batch = puzzles(64, num_permutations=30)
    (view,) = batch.views
    assert torch.equal(view.amin(dim=(2, 3, 4)), view.amax(dim=(2, 3, 4)))  # each patch lies within its cell
    order = (view[:, :, 0, 0, 0] * 255 / 10).round().long()  # (64, 9): which cell stands in each place
    names = {tuple(row): p for p, row in enumerate(permutations(30).tolist())}
    assert [names[tuple(row)] for row in order.tolist()] == batch.pretext_labels["jigsaw"].tolist()
    assert len(batch.pretext_labels["jigsaw"].unique()) > 15  # of 30


def test_the_puzzles_are_learned():
    method, batch = make("jigsaw").train(), puzzles(32, num_permutations=10)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        output = method(batch, progress())
        output.loss.backward()
        optimizer.step()
    assert output.log["accuracy"].item() > 0.9
    assert output.loss.item() < 0.5 * method.chance_loss()


def test_every_view_of_an_image_has_its_label():
    method, batch = make("jigsaw").eval(), puzzles(8, num_permutations=10, views=2)
    whole = method(batch, progress())
    alone = [method(Batch([view], batch.index, batch.pretext_labels), progress()) for view in batch.views]
    assert whole.loss.item() == pytest.approx(sum(o.loss.item() for o in alone) / 2, abs=1e-6)
    assert torch.allclose(whole.features, alone[0].features, atol=1e-6)


def test_chance_level_and_accuracy_by_hand():
    method, batch = make("jigsaw").eval(), puzzles(40, num_permutations=10)
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.zero_()
        assert method(batch, progress()).loss.item() == pytest.approx(math.log(10), abs=1e-6)
        assert method.chance_loss() == pytest.approx(math.log(10))
        method.classifier.bias[3] = 1.0
        accuracy = method(batch, progress()).log["accuracy"].item()
    assert accuracy == pytest.approx((batch.pretext_labels["jigsaw"] == 3).float().mean().item())


def test_the_number_of_permutations_reaches_the_views():
    plan = JIGSAW.views(JIGSAW.Settings(num_permutations=7), Crops(global_size=32), 3)
    assert (plan.pretext, plan.permutations) == ("jigsaw", 7)


@pytest.mark.parametrize(("size", "patch"), [(32, 8), (255, 64)])
def test_patches_fit_the_stem_of_the_whole_images(size, patch):
    """Of 32 px images a patch is the stride of the small network: one place of its last map."""
    settings = JIGSAW.Settings(num_permutations=10, hidden=8)
    method = JIGSAW(
        lambda **kw: make_backbone("resnet18", channels=3, image_size=size, **kw), settings, DatasetInfo(4, size, 3)
    )
    crops = Crops(global_crops=1, global_size=size, augment="jigsaw")
    plan, index = JIGSAW.views(settings, crops, 3), torch.arange(2)
    views = plan.apply([torch.zeros(2, 3, size, size, dtype=torch.uint8)], 0, 0, index, (0.5,) * 3, (0.25,) * 3)
    assert views[0].shape == (2, 9, 3, patch, patch)
    last = method.backbone.forward_features(views[0][0])
    assert last.shape[-1] == {32: 1, 255: 2}[size]
    assert torch.isfinite(method(Batch(views, index, plan.pretext_labels(0, 0, index)), progress()).loss)
    assert method.encode(torch.zeros(1, 3, size, size)).shape == (1, method.backbone.num_features)


def test_patches_that_the_network_cannot_see_are_refused_before_the_run(tiny, tmp_path):
    message = "vit_tiny_patch16_224 cannot process the patches of 24 px that --image-size 96 gives"
    with pytest.raises(ValueError, match=message):
        tiny("jigsaw", tmp_path / "run", backbone="vit_tiny_patch16_224", image_size=96)


def test_without_flips_no_puzzle_is_mirrored_and_all_else_is_as_it_was():
    """Neither paper mirrors the images; the released code does, half of them."""
    index, size = torch.arange(400).numpy(), torch.full((400,), 300).numpy()
    crops = Crops(global_crops=1, global_size=255, augment="jigsaw")
    plans = [JIGSAW.views(JIGSAW.Settings(flip=flip), crops, 3) for flip in (True, False)]
    released, papers = (plan.boxes(0, 4, index, size, size)[0] for plan in plans)  # each (400, 5), mirrored last
    assert released[:, 4].mean() == pytest.approx(0.5, abs=0.1)
    assert papers[:, 4].sum() == 0
    assert (released[:, :4] == papers[:, :4]).all()
