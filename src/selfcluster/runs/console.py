"""What a run says while it goes: a live bar on a terminal, plain lines elsewhere, nothing but errors when told so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class _Steady(RichConsole):
    """rich ends the program where a pipe is closed; here that is an error like any other."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Console:
    """Progress to standard error, so that standard output stays for results; only rank 0's speaks."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._rich = _Steady(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._health = ""
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """One line, whoever watches. A closed pipe or a full disk ends the talking, never the run."""
        if self.quiet:
            return
        try:
            self._rich.print(escape(text))
        except (OSError, ValueError):
            self.quiet = True

    def warn(self, text: str) -> None:
        """One line that is meant to be seen."""
        if self.quiet:
            with suppress(OSError, ValueError):
                print(text, file=sys.stderr)
            return
        try:
            self._rich.print(f"[bold yellow]{escape(text)}[/]")
        except (OSError, ValueError):
            self.quiet = True

    def start(self, total: int, done: int) -> None:
        """A run of `total` steps begins at `done`."""
        if self.quiet or not self._rich.is_terminal:
            return
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        # drawn by `step`: a thread of rich's own would end in a traceback where the terminal is closed
        self._bar = Progress(*columns, console=self._rich, transient=True, auto_refresh=False)
        self._task = self._bar.add_task("", total=total, completed=done)
        self._draw(self._bar.start)

    def step(self, done: int, loss: float, images_per_second: float) -> None:
        """After each step; drawn twice a second at most."""
        now = time.monotonic()
        if self._bar is None or now - self._drawn < 0.5:
            return
        self._drawn = now
        text = f"loss {loss:.3f}  {images_per_second:,.0f} images/s  {self._health}"
        self._bar.update(self._task, completed=done, description=text)
        self._draw(self._bar.refresh)

    def report(self, row: Mapping[str, object], total_steps: int, seconds_left: float = 0.0) -> None:
        """A row of metrics, in a line."""
        self._health = _health_line(row)
        if self._bar is None:
            self.say(
                f"step {row['step']}/{total_steps}  epoch {row['epoch']}  {_loss(row)}  "
                f"{row['images_per_second']:,.0f} images/s  {self._health}{_left(seconds_left)}"
            )

    def stop(self) -> None:
        """The bar goes; what was said stays."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with suppress(OSError, ValueError):
                bar.stop()

    def _draw(self, draw: Callable[[], object]) -> None:
        """Draw the bar. A closed terminal ends the talking, never the run."""
        try:
            draw()
        except (OSError, ValueError):
            self.quiet = True
            self.stop()


def _left(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return f"  {seconds:.0f} s left" if seconds < 90 else f"  {seconds / 60:.0f} min left"


def _loss(row: Mapping[str, object]) -> str:
    text = f"loss {row.get('loss', float('nan')):.3f}"
    return text + (f" (chance {row['chance_loss']:.3f})" if "chance_loss" in row else "")


def _health_line(row: Mapping[str, object]) -> str:
    parts = []
    if "used_codes" in row:
        parts.append(f"clusters {row['used_codes']} used, {row['effective_clusters']:.0f} effective")
        parts.append(f"largest cluster {row['largest_share']:.1%}")
    if "rankme" in row:
        parts.append(f"RankMe of training views {row['rankme']:.0f}")
    return "  ".join(parts)
