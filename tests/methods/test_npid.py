"""NPID against its equations in float64: noise contrast, full and sampled softmax, memory and partition."""

import math

import numpy as np
import pytest
import torch

from selfcluster.methods.npid import NPID, NPIDSettings
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Batch, DatasetInfo
from tests.methods.test_contract import batch_of, make, progress


def queries(method, batch) -> np.ndarray:
    with torch.no_grad():
        return method.unit_features(method.encode_views(batch.views)).double().numpy()


def drawn(m: int, n: int = 48, step: int = 6) -> np.ndarray:
    return torch.randint(n, (m,), generator=progress(step).generator("negatives")).numpy()


def equations_4_to_8(z, index, memory, noise, tau, partition=None) -> float:
    """J_NCE with the noise 1/N: each query's own image is data, the drawn ones are noise."""
    n, m = len(memory), len(noise)
    scores = [[math.exp(q @ memory[i] / tau) for i in (own, *noise)] for q, own in zip(z, index, strict=True)]
    partition = n * float(np.mean(scores)) if partition is None else partition
    total = 0.0
    for row in scores:
        p = np.array(row) / partition
        h = p / (p + m / n)
        total += -math.log(h[0]) - np.log(1 - h[1:]).sum()
    return total / len(z)


def test_noise_contrast_is_the_equations_and_its_partition_stays():
    method = make("npid").eval()
    batch = batch_of("npid")
    memory = method.memory.rows.double().numpy()
    z = queries(method, batch)
    output = method(batch, progress())
    noise = drawn(12)
    assert output.loss.item() == pytest.approx(equations_4_to_8(z, range(8), memory, noise, 0.07), rel=1e-5)
    method.on_step_end(progress(), [output])
    scores = [z[b] @ memory[i] / 0.07 for b in range(8) for i in (b, *noise)]
    partition = 48 * np.exp(scores).mean()
    assert method.log_partition.item() == pytest.approx(math.log(partition), abs=1e-5)

    later = method(batch, progress(9))  # other negatives and a moved memory, the first step's partition
    memory = method.memory.rows.double().numpy()
    expected = equations_4_to_8(z, range(8), memory, drawn(12, step=9), 0.07, partition)
    assert later.loss.item() == pytest.approx(expected, rel=1e-5)
    method.on_step_end(progress(9), [later])
    assert method.log_partition.item() == pytest.approx(math.log(partition), abs=1e-5)


def test_noise_contrast_by_hand():
    """Two images whose memories are e1 and e2, and noise that is both: exp(1 / tau) = 3 and exp(0) = 1."""
    method = make("npid", num_samples=2, dim=2, temperature=1 / math.log(3), num_negatives=1)
    method.memory.fill(torch.eye(2))
    method.log_partition.fill_(math.log(4.0))
    noise = int(drawn(1, 2)[0])
    loss, _ = method.compare(torch.eye(2), torch.arange(2), progress())
    # P of the own image 3/4, of the other 1/4; M / N = 1/2, so h = 3/5 and 1/3
    terms = [-math.log(3 / 5) - math.log(1 - (3 / 5 if noise == b else 1 / 3)) for b in (0, 1)]
    assert loss.item() == pytest.approx(sum(terms) / 2, abs=1e-6)


def test_full_softmax_by_hand():
    method = make("npid", num_samples=3, dim=2, temperature=1 / math.log(2), loss="softmax", num_negatives=0)
    method.memory.fill(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    loss, _ = method.compare(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), progress())
    # exp(s / tau) = 2^s: 2, 1, 1/2 for the first query, 1, 2, 1 for the second
    assert loss.item() == pytest.approx((math.log(3.5 / 2) + math.log(4 / 2)) / 2, abs=1e-6)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_sampled_softmax_is_the_equation(exclude_self):
    method = make("npid", loss="softmax", num_negatives=40, exclude_self=exclude_self).eval()
    batch = batch_of("npid")
    z, memory, noise = queries(method, batch), method.memory.rows.double().numpy(), drawn(40)
    assert set(noise) & set(range(8)), "some image is drawn as its own negative"
    terms = []
    for b in range(8):
        others = [i for i in noise if not exclude_self or i != b]
        scores = np.exp(np.array([z[b] @ memory[i] for i in (b, *others)]) / 0.07)
        terms.append(-math.log(scores[0] / scores.sum()))
    assert method(batch, progress()).loss.item() == pytest.approx(float(np.mean(terms)), rel=1e-5)
    assert not method.log_partition.isfinite()


def test_excluded_negatives_leave_gradients_finite():
    method = make("npid", num_negatives=40, exclude_self=True)
    output = method(batch_of("npid"), progress())
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    others = method.memory.rows[[i for i in drawn(40) if i != 0]]
    assert len(others) < 40


def test_the_pull_towards_the_memory_is_a_squared_distance():
    plain, pulled = make("npid").eval(), make("npid", proximal=3.0).eval()
    batch = batch_of("npid")
    distance = ((queries(plain, batch) - plain.memory.rows[:8].double().numpy()) ** 2).sum(axis=1).mean()
    difference = pulled(batch, progress()).loss.item() - plain(batch, progress()).loss.item()
    assert difference == pytest.approx(3 * distance, rel=1e-4)


def test_every_view_asks_and_full_ones_are_remembered():
    method = make("npid", loss="softmax", num_negatives=0).eval()
    images = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16), torch.rand(4, 3, 8, 8)
    index = torch.tensor([5, 9, 30, 2])
    output = method(Batch(list(images), index), progress())
    apart = [method(Batch([v], index), progress()).loss.item() for v in images]
    assert output.loss.item() == pytest.approx(np.mean(apart), rel=1e-5)
    before = method.memory.rows.clone()
    method.on_step_end(progress(), [output])
    with torch.no_grad():
        first, second = (method.unit_features(method.encode(v)) for v in images[:2])
    unit = torch.nn.functional.normalize(first + second, dim=1)
    expected = torch.nn.functional.normalize(before[index] + unit, dim=1)
    torch.testing.assert_close(method.memory.rows[index], expected, atol=1e-5, rtol=0)
    rest = torch.ones(48, dtype=torch.bool)
    rest[index] = False
    assert torch.equal(method.memory.rows[rest], before[rest])


def test_a_transformer_and_small_views():
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    torch.manual_seed(0)
    method = NPID(vit, NPIDSettings(dim=16, num_negatives=12), DatasetInfo(48, 16, 3))
    before = method.memory.rows.clone()
    output = method(Batch([*batch_of("npid").views, torch.rand(8, 3, 8, 8)], torch.arange(8)), progress())
    output.loss.backward()
    method.on_step_end(progress(), [output])
    assert 0 < output.loss.item() < math.inf
    assert all(p.grad is not None and p.grad.any() for p in method.backbone.parameters())
    assert (method.memory.rows != before).any(dim=1).tolist() == [True] * 8 + [False] * 40


def test_memory_starts_random_with_rows_of_length_one_on_average():
    rows = make("npid", num_samples=4000, dim=128).memory.rows
    assert rows.abs().max().item() <= 1 / math.sqrt(128 / 3)
    assert rows.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.02)


def test_chance_levels():
    """Memories that are all alike, and a partition that makes each image 1 / N probable: nothing is known."""
    for settings, level in (
        ({"loss": "nce", "num_negatives": 12}, math.log(13) + 12 * math.log(13 / 12)),
        ({"loss": "softmax", "num_negatives": 12}, math.log(13)),
        ({"loss": "softmax", "num_negatives": 0}, math.log(48)),
    ):
        method = make("npid", **settings)
        method.memory.rows.zero_()
        assert method(batch_of("npid"), progress()).loss.item() == pytest.approx(level, abs=1e-5)
        assert method.chance_loss() == pytest.approx(level)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"--num-negatives 0: --loss nce needs at least 1.*use --loss softmax"):
        make("npid", num_negatives=0)
    with pytest.raises(ValueError, match="loss='infonce': choose from nce, softmax"):
        make("npid", loss="infonce")
