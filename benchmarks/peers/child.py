"""One contestant in a process of its own, started by contest.py: a line of JSON for each that it gets.

The first line says which contestant to load, and in which setting; those after it, files to answer.
Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import KINDS, Contestant


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant: Contestant | None = None
    for line in sys.stdin:
        message = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if contestant is None:
                kind, model = KINDS[message["kind"]], Path(message["model"])
                contestant = kind(model, message["task"], message["setting"])
            else:
                reply = timed(contestant, Path(message["source"]), Path(message["output"]))
        except Exception as error:
            reply = {"failed": one_line(error)}
        replies.write(json.dumps(reply) + "\n")


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def timed(contestant: Contestant, source: Path, output: Path) -> dict[str, Any]:
    """A round: its wall seconds, the CPU seconds of this process and its children, and what it says."""
    gc.collect()
    before = cpu_seconds()
    started = time.perf_counter()
    said = contestant.work(source, output)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - before,
        "wall_seconds": seconds,
        **said,
    }


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main()
