"""Names of shards, and the gaps between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchinfer.core import (
    ChunkId,
    InputFile,
    Position,
    Segment,
    Shard,
    Span,
    parse_shard_name,
    pending_spans,
    retry_spans,
    shard_name,
)

chunk_ids = st.builds(ChunkId, st.integers(0, 10**9), st.integers(0, 10**9))


def shard(segment: int, chunk: int, *, ends: bool = False) -> Shard:
    return Shard(
        id=ChunkId(segment, chunk),
        path=shard_name(ChunkId(segment, chunk)),
        num_rows=10,
        num_errors=0,
        num_tokens=0,
        num_truncated=0,
        rescued={},
        num_bytes=0,
        start=Position(),
        next=Position(0, 100 * (chunk + 1), 10 * (chunk + 1), 10 * (chunk + 1)),
        ends_segment=ends,
        digest="",
    )


@given(st.lists(chunk_ids, max_size=30))
def test_shard_names_sort_in_input_order_at_any_count(chunks: list[ChunkId]) -> None:
    assert sorted(map(shard_name, chunks)) == [shard_name(c) for c in sorted(chunks)]


@given(chunk_ids)
def test_a_shard_name_says_its_chunk(chunk: ChunkId) -> None:
    assert parse_shard_name(shard_name(chunk)) == chunk


def test_other_names_are_no_shards() -> None:
    for name in ("_SUCCESS", "part-0-0.parquet", "part-000000-000000.parquet.tmp", "part-.parquet"):
        assert parse_shard_name(name) is None
    assert parse_shard_name("part-b000000-000000.parquet") is None


def test_without_shards_every_segment_is_pending_from_its_start() -> None:
    segments = [Segment(0, ()), Segment(1, ())]
    assert list(pending_spans(segments, {})) == [
        Span(segments[0], 0, Position(), None),
        Span(segments[1], 0, Position(), None),
    ]


def test_gaps_start_where_the_shard_before_them_ends() -> None:
    segment = Segment(0, ())
    shards = {s.id: s for s in (shard(0, 0), shard(0, 3), shard(0, 4))}
    assert list(pending_spans([segment], shards)) == [
        Span(segment, 1, shards[ChunkId(0, 0)].next, 3),
        Span(segment, 5, shards[ChunkId(0, 4)].next, None),
    ]


def test_a_segment_whose_last_shard_is_there_is_complete() -> None:
    shards = {s.id: s for s in (shard(0, 0), shard(0, 1, ends=True))}
    assert not list(pending_spans([Segment(0, ())], shards))


def test_a_missing_first_shard_is_read_from_the_segments_start() -> None:
    shards = {s.id: s for s in (shard(0, 1, ends=True),)}
    assert list(pending_spans([Segment(0, ())], shards)) == [Span(Segment(0, ()), 0, Position(), 1)]


def test_failed_rows_of_a_compressed_segment_are_one_span() -> None:
    """Each span would decompress the file from its start."""

    def segment(index: int, compression: str) -> Segment:
        file = InputFile(f"{index}", f"{index}", "jsonl", compression, size=1000, mtime_ns=0)
        return Segment(index, (file,))

    segments = [segment(0, ""), segment(1, "gz"), segment(2, "zst")]
    chunks = [ChunkId(s, c) for s in range(3) for c in (1, 4, 7)]
    shards = {chunk: shard(*chunk) for chunk in chunks}
    spans = list(retry_spans(segments, shards, {chunk: (chunk.chunk,) for chunk in chunks}))
    assert [(span.segment.index, span.first, span.stop, span.rows) for span in spans] == [
        (0, 1, 2, {1: (1,)}),
        (0, 4, 5, {4: (4,)}),
        (0, 7, 8, {7: (7,)}),
        (1, 1, 8, {1: (1,), 4: (4,), 7: (7,)}),
        (2, 1, 8, {1: (1,), 4: (4,), 7: (7,)}),
    ]
    assert all(
        span.start == shards[ChunkId(span.segment.index, span.first)].start for span in spans
    )
