"""Rows that no shard says the place of: found as if all in front had been read, with any index or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchinfer.core import Chunk, InputFile, Position, Segment, Span
from batchinfer.errors import JobMismatchError
from batchinfer.readers import OffsetIndex, ReadOptions, list_inputs, offsets, read_chunks, seeking

READ = ReadOptions(text_columns=("text",), schema=pa.schema([("text", pa.string())]))
ROW = b'{"text": "abc"}'
LINES = (
    ROW,
    b'  {"text": "x"}',
    b"",
    b" ",
    b"\t\r",
    b"\x0c",
    b"{broken",
    b" " * 50,
    b" " * 50 + ROW,
)
quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 32)
    monkeypatch.setattr(seeking, "_PIECE_BYTES", 7)


def segment_of(path: Path, content: bytes) -> Segment:
    path.write_bytes(content)
    return Segment(0, tuple(list_inputs([str(path)])))


def all_chunks(segment: Segment, rows: int, options: ReadOptions = READ) -> list[Chunk]:
    return list(read_chunks(Span(segment, 0, Position(), None), rows, options))


def same(first: Chunk, second: Chunk) -> bool:
    return first.table.equals(second.table) and replace(first, table=None) == replace(
        second, table=None
    )


def check_passing(segment: Segment, rows: int, options: ReadOptions, index: OffsetIndex) -> None:
    """Each chunk, come by from each place in front of it, is the one that a full reading finds."""
    chunks = all_chunks(segment, rows, options)
    for number in reversed(range(len(chunks) + 2)):
        for first in range(min(number, len(chunks))):
            span = Span(segment, first, chunks[first].start, number + 1, passed=number - first)
            found = list(read_chunks(span, rows, options, index))
            assert len(found) == (number < len(chunks))
            assert all(same(*pair) for pair in zip(found, chunks[number:], strict=False))


@quick
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=30),
    head=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    ends=st.booleans(),
    rows=st.integers(1, 4),
    limit=st.sampled_from([20, 49, 1000]),
)
def test_rows_of_json_lines_are_found_by_counting(
    tmp_path: Path, lines: list[bytes], head: bytes, ends: bool, rows: int, limit: int
) -> None:
    segment = segment_of(tmp_path / "a.jsonl", head + b"\n".join([*lines, *[b""] * ends]))
    options = replace(READ, max_line_bytes=limit)
    check_passing(segment, rows, options, OffsetIndex())
    index = OffsetIndex(tmp_path / "index")
    for _ in range(2):  # written, then believed
        check_passing(segment, rows, options, index)


CSV_LINES = (b"abc", b'"a\nb"', b'"open', b"", b"\r", b"a,b", b'"x"y', b'"1,""2"', b"z" * 60)


@quick
@given(
    lines=st.lists(st.sampled_from(CSV_LINES), max_size=30),
    rows=st.integers(1, 4),
    limit=st.sampled_from([40, 1000]),
)
def test_records_of_csv_are_found_from_the_nearest_place_that_is_known(
    tmp_path: Path, lines: list[bytes], rows: int, limit: int
) -> None:
    segment = segment_of(tmp_path / "a.csv", b"text\n" + b"\n".join(lines))
    options = replace(READ, max_line_bytes=limit)
    index = OffsetIndex(tmp_path / "index")
    for _ in range(2):
        check_passing(segment, rows, options, index)


class Counted:
    """The blocks that were counted as a whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        count = seeking._Search._count

        def counting(self_: seeking._Search, begin: int, end: int) -> offsets.Entry:
            if end - begin == offsets.BLOCK_BYTES:
                self.blocks.append(begin // offsets.BLOCK_BYTES)
            return count(self_, begin, end)

        monkeypatch.setattr(seeking._Search, "_count", counting)

    def take(self) -> list[int]:
        blocks, self.blocks = self.blocks, []
        return blocks


def chunk_at(
    segment: Segment,
    number: int,
    index: OffsetIndex,
    stopped: Callable[[], bool] = lambda: False,
) -> Chunk | None:
    span = Span(segment, 0, Position(), number + 1, passed=number)
    return next(read_chunks(span, 4, READ, index, stopped), None)


def test_a_block_is_counted_once_by_all_parts_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows a block: chunk 30 begins in block 60. The later part begins in front of its own rows."""
    segment = segment_of(tmp_path / "a.jsonl", (ROW + b"\n") * 200)
    index, counted = OffsetIndex(tmp_path / "index"), Counted(monkeypatch)
    chunk_at(segment, 15, index)
    assert counted.take() == [0, *range(30, 0, -1)]
    chunk_at(segment, 30, index)
    assert counted.take() == [*range(60, 30, -1)]
    chunk_at(segment, 20, index)
    assert counted.take() == []


def test_a_damaged_index_is_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segment_of(tmp_path / "a.jsonl", (ROW + b"\n") * 24 + b"\n" * 9 + ROW)
    index = OffsetIndex(tmp_path / "index")
    wanted = all_chunks(segment, 4)[5]
    chunk_at(segment, 5, index)
    [path] = (tmp_path / "index").iterdir()
    written = path.read_bytes()
    counted = Counted(monkeypatch)
    for place in range(len(written)):
        for damage in (
            written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :],
            written[:place],
            written[:place] + written[place + 5 :],
        ):
            path.write_bytes(damage)
            assert (found := chunk_at(segment, 5, index)) and same(found, wanted)
    assert counted.take()


def test_an_index_that_does_not_fit_the_file_is_dropped(tmp_path: Path) -> None:
    """Its checksums are right: perhaps a file was changed and its time put back."""
    segment = segment_of(tmp_path / "a.jsonl", (ROW + b"\n") * 40)
    index = OffsetIndex(tmp_path / "index")
    for block in range(16):
        index.of(0, segment.files[0], READ).add(offsets.Entry(block, block * 32 + 5, 1, 1))
    assert (found := chunk_at(segment, 5, index)) and same(found, all_chunks(segment, 4)[5])


@pytest.mark.parametrize(
    "change", [{"size": 1}, {"mtime_ns": 1}, {"source": "b"}, {"encoding": "utf-8-sig"}]
)
def test_an_index_is_of_one_file_read_in_one_way(tmp_path: Path, change: dict[str, object]) -> None:
    file = InputFile("a", "a", "jsonl", "", 1000, 17)
    index = OffsetIndex(tmp_path / "index")
    index.of(0, file, READ).add(offsets.Entry(1, 33, 2, 2))
    assert index.of(0, file, READ).get(1) == offsets.Entry(1, 33, 2, 2)
    assert OffsetIndex(tmp_path / "index", "another").of(0, file, READ).get(1) is None
    if "encoding" in change:
        assert index.of(0, file, replace(READ, encoding="utf-8-sig")).get(1) is None
    else:
        assert index.of(0, replace(file, **change), READ).get(1) is None  # type: ignore[arg-type]


def test_what_changes_while_it_is_counted_is_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = segment_of(tmp_path / "a.jsonl", (ROW + b"\n") * 40)
    count = seeking._Search._count

    def touching(self: seeking._Search, begin: int, end: int) -> offsets.Entry:
        os.utime(segment.files[0].path, ns=(1, 1))
        return count(self, begin, end)

    monkeypatch.setattr(seeking._Search, "_count", touching)
    with pytest.raises(JobMismatchError, match="changed under way"):
        chunk_at(segment, 5, OffsetIndex(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("kind", ["file", "folder in its place", "fifo"])
def test_an_index_that_cannot_be_kept_stops_nothing(tmp_path: Path, kind: str) -> None:
    segment = segment_of(tmp_path / "a.jsonl", (ROW + b"\n") * 40)
    index = OffsetIndex(tmp_path / "index")
    path = index.of(0, segment.files[0], READ)._path
    assert path is not None
    if kind == "file":
        path.parent.write_bytes(b"")
    else:
        path.parent.mkdir()
        path.mkdir() if kind == "folder in its place" else os.mkfifo(path)
    assert (found := chunk_at(segment, 5, index)) and same(found, all_chunks(segment, 4)[5])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_stop_is_heard_while_rows_are_passed_over(tmp_path: Path, name: str) -> None:
    import gzip

    content = (ROW + b"\n") * 100 if "jsonl" in name else b"text\n" + b'"a\nb"\n' * 100
    path = tmp_path / name
    segment = segment_of(path, gzip.compress(content) if name.endswith(".gz") else content)
    asked: Iterator[int] = iter(range(100))
    assert chunk_at(segment, 20, OffsetIndex(), lambda: next(asked) >= 3) is None
    assert next(asked) == 4
