"""Packed shards are the shards that were taken in."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.core import ChunkId, Position, Shard, shard_name
from batchinfer.writers.shard_table import ShardTable

FOLDER = Path("out") / "data"
NUMBERS = st.integers(0, (1 << 63) - 1)
POSITIONS = st.builds(Position, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
IDS = st.builds(ChunkId, st.integers(0, 2), st.integers(0, 3))


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    id = draw(IDS)
    return Shard(
        id=id,
        path=draw(st.sampled_from([str(FOLDER / shard_name(id)), "elsewhere"])),
        num_rows=draw(NUMBERS),
        num_errors=draw(NUMBERS),
        num_tokens=draw(NUMBERS),
        num_truncated=draw(NUMBERS),
        rescued=draw(st.sampled_from([{}, {"column": 3}])),
        num_bytes=draw(NUMBERS),
        start=draw(POSITIONS),
        next=draw(POSITIONS),
        ends_segment=draw(st.booleans()),
        digest=draw(st.sampled_from(["ab" * 32, "AB" * 32, "ab" * 31, "no digest", ""])),
        revision=draw(NUMBERS),
    )


@settings(deadline=None)
@given(st.lists(shards(), max_size=12))
def test_a_table_holds_the_last_shard_of_each_chunk(taken: list[Shard]) -> None:
    table = ShardTable(FOLDER)
    for shard in taken:
        table.add(shard)
    wanted = {shard.id: shard for shard in taken}
    assert dict(table) == wanted
    assert len(table) == len(wanted)
    missing = ChunkId(3, 0)
    assert missing not in table
    with pytest.raises(KeyError):
        table[missing]


def test_a_hundred_thousand_shards_take_some_thirty_megabytes() -> None:
    if sys.gettrace() is not None:
        pytest.skip("a tracer counts its own memory")
    table, num_shards = ShardTable(FOLDER), 20_000
    tracemalloc.start()
    try:
        for chunk in range(num_shards):
            start, following = Position(0, chunk << 20, chunk, chunk), Position(0, chunk << 21)
            name = str(FOLDER / shard_name(ChunkId(0, chunk)))
            shard = Shard(
                ChunkId(0, chunk), name, 1, 0, 9, 0, {}, 9, start, following, False, f"{chunk:064x}"
            )
            table.add(shard)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == num_shards
    assert held / num_shards < 350
