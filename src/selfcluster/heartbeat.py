"""What the processes of a run tell each other beside tensors: that they live, where they are, and the first error.

Every process writes a sign of life into the store that `torchrun`, or the first process, keeps. So one that is stopped,
or was killed, is named before anything times out, and the error that came first reaches the run's `status.json` instead
of what it caused in the others. Small objects go through the store as well: who waits for them waits as long as the
sender lives, and not for the time that a collective operation allows.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from selfcluster.files import message_of

log = logging.getLogger("selfcluster.distributed")

INTERVAL = 1.0  # seconds between signs of life
_SILENT = 4 * INTERVAL  # after this a process is taken for dead where a connection to one was lost
_WARN_AFTER = 30.0  # seconds of silence until a process is named
_TO_SAVE = 25.0  # seconds that a process has to save after its launcher was killed
_FIRST, _GONE = "first error", "gone"
_RESUME = "To resume, run the same command again"
# what torch says where another process is away; its own types do not cover gloo's
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "TCPStore")


class RankFailed(RuntimeError):
    """The first error of all processes, in words. `told`: another process prints it. `kind`: the error's type."""

    def __init__(self, message: str, kind: str, told: bool) -> None:
        super().__init__(message)
        self.kind, self.told = kind, told


class Heartbeat:
    """The signs of life of this process, and its watch over the others: the first process watches all, they watch it.

    Args:
        store: what the processes share; used by the calling thread only.
        connect: makes another connection to the same store, for the thread that watches.
        rank, world: this process's number, and how many there are.
        timeout: seconds of silence after which the run ends.
    """

    def __init__(
        self, store: dist.Store, connect: Callable[[], dist.Store], rank: int, world: int, timeout: float
    ) -> None:
        self.timeout = timeout
        self.on_end: Callable[[str], None] = lambda message: None  # before the watch ends the process
        self._store, self._connect, self._rank, self._world = store, connect, rank, world
        self._where: Callable[[], str] = lambda: "the start"
        self._sent = self._shared = 0
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # of the others: their last sign, and since when
        self._warned: set[int] = set()
        self._stopping = threading.Event()
        self._is_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        self._sigterm = signal.signal(signal.SIGTERM, _leave) if self._is_main else None
        self._beat(store)
        self._thread = threading.Thread(target=self._watch, name="selfcluster-heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Tell the others that this process is done, so that no one waits for its signs."""
        if not self._stopping.is_set():
            self._stopping.set()
            if self._is_main and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self._sigterm or signal.SIG_DFL)
            self._thread.join(5 * INTERVAL)
            with suppress(RuntimeError):  # the store has gone before
                self._store.set(_key(self._rank), json.dumps({_GONE: True}))
            atexit.unregister(self.stop)

    def at(self, where: Callable[[], str]) -> None:
        """Take a function that says in a few words where this process is, for messages to come."""
        self._where = where

    def share(self, value: Any, source: int) -> Any:
        """Return rank `source`'s small object. The others wait for it as long as that process lives.

        Raises:
            RankFailed: another process ended with an error meanwhile.
        """
        key, self._shared = f"object {self._shared}", self._shared + 1
        if self._rank == source:
            self._store.set(key, pickle.dumps(value))  # pyright: ignore[reportArgumentType] - bytes are right
            return value
        pause = 0.005
        while not self._store.check([key]):
            if self._store.check([_FIRST]):
                raise self._told()
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return pickle.loads(self._store.get(key))

    def cause(self, error: BaseException) -> RankFailed:
        """Return the first error of all processes; this one's where none came before. Tells it to all."""
        lost = isinstance(error, dist.DistError | SystemExit) or any(word in str(error) for word in _LOST)
        try:
            if isinstance(error, RankFailed):
                return error
            message = self._lost(error) if lost else self._own(error)
            kind = KeyboardInterrupt.__name__ if isinstance(error, SystemExit) else type(error).__name__
            if message is not None:
                record = json.dumps({"rank": self._rank, "message": message, "kind": kind})
                if json.loads(self._store.compare_set(_FIRST, "", record))["rank"] == self._rank:
                    return RankFailed(message, kind, told=False)
            return self._told()
        except RuntimeError:  # the store is away: its process ended
            away = f"{self._here()}: the first process or torchrun ended; see its output"
            return RankFailed(away if lost else self._own(error), type(error).__name__, told=False)

    def _own(self, error: BaseException) -> str:
        if isinstance(error, SystemExit):
            return f"{self._here()}: stopped by SIGTERM"
        words = message_of(error)
        if type(error).__name__ in ("Preempted", "KeyboardInterrupt"):  # the same on all
            return words
        known = isinstance(error, ValueError | OSError) or type(error).__module__.startswith("selfcluster.")
        return f"{self._here()}: {words if known else f'{type(error).__name__}: {words}'}"

    def _here(self) -> str:
        return f"process {self._rank} of {self._world}, {self._where()}"

    def _lost(self, error: BaseException) -> str | None:
        """Who is missing, where a connection was lost; None where another process has told an error meanwhile."""
        before = {r: self._sign(self._store, r) for r in range(self._world) if r != self._rank}
        until = time.monotonic() + _SILENT
        with _without_sigterm():
            while time.monotonic() < until:
                if self._store.check([_FIRST]):
                    return None
                time.sleep(0.1)
        dead = {r: sign for r, sign in before.items() if sign == self._sign(self._store, r) and _GONE not in sign}
        if not dead:
            return self._own(error)
        named = "; ".join(_named(r, self._world, sign) for r, sign in dead.items())
        return f"{named}: ended without a message (killed, or out of memory). {_RESUME}"

    def _told(self) -> RankFailed:
        record = json.loads(self._store.get(_FIRST))
        return RankFailed(record["message"], record["kind"], told=True)

    def _beat(self, store: dist.Store) -> None:
        self._sent += 1
        sign = {"n": self._sent, "pid": os.getpid(), "host": socket.gethostname(), "where": self._where()}
        store.set(_key(self._rank), json.dumps(sign))

    def _sign(self, store: dist.Store, rank: int) -> dict[str, Any]:
        return json.loads(store.get(_key(rank))) if store.check([_key(rank)]) else {}

    def _watch(self) -> None:
        store: dist.Store | None = None
        answered = time.monotonic()
        while not self._stopping.wait(INTERVAL):
            self._end_an_orphan()
            try:
                if store is None:
                    store = self._connect()
                self._beat(store)
                for rank in range(1, self._world) if self._rank == 0 else (0,):
                    self._look_at(rank, self._sign(store, rank), store)
                answered = time.monotonic()
            except RuntimeError:  # the store does not answer
                store = None
                if time.monotonic() - answered > self.timeout:
                    self._end("the first process or torchrun has not answered")

    def _look_at(self, rank: int, sign: dict[str, Any], store: dist.Store) -> None:
        now = time.monotonic()
        before, since = self._seen.get(rank, ({}, now))
        if sign != before or _GONE in sign:
            self._seen[rank] = sign, now
            if rank in self._warned:
                self._warned.discard(rank)
                log.warning("process %d of %d answers again", rank, self._world)
            return
        silent, who = now - since, _named(rank, self._world, sign)
        if silent > self.timeout:
            message = f"{who} has not answered for {silent:.0f} s. It may be stopped, killed or disconnected"
            record = {"rank": self._rank, "message": message, "kind": "RankFailed"}
            store.compare_set(_FIRST, "", json.dumps(record))
            self._end(message)
        elif silent > min(_WARN_AFTER, self.timeout / 2) and rank not in self._warned:
            self._warned.add(rank)
            rest = f"the others wait for it, and end after {self.timeout:g} s (--timeout)"
            log.warning("%s has not answered for %.0f s; %s", who, silent, rest)

    def _end(self, message: str) -> None:
        """End this process, whose main thread waits in an operation that no other will complete."""
        message += f". {_RESUME}"
        print(f"selfcluster: {message}", file=sys.stderr, flush=True)
        self.on_end(message)
        os._exit(1)

    def _end_an_orphan(self) -> None:
        if self._parent is None or os.getppid() == self._parent:
            return
        log.warning("torchrun (process %d) has ended, so this process saves the run and ends", self._parent)
        self._parent = None
        os.kill(os.getpid(), signal.SIGTERM)  # the loop saves at its next step
        timer = threading.Timer(_TO_SAVE, self._end, ["torchrun has ended, and saving took too long"])
        timer.daemon = True
        timer.start()


def _leave(number: int, frame: object) -> None:
    """SIGTERM outside the loop: an exception, so that the process first says what happened."""
    raise SystemExit(128 + number)


@contextmanager
def _without_sigterm() -> Iterator[None]:
    """Let the launcher's SIGTERM, which follows the death of a process at once, wait for a few seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _key(rank: int) -> str:
    return f"sign of life {rank}"


def _named(rank: int, world: int, sign: dict[str, Any]) -> str:
    pid, host, where = sign.get("pid", "?"), sign.get("host", "?"), sign.get("where", "the start")
    return f"process {rank} of {world} (pid {pid} on {host}, {where})"
