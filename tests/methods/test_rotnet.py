"""RotNet: its loss in float64, labels that can be read off the images, and its two other forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from selfcluster.methods.rotnet import RotNet, RotNetSettings
from selfcluster.types import Batch, Crops, DatasetInfo
from tests.methods.test_contract import batch_of, make, progress


class Keeper(nn.Module):
    """A network that keeps what it is shown."""

    num_features = 3

    def forward(self, images):
        self.shown = images
        return images.mean(dim=(2, 3))


def bright_on_top(settings: RotNetSettings, count: int = 400) -> tuple[RotNet, Batch]:
    """Random crops of a picture whose upper rows are brighter: which side is bright tells how it was turned."""
    ramp = torch.linspace(240, 10, 16).view(1, 1, 16, 1).expand(count, 3, 16, 16).to(torch.uint8)
    method = RotNet(lambda: Keeper(), settings, DatasetInfo(count, 16, 3))
    plan = RotNet.views(settings, Crops(global_crops=1, global_size=16, augment="weak"), 3)
    index = torch.arange(count)
    return method, Batch(
        plan.apply([ramp], 0, 6, index, (0.5,) * 3, (0.25,) * 3), index, plan.pretext_labels(0, 6, index)
    )


def bright_side(images: torch.Tensor) -> torch.Tensor:
    """Quarter turns anticlockwise that bring the top to the bright side: top 0, left 1, bottom 2, right 3."""
    sides = [images[:, :, 0], images[:, :, :, 0], images[:, :, -1], images[:, :, :, -1]]
    return torch.stack([side.mean(dim=(1, 2)) for side in sides]).argmax(dim=0)


def test_loss_is_the_mean_cross_entropy_of_the_turns():
    method, batch = make("rotnet").eval(), batch_of("rotnet")
    with torch.no_grad():
        output = method(batch, progress())
        features = method.encode(batch.views[0]).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in (method.classifier.weight, method.classifier.bias))
    logits = np.maximum(features, 0) @ weight.T + bias
    turns = batch.pretext_labels["rotation"].numpy()
    by_hand = np.mean([np.log(np.exp(row).sum()) - row[turn] for row, turn in zip(logits, turns, strict=True)])
    assert output.loss.item() == pytest.approx(by_hand, abs=1e-5)
    assert output.log["accuracy"].item() == pytest.approx(np.mean(logits.argmax(axis=1) == turns))


def test_the_turn_can_be_read_off_what_the_network_sees():
    method, batch = bright_on_top(RotNetSettings())
    method(batch, progress())
    assert torch.equal(bright_side(method.backbone.shown), batch.pretext_labels["rotation"])
    assert batch.pretext_labels["rotation"].bincount(minlength=4).min() > 60  # 400 draws of four


def test_flipping_after_rotating_mixes_up_the_quarter_turns():
    method, batch = bright_on_top(RotNetSettings(rotate_first=True))
    method(batch, progress())
    seen, turns = bright_side(method.backbone.shown), batch.pretext_labels["rotation"]
    for turn in (0, 2):
        assert (seen[turns == turn] == turn).all()
    for turn in (1, 3):
        right = (seen[turns == turn] == turn).float().mean()
        assert 0.3 < right < 0.7
        assert set(seen[turns == turn].tolist()) == {1, 3}


def test_all_rotations_are_four_batches_of_one_rotation_each():
    upright = batch_of("rotnet")
    upright = Batch([torch.rot90(upright.views[0], 1, (2, 3))], upright.index)
    method = make("rotnet", all_rotations=True).eval()
    single = make("rotnet").eval()
    single.load_state_dict(method.state_dict())
    with torch.no_grad():
        together = method(upright, progress()).loss.item()
        apart = []
        for turn in range(4):
            turned = torch.rot90(upright.views[0], turn, (2, 3))
            labels = {"rotation": torch.full((8,), turn)}
            apart.append(single(replace(upright, views=[turned], pretext_labels=labels), progress()).loss.item())
    assert together == pytest.approx(np.mean(apart), abs=1e-6)
    assert RotNet.views(RotNetSettings(all_rotations=True), Crops(), 3).pretext is None


def test_without_knowledge_the_loss_is_ln_4():
    method, batch = make("rotnet"), batch_of("rotnet")
    nn.init.zeros_(method.classifier.weight)
    nn.init.zeros_(method.classifier.bias)
    assert method(batch, progress()).loss.item() == pytest.approx(math.log(4), abs=1e-6)
    assert method.chance_loss() == pytest.approx(math.log(4))


def test_the_networks_own_dropout_is_a_setting():
    made = []
    RotNet(lambda **create: made.append(create) or Keeper(), RotNetSettings(), DatasetInfo(4, 16, 3))
    settings = RotNetSettings(network_dropout=0.3)
    RotNet(lambda **create: made.append(create) or Keeper(), settings, DatasetInfo(4, 16, 3))
    assert made == [{}, {"drop_rate": 0.3}]
