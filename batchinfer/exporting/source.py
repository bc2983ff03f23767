"""The rows of a run folder, in input order, as its shards hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.core import ERROR, ChunkId, Position, Shard, shard_name
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.plan import Plan
from batchinfer.readers.base import shown
from batchinfer.storage import Place, place_of_output
from batchinfer.verification.rows import as_stored
from batchinfer.writers.committed import committed_shards
from batchinfer.writers.footer import KEY, read_columns
from batchinfer.writers.run_folder import SUCCESS, require_plan

#: What becomes of rows that have an error.
Errors = Literal["keep", "drop", "only"]
ERRORS: tuple[Errors, ...] = ("keep", "drop", "only")


@dataclass(frozen=True, slots=True)
class Source:
    """The committed rows of a run, or some of them.

    `schema`: the columns that are wanted, in the order in which they are, with their types.
    """

    plan: Plan
    data: Place
    shards: tuple[Shard, ...]
    schema: pa.Schema
    errors: Errors

    @property
    def num_rows(self) -> int:
        """Rows in all, before any is left out."""
        return sum(shard.num_rows for shard in self.shards)

    def tables(self) -> Generator[tuple[pa.Table, int]]:
        """Yield each shard's rows that are wanted, and how many it holds.

        Raises StorageError where a shard is damaged, and JobMismatchError where it is not the job's any
        more.
        """
        names = [*self.schema.names]
        if self.errors != "keep" and ERROR not in names:
            names.append(ERROR)
        for shard in self.shards:
            table = read_columns(self.data / shard_name(shard.id), names)
            self._require_same(table, shard)
            if self.errors != "keep":
                failed: Any = pc.is_valid(table.column(ERROR))
                table = table.filter(failed if self.errors == "only" else pc.invert(failed))
            yield table.select(self.schema.names).cast(self.schema), shard.num_rows

    def _require_same(self, table: pa.Table, shard: Shard) -> None:
        """See that nobody put the shard of another job, or other rows, into its place meanwhile."""
        document = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
        plan_id = self.plan.id_of(shard.id.segment)
        if (document.get("plan_id"), table.num_rows) != (plan_id, shard.num_rows):
            raise JobMismatchError(
                "was replaced while it was exported",
                file=shard.path,
                advice="start the export again",
            )


def open_source(
    output: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    errors: Errors = "keep",
    partial: bool = False,
) -> Source:
    """What a run folder holds, by the footers of its shards; nothing is locked.

    Raises UsageError where it is no run folder or has no such columns, Interrupted where it is unfinished
    and `partial` was not said, StorageError where a shard is damaged or missing.
    """
    if errors not in ERRORS:
        raise UsageError(f"--errors {errors}: choose one of {', '.join(ERRORS)}")
    plan = require_plan(output)
    data = place_of_output(output) / "data"
    schema = _chosen(as_stored(plan.output_schema), columns)
    # Asked first: shards that are committed between this and the listing only add to it.
    is_finished = (data / SUCCESS).exists()
    committed = committed_shards(place_of_output(output), plan)
    shards = tuple(committed[id] for id in sorted(committed))
    gap = _gap(plan, committed)
    if is_finished and gap:
        raise StorageError(
            f"{gap} is missing",
            file=str(data),
            advice=f"`batchinfer resume {output}` makes it again",
        )
    if not is_finished and not partial:
        raise Interrupted(
            f"{output}: unfinished, with {len(shards):,} shards so far; `batchinfer resume {output}` goes "
            "on, and --partial exports what is there"
        )
    return Source(plan, data, shards, schema, errors)


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            there = ", ".join(map(shown, schema.names))
            raise UsageError(f"--columns {shown(name)}: no such column; there are {there}")
    if len(set(columns)) < len(columns) or not columns:
        raise UsageError("--columns: name each column once, and at least one")
    return pa.schema([schema.field(name) for name in columns])


def _gap(plan: Plan, shards: Mapping[ChunkId, Shard]) -> str:
    """The first shard that is missing in the segments' rows of shards; empty where none is.

    Raises StorageError where one does not begin where the one in front of it ends, or is none of a segment.
    """
    names, gap = set(shards), ""
    for segment in plan.segments:
        end = Position()
        for chunk in count():
            id = ChunkId(segment.index, chunk)
            if id not in shards:
                gap = gap or shard_name(id)
                names = {one for one in names if one.segment != segment.index} if gap else names
                break
            names.discard(id)
            if shards[id].start != end:
                raise StorageError(
                    "does not begin where the one in front of it ends",
                    file=shards[id].path,
                    advice="`batchinfer verify` says more",
                )
            end = shards[id].next
            if shards[id].ends_segment:
                break
    if names:
        raise StorageError(
            "stands behind the last row of its input",
            file=shards[min(names)].path,
            advice="`batchinfer verify` says more",
        )
    return gap
