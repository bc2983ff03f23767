"""What a shard says of itself, in the key-value metadata of its Parquet footer.

Nothing in it varies between two equal runs: no time, host, path or run id.

Parquet's page checksums cover the values, not the footer, and a resume believes the footer: one flipped
digit in `next` would read on at the wrong place. So a footer ends in two digests:

    PAR1 pages … │ footer … "body": D, "seal": S … length PAR1
    └──── D ─────┘ └──────────── S, with zeros in its place ──┘

Whoever reads a footer checks S, and `verify` D too: no byte of a shard can change unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.core import BatchBudget, ChunkId, Position, Shard
from batchinfer.errors import BatchInferError, JobMismatchError, StorageError, one_line
from batchinfer.readers.parquet import UNREADABLE
from batchinfer.storage import Place
from batchinfer.writers.durable import open_regular

KEY = b"batchinfer"
MAGIC = b"PAR1"

_UNSEALED = "0" * 64
#: The end of the document as `make_footer` writes it; the last match in a footer is the shard's own.
_DIGESTS = re.compile(rb'"body": "([0-9a-f]{64})", "seal": "([0-9a-f]{64})"}')
#: Read at once from a file's end: more than the footer of most shards.
_TAIL_BYTES = 64 << 10
#: Footers that are read at a time from a store.
_AT_ONCE = 16


class FooterError(Exception):
    """The file is no readable shard: torn or damaged; `what` says how, without the path."""

    def __init__(self, path: Place, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.what = what


def make_footer(
    shard: Shard,
    *,
    plan_id: str,
    first_row: int,
    budget: BatchBudget,
    dtype: str,
    device_kind: str,
) -> dict[bytes, bytes]:
    """The metadata to write with a shard's schema.

    `start` and `next` are positions in the segment's input, `first_row` is the segment's row at which
    the shard begins.
    """
    document: dict[str, Any] = {
        "plan_id": plan_id,
        "revision": shard.revision,
        "segment": shard.id.segment,
        "chunk": shard.id.chunk,
        "first_row": first_row,
        "num_rows": shard.num_rows,
        "num_errors": shard.num_errors,
        "num_tokens": shard.num_tokens,
        "num_truncated": shard.num_truncated,
        "rescued": dict(shard.rescued),
        "start": list(shard.start),
        "next": list(shard.next),
        "ends_segment": shard.ends_segment,
        "digest": shard.digest,
        "max_batch_tokens": budget.max_batch_tokens,
        "max_batch_rows": budget.max_batch_rows,
        "dtype": dtype,
        "device_kind": device_kind,
        "body": _UNSEALED,
        "seal": _UNSEALED,
    }
    return {KEY: json.dumps(document).encode()}


def seal(content: pa.Buffer) -> pa.Buffer:
    """Put the digests into a shard's footer, which `make_footer` left room for."""
    sealed = bytearray(content)
    start = len(sealed) - _footer_size(sealed[-8:])
    match = _find_digests(bytes(sealed[start:]))
    assert match is not None, "a footer of make_footer"
    for group, digested in ((1, memoryview(sealed)[:start]), (2, memoryview(sealed)[start:])):
        digest = hashlib.sha256(digested).hexdigest().encode()
        sealed[start + match.start(group) : start + match.end(group)] = digest
    return pa.py_buffer(sealed)


def _has_its_body(content: bytes) -> bool:
    """Whether the bytes in front of a shard's footer are those that the footer has a digest of."""
    start = len(content) - _footer_size(content[-8:])
    match = _find_digests(content[start:])
    body = memoryview(content)[:start]
    return match is not None and hashlib.sha256(body).hexdigest().encode() == match[1]


def read_footer(path: Place) -> tuple[Shard, str]:
    """Return the shard that a file's footer describes, and its plan id.

    Raises FooterError where the file is torn or damaged, JobMismatchError where it is a whole Parquet
    file that is not ours or no regular file at all, OSError where it cannot be opened.
    """
    footer, num_bytes = _read_bytes(path)
    match = _find_digests(footer)
    if match is not None and not _is_intact(footer, match):
        raise FooterError(path, "its footer is not what was written")
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError) as error:
        raise FooterError(path, one_line(error)) from None
    keys = metadata.metadata or {}
    if match is None and KEY in keys:
        raise FooterError(path, "its footer is not what was written")
    try:
        document = json.loads(keys[KEY])
        _check_types(document)
        shard = Shard(
            id=ChunkId(document["segment"], document["chunk"]),
            path=str(path),
            num_rows=document["num_rows"],
            num_errors=document["num_errors"],
            num_tokens=document["num_tokens"],
            num_truncated=document["num_truncated"],
            rescued=document["rescued"],
            num_bytes=num_bytes,
            start=Position(*document["start"]),
            next=Position(*document["next"]),
            ends_segment=document["ends_segment"],
            digest=document["digest"],
            revision=document["revision"],
        )
        plan_id = str(document["plan_id"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise JobMismatchError(
            "not written by this version of batchinfer",
            file=str(path),
            advice="move it out of the run folder",
        ) from None
    if metadata.num_rows != shard.num_rows:
        raise FooterError(path, f"holds {metadata.num_rows} rows, says {shard.num_rows}")
    return shard, plan_id


def read_footers(folder: Place, names: Sequence[str]) -> Iterator[tuple[Shard, str] | Exception]:
    """What `read_footer` returns, or raises, for each of these files, in their order.

    A store is asked for several at a time: each answer takes its time, and it has many.
    """

    def read(name: str) -> tuple[Shard, str] | Exception:
        try:
            return read_footer(folder / name)
        except (FooterError, BatchInferError, OSError) as error:
            return error

    if isinstance(folder, Path):
        yield from map(read, names)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="footers") as threads:
        for first in range(0, len(names), 64 * _AT_ONCE):
            yield from threads.map(read, names[first : first + 64 * _AT_ONCE])


_WHOLE_NUMBERS = (
    "revision", "segment", "chunk", "first_row", "num_rows", "num_errors", "num_tokens",
    "num_truncated",
)  # fmt: skip


def _check_types(document: dict[str, Any]) -> None:
    """A seal has no key: who can write into the folder can seal anything. Raises ValueError."""
    numbers = [document[name] for name in _WHOLE_NUMBERS]
    numbers += [*document["start"], *document["next"], *document["rescued"].values()]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a number is none")
    if not len(document["start"]) == len(document["next"]) == len(Position._fields):
        raise ValueError("a position has other parts")
    if type(document["ends_segment"]) is not bool or not isinstance(document["digest"], str):
        raise ValueError("a field has another type")


def _read_bytes(path: Place) -> tuple[bytes, int]:
    """A file's footer, with its length and the magic number behind it; and the size of the file."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        footer_size = _footer_size(tail[-8:])
        if tail[-4:] != MAGIC or footer_size + len(MAGIC) > size:
            raise FooterError(path, "no whole Parquet file: torn or damaged")
        if footer_size > len(tail):
            file.seek(size - footer_size)
            tail = file.read()
    return tail[-footer_size:], size


def _footer_size(end: bytes | bytearray | memoryview) -> int:
    """Bytes of the footer by the file's last eight, which are counted."""
    return int.from_bytes(end[:4], "little") + 8


def _find_digests(footer: bytes) -> re.Match[bytes] | None:
    """The last match: what stands before it may be a value of the data, in its statistics."""
    matches = list(_DIGESTS.finditer(footer))
    return matches[-1] if matches else None


def _is_intact(footer: bytes, match: re.Match[bytes]) -> bool:
    blank = footer[: match.start(2)] + _UNSEALED.encode() + footer[match.end(2) :]
    return hashlib.sha256(blank).hexdigest().encode() == match[2]


def read_pages(path: Place) -> pa.Table:
    """All rows of a shard whose footer `read_footer` has read, every byte compared with its checksums.

    Raises FooterError where the file is not what was written, OSError where it cannot be read.
    """
    with open_regular(path) as stored:
        content = stored.read()
    if not _has_its_body(content):
        raise FooterError(path, "its content is not what was written")
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        return file.read()
    except UNREADABLE as error:
        raise FooterError(path, one_line(error)) from None


def read_columns(path: Place, names: Sequence[str]) -> pa.Table:
    """Read columns of a shard, comparing every page with its checksum. Raises StorageError."""
    try:
        with open_regular(path) as file:
            return pq.read_table(
                file, columns=list(names), page_checksum_verification=True, partitioning=None
            )
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"damaged ({one_line(error)})",
            file=str(path),
            advice="`batchinfer resume --verify` makes it again",
        ) from None
