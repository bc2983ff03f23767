"""Keeps those who write for a run on other machines from writing when the run is over.

Whoever answers chunks for a run that holds a folder may outlive it: a machine that is cut off hears
late that the run was killed. So each holds a lock of its own in tmp/, and looks, when it has it, whether
the run is still the folder's. The next run says that it holds the folder, and then waits for those locks:
either it sees the lock, or the other sees that the folder has changed hands.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchinfer.errors import Interrupted, StorageError
from batchinfer.writers.durable import open_regular

_PREFIX, _SUFFIX = "guest-", ".lock"
#: How long a run waits for those of one before it: Ray ends a dead run's actors within seconds.
_WAIT_SECONDS = 30.0
#: How long a network file system may show what stood in a folder before.
_LOOK_SECONDS = 5.0


@contextmanager
def guest_of(state: Path, run_id: str, name: str) -> Iterator[None]:
    """Write for a run while it holds the folder whose `_batchinfer` is `state`.

    Raises StorageError where the folder cannot be seen, and Interrupted where it is another's.
    """
    holder, lock = state / "holder.json", state / "tmp" / f"{_PREFIX}{name}{_SUFFIX}"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except FileNotFoundError:
        raise StorageError(
            f"{state.parent}: not there on {os.uname().nodename}; the run folder and the inputs must lie "
            "on a file system that all machines share"
        ) from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        until = time.monotonic() + _LOOK_SECONDS
        while _run_of(holder) != run_id:
            if time.monotonic() >= until:
                raise Interrupted(f"{state.parent}: the run that this was to help is over")
            time.sleep(0.2)
        yield
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _run_of(holder: Path) -> str:
    """The run that says that it holds the folder; empty where none does."""
    try:
        with open_regular(holder) as file:
            return str(json.loads(file.read())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def await_guests(temporary: Path) -> None:
    """Wait until nobody writes for a run that held the folder before. Raises Interrupted."""
    until = time.monotonic() + _WAIT_SECONDS
    for lock in temporary.glob(f"{_PREFIX}*{_SUFFIX}"):
        while is_held(lock):
            if time.monotonic() >= until:
                raise Interrupted(
                    f"{temporary.parent.parent}: an actor of the run before is still at work; try "
                    "again when it has ended"
                )
            time.sleep(0.1)
        lock.unlink(missing_ok=True)


def forget_guests(temporary: Path) -> None:
    """Take away the locks of those who died, once the folder has no holder."""
    for lock in temporary.glob(f"{_PREFIX}*{_SUFFIX}"):
        if not is_held(lock):
            lock.unlink(missing_ok=True)


def is_guest(name: str) -> bool:
    """Whether a file of this name is the lock of somebody who writes for a run."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def is_held(lock: Path) -> bool:
    """Whether another process holds a lock; it must not be one that this process holds."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.lockf(descriptor, os.F_TEST, 0)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
