from dataclasses import dataclass

import numpy as np
import pytest
import torch

from selfcluster import randomness
from selfcluster.types import Crops
from selfcluster.views import crops, pretext
from selfcluster.views.augmentations import AUGMENTATIONS, plan_from_crops, register_augmentation
from selfcluster.views.color import Color
from selfcluster.views.geometry import Affine
from selfcluster.views.plans import ViewGroup, ViewPlan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"global_size": 16, "local_size": 12, "local_crops": 2}


def images(count: int, channels: int = 3, side: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def make_views(plan: ViewPlan, x: torch.Tensor, index: np.ndarray, seed: int = 0, step: int = 3, raw: bool = False):
    """What a in_memory loader does: boxes, cut, finish."""
    side = np.full(len(index), x.shape[2])
    boxes = plan.boxes(seed, step, index, side, side)
    cut = [
        crops.cut_batch(x[index], torch.from_numpy(b), group.size, group.interpolation)
        for b, group in zip(boxes, plan.views, strict=True)
    ]
    channels = x.shape[1]
    return cut if raw else plan.apply(cut, seed, step, torch.from_numpy(index), MEAN[:channels], STD[:channels])


def test_views_and_sizes_follow_the_groups_in_order():
    plan = plan_from_crops(Crops(global_crops=2, local_crops=6, global_size=224, local_size=96))
    assert plan.num_views == 8
    assert plan.sizes == (224, 224, 96, 96, 96, 96, 96, 96)
    assert [g.scale for g in plan.groups] == [(0.08, 1.0), (0.05, 0.14)]


def test_normalizing_by_hand_for_uint8_and_float():
    plan = ViewPlan(groups=(ViewGroup(size=2),))
    x = images(3, side=2)
    expected = (x.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for given in (x, x.float()):
        (view,) = plan.apply([given], 0, 0, torch.arange(3), MEAN, STD)
        torch.testing.assert_close(view, expected.float())
        assert view.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_depends_on_its_sample_alone(name, channels):
    plan = plan_from_crops(Crops(augment=name, **SMALL), channels)
    x, index = images(12, channels), np.arange(12)
    whole = make_views(plan, x, index)
    halves = [make_views(plan, x, half) for half in (index[:5], index[5:])]  # as two processes share a batch
    mixed = make_views(plan, x, np.array([7, 11, 7, 2]))
    for view, first, second, other in zip(whole, *halves, mixed, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), view, atol=1e-5, rtol=0)
        torch.testing.assert_close(other, view[[7, 11, 7, 2]], atol=1e-5, rtol=0)
        assert view.isfinite().all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_finish_never_edits_its_input(name):
    plan = plan_from_crops(Crops(augment=name, **SMALL))
    x, index = images(6), torch.arange(6)
    cut = make_views(plan, x, np.arange(6), raw=True)
    for views in (cut, [v.to(torch.uint8) for v in cut]):
        before = [v.clone() for v in views]
        plan.apply(views, 0, 3, index, MEAN, STD)
        assert all(torch.equal(v, b) for v, b in zip(views, before, strict=True))


@pytest.mark.parametrize("name", ["swav", "byol", "npid", "odc", "layout"])
def test_the_device_is_never_waited_for(name):
    """Meta tensors have no values: whatever reads one back, or mixes devices, raises."""
    plan = plan_from_crops(Crops(augment=name, **SMALL))
    x = images(6).to("meta")
    boxes = plan.boxes(0, 3, np.arange(6), np.full(6, 20), np.full(6, 20))
    cut = [crops.cut_batch(x, torch.from_numpy(b), size) for b, size in zip(boxes, plan.sizes, strict=True)]
    for pretext_name in (None, "rotation", "jigsaw"):
        whole = ViewPlan(groups=plan.groups, pretext=pretext_name, permutations=3)
        views = whole.apply(cut, 0, 3, torch.arange(6), MEAN, STD)
        assert {view.device.type for view in views} == {"meta"}


def test_one_float_view_is_not_edited_either():
    plan = ViewPlan(groups=(ViewGroup(size=20),))
    x = images(2).float()
    before = x.clone()
    plan.apply([x], 0, 0, torch.arange(2), MEAN, STD)
    assert torch.equal(x, before)


def test_an_empty_share_gives_empty_views():
    for name in ("byol", "layout"):
        plan = plan_from_crops(Crops(augment=name, **SMALL))
        assert [v.shape for v in make_views(plan, images(3), np.arange(0))] == [(0, 3, s, s) for s in plan.sizes]


def test_seed_step_and_view_give_other_views_and_the_same_ones_again():
    plan = plan_from_crops(Crops(**SMALL))
    x, index = images(8), np.arange(8)
    base = make_views(plan, x, index)
    assert all(torch.equal(a, b) for a, b in zip(base, make_views(plan, x, index), strict=True))
    assert (base[0] - base[1]).abs().max() > 0.5
    assert (base[0] - make_views(plan, x, index, step=4)[0]).abs().max() > 0.5
    assert (base[0] - make_views(plan, x, index, seed=1)[0]).abs().max() > 0.5


def test_groups_of_one_size_share_a_batch_but_not_their_colors():
    groups = (
        ViewGroup(size=16, color=Color(solarize_p=1.0)),
        ViewGroup(size=16, color=Color(gray_p=1.0)),
        ViewGroup(size=16),
    )
    views = [images(4, side=16).float() for _ in groups]
    first, second, third = ViewPlan(groups=groups).apply(views, 0, 0, torch.arange(4), (0, 0, 0), (1, 1, 1))
    assert first.max() < 128 / 255
    assert torch.equal(second[:, 0], second[:, 1])
    torch.testing.assert_close(third * 255, views[2])


def test_byols_first_view_is_always_blurred_and_the_second_is_solarized():
    first, second = plan_from_crops(Crops(augment="byol")).groups
    assert (first.count, second.count) == (1, 1)
    assert first.color == Color(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=1.0)
    assert second.color == Color(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.1, solarize_p=0.2)
    assert [g.count for g in plan_from_crops(Crops(augment="dino", global_crops=1, local_crops=8)).groups] == [1, 8]


def test_the_color_set_is_swavs_and_layout_has_no_color():
    assert plan_from_crops(Crops(augment="color")) == plan_from_crops(Crops(augment="swav"))
    (group,) = plan_from_crops(Crops(augment="layout"), channels=1).groups
    assert group.scale is None
    assert group.flip_p == 0
    assert group.affine is not None
    assert group.color is not None
    assert group.color.jitter_p == group.color.gray_p == group.color.blur_p == 0


def test_the_set_that_changes_nothing_resizes_the_whole_image():
    plan = plan_from_crops(Crops(augment="none", global_size=20))
    x = images(3)
    for view in make_views(plan, x, np.arange(3)):
        expected = plan.apply([x, x], 0, 0, torch.arange(3), MEAN, STD)[0]
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_rotation_is_drawn_a_sample_and_recoverable_after_the_flip():
    groups = (ViewGroup(size=20, scale=None, flip_p=0.5),)
    plan, still = ViewPlan(groups=groups, pretext="rotation"), ViewPlan(groups=groups)
    x, index = images(400, side=20), np.arange(400)
    turned, upright = make_views(plan, x, index)[0], make_views(still, x, index)[0]
    drawn = plan.pretext_labels(0, 3, torch.from_numpy(index))
    assert list(drawn) == ["rotation"]
    back = torch.stack([torch.rot90(t, -int(k), (1, 2)) for t, k in zip(turned, drawn["rotation"], strict=True)])
    assert torch.equal(back, upright)
    assert (torch.bincount(drawn["rotation"], minlength=4) - 100).abs().max() < 45
    assert still.pretext_labels(0, 3, torch.from_numpy(index)) == {}


def test_jigsaw_gives_nine_patches_and_the_order_it_chose():
    base = plan_from_crops(Crops(augment="jigsaw", global_crops=1, global_size=30))
    plan = ViewPlan(groups=base.groups, pretext="jigsaw", permutations=5)
    x, index = images(6, side=40), np.arange(6)
    (patches,) = make_views(plan, x, index)
    assert patches.shape == (6, 9, 3, 8, 8)
    label = plan.pretext_labels(0, 3, torch.from_numpy(index))["jigsaw"]
    assert label.min() >= 0
    assert label.max() < 5
    (whole,) = make_views(base, x, index)
    order = pretext.permutations(5)[label]
    for b in range(6):  # the patch in place k comes from the cell that the order says
        for k, cell in enumerate(order[b].tolist()):
            top, left = cell // 3 * 10, cell % 3 * 10
            pieces = whole[b, :, top : top + 10, left : left + 10].unfold(1, 8, 1).unfold(2, 8, 1)
            match = (pieces == patches[b, k][:, None, None]).flatten(3).all(3).all(0)
            assert match.any()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"--augment swvav: unknown; did you mean swav\?"):
        plan_from_crops(Crops(augment="swvav"))
    with pytest.raises(ValueError, match="--global-crops 0"):
        plan_from_crops(Crops(global_crops=0))
    with pytest.raises(ValueError, match="pretext='rotate'"):
        ViewPlan(groups=(ViewGroup(),), pretext="rotate")
    plan = ViewPlan(groups=(ViewGroup(size=8, count=2, affine=Affine()),))
    with pytest.raises(ValueError, match="2 views, but 1 were given"):
        plan.apply([images(1)], 0, 0, torch.arange(1), MEAN, STD)
    with pytest.raises(ValueError, match=r"views of \[1, 2\] images for an index of 1"):
        plan.apply([images(1), images(2)], 0, 0, torch.arange(1), MEAN, STD)
    with pytest.raises(ValueError, match="not 3 numbers each"):
        plan.apply([images(1)] * 2, 0, 0, torch.arange(1), (0.5,), (0.5,))


@dataclass(frozen=True, kw_only=True)
class Invert:
    """A further operation: a share `p` of the samples is inverted."""

    p: float
    name = "invert"
    uniforms = 1

    def apply(self, x: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return torch.where(uniforms[:, 0, None, None, None] < self.p, 255 - x, x)


def test_a_further_operation_runs_with_draws_of_its_own_and_by_name(monkeypatch):
    monkeypatch.setattr("selfcluster.views.augmentations.AUGMENTATIONS", dict(AUGMENTATIONS))
    group = ViewGroup(scale=None, flip_p=0.0, operations=(Invert(p=0.5),))
    register_augmentation("inverted", lambda: (group, group, group))
    with pytest.raises(ValueError, match="'inverted' exists already"):
        register_augmentation("inverted", lambda: (group, group, group))
    plan = plan_from_crops(Crops(augment="inverted", global_size=4), 3)
    x = torch.full((64, 3, 4, 4), 200, dtype=torch.uint8)
    index = torch.arange(64)
    first, second = plan.apply([x, x], 0, 5, index, (0.0,) * 3, (1.0,) * 3)
    expected = randomness.draw(0, "invert", 5, index, 0, 1)[:, 0] < 0.5
    torch.testing.assert_close(first[:, 0, 0, 0] * 255, torch.where(expected, 55.0, 200.0))
    assert not torch.equal(first, second)
    alone = plan.apply([x[7:8], x[7:8]], 0, 5, index[7:8], (0.0,) * 3, (1.0,) * 3)[0]
    assert torch.equal(alone[0], first[7])
