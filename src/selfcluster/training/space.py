"""Check before the first step that the disk has room for what a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfcluster.files import free_bytes
from selfcluster.methods.base import Method
from selfcluster.runs.folder import RunError

_CHECKPOINTS = 3  # two are kept, and the next one is written before the oldest is removed
_STATES = {"adamw": 2}  # tensors that an optimizer keeps for each parameter; the others have a momentum


def check_space(run: Path, method: Method, optimizer: str, num_images: int) -> None:
    """Compare the free space with the sizes of checkpoints and embeddings.

    Raises:
        RunError: there is too little space; the message gives the bytes needed and free.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in method.state_dict().items()}
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    checkpoint = sum(sizes.values()) + _STATES.get(optimizer, 1) * trained
    network: Any = method.exported()
    embeddings = 4 * num_images * int(network.num_features)
    needed, free = _CHECKPOINTS * checkpoint + embeddings, free_bytes(run)
    if needed > free:
        raise RunError(
            f"{run}: about {needed:,} bytes are needed, {_CHECKPOINTS} times {checkpoint:,} for checkpoints and "
            f"{embeddings:,} for embeddings, and {free:,} are free. Free some space or choose another --out"
        )
