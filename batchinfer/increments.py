"""What incremental runs add to a job: a file each beside plan.json, created if absent and never changed.

    plan.json  ◀─ plan-000001.json  ◀─ plan-000002.json …     each names the job as it was in front of it

So the frozen plan stays as it was, and of two runs that add something at once one wins. The footer of a
shard has the id of the job as it was when its segment was added: shards that stand stay valid.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from batchinfer.core import Increment, InputFile, Segment, ordinal
from batchinfer.errors import StorageError
from batchinfer.plan import (
    FORMAT,
    Plan,
    checksum_of,
    read_document,
    segments_from_json,
    strangers_refused,
    whole_number,
)


def increment_name(number: int) -> str:
    """The file of a job's increment, counted from 1; names sort in their order."""
    return f"plan-{ordinal(number)}.json"


def is_increment(name: str) -> bool:
    """Whether a file in the state folder is an increment."""
    number = name.removeprefix("plan-").removesuffix(".json").lstrip("abcdefghijkl")
    return number.isascii() and number.isdecimal() and increment_name(int(number)) == name


def extended(plan: Plan, increment: Increment, segments: Sequence[Segment]) -> Plan:
    """The plan with these segments behind its own.

    A file that they go on with ends, for those in front, where they begin. What it was like when the last
    of them was planned (size, time, path) is what all of them have to find.
    """
    segments = (*plan.segments, *segments)
    last = {file.source: file for segment in segments for file in segment.files}
    return dataclasses.replace(
        plan,
        segments=tuple(
            dataclasses.replace(
                s, files=tuple(_as_last(file, last[file.source]) for file in s.files)
            )
            for s in segments
        ),
        num_rows_estimate=plan.num_rows_estimate + increment.num_rows,
        increments=(*plan.increments, increment),
    )


def _as_last(file: InputFile, last: InputFile) -> InputFile:
    return dataclasses.replace(
        file,
        path=last.path,
        mtime_ns=last.mtime_ns,
        version=last.version,
        grows=last.grows,
        excess=last.size + last.excess - file.size,
    )


def to_json(plan: Plan) -> bytes:
    """The file of a plan's last increment."""
    increment = plan.increments[-1]
    document = {
        "format": FORMAT,
        "plan_id": plan.ids[-1],
        "after": plan.ids[-2],
        "segments": [dataclasses.asdict(one) for one in plan.segments[increment.first :]],
        "num_rows_estimate": increment.num_rows,
        "gone": list(increment.gone),
    }
    document["checksum"] = checksum_of(document)
    return json.dumps(document, indent=1).encode()


def with_json(plan: Plan, content: bytes, path: str) -> Plan:
    """The plan with the increment that a file holds.

    Raises StorageError where the file is damaged or follows upon another plan, and JobMismatchError
    where it holds what batchinfer never writes.
    """
    document = read_document(content, path)
    if document.get("after") != plan.ids[-1]:
        raise StorageError(
            "does not go on with the plan in front of it",
            file=path,
            advice="restore the folder, or start again with `batchinfer run` in another one",
        )
    with strangers_refused(path):
        gone = tuple(document["gone"])
        if not all(type(source) is str for source in gone):
            raise ValueError("an input that is gone has no name")
        increment = Increment(len(plan.segments), whole_number(document["num_rows_estimate"]), gone)
        segments = segments_from_json(document["segments"], increment.first)
        grown = extended(plan, increment, segments)
        if grown.ids[-1] != document["plan_id"]:
            raise ValueError("its segments are not those of its id")
    return grown
