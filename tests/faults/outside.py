"""batchinfer as kills.py starts it: slow, perhaps with locks that hold nobody back, perhaps broken.

    python -m tests.faults.outside run …

Variables of the environment say so, as child processes import this module as their main one, and inherit
them: POISON_… are those of tests/poison.py; LOCKS=off makes `fcntl.lockf` do nothing, as on a file system
that does not pass locks on to other machines; MUTANT names a protocol broken on purpose (`MUTANTS`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import tests.poison  # noqa: F401 - makes the fake engine slow
from tests.faults.mutants import lock_nothing, rename_over, set_all

#: How long a broken step takes here. It is broken at any speed; a slow one is met by fewer kills.
_PAUSE = 0.03


def write_slowly_in_place() -> None:
    """A shard is written straight under its final name."""
    from batchinfer.writers.durable import sync_directory
    from batchinfer.writers.run_folder import RunFolder

    def commit(self: RunFolder, name: str, content: memoryview) -> bool:
        try:
            descriptor = os.open(self.data / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            os.write(descriptor, part)
            time.sleep(_PAUSE)
        os.fsync(descriptor)
        os.close(descriptor)
        sync_directory(self.data)
        return True

    set_all("commit", commit, RunFolder)


def next_free_name() -> None:
    """Where a shard's name is taken, it gets the next one that is free."""
    from batchinfer.core import parse_shard_name, shard_name
    from batchinfer.writers.run_folder import RunFolder

    commit = RunFolder.commit

    def insist(self: RunFolder, name: str, content: memoryview) -> bool:
        while not commit(self, name, content):
            taken = parse_shard_name(name)
            assert taken is not None
            name = shard_name(taken._replace(chunk=taken.chunk + 1))
        return True

    set_all("commit", insist, RunFolder)


def begin_anew() -> None:
    """A run that saw no plan takes the folder for its own, though another has begun in it since."""
    from batchinfer.writers.durable import replace
    from batchinfer.writers.run_folder import RunFolder

    def join(self: RunFolder, plan: Any) -> Any:
        self._remove_shards()
        replace(self.temporary / "plan", self.plan_path, plan.to_json())
        return plan

    set_all("join", join, RunFolder)


def vouch_for_a_part() -> None:
    """A part that is done takes the whole for done, and does not look whether its shards join."""
    from batchinfer.writers import run_folder

    set_all("is_complete", lambda self, plan: True, run_folder.RunFolder)
    set_all("pairwise", lambda shards: (), run_folder)


def forget_the_dead() -> None:
    """What a device's process was at when it died is looked into by nobody."""
    from batchinfer.executors.processes import Processes

    replace = vars(Processes)["_replace"]

    def careless(self: Processes, *arguments: Any) -> Any:
        had_suspects = self.has_suspects
        free = replace(self, *arguments)
        self.has_suspects = had_suspects
        return free

    set_all("_replace", careless, Processes)


MUTANTS: dict[str, Callable[[], None]] = {
    "a replacing rename in place of the link": rename_over,
    "shards are written straight under their final name": write_slowly_in_place,
    "a name that is taken becomes the next free one": next_free_name,
    "who saw no plan begins anew, though there is one by now": begin_anew,
    "a part that is done vouches for the whole": vouch_for_a_part,
    "what a process was at when it died is forgotten": forget_the_dead,
}

if os.environ.get("LOCKS") == "off":
    lock_nothing()
if mutant := os.environ.get("MUTANT"):
    MUTANTS[mutant]()

if __name__ == "__main__":
    from batchinfer.cli import main

    sys.exit(main())
