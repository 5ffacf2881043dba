"""Batch norm over all ranks: equal to one process that has the concatenated batch."""

from __future__ import annotations

import copy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from selfcluster import distributed
from selfcluster.models import norm
from selfcluster.models.norm import BatchNorm, convert_sync


class Activated(nn.BatchNorm2d):
    """Shaped like timm's BatchNormAct2d, which takes seconds to import in every process."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 4, 3), Activated(4), nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5, momentum=None)]
    module = nn.Sequential(*layers, nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.3)
    return module


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    # a large mean beside a small spread: naive sums of squares lose it in single precision
    return 100 + torch.randn(9, 2, 5, 5, generator=g, dtype=torch.float64), torch.randn(9, 3, generator=g).double()


def loss_of(module: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (torch.tanh(module(x)) * weights).sum()


def rank_checks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results: dict[str, Any] = {}
    x, weights = batch()
    for name, cut in (("uneven", 3), ("empty", 0)):
        part = slice(0, cut) if rank == 0 else slice(cut, None)
        module = network()
        parameters = dict(module.named_parameters())
        module = convert_sync(module)
        assert [type(m) for m in module if hasattr(m, "running_mean")] == [BatchNorm, BatchNorm]
        assert all(parameters[n] is p for n, p in module.named_parameters())
        for _ in range(2):  # running statistics must follow over steps
            mine = x[part].clone().requires_grad_()
            loss_of(module, mine, weights[part]).backward()
        results[name] = {
            "output": module(x[part]).detach(),
            "input gradient": mine.grad,
            "gradients": {n: distributed.all_reduce(p.grad) for n, p in module.named_parameters()},
            "state": {n: b.clone() for n, b in module.state_dict().items()},
            "evaluated": module.eval()(x[part]).detach(),
        }
    # far from zero in single precision, where sums of squares about zero would cancel
    single = BatchNorm(2).train()
    far = (1e4 + x[:, :, 0]).float()
    results["far"] = single(far[:4] if rank == 0 else far[4:]).detach()
    # a group of one shares with nobody, and a copied module keeps its group
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    assert type(convert_sync(nn.BatchNorm1d(3), alone)) is nn.BatchNorm1d
    both = dist.new_group([0, 1])
    copied = copy.deepcopy(convert_sync(nn.Sequential(nn.BatchNorm1d(3)), both))
    assert copied[0]._group.value is both
    results["half"] = convert_sync(nn.BatchNorm2d(2), both)(x.bfloat16() + rank).dtype
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("norm")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in (0, 1)]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["uneven", "empty"])
def test_two_ranks_are_one_process_on_the_concatenated_batch(ranks, case):
    x, weights = batch()
    module = network()
    for _ in range(2):
        whole = x.clone().requires_grad_()
        loss_of(module, whole, weights).backward()
    close = {"rtol": 1e-9, "atol": 1e-9}
    parts = [rank[case] for rank in ranks]
    torch.testing.assert_close(torch.cat([p["output"] for p in parts]), module(x).detach(), **close)
    torch.testing.assert_close(torch.cat([p["input gradient"] for p in parts]), whole.grad, **close)
    for part in parts:
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(part["gradients"][name], parameter.grad, **close, msg=name)
        assert part["state"].keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            torch.testing.assert_close(part["state"][name], value, **close, msg=name)
    module.eval()
    torch.testing.assert_close(torch.cat([p["evaluated"] for p in parts]), module(x).detach(), **close)


@pytest.mark.slow
def test_single_precision_does_not_cancel_far_from_zero(ranks):
    x = (1e4 + batch()[0][:, :, 0]).float().double()
    expected = (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    found = torch.cat([rank["far"] for rank in ranks]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # x itself is rounded to 1e-3 there
    assert ranks[0]["half"] == torch.bfloat16


def test_backward_agrees_with_finite_differences():
    """The same function with its sums over one rank, so that autograd's numerical check can run it."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 2, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: norm._Normalize.apply(*a, 1e-5, None)[0], (x, weight, bias))
    assert torch.autograd.gradcheck(lambda a: norm._Normalize.apply(a, None, None, 1e-5, None)[0], (x,))


def test_alone_the_native_layers_stay():
    module = network()
    before = list(module)
    assert convert_sync(module) is module
    assert all(new is old for new, old in zip(module, before, strict=True))


def test_the_activated_batch_norm_of_timm_keeps_its_activation(monkeypatch):
    from timm.layers import BatchNormAct2d

    module = nn.Sequential(BatchNormAct2d(3, act_layer=nn.PReLU)).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, names = module(x), list(module.state_dict())
    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    convert_sync(module)
    assert type(module[0]) is BatchNorm
    assert list(module.state_dict()) == names
    assert torch.equal(module(x), expected)


def test_a_batch_norm_with_a_forward_of_its_own_is_refused(monkeypatch):
    class Odd(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    with pytest.raises(TypeError, match="Odd"):
        convert_sync(nn.Sequential(Odd(3)))


if __name__ == "__main__":
    rank_checks(int(sys.argv[1]), sys.argv[2])
