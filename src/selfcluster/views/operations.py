"""The interface of an operation on views: its parameters, how many random numbers it needs, its function."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Operation(Protocol):
    """A change of a view's pixels. Usually it is a frozen dataclass with the parameters as fields.

    `name` names the random stream, so two operations of a plan need two names. `uniforms` is how many random numbers
    a sample needs.
    """

    @property
    def name(self) -> str: ...

    @property
    def uniforms(self) -> int: ...

    def apply(self, x: Tensor, uniforms: Tensor) -> Tensor:
        """Return the changed views.

        Args:
            x: (B, C, h, w) float32 in 0..255, on any device; may be changed in place.
            uniforms: (B, self.uniforms) in [0, 1), on the CPU; row b belongs to sample b only.

        Returns:
            (B, C, h, w) float32 in 0..255.
        """
        ...
