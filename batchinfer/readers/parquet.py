"""Parquet: row groups as a stream of small batches, from any row, only the planned columns."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pyarrow.types as pat

from batchinfer.core import BOOKKEEPING, RESCUED, InputFile, Position, is_unicode
from batchinfer.errors import StorageError
from batchinfer.readers.base import Reader, ReadOptions, Rows, combined, shown
from batchinfer.readers.columns import is_list, is_plain_list, nulls, plain
from batchinfer.readers.conversion import cast_where_possible, text_array, valid_rows
from batchinfer.readers.digests import digest_of
from batchinfer.storage import is_remote, open_pieces

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute

_BATCH_BYTES = 4 << 20
_MAX_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20

#: What pyarrow raises on a file that is damaged, unsupported or gone.
UNREADABLE = (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError)


def open_parquet(file: InputFile) -> pq.ParquetFile:
    """Open a file for streaming. Raises StorageError where its footer cannot be read."""
    source: Any = file.path
    try:
        if is_remote(file.path):
            source = open_pieces(file.path)
        elif not is_unicode(file.path):  # pyarrow cannot open it; an open file it reads more slowly
            source = Path(file.path).open("rb")  # noqa: SIM115 - the reader closes it
        return pq.ParquetFile(
            source, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
    except UNREADABLE as error:
        if source is not file.path:
            source.close()
        raise failure(file, error) from error


def num_rows_of(parquet: pq.ParquetFile) -> int:
    """The rows of all row groups; some writers leave the footer's own count at zero."""
    metadata = parquet.metadata
    return sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))


def failure(file: InputFile, error: BaseException, where: str = "") -> StorageError:
    """One line about a file that pyarrow cannot read."""
    reason = (getattr(error, "strerror", None) or str(error)).strip().split("\n")[0]
    return StorageError(f"cannot be read as Parquet{where}: {reason}", file=shown(file.path))


class ParquetReader(Reader):
    """`position.offset` and `position.row` are both the row number in the file."""

    def __init__(self, file: InputFile, options: ReadOptions, start: Position) -> None:
        super().__init__(file, options, start)
        self._row = start.row
        self._parquet = open_parquet(file)
        self._num_rows = num_rows_of(self._parquet)
        self._batches: Iterator[pa.Table] | None = None
        self._rest: pa.Table | None = None

    @property
    def position(self) -> Position:
        return Position(self.start.file, self._row, 0, self._row)

    def take(self, num_rows: int) -> Rows:
        first_row = self._row
        num_rows = min(num_rows, self._num_rows - self._row)
        parts, missing = [], num_rows
        if self._batches is None:
            self._batches = self._stream(first_row, num_rows)
        while missing > 0:
            batch = self._rest if self._rest is not None else self._next_batch()
            parts.append(batch.slice(0, missing))
            self._rest = batch.slice(missing) if batch.num_rows > missing else None
            missing -= parts[-1].num_rows
        found = combined(pa.concat_tables(parts)) if parts else self._empty()
        self._row += num_rows
        found = pa.table({name: _as_array(found.column(name)) for name in found.column_names})
        return Rows(self._convert(found, num_rows), digest_of(found), first_row)

    def skip(self, num_rows: int) -> int:
        assert self._batches is None, "what was read ahead would be read again"
        num_rows = min(num_rows, self._num_rows - self._row)
        self._row += num_rows
        return num_rows

    def at_end(self) -> bool:
        return self._row >= self._num_rows

    def close(self) -> None:
        self._batches = None
        self._rest = None
        self._parquet.close(force=True)

    def _empty(self) -> pa.Table:
        names = self._columns()
        return self._parquet.schema_arrow.empty_table().select(names)

    def _columns(self) -> list[str]:
        """The columns to read: the planned ones that are there, and unknown ones to be rescued."""
        there = self._parquet.schema_arrow.names
        if not self.options.rescue_unknown:
            return [name for name in there if name in self.schema.names]
        return [name for name in there if name in self.schema.names or name not in BOOKKEEPING]

    def _stream(self, row: int, max_rows: int) -> Iterator[pa.Table]:
        """Tables from this row on; row groups before it are not touched.

        Values that repeat are small in the file and large in memory, so its sizes alone cannot tell
        how many rows to decode at once: never more than a chunk (`max_rows`).
        """
        metadata = self._parquet.metadata
        names = self._columns()
        first = 0
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            begin, first = first, first + group.num_rows
            if first <= row or not group.num_rows:
                continue
            skip = max(0, row - begin)
            size = max(1, int(_BATCH_BYTES * group.num_rows / max(1, group.total_byte_size)))
            batches = self._parquet.iter_batches(
                min(size, _MAX_BATCH_ROWS, max_rows), row_groups=[index], columns=names
            )
            for batch in batches:
                table = pa.Table.from_batches([batch])
                if skip < table.num_rows:
                    yield table.slice(skip).select(names)
                skip = max(0, skip - table.num_rows)

    def _next_batch(self) -> pa.Table:
        assert self._batches is not None
        try:
            return next(self._batches)
        except StopIteration:
            raise StorageError(
                "holds fewer rows than its footer says", file=shown(self.file.path)
            ) from None
        except UNREADABLE as error:
            raise failure(self.file, error, f" from row {self._row} on") from error

    def _convert(self, found: pa.Table, num_rows: int) -> pa.Table:
        rescued: dict[int, dict[str, Any]] = {}
        arrays = []
        there = set(found.column_names)
        for column in self.schema:
            if column.name not in there:
                arrays.append(nulls(num_rows, column.type))
                continue
            source: Any = found.column(column.name).chunk(0)
            array, misfits = self._cast(source, column)
            for row in misfits:
                rescued.setdefault(row, {})[column.name] = jsonable(source[row])
            arrays.append(array)
        for name in there.difference(self.schema.names):
            source = found.column(name).chunk(0)
            for row in range(num_rows):
                rescued.setdefault(row, {})[name] = jsonable(source[row])
        texts: list[str | None] = [None] * num_rows
        for row, values in rescued.items():
            texts[row] = orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()
        arrays.append(pa.array(texts, pa.string()))
        return pa.Table.from_arrays(
            arrays, schema=self.schema.append(pa.field(RESCUED, pa.string()))
        )

    def _cast(
        self, source: pa.Array[Any], column: pa.Field[Any]
    ) -> tuple[pa.Array[Any], list[int]]:
        """The planned type; a text column takes text only, not what could be spelled out."""
        kind = source.type
        is_text = column.name in self.options.text_columns and not pat.is_nested(column.type)
        if is_text and not _is_textual(kind):
            return nulls(len(source), column.type), valid_rows(source)
        if not _keeps_fields(kind, column.type):
            return nulls(len(source), column.type), valid_rows(source)
        if _is_string(kind) and not _is_textual(column.type):
            return text_array(source, column.type)
        array, misfits = cast_where_possible(source, column.type)
        return _without_losses(source, array, misfits)


def _as_array(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """One array in the plain type: no dictionary, view or extension around the values."""
    parts = [_plain_array(chunk) for chunk in column.chunks]
    joined: pa.Array[Any] = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return joined


def _plain_array(array: Any) -> Any:
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pat.is_dictionary(array.type):
        return _plain_array(array.dictionary_decode())
    kind = plain(array.type)
    return array if kind == array.type else array.cast(kind)


def _is_textual(kind: pa.DataType) -> bool:
    return bool(
        pat.is_string(kind)
        or pat.is_large_string(kind)
        or pat.is_binary(kind)
        or pat.is_large_binary(kind)
        or pat.is_null(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def _without_losses(source: Any, array: Any, misfits: list[int]) -> tuple[Any, list[int]]:
    """Null what Arrow's safe cast changes all the same: noon to a day, 5 to true.

    A float may become a shorter one: that is what the type says.
    """
    before, after = source.type, array.type
    flat = pat.is_primitive(before) and pat.is_primitive(after)
    if before == after or not flat or (pat.is_floating(before) and pat.is_floating(after)):
        return array, misfits
    try:
        lost = pc.fill_null(pc.not_equal(array.cast(before, safe=False), source), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return array, misfits
    if not pc.any(lost).as_py():
        return array, misfits
    rows = np.flatnonzero(lost.to_numpy(zero_copy_only=False)).tolist()
    return pc.if_else(lost, None, array), sorted({*misfits, *rows})


def _keeps_fields(source: Any, target: Any) -> bool:
    """Whether a cast drops nothing: Arrow's drops struct fields that the target does not have."""
    if pat.is_struct(source) and pat.is_struct(target):
        wanted = {field.name: field.type for field in target}
        return all(
            field.name in wanted and _keeps_fields(field.type, wanted[field.name])
            for field in source
        )
    if is_plain_list(source) and is_plain_list(target):
        return _keeps_fields(source.value_type, target.value_type)
    return True


def jsonable(scalar: Any) -> Any:
    """An Arrow value as JSON without loss of what it says; bytes as {"base64": …}."""
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if pat.is_temporal(kind):
        return pc.cast(scalar, pa.int64()).as_py() if pat.is_duration(kind) else _spelled(scalar)
    if pat.is_string(kind) or pat.is_large_string(kind):
        return _text_or_bytes(scalar.as_buffer().to_pybytes())
    if is_list(kind):
        return [jsonable(item) for item in scalar.values]
    if pat.is_struct(kind):
        return {field.name: jsonable(scalar[i]) for i, field in enumerate(kind)}
    if pat.is_map(kind):
        return [jsonable(item) for item in scalar.values]
    return _jsonable_value(scalar.as_py())


def _spelled(scalar: Any) -> str:
    try:
        return str(pc.cast(scalar, pa.string()).as_py())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return str(scalar)


def _text_or_bytes(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _jsonable_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
