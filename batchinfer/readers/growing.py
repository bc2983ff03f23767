"""Files that are appended to: how far their rows are whole, whatever comes next.

A line without an end may be half of one, and what stands behind an open quote of a CSV record may belong to
that record. Such bytes are left for the run that finds their end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from batchinfer.core import InputFile
from batchinfer.readers.base import ReadOptions, shown
from batchinfer.readers.delimited import CsvReader
from batchinfer.readers.jsonl import parse_object
from batchinfer.readers.listing import MAX_SMALL_FILE_BYTES
from batchinfer.readers.text import BLANK, is_utf8
from batchinfer.storage import is_remote

log = logging.getLogger("batchinfer")

_PIECE_BYTES = 1 << 20


def can_grow(file: InputFile, options: ReadOptions) -> bool:
    """Whether rows that are appended to a file can be told from those that stood there.

    A Parquet file and an object of a store are written anew as a whole; in a compressed file, or in another
    encoding than UTF-8, places are not those on the disk.
    """
    is_plain = file.format != "parquet" and not file.compression and is_utf8(options.encoding)
    return is_plain and not is_remote(file.path)


def as_growing(file: InputFile, options: ReadOptions) -> InputFile:
    """A file (or a part of it) up to where its rows are whole; itself where it cannot grow.

    Raises UsageError for a CSV file whose header cannot be read, and OSError.
    """
    if not can_grow(file, options):
        return file
    end = whole_rows_end(file, options)
    if end < file.size:
        log.warning(
            f"{shown(file.path)}: the last {file.size - end:,} bytes are no whole row yet (no line end, or "
            "a quote that is open); they are left for the next run"
        )
    part = dataclasses.replace(file, size=end, excess=file.size - end, grows=True)
    is_small = part.num_bytes < MAX_SMALL_FILE_BYTES
    return dataclasses.replace(part, digest=digest_of_part(part) if is_small else "")


def digest_of_part(file: InputFile) -> str:
    """SHA-256 of the bytes that a part has on the disk. Raises OSError."""
    digest = hashlib.sha256()
    for begin in range(file.start.offset, file.size, _PIECE_BYTES):
        digest.update(_read(file.path, begin, min(file.size, begin + _PIECE_BYTES)))
    return digest.hexdigest()


def whole_rows_end(file: InputFile, options: ReadOptions) -> int:
    """The offset up to which the rows of a file stay what they are, whatever is appended to it.

    A JSON object is whole where it ends, be there a line end or not: no object is the beginning of another.
    """
    end = _end_of_last_line(file)
    if file.format == "jsonl":
        if 0 < file.size - end <= options.max_line_bytes:
            _, error = parse_object(_read(file.path, end, file.size))
            return end if error else file.size
        return end
    if end == file.start.offset:
        return end
    begins = _open_record(dataclasses.replace(file, size=end, excess=file.size - end), options)
    return end if begins is None else begins


def ends_within_row(file: InputFile, options: ReadOptions, *, is_whole: bool) -> bool:
    """Whether the last row of a part goes on behind its end, so that it was answered in half.

    `is_whole`: the part ends where `whole_rows_end` said; otherwise a CSV file is looked through for a
    quote that is open there.
    """
    if not ends_line(file):
        stop = file.size + min(file.excess, options.max_line_bytes)
        rest = _read(file.path, file.size, stop).partition(b"\n")[0]
        if rest.strip(BLANK if file.format == "jsonl" else b"\r"):
            return True
    return file.format != "jsonl" and not is_whole and _open_record(file, options) is not None


def ends_line(file: InputFile) -> bool:
    """Whether the last row of a part has its line end in it."""
    return not file.size or _read(file.path, file.size - 1, file.size) == b"\n"


def _open_record(file: InputFile, options: ReadOptions) -> int | None:
    """Where in a part of a CSV file a record begins whose quote is open at its end, if any."""
    without_columns = dataclasses.replace(options, schema=pa.schema([]), rescue_unknown=False)
    with closing(CsvReader(file, without_columns, file.start)) as reader:
        return reader.open_record()


def _end_of_last_line(file: InputFile) -> int:
    """The offset behind the last line end of a part; where it starts, if there is none."""
    end = file.size
    while end > file.start.offset:
        begin = max(file.start.offset, end - _PIECE_BYTES)
        found = _read(file.path, begin, end).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return file.start.offset


def _read(path: str, begin: int, end: int) -> bytes:
    with Path(path).open("rb") as stream:
        stream.seek(begin)
        return stream.read(end - begin)
