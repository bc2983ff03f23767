"""A chunk's answers as a Parquet file, committed under the chunk's name."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.core import (
    ERROR,
    NUM_TOKENS,
    RESCUED,
    ROW,
    SOURCE,
    TRUNCATED,
    AnsweredChunk,
    BatchBudget,
    Chunk,
    Shard,
    shard_name,
)
from batchinfer.errors import JobMismatchError
from batchinfer.plan import Plan
from batchinfer.stages import Stopwatch
from batchinfer.tasks.base import Task
from batchinfer.writers.footer import make_footer, read_columns, read_footer, seal
from batchinfer.writers.run_folder import RunFolder


def output_schema(
    kept: Iterable[pa.Field[Any]], task_columns: Iterable[pa.Field[Any]]
) -> pa.Schema:
    """The schema of every shard of a job."""
    fields: list[pa.Field[Any]] = [
        pa.field(SOURCE, pa.string()),
        pa.field(ROW, pa.int64()),
        *kept,
        *task_columns,
        pa.field(NUM_TOKENS, pa.int32()),
        pa.field(TRUNCATED, pa.bool_()),
        pa.field(ERROR, pa.string()),
        pa.field(RESCUED, pa.string()),
    ]
    return pa.schema(fields)


def assemble(answered: AnsweredChunk, task: Task, schema: pa.Schema, prefix: str = "") -> pa.Table:
    """Set a chunk's answers beside its rows, in input order."""
    answered = task.merged(answered)
    requests, table = answered.requests, answered.chunk.table
    num_tokens = np.zeros(table.num_rows, dtype=np.int32)
    np.add.at(num_tokens, requests.row, requests.cost)
    truncated = np.zeros(table.num_rows, dtype=np.bool_)
    truncated[requests.row[requests.truncated]] = True
    errors = np.full(table.num_rows, None, dtype=object)
    for row, why in answered.errors.items():
        errors[row] = why
    made: dict[str, Any] = {
        NUM_TOKENS: pa.array(num_tokens),
        TRUNCATED: pa.array(truncated),
        ERROR: pa.array(errors, pa.string()),
    }
    for field, array in zip(task.columns, task.decode(answered), strict=True):
        made[prefix + field.name] = array
    columns: list[Any] = [made[f.name] if f.name in made else table.column(f.name) for f in schema]
    return pa.table(columns, schema=schema).combine_chunks()


@dataclass(frozen=True)
class ShardWriter:
    """Writes and commits shards; what it writes depends on the job and the answers alone."""

    folder: RunFolder
    plan: Plan
    task: Task
    budget: BatchBudget
    dtype: str
    device_kind: str
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch, compare=False)

    def commit(self, answered: AnsweredChunk) -> Shard:
        """Decode a chunk's answers, write its shard and publish it durably.

        Where only some rows were answered again, the shard that stands is replaced by one with their
        new answers; it stays as it is where all of them failed as before.
        """
        with self.watch.measure("decode"):
            table = assemble(
                answered, self.task, self.plan.output_schema, self.plan.config.output_prefix
            )
        with self.watch.measure("write"):
            return self._write(answered, table)

    def _write(self, answered: AnsweredChunk, table: pa.Table) -> Shard:
        name = shard_name(answered.chunk.id)
        if answered.rows is not None:
            return self._renew(name, answered.chunk, table, answered.rows)
        shard, content = self.serialize(name, answered.chunk, table, revision=0)
        if not self.folder.commit(name, memoryview(content)):
            shard, plan_id = read_footer(self.folder.data / name)  # the other worker's stands
            if plan_id != self.plan.id_of(answered.chunk.id.segment):
                raise JobMismatchError(
                    f"{shard.path}: another job has committed this shard; name another --output"
                )
        return shard

    def _renew(self, name: str, chunk: Chunk, fresh: pa.Table, rows: tuple[int, ...]) -> Shard:
        """Put the new answers of `rows` among the old ones of the others."""
        path = self.folder.data / name
        old, _ = read_footer(path)
        if (chunk.digest, chunk.num_rows) != (old.digest, old.num_rows):
            raise JobMismatchError(
                f"{path}: its rows are no longer those of the input; put the old input back"
            )
        made = [self.plan.config.output_prefix + field.name for field in self.task.columns]
        made += [NUM_TOKENS, TRUNCATED, ERROR]
        standing = read_columns(path, made)
        # Row i of the new shard is row i of the old one, or of the fresh rows that follow it.
        source = np.arange(chunk.num_rows)
        source[list(rows)] += chunk.num_rows
        merged = {
            column: pa.chunked_array(
                [*standing[column].cast(fresh[column].type).chunks, *fresh[column].chunks]
            ).take(source)
            for column in made
        }
        if merged[ERROR].equals(standing[ERROR]):
            return old
        columns: list[Any] = [merged.get(n, fresh.column(n)) for n in fresh.column_names]
        table = pa.table(columns, schema=fresh.schema).combine_chunks()
        shard, content = self.serialize(name, chunk, table, revision=old.revision + 1)
        self.folder.replace(name, memoryview(content))
        return shard

    def serialize(
        self, name: str, chunk: Chunk, table: pa.Table, *, revision: int
    ) -> tuple[Shard, pa.Buffer]:
        """A shard's bytes, and what its footer says of it; nothing is written."""
        shard = Shard(
            id=chunk.id,
            path=str(self.folder.data / name),
            num_rows=chunk.num_rows,
            num_errors=table.num_rows - table.column(ERROR).null_count,
            num_tokens=int(pc.sum(table.column(NUM_TOKENS), min_count=0).as_py()),
            num_truncated=int(pc.sum(table.column(TRUNCATED), min_count=0).as_py()),
            rescued=count_rescued(table.column(RESCUED)),
            num_bytes=0,
            start=chunk.start,
            next=chunk.next,
            ends_segment=chunk.ends_segment,
            digest=chunk.digest,
            revision=revision,
        )
        footer = make_footer(
            shard,
            plan_id=self.plan.id_of(chunk.id.segment),
            first_row=chunk.id.chunk * self.plan.chunk_rows,
            budget=self.budget,
            dtype=self.dtype,
            device_kind=self.device_kind,
        )
        content = to_parquet(table, footer, self.plan)
        return dataclasses.replace(shard, num_bytes=content.size), content


def count_rescued(column: pa.ChunkedArray[Any]) -> dict[str, int]:
    """How many values of each column stand in `_rescued_data`."""
    if column.null_count == len(column):
        return {}
    cells: list[Any] = column.drop_null().to_pylist()
    names = (name for cell in cells for name in json.loads(cell))
    return dict(sorted(Counter(names).items()))


def to_parquet(table: pa.Table, footer: Mapping[bytes, bytes], plan: Plan) -> pa.Buffer:
    """The bytes of a shard; the same for the same table, footer and library version.

    One row group: a chunk is small. A checksum a page, so that `verify` sees a flipped bit.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(dict(footer)),
        sink,
        row_group_size=max(1, table.num_rows),
        version="2.6",
        compression="zstd",
        compression_level=1,
        use_dictionary=repeating_columns(table.schema, plan),  # type: ignore[arg-type]  # names are fine
        write_page_checksum=True,
    )
    return seal(sink.getvalue())


def repeating_columns(schema: pa.Schema, plan: Plan) -> list[str]:
    """The columns that get a dictionary, as their values may repeat.

    Not texts and floats, where building one only costs time (a quarter of the writer's, on short reviews).
    """
    texts = plan.read_options.answering
    return [
        field.name
        for field in schema
        if not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))
        and field.name not in (ROW, *texts)
    ]
