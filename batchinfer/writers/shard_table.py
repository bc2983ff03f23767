"""The shards of a job, packed: a run knows of each one, and there may be a hundred thousand."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import chain

from batchinfer.core import ChunkId, Position, Shard, shard_name
from batchinfer.storage import Place

#: Rows, errors, tokens, truncated rows, bytes, revision; where it begins and ends; whether that is the
#: segment's end; the digest.
_RECORD = struct.Struct("<6q4q4q?32s")


class ShardTable(Mapping[ChunkId, Shard]):
    """Shards by chunk, in some 280 bytes each instead of 1,000. They all lie in one folder."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        #: By segment, then by chunk.
        self._packed: dict[int, dict[int, bytes]] = {}
        #: Those that a record has no room for: with values that did not fit their columns.
        self._whole: dict[ChunkId, Shard] = {}

    def add(self, shard: Shard) -> None:
        """Take a shard in, or in the place of the one of the same chunk."""
        segment, chunk = shard.id
        self._whole.pop(shard.id, None)
        packed = self._packed.setdefault(segment, {})
        packed.pop(chunk, None)
        try:
            record = _RECORD.pack(
                *(shard.num_rows, shard.num_errors, shard.num_tokens, shard.num_truncated),
                *(shard.num_bytes, shard.revision, *shard.start, *shard.next, shard.ends_segment),
                bytes.fromhex(shard.digest),
            )
        except (struct.error, ValueError):
            record = b""
        if record and self._unpack(shard.id, record) == shard:
            packed[chunk] = record
        else:
            self._whole[shard.id] = shard

    def __getitem__(self, id: ChunkId) -> Shard:
        record = self._packed.get(id.segment, {}).get(id.chunk)
        return self._whole[id] if record is None else self._unpack(id, record)

    def __iter__(self) -> Iterator[ChunkId]:
        packed = (ChunkId(s, chunk) for s, chunks in self._packed.items() for chunk in chunks)
        return chain(packed, self._whole)

    def __len__(self) -> int:
        return sum(map(len, self._packed.values())) + len(self._whole)

    def _unpack(self, id: ChunkId, record: bytes) -> Shard:
        numbers = _RECORD.unpack(record)
        return Shard(
            id=id,
            path=str(self._folder / shard_name(id)),
            num_rows=numbers[0],
            num_errors=numbers[1],
            num_tokens=numbers[2],
            num_truncated=numbers[3],
            rescued={},
            num_bytes=numbers[4],
            start=Position(*numbers[6:10]),
            next=Position(*numbers[10:14]),
            ends_segment=numbers[14],
            digest=numbers[15].hex(),
            revision=numbers[5],
        )
