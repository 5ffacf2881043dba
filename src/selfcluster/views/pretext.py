"""Pretext tasks: changes of an image that the network must recognize.

Rotation: Gidaris et al. 2018. A quarter turn is exact. The flip must come before it: a flipped quarter turn equals a
three-quarter turn of the flipped image, so its label would be ambiguous. Jigsaw: Noroozi and Favaro 2016 with VISSL's
figures (255 px, 3 x 3 cells of 85 px, patches of 64 px). Permutations are chosen greedily to differ most on average.
Departs: patches are numbered row by row, where VISSL numbers them column by column (a relabeling).

B images, C channels, P permutations.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

GRID = 3
CELLS = GRID * GRID
JIGSAW_UNIFORMS = 2 * CELLS
_PATCH = 64 / 85  # of a cell's side


@torch.no_grad()
def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by its own number of quarter turns, anticlockwise as `torch.rot90`; no pixel is interpolated.

    Args:
        images: (B, C, s, s) square.
        turns: (B,) int64 in 0..3, on the host or the device.

    Returns:
        (B, C, s, s), a new tensor.
    """
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"quarter turns need square images, got {images.shape[2]} x {images.shape[3]}")
    turns = turns.to(images.device, non_blocking=True)[:, None, None, None]
    mirrored = torch.where(turns >= 2, images.flip(2, 3), images)  # half a turn, then a quarter for the odd ones
    return torch.where(turns % 2 == 1, torch.rot90(mirrored, 1, (2, 3)), mirrored)


@torch.no_grad()
def shuffle(images: Tensor, orders: Tensor) -> Tensor:
    """Let the 3 x 3 tiles of each image change places; no pixel is changed and the size stays.

    Where the side is no multiple of three, the one or two last rows and columns stay where they are.

    Args:
        images: (B, C, s, s); a tile has s // 3 pixels a side.
        orders: (B, 9) int64, one permutation per image: place k of the result, row by row, shows tile `orders[b, k]`.

    Returns:
        (B, C, s, s), a new tensor.
    """
    b, channels, height, width = images.shape
    side = min(height, width) // GRID
    if side < 1:
        raise ValueError(f"images of {height} x {width} are too small for {CELLS} tiles")
    square, result = slice(0, GRID * side), images.clone()
    tiles = images[:, :, square, square].reshape(b, channels, GRID, side, GRID, side)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(b, CELLS, channels, side, side)
    moved = tiles[torch.arange(b, device=images.device)[:, None], orders.to(images.device)]
    moved = moved.view(b, GRID, GRID, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    result[:, :, square, square] = moved.reshape(b, channels, GRID * side, GRID * side)
    return result


def shuffles(count: int) -> Tensor:
    """Return `permutations(count)` renumbered so that the first leaves every tile in place: (P, 9) int64.

    A network that clusters whole images has then seen unchanged ones. The distances between permutations stay.
    """
    far = permutations(count)
    return far[:, far[0].argsort()]


class ImageChange(nn.Module):
    """Pretext tasks that change a whole image: `rotation`, quarter turns, or `jigsaw`, permutations of its tiles.

    Call it with images (B, C, s, s) and their pretext labels (B,) int64. It returns the changed images. Label 0 leaves
    an image as it is.
    """

    def __init__(self, task: str, num_permutations: int) -> None:
        super().__init__()
        self.name = "rotation" if task == "rotation" else "permutation"  # what a label names
        self.labels = self.count(task, num_permutations)
        self.orders = nn.Buffer(shuffles(self.labels), persistent=False) if task == "jigsaw" else None  # (P, 9)

    @staticmethod
    def count(task: str, num_permutations: int) -> int:
        """Return P, the number of labels."""
        return 4 if task == "rotation" else num_permutations

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return rotate(images, labels) if self.orders is None else shuffle(images, self.orders[labels])


def every_rotation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return all four rotations of each image, turn by turn: images (4 B, C, s, s) and labels (4 B,)."""
    turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)]), turns


def patch_side(side: int) -> int:
    """Return p, the side of a patch of an image of `side` pixels."""
    return round(side // GRID * _PATCH)


@torch.no_grad()
def patches(images: Tensor, offsets: Tensor, orders: Tensor) -> Tensor:
    """Return nine patches of each image, each at a random position in its cell of a 3 x 3 grid, in a given order.

    The gap between neighbors varies. Otherwise edges that continue from patch to patch would reveal the order.

    Args:
        images: (B, C, s, s); 255 px gives cells of 85 and patches of 64 px, other sizes the same proportions.
        offsets: (B, JIGSAW_UNIFORMS) in [0, 1): down and right for each cell.
        orders: (B, 9) int64, one permutation per image: position k of the result shows the cell `orders[b, k]`.

    Returns:
        (B, 9, C, p, p).
    """
    b, _, height, width = images.shape
    cell = min(height, width) // GRID
    size = patch_side(min(height, width))
    if size < 1:
        raise ValueError(f"images of {height} x {width} are too small for {CELLS} patches")
    device = images.device
    slack = (offsets.view(b, 2, CELLS) * (cell - size + 1)).long().to(device)  # (B, 2, 9)
    orders = orders.to(device)
    number = torch.arange(CELLS, device=device)
    down = (number // GRID * cell + slack[:, 0]).gather(1, orders)  # (B, 9)
    right = (number % GRID * cell + slack[:, 1]).gather(1, orders)
    span = torch.arange(size, device=device)
    image = torch.arange(b, device=device)[:, None, None, None]
    rows, columns = (down[:, :, None] + span)[..., None], (right[:, :, None] + span)[:, :, None]
    return images.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3).contiguous()


@lru_cache(maxsize=8)
def permutations(count: int, seed: int = 0, cells: int = CELLS) -> Tensor:
    """Return `count` permutations of `cells` places that are far apart in Hamming distance.

    The first is drawn at random. Each further one has the largest mean distance to those chosen before; of equals the
    first in lexicographic order. A running sum of agreements is kept, so that a choice takes one pass over all
    permutations (4 s for P = 2,000). The result is cached: do not write to it.

    Args:
        count: P, at most cells!.
        seed: draws the first permutation.
        cells: places to permute.

    Returns:
        (P, cells) int64.

    >>> permutations(2, cells=2).sum(dim=0).tolist()
    [1, 1]
    """
    total = math.factorial(cells)
    if not 0 < count <= total:
        raise ValueError(f"--num-permutations {count}: there are only {total} orders of {cells} patches")
    everything = _orders(cells)
    columns = np.ascontiguousarray(everything.T)  # (cells, cells!)
    agreements = np.zeros(total, np.int32)  # places shared with the chosen ones, summed: the smaller, the farther
    equal, shared = np.empty(total, bool), np.empty(total, np.uint8)
    choice = int(torch.randint(total, (1,), generator=torch.Generator().manual_seed(seed)))
    chosen = []
    for _ in range(count):
        chosen.append(choice)
        shared[:] = 0
        for column, place in zip(columns, everything[choice], strict=True):
            shared += np.equal(column, place, out=equal).view(np.uint8)
        agreements += shared
        agreements[choice] = 1 << 30  # never twice
        choice = int(agreements.argmin())
    return torch.from_numpy(everything[chosen].astype(np.int64))


def _orders(cells: int) -> np.ndarray:
    """Return all permutations of `cells` places, (cells!, cells) uint8 in lexicographic order."""
    table = np.zeros((1, 1), np.uint8)
    for n in range(2, cells + 1):  # each first place, then the orders of the places that remain
        first = np.arange(n, dtype=np.uint8).repeat(len(table))[:, None]
        rest = np.tile(table, (n, 1))
        table = np.concatenate([first, rest + (rest >= first)], axis=1)
    return table
