"""Finding a row that no shard says the place of, without reading all that stands in front of it.

JSON Lines: how many rows begin in each block of 64 MiB is counted by line ends alone, or known from the
index. Blocks can be counted in any order. So a part of a job begins with those just in front of its own
rows and goes backwards, and looks before each block whether another part has counted it by now: parts that
start together count a file once between them.

CSV: a line end may stand within quotes, so records are counted from front to back, from the nearest place
that the index knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from batchinfer.core import InputFile, Position, Segment
from batchinfer.errors import StorageError
from batchinfer.readers import offsets
from batchinfer.readers.base import ReadOptions, shown
from batchinfer.readers.compression import ByteStream, open_bytes
from batchinfer.readers.offsets import Entry, FileIndex, OffsetIndex
from batchinfer.readers.text import BLANK, BOM, is_utf8

_PIECE_BYTES = 1 << 20
_IS_BLANK = np.isin(np.arange(256), list(BLANK + b"\n"))


def index_of(segment: Segment, options: ReadOptions, index: OffsetIndex) -> FileIndex | None:
    """The index of a segment's file; None where places in it are of no use.

    A compressed file is decompressed up to any place, Parquet finds a row by itself, and small files,
    several of which are a segment, are read as quickly.
    """
    file = segment.files[0]
    is_plain = file.format != "parquet" and not file.compression and is_utf8(options.encoding)
    if len(segment.files) > 1 or not is_plain:
        return None
    return index.of(segment.index, file, options)


def seek(
    file: InputFile,
    start: Position,
    row: int,
    options: ReadOptions,
    known: FileIndex,
    check: Callable[[], None],
    stopped: Callable[[], bool],
) -> Position | None:
    """A position from which it is not far to a row that stands behind `start`; None: there was a stop.

    `check` sees that the file is the one that was planned: nothing else is noted in the index. Raises what
    it raises, and StorageError where the file cannot be read.
    """
    try:
        with closing(open_bytes(file.path, "")) as raw:
            search = _Search(file, raw, options.max_line_bytes, known, check, stopped)
            if file.format != "jsonl":
                return search.nearest(start, row)
            try:
                return search.by_counting(start, row)
            except _MisfitError:  # whoever wrote the index, it is not of this file
                known.discard()
                return dataclasses.replace(search, known=FileIndex()).by_counting(start, row)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", file=shown(file.path)) from error


class _MisfitError(Exception):
    """The index says that a line begins where none does."""


def note(known: FileIndex, file: InputFile, position: Position) -> None:
    """Keep a position in a CSV file that was come by; in JSON Lines, what was counted is kept already."""
    block = position.offset // offsets.BLOCK_BYTES
    if file.format != "jsonl" and block and known.get(block) is None:
        known.add(Entry(block, position.offset, position.line, position.row))


@dataclass(frozen=True, slots=True)
class _Search:
    """A search in an open file; `limit`: a longer line is a row, be it blank."""

    file: InputFile
    raw: ByteStream
    limit: int
    known: FileIndex
    check: Callable[[], None]
    stopped: Callable[[], bool]

    def nearest(self, start: Position, row: int) -> Position:
        """The last place in front of a row that the index knows."""
        before = [e for e in self.known.entries() if start.row < e.rows <= row]
        for entry in sorted(before, reverse=True):
            if self.begins_line(entry.offset):
                return Position(start.file, entry.offset, entry.lines, entry.rows)
        return start

    def by_counting(self, start: Position, row: int) -> Position | None:
        """The beginning of the block with a row; of the last block, where there are not so many."""
        size = offsets.BLOCK_BYTES
        num_blocks = -(-self.file.size // size)
        place, block = start, start.offset // size
        lines, rows = start.line, start.row
        if start.offset:  # the rest of this block
            rest = self._count(start.offset, (block + 1) * size)
            lines += not self.begins_line(start.offset)  # the line that a part goes on with
            lines, rows, block = lines + rest.lines, rows + rest.rows, block + 1
        if row < rows or block >= num_blocks:
            return start
        first = self._entry(block)
        if first is None:
            return None
        # The mean of what is known says about which block it is in; those in front of it come first.
        entries = self.known.entries()
        mean = sum(e.rows for e in entries) / max(1, len(entries))
        guess = block + int((row - rows) / max(1.0, mean))
        for number in range(min(guess, num_blocks - 1), block, -1):
            if self._entry(number) is None:
                return None
        while block < num_blocks:
            entry = self._entry(block)
            if entry is None:
                return None
            if entry.lines:
                if not self.begins_line(entry.offset):
                    raise _MisfitError
                place = Position(start.file, entry.offset, lines, rows)
            if row < rows + entry.rows:
                return self._closer(place, (block + 1) * size, row)
            lines, rows, block = lines + entry.lines, rows + entry.rows, block + 1
        return place

    def _closer(self, place: Position, end: int, row: int) -> Position:
        """A position nearer to a row, which begins between `place` and `end`."""
        begin, lines, rows = place.offset, place.line, place.row
        while begin < end:
            piece = self._count(begin, begin + _PIECE_BYTES)
            if piece.lines:
                place = Position(place.file, piece.offset, lines, rows)
            lines, rows, begin = lines + piece.lines, rows + piece.rows, begin + _PIECE_BYTES
            if row < rows:
                break
        return place

    def begins_line(self, offset: int) -> bool:
        """Whether a line begins at an offset in the file."""
        if not 0 < offset < self.file.size:
            return offset == 0
        self._seek(offset - 1)
        return self.raw.read(1) == b"\n"

    def _entry(self, block: int) -> Entry | None:
        """A block's, counted where nobody has; None: there was a stop."""
        if (entry := self.known.get(block)) is not None:
            return entry
        if self.stopped():
            return None
        entry = self._count(block * offsets.BLOCK_BYTES, (block + 1) * offsets.BLOCK_BYTES)
        self.check()
        self.known.add(entry)
        return entry

    def _count(self, begin: int, end: int) -> Entry:
        """Count the lines that begin in [begin, end), and those of them that are rows."""
        end = min(end, self.file.size)
        tally = _Tally(self.limit)
        place = begin
        if begin:
            self._seek(begin - 1)
            tally.is_line_end = self.raw.read(1) == b"\n"
        else:
            self._seek(0)
            head = self._read(len(BOM))
            tally.take(head.removeprefix(BOM), 0)
            place = len(head)
        while place < end and (data := self.raw.read(min(_PIECE_BYTES, end - place))):
            tally.take(data, place)
            place += len(data)
        while tally.is_undecided and (data := self.raw.read(_PIECE_BYTES)):
            tally.finish(data)
        tally.end()
        first = end if tally.first is None else tally.first if begin else 0
        return Entry(begin // offsets.BLOCK_BYTES, first, tally.lines, tally.rows)

    def _seek(self, offset: int) -> None:
        self.raw.seek(offset)  # type: ignore[attr-defined]

    def _read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end of the file."""
        data = b""
        while len(data) < size and (more := self.raw.read(size - len(data))):
            data += more
        return data


class _Tally:
    """Counts lines, and rows, in pieces of a file; what counts as a row is `TextReader`'s rule."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.lines = self.rows = 0
        #: Where the first line began.
        self.first: int | None = None
        #: Whether the byte in front ends a line: then the next one begins one.
        self.is_line_end = True
        #: Bytes of the last line, as long as all of them are blank; None: it counts as a row already, or
        #: began in front of the first piece.
        self._blank_bytes: int | None = None

    @property
    def is_undecided(self) -> bool:
        """Whether the last line has been blank so far, and has not ended."""
        return self._blank_bytes is not None and self._blank_bytes <= self._limit

    def take(self, data: bytes, offset: int) -> None:
        """Count the lines that begin in these bytes, which stand at `offset`."""
        begin = 0 if self.is_line_end else self._go_on(data)
        if begin == len(data):
            return
        if self.first is None:
            self.first = offset + begin
        values = np.frombuffer(data, np.uint8)
        ends = begin + np.flatnonzero(values[begin:] == ord("\n"))
        starts = np.concatenate([[begin], ends + 1])
        self.is_line_end = starts[-1] == len(data)
        if self.is_line_end:
            starts = starts[:-1]
        self.lines += len(starts)
        self.rows += len(starts)
        for index in np.flatnonzero(_IS_BLANK[values[starts]]).tolist():
            line = data[starts[index] : ends[index] if index < len(ends) else len(data)]
            if line.strip(BLANK):
                continue
            if index == len(ends):  # it goes on behind these bytes
                self._blank_bytes = len(line)
                self.rows -= 1
            elif len(line) <= self._limit:
                self.rows -= 1

    def finish(self, data: bytes) -> None:
        """See whether the last line is blank, from bytes behind it."""
        self._go_on(data)

    def end(self) -> None:
        """The last line goes no further, or need not be looked at further."""
        if self._blank_bytes is not None and self._blank_bytes > self._limit:
            self.rows += 1
        self._blank_bytes = None

    def _go_on(self, data: bytes) -> int:
        """Go to the end of the last line; return where it is in these bytes."""
        end = data.find(b"\n")
        self.is_line_end = end >= 0
        line = data if end < 0 else data[:end]
        if self._blank_bytes is not None:
            if line.strip(BLANK):
                self.rows += 1
                self._blank_bytes = None
            else:
                self._blank_bytes += len(line)
                if end >= 0:
                    self.end()
        return end + 1 if end >= 0 else len(data)
