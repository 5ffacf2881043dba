"""SIGTERM, SIGINT and a closed terminal only set a flag. The loop then saves and stops at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Use as a context manager: `.signal` is the name of the signal, or None. A second signal ends the process."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows signal handlers in the main thread only
            hangup = getattr(signal, "SIGHUP", None)  # a closed terminal; under nohup it is ignored, and stays so
            closed = [hangup] if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL else []
            for number in (signal.SIGTERM, signal.SIGINT, *closed):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(number, self._before[number])  # a second signal ends the process without saving
