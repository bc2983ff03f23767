"""What a process that answers for a parent elsewhere does, and what it says meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from batchinfer.attempts import Attempts
from batchinfer.core import BatchBudget, ChunkId, LoadedChunk
from batchinfer.executors.inline import Inline
from batchinfer.reporting.progress import Measured, Progress
from batchinfer.writers.run_folder import RunFolder

#: How often a process says how far it is, in seconds.
_TELL_SECONDS = 0.1


class Sender(Protocol):
    """A way to the parent; any thread may send."""

    def send(self, message: object) -> None: ...


class Ready(NamedTuple):
    """The model is loaded."""

    dtype: str
    device_kind: str
    default_budget: BatchBudget


class Taken(NamedTuple):
    """There is room for another chunk."""


class Told(NamedTuple):
    """How far a process came since it said so last."""

    num_rows: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    recalled: int = 0
    loaded_rows: int = 0
    loaded_tokens: int = 0

    def to(self, progress: Progress) -> None:
        if self.loaded_rows:
            progress.loaded(self.loaded_rows, self.loaded_tokens)
        if self.recalled:
            progress.recalled(self.recalled)
        progress.answered(self.num_rows, self.num_tokens)
        if self.num_errors:
            progress.failed(self.num_errors)


class Teller:
    """Tells the parent how far this process is, a few times a second."""

    def __init__(self, line: Sender) -> None:
        self._line = line
        self._untold = Told()
        self._told = time.monotonic()

    def begin(self, *, rows_done: int, rows_expected: int) -> None: ...

    def loaded(self, num_rows: int, num_tokens: int) -> None:
        self._add(Told(loaded_rows=num_rows, loaded_tokens=num_tokens))

    def recalled(self, num_rows: int) -> None:
        self._add(Told(recalled=num_rows))

    def answered(self, num_rows: int, num_tokens: int) -> None:
        self._add(Told(num_rows, num_tokens))

    def failed(self, num_errors: int) -> None:
        self._add(Told(num_errors=num_errors))

    def measured(self, said: Measured) -> None:
        self._line.send(said)

    def end(self) -> None:
        """Tell what was not told yet."""
        if any(self._untold):
            self._line.send(self._untold)
        self._untold, self._told = Told(), time.monotonic()

    def _add(self, more: Told) -> None:
        self._untold = Told(*map(sum, zip(self._untold, more, strict=True)))
        if time.monotonic() >= self._told + _TELL_SECONDS:
            self.end()


def answer_pass(
    line: Sender,
    inline: Inline,
    folder: RunFolder,
    budget: BatchBudget,
    chunks: Iterable[LoadedChunk],
    attempts: Attempts,
    *,
    vouched: bool,
) -> None:
    """Answer chunks and commit their shards, telling of each, and at the end where the time went."""
    teller = Teller(line)
    if vouched:
        inline.vouch()
    open_chunks: set[ChunkId] = set()

    def begun() -> Iterator[LoadedChunk]:
        for chunk in chunks:
            open_chunks.add(chunk.chunk.id)
            yield chunk.pin_memory() if inline.pins_memory else chunk

    for committed in inline.answer(folder, budget, begun(), teller, attempts):
        open_chunks.discard(committed.shard.id)
        teller.end()
        line.send(committed)
    for id in open_chunks:  # dropped by a stop: nothing is wrong with them
        attempts.end(id)
    teller.end()
    line.send(inline.stages)
