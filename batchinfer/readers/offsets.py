"""Where rows of a large file stand: an index that whoever passes over a file leaves to others.

It lies in the run folder, is a cache and never state: it may be deleted at any moment, and what is missing,
torn or damaged in it is found again by reading. A file of it belongs to one job and one file of its input
as it was when the job was planned (size and time or version), read in one way; its name says which:

    _batchinfer/index/000003-5f0c….txt      a line for each entry: block, offset, lines, rows, checksum

Lines are appended, and begin and end with a line end: of two writers none waits, and neither a torn line
nor two that a network file system has mixed up hide the next. Nothing is synced.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from batchinfer.core import InputFile, ordinal
from batchinfer.readers.base import ReadOptions

#: An entry describes so much of a file. To count its lines takes some 30 ms, once it is in memory.
BLOCK_BYTES = 64 << 20
#: Read by older versions as well, or the number changes.
_FORMAT = 1
#: What has an index's name already may be a stranger's: no link is followed, no FIFO waited for.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


class Entry(NamedTuple):
    """A place in a block of a file, `offset`, at which a line begins.

    JSON Lines: the first line that begins in the block, and how many `lines` and `rows` begin in it. CSV: a
    record, and how many lines and rows stand in front of it.
    """

    block: int
    offset: int
    lines: int
    rows: int


@dataclass(frozen=True, slots=True)
class OffsetIndex:
    """The index in a folder (None: nothing is kept) of a job, by its id.

    It pickles: loader processes use it too.
    """

    folder: Path | None = None
    job: str = ""

    def of(self, segment: int, file: InputFile, options: ReadOptions) -> FileIndex:
        """What is known of the only file of a segment, as it is read with these options."""
        of_file = (file.source, file.format, file.size, file.mtime_ns, file.version)
        read = (options.encoding, options.delimiter, options.header, options.max_line_bytes)
        key = repr((_FORMAT, BLOCK_BYTES, self.job, of_file, read)).encode("utf-8", "replace")
        digest = hashlib.sha256(key).digest()[:16]
        if self.folder is None:
            return FileIndex()
        return FileIndex(self.folder / f"{ordinal(segment)}-{digest.hex()}.txt", digest)


class FileIndex:
    """The index of one file, kept at `path`, or nowhere. What cannot be read or written stops nothing.

    `key` stands for all that the places depend on.
    """

    def __init__(self, path: Path | None = None, key: bytes = b"") -> None:
        self._path = path
        self._key = key
        self._entries: dict[int, Entry] = {}
        self._size_seen = 0

    def get(self, block: int) -> Entry | None:
        """The entry of a block; asks what others have found by now where this process knows of none."""
        if block not in self._entries:
            self._refresh()
        return self._entries.get(block)

    def entries(self) -> list[Entry]:
        """All that is known by now, also to others."""
        self._refresh()
        return list(self._entries.values())

    def add(self, entry: Entry) -> None:
        """Tell others of an entry."""
        self._entries[entry.block] = entry
        if self._path is None:
            return
        line = b" ".join(b"%d" % number for number in entry)
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkdir(self._path.parent)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS
            descriptor = os.open(self._path, flags, 0o666)
            try:
                os.write(descriptor, b"\n%b %b\n" % (line, self._checksum(line)))
            finally:
                os.close(descriptor)

    def discard(self) -> None:
        """Forget all: it does not fit the file."""
        self._entries, self._size_seen = {}, 0
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)

    def _refresh(self) -> None:
        if self._path is None:
            return
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY | _FLAGS)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_size != self._size_seen:
                    with open(descriptor, "rb", closefd=False) as file:
                        self._read(file.read(status.st_size))
                    self._size_seen = status.st_size
            finally:
                os.close(descriptor)

    def _read(self, content: bytes) -> None:
        for record in content.split(b"\n"):
            line, _, checksum = record.rpartition(b" ")
            if not line or checksum != self._checksum(line):
                continue
            with suppress(ValueError, TypeError):  # whoever wrote it, it was not this program
                entry = Entry(*map(int, line.split()))
                self._entries[entry.block] = entry

    def _checksum(self, line: bytes) -> bytes:
        return hashlib.sha256(self._key + line).hexdigest()[:16].encode()
