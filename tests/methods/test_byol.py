"""BYOL against its equation in float64, and what is particular to it: a target of its own, one pass a view."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selfcluster.methods.byol import BYOL, BYOLSettings, byol_loss
from selfcluster.models.backbones import make_backbone
from selfcluster.training.health import Health
from selfcluster.types import Batch, DatasetInfo, Progress
from tests.methods.test_contract import batch_of, make, progress


def small_views(count: int = 2) -> list[torch.Tensor]:
    return [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def equation_2(p: np.ndarray, t: np.ndarray) -> float:
    """Mean squared distance of the predictions and the targets, each scaled to length 1."""
    p, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, t))
    return float(((p - t) ** 2).sum(axis=1).mean())


def test_two_views_are_the_sum_of_both_directions():
    method = make("byol").eval()
    batch = batch_of("byol")
    with torch.no_grad():
        p = [method.predictor(method.projector(method.backbone(v))).double().numpy() for v in batch.views]
        t = [method.target(v).double().numpy() for v in batch.views]
        loss = method(batch, progress()).loss.item()
    assert loss == pytest.approx(equation_2(p[0], t[1]) + equation_2(p[1], t[0]), abs=1e-5)


def test_centering_takes_a_moving_mean_of_the_target_away():
    """Table 5.11: the loss of what lies around the center, which then moves to 0.75 of it and 0.25 of the mean."""
    method = make("byol", centering="center", center_momentum=0.75).eval()
    batch = batch_of("byol")
    with torch.no_grad():
        method.centering.center.copy_(torch.linspace(-1, 1, len(method.centering.center)))
        center = method.centering.center.double().numpy()
        p = [method.predictor(method.projector(method.backbone(v))).double().numpy() for v in batch.views]
        t = [method.target(v).double().numpy() for v in batch.views]
        output = method(batch, progress())
    expected = equation_2(p[0], t[1] - center) + equation_2(p[1], t[0] - center)
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    method.on_step_end(progress(), [output])
    moved = 0.75 * center + 0.25 * np.concatenate(t).mean(axis=0)
    np.testing.assert_allclose(method.centering.center.numpy(), moved, atol=1e-5)
    with pytest.raises(ValueError, match="centering='sinkhorn': choose from none, center"):
        make("byol", centering="sinkhorn")


def test_batch_norm_can_be_left_out_of_the_heads():
    def norms(method):
        heads = (method.projector, method.predictor, method.target_projector)
        return [m for head in heads for m in head.modules() if isinstance(m, nn.BatchNorm1d)]

    assert len(norms(make("byol"))) == 3
    assert norms(make("byol", batch_norm=False)) == []


def test_small_views_predict_and_are_no_targets():
    method = make("byol").eval()
    views = [*batch_of("byol").views, *small_views()]
    asked = []
    method.target_backbone.register_forward_pre_hook(lambda module, args: asked.append(tuple(args[0].shape)))
    with torch.no_grad():
        p = [method.predictor(method.projector(method.backbone(v))).double().numpy() for v in views]
        t = [method.target(v).double().numpy() for v in views[:2]]
        asked.clear()
        loss = method(Batch(views, torch.arange(8)), progress()).loss.item()
    expected = sum(np.mean([equation_2(p[v], t[g]) for v in range(4) if v != g]) for g in (0, 1))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert asked == [(8, 3, 16, 16)] * 2


def test_two_images_by_hand():
    """One prediction at 90 degrees, one exact, in each direction: the mean distance is (2 + 0) / 2, the sum 2."""
    target = torch.eye(2, dtype=torch.float64)
    prediction = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert byol_loss([prediction, prediction], [target, target]).item() == pytest.approx(2.0, abs=1e-12)
    assert byol_loss([-target, -target], [target, target]).item() == pytest.approx(8.0, abs=1e-12)  # the largest


def test_the_views_may_be_swapped():
    method = make("byol").eval()
    batch = batch_of("byol")
    swapped = Batch(batch.views[::-1], batch.index)
    assert method(batch, progress()).loss.item() == pytest.approx(method(swapped, progress()).loss.item(), abs=1e-6)


def test_each_view_has_batch_statistics_of_its_own():
    method = make("byol").train()
    batch = batch_of("byol")
    output = method(batch, progress())
    alone = torch.nn.functional.normalize(method.projector(method.backbone(batch.views[0])), dim=1)
    together = method.projector(method.backbone(torch.cat(batch.views)))[:8]
    assert torch.allclose(output.features, alone, atol=1e-6)
    assert not torch.allclose(output.features, torch.nn.functional.normalize(together, dim=1), atol=1e-3)


def test_the_target_is_initialized_apart():
    method = make("byol")
    for target, online in ((method.target_backbone, method.backbone), (method.target_projector, method.projector)):
        theirs = dict(online.named_parameters())
        weights = {name: p for name, p in target.network.named_parameters() if p.ndim > 1}
        assert weights
        assert all(not torch.equal(p, theirs[name]) for name, p in weights.items())


def test_no_gradient_reaches_the_target():
    method = make("byol")
    method(batch_of("byol"), progress()).loss.backward()
    targets = [*method.target_backbone.parameters(), *method.target_projector.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in targets)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(("step", "tau"), [(0, 0.9), (15, 0.95), (30, 1.0)])
def test_the_target_follows_along_a_cosine(step, tau):
    """tau = 1 - (1 - base) (cos(pi step / steps) + 1) / 2; at 1 the target stays as it is, to the bit."""
    method = make("byol", teacher_momentum=0.9)
    pairs = [
        *zip(method.target_backbone.network.parameters(), method.backbone.parameters(), strict=True),
        *zip(method.target_projector.network.parameters(), method.projector.parameters(), strict=True),
    ]
    before = [(t.clone(), o.clone()) for t, o in pairs]
    method.on_step_end(Progress(step, 30, step // 3, 3, 0), [])
    for (t, o), (was, online) in zip(pairs, before, strict=True):
        assert torch.equal(o, online)
        assert torch.allclose(t, tau * was + (1 - tau) * o, atol=1e-6)
        assert tau < 1 or torch.equal(t, was)


@pytest.mark.parametrize("step", [0, 29])
def test_without_momentum_the_target_is_a_copy_throughout(step):
    method = make("byol", teacher_momentum=0.0)
    method.on_step_end(Progress(step, 30, step // 3, 3, 0), [])
    for target, online in ((method.target_backbone, method.backbone), (method.target_projector, method.projector)):
        theirs = dict(online.named_parameters())
        assert all(torch.equal(p, theirs[name]) for name, p in target.network.named_parameters())


def test_spread_is_1_for_all_directions_and_0_after_a_collapse():
    method = make("byol").eval()
    batch = batch_of("byol")
    assert 0 < method(batch, progress()).log["spread"].item() <= 1
    with torch.no_grad():
        method.projector[0].weight.zero_()
        method.projector[0].bias.fill_(1.0)
    assert method(batch, progress()).log["spread"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("predictor", [True, False])
def test_collapse_without_the_predictor_is_said_in_words(predictor):
    """Views that share little: without the predictor all features become one, with it they do not."""
    verdict, spread = trained(predictor)
    if predictor:
        assert verdict is None
        assert spread > 0.5
    else:
        assert "all images look alike" in str(verdict)
        assert "--predictor" in str(verdict)
        assert spread < 0.05


def trained(predictor: bool, steps: int = 200) -> tuple[str | None, float]:
    """Health's verdict and the features' spread after some steps on 48 noisy images."""

    def layer(**kw):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU())
        network.num_features = 64
        return network

    torch.manual_seed(0)
    settings = BYOLSettings(dim=16, hidden=32, predictor=predictor, teacher_momentum=0.9)
    method = BYOL(layer, settings, DatasetInfo(48, 8, 3))
    health = Health(None, method.chance_loss(), 0, steps, method.advice)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.03)
    images, index = torch.randn(48, 3, 8, 8), torch.arange(48)
    verdict, spread = None, math.nan
    for step in range(steps):
        at = Progress(step, steps, step // 3, 3, 0)
        output = method(Batch([images + 4 * torch.randn_like(images) for _ in range(2)], index), at)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.on_step_end(at, [output])
        spread = output.log["spread"].item()
        health.see(step, {"loss": output.loss.item()}, [output], sample=True)
        if step % 20 == 19:
            verdict = health.verdict(health.report())
    return verdict, spread


def test_batch_norm_and_biases_take_plain_steps():
    weights, flat = make("byol").groups()
    assert weights.layerwise_adaptation
    assert weights.weight_decay is None
    assert not flat.layerwise_adaptation
    assert flat.weight_decay == 0
    assert {p.ndim for p in flat.params} == {1}


def test_a_transformer_and_small_views():
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    method = BYOL(vit, BYOLSettings(hidden=32), DatasetInfo(48, 16, 3))
    output = method(Batch([*batch_of("byol").views, *small_views()], torch.arange(8)), progress())
    output.loss.backward()
    method.on_step_end(progress(), [output])
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_a_batch_is_the_mean_of_its_halves():
    """So `--accumulate` may be used; batch norm sees the small batches."""
    torch.manual_seed(0)
    rows = [F.normalize(torch.randn(8, 5), dim=1) for _ in range(5)]
    halves = [byol_loss([r[s] for r in rows[:3]], [r[s] for r in rows[3:]]) for s in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.stack(halves).mean(), byol_loss(rows[:3], rows[3:]))
