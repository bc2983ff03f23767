"""Marks of the chunks that are under way, so that a process that dies leaves word of where it was.

A mark is an empty file. It says that the chunk was being tokenized, or was on the device, when the
process ended without a word: perhaps a row of it killed the process, perhaps somebody else did. So
it is weak evidence, and has one consequence only: the next run answers that chunk, in the batches
planned for it, in a process of its own (engines/supervised.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from batchinfer.core import ChunkId, parse_shard_name, shard_name

_PREFIX = "attempt-"
#: What has a mark's name already may be a stranger's: no link is followed, no FIFO waited for.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Attempts:
    """The marks in a folder (None: nothing is marked). It pickles: loader processes mark too.

    Nothing is synced, as a power cut is no fault of a row. A mark that cannot be written stops
    nothing.
    """

    folder: Path | None = None

    @contextmanager
    def loading(self, chunk: ChunkId) -> Iterator[None]:
        """Mark a chunk while it is tokenized."""
        self.begin(chunk)
        try:
            yield
        finally:  # also where an error ends it: the process lives, and says itself what is wrong
            self.end(chunk)

    def begin(self, chunk: ChunkId) -> None:
        """Mark a chunk as under way."""
        if self.folder is not None:
            with suppress(OSError):
                os.close(os.open(self._path(self.folder, chunk), _FLAGS, 0o666))

    def end(self, chunk: ChunkId) -> None:
        """Take the mark of a chunk away."""
        if self.folder is not None:
            with suppress(OSError):
                os.unlink(self._path(self.folder, chunk))

    def clear(self) -> None:
        """Take all marks away."""
        for chunk in self.marked():
            self.end(chunk)

    def marked(self) -> set[ChunkId]:
        """The chunks that are marked."""
        if self.folder is None:
            return set()
        names = (name for name in os.listdir(self.folder) if is_mark(name))
        chunks = (parse_shard_name(name.removeprefix(_PREFIX)) for name in names)
        return {chunk for chunk in chunks if chunk is not None}

    @staticmethod
    def _path(folder: Path, chunk: ChunkId) -> Path:
        return folder / f"{_PREFIX}{shard_name(chunk)}"


def is_mark(name: str) -> bool:
    """Whether a file of this name is a mark."""
    return name.startswith(_PREFIX)
