"""One look at the inputs: schema, size of a row, number of rows; and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError, UsageError
from batchinfer.readers import InputSummary, ReadOptions, inspect_inputs, list_inputs

from .conftest import read_all


def inspect(*paths: Path, types: dict[str, str] | None = None, **options: Any) -> InputSummary:
    files = list_inputs([str(path) for path in paths])
    return inspect_inputs(files, ReadOptions(**options), types)


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], pa.int64()),
        ([1, 0.5], pa.float64()),
        ([None, None], pa.string()),
        ([None, True], pa.bool_()),
        ([1, "a"], pa.string()),
        ([True, 1], pa.string()),
        ([[1], [0.5], []], pa.list_(pa.float64())),
        ([[]], pa.list_(pa.string())),
        ([{"a": 1}, {"b": None}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([{}, {"a": [{"b": 1}]}], pa.struct([("a", pa.list_(pa.struct([("b", pa.int64())])))])),
        ([{}], pa.string()),
        ([{"a": 1}, [1]], pa.string()),
        ([{str(i): 1} for i in range(300)], pa.string()),
    ],
)
def test_types_of_jsonl_widen_until_they_hold_every_value(
    tmp_path: Path, values: list[Any], kind: pa.DataType
) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"x": value} for value in values))
    assert inspect(path).schema == pa.schema([("x", kind)])
    backwards = jsonl(tmp_path / "b.jsonl", *({"x": value} for value in reversed(values)))
    found = inspect(backwards).schema.field("x").type
    assert found == kind or pa.types.is_struct(kind)


def test_types_are_found_in_every_file_and_at_the_end_of_large_ones(tmp_path: Path) -> None:
    large = [{"x": i, "text": "word " * 50} for i in range(20_000)]
    jsonl(tmp_path / "a.jsonl", *large, {"x": 0.5, "last": True})
    jsonl(tmp_path / "b.jsonl", {"other": "a"})
    schema = inspect(tmp_path).schema
    assert schema.field("x").type == pa.float64()
    assert schema.field("last").type == pa.bool_()
    assert schema.field("other").type == pa.string()


def test_the_size_of_a_row_is_that_of_the_largest_place(tmp_path: Path) -> None:
    small, large = [{"text": "a"}] * 300_000, [{"text": "a" * 50_000}] * 100
    skewed = jsonl(tmp_path / "skewed.jsonl", *small, *large)
    assert inspect(skewed).row_bytes > 10_000
    assert inspect(jsonl(tmp_path / "even.jsonl", *small)).row_bytes == 14


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_the_number_of_rows_is_estimated_well(tmp_path: Path, suffix: str) -> None:
    texts = [f"text of row {i} " * (i % 9) for i in range(60_000)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = ["text", *texts] if "csv" in suffix else [json.dumps({"text": t}) for t in texts]
        data = "\n".join('""' if line == "" else line for line in lines).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    summary = inspect(path)
    assert 0.8 < summary.num_rows_estimate / 60_000 < 1.25
    assert summary.num_bytes == path.stat().st_size
    assert 60 < summary.row_bytes < 120


def test_parquet_schemas_are_unified(tmp_path: Path) -> None:
    tables = {
        "a": pa.table({"n": pa.array([1], pa.int32()), "t": pa.array(["x"]).dictionary_encode()}),
        "b": pa.table({"n": pa.array([1], pa.int64()), "t": pa.array(["x"], pa.large_string())}),
        "c": pa.table({"n": pa.array([0.5]), "u": pa.array([None])}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    schema = inspect(tmp_path).schema
    assert [(f.name, f.type) for f in schema] == [
        ("n", pa.float64()),
        ("t", pa.large_string()),
        ("u", pa.string()),
    ]
    reading = read_all(tmp_path)
    assert reading.column("n") == [1.0, 1.0, 0.5]
    assert reading.column("t") == ["x", "x", None]


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "a", "n": 1})
    (tmp_path / "b.csv").write_text("text,n\nb,2\n")
    pq.write_table(pa.table({"text": ["c"], "n": [3]}), tmp_path / "c.parquet")
    reading = read_all(tmp_path, text_columns=("text",))
    assert reading.column("text") == ["a", "b", "c"] and not reading.errors
    assert reading.column("n") == [None, "2", "3"]
    assert reading.column("_rescued_data") == ['{"n":1}', None, None]


def test_types_can_be_overridden(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"x": 1})
    types = {"x": "float64", "later": "timestamp[us, UTC]", "tags": "list<string>"}
    assert inspect(path, types=types).schema == pa.schema(
        [
            ("x", pa.float64()),
            ("later", pa.timestamp("us", tz="UTC")),
            ("tags", pa.list_(pa.string())),
        ]
    )
    with pytest.raises(UsageError, match="unknown type 'integer'"):
        inspect(path, types={"x": "integer"})
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(UsageError, match="no column 'y'"):
        inspect(tmp_path / "a.csv", types={"y": "int64"})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    summary = inspect(tmp_path / name)
    assert (summary.num_rows_estimate, summary.num_bytes, len(summary.schema)) == (0, 0, 0)


DOCUMENTS = {
    "array": '[{"a": 1}, {"a": 2}]',
    "array over lines": '[\n{"a": 1},\n{"a": 2}\n]\n',
    "pretty": json.dumps({"data": [{"a": 1}] * 3}, indent=2),
    "pretty objects": json.dumps({"a": 1}, indent=1) + "\n" + json.dumps({"a": 2}, indent=1),
    "large array": json.dumps([{"a": i, "text": "word " * 20} for i in range(30_000)]),
    "large array over lines": "[\n" + ",\n".join(['{"a": 1, "b": "word"}'] * 90_000) + "\n]",
    "large pretty": json.dumps([{"a": i} for i in range(100_000)], indent=2),
    "empty array": "[]\n",
}


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_json_document_is_refused_with_a_hint(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(DOCUMENTS[name])
    with pytest.raises(UsageError, match="jq -c") as error:
        inspect(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "first", ["[1, 2]", "[", "{", '{"text": "cut', "17", "[1, 2", '[{"a": 1},', "broken"]
)
@pytest.mark.parametrize("num_rows", [3, 50_000])
def test_a_bad_first_line_among_good_ones_is_an_error_row(
    tmp_path: Path, first: str, num_rows: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(first + "\n" + '{"text": "some words of a row"}\n' * num_rows)
    reading = read_all(path, chunk_rows=20_000)
    assert list(reading.errors) == [0]
    assert reading.table.num_rows == num_rows + 1


@pytest.mark.parametrize("data", ['{"a": 1}', '{"a": ', "17\n", '{"a": 1}\n[1]\n'])
def test_a_short_jsonl_file_is_no_document(tmp_path: Path, data: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(data)
    assert len(read_all(path).rows) == len(data.splitlines())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('{"text": "é"}\n'.encode("latin-1"), "--encoding"),
        ('{"text": "a"}\n'.encode("utf-16"), "--encoding"),
        ('{"text": "a"}\n'.encode("utf-16-le"), "--encoding"),
        (gzip.compress(b'{"text": "a"}\n', mtime=0), r"looks like a \.gz file"),
        (b"PAR1....", r"looks like a \.parquet file"),
    ],
)
def test_first_bytes_that_cannot_be_decoded_are_refused(
    tmp_path: Path, data: bytes, says: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        inspect(path)


def test_a_file_that_is_no_parquet_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet") as error:
        inspect(path)
    assert "\n" not in str(error.value)


def test_a_file_that_went_away_is_an_input_error(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        path = jsonl(tmp_path / name, {"a": 1})
        files = list_inputs([str(path)])
        os.unlink(path)
        with pytest.raises(InputError, match=r"No such file"):
            inspect_inputs(files, ReadOptions())
