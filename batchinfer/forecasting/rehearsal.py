"""Sampled rows on the way of a run's rows: read, tokenized, batched, answered, decoded, made a shard."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchinfer.core import (
    AnsweredChunk,
    Batch,
    BatchBudget,
    Chunk,
    ChunkId,
    Int32Array,
    Position,
    Requests,
    Span,
    shard_name,
)
from batchinfer.engines import create_encoder, prepare_to_decode
from batchinfer.engines.base import Engine
from batchinfer.gathering import answer
from batchinfer.loader import Loader
from batchinfer.plan import Plan
from batchinfer.readers import read_chunks
from batchinfer.reporting.progress import Silent
from batchinfer.stop import StopSignal
from batchinfer.tasks.base import Task
from batchinfer.tuning.sample import sample_requests
from batchinfer.writers.durable import publish
from batchinfer.writers.run_folder import RunFolder
from batchinfer.writers.shard import ShardWriter, assemble

#: Tokens of the sample: enough for several of the largest batches, and encoded in a second.
SAMPLE_TOKENS, SAMPLE_TOKENS_OF_GPU = 250_000, 2_000_000
#: Rows of a table cost one token each; more of them say nothing new.
_MAX_ROWS, _LEAST_ROWS = 65536, 4096
#: Rows that go all the way: at first (of answers that are written, fewer), by how many times more, and at
#: most.
_FIRST_ROWS, _FIRST_WRITTEN, _GROWTH, _MOST_ROWS = 16, 4, 4, 4096
#: So long they should take, where it is known; what took less is done again with more rows.
_LONG_ENOUGH = 0.75
#: Writing is timed so often; the quickest counts.
_TIMES = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one row: by the wall, and of a core."""

    wall: float
    core: float


@dataclass(frozen=True)
class Material:
    """Rows from several places of the input, as a run has them, and what it took to get there.

    `start`: seconds until there is an encoder that has encoded something. `load`: of a row, to read and
    to encode it.
    """

    chunk: Chunk
    requests: Requests
    batches: Sequence[Batch]
    loader: Loader
    start: float
    load: Cost

    @property
    def asked_cost(self) -> Int32Array:
        """The tokens of each request that the model is asked, int32[m]: one of those that are the same."""
        return self.requests.cost[self.requests.asked]

    @property
    def tokens_a_row(self) -> float:
        """Tokens that go through the model, without padding; what windows share counts once."""
        asked = self.requests.tokens[self.requests.asked]
        return float(asked.sum()) / max(1, self.chunk.num_rows)

    @property
    def asked_a_row(self) -> float:
        return len(self.requests.asked) / max(1, self.chunk.num_rows)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What rows became that went all the way.

    `write`: of a row, to decode it and make it part of a shard; `commit`: seconds until that is durable.
    `bytes_row` and `bytes_chunk`: of a shard. `written`: tokens of each answer, where answers are written.
    """

    num_rows: int
    num_errors: int
    write: Cost
    commit: float
    bytes_row: float
    bytes_chunk: float
    written: tuple[int, ...]


def take_material(
    plan: Plan,
    task: Task,
    model_folder: Path | None,
    budget: BatchBudget,
    span: Span,
    *,
    is_gpu: bool,
) -> Material:
    """Sample the input, tokenize it and cut it into batches, timing each step.

    `span`: what a run would read first. Raises what reading raises.
    """
    began = time.perf_counter()
    encoder = create_encoder(plan.config, plan.model, model_folder)
    loader = Loader(
        task,
        encoder,
        budget,
        plan.chunk_rows,
        plan.read_options,
        shares_answers=task.shares_answers,
    )
    start: float | None = None
    chunk: Chunk | None = None
    encoding = Cost(0.0, 0.0)

    def encode(found: Chunk) -> Requests:
        nonlocal start, chunk, encoding
        before, core = time.perf_counter(), time.process_time()
        requests = task.encode(found, encoder)
        rows = max(1, found.num_rows)
        encoding = Cost((time.perf_counter() - before) / rows, (time.process_time() - core) / rows)
        if start is None:
            start = time.perf_counter() - began
        chunk = found
        return requests

    tokens = SAMPLE_TOKENS_OF_GPU if is_gpu else SAMPLE_TOKENS
    # No more than a chunk: in more rows there are more duplicates than a run finds.
    most = min(_MAX_ROWS, max(_LEAST_ROWS, plan.chunk_rows))
    sample_requests(plan, tokens, encode, most, whole=True)
    assert chunk is not None and start is not None
    reading = _time_reading(plan, span, max(1, min(chunk.num_rows, plan.chunk_rows)))
    loaded = loader.prepare(chunk)
    load = Cost(reading.wall + encoding.wall, reading.core + encoding.core)
    return Material(chunk, loaded.requests, loaded.batches, loader, start, load)


def _time_reading(plan: Plan, span: Span, num_rows: int) -> Cost:
    """Of a row: a chunk is read where the run begins."""
    span = dataclasses.replace(span, passed=0, stop=None, rows=None)
    before, core = time.perf_counter(), time.process_time()
    with closing(read_chunks(span, num_rows, plan.read_options)) as chunks:
        rows = next((chunk.num_rows for chunk in chunks), 0)
    wall, core = time.perf_counter() - before, time.process_time() - core
    return Cost(wall / max(1, rows), core / max(1, rows))


def rehearse(
    plan: Plan, material: Material, engine: Engine, model_folder: Path | None, seconds: float
) -> Rehearsal | None:
    """Send rows all the way, more and more of them, in about so many seconds.

    None where not even a few are answered by then.
    """
    prepare_to_decode(engine.task, plan.config, model_folder)
    began = time.perf_counter()
    number, found = _FIRST_WRITTEN if engine.task.tokens_ahead else _FIRST_ROWS, None
    while True:
        before = time.perf_counter()
        answered = _answer(material, engine, number, began + seconds)
        if answered is None:
            break
        found = answered
        took = time.perf_counter() - before
        rows, most = answered.chunk.num_rows, min(_MOST_ROWS, material.chunk.num_rows)
        if rows >= most or took > min(_LONG_ENOUGH, seconds / (2 * _GROWTH)):
            break
        number = rows * _GROWTH
    return None if found is None else _write(plan, found, engine, material)


class _Until(StopSignal):
    """Stops what is under way when the time is over."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    @property
    def is_set(self) -> bool:
        return self.out_of_time

    @property
    def out_of_time(self) -> bool:
        return time.perf_counter() > self._until


def _answer(
    material: Material, engine: Engine, num_rows: int, until: float
) -> AnsweredChunk | None:
    """So many rows with their answers; None where they take longer."""
    loaded = material.loader.prepare(spaced_rows(material.chunk, num_rows))
    if engine.pins_memory:
        loaded = loaded.pin_memory()
    return next(iter(list(answer([loaded], engine, Silent(), _Until(until)))), None)


def spaced_rows(chunk: Chunk, num_rows: int) -> Chunk:
    """So many rows of a chunk, evenly spaced."""
    total = chunk.num_rows
    if num_rows >= total:
        return chunk
    kept = np.arange(num_rows) * total // num_rows
    errors = {
        new: chunk.errors[old] for new, old in enumerate(kept.tolist()) if old in chunk.errors
    }
    table = chunk.table.take(kept).combine_chunks()
    return Chunk(ChunkId(0, 0), table, errors, Position(), Position(), True, "")


def _write(plan: Plan, answered: AnsweredChunk, engine: Engine, material: Material) -> Rehearsal:
    """Make a shard of these rows, and one of fewer: what a row adds, and what a shard has besides."""
    task = engine.task
    folder = RunFolder(plan.config.output or "out")  # for the names in it; it is never entered
    writer = ShardWriter(
        folder, plan, task, material.loader.budget, engine.dtype, engine.device_kind
    )
    name = shard_name(answered.chunk.id)
    table = assemble(answered, task, plan.output_schema, plan.config.output_prefix)
    rows = max(1, table.num_rows)
    whole = table.slice(0, plan.chunk_rows).combine_chunks()
    few = table.slice(0, max(1, whole.num_rows // 2)).combine_chunks()

    def timed(part: pa.Table, *, decodes: bool) -> tuple[float, float, int]:
        found = []
        for _ in range(_TIMES):
            wall, core = time.perf_counter(), time.process_time()
            if decodes:
                assemble(answered, task, plan.output_schema, plan.config.output_prefix)
            _, content = writer.serialize(name, answered.chunk, part, revision=0)
            found.append((time.perf_counter() - wall, time.process_time() - core, content.size))
        return min(found)

    wall, core, size = timed(whole, decodes=True)
    _, _, small = timed(few, decodes=False)
    bytes_row = max(0.0, (size - small) / max(1, whole.num_rows - few.num_rows))
    return Rehearsal(
        num_rows=rows,
        num_errors=len(answered.errors),
        write=Cost(wall / rows, core / rows),
        commit=_time_commit(size),
        bytes_row=bytes_row,
        bytes_chunk=max(0.0, size - bytes_row * whole.num_rows),
        written=tuple(answered.values["count"].tolist()) if task.tokens_ahead else (),
    )


def _time_commit(size: int) -> float:
    """Seconds until so many bytes are durable, in the system's temporary folder."""
    with tempfile.TemporaryDirectory(prefix="batchinfer-") as name:
        folder, content = Path(name), memoryview(bytes(size))
        before = time.perf_counter()
        publish(folder / "temporary", folder / "shard", content)
        return time.perf_counter() - before


def seconds_to_import(module: str) -> float:
    """What a process of its own takes until it has imported a module of batchinfer."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False)
    return time.perf_counter() - before
