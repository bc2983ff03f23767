"""Samples of single files: which columns, how large a row is, how many rows there may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pyarrow as pa

from batchinfer.core import InputFile, Position
from batchinfer.errors import UsageError
from batchinfer.readers.base import ReadOptions, shown
from batchinfer.readers.columns import infer, merge, plain
from batchinfer.readers.delimited import CsvReader, read_header
from batchinfer.readers.parquet import UNREADABLE, failure, num_rows_of, open_parquet
from batchinfer.readers.text import HEAD_BYTES, TextStream, is_utf8
from batchinfer.storage import open_file

#: Rows of one place that are looked at; bytes read from the end of a file.
_MAX_ROWS = 1000
_TAIL_BYTES = 256 << 10
_PARQUET_SAMPLE_BYTES = 4 << 20

_MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b\x08": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\x00": ".xz",
    b"BZh91AY&SY": ".bz2",
    b"PAR1": ".parquet",
}
#: What files begin with that are named by mistake: what they are, and the way out.
_NO_TABLE: Mapping[bytes, tuple[str, str]] = {
    b"%PDF": ("a PDF document", "extract its text into JSON Lines first"),
    b"PK\x03\x04": ("a zip archive or an Office document", "unpack it, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save the sheet as CSV"),
    b"\x89PNG": ("an image", "name a file of rows"),
    b"\xff\xd8\xff": ("an image", "name a file of rows"),
    b"GIF8": ("an image", "name a file of rows"),
    b"SQLite format 3": ("a SQLite database", "export the table as CSV or Parquet"),
    b"ARROW1": ("an Arrow file", "write its table as Parquet"),
    b"ORC": ("an ORC file", "write its table as Parquet"),
    b"Obj\x01": ("an Avro file", "write its table as Parquet"),
    b"\x89HDF": ("an HDF5 file", "write its table as Parquet"),
    b"\x80\x04\x95": ("a Python pickle", "write its table as Parquet"),
    b"\x7fELF": ("a program", "name a file of rows"),
}


@dataclass(frozen=True, slots=True)
class FileSample:
    """What one file looks like; `num_rows` is None where only its header was read."""

    columns: Mapping[str, pa.DataType]
    row_bytes: float = 0.0
    num_rows: float | None = None


def sample_jsonl(file: InputFile, options: ReadOptions, with_rows: bool) -> FileSample:
    """Types from the head of a file and, where one can seek, from its middle and end."""
    head = _Head(file, options)
    lines = _filled(head.data)
    _refuse_undecodable(file, lines)
    _refuse_document(file, head, lines)
    places = [lines]
    if not head.whole and not file.compression and is_utf8(options.encoding):
        for offset in (file.size // 2, max(0, file.size - _TAIL_BYTES)):
            places.append(_filled(_lines_after(file, options, offset)))
    columns: dict[str, pa.DataType] = {}
    for place in places:
        _merge_types(columns, place[:_MAX_ROWS])
    means = [_mean(place) for place in places if place]
    if head.whole:
        return FileSample(columns, max(means, default=0.0), len(lines))
    mean = sum(means) / len(means) if means else float(head.size)
    return FileSample(columns, max(means, default=float(head.size)), head.total_bytes / mean)


def sample_csv(file: InputFile, options: ReadOptions, with_rows: bool) -> FileSample:
    """Columns from the header; the size of a row from the first rows and from lines further on."""
    head = _Head(file, options, measured=with_rows)
    _refuse_undecodable(file, _first_filled(head.data))
    if b"\n" not in head.data and b"\r" in head.data.rstrip(b"\r"):
        raise UsageError(
            f"{shown(file.path)}: its lines end with a carriage return alone, as on old Macs;"
            " convert it: tr '\\r' '\\n' < old.csv > new.csv"
        )
    columns = {name: pa.string() for name in read_header(file, options).names}
    if not with_rows:
        return FileSample(columns)
    reader = CsvReader(
        file, replace(options, schema=pa.schema([]), rescue_unknown=False), Position()
    )
    try:
        begin = reader.position
        rows = reader.take(_MAX_ROWS).table.num_rows
        end = reader.position
        complete = reader.at_end()
    finally:
        reader.close()
    mean = (end.offset - begin.offset) / max(1, rows)
    if complete:
        return FileSample(columns, mean if rows else 0.0, rows)
    means = [mean]
    if not file.compression and is_utf8(options.encoding):
        lines_a_row = (end.line - begin.line) / max(1, rows)
        for offset in (file.size // 2, max(0, file.size - _TAIL_BYTES)):
            if place := _filled(_lines_after(file, options, offset)):
                means.append(_mean(place) * lines_a_row)
    return FileSample(columns, max(means), head.total_bytes / (sum(means) / len(means)))


def sample_parquet(file: InputFile, options: ReadOptions, with_rows: bool) -> FileSample:
    """Columns and row count from the footer; the size of a row from some decoded rows."""
    parquet = open_parquet(file)
    try:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if len(set(schema.names)) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise UsageError(f"{shown(file.path)}: has two columns '{shown(twice)}'; rename one")
        columns = {column.name: plain(column.type) for column in schema}
        row_bytes = 0.0
        groups = [i for i in range(metadata.num_row_groups) if metadata.row_group(i).num_rows]
        for index in sorted({groups[0], groups[len(groups) // 2], groups[-1]} if groups else ()):
            group = metadata.row_group(index)
            stored = group.total_byte_size / group.num_rows
            row_bytes = max(row_bytes, stored)
            if with_rows:
                size = max(1, min(256, int(_PARQUET_SAMPLE_BYTES / max(1.0, stored))))
                batch = next(parquet.iter_batches(size, row_groups=[index]), None)
                if batch is not None and batch.num_rows:
                    row_bytes = max(row_bytes, batch.nbytes / batch.num_rows)
        return FileSample(columns, row_bytes, num_rows_of(parquet))
    except UNREADABLE as error:
        raise failure(file, error) from error
    finally:
        parquet.close(force=True)


class _Head:
    """The first lines of a text file: about a MiB, at least one line that is not too long.

    `whole`: whether they are all, and `total_bytes` of the decompressed file. Where that is not to be
    `measured`, fewer lines do.
    """

    def __init__(self, file: InputFile, options: ReadOptions, *, measured: bool = True) -> None:
        _refuse_disguised(file)
        stream = TextStream(file, options, block_bytes=None if measured else HEAD_BYTES)
        try:
            block = stream.next_block()
            while block is not None and block.too_long:
                block = stream.next_block()
            self.data = block.data if block else b""
            self.size = block.end if block else 0
            on_disk = stream.bytes_on_disk
            self.whole = measured and (
                block is None or (block.offset < 4 and stream.next_block() is None)
            )
        finally:
            stream.close()
        plain_text = not file.compression and is_utf8(options.encoding)
        ratio = 1.0 if plain_text else self.size / max(1, on_disk)
        self.total_bytes = self.size if self.whole else max(self.size, file.size * ratio)


def _lines_after(file: InputFile, options: ReadOptions, offset: int) -> bytes:
    """Complete lines somewhere behind an offset; none where a line there is too long."""
    stream = TextStream(file, options, Position(offset=offset))
    try:
        block = stream.next_block()
        data = block.data if block else b""
        data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
        if not data and (block := stream.next_block()) is not None:
            data = block.data
        return data
    finally:
        stream.close()


def _first_filled(data: bytes) -> list[bytes]:
    """The first of `_filled`, without a look at the others."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin)
        line = data[begin : len(data) if end < 0 else end]
        if line.strip():
            return [line]
        begin += len(line) + 1
    return []


def _filled(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.strip()]


def _mean(lines: Sequence[bytes]) -> float:
    return sum(map(len, lines)) / len(lines) + 1


def _merge_types(columns: dict[str, pa.DataType], lines: Sequence[bytes]) -> None:
    seen: dict[str, set[pa.DataType]] = {}
    for line in lines:
        record = _loads(line)
        if isinstance(record, dict):
            for name, value in record.items():
                seen.setdefault(name, set()).add(infer(value))
    for name, kinds in seen.items():
        for kind in sorted(kinds, key=str):
            columns[name] = merge(columns.get(name, pa.null()), kind)


def _loads(data: bytes) -> Any:
    """The JSON value, or None where it is none."""
    try:
        return orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError):
        return None


def _refuse_disguised(file: InputFile) -> None:
    if file.compression:
        return
    with open_file(file.path) as stream:
        start = stream.read(16)
    for magic, extension in _MAGIC.items():
        if start.startswith(magic):
            raise UsageError(
                f"{shown(file.path)}: looks like a {extension} file; rename it so that it says so"
            )
    for magic, (what, advice) in _NO_TABLE.items():
        if start.startswith(magic):
            raise UsageError(f"{shown(file.path)}: is {what}, not {file.format}; {advice}")


def _refuse_undecodable(file: InputFile, lines: Sequence[bytes]) -> None:
    if not lines:
        return
    try:
        lines[0].decode()
    except UnicodeDecodeError as error:
        if lines[0].startswith((b"\xff\xfe", b"\xfe\xff")):  # a byte order mark
            raise UsageError(f"{shown(file.path)}: is UTF-16; give --encoding utf-16") from None
        raise UsageError(
            f"{shown(file.path)}: its first line cannot be decoded (byte {error.start + 1});"
            " name its encoding, for example --encoding latin-1 or --encoding utf-16"
        ) from None
    if b"\0" in lines[0]:
        raise UsageError(
            f"{shown(file.path)}: its first line holds zero bytes; name its encoding,"
            " for example --encoding utf-16-le"
        )


def _refuse_document(file: InputFile, head: _Head, lines: Sequence[bytes]) -> None:
    """Refuse a JSON array or a pretty-printed document; broken lines among good ones are none."""
    if not lines or isinstance(_loads(lines[0]), dict):
        return
    document = _loads(head.data) if head.whole else None
    name = shown(file.path)
    if isinstance(document, list):
        _refuse(name, "a JSON array", ".[]")
    if isinstance(document, dict):
        _refuse(name, "one JSON document over several lines", ".")
    rest = lines[1:_MAX_ROWS]
    good = sum(isinstance(_loads(line), dict) for line in rest)
    start = lines[0].strip()
    if head.whole and not (good == 0 and start in (b"[", b"{")):
        return
    if start.startswith((b"[", b"{")) and _loads(lines[0]) is None and 2 * good <= len(rest):
        _refuse(name, "a JSON document over several lines", ".[]" if start[:1] == b"[" else ".")


def _refuse(name: str, what: str, query: str) -> None:
    raise UsageError(
        f"{name}: is {what}, not JSON Lines; convert it: jq -c '{query}' file.json > file.jsonl"
    )
