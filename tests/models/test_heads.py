"""Projection heads and prototypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfcluster.models.heads import ProjectionHead, Prototypes


def test_the_head_of_swav_is_linear_batch_norm_relu_linear():
    head = ProjectionHead(6, 5, 3).double()
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, norm, last = head[0], head[1], head[3]
    hidden = x @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
    expected = hidden.clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"hidden": 0}, [nn.Linear]),
        ({"hidden": 5, "batch_norm": False}, [nn.Linear, nn.ReLU, nn.Linear]),
        ({"hidden": 5, "num_layers": 1}, [nn.Linear]),
        ({"hidden": 5, "num_layers": 3}, [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]),
    ],
)
def test_settings_choose_the_layers(settings, kinds):
    head = ProjectionHead(6, out_dim=3, **settings)
    assert [type(layer) for layer in head] == kinds
    assert head(torch.zeros(2, 6)).shape == (2, 3)


def test_prototypes_give_cosines():
    prototypes = Prototypes(2, 2)
    with torch.no_grad():
        prototypes.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    prototypes.normalize_()
    torch.testing.assert_close(prototypes.weight.detach(), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    torch.testing.assert_close(
        prototypes(torch.tensor([[1.0, 0.0], [0.6, 0.8]])), torch.tensor([[0.6, 0.0], [1.0, -0.8]])
    )


def test_prototypes_start_unit_and_are_normalized_in_place():
    prototypes = Prototypes(7, 11)
    weight = prototypes.weight
    torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(11))
    with torch.no_grad():
        weight.mul_(3)
    prototypes.normalize_()
    assert prototypes.weight is weight  # the optimizer keeps hold of it
    torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(11))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="num_layers=0"):
        ProjectionHead(4, 4, 4, num_layers=0)
    with pytest.raises(ValueError, match="num_prototypes=0"):
        Prototypes(4, 0)
