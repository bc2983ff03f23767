"""What every child process of a run needs: its signals left to the parent, and an end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

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


def settle_child(ignore: Iterable[signal.Signals]) -> None:
    """Leave these signals to the parent, and die with it.

    Ctrl-C and a closing terminal reach the whole process group; the parent stops feeding and ends its
    children itself. A parent that is killed outright cannot, so the kernel is asked to do it.
    """
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:  # gone before the kernel was asked
            os._exit(1)
