"""The statistics of batch norm as they were before a step, for a step that turns out not to be finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchStatistics:
    """Buffers of all batch norms of a network, and a copy. One call copies all buffers of one type at once."""

    def __init__(self, network: nn.Module) -> None:
        norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (b for norm in norms for b in norm.buffers()):
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._kinds = [(buffers, [b.clone() for b in buffers]) for buffers in by_type.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the present statistics."""
        for buffers, copies in self._kinds:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the statistics that were kept."""
        for buffers, copies in self._kinds:
            torch._foreach_copy_(buffers, copies)
