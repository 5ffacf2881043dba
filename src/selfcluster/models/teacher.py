"""A teacher: a network that no gradient reaches and that follows the student's weights.

After each step theta_t <- m theta_t + (1 - m) theta_s over parameters alone (He et al. 2020, arXiv 1911.05722; Grill et
al. 2020, arXiv 2006.07733; Caron et al. 2021, arXiv 2104.14294). Buffers are its own: in training mode its batch norm
normalizes by its own batches and counts its own running statistics.
"""

from __future__ import annotations

import copy
from math import cos, pi
from typing import Any

import torch
from torch import nn


class Teacher(nn.Module):
    """A frozen network; calling it calls the network without gradients.

    Args:
        network: kept as it is, not copied, and frozen: `Teacher.of(student)` makes a copy. Networks with the
            student's parameters but another form in training (no stochastic depth) are given here, then `copy_`.

    >>> student = nn.Linear(2, 3)
    >>> teacher = Teacher.of(student)
    >>> teacher.update(student, momentum=0.996)
    >>> teacher(torch.zeros(1, 2)).requires_grad
    False
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False)

    @classmethod
    def of(cls, student: nn.Module) -> Teacher:
        """A teacher that starts as a copy of the student."""
        return cls(copy.deepcopy(student))

    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        return self.network(*args, **kwargs)

    @torch.no_grad()
    def copy_(self, student: nn.Module) -> Teacher:
        """Take over all of the student's parameters and buffers, once, at the start; returns itself."""
        self.network.load_state_dict(student.state_dict())
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move the parameters towards the student's: 1 leaves them untouched, 0 copies. No buffer changes."""
        if momentum == 1:  # an addition of 0 times infinity would not leave them untouched
            return
        own, theirs = dict(self.network.named_parameters()), dict(student.named_parameters())
        if own.keys() != theirs.keys():
            raise ValueError(f"teacher and student differ in {sorted(own.keys() ^ theirs.keys())[:4]}")
        torch._foreach_lerp_(list(own.values()), [theirs[name].detach() for name in own], 1 - momentum)


def cosine_momentum(base: float, progress: float, final: float = 1.0) -> float:
    """The momentum after a share `progress` of the run: `base` at 0, `final` at 1, half a cosine between.

    >>> cosine_momentum(0.996, 0.0), cosine_momentum(0.996, 1.0)
    (0.996, 1.0)
    """
    return final - (final - base) * (cos(pi * progress) + 1) / 2
