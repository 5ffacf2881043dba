"""Sums and gathers over two ranks: values and gradients are those of one process that has everything."""

import pytest
import torch

from selfcluster import distributed

pytestmark = pytest.mark.slow


def on_rank() -> dict:
    r = distributed.rank()
    x = (torch.arange(3.0) + 10 * r).requires_grad_()
    total = distributed.all_reduce(x)
    (total * (r + 1)).sum().backward()
    rows = (torch.full((2 + r, 2), float(r))).requires_grad_()  # two rows on rank 0, three on rank 1
    gathered = distributed.all_gather(rows)
    weights = torch.arange(10.0).reshape(5, 2) * (1 + r)
    (gathered * weights).sum().backward()
    return {
        "total": total.detach().numpy(),
        "x_grad": x.grad.numpy(),
        "gathered": gathered.detach().numpy(),
        "rows_grad": rows.grad.numpy(),
        "object": distributed.broadcast_object({"from": r}),
        "objects": distributed.gather_objects(r),
        "sent": distributed.broadcast(torch.tensor([r + 5])).item(),
    }


def test_row_33_sums_and_gathers_of_ranks_with_unequal_rows(ranks):
    zero, one = ranks.run(on_rank)
    for result in (zero, one):
        assert result["total"].tolist() == [10, 12, 14]
        assert result["x_grad"].tolist() == [3, 3, 3]  # d(1 * total + 2 * total) / dx
        assert result["gathered"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
        assert result["object"] == {"from": 0}
        assert result["objects"] == [0, 1]
        assert result["sent"] == 5
    assert zero["rows_grad"].tolist() == [[0, 3], [6, 9]]  # weights of both ranks, summed
    assert one["rows_grad"].tolist() == [[12, 15], [18, 21], [24, 27]]


def test_one_process_is_the_identity():
    x = torch.arange(4.0)
    assert distributed.all_reduce(x) is x
    assert distributed.all_gather(x) is x
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize(("n", "world"), [(10, 3), (7, 8), (0, 2)])
def test_shares_in_rank_order_are_the_whole(n, world):
    parts = [list(range(n))[distributed.share(n, r, world)] for r in range(world)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
