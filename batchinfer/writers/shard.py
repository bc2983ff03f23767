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
    Shard,
    shard_name,
)
from batchinfer.errors import JobMismatchError
from batchinfer.plan import Plan
from batchinfer.tasks.base import Task
from batchinfer.writers.footer import make_footer, read_footer
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

    def commit(self, answered: AnsweredChunk) -> Shard:
        """Decode a chunk's answers, write its shard and publish it durably."""
        chunk = answered.chunk
        table = assemble(
            answered, self.task, self.plan.output_schema, self.plan.config.output_prefix
        )
        name = shard_name(chunk.id)
        shard = Shard(
            id=chunk.id,
            path=str(self.folder.data / name),
            num_rows=chunk.num_rows,
            num_errors=len(answered.errors),
            num_tokens=int(answered.requests.cost.sum()),
            num_truncated=int(answered.requests.truncated.sum()),
            rescued=count_rescued(table.column(RESCUED)),
            num_bytes=0,
            next=chunk.next,
            ends_segment=chunk.ends_segment,
            digest=chunk.digest,
        )
        footer = make_footer(
            shard,
            plan_id=self.plan.id,
            first_row=chunk.id.chunk * self.plan.chunk_rows,
            start=chunk.start,
            budget=self.budget,
            dtype=self.dtype,
            device_kind=self.device_kind,
        )
        content = to_parquet(table, footer, self.plan)
        if not self.folder.commit(name, memoryview(content)):
            _, plan_id = read_footer(self.folder.data / name)
            if plan_id != self.plan.id:
                raise JobMismatchError(f"{shard.path}: another job has committed this shard")
        return dataclasses.replace(shard, num_bytes=len(content))


def count_rescued(column: pa.ChunkedArray[Any]) -> dict[str, int]:
    """How many values of each column stand in `_rescued_data`."""
    if column.null_count == len(column):
        return {}
    cells: list[Any] = column.drop_null().to_pylist()
    names = (name for cell in cells for name in json.loads(cell))
    return dict(sorted(Counter(names).items()))


def to_parquet(table: pa.Table, footer: Mapping[bytes, bytes], plan: Plan) -> pa.Buffer:
    """The bytes of a shard; the same for the same table, footer and library version.

    One row group: a chunk is small. Dictionaries where values may repeat; not for texts and floats,
    where building one only costs time (a quarter of the writer's, on short reviews). A checksum a page,
    so that `verify` sees a flipped bit.
    """
    texts = plan.read_options.text_columns
    repeating = [
        field.name
        for field in table.schema
        if not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))
        and field.name not in (ROW, *texts)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(dict(footer)),
        sink,
        row_group_size=max(1, table.num_rows),
        version="2.6",
        compression="zstd",
        compression_level=1,
        use_dictionary=repeating,  # type: ignore[arg-type]  # a list of names is fine
        write_page_checksum=True,
    )
    return sink.getvalue()
