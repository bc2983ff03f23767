"""What a shard says of itself, in the key-value metadata of its Parquet footer.

Nothing in it varies between two equal runs: no time, host, path or run id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.core import BatchBudget, ChunkId, Position, Shard
from batchinfer.errors import JobMismatchError

KEY = b"batchinfer"


class FooterError(Exception):
    """The file is no readable shard: torn or damaged."""


def make_footer(
    shard: Shard,
    *,
    plan_id: str,
    first_row: int,
    start: Position,
    budget: BatchBudget,
    dtype: str,
    device_kind: str,
) -> dict[bytes, bytes]:
    """The metadata to write with a shard's schema.

    `start` and `next` are positions in the segment's input, `first_row` is the segment's row at which
    the shard begins. `revision` rises when a shard is replaced.
    """
    document: dict[str, Any] = {
        "plan_id": plan_id,
        "revision": 0,
        "segment": shard.id.segment,
        "chunk": shard.id.chunk,
        "first_row": first_row,
        "num_rows": shard.num_rows,
        "num_errors": shard.num_errors,
        "num_tokens": shard.num_tokens,
        "num_truncated": shard.num_truncated,
        "rescued": dict(shard.rescued),
        "start": list(start),
        "next": list(shard.next),
        "ends_segment": shard.ends_segment,
        "digest": shard.digest,
        "max_batch_tokens": budget.max_batch_tokens,
        "max_batch_rows": budget.max_batch_rows,
        "dtype": dtype,
        "device_kind": device_kind,
    }
    return {KEY: json.dumps(document).encode()}


def read_footer(path: Path) -> tuple[Shard, str]:
    """Return the shard that a file's footer describes, and its plan id.

    Raises FooterError where the file is torn or damaged, JobMismatchError where it is a whole Parquet
    file that is not ours, OSError where it cannot be opened.
    """
    num_bytes = path.stat().st_size
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise FooterError(f"{path}: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise FooterError(f"{path}: {error}") from None  # pyarrow's own "not a Parquet file"
    try:
        document = json.loads((metadata.metadata or {})[KEY])
        shard = Shard(
            id=ChunkId(document["segment"], document["chunk"]),
            path=str(path),
            num_rows=document["num_rows"],
            num_errors=document["num_errors"],
            num_tokens=document["num_tokens"],
            num_truncated=document["num_truncated"],
            rescued=document["rescued"],
            num_bytes=num_bytes,
            next=Position(*document["next"]),
            ends_segment=document["ends_segment"],
            digest=document["digest"],
        )
        plan_id = str(document["plan_id"])
    except (KeyError, ValueError, TypeError):
        raise JobMismatchError(
            f"{path}: not written by this version of batchinfer; move it out of the run folder"
        ) from None
    if metadata.num_rows != shard.num_rows:
        raise FooterError(f"{path}: holds {metadata.num_rows} rows, says {shard.num_rows}")
    return shard, plan_id
