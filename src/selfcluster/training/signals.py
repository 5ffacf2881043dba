"""SIGTERM, SIGINT and a closed terminal only raise a flag; the loop saves and stops at its next safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Use as a context manager: `.signal` is the name of the signal that came, or None. A second one kills at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            hangup = getattr(signal, "SIGHUP", None)  # the terminal was closed; nohup ignores it, and so do we then
            closed = [hangup] if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL else []
            for number in (signal.SIGTERM, signal.SIGINT, *closed):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(number, self._before[number])  # asked twice, we no longer insist on saving
