"""Runs the command line with a fault: kills its own process at the n-th file-system call.

    python driver.py count LOG -- run …            write the calls to LOG, one a line
    python driver.py kill N before|after -- run …  SIGKILL at call N, before or after it takes effect

Calls are counted where batchinfer makes them, in Python: strace counts per thread and kills only
before a call takes effect.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

CALLS = ("open", "write", "fsync", "link", "unlink", "mkdir", "replace")


def main() -> int:
    mode, *settings = sys.argv[1 : sys.argv.index("--")]
    arguments = sys.argv[sys.argv.index("--") + 1 :]
    counter = itertools.count(1)
    lock = threading.Lock()  # the writer is a thread: calls are numbered one at a time

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            with lock:
                number = next(counter)
                if mode == "count":
                    with real_open(settings[0], "a") as log:
                        log.write(f"{number} {name}\n")
                    return call(*args, **kwargs)
                fatal = number == int(settings[0])
                if fatal and settings[1] == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args, **kwargs)
                if fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

        return watch

    real_open = open
    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))

    from batchinfer.cli import main as cli_main

    return cli_main(arguments)


if __name__ == "__main__":
    sys.exit(main())
