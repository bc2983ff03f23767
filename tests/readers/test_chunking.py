"""Chunks: a fixed number of rows each, over the files of a segment, from any position."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from batchinfer.core import Chunk, Position, Segment, Span
from batchinfer.errors import JobMismatchError, StorageError
from batchinfer.readers import (
    ReadOptions,
    group_segments,
    inspect_inputs,
    list_inputs,
    open_reader,
    read_chunks,
)

PLAN = ReadOptions(schema=pa.schema([("text", pa.string())]))


def segment_of(folder: Path, *sizes: int) -> Segment:
    for number, size in enumerate(sizes):
        lines = [f'{{"text": "{number}-{row}"}}\n' for row in range(size)]
        (folder / f"{number:02}.jsonl").write_text("".join(lines))
    (segment,) = group_segments(list_inputs([str(folder)]))
    return segment


def chunks_of(segment: Segment, chunk_rows: int) -> list[Chunk]:
    return list(read_chunks(Span(segment, 0, Position(), None), chunk_rows, PLAN))


def test_chunks_run_over_files_and_empty_files(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 0, 3, 0, 0, 4, 0)
    chunks = chunks_of(segment, 3)
    assert [chunk.table.column("text").to_pylist() for chunk in chunks] == [
        ["1-0", "1-1", "1-2"],
        ["4-0", "4-1", "4-2"],
        ["4-3"],
    ]
    assert [chunk.ends_segment for chunk in chunks] == [False, False, True]
    assert chunks[1].table.column("_source").to_pylist() == ["04.jsonl"] * 3
    assert chunks[2].table.column("_row").to_pylist() == [3]
    assert chunks[2].table.schema.names == ["_source", "_row", "text", "_rescued_data"]


def test_a_last_full_chunk_knows_that_it_is_the_last(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 4, 2, 0, 0)
    assert [chunk.ends_segment for chunk in chunks_of(segment, 3)] == [False, True]
    assert [chunk.ends_segment for chunk in chunks_of(segment, 6)] == [True]


def test_trailing_blank_lines_are_no_further_chunk(tmp_path: Path) -> None:
    segment_of(tmp_path, 3)
    with (tmp_path / "00.jsonl").open("a") as file:
        file.write("\n" * 100)
    (segment,) = group_segments(list_inputs([str(tmp_path)]))
    assert [chunk.ends_segment for chunk in chunks_of(segment, 3)] == [True]


@pytest.mark.parametrize("sizes", [(0,), (0, 0, 0)])
def test_an_empty_segment_is_one_chunk_without_rows(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    (chunk,) = chunks_of(segment_of(tmp_path, *sizes), 3)
    assert (chunk.num_rows, chunk.ends_segment, chunk.id.chunk) == (0, True, 0)
    assert chunk.table.schema.names == ["_source", "_row", "text", "_rescued_data"]
    assert chunk.table.schema.field("_row").type == pa.int64()


def test_a_span_ends_before_its_stop(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 10)
    start = chunks_of(segment, 3)[0].next
    found = list(read_chunks(Span(segment, 1, start, 3), 3, PLAN))
    assert [chunk.id.chunk for chunk in found] == [1, 2]
    assert [chunk.ends_segment for chunk in found] == [False, False]


def test_errors_are_told_by_row_of_the_chunk_and_line_of_the_file(tmp_path: Path) -> None:
    segment_of(tmp_path, 2, 2)
    (tmp_path / "01.jsonl").write_text('{"text": "a"}\n\n{"text": \n{"id": 1}\n')
    (segment,) = group_segments(list_inputs([str(tmp_path)]))
    options = replace(PLAN, text_columns=("text",), rescue_unknown=False)
    (chunk,) = read_chunks(Span(segment, 0, Position(), None), 10, options)
    assert chunk.errors == {
        3: "line 3: not valid JSON: unexpected end of data (column 10)",
        4: "line 4: no text: column 'text' is null or missing",
    }


def test_every_column_of_a_chunk_is_one_array(tmp_path: Path) -> None:
    (chunk,) = chunks_of(segment_of(tmp_path, 5, 5, 5), 100)
    assert all(column.num_chunks == 1 for column in chunk.table.columns)


def test_the_digest_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    first = [chunk.digest for chunk in chunks_of(segment_of(tmp_path, 6), 3)]
    path = tmp_path / "00.jsonl"
    path.write_text(path.read_text().replace("0-5", "0-6"))
    (segment,) = group_segments(list_inputs([str(tmp_path)]))
    second = [chunk.digest for chunk in chunks_of(segment, 3)]
    assert first[0] == second[0] and first[1] != second[1]


@pytest.mark.parametrize("when", ["before", "under way"])
def test_an_input_that_changed_stops_the_reading(tmp_path: Path, when: str) -> None:
    segment = segment_of(tmp_path, 2, 6)
    reading = read_chunks(Span(segment, 0, Position(), None), 3, PLAN)
    if when == "under way":
        next(reading)
    os.utime(tmp_path / "01.jsonl", (1, 1))
    with pytest.raises(JobMismatchError, match=r"01\.jsonl: the input changed under way"):
        list(reading)


def test_an_input_that_went_away_stops_the_reading(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 2, 6)
    reading = read_chunks(Span(segment, 0, Position(), None), 3, PLAN)
    next(reading)
    (tmp_path / "01.jsonl").unlink()
    with pytest.raises(JobMismatchError, match=r"01\.jsonl: the input is gone"):
        list(reading)


def test_a_compressed_file_that_was_cut_is_said_to_have_changed(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 500_000))
    files = list_inputs([str(path)])
    (segment,) = group_segments(files)
    reading = read_chunks(Span(segment, 0, Position(), None), 1000, PLAN)
    next(reading)
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(JobMismatchError, match="changed under way"):
        list(reading)


def test_a_reader_that_is_asked_too_early_says_so(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 1)
    with pytest.raises(AssertionError, match="inspect_inputs"):
        open_reader(segment.files[0], ReadOptions())


def test_a_position_behind_the_end_is_an_error(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    files = list_inputs([str(path)])
    options = replace(PLAN, schema=inspect_inputs(files, ReadOptions()).schema)
    with pytest.raises(StorageError, match="shorter"):
        open_reader(files[0], options, Position(0, 1000, 10, 10))
