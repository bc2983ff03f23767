"""JSON Lines: one object a line; a line that is none is an error row and takes no other along."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from batchinfer.core import BOOKKEEPING, RESCUED, InputFile, Int64Array, Position
from batchinfer.readers.base import ReadOptions, Rows, combined, json_kind
from batchinfer.readers.columns import nulls
from batchinfer.readers.conversion import checker, exact_record, json_array
from batchinfer.readers.text import BLANK, TextReader

#: The standard library's parser, by which others will read `_rescued_data`, goes about as deep.
MAX_RESCUED_DEPTH = 901
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')


@dataclass(slots=True)
class _Records:
    """Parsed lines; an error row has an empty record."""

    values: list[dict[str, Any]]
    raw: list[bytes]
    lines: Int64Array
    errors: dict[int, str] = field(default_factory=dict)


class JsonlReader(TextReader):
    """Reads a block of lines at a time: Python objects live for about a MiB of text only."""

    def __init__(self, file: InputFile, options: ReadOptions, start: Position) -> None:
        super().__init__(file, options, start)
        self._output = self.schema.append(pa.field(RESCUED, pa.string()))
        self._known = frozenset(self.schema.names) | frozenset(BOOKKEEPING)

    def take(self, num_rows: int) -> Rows:
        first_row = self._row
        digest = hashlib.sha256()
        batches: list[pa.RecordBatch] = []
        lines: list[Int64Array] = []
        errors: dict[int, str] = {}
        done = 0
        while done < num_rows and (block := self._cursor.peek(num_rows - done)):
            records = self._parse(block)
            digest.update(self._cursor.advance(len(block)))
            if not records.values:  # blank lines, and perhaps a gigabyte: they must not add up
                continue
            batches.append(self._convert(records))
            lines.append(records.lines)
            errors.update({done + row: error for row, error in records.errors.items()})
            done += len(records.values)
        self._row += done
        table = combined(pa.Table.from_batches(batches, self._output))
        numbers = np.concatenate(lines) if lines else np.empty(0, np.int64)
        return Rows(table, digest.digest(), first_row, errors, numbers)

    def skip(self, num_rows: int) -> int:
        return self._pass(num_rows, lambda data: None)

    def digest(self, num_rows: int) -> tuple[int, bytes]:
        digest = hashlib.sha256()
        return self._pass(num_rows, digest.update), digest.digest()

    def _pass(self, num_rows: int, see: Callable[[bytes], None]) -> int:
        """Go on so many rows, and have their bytes seen."""
        done = 0
        while done < num_rows and (block := self._cursor.peek(num_rows - done)):
            if self._cursor.too_long:
                done += 1
            else:  # each that is not blank is a row, be it an error
                stripped = map(bytes.strip, block, repeat(BLANK))
                done += len(block) - list(stripped).count(b"")
            see(self._cursor.advance(len(block)))
        self._row += done
        return done

    def _parse(self, lines: list[bytes]) -> _Records:
        first = self._cursor.line
        if self._cursor.too_long:
            error = self.too_long_error(first)
            return _Records([{}], [b""], np.array([first], np.int64), {0: error})
        try:
            values = list(map(orjson.loads, lines))
            if set(map(type, values)) == {dict}:
                return _Records(values, lines, np.arange(first, first + len(lines), dtype=np.int64))
        except (orjson.JSONDecodeError, RecursionError):
            pass
        return self._parse_one_by_one(lines, first)

    def _parse_one_by_one(self, lines: list[bytes], first: int) -> _Records:
        values: list[dict[str, Any]] = []
        raw, numbers, errors = [], [], {}
        for number, line in enumerate(lines if any(lines) else (), first):
            if self.is_blank(line):
                continue
            value, error = parse_object(line)
            if error:
                errors[len(values)] = f"line {number + 1}: {error}"
            values.append(value)
            raw.append(line)
            numbers.append(number)
        return _Records(values, raw, np.array(numbers, np.int64), errors)

    def _convert(self, records: _Records) -> pa.RecordBatch:
        values = records.values
        rescued: dict[int, dict[str, Any]] = {}
        arrays: list[pa.Array[Any]] = []
        complete = True
        for column in self.schema:
            try:
                items: list[Any] = list(map(itemgetter(column.name), values))
            except KeyError:
                items, complete = [value.get(column.name) for value in values], False
            array, misfits = json_array(items, column.type)
            if misfits:
                array = self._rescue(array, column, misfits, records, rescued)
            arrays.append(array)
        if self.options.rescue_unknown and not (
            complete and max(map(len, values), default=0) == len(self.schema)
        ):
            self._rescue_unknown(records, rescued)
        arrays.append(_rescued_array(rescued, records))
        return pa.RecordBatch.from_arrays(arrays, schema=self._output)

    def _rescue(
        self,
        array: pa.Array[Any],
        column: pa.Field[Any],
        misfits: Sequence[int],
        records: _Records,
        rescued: dict[int, dict[str, Any]],
    ) -> pa.Array[Any]:
        """Note what does not fit; a large float that was written as one fits after all."""
        fits = checker(column.type, trust_floats=True)
        kept: dict[int, Any] = {}
        for row in misfits:
            value = _exact(records, row).get(column.name)
            if fits(value):
                kept[row] = value
            else:
                rescued.setdefault(row, {})[column.name] = value
        if not kept:
            return array
        values = array.to_pylist()
        for row, value in kept.items():
            values[row] = value
        patched: pa.Array[Any] = pa.array(values, column.type)
        return patched

    def _rescue_unknown(self, records: _Records, rescued: dict[int, dict[str, Any]]) -> None:
        known = self._known
        for row, value in enumerate(records.values):
            if not value.keys() <= known:
                exact = _exact(records, row)
                unknown = {name: item for name, item in exact.items() if name not in known}
                rescued.setdefault(row, {}).update(unknown)


def parse_object(line: bytes) -> tuple[dict[str, Any], str]:
    """The object that a line holds; or an empty one, and why."""
    try:
        value = orjson.loads(line)
    except RecursionError:
        return {}, "not valid JSON: nested too deeply"
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as undecodable:
            return {}, f"not valid UTF-8 (byte {undecodable.start + 1})"
        return {}, f"not valid JSON: {error.msg} (column {error.colno})"
    if isinstance(value, dict):
        return value, ""
    return {}, f"not a JSON object but {json_kind(value)}"


def _depth(line: bytes) -> int:
    """How deeply a line of valid JSON is nested."""
    depth = deepest = 0
    for mark in _MARKS.findall(line):
        if mark in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in b"]}":
            depth -= 1
    return deepest


def _exact(records: _Records, row: int) -> dict[str, Any]:
    return exact_record(records.values[row], records.raw[row])


def _rescued_array(rescued: dict[int, dict[str, Any]], records: _Records) -> pa.Array[Any]:
    if not rescued:
        return nulls(len(records.values), pa.string())
    texts: list[str | None] = [None] * len(records.values)
    for row, values in rescued.items():
        try:
            texts[row] = orjson.dumps(values).decode()
        except TypeError:  # nested too deeply to be written; the line as it stands says the same
            if _depth(records.raw[row]) <= MAX_RESCUED_DEPTH:
                texts[row] = records.raw[row].decode()
            else:
                line = int(records.lines[row]) + 1
                records.errors[row] = f"line {line}: nested too deeply to be kept"
    return pa.array(texts, pa.string())
