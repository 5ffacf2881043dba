"""SimCLR against its equation in float64, and what is particular to it: who is compared with whom, head, groups."""

import math

import numpy as np
import pytest
import torch

from selfcluster import distributed
from selfcluster.methods.simclr import SimCLR, SimCLRSettings, head, nt_xent
from selfcluster.models.backbones import make_backbone
from selfcluster.types import Batch, DatasetInfo
from tests.methods.test_contract import batch_of, make, progress


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random unit rows."""
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


def equation_1(z: np.ndarray, temperature: float) -> float:
    """NT-Xent of two views (2, B, D): the mean over all 2B examples of -log of the other view's share of the softmax
    over all examples but oneself, written from the paper."""
    examples = np.concatenate(list(z))
    n = len(examples)
    similarity = np.exp(examples @ examples.T / temperature)
    losses = []
    for i in range(n):
        j = (i + n // 2) % n
        losses.append(-np.log(similarity[i, j] / sum(similarity[i, k] for k in range(n) if k != i)))
    return float(np.mean(losses))


def multi_crop(z: np.ndarray, temperature: float) -> float:
    """Every view against each full-resolution view of its image; negatives: full-resolution views of the others."""
    views, images, _ = z.shape
    losses = []
    for i in range(images):
        for g in (0, 1):
            for v in range(views):
                if v == g:
                    continue
                positive = np.exp(z[v, i] @ z[g, i] / temperature)
                others = [np.exp(z[v, i] @ z[h, k] / temperature) for k in range(images) if k != i for h in (0, 1)]
                losses.append(-np.log(positive / (positive + sum(others))))
    return float(np.mean(losses))


def nt_xent_of(z: torch.Tensor, temperature: float) -> torch.Tensor:
    index = torch.arange(z.shape[1])
    return nt_xent(z, index, index, temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_two_views_are_equation_1(temperature):
    z = rows(2, 7, 5).double()
    assert nt_xent_of(z, temperature).item() == pytest.approx(equation_1(z.numpy(), temperature), abs=1e-10)
    assert multi_crop(z.numpy(), temperature) == pytest.approx(equation_1(z.numpy(), temperature), abs=1e-10)


def test_small_views_are_compared_with_full_ones_only():
    z = rows(5, 6, 4).double()
    assert nt_xent_of(z, 0.2).item() == pytest.approx(multi_crop(z.numpy(), 0.2), abs=1e-10)


def test_small_views_are_nobodys_negatives():
    """A small view of image 0 and one of image 1 meet in no term: the mixed second derivative is 0."""
    z = rows(4, 3, 5).double().requires_grad_()
    (slope,) = torch.autograd.grad(nt_xent_of(z, 0.2), z, create_graph=True)
    (mixed,) = torch.autograd.grad(slope[2:, 0].sum(), z)  # (4, 3, 5)
    assert mixed[2:, 1:].eq(0).all()
    assert mixed[:2, 1:].ne(0).all()  # but full-resolution views of image 1 are negatives of image 0's small ones


def test_two_images_by_hand():
    """Views agree and images are orthogonal: every term is log(e + 2) - 1 at temperature 1."""
    z = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    assert nt_xent_of(z, 1.0).item() == pytest.approx(math.log(math.e + 2) - 1, abs=1e-12)


def test_the_views_may_be_swapped():
    z = rows(2, 7, 5).double()
    assert nt_xent_of(z, 0.1).item() == pytest.approx(nt_xent_of(z.flip(0), 0.1).item(), abs=1e-12)


def test_an_image_that_is_there_twice_is_no_negative_of_itself():
    z = rows(2, 3, 5).double()
    twice = torch.cat([z, z[:, :1]], dim=1)
    index = torch.tensor([0, 1, 2, 0])
    loss = nt_xent(twice, index, index, 0.1)
    terms = []
    w = twice.numpy()
    for i, image in enumerate(index):
        for v in (0, 1):
            p = np.exp(w[v, i] @ w[1 - v, i] / 0.1)
            other = sum(np.exp(w[v, i] @ w[h, k] / 0.1) for k in range(4) if index[k] != image for h in (0, 1))
            terms.append(-np.log(p / (p + other)))
    assert loss.item() == pytest.approx(float(np.mean(terms)), abs=1e-10)


def test_features_that_are_all_alike_have_the_chance_loss():
    method = make("simclr").eval()
    with torch.no_grad():
        for parameter in method.head[-1].parameters():
            parameter.zero_()  # nothing but the offset is left, which is the same for all
        method.head[-1].bias.fill_(1.0)
    output = method(batch_of("simclr"), progress())
    assert output.loss.item() == pytest.approx(math.log(15), abs=1e-5)  # 8 images: 14 negatives and one positive
    assert output.log["chance_loss"].item() == pytest.approx(math.log(15), abs=1e-6)


def test_a_single_image_has_no_negatives_and_no_loss():
    method = make("simclr").eval()
    output = method(batch_of("simclr", 1), progress())
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("layers", [2, 3])
def test_the_heads_last_batch_norm_has_no_offset(layers):
    method = make("simclr", num_layers=layers)
    linear = [m for m in method.head if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [32] * (layers - 1) + [16]
    assert all(m.bias is None for m in linear)
    method(batch_of("simclr"), progress()).loss.backward()
    assert method.head[-1].bias.grad is None
    assert method.head[-1].weight.grad is not None


def test_batch_norm_and_biases_take_plain_steps():
    weights, flat = make("simclr").groups()
    assert weights.layerwise_adaptation
    assert weights.weight_decay is None
    assert not flat.layerwise_adaptation
    assert flat.weight_decay == 0
    assert {p.ndim for p in flat.params} == {1}
    assert {p.ndim for p in weights.params} == {2, 4}


def test_a_transformer_and_small_views():
    def vit(**kw):
        form = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return make_backbone("vit_tiny_patch16_224", channels=3, image_size=16, **form, **kw)

    method = SimCLR(vit, SimCLRSettings(hidden=32), DatasetInfo(48, 16, 3))
    views = [*batch_of("simclr").views, torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8)]
    output = method(Batch(views, torch.arange(8)), progress())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_the_loss_is_float32_under_autocast():
    z = rows(2, 8, 16)
    plain = nt_xent_of(z, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent_of(z, 0.1), plain)


@pytest.mark.slow
def test_ranks_make_one_batch_of_negatives(ranks):
    """Loss and gradients with respect to the features, small views among them, over two ranks."""
    z = rows(4, 6, 5).double().requires_grad_()
    nt_xent_of(z, 0.2).backward()
    parts = ranks.run(rank_nt_xent)
    assert np.mean([loss for loss, _ in parts]) == pytest.approx(nt_xent_of(z, 0.2).item(), abs=1e-10)
    gradient = np.concatenate([g for _, g in parts], axis=1) / 2  # a rank's is twice its part of the mean's
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=1e-10)


def rank_nt_xent() -> tuple[float, np.ndarray]:
    mine = distributed.share(6)
    z = rows(4, 6, 5).double()[:, mine].clone().requires_grad_()
    loss = nt_xent(z, torch.arange(6)[mine], torch.arange(6), 0.2)
    loss.backward()
    return loss.item(), z.grad.numpy()


def test_the_first_versions_head_is_the_one_with_two_layers():
    """v1: 2048 x 2048 + 2048 x 128; v2, the default here, one hidden layer more; each with its batch norms."""
    sizes = [sum(p.numel() for p in head(2048, 2048, 128, layers).parameters()) for layers in (2, 3)]
    norms = [2 * (2048 + 128), 2 * (2048 + 2048 + 128)]
    assert sizes == [2048 * 2048 + 2048 * 128 + norms[0], 2 * 2048 * 2048 + 2048 * 128 + norms[1]]
    assert (SimCLR.Settings().num_layers, SimCLR.paper.weight_decay) == (3, 1e-6)
