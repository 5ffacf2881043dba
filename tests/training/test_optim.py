"""Rates by hand, and LARC and LARS against their formulas in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from selfcluster.training.optim import (
    LARC,
    forget,
    learning_rate_at,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_rates,
    weight_decay_at,
)
from selfcluster.types import Group, Progress, Training


def at(step: int, total: int = 100, per_epoch: int = 10) -> Progress:
    return Progress(step, total, step // per_epoch, per_epoch, 0)


def test_warm_up_and_cosine_by_hand():
    t = Training(learning_rate=1.0, final_learning_rate=0.1, warmup_epochs=2, warmup_learning_rate=0.5)
    assert learning_rate_at(t, at(0)) == 0.5
    assert learning_rate_at(t, at(10)) == 0.75
    assert learning_rate_at(t, at(20)) == 1.0
    assert learning_rate_at(t, at(60)) == pytest.approx(0.55)  # half-way between 1.0 and 0.1
    assert learning_rate_at(t, at(99)) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 79 / 80)) / 2)


def test_constant_step_and_multistep_by_hand():
    assert learning_rate_at(Training(learning_rate=0.3, schedule="constant"), at(77)) == 0.3
    step = Training(learning_rate=1.0, schedule="step", milestones=(3,), drop=0.5)
    assert [learning_rate_at(step, at(s)) for s in (0, 29, 30, 60, 90)] == [1, 1, 0.5, 0.25, 0.125]
    multi = Training(learning_rate=1.0, schedule="multistep", milestones=(2, 8), drop=0.1)
    rates = [learning_rate_at(multi, at(s)) for s in (19, 20, 79, 80)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_a_warm_up_longer_than_the_run_ends_with_it():
    t = Training(learning_rate=1.0, warmup_epochs=50)
    assert learning_rate_at(t, at(50)) == 0.5


def test_weight_decay_follows_a_cosine():
    assert weight_decay_at(Training(weight_decay=0.2), at(50)) == 0.2
    t = Training(weight_decay=0.04, final_weight_decay=0.4)
    assert weight_decay_at(t, at(0)) == pytest.approx(0.04)
    assert weight_decay_at(t, at(50)) == pytest.approx(0.22)


def reference_steps(w, grads, lr, m, wd, lars, adapt=True, trust=0.001):
    """The formulas of the module's header, one parameter, float64."""
    v = np.zeros_like(w)
    for g in grads:
        wn, gn = np.linalg.norm(w), np.linalg.norm(g)
        if not adapt:
            update = g + wd * w
        elif lars:
            d = g + wd * w
            dn = np.linalg.norm(d)
            update = d * (trust * wn / dn if wn > 0 and dn > 0 else 1.0)
        elif wn > 0 and gn > 0:
            update = (g + wd * w) * trust * wn / (gn + wd * wn + 1e-8)
        else:
            update = g
        v = m * v + update
        w = w - lr * v
    return w


@pytest.mark.parametrize("lars", [False, True])
@pytest.mark.parametrize("kind", ["plain", "zero weight", "zero gradient", "not adapted"])
def test_layer_wise_rates_against_the_formulas(lars, kind):
    rng = np.random.default_rng(0)
    w = np.zeros(6) if kind == "zero weight" else rng.normal(size=6)
    grads = [rng.normal(size=6) for _ in range(4)]
    if kind == "zero gradient":
        grads[0] = np.zeros(6)
    p = nn.Parameter(torch.tensor(w))
    adapt = kind != "not adapted"
    optimizer = LARC(
        [{"params": [p], "layerwise_adaptation": adapt}], lr=0.3, momentum=0.9, weight_decay=0.1, lars=lars
    )
    for g in grads:
        p.grad = torch.tensor(g)
        optimizer.step()
    expected = reference_steps(w, grads, 0.3, 0.9, 0.1, lars, adapt)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_gradient_stays():
    p = nn.Parameter(torch.ones(3))
    optimizer = LARC([p], lr=1.0, weight_decay=0.5)
    optimizer.step()
    assert p.eq(1).all()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "larc", "lars"])
def test_groups_keep_their_own_values_and_state_travels_by_name(kind):
    def build():
        torch.manual_seed(0)
        module = Two()
        groups = [Group(module.body.parameters()), Group(module.head.parameters(), momentum=0.0, weight_decay=0.0)]
        return module, make_optimizer(groups, Training(optimizer=kind, learning_rate=0.1, weight_decay=0.01))

    def advance(module, optimizer, steps):
        for i in range(steps):
            torch.manual_seed(i)
            for p in module.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()

    module, optimizer = build()
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    set_rates(optimizer, 0.05, 0.02)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.02, 0.0]
    advance(module, optimizer, 3)
    stored = {k: v.clone() for k, v in optimizer_tensors(optimizer, module).items()}
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    advance(module, optimizer, 2)

    again, other = build()
    again.load_state_dict(weights)
    set_rates(other, 0.05, 0.02)
    load_optimizer_tensors(other, again, stored)
    advance(again, other, 2)
    for key, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key

    forget(other, again, ["head.weight"])
    left = optimizer_tensors(other, again)
    assert left
    assert not any(key.startswith("head.weight") for key in left)


@pytest.mark.parametrize("rate", [0.001, 0.01, 2.0])
def test_clipped_local_rates_against_solo_learns_formula(rate):
    """One step: the scale is min(eta |w| / (|g| + decay |w|) / lr, 1), so that lr times it is bounded."""
    rng = np.random.default_rng(1)
    w, g, eta, decay = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), 0.02, 0.1
    local = eta * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w) + 1e-8)
    expected = w - rate * min(local / rate, 1.0) * (g + decay * w)
    p = nn.Parameter(torch.tensor(w))
    p.grad = torch.tensor(g)
    LARC([p], lr=rate, momentum=0.0, weight_decay=decay, trust=eta, clip_rate=True).step()
    assert np.allclose(p.detach().numpy(), expected, rtol=1e-6)


def test_flat_parameters_are_left_out_of_scaling_and_decay():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    training = Training(optimizer="larc", weight_decay=0.5, exclude_flat=True, trust_coefficient=0.02)
    optimizer = make_optimizer([Group([weight, bias])], training)
    flat, other = sorted(optimizer.param_groups, key=lambda group: group["params"][0].ndim)
    assert (flat["weight_decay"], flat["layerwise_adaptation"]) == (0.0, False)
    assert (other["weight_decay"], other["layerwise_adaptation"]) == (0.5, True)
    assert optimizer.trust == 0.02
    weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    set_rates(optimizer, 1.0, 0.5)
    optimizer.step()
    assert bias.tolist() == [0.0, 0.0]  # a plain step
    assert torch.allclose(weight, torch.full((2, 2), 1 - 0.02 * 2 / (2 + 0.5 * 2) * 1.5))


def test_the_released_warm_up_ends_one_step_earlier():
    """SwAV's first epochs: 10 epochs of 312 steps from 0.3 to 4.8. np.linspace has s / (W - 1), here s / W."""
    steps = 3120
    training = Training(learning_rate=4.8, warmup_learning_rate=0.3, warmup_epochs=10)
    here = [learning_rate_at(training, Progress(s, 100 * 312, s // 312, 312, 0)) for s in (0, 1560, steps - 1, steps)]
    released = np.linspace(0.3, 4.8, steps)
    assert here == pytest.approx([0.3, 2.55, 4.8 - 4.5 / steps, 4.8])
    assert released[1560] - here[1] == pytest.approx(4.5 * 1560 / (steps * (steps - 1)))  # 0.03 % of 2.55
