"""What every reader shares: the options, the rows it hands out, and the rule for text columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.core import RESCUED, InputFile, Int64Array, Position
from batchinfer.errors import UsageError
from batchinfer.readers.columns import is_list

MAX_LINE_BYTES = 64 << 20
START = Position()


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the inputs are read; the same for every file of a job.

    `schema` is the planned type of every column that is read; None only before `inspect_inputs` has
    said what it is. A row is answered by its `text_columns`, which must hold a string (or, where the
    planned type is a list, a list), and its `value_columns`, which may hold anything of their type; null
    too, but for `filled_columns`. Where they do not, it is an error row.
    `rescue_unknown`: keep columns that the plan does not know, as JSON in `_rescued_data`.
    """

    text_columns: tuple[str, ...] = ()
    value_columns: tuple[str, ...] = ()
    filled_columns: tuple[str, ...] = ()
    schema: pa.Schema | None = None
    rescue_unknown: bool = True
    encoding: str = "utf-8"
    delimiter: str | None = None
    header: bool = True
    max_line_bytes: int = MAX_LINE_BYTES

    @property
    def planned(self) -> pa.Schema:
        """The schema, where there must be one."""
        assert self.schema is not None, "inspect_inputs() gives the schema to read with"
        return self.schema

    @property
    def answering(self) -> tuple[str, ...]:
        """The columns that a row is answered by, each once."""
        return tuple(dict.fromkeys((*self.text_columns, *self.value_columns)))


@dataclass(frozen=True, slots=True)
class Rows:
    """Some consecutive rows of one file.

    `table` has the planned columns and `_rescued_data`. `errors` says, by row of the table, what is
    wrong with a record. `digest` is of the bytes (Parquet: of the values) the rows were read from.
    `first_row` is the first one's number in the file. `lines` int64[n]: the physical line (0-based)
    each row starts at; None where a file has no lines.
    """

    table: pa.Table
    digest: bytes
    first_row: int
    errors: Mapping[int, str] = field(default_factory=dict)
    lines: Int64Array | None = None

    def place(self, row: int) -> str:
        """Where to look for a row: "line 17" (counted from 1), or "row 16" (as in `_row`)."""
        if self.lines is None:
            return f"row {self.first_row + row}"
        return f"line {self.lines[row] + 1}"


#: Rows that are held at a time where they are only passed over.
_SKIPPED_AT_ONCE = 4096


class Reader(ABC):
    """A cursor over the rows of one file. A format supplies only its difference."""

    def __init__(self, file: InputFile, options: ReadOptions, start: Position) -> None:
        self.schema = options.planned
        self.file = file
        self.options = options
        self.start = start

    @property
    @abstractmethod
    def position(self) -> Position:
        """Where the next row starts."""

    @abstractmethod
    def take(self, num_rows: int) -> Rows:
        """Return exactly the next `num_rows` rows, fewer only at the end of the file.

        Afterwards `position` is that of the next row. Raises StorageError where the file cannot be
        read on (truncated, corrupt, an I/O error).
        """

    def digest(self, num_rows: int) -> tuple[int, bytes]:
        """Go on as `take` does; return how many rows, and what `take` says of them as their digest.

        Formats that need not convert the rows for that do so.
        """
        rows = self.take(num_rows)
        return rows.table.num_rows, rows.digest

    def skip(self, num_rows: int) -> int:
        """Go on so many rows, fewer only at the end of the file; return how many.

        Formats that find the next row with less work than it takes to read one do so.
        """
        done = 0
        while done < num_rows and not self.at_end():
            done += self.take(min(num_rows - done, _SKIPPED_AT_ONCE)).table.num_rows
        return done

    @abstractmethod
    def at_end(self) -> bool:
        """Whether no row is left; may read ahead, and moves `position` over blank lines."""

    @abstractmethod
    def close(self) -> None: ...


def shown(path: str) -> str:
    """A path for a one-line message: control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def combined(table: pa.Table) -> pa.Table:
    """The table with one chunk a column. Raises UsageError where a column is too large for one."""
    try:
        return table.combine_chunks()
    except pa.ArrowInvalid:
        raise UsageError(
            f"{table.num_rows} rows hold more than 2 GiB in one column",
            advice="use a smaller --chunk-rows",
        ) from None


_JSON_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def json_kind(value: object) -> str:
    """What a JSON value is, in words."""
    return _JSON_NAMES[type(value)]


def text_errors(rows: Rows, options: ReadOptions) -> dict[int, str]:
    """Say, by row, what keeps a row from being answered by its columns; record errors take precedence.

    An empty string is a text. A value that did not fit stands in `_rescued_data`, which tells a
    missing text, or a null, from one of the wrong type.
    """
    errors = dict(rows.errors)
    for name in options.text_columns:
        for row in _rows_without_text(rows.table, name):
            if row not in errors:
                errors[row] = f"{rows.place(row)}: {_why_no_text(rows.table, name, row)}"
    for name in options.filled_columns:
        for row in _null_rows(rows.table.column(name)):
            if row not in errors:
                errors[row] = f"{rows.place(row)}: {_why_no_value(rows.table, name, row)}"
    for row, name, value in _values_that_do_not_fit(rows.table, options):
        what = "is not valid UTF-8"
        if not _is_bytes(value):
            kind = str(options.planned.field(name).type)[:80]
            what = f"holds {json_kind(value)}, which does not fit its type, {kind}"
        errors.setdefault(row, f"{rows.place(row)}: column '{shown(name)}' {what}")
    return errors


def _values_that_do_not_fit(
    table: pa.Table, options: ReadOptions
) -> Iterator[tuple[int, str, Any]]:
    """Of the columns that may hold anything: the row, the column and the value that was set aside."""
    if not options.value_columns:
        return
    rescued = table.column(RESCUED)
    for row in np.flatnonzero(pc.is_valid(rescued).to_numpy()).tolist():
        values = orjson.loads(rescued[row].as_py())
        for name in options.value_columns:
            if name in values:
                yield row, name, values[name]


def _is_bytes(value: object) -> bool:
    """Whether a rescued value is, or holds, a text that was no UTF-8."""
    if isinstance(value, dict):
        return set(value) == {"base64"} or any(map(_is_bytes, value.values()))
    return isinstance(value, list) and any(map(_is_bytes, value))


def _rows_without_text(table: pa.Table, name: str) -> list[int]:
    if name not in table.column_names or not _holds_text(table.schema.field(name).type):
        return list(range(table.num_rows))
    return _null_rows(table.column(name))


def _null_rows(column: pa.ChunkedArray[Any]) -> list[int]:
    if column.null_count == 0:
        return []
    found: list[int] = np.flatnonzero(pc.is_null(column).to_numpy()).tolist()
    return found


def _holds_text(kind: Any) -> bool:
    """Whether it is text, or lists of texts or messages."""
    if is_list(kind):
        kind = kind.value_type
        if pa.types.is_struct(kind):
            return True
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _why_no_text(table: pa.Table, name: str, row: int) -> str:
    missing = f"no text: column '{shown(name)}' is null or missing"
    value = _rescued_value(table, name, row)
    if _is_bytes(value):
        return f"column '{shown(name)}' is not valid UTF-8"
    if value is not None:
        kind: Any = pa.string()
        if name in table.column_names:
            kind = table.schema.field(name).type
        wanted = "a string"
        if is_list(kind):
            of_messages = pa.types.is_struct(kind.value_type)
            wanted = "a list of messages" if of_messages else "a list of strings"
        return f"column '{shown(name)}' holds {json_kind(value)}, not {wanted}"
    if name not in table.column_names or not table.column(name)[row].is_valid:
        return missing
    found = table.schema.field(name).type
    word = "a boolean" if pa.types.is_boolean(found) else f"a value of type {found}"
    if pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found):
        word = "a number"
    return f"column '{shown(name)}' holds {word}, not a string"


def _why_no_value(table: pa.Table, name: str, row: int) -> str:
    value = _rescued_value(table, name, row)
    if value is None:
        return f"column '{shown(name)}' is null or missing"
    kind = table.schema.field(name).type
    if _holds_text(kind):
        return _why_no_text(table, name, row)
    wanted = "a list of numbers" if is_list(kind) else f"a value of type {kind}"
    return f"column '{shown(name)}' holds {json_kind(value)}, not {wanted}"


def _rescued_value(table: pa.Table, name: str, row: int) -> Any:
    """The value of a column that did not fit its type; None where there is none."""
    rescued = table.column(RESCUED)[row].as_py()
    return None if rescued is None else orjson.loads(rescued).get(name)
