"""A chunk is the same whether it is read after the others or alone from where they ended."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchinfer.core import Chunk, Position, Span
from batchinfer.errors import BatchInferError
from batchinfer.readers import (
    ReadOptions,
    cut_span,
    group_segments,
    inspect_inputs,
    list_inputs,
    read_chunks,
)

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def same(first: Chunk, second: Chunk) -> bool:
    return first.table.equals(second.table) and replace(first, table=None) == replace(
        second, table=None
    )


def check_resume(paths: list[Path], chunk_rows: int, **options: Any) -> list[Chunk]:
    """Read at once and chunk by chunk; return the chunks."""
    files = list_inputs([str(path) for path in paths])
    read = ReadOptions(**options)
    read = replace(read, schema=inspect_inputs(files, read).schema)
    (segment,) = group_segments(files)
    chunks = list(read_chunks(Span(segment, 0, Position(), None), chunk_rows, read))
    for chunk in chunks:
        stop = chunk.id.chunk + 1
        alone = list(
            read_chunks(Span(segment, chunk.id.chunk, chunk.start, stop), chunk_rows, read)
        )
        assert len(alone) == 1 and same(alone[0], chunk)
    whole = Span(segment, 0, Position(), None)
    digests = list(read_chunks(whole, chunk_rows, read, only_digests=True))
    without_rows = {"table": None, "errors": {}}
    assert [replace(one, **without_rows) for one in digests] == [
        replace(one, **without_rows) for one in chunks
    ]
    assert not any(one.num_rows for one in digests)
    for size, span in ((1, whole), (2, whole), (2, replace(whole, passed=1))):
        pieces = list(cut_span(span, chunk_rows, read, size))
        assert all(piece.stop - piece.begin <= size for piece in pieces if piece.stop)
        found = [chunk for piece in pieces for chunk in read_chunks(piece, chunk_rows, read)]
        assert all(
            same(one, other) for one, other in zip(found, chunks[span.passed :], strict=True)
        )
    for before, after in pairwise(chunks):
        assert before.next == after.start and not before.ends_segment
        assert before.num_rows == chunk_rows
    assert chunks[-1].ends_segment
    places = [
        place
        for chunk in chunks
        for place in zip(
            chunk.table.column("_source").to_pylist(),
            chunk.table.column("_row").to_pylist(),
            strict=True,
        )
    ]
    order = {file.source: i for i, file in enumerate(files)}
    assert places == sorted(set(places), key=lambda place: (order[place[0]], place[1]))
    return chunks


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from(["id", "text", "a", "é"]), json_values, max_size=4)
jsonl_lines = st.one_of(
    records.map(lambda record: json.dumps(record).encode()),
    records.map(lambda record: json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")),
    st.binary(max_size=40),
    st.just(b""),
    st.just(b" \t"),
    st.just(b'{"text": "' + b"x" * 300 + b'"}'),
)


@quick
@given(
    contents=st.lists(st.lists(jsonl_lines, max_size=30), min_size=1, max_size=3),
    chunk_rows=st.integers(1, 12),
    ending=st.sampled_from([b"", b"\n", b"\r\n\n"]),
    suffix=st.sampled_from(sorted(COMPRESS)),
    limit=st.sampled_from([256, 1 << 20]),
)
def test_jsonl_chunks_do_not_depend_on_where_reading_started(
    tmp_path: Path,
    contents: list[list[bytes]],
    chunk_rows: int,
    ending: bytes,
    suffix: str,
    limit: int,
) -> None:
    paths, rows = [], 0
    for number, lines in enumerate(contents):
        data = b"\n".join(lines) + ending
        text = data.removeprefix(codecs.BOM_UTF8)  # no part of the first line
        rows += sum(1 for line in text.split(b"\n") if line.strip(b" \t\r"))
        paths.append(tmp_path / f"{number}.jsonl{suffix}")
        paths[-1].write_bytes(COMPRESS[suffix](data))
    try:
        chunks = check_resume(paths, chunk_rows, text_columns=("text",), max_line_bytes=limit)
    except BatchInferError as refused:
        assert refused.exit_code == 2, refused
        return
    assert sum(chunk.num_rows for chunk in chunks) == rows


@quick
@given(
    rows=st.lists(
        st.tuples(*[st.text(alphabet=st.sampled_from('ab",\n\r é;'), max_size=6)] * 3), max_size=40
    ),
    noise=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=3),
    chunk_rows=st.integers(1, 12),
    limit=st.sampled_from([64, 1 << 20]),
)
def test_csv_chunks_do_not_depend_on_where_reading_started(
    tmp_path: Path,
    rows: list[tuple[str, ...]],
    noise: list[tuple[int, bytes]],
    chunk_rows: int,
    limit: int,
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    data = bytearray(text.getvalue().encode())
    for place, piece in noise:
        data[place:place] = piece
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,text,more\n" + data)
    chunks = check_resume([path], chunk_rows, text_columns=("text",), max_line_bytes=limit)
    if not noise and limit > 64:
        found = [
            (row["id"], row["text"], row["more"])
            for chunk in chunks
            for row in chunk.table.to_pylist()
        ]
        # A line break inside quotes is kept as it was written.
        assert found == rows


@settings(quick, max_examples=60)
@given(
    groups=st.lists(
        st.lists(
            st.fixed_dictionaries(
                {
                    "text": st.none() | st.text(max_size=5),
                    "n": st.none() | st.integers(-5, 5),
                    "flag": st.none() | st.booleans(),
                    "tags": st.none() | st.lists(st.none() | st.text(max_size=3), max_size=3),
                    "meta": st.none() | st.fixed_dictionaries({"x": st.none() | st.floats(-1, 1)}),
                }
            ),
            min_size=1,
            max_size=9,
        ),
        max_size=4,
    ),
    chunk_rows=st.integers(1, 12),
)
def test_parquet_chunks_do_not_depend_on_where_reading_started(
    tmp_path: Path, groups: list[list[dict[str, Any]]], chunk_rows: int
) -> None:
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("n", pa.int32()),
            ("flag", pa.bool_()),
            ("tags", pa.list_(pa.string())),
            ("meta", pa.struct([("x", pa.float64())])),
        ]
    )
    path = tmp_path / "rows.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema))
    chunks = check_resume([path], chunk_rows, text_columns=("text",))
    found = [row for chunk in chunks for row in chunk.table.select(schema.names).to_pylist()]
    assert found == [row for group in groups for row in group]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "shift_jis", "utf-8-sig"])
def test_other_encodings_resume_at_any_row(tmp_path: Path, encoding: str) -> None:
    rows = [{"id": i, "text": "aé" if encoding == "latin-1" else "a"} for i in range(50)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    )
    chunks = check_resume([path], 7, text_columns=("text",), encoding=encoding)
    assert [row["text"] for chunk in chunks for row in chunk.table.to_pylist()] == [
        row["text"] for row in rows
    ]
    assert not any(chunk.errors for chunk in chunks)
