"""What every child process of a run does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable


def settle_child(ignore: Iterable[signal.Signals]) -> None:
    """Leave these signals to the parent, and die with it.

    Ctrl-C and a closing terminal reach the whole process group; the parent stops feeding and ends its
    children itself. A parent that is killed outright cannot, so the kernel is asked to do it.
    """
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:  # gone before the kernel was asked
            os._exit(1)
