"""DINO against its equations in float64, and what is particular to it: teacher, center, temperature, frozen layer."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selfcluster.methods.dino import DINO, DINOSettings, Objective
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Batch, Crops, DatasetInfo, Progress
from tests.methods.test_contract import batch_of, make, progress


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def equation_3(teacher: list[np.ndarray], student: list[np.ndarray], center: np.ndarray, t_t: float, t_s: float):
    """Mean over the pairs of another view of H(P_t, P_s), after algorithm 1."""
    terms = []
    for i, t in enumerate(teacher):
        q = softmax((t - center) / t_t)
        terms += [-(q * np.log(softmax(s / t_s))).sum(axis=1).mean() for j, s in enumerate(student) if i != j]
    return float(np.mean(terms))


def outputs_of(method, batch):
    """Outputs of teacher and student, one view at a time, in float64."""
    with torch.no_grad():
        teacher = [method.teacher_head(method.teacher(v))[1].double().numpy() for v in batch.views[:2]]
        student = [method.head(method.backbone(v))[1].double().numpy() for v in batch.views]
    return teacher, student


def small_views(batch: Batch) -> Batch:
    return Batch([*batch.views, batch.views[0][..., :8, :8], batch.views[1][..., 8:, 8:]], batch.index)


def disturb(method) -> None:
    """Make the teacher another network than the student, and the center something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in [*method.teacher.parameters(), *method.teacher_head.parameters()]:
            p.add_(0.1 * torch.randn_like(p))
        method.objective.centering.center.normal_(std=0.1)


def test_loss_is_equation_3_over_all_views():
    method = make("dino").eval()
    disturb(method)
    batch = small_views(batch_of("dino"))
    teacher, student = outputs_of(method, batch)
    center = method.objective.centering.center.double().numpy()
    at = progress()  # epoch 2 of 30: tau_t has risen by 2 / 30 of its way
    t_t = 0.04 + 0.03 * 2 / 30
    expected = equation_3(teacher, student, center, t_t, 0.1)
    with torch.no_grad():
        output = method(batch, at)
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    q = softmax((teacher[0] - center) / t_t)
    assert output.codes.tolist() == q.argmax(axis=1).tolist()
    both = np.concatenate([q, softmax((teacher[1] - center) / t_t)])
    entropy = -(both * np.log(both)).sum(axis=1).mean()
    assert output.log["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-5)
    assert output.log["divergence"].item() == pytest.approx(expected - entropy, abs=1e-5)


def test_two_samples_by_hand():
    """Two outputs. Teacher (1, 0) with center (0.5, 0) and tau_t = 0.5 is softmax(1, 0); the student (0, 0) gives
    every output one half, so its cross-entropy is ln 2 whatever the target; (0, ln 2 / 10) gives (1, 2) / 3."""
    objective = Objective(2, "cross_entropy", "center", 0.1, 0.9)
    objective.centering.center.copy_(torch.tensor([0.5, 0.0]))
    target = objective.target(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), 0.5)
    sigma = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(target, torch.tensor([[sigma, 1 - sigma], [0.5, 0.5]]))
    flat = torch.zeros(2, 2)
    assert objective.compare(target, flat).item() == pytest.approx(math.log(2))
    student = torch.tensor([[0.0, math.log(2) / 10], [0.0, 0.0]])
    first = sigma * math.log(3) + (1 - sigma) * math.log(1.5)
    assert objective.compare(target, student).item() == pytest.approx((first + math.log(2)) / 2, abs=1e-6)
    # the center moves a tenth of the way to the mean (0.75, 0)
    objective.update(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    torch.testing.assert_close(objective.centering.center, torch.tensor([0.525, 0.0]))


def test_squared_error_and_contrast_by_hand():
    """Unit rows at a right angle are 2 apart, equal ones 0; the contrast of two orthogonal pairs at tau = 1 is
    ln(1 + e) - 1 each."""
    outputs = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    mse = Objective(2, "mse", "none", 0.1, 0.9)
    assert mse.compare(mse.target(outputs, 0.04), outputs).item() == pytest.approx(0)
    assert mse.compare(mse.target(outputs, 0.04), outputs.flip(0)).item() == pytest.approx(2)
    nce = Objective(2, "infonce", "none", 1.0, 0.9)
    loss = nce.compare(nce.target(outputs, 0.04), 3 * outputs).item()
    assert loss == pytest.approx(math.log(1 + math.e) - 1, abs=1e-6)
    centered = Objective(2, "mse", "center", 0.1, 0.9)
    centered.centering.center.copy_(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(centered.target(outputs[:1], 0.04), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("centering", ["sinkhorn", "softmax"])
def test_balanced_targets(centering):
    objective = Objective(3, "cross_entropy", centering, 0.1, 0.9)
    scores = torch.randn(6, 3) * 0.1
    codes = objective.target(scores, 0.05)
    kernel = np.exp(scores.double().numpy() / 0.05)
    for _ in range(3 if centering == "sinkhorn" else 1):
        kernel /= kernel.sum(axis=0, keepdims=True)
        kernel /= kernel.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(codes.numpy(), kernel, atol=1e-5)
    objective.update(scores)
    assert not objective.centering.center.any(), "no center there"


def test_the_center_moves_after_the_loss_and_over_all_micro_batches():
    method, batch = make("dino"), batch_of("dino")
    before = method.objective.centering.center.clone()
    whole = method(batch, progress())
    assert torch.equal(method.objective.centering.center, before)
    mean = whole.state.mean(dim=0)
    first, second = (type(whole)(whole.loss, state=rows) for rows in (whole.state[:5], whole.state[5:]))
    method.on_step_end(progress(), [first, second])
    torch.testing.assert_close(method.objective.centering.center, 0.1 * mean, atol=1e-6, rtol=1e-5)


def test_the_teacher_sees_full_views_only_and_takes_no_gradient():
    method, batch = make("dino"), small_views(batch_of("dino"))
    seen = []
    method.teacher.network.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    output = method(batch, progress())
    output.loss.backward()
    assert seen == [(16, 3, 16, 16)]
    assert output.state.shape == (16, 16)
    assert not output.state.requires_grad
    assert all(p.grad is None for name, p in method.named_parameters() if name.startswith("teacher"))
    for trained in (method.backbone, method.head):
        assert all(p.grad is not None for p in trained.parameters() if p.requires_grad)


def test_teacher_and_student_start_alike():
    method = make("dino", fixed_norm=False)
    for module, teacher in ((method.backbone, method.teacher), (method.head, method.teacher_head)):
        own = teacher.network.state_dict()
        assert own.keys() == module.state_dict().keys()
        assert all(torch.equal(own[name], value) for name, value in module.state_dict().items())


def step_of(method, step: int, per_epoch: int = 3):
    """The weights before the step, and one step of plain gradient descent with the loop's calls."""
    at = Progress(step, 30, step // per_epoch, per_epoch, 0)
    before = [p.detach().clone() for p in method.backbone.parameters()]
    method.zero_grad()
    output = method(batch_of("dino"), at)
    output.loss.backward()
    method.on_backward(at)
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad
    method.on_step_end(at, [output])
    return before


def test_the_momentum_teacher_follows_along_the_cosine():
    method = make("dino")
    for step in (0, 10):
        old = [p.clone() for p in method.teacher.parameters()]
        step_of(method, step)
        m = 1 - 0.1 * (math.cos(math.pi * step / 30) + 1) / 2  # teacher_momentum is 0.9 here
        new = zip(method.teacher.parameters(), old, method.backbone.parameters(), strict=True)
        for now, before, student in new:
            torch.testing.assert_close(now, m * before + (1 - m) * student, atol=1e-6, rtol=1e-5)


def test_at_momentum_one_the_teacher_stays():
    method = make("dino", teacher_momentum=1.0)
    old = [p.clone() for p in (*method.teacher.parameters(), *method.teacher_head.parameters())]
    step_of(method, 10)
    now = [*method.teacher.parameters(), *method.teacher_head.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(old, now, strict=True))


def test_other_teachers_are_earlier_students():
    """At each step: the student as it is (copy), as it was before the last step, or at the end of the last epoch."""
    for kind, back in (("copy", lambda step: step), ("iteration", lambda step: step - 1)):
        method = make("dino", teacher_rule=kind)
        students = []
        for step in range(5):
            now = [p.clone() for p in method.teacher.parameters()]
            students.append(step_of(method, step))
            expected = students[max(0, back(step))]
            assert all(torch.equal(a, b) for a, b in zip(now, expected, strict=True)), (kind, step)
    method = make("dino", teacher_rule="epoch")
    students = []
    for step in range(7):
        now = [p.clone() for p in method.teacher.parameters()]
        students.append(step_of(method, step))
        assert all(torch.equal(a, b) for a, b in zip(now, students[step // 3 * 3], strict=True)), step


def test_the_last_layer_is_frozen_at_first():
    method = make("dino", freeze_epochs=1.0, fixed_norm=False)
    start = [p.detach().clone() for p in method.head.last.parameters()]
    for step in range(3):
        step_of(method, step)
    assert all(torch.equal(a, b) for a, b in zip(start, method.head.last.parameters(), strict=True))
    step_of(method, 3)
    assert not any(torch.equal(a, b) for a, b in zip(start, method.head.last.parameters(), strict=True))


def test_the_teachers_temperature_rises_and_stays():
    method = make("dino", teacher_warmup_epochs=4.0)
    at = [method.teacher_temperature(Progress(step, 100, step // 5, 5, 0)) for step in (0, 10, 20, 90)]
    assert at == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert make("dino", teacher_warmup_epochs=0.0).teacher_temperature(progress(0)) == pytest.approx(0.07)


def test_chance_level():
    """A student that says the same of everything has the loss ln K, whatever the teacher."""
    method = make("dino")
    with torch.no_grad():
        method.head.last.direction.copy_(method.head.last.direction[:1].expand(16, -1))
    assert method(batch_of("dino"), progress()).loss.item() == pytest.approx(math.log(16), abs=1e-5)
    assert method.chance_loss() == pytest.approx(math.log(16))
    assert make("dino", loss="mse", centering="none").chance_loss() is None


def test_biases_and_norms_do_not_decay():
    groups = make("dino").groups()
    assert groups[0].weight_decay is None
    assert groups[1].weight_decay == 0.0
    assert all(p.ndim > 1 for p in groups[0].params)
    assert all(p.ndim < 2 for p in groups[1].params)


def test_stochastic_depth_is_the_transformer_students_alone():
    torch.manual_seed(0)
    settings = DINOSettings(num_prototypes=16, dim=8, hidden=16, drop_path=0.5)
    method = DINO(
        lambda **kw: make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=3, **kw),
        settings,
        DatasetInfo(48, 32, 3),
    ).train()
    images = torch.rand(8, 3, 32, 32)
    assert not torch.equal(method.backbone(images), method.backbone(images))
    assert torch.equal(method.teacher(images), method.teacher(images))
    views = [images, images.flip(3), images[..., :16, :16]]
    output = method(Batch(views, torch.arange(8)), progress())
    assert torch.isfinite(output.loss)
    assert output.features.shape == (8, 8)


def test_who_is_exported():
    for network in ("teacher", "student"):
        method = make("dino", network=network).eval()
        disturb(method)
        images = torch.rand(4, 3, 16, 16)
        own = {"teacher": method.teacher.network, "student": method.backbone}[network]
        assert method.exported() is own
        assert torch.equal(method.encode(images), own(images))


def test_clusters_are_the_centered_teachers():
    method = make("dino").eval()
    disturb(method)
    images = torch.rand(8, 3, 16, 16)
    features = method.encode(images)
    assignment = method.assign(features)
    outputs = method.teacher_head(features)[1].double().numpy() - method.objective.centering.center.double().numpy()
    assert assignment.cluster.tolist() == outputs.argmax(axis=1).tolist()
    np.testing.assert_allclose(assignment.distance, 1 - softmax(outputs / 0.07).max(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "mse", "batch_norm": True, "predictor": True},
        {"loss": "infonce", "centering": "none", "batch_norm": True},
        {"bottleneck": False, "head_layers": 1},
        {"centering": "softmax", "teacher_rule": "copy", "activation": "relu"},
    ],
)
def test_switches_train(settings):
    method = make("dino", **settings)
    output = method(batch_of("dino"), progress())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ce"}, "loss='ce'"),
        ({"centering": "middle"}, "centering='middle'"),
        ({"teacher_rule": "ema"}, "teacher_rule='ema'"),
        ({"network": "both"}, "network='both'"),
        ({"loss": "mse", "centering": "sinkhorn"}, "compares outputs"),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        make("dino", **settings)


def test_one_full_view_is_refused():
    with pytest.raises(ValueError, match="--global-crops 1"):
        DINO.views(DINOSettings(), Crops(global_crops=1, local_crops=2), 3)


def test_the_learning_signal_is_the_other_view():
    """Student and teacher of the same view are never compared: with views alike in pairs the loss tells."""
    method = make("dino").eval()
    batch = batch_of("dino")
    same = Batch([batch.views[0], batch.views[0]], batch.index)
    with torch.no_grad():
        teacher = method.teacher_head(method.teacher(batch.views[0]))[1]
        q = torch.softmax(teacher / method.teacher_temperature(progress()), dim=1)
        expected = -(q * F.log_softmax(method.head(method.backbone(batch.views[0]))[1] / 0.1, dim=1)).sum(1).mean()
        assert method(same, progress()).loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_small_views_that_a_transformer_cannot_see_are_refused_before_the_run(tiny, tmp_path):
    views = {"image_size": 32, "local_crops": 2, "local_size": 24}
    with pytest.raises(ValueError, match="--backbone test_vit cannot process views of --local-size 24"):
        tiny("dino", tmp_path / "run", backbone="test_vit", **views)
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_contrast_is_float32_under_autocast():
    outputs, taught = torch.randn(8, 16), torch.randn(8, 16)
    nce = Objective(16, "infonce", "none", 0.1, 0.9)
    plain = nce.compare(nce.target(taught, 0.04), outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nce.compare(nce.target(taught, 0.04), outputs), plain)


def test_the_predictor_has_batch_norm_where_the_head_has():
    def norms(**settings):
        return sum(isinstance(m, torch.nn.BatchNorm1d) for m in make("dino", predictor=True, **settings).predictor)

    assert norms(batch_norm=True) == 1
    assert norms(batch_norm=False) == 0


@pytest.mark.parametrize(("backbone", "rate"), [("vit_tiny_patch16_224", True), ("efficientnet_b0", False)])
def test_only_a_transformer_has_stochastic_depth(backbone, rate):
    asked = []

    def make(**create):
        asked.append(create.get("drop_path", 0.0))
        return make_backbone(backbone, channels=3, image_size=32, **create)

    DINO(make, DINOSettings(num_prototypes=4, hidden=8, dim=4, drop_path=0.1), DatasetInfo(8, 32, 3))
    assert (max(asked) > 0) == rate


def test_the_loss_alone_is_a_cross_entropy_in_float64():
    from selfcluster.methods.dino import dino_loss

    generator = torch.Generator().manual_seed(3)
    output, target = torch.randn(6, 7, generator=generator), torch.softmax(torch.randn(6, 7, generator=generator), 1)
    expected = -(target.double().numpy() * np.log(softmax(output.double().numpy() / 0.1))).sum(axis=1).mean()
    assert dino_loss(target, output, 0.1).item() == pytest.approx(expected, rel=1e-5)
