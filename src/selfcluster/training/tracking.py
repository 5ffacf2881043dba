"""TensorBoard, for those who ask for it: each row of metrics as scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def tensorboard_rows(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes rows of metrics; without a folder it does nothing.

    Raises ValueError where the tensorboard package is missing.
    """
    if folder is None:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package: pip install 'selfcluster[tensorboard]'") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(row: Mapping[str, object]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, row["step"])

    try:
        yield write
    finally:
        writer.close()
