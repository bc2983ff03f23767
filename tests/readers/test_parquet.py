"""Parquet: any text type, planned types, nested values, damaged values."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.core import Position, Span
from batchinfer.errors import StorageError
from batchinfer.readers import ReadOptions, group_segments, list_inputs, read_chunks

from .conftest import Reading, read_all

TEXTS = ["a", "", "é", "x" * 100]


def read(tmp_path: Path, table: pa.Table, **options: Any) -> Reading:
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=options.pop("row_group_size", 3))
    return read_all(path, **options)


def rescued(reading: Reading) -> list[Any]:
    return [text and json.loads(text) for text in reading.column("_rescued_data")]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_any_type_that_holds_text_is_a_text(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(TEXTS).cast(kind)})
    reading = read(tmp_path, table, text_columns=("text",), chunk_rows=2)
    assert reading.column("text") == TEXTS and not reading.errors
    assert reading.table.schema.field("text").type in (pa.string(), pa.large_string())


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()], ids=str)
def test_text_that_is_not_utf8_is_an_error_row(tmp_path: Path, kind: pa.DataType) -> None:
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    values = pa.array([b"a", b"\xff", None, b"b"], binary)
    table = pa.table({"text": values.view(kind)})
    reading = read(tmp_path, table, text_columns=("text",))
    assert reading.column("text") == ["a", None, None, "b"]
    assert reading.errors == {
        1: "row 1: column 'text' is not valid UTF-8",
        2: "row 2: no text: column 'text' is null or missing",
    }
    encoded = base64.b64encode(b"\xff").decode()
    assert rescued(reading) == [None, {"text": {"base64": encoded}}, None, None]
    reading.table.validate(full=True)


def test_a_column_that_is_no_text_is_kept_but_for_undecodable_values(tmp_path: Path) -> None:
    nested = pa.StructArray.from_arrays([pa.array([b"a", b"\xfe", b"c"]).view(pa.string())], ["s"])
    table = pa.table({"text": ["a", "b", "c"], "meta": nested})
    reading = read(tmp_path, table, text_columns=("text",))
    assert reading.column("meta") == [{"s": "a"}, None, {"s": "c"}] and not reading.errors
    assert rescued(reading)[1] == {"meta": {"s": {"base64": "/g=="}}}


def test_a_text_column_of_numbers_is_errors_throughout(tmp_path: Path) -> None:
    reading = read(tmp_path, pa.table({"text": [1, 2]}), text_columns=("text",))
    assert reading.errors[1] == "row 1: column 'text' holds a number, not a string"
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    reading = read_all(tmp_path, text_columns=("text",))
    assert reading.errors == {
        row: f"row {row - 1}: column 'text' holds a number, not a string" for row in (1, 2)
    }


def test_values_that_do_not_fit_the_plan_are_rescued(tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": pa.array([1, 2**40, None]),
            "x": [0.5, 2.0, float("inf")],
            "t": ["1", "a", "3"],
            "day": [datetime(2024, 1, 1), datetime(2024, 1, 1, 12), None],
        }
    )
    types = {"n": "int32", "x": "int64", "t": "int64", "day": "date"}
    reading = read(tmp_path, table, types=types)
    assert reading.column("n") == [1, None, None]
    assert reading.column("x") == [None, 2, None]
    assert reading.column("t") == [1, None, 3]
    assert rescued(reading) == [
        {"x": 0.5},
        {"n": 2**40, "t": "a", "day": "2024-01-01 12:00:00.000000"},
        {"x": "inf"},
    ]


def test_struct_fields_that_the_plan_does_not_know_are_rescued(tmp_path: Path) -> None:
    table = pa.table({"meta": [{"a": 1, "b": 2}], "other": [[1, 2]]})
    plan = pa.schema([("meta", pa.struct([("a", pa.int64())]))])
    reading = read(tmp_path, table, schema=plan)
    assert reading.column("meta") == [None]
    assert rescued(reading) == [{"meta": {"a": 1, "b": 2}, "other": [1, 2]}]
    assert rescued(read(tmp_path, table, schema=plan, rescue_unknown=False)) == [
        {"meta": {"a": 1, "b": 2}}
    ]


def test_nested_columns_pass_through_typed(tmp_path: Path) -> None:
    table = pa.table(
        {
            "tags": [["a"], [], None],
            "meta": [{"x": 1, "y": [0.5]}, None, {"x": None, "y": None}],
            "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
            "when": pa.array([1, 2, None], pa.timestamp("ns", tz="UTC")),
            "vector": pa.array([[1, 2]] * 3, pa.list_(pa.float32(), 2)),
        }
    )
    reading = read(tmp_path, table, chunk_rows=2, row_group_size=2)
    kept = reading.table.select(table.column_names)
    for name in table.column_names:
        assert kept.column(name).to_pylist() == table.column(name).to_pylist(), name
        assert kept.schema.field(name).type.equals(table.schema.field(name).type), name


def test_rows_without_any_planned_column_are_still_rows(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(10))})
    reading = read(tmp_path, table, schema=pa.schema([]), rescue_unknown=False, chunk_rows=4)
    assert reading.column("_row") == list(range(10))


def test_bookkeeping_of_an_earlier_run_is_dropped(tmp_path: Path) -> None:
    table = pa.table({"_source": ["a"], "_row": [7], "text": ["x"], "_error": ["e"]})
    reading = read(tmp_path, table)
    assert reading.summary.schema.names == ["text"]
    assert reading.column("_row") == [0] and rescued(reading) == [None]


def test_only_the_row_groups_from_the_position_on_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": range(100)}), path, row_group_size=10, compression="none")
    data = bytearray(path.read_bytes())
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    begin = first.dictionary_page_offset or first.data_page_offset
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    (segment,) = group_segments(list_inputs([str(path)]))
    options = ReadOptions(schema=pa.schema([("n", pa.int64())]))
    start = Position(0, 25, 0, 25)
    (chunk,) = read_chunks(Span(segment, 1, start, None), 100, options)
    assert chunk.table.column("n").to_pylist() == list(range(25, 100))
    with pytest.raises(StorageError, match=r"rows\.parquet: cannot be read as Parquet"):
        list(read_chunks(Span(segment, 0, Position(), None), 100, options))


def test_the_digest_does_not_depend_on_row_groups(tmp_path: Path) -> None:
    values = [None if i % 3 == 0 else i for i in range(50)]
    table = pa.table({"n": values, "tags": [[str(v)] if v else None for v in values]})
    digests = {
        tuple(c.digest for c in read(tmp_path, table, row_group_size=size, chunk_rows=20).chunks)
        for size in (1, 7, 50)
    }
    assert len(digests) == 1
