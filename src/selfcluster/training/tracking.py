"""Write each row of metrics for TensorBoard, as scalars (`--tensorboard`)."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfcluster.files import PatientLog


def tensorboard_rows(folder: Path | None) -> Callable[[Mapping[str, object]], None]:
    """Return a function that takes rows of metrics; without a folder it does nothing.

    torch's own writer is not used, because it ends the run if the disk is full.

    Raises:
        ValueError: the tensorboard package is missing.
    """
    if folder is None:
        return lambda row: None
    try:
        # pyright does not see names that protobuf makes at import
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the package: pip install 'selfcluster[tensorboard]'") from error
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"  # as TensorBoard finds it
    log = PatientLog(folder / "tensorboard" / name, "training goes on, and rows are written when there is room")

    def add(event: Any) -> None:
        content = io.BytesIO()
        RecordWriter(content).write(event.SerializeToString())
        log.add(content.getvalue())

    def write(row: Mapping[str, Any]) -> None:
        numbers = {tag: value for tag, value in row.items() if isinstance(value, int | float) and tag != "step"}
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in numbers.items()]
        add(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    add(Event(wall_time=time.time(), file_version="brain.Event:2"))
    return write
