"""Chunks out of files: the readers of a segment one behind the other, cut by number of rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from batchinfer.core import RESCUED, ROW, SOURCE, Chunk, ChunkId, InputFile, Position, Segment, Span
from batchinfer.errors import JobMismatchError, StorageError
from batchinfer.readers.base import START, Reader, ReadOptions, Rows, combined, shown, text_errors
from batchinfer.readers.delimited import CsvReader
from batchinfer.readers.jsonl import JsonlReader
from batchinfer.readers.offsets import OffsetIndex
from batchinfer.readers.parquet import ParquetReader
from batchinfer.readers.seeking import index_of, note, seek
from batchinfer.stop import never
from batchinfer.storage import status_of

READERS: Mapping[str, Callable[[InputFile, ReadOptions, Position], Reader]] = {
    "jsonl": JsonlReader,
    "csv": CsvReader,
    "tsv": CsvReader,
    "parquet": ParquetReader,
}

NO_INDEX = OffsetIndex()


def open_reader(file: InputFile, options: ReadOptions, start: Position = START) -> Reader:
    """A reader of one file, from a position in it."""
    return READERS[file.format](file, options, start)


def read_chunks(
    span: Span,
    chunk_rows: int,
    options: ReadOptions,
    places: OffsetIndex = NO_INDEX,
    stopped: Callable[[], bool] = never,
    *,
    only_digests: bool = False,
) -> Generator[Chunk, None, None]:
    """Yield the chunks of a span, each of `chunk_rows` rows; the segment's last may have fewer.

    `only_digests`: without the rows in them, which takes less work than to read them.
    An empty segment has one chunk without rows. `places`: where is kept how far it is to chunks that are
    passed over; `stopped`: whether to give up looking for the first one. Raises JobMismatchError where a
    file is not the one that was planned, and StorageError where it cannot be read on.
    """
    cursor = None
    try:
        cursor = _cursor_at(span, chunk_rows, options, places, stopped)
        if cursor is None:
            return
        index, start, ended = span.begin, span.start, False
        if span.passed:
            start, ended = cursor.position, cursor.at_end()
        while not ended and (span.stop is None or index < span.stop):
            with _as_it_is(cursor):
                parts = (cursor.digest if only_digests else cursor.take)(chunk_rows)
                ended = cursor.at_end()
            chunk_id = ChunkId(span.segment.index, index)
            yield _chunk(chunk_id, parts, options, start, cursor.position, ended)
            index, start = index + 1, cursor.position
    finally:
        if cursor is not None:
            cursor.close()


def _cursor_at(
    span: Span,
    chunk_rows: int,
    options: ReadOptions,
    places: OffsetIndex,
    stopped: Callable[[], bool],
) -> _SegmentCursor | None:
    """A cursor at a span's first chunk that is to be answered; None: there was a stop."""
    segment, start, row = span.segment, span.start, span.first * chunk_rows
    if not span.passed:
        return _SegmentCursor(segment, options, start, row)
    target = span.begin * chunk_rows
    if known := index_of(segment, options, places):
        file = segment.files[0]
        _check_unchanged(file)
        in_front = file.start.row  # rows of the file, which are of other segments
        wanted = in_front + target
        found = seek(file, start, wanted, options, known, lambda: _check_unchanged(file), stopped)
        if found is None:
            return None
        start, row = found, found.row - in_front
    cursor = _SegmentCursor(segment, options, start, row)
    ended = False
    try:
        while not ended:  # some at a time: readers may hold what they pass over
            if stopped():
                cursor.close()
                return None
            step = min(chunk_rows, target - row)
            with _as_it_is(cursor):
                ended = cursor.skip(step)
            row += step
            if row == target:
                break
            if known and not ended:
                note(known, segment.files[0], cursor.position)
        return cursor
    except BaseException:
        cursor.close()
        raise


def cut_span(
    span: Span, chunk_rows: int, options: ReadOptions, size: int
) -> Generator[Span, None, None]:
    """Yield the span in pieces of `size` chunks, the last of fewer, whose ends are known.

    The input is passed over, not read more than it takes to find where each piece begins. Raises what
    `read_chunks` raises. A span of single rows stays whole.
    """
    if span.rows is not None:
        yield span
        return
    cursor = _SegmentCursor(span.segment, options, span.start, span.first * chunk_rows)
    try:
        chunk, first, start, ended = span.first, span.begin, span.start, False
        while not ended and (span.stop is None or chunk < span.stop):
            with _as_it_is(cursor):
                ended = cursor.skip(chunk_rows)
            chunk += 1
            if chunk <= span.begin:
                first, start = chunk, cursor.position
            elif ended or chunk == span.stop or chunk - first == size:
                yield Span(span.segment, first, start, chunk)
                first, start = chunk, cursor.position
    finally:
        cursor.close()


@contextmanager
def _as_it_is(cursor: _SegmentCursor) -> Iterator[None]:
    """See that what is read is the file that was planned; one that is being rewritten looks damaged."""
    try:
        yield
    finally:
        cursor.check_unchanged()


class _SegmentCursor:
    """The readers of a segment's files as one; it stands at a row wherever there is one left."""

    def __init__(
        self, segment: Segment, options: ReadOptions, start: Position, rows_before: int
    ) -> None:
        self._segment = segment
        self._files = segment.files
        self._options = options
        limit = segment.max_rows
        self._rows_left = math.inf if limit is None else limit - rows_before
        self._reader = self._open(start)

    @property
    def position(self) -> Position:
        return self._reader.position

    def take(self, num_rows: int) -> list[tuple[InputFile, Rows]]:
        parts: list[tuple[InputFile, Rows]] = []
        while num_rows > 0 and not self.at_end():
            rows = self._reader.take(int(min(num_rows, self._rows_left)))
            num_rows -= rows.table.num_rows
            self._rows_left -= rows.table.num_rows
            parts.append((self._reader.file, rows))
        return parts

    def digest(self, num_rows: int) -> list[tuple[InputFile, Rows]]:
        """What `take` returns, without the rows."""
        parts: list[tuple[InputFile, Rows]] = []
        while num_rows > 0 and not self.at_end():
            passed, digest = self._reader.digest(int(min(num_rows, self._rows_left)))
            num_rows -= passed
            self._rows_left -= passed
            parts.append((self._reader.file, Rows(no_rows(self._options), digest, 0)))
        return parts

    def skip(self, num_rows: int) -> bool:
        """Go on so many rows; return whether there are none behind them."""
        while num_rows > 0 and not self.at_end():
            passed = self._reader.skip(int(min(num_rows, self._rows_left)))
            num_rows -= passed
            self._rows_left -= passed
        return self.at_end()

    def at_end(self) -> bool:
        """Whether the segment holds no further row; goes on to the next file that has one."""
        if self._rows_left <= 0:
            return True
        while self._reader.at_end():
            following = self._reader.position.file + 1
            if following >= len(self._files):
                return True
            self.check_unchanged()
            self._reader.close()
            self._reader = self._open(self._segment.start_of(following))
        return False

    def check_unchanged(self) -> None:
        _check_unchanged(self._reader.file)

    def close(self) -> None:
        self._reader.close()

    def _open(self, start: Position) -> Reader:
        file = self._files[start.file]
        _check_unchanged(file)
        return open_reader(file, self._options, start)


def _check_unchanged(file: InputFile) -> None:
    path = shown(file.path)
    try:
        status = status_of(file.path)
    except FileNotFoundError:
        raise JobMismatchError(
            "the input is gone since the job was planned",
            file=path,
            advice="put it back, or start a new run",
        ) from None
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", file=path) from error
    if not file.is_as(status):
        raise JobMismatchError(
            "the input changed under way, since the job was planned",
            file=path,
            advice="put the old file back, or start a new run",
        )


def _chunk(
    chunk_id: ChunkId,
    parts: list[tuple[InputFile, Rows]],
    options: ReadOptions,
    start: Position,
    following: Position,
    ended: bool,
) -> Chunk:
    digest = hashlib.sha256()
    errors: dict[int, str] = {}
    tables: list[pa.Table] = []
    done = 0
    for file, rows in parts:
        digest.update(rows.digest)
        errors.update({done + row: why for row, why in text_errors(rows, options).items()})
        tables.append(with_origin(rows.table, file.source, rows.first_row))
        done += rows.table.num_rows
    table = combined(pa.concat_tables(tables or [with_origin(no_rows(options), "", 0)]))
    return Chunk(chunk_id, table, errors, start, following, ended, digest.hexdigest())


def no_rows(options: ReadOptions) -> pa.Table:
    """What a reader hands out where there is nothing."""
    return options.planned.append(pa.field(RESCUED, pa.string())).empty_table()


def with_origin(table: pa.Table, source: str, first_row: int) -> pa.Table:
    """A reader's rows with the file and the number of each in front."""
    numbers = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
    origin = pa.array([source], pa.string()).take(np.zeros(table.num_rows, np.int64))
    return table.add_column(0, ROW, pa.array(numbers)).add_column(0, SOURCE, origin)
