"""Who holds a run folder: asked without its lock."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from batchinfer.errors import Interrupted, JobMismatchError
from batchinfer.machine import cache_folder
from batchinfer.storage import Place, RemotePath, place_of_output
from batchinfer.writers.durable import open_regular
from batchinfer.writers.fence import is_held

#: How the caller names a run folder: a path, or the address of one in a store.
Name = str | os.PathLike[str] | RemotePath
#: Holders that a message names.
MOST_HOLDERS = 3
#: The run folders that this process holds, by `identity`.
HELD: set[str] = set()
#: A run id begins with the time.
_BEGAN = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)")


def is_locked(path: Name) -> bool:
    """Whether a live process holds the run folder; asks without taking the lock."""
    place = place_of_output(path)
    if identity(place) in HELD:
        return True
    state = local_state(place)
    # Locks that are shared do not show when one asks for them; but whoever shares one has another.
    return any(map(is_held, [state / "lock", *state.glob("tmp/part-*-of-*/lock")]))


def refuse_live(path: Name, command: str) -> None:
    """Raise Interrupted where a live process holds the run folder that `command` is to read."""
    if is_locked(path):
        raise Interrupted(
            f"{path}: a run is at work here ({describe_holder(path)}); {command} it when it is done, or "
            f"watch it with `batchinfer status {path}`"
        )


def describe_holder(path: Name) -> str:
    """Who holds a run folder, as it said itself; of many, some."""
    said = filter(None, map(_read_holder, holders_of(path)[:MOST_HOLDERS]))
    return ", ".join(map(str, said)) or "its holder did not say who it is"


def live_runs(path: Name) -> Iterator[tuple[Path, str]]:
    """Who holds a run folder, as far as can be seen here: where each writes its events, and its run id."""
    local = local_state(place_of_output(path))
    for holder in filter(None, map(_read_holder, holders_of(path))):
        yield local, holder.run_id


class _Holder(NamedTuple):
    """What a holder says it is."""

    pid: str
    host: str
    run_id: str

    def __str__(self) -> str:
        began = _BEGAN.match(self.run_id)
        since = ", since {}-{}-{} {}:{}:{} UTC".format(*began.groups()) if began else ""
        return f"pid {self.pid} on {self.host}{since}"


def _read_holder(place: Place) -> _Holder | None:
    """None where it cannot be read."""
    try:
        with open_regular(place) as file:
            holder = json.loads(file.read())
        return _Holder(*(str(holder[name])[:100] for name in _Holder._fields))
    except (JobMismatchError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def holders_of(path: Name) -> list[Path]:
    """Where holders of a run folder say who they are; those of parts that are alive."""
    place = place_of_output(path)
    state = local_state(place)
    places = [state / "holder.json"]
    parts = sorted(state.glob("tmp/part-*-of-*/holder.json"))
    # A lock that this process holds must not be opened: closing it again would drop it.
    is_ours = identity(place) in HELD
    places += [place for place in parts if is_ours or is_held(place.with_name("lock"))]
    return [place for place in places if place.exists()]


def local_state(place: Place) -> Path:
    """Where the lock of a run folder is, and what its processes keep for themselves: never in a store.

    Of a folder in a store that is below the user's cache: locks, marks and journals are of one machine.
    """
    if isinstance(place, Path):
        return place / "_batchinfer"
    return cache_folder() / "remote" / hashlib.sha256(place.url.encode()).hexdigest()[:32]


def identity(place: Place) -> str:
    """What tells two names of one run folder from those of two."""
    return os.path.realpath(place) if isinstance(place, Path) else place.url
