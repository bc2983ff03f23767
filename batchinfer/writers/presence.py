"""Who is at work in a run folder that lies in a store.

No lock reaches other machines. So each holder says in the store that it is there, under a name of its own,
and takes that back at its end. Whoever is killed leaves word behind, which its machine takes away the next
time. That keeps nobody from adding shards, only from changing those that are there.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from batchinfer.storage import RemotePath
from batchinfer.writers.durable import open_regular, publish

_PREFIX, _SUFFIX = "holder-", ".json"


class Presence:
    """A holder's word in `state`, the `_batchinfer` of a folder in a store.

    `local`: what this machine keeps of that folder; two holders are of one machine where they share it.
    """

    def __init__(self, state: RemotePath, local: Path, run_id: str) -> None:
        self._state = state
        self._own = f"{_PREFIX}{run_id}{_SUFFIX}"
        self._machine = _machine_of(local)

    def announce(self) -> None:
        """Say that this holder is there."""
        word = {"pid": os.getpid(), "host": socket.gethostname(), "machine": self._machine}
        (self._state / self._own).put(json.dumps(word).encode())

    def withdraw(self) -> None:
        """Take it back."""
        (self._state / self._own).unlink(missing_ok=True)

    def forget_killed(self) -> None:
        """Take away what is left of this machine's; for who knows that no other holder of it is alive."""
        for name, (machine, _) in self._words().items():
            if machine == self._machine:
                (self._state / name).unlink(missing_ok=True)

    def others(self) -> dict[str, str]:
        """Who may be at work on other machines, by the address of the word that says so."""
        return {
            f"{self._state}/{name}": who
            for name, (machine, who) in self._words().items()
            if machine != self._machine
        }

    def _words(self) -> dict[str, tuple[str, str]]:
        """The machine and the process of each holder but this one, by the name of its word."""
        words = {}
        for name in self._state.names():
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and name != self._own:
                machine, who = "", "somebody"
                with suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
                    with open_regular(self._state / name) as file:
                        said = json.loads(file.read())
                    who = f"pid {str(said['pid'])[:20]} on {str(said['host'])[:100]}"
                    machine = str(said["machine"])
                words[name] = (machine, who)
        return words


def _machine_of(local: Path) -> str:
    """What tells a machine's holders from others': drawn when the first of them comes."""
    place = local / "machine"
    publish(local / f"machine.{secrets.token_hex(4)}", place, secrets.token_hex(16).encode())
    return place.read_text(encoding="ascii", errors="replace")
