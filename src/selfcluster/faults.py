"""Named points at which a test lets a real process die, hang or fail. Without the variable they do nothing.

SELFCLUSTER_FAULT="NAME:ACTION" or "NAME:ACTION:N" acts at the Nth arrival at the point NAME, the first by default.
"""

from __future__ import annotations

import errno
import os
import signal
import time

VARIABLE = "SELFCLUSTER_FAULT"
_arrivals: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Act as the environment asks at the point `name`.

    The actions are kill (SIGKILL), stop (SIGSTOP), sleep (an hour), full (the disk is full) and raise (RuntimeError).
    SELFCLUSTER_FAULT_RANK restricts the action to one process under torchrun, SELFCLUSTER_FAULT_ATTEMPT to one start.
    """
    wish = os.environ.get(VARIABLE)
    if not wish or wish.partition(":")[0] != name:
        return
    for variable, ours in ((f"{VARIABLE}_RANK", "RANK"), (f"{VARIABLE}_ATTEMPT", "TORCHELASTIC_RESTART_COUNT")):
        if os.environ.get(variable, "") not in ("", os.environ.get(ours, "0")):
            return
    _, action, *number = wish.split(":")
    _arrivals[name] = _arrivals.get(name, 0) + 1
    if _arrivals[name] != int(number[0] if number else 1):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        time.sleep(3)  # until a sign of life, one a second, names this step
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "sleep":
        time.sleep(3600)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "raise":
        raise RuntimeError(f"fault injected at {name}")
    else:
        raise ValueError(f"{VARIABLE}={wish}: the actions are kill, stop, sleep, full and raise")
