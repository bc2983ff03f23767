"""CSV and TSV: the standard library's parser, fed line by line so that every record has its place.

A record with a malformed or unterminated quote costs its first physical line; parsing goes on at
the next one. That cannot become quadratic: a line that opens a quote without closing it has an odd
run of quotes, so inside another record's open quote the same line would close it.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from batchinfer.core import BOOKKEEPING, RESCUED, InputFile, Position
from batchinfer.errors import UsageError
from batchinfer.readers.base import ReadOptions, Rows, combined, shown
from batchinfer.readers.columns import nulls
from batchinfer.readers.conversion import text_array
from batchinfer.readers.text import HEAD_BYTES, LineCursor, TextReader, TextStream

#: Lines parsed at once, so that Python strings live for some of a large chunk only.
_BATCH_LINES = 4096
#: A record longer than this is looked at as bytes before it is given to the parser, which takes
#: four to eight times the memory.
_LONG_RECORD = 1 << 20
_UNTERMINATED = "unterminated quote"


@dataclass(slots=True)
class _Records:
    """Parsed records with the line each starts at; an error row has no fields."""

    values: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


class CsvReader(TextReader):
    """Records as columns by name; every field is a string unless the plan says otherwise."""

    def __init__(self, file: InputFile, options: ReadOptions, start: Position) -> None:
        csv.field_size_limit(sys.maxsize)
        header = read_header(file, options)
        self._names, self._delimiter = header.names, header.delimiter
        if start.offset == 0:
            start = Position(start.file, header.end.offset, header.end.line, start.row)
        super().__init__(file, options, start)
        self._output = self.schema.append(pa.field(RESCUED, pa.string()))
        self._batch_lines = _BATCH_LINES
        known = set(self.schema.names) | set(BOOKKEEPING)
        self._unknown = [name for name in self._names if name not in known]

    def is_blank(self, line: bytes) -> bool:
        return _is_blank(line)

    def take(self, num_rows: int) -> Rows:
        first_row = self._row
        digest = hashlib.sha256()
        batches: list[pa.RecordBatch] = []
        lines: list[int] = []
        errors: dict[int, str] = {}
        done = 0
        while done < num_rows:
            block = self._cursor.peek(min(num_rows - done, self._batch_lines))
            if not block:
                break
            if not any(block) and not self._cursor.too_long:  # blank lines, and perhaps a gigabyte
                digest.update(self._cursor.advance(len(block)))
                continue
            records, num_lines = self._parse(block)
            self._resize(num_lines >= len(block))
            digest.update(self._cursor.advance(num_lines))
            if not records.values:
                continue
            batches.append(self._convert(records))
            lines += records.lines
            errors.update({done + row: error for row, error in records.errors.items()})
            done += len(records.values)
        self._row += done
        table = combined(pa.Table.from_batches(batches, self._output))
        return Rows(table, digest.digest(), first_row, errors, np.array(lines, np.int64))

    def skip(self, num_rows: int) -> int:
        return self._pass(num_rows, lambda data: None)

    def digest(self, num_rows: int) -> tuple[int, bytes]:
        digest = hashlib.sha256()
        return self._pass(num_rows, digest.update), digest.digest()

    def _pass(self, num_rows: int, see: Callable[[bytes], None]) -> int:
        """Go on so many rows, and have their bytes seen."""
        done = 0
        while done < num_rows:
            block = self._cursor.peek(min(num_rows - done, self._batch_lines))
            if not block:
                break
            num_lines = len(block)
            if self._cursor.too_long:
                done += 1
            elif b'"' in b"".join(block):
                run = _Run(self._cursor, block, self._delimiter, self.options.max_line_bytes)
                done += len(run.parse().values)
                num_lines = run.num_lines
            else:  # each that is not blank is a record, be it an error
                done += num_lines - list(map(bytes.strip, block, repeat(b"\r"))).count(b"")
            self._resize(num_lines >= len(block))
            see(self._cursor.advance(num_lines))
        self._row += done
        return done

    def open_record(self) -> int | None:
        """Go on to the end; return where the first record begins whose quote is still open there, if any.

        That is an offset, and bytes behind the end could still close the quote: a record that has come to
        `max_line_bytes` without its end is an error, whatever follows.
        """
        while block := self._cursor.peek(self._batch_lines):
            num_lines = len(block)
            if not self._cursor.too_long and b'"' in b"".join(block):
                run = _Run(self._cursor, block, self._delimiter, self.options.max_line_bytes)
                run.parse()
                num_lines = run.num_lines
                if run.is_open:
                    self._cursor.advance(num_lines - 1)
                    if self.file.size - self._cursor.offset <= self.options.max_line_bytes:
                        return self._cursor.offset
                    num_lines = 1
            self._resize(num_lines >= len(block))
            self._cursor.advance(num_lines)
        return None

    def _resize(self, whole: bool) -> None:
        """What stands behind an error is parsed anew, so errors that are close cost many lines."""
        self._batch_lines = min(_BATCH_LINES, self._batch_lines * 4) if whole else 4

    def _parse(self, block: list[bytes]) -> tuple[_Records, int]:
        """The records that start in these lines, up to the first error; and their lines."""
        first = self._cursor.line
        if self._cursor.too_long:
            return _Records([[]], [first], {0: self.too_long_error(first)}), 1
        run = _Run(self._cursor, block, self._delimiter, self.options.max_line_bytes)
        records = run.parse()
        width = len(self._names)
        for row, values in enumerate(records.values):
            if len(values) != width and row not in records.errors:
                place = f"line {records.lines[row] + 1}"
                were = f"{len(values)} field{'s' * (len(values) != 1)}"
                records.errors[row] = f"{place}: {were} where the header has {width}"
        return records, run.num_lines

    def _convert(self, records: _Records) -> pa.RecordBatch:
        values = records.values
        if records.errors:
            empty: list[Any] = [None] * len(self._names)
            values = [v if i not in records.errors else empty for i, v in enumerate(values)]
        by_name = dict(zip(self._names, zip(*values, strict=True), strict=True)) if values else {}
        rescued: dict[int, dict[str, str]] = {}
        arrays: list[pa.Array[Any]] = []
        for column in self.schema:
            texts = by_name.get(column.name)
            if texts is None:
                arrays.append(nulls(len(values), column.type))
                continue
            array, misfits = text_array(pa.array(texts, pa.string()), column.type)
            for row in misfits:
                rescued.setdefault(row, {})[column.name] = texts[row]
            arrays.append(array)
        if self.options.rescue_unknown and self._unknown and values:
            for row in range(len(values)):
                if row not in records.errors:
                    rescued.setdefault(row, {}).update(
                        {name: by_name[name][row] for name in self._unknown}
                    )
        texts_out: list[str | None] = [None] * len(values)
        for row, fields in rescued.items():
            texts_out[row] = orjson.dumps(fields).decode()
        arrays.append(pa.array(texts_out, pa.string()))
        return pa.RecordBatch.from_arrays(arrays, schema=self._output)


class _Run:
    """One pass of the parser over some lines, and those behind them that end the last record."""

    def __init__(
        self, cursor: LineCursor, block: list[bytes], delimiter: str, max_bytes: int
    ) -> None:
        self._cursor = cursor
        self._raw = block
        self._num_asked = len(block)
        self._delimiter = delimiter
        self._max_bytes = max_bytes
        self._ends: list[int] = []
        self._measured = (0, 0, 0)
        self._valid, self._lines = _decode(block)
        self._first = cursor.line
        self.num_lines = 0
        #: Whether the last record has a quote that was not closed.
        self.is_open = False

    def parse(self) -> _Records:
        records = _Records()
        source = self._lines if self._is_simple() else self._feed()
        reader = csv.reader(source, delimiter=self._delimiter, strict=True)
        problem = ""
        try:
            for record in reader:
                end = reader.line_num
                begin = self._ends[-1] if self._ends else 0
                if end - begin > 1 and self._num_bytes(begin, end) > self._max_bytes:
                    problem = _UNTERMINATED
                    break
                self._ends.append(end)
                if record:
                    self._add(records, record, begin, end)
                if end >= self._num_asked:  # the lines behind were fetched for the last record only
                    break
        except csv.Error as error:
            problem = _reason(error)
        self.num_lines = self._ends[-1] if self._ends else 0
        self.is_open = problem == _UNTERMINATED
        if problem:
            self._add(records, [], self.num_lines, self.num_lines + 1, problem)
            self.num_lines += 1
        return records

    def _is_simple(self) -> bool:
        """Without a quote a line is a record: the parser may run over the list at full speed."""
        return b'"' not in b"".join(self._raw)

    def _add(
        self, records: _Records, record: list[str], begin: int, end: int, problem: str = ""
    ) -> None:
        line = self._first + begin
        if not self._valid and (found := _undecodable(self._raw[begin:end])):
            line_found, byte = found
            problem = f"not valid UTF-8 (byte {byte})"
            records.errors[len(records.values)] = f"line {line + line_found + 1}: {problem}"
        elif problem:
            records.errors[len(records.values)] = f"line {line + 1}: {problem}"
        records.values.append(record)
        records.lines.append(line)

    def _feed(self) -> Iterator[str]:
        index = 0
        while True:
            if index == len(self._lines):
                begin = self._ends[-1] if self._ends else 0
                if begin == index or not self._extend(self._num_bytes(begin, index)):
                    return
            yield self._lines[index]
            index += 1

    def _extend(self, num_bytes: int) -> bool:
        """Get the lines behind, for a record that is still open after `num_bytes`."""
        room = self._max_bytes - num_bytes
        if room < 0:
            return False
        more = self._cursor.peek(_BATCH_LINES, skip=len(self._lines))
        if not more:
            if num_bytes > _LONG_RECORD and not self._cursor.odd_quotes_ahead(room):
                return False
            if not self._cursor.extend():
                return False
            more = self._cursor.peek(_BATCH_LINES, skip=len(self._lines))
        valid, lines = _decode(more)
        self._valid = self._valid and valid
        self._raw += more
        self._lines += lines
        return True

    def _num_bytes(self, begin: int, end: int) -> int:
        """Bytes of these lines; goes on from what was counted for the same record before."""
        same, done, size = self._measured
        if same != begin or done > end:
            done, size = begin, 0
        size += sum(map(len, self._raw[done:end])) + end - done
        self._measured = (begin, end, size)
        return size


def _is_blank(line: bytes) -> bool:
    """Whether the parser takes a line for no record at all."""
    return not line.strip(b"\r")


def _decode(lines: Sequence[bytes]) -> tuple[bool, list[str]]:
    """Whether the lines are UTF-8; and each as text with its line end."""
    data = b"\n".join([*lines, b""])
    try:
        text, valid = data.decode(), True
    except UnicodeDecodeError:
        text, valid = data.decode("utf-8", "surrogateescape"), False
    return valid, [line + "\n" for line in text.split("\n")[:-1]]


def _undecodable(lines: Sequence[bytes]) -> tuple[int, int] | None:
    for index, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return index, error.start + 1
    return None


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return _UNTERMINATED
    if "expected after" in text:
        return "malformed quote: text after the closing quote"
    if "new-line character" in text:
        return "a carriage return inside an unquoted field"
    return f"not valid CSV: {text}"


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a file, and where its first row starts."""

    names: tuple[str, ...]
    delimiter: str
    end: Position


def read_header(file: InputFile, options: ReadOptions) -> Header:
    """Find the columns of a CSV file; none where it holds no line.

    Raises UsageError where the header cannot be decoded or parsed.
    """
    stream = TextStream(file, options, block_bytes=HEAD_BYTES)
    try:
        cursor = LineCursor(stream, Position())
        block = cursor.peek(_BATCH_LINES)
        while block and not cursor.too_long and _is_blank(block[0]):
            cursor.advance(1)
            block = cursor.peek(_BATCH_LINES)
        if not block:
            return Header((), _delimiter(file, options, ""), _place(cursor))
        if cursor.too_long:
            raise UsageError("the first line is too long for a CSV header", file=shown(file.path))
        start = _place(cursor)
        delimiter = _delimiter(file, options, block[0].decode("utf-8", "replace"))
        run = _Run(cursor, block[:1], delimiter, options.max_line_bytes)
        records = run.parse()
        if records.errors:
            raise UsageError(
                f"the columns cannot be found: {records.errors[0]}",
                file=shown(file.path),
                advice="check --encoding (for example latin-1, utf-16), --delimiter or --no-header",
            )
        record = records.values[0]
        if not options.header:
            return Header(tuple(f"column_{i}" for i in range(len(record))), delimiter, start)
        cursor.advance(run.num_lines)
        return Header(unique_names(record), delimiter, _place(cursor))
    finally:
        stream.close()


def _place(cursor: LineCursor) -> Position:
    return Position(0, cursor.offset, cursor.line)


def _delimiter(file: InputFile, options: ReadOptions, header: str) -> str:
    given = options.delimiter
    if given is not None:
        if len(given) != 1 or given in '"\r\n':
            raise UsageError(f"--delimiter {shown(given)!r}: give one character, for example ';'")
        return given
    if file.format == "tsv":
        return "\t"
    return sniff_delimiter(header)


def sniff_delimiter(header: str) -> str:
    """The delimiter of a header line: a comma, unless there is none but another one."""
    counts = {mark: 0 for mark in ",;\t|"}
    quoted = False
    for character in header:
        if character == '"':
            quoted = not quoted
        elif not quoted and character in counts:
            counts[character] += 1
    if counts[","]:
        return ","
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","


def unique_names(header: Sequence[str]) -> tuple[str, ...]:
    """Names without empty or repeated ones: `column_2` for the third, `name_2` for a second."""
    given = set(header)
    names: dict[str, None] = {}
    suffixes: dict[str, int] = {}
    for index, original in enumerate(header):
        base = original or f"column_{index}"
        name = base
        while name in names or (name != original and name in given):
            suffixes[base] = suffixes.get(base, 1) + 1
            name = f"{base}_{suffixes[base]}"
        names[name] = None
    return tuple(names)
