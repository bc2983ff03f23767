"""What every child process of a run needs: its signals left to the parent, and an end with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, resource_tracker
from typing import Any

log = logging.getLogger("batchinfer")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold back signals while a child is started: it inherits that, until `settle_child`.

    Otherwise Ctrl-C would kill a child that has not yet come to ignoring it. The parent takes its
    own signals when the block ends.
    """
    resource_tracker.ensure_running()  # started within, it would let the signals go
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals(ignore: Iterable[signal.Signals]) -> None:
    """Leave these signals to the parent.

    Ctrl-C and a closing terminal reach the whole process group; the parent stops feeding and ends its
    children itself.
    """
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def settle_child(ignore: Iterable[signal.Signals]) -> None:
    """Leave these signals to the parent, and die with it.

    A parent that is killed outright cannot end its children, so the kernel is asked to do it.
    """
    leave_signals(ignore)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:  # gone before the kernel was asked
            os._exit(1)


@dataclass(frozen=True, slots=True)
class Said:
    """A line that a child wants logged, where messages are cleaned and shown."""

    level: int
    message: str

    def log(self) -> None:
        log.log(self.level, self.message)


class Line:
    """A child's end of the pipe to its parent; any of its threads may send."""

    def __init__(self, pipe: connection.Connection[Any, Any]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.recv = pipe.recv

    def send(self, message: object) -> None:
        with self._lock:
            self._pipe.send(message)

    def relay_log(self, level: int) -> None:
        """Have the parent log what is logged here."""
        log.handlers, log.propagate = [_Relay(self)], False
        log.setLevel(level)


class _Relay(logging.Handler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._line.send(Said(record.levelno, record.getMessage()))


class Child:
    """A process of its own and the pipe to it: `serve` is called there with its end, and `arguments`.

    `daemon`: it has no children itself.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any, daemon: bool = True) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=daemon)
        with hold_signals():
            self.process.start()
        theirs.close()  # the child's end is the child's alone: its death is the end of the file

    def close(self) -> None:
        """End the process; at the end of its work it does so by itself when the pipe closes."""
        self.pipe.close()
        self.process.join(1.0)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    @property
    def hint(self) -> str:
        """What may be the cause, where it died at its start."""
        if self.process.exitcode != 1:
            return ""
        return '; does your script guard what it runs by `if __name__ == "__main__":`?'

    def death(self) -> str:
        """How it died, in words, once it has closed the pipe."""
        self.process.join(5.0)
        self.kill()  # it closed the pipe, and lingers
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended its process (exit code {code})"
        try:
            return f"killed its process ({signal.Signals(-code).name})"
        except ValueError:
            return f"killed its process (signal {-code})"
