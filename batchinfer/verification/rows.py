"""The rows of a shard beside what its footer, its place in the chain and the plan say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from batchinfer.core import ERROR, NUM_TOKENS, RESCUED, ROW, SOURCE, TRUNCATED, Segment, Shard
from batchinfer.plan import Plan
from batchinfer.readers.base import shown
from batchinfer.writers.footer import KEY
from batchinfer.writers.shard import count_rescued

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute


def wrong_rows(
    table: pa.Table, shard: Shard, segment: Segment, plan: Plan, schema: pa.Schema
) -> Iterator[str]:
    """Say what about a shard's rows is not what its footer and its place in the chain say."""
    if not table.schema.equals(schema, check_metadata=False):
        yield f"its columns are not the job's ({_schema_difference(table.schema, schema)})"
        return
    if table.num_rows != shard.num_rows:
        yield f"holds {table.num_rows:,} rows, where its footer says {shard.num_rows:,}"
    due = plan.chunk_rows
    if table.num_rows > due or (table.num_rows < due and not shard.ends_segment):
        yield f"holds {table.num_rows:,} rows, where {due:,} were due"
    elif not table.num_rows and shard.id.chunk:
        yield "holds no row"
    document = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    if document.get("first_row") != shard.id.chunk * due:
        yield "its footer gives a wrong number to its first row"
    errors = table.column(ERROR)
    for what, counted, said in (
        ("rows with an error", table.num_rows - errors.null_count, shard.num_errors),
        ("tokens", pc.sum(table.column(NUM_TOKENS)).as_py() or 0, shard.num_tokens),
        ("truncated rows", pc.sum(table.column(TRUNCATED)).as_py() or 0, shard.num_truncated),
        ("rescued values", _rescued(table), dict(shard.rescued)),
    ):
        if counted != said:
            yield f"holds {counted} {what}, where its footer says {said}"
    yield from _wrong_order(table, shard, segment)


def _rescued(table: pa.Table) -> dict[str, int]:
    try:
        return count_rescued(table.column(RESCUED))
    except ValueError:
        return {"that are not JSON": 1}


def _wrong_order(table: pa.Table, shard: Shard, segment: Segment) -> Iterator[str]:
    """Follow `_source` and `_row` from the shard's start to its next position.

    Where a file ends is not known here, so a file may follow at any row; how many rows there must be
    is the chunk's size, and which, the input's to say.
    """
    if not {shard.start.file, shard.next.file} <= set(range(len(segment.files))):
        yield "its footer names a file that the job does not have"
        return
    if table.column(SOURCE).null_count or table.column(ROW).null_count:
        yield f"has rows without {SOURCE} or {ROW}"
        return
    encoded: Any = table.column(SOURCE).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    names: list[str] = encoded.dictionary.to_pylist()
    rows = table.column(ROW).to_numpy()
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(codes) != 0)) + 1
    sources = [file.source for file in segment.files]
    file, row = shard.start.file, shard.start.row
    for begin, end in pairwise(sorted({0, *breaks.tolist(), len(rows)})):
        source, number = names[codes[begin]], int(rows[begin])
        if (source, number) != (sources[file], row):
            behind = range(file + 1, len(sources))
            later = next((index for index in behind if sources[index] == source), None)
            if later is None or number != segment.files[later].start.row:
                yield (
                    f"row {begin:,} of it is {shown(source)}:{number}, where "
                    f"{shown(sources[file])}:{row} was due: rows are missing, doubled or out of order"
                )
                return
            file, row = later, number
        row += end - begin
    after = shard.next
    begins_file = after.file > file and after.row == segment.files[after.file].start.row
    if (file, row) != (after.file, after.row) and not begins_file:
        yield (
            f"ends before {shown(sources[file])}:{row}, but its footer says that "
            f"{shown(sources[after.file])}:{after.row} comes next"
        )


def as_stored(schema: pa.Schema) -> pa.Schema:
    """A schema as Parquet gives it back: seconds are milliseconds, a list's item is an element."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink, version="2.6")
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _schema_difference(found: pa.Schema, wanted: pa.Schema) -> str:
    for name in wanted.names:
        if name not in found.names:
            return f"{shown(name)} is missing"
        if found.field(name) != wanted.field(name):
            return f"{shown(name)} is {found.field(name).type}, not {wanted.field(name).type}"
    more = [name for name in found.names if name not in wanted.names]
    return f"{shown(more[0])} is one more" if more else "they stand in another order"
