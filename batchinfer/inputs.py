"""Whether the inputs are still what a job was planned for, and its shards were made from.

Size and time say so without reading; where they do not, the rows that shards were made from are read
again. A run raises what it finds (`check_inputs`), `verify` reports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import closing

from batchinfer.core import Chunk, ChunkId, InputFile, Segment, Shard, Span, shard_name
from batchinfer.errors import JobMismatchError
from batchinfer.plan import Plan
from batchinfer.readers import read_chunks
from batchinfer.readers.base import shown
from batchinfer.readers.growing import digest_of_part
from batchinfer.storage import status_of


def check_inputs(plan: Plan, shards: Mapping[ChunkId, Shard], gone: Collection[str] = ()) -> Plan:
    """Compare the inputs with what they were when the job was planned.

    `gone`: further ones that need not be there, by source.

    A file that was only touched (same size, another time) is read again where shards were committed
    from it, and the plan that is returned knows its new time; so is one that has grown, and may. Raises
    JobMismatchError for a file that was edited, replaced or removed, or appended to and should not.
    """
    segments = []
    gone = plan.gone.union(gone)
    for segment in plan.segments:
        now, changes = as_it_is_now(segment, gone)
        if changes:
            raise changes[0]
        segments.append(now)
    committed: dict[int, list[ChunkId]] = {}
    for chunk in sorted(shards):
        committed.setdefault(chunk.segment, []).append(chunk)
    for before, after in zip(plan.segments, segments, strict=True):
        if before != after and (made := committed.get(after.index)):
            if any(map(_is_gone, after.files)):
                _check_by_file(before, after)
                continue
            last = made[-1].chunk
            with closing(SegmentAgain(after, plan, last, only_digests=True)) as again:
                for chunk in made:
                    again.chunk_of(shards[chunk])
    return dataclasses.replace(plan, segments=tuple(segments))


def _is_gone(file: InputFile) -> bool:
    try:
        status_of(file.path)
    except FileNotFoundError:
        return True
    return False


def _check_by_file(before: Segment, after: Segment) -> None:
    """Compare the files of a segment with what they were, one by one, as some are gone.

    Its shards cannot say: they were made of rows of several files. Raises JobMismatchError.
    """
    for then, now in zip(before.files, after.files, strict=True):
        if then == now:
            continue
        if not now.digest:
            what = "changed, and was answered together with files that are gone"
            raise _changed(now, what, "put those back, or ")
        if digest_of_part(now) != now.digest:
            raise _changed(now, "changed since rows of it were answered")


def are_touched(plan: Plan) -> bool:
    """Whether a file has another time or version than when the job was planned."""
    return any(as_it_is_now(segment, plan.gone)[0] != segment for segment in plan.segments)


def as_it_is_now(
    segment: Segment, gone: Collection[str] = ()
) -> tuple[Segment, list[JobMismatchError]]:
    """A segment with the present times of its files; an error for each that is gone or has another size.

    A file that was merely touched is read as well, under its new time; of one that has grown, and may, what
    was planned of it. `gone`: those that need not be there, by source.
    """
    files: list[InputFile] = []
    changes: list[JobMismatchError] = []
    for file in segment.files:
        try:
            status = status_of(file.path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and file.source in gone:
                files.append(file)
                continue
            what = f"was there when the job was planned and cannot be read now ({error.strerror})"
            changes.append(_changed(file, what, "put it back, or "))
            continue
        if not status.is_regular:  # whoever reads a FIFO waits for its writer
            changes.append(_changed(file, "is no regular file any more"))
        excess = max(file.excess, status.size - file.size) if file.grows else file.excess
        if status.is_regular and status.size != file.size + excess:
            sizes = f"{file.size + file.excess:,} bytes then, {status.size:,} now"
            changes.append(_changed(file, f"changed since the job was planned ({sizes})"))
        now = dataclasses.replace(file, mtime_ns=status.mtime_ns, version=status.version)
        files.append(dataclasses.replace(now, excess=excess))
    return dataclasses.replace(segment, files=tuple(files)), changes


class SegmentAgain:
    """A segment, read again up to the chunk `last`, beside the shards that were made from it.

    `num_rows` counts the rows read so far; `ended`: they are all that the segment has. `only_digests`: as
    of `read_chunks`; then no rows are counted.
    """

    def __init__(
        self, segment: Segment, plan: Plan, last: int, *, only_digests: bool = False
    ) -> None:
        self.num_rows = 0
        self.ended = False
        self._segment = segment
        span = Span(segment, first=0, start=segment.start, stop=last + 1)
        self._chunks = read_chunks(
            span, plan.chunk_rows, plan.read_options, only_digests=only_digests
        )

    def chunk_of(self, shard: Shard) -> Chunk:
        """The chunk that a shard was made from; shards are asked for in order, some may be left out.

        Raises JobMismatchError where it is not what the shard was made from, and what `read_chunks`
        raises.
        """
        for chunk in self._chunks:
            self.num_rows += chunk.num_rows
            self.ended = chunk.ends_segment
            if chunk.id == shard.id:
                require_same(chunk, shard, self._segment)
                return chunk
        raise _changed(
            self._segment.files[-1],
            "changed since rows of it were answered: it has fewer rows than were answered",
        )

    def close(self) -> None:
        """Read no further."""
        self._chunks.close()


def require_same(chunk: Chunk, shard: Shard, segment: Segment) -> None:
    """See that a chunk, read again, is what its shard was made from. Raises JobMismatchError."""
    there = (chunk.digest, chunk.start, chunk.next, chunk.ends_segment)
    if there != (shard.digest, shard.start, shard.next, shard.ends_segment):
        raise _changed(
            segment.files[chunk.start.file],
            f"changed since rows of it were answered: {shard_name(shard.id)} was made from other rows "
            f"than stand there from row {chunk.start.row:,} on",
        )


def _changed(file: InputFile, what: str, otherwise: str = "") -> JobMismatchError:
    advice = f"{otherwise}start anew with another --output"
    return JobMismatchError(what, file=shown(file.path), advice=advice)
