"""Threads that read ahead: they never keep the process alive, and a read that hangs is named and ends the wait."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
_POLL = 0.5  # seconds between looks at what hangs and at whether to stop
_WARN_AFTER = 30.0  # seconds until a slow read is reported
_NAMED = 5
TIMEOUT = 600.0  # seconds

log = logging.getLogger("selfcluster.data")


class ReadTimeout(RuntimeError):
    """A read did not end within the timeout. The message names the images."""


class ReadingStopped(RuntimeError):
    """The wait for images was given up because the run was asked to stop."""


_pools: weakref.WeakSet[DaemonThreads] = weakref.WeakSet()


@atexit.register
def _end_pools() -> None:
    for pool in list(_pools):
        pool.end()


class DaemonThreads(Executor):
    """A pool of daemon threads. Python's own pool joins its threads at exit, so that one hung read hangs the exit."""

    def __init__(self, workers: int, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{k}", daemon=True) for k in range(workers)]
        for thread in self._threads:
            thread.start()
        self._ended = False
        _pools.add(self)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Return the future of `fn(*args, **kwargs)`."""
        future: Future[T] = Future()
        self._queue.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when the work before is done, or cancel it; `wait` for their end."""
        while cancel_futures:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def end(self, seconds: float = 2.0) -> None:
        """Cancel what has not begun, and wait for what has, but for `seconds` at most: a read may hang.

        A daemon thread that is inside a C++ library while the interpreter ends would abort the process.
        """
        if self._ended:
            return
        self._ended = True
        self.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + seconds
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del task, future, call  # or the last result would stay alive while the thread waits


def result_of(future: Future[T]) -> T:
    """Return the future's result. The wait has steps: a Ctrl-C of the instant before a wait is seen only after it."""
    while not future.done():
        wait([future], _POLL)
    return future.result()


def in_time(call: Callable[[], T], name: str, timeout: float | None = TIMEOUT) -> T:
    """Return `call()`, made in a thread of its own; for reads outside the loader, of which each may hang.

    Raises:
        ReadTimeout: it takes longer than the timeout; names what is read.
    """
    watch = Watch(timeout, lambda row: name)
    pool = DaemonThreads(1, "selfcluster-read")

    def work() -> T:
        with watch.reading(0):
            return call()

    try:
        return watch.wait(pool.submit(work))
    finally:
        pool.shutdown(wait=False)


class Watch:
    """Knows which images are being read and since when, and waits for results with that knowledge.

    Args:
        timeout: seconds that one read may take; None: any.
        name: gives the id of a row.
    """

    def __init__(self, timeout: float | None, name: Callable[[int], str]) -> None:
        self.timeout = timeout
        self._should_stop: Callable[[], bool] | None = None
        self.hung = False
        self._name = name
        self._reading: dict[int, tuple[int, float]] = {}  # thread -> row, since
        self._warned: set[int] = set()

    @contextmanager
    def reading(self, row: int) -> Iterator[None]:
        """Mark `row` as being read by this thread for the duration of the `with` block."""
        thread = threading.get_ident()
        self._reading[thread] = row, time.monotonic()
        try:
            yield
        finally:
            del self._reading[thread]

    @contextmanager
    def stopping(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Call `should_stop` while waiting, for the duration of the `with` block; True ends the wait."""
        self._should_stop = should_stop
        try:
            yield
        finally:
            self._should_stop = None

    def wait(self, future: Future[T]) -> T:
        """Return the future's result.

        Raises:
            ReadTimeout: a read takes longer than the timeout; names the images.
            ReadingStopped: the function given to `stopping` returned True.
        """
        while True:
            try:
                return future.result(_POLL)
            except TimeoutError:
                if future.done():  # the work itself raised it, or ended just now
                    return future.result()
            self._check()

    def run(self, pool: Executor | None, call: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield `call(item)` for each item in order, from the pool's threads or, without a pool, from this one."""
        if pool is None:
            yield from map(call, items)
            return
        futures = [pool.submit(call, item) for item in items]
        try:
            for future in futures:
                yield self.wait(future)
        finally:
            for future in futures:
                future.cancel()

    def _check(self) -> None:
        if self._should_stop is not None and self._should_stop():
            self.hung = True
            raise ReadingStopped("stopped while waiting for images to be read")
        now = time.monotonic()
        waits = sorted(((now - since, row) for row, since in list(self._reading.values())), reverse=True)
        if self.timeout is not None and waits and waits[0][0] > self.timeout:
            self.hung = True
            rows = [row for seconds, row in waits if seconds > self.timeout / 2]
            named = ", ".join(self._name(row) for row in rows[:_NAMED]) + (", ..." if len(rows) > _NAMED else "")
            raise ReadTimeout(
                f"reading did not end within {self.timeout:g} s: {named}. The storage may be disconnected. "
                "To resume, run the same command again; --timeout SECONDS waits longer"
            )
        for seconds, row in waits:
            if seconds > _WARN_AFTER and row not in self._warned:
                self._warned.add(row)
                log.warning("reading %s takes longer than %.0f s", self._name(row), seconds)
