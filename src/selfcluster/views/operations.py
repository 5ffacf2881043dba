"""What a further operation on views must offer: one object with its parameters, its draw and its function."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Operation(Protocol):
    """A change of a view's pixels. A frozen dataclass whose fields are the parameters is the usual form.

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
            uniforms: (B, self.uniforms) in [0, 1), on the host; row b belongs to sample b alone.

        Returns:
            (B, C, h, w) float32 in 0..255.
        """
        ...
