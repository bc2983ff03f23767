"""What is new in the inputs of a job that was answered before: files, and what was appended to files.

    the plan's inputs ─check_inputs─▶ what was answered is still what it was, by the digests in the footers
    the inputs named  ─list_inputs──▶ new files and new bytes ─▶ segments behind those of the plan

Nothing is written here. What is unclear is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing

from batchinfer.core import (
    BOOKKEEPING,
    ChunkId,
    Increment,
    InputFile,
    Position,
    Segment,
    Shard,
    pending_spans,
)
from batchinfer.errors import JobMismatchError
from batchinfer.increments import extended
from batchinfer.inputs import check_inputs
from batchinfer.plan import Plan
from batchinfer.readers import group_segments, inspect_inputs, list_inputs, open_reader
from batchinfer.readers.base import shown
from batchinfer.readers.growing import as_growing, can_grow, ends_line, ends_within_row
from batchinfer.readers.listing import base_of, source_below
from batchinfer.storage import status_of

log = logging.getLogger("batchinfer")

_ANEW = "or start anew with another --output"
#: More rows than a file has.
_ALL = 1 << 62


def with_what_is_new(plan: Plan, shards: Mapping[ChunkId, Shard]) -> Plan:
    """The plan, with an increment where its inputs have something new; `shards`: those that stand.

    Raises InputError where none of the inputs named is there, JobMismatchError where what was planned of
    them is not what it was, and what `read_chunks` raises.
    """
    listed = _list(plan)
    gone = _gone(plan, listed, shards)
    known = {file.source: file for segment in plan.segments for file in segment.files}
    plan = check_inputs(_as_listed(plan, listed), shards, gone)
    last = {
        file.source: (segment, index)
        for segment in plan.segments
        for index, file in enumerate(segment.files)
    }
    new = []
    for source, file in listed.items():
        if source in known:
            new += _appended(plan, *last[source], shards, is_whole=known[source].grows)
        elif (whole := as_growing(file, plan.read_options)).size or not whole.excess:
            new.append(whole)
    if not (new or gone):
        return plan
    if gone:
        others = f" and {len(gone) - 1:,} more inputs" if gone[1:] else ""
        log.warning(f"gone: {shown(gone[0])}{others}; what was answered of them stays")
    first = len(plan.segments)
    segments = [
        dataclasses.replace(segment, index=first + number)
        for number, segment in enumerate(group_segments(new))
    ]
    return extended(plan, Increment(first, _num_rows(plan, new), gone), segments)


def _list(plan: Plan) -> dict[str, InputFile]:
    """The files that are named now, by source.

    Sources stay below the folder that was the common one when the job was begun, also where new files have
    another in common; only data that was moved as a whole has another folder.
    """
    config = plan.config
    files = list_inputs(config.inputs, config.format, exclude=config.output)
    base = base_of(plan.segments[0].files[0])
    planned = [file for segment in plan.segments for file in segment.files]
    paths = {file.path for file in planned}
    sources = [source_below(base, file.path) for file in files]
    is_there = any(file.path in paths for file in files) or any(
        not source.startswith("../") for source in sources
    )
    if is_there:
        files = [
            dataclasses.replace(file, source=source)
            for file, source in zip(files, sources, strict=True)
        ]
    elif not {file.source for file in planned} & {file.source for file in files}:
        raise JobMismatchError(
            f"{shown(files[0].path)}: neither an input of this job nor below {shown(base)}, where those "
            f"lie; name them as they were named, {_ANEW}"
        )
    return {file.source: file for file in files}


def _gone(
    plan: Plan, listed: Mapping[str, InputFile], shards: Mapping[ChunkId, Shard]
) -> tuple[str, ...]:
    """Inputs that are not there any more, since this run looks, and whose rows all have shards.

    Raises JobMismatchError for one that has grown where it may not.
    """
    unfinished = {span.segment.index for span in pending_spans(plan.segments, shards)}
    last = {file.source: file for segment in plan.segments for file in segment.files}
    needed = {f.source for s in plan.segments if s.index in unfinished for f in s.files}
    gone = []
    for source, file in last.items():
        named = listed.get(source)
        try:
            size = status_of(file.path if named is None else named.path).size
        except FileNotFoundError:
            if source not in needed | plan.gone:
                gone.append(source)
            continue
        except OSError:
            continue  # which check_inputs says
        then = file.size + file.excess
        if size <= then:
            continue
        sizes = f"grew from {then:,} to {size:,} bytes"
        if not can_grow(file, plan.read_options):
            raise JobMismatchError(
                f"{sizes}; only plain JSONL, CSV and TSV files in UTF-8, on a disk, can be appended to",
                file=shown(file.path),
                advice=f"put the old one back and new rows into a file of their own, {_ANEW}",
            )
        if named is None:
            raise JobMismatchError(
                f"an input of this job that {sizes}, and is not named now",
                file=shown(file.path),
                advice="name it too",
            )
    return tuple(gone)


def _as_listed(plan: Plan, listed: Mapping[str, InputFile]) -> Plan:
    """The plan with its inputs where they lie now, and allowed to have grown."""
    options = plan.read_options

    def now(file: InputFile) -> InputFile:
        named = listed.get(file.source)
        path = file.path if named is None else named.path
        return dataclasses.replace(file, path=path, grows=can_grow(file, options))

    segments = [
        dataclasses.replace(segment, files=tuple(map(now, segment.files)))
        for segment in plan.segments
    ]
    return dataclasses.replace(plan, segments=tuple(segments))


def _appended(
    plan: Plan, segment: Segment, index: int, shards: Mapping[ChunkId, Shard], *, is_whole: bool
) -> list[InputFile]:
    """What was appended behind the last part of an input: one or none. `is_whole`: as `ends_within_row`."""
    file = segment.files[index]
    if not file.excess:
        return []
    if ends_within_row(file, plan.read_options, is_whole=is_whole):
        raise JobMismatchError(
            "its last row was answered before it was whole, and goes on now",
            file=shown(file.path),
            advice=f"put the old file back, {_ANEW}, and with --incremental from the first run on",
        )
    rest = dataclasses.replace(
        file,
        start=_end(plan, segment, index, shards),
        size=file.size + file.excess,
        excess=0,
    )
    rest = as_growing(rest, plan.read_options)
    return [rest] if rest.num_bytes else []


def _end(plan: Plan, segment: Segment, index: int, shards: Mapping[ChunkId, Shard]) -> Position:
    """Where a part of a file ends: as a shard says, or as it is counted."""
    file = segment.files[index]
    chunks = [id for id in shards if id.segment == segment.index]
    last = shards[max(chunks)] if chunks else None
    if last is not None and last.ends_segment and last.next.file == index:
        position = last.next
    else:
        with closing(open_reader(file, plan.read_options, file.start)) as reader:
            reader.skip(_ALL)
            reader.at_end()
            position = reader.position
    # What follows upon a line without an end stands in the same line.
    line = position.line - (not ends_line(file))
    return Position(0, file.size, line, position.row)


def _num_rows(plan: Plan, new: Sequence[InputFile]) -> int:
    """About how many rows new files have; what they have and the plan has not is told."""
    if not new:
        return 0
    summary = inspect_inputs(new, plan.read_options)
    if plan.config.keep is None:
        known = {*plan.input_schema.names, *BOOKKEEPING}
        if columns := [name for name in summary.schema.names if name not in known]:
            log.warning(
                f"new columns: {', '.join(map(shown, columns))}; the columns of a job stay as they were, "
                "so these go to _rescued_data"
            )
    share = sum(file.num_bytes for file in new) / max(1, sum(file.size for file in new))
    return round(summary.num_rows_estimate * share)
