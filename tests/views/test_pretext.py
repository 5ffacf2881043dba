import itertools

import pytest
import torch

from selfcluster.randomness import draw
from selfcluster.views import pretext


def test_rotate_is_rot90_of_each_image():
    x, turns = torch.rand(8, 3, 6, 6), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    before = x.clone()
    expected = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(x, turns, strict=True)])
    assert torch.equal(pretext.rotate(x, turns), expected)
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="6 x 5"):
        pretext.rotate(x[..., :5], turns)


def test_labels_are_recoverable_when_the_flip_comes_first_and_not_when_it_comes_last():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    upright = {bytes(v.numpy().tobytes()) for v in (x, x.flip(3))}  # what an unrotated image may look like

    def angles(view: torch.Tensor) -> list[int]:
        return [k for k in range(4) if torch.rot90(view, -k, (2, 3)).contiguous().numpy().tobytes() in upright]

    for source, k in itertools.product((x, x.flip(3)), range(4)):
        assert angles(pretext.rotate(source, torch.tensor([k]))) == [k]
    late = pretext.rotate(x, torch.tensor([1])).flip(3)
    assert angles(late) == [3]  # labeled 1, but looks turned by three quarters


def test_every_rotation_of_every_image():
    x = torch.rand(3, 1, 4, 4)
    images, labels = pretext.every_rotation(x)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert torch.equal(images, pretext.rotate(x.repeat(4, 1, 1, 1), labels))


def greedy_by_brute_force(first: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    chosen = [first]
    candidates = list(itertools.permutations(range(len(first))))
    while len(chosen) < count:
        free = [c for c in candidates if c not in chosen]
        distances = [sum(a != b for other in chosen for a, b in zip(c, other, strict=True)) for c in free]
        chosen.append(free[distances.index(max(distances))])
    return chosen


@pytest.mark.parametrize(("cells", "count"), [(3, 6), (4, 24), (5, 30)])
def test_permutations_are_the_greedy_choice(cells, count):
    ours = [tuple(row) for row in pretext.permutations(count, seed=1, cells=cells).tolist()]
    assert ours == greedy_by_brute_force(ours[0], count)


def test_nine_patches_get_distinct_and_distant_orders():
    orders = pretext.permutations(30)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(9).expand(30, 9))
    assert len(torch.unique(orders, dim=0)) == 30
    distances = (orders[:, None] != orders[None]).sum(dim=2)[~torch.eye(30, dtype=torch.bool)]
    assert distances.float().mean() > 8.1  # two orders at random: 8
    assert distances[:1].min() >= 5
    assert pretext.permutations(30) is orders
    with pytest.raises(ValueError, match="--num-permutations 25: there are only 24 orders of 4"):
        pretext.permutations(25, cells=4)


def test_patches_are_pieces_of_their_cells():
    x = torch.rand(4, 2, 255, 255)
    orders = pretext.permutations(4)
    offsets = draw(0, "patches", 0, torch.arange(4), 0, pretext.JIGSAW_UNIFORMS)
    out = pretext.patches(x, offsets, orders)
    assert out.shape == (4, 9, 2, 64, 64)
    for b, place in itertools.product(range(4), range(9)):
        cell = int(orders[b, place])
        down, right = int(offsets[b, cell] * 22), int(offsets[b, 9 + cell] * 22)  # gaps of 0 to 21 pixels
        top, left = cell // 3 * 85 + down, cell % 3 * 85 + right
        assert torch.equal(out[b, place], x[b, :, top : top + 64, left : left + 64])
    assert down <= 21
    with pytest.raises(ValueError, match="2 x 2 are too small"):
        pretext.patches(x[..., :2, :2], offsets, orders)


def test_patches_reach_both_ends_of_their_cells():
    x = torch.arange(12.0 * 12).view(1, 1, 12, 12)
    identity = torch.arange(9)[None]
    first = pretext.patches(x, torch.zeros(1, 18), identity)
    last = pretext.patches(x, torch.full((1, 18), 1 - 2.0**-24), identity)
    assert first.shape == (1, 9, 1, 3, 3)
    assert first[0, 0, 0, 0, 0] == 0
    assert last[0, 8, 0, 2, 2] == 143


def test_tiles_change_places_and_the_rest_stays():
    """Tiles of 2 x 2 pixels in images of 7 x 7, each moved by hand; the last row and column stay."""
    x = torch.rand(4, 3, 7, 7)
    before, orders = x.clone(), torch.stack([torch.randperm(9) for _ in range(4)])
    shuffled = pretext.shuffle(x, orders)
    for image, result, order in zip(x, shuffled, orders.tolist(), strict=True):
        for place, tile in enumerate(order):
            to, start = divmod(place, 3), divmod(tile, 3)
            moved = result[:, 2 * to[0] : 2 * to[0] + 2, 2 * to[1] : 2 * to[1] + 2]
            assert torch.equal(moved, image[:, 2 * start[0] : 2 * start[0] + 2, 2 * start[1] : 2 * start[1] + 2])
    assert torch.equal(shuffled[..., 6, :], x[..., 6, :])
    assert torch.equal(shuffled[..., 6], x[..., 6])
    assert torch.equal(x, before)
    assert torch.equal(pretext.shuffle(shuffled, orders.argsort(dim=1)), x)
    with pytest.raises(ValueError, match="2 x 2 are too small for 9 tiles"):
        pretext.shuffle(x[..., :2, :2], orders)


def test_the_first_shuffle_moves_nothing_and_distances_stay():
    ours, far = pretext.shuffles(30), pretext.permutations(30)
    assert ours[0].tolist() == list(range(9))
    assert len(torch.unique(ours, dim=0)) == 30
    assert torch.equal((ours[:, None] != ours).sum(dim=2), (far[:, None] != far).sum(dim=2))


def test_label_0_of_a_change_leaves_the_image():
    x, first = torch.rand(2, 3, 9, 9), torch.zeros(2, dtype=torch.int64)
    for task, count in (("rotation", 4), ("jigsaw", 7)):
        change = pretext.ImageChange(task, num_permutations=7)
        assert change.labels == count
        assert torch.equal(change(x, first), x)
        assert not torch.equal(change(x, first + count - 1), x)
        assert change.state_dict() == {}
