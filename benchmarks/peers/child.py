"""One contestant in a process of its own, started by contest.py: a line of JSON for each that it gets.

The first line says which contestant to load, or which settings of it to try; those after it, files to
answer. Whatever libraries print goes to stderr.
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

#: Settings within this of the quickest are tried a second time.
CLOSE = 1.15


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant: Contestant | None = None
    for line in sys.stdin:
        message = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if "settings" in message:
                reply = {"tried": search(message)}
            elif contestant is None:
                contestant = make(message, message["setting"])
            else:
                contestant.setting |= message["more"]
                reply = timed(contestant, Path(message["source"]), Path(message["output"]))
        except Exception as error:
            reply = {"failed": one_line(error)}
        replies.write(json.dumps(reply) + "\n")


def make(message: dict[str, Any], setting: dict[str, Any]) -> Contestant:
    return KINDS[message["kind"]](Path(message["model"]), message["task"], setting)


def search(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of each setting on a few rows, and once more where it is close to the quickest."""
    warm, source, output = (Path(message[name]) for name in ("warm", "source", "output"))

    def attempt(setting: dict[str, Any]) -> float:
        contestant = make(message, setting)
        contestant.work(warm, output)
        return float(timed(contestant, source, output)["seconds"])

    tried: list[dict[str, Any]] = []
    for setting in message["settings"]:
        try:
            tried.append({"setting": setting, "seconds": attempt(setting)})
        except Exception as error:
            tried.append({"setting": setting, "failed": one_line(error)})
    found = [one for one in tried if "seconds" in one]
    least = min((one["seconds"] for one in found), default=0.0)
    close = [one for one in found if one["seconds"] < CLOSE * least]
    for one in close if len(close) > 1 else []:
        one["seconds"] = min(one["seconds"], attempt(one["setting"]))
    return tried


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
