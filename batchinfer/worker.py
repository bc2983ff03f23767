"""One device at work: load ahead, predict, write behind.

    loader ──▶ batches ──▶ engine.stream ──▶ answers ──▶ gather ──▶ writer thread ──▶ Shard
    (ahead)                (the device)                             (behind)

Batches of the next chunk enter while the last answers of this one come in: the device does not run
dry between chunks.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.core import (
    AnsweredChunk,
    Answers,
    Batch,
    BatchBudget,
    ChunkId,
    LoadedChunk,
    Shard,
    Span,
)
from batchinfer.engines import create_encoder, create_engine
from batchinfer.engines.base import Engine
from batchinfer.loader import Loader
from batchinfer.plan import Plan
from batchinfer.reporting.progress import Progress
from batchinfer.reporting.report import Effort
from batchinfer.tasks import create_task
from batchinfer.tasks.base import AnswerField
from batchinfer.writers.run_folder import RunFolder
from batchinfer.writers.shard import ShardWriter

log = logging.getLogger("batchinfer")

#: Shards that may wait for the writer before the device waits too.
WRITE_BEHIND = 2
#: How long a stopped run goes on with the chunks that it has begun, in seconds.
GRACE_SECONDS = 5.0
#: Input below this is read in the main process: a worker takes two seconds to start.
SMALL_INPUT_BYTES = 8 << 20
#: One worker tokenizes about 1 M tokens/s a core and uses all cores; more of them only read ahead.
MAX_WORKERS = 4


class StopSignal:
    """Asks a run to stop: no new chunk is begun, and those begun get a few seconds more."""

    def __init__(self) -> None:
        self._deadline: float | None = None

    def set(self) -> None:
        """Ask; asking again changes nothing."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS

    @property
    def is_set(self) -> bool:
        return self._deadline is not None

    @property
    def out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


class Worker:
    """Loads the model onto one device, and turns spans of input into committed shards."""

    def __init__(
        self, plan: Plan, model_folder: Path | None, progress: Progress, stop: StopSignal
    ) -> None:
        self.plan, self.model_folder = plan, model_folder
        self.progress, self.stop = progress, stop
        config = plan.config
        self.task = create_task(plan.model, config.text_column, config.text_pair_column)
        self.engine: Engine | None = None
        self.load_seconds = self.seconds = 0.0
        self.budget = BatchBudget(0, 0)
        self.shards: list[Shard] = []

    def load(self) -> Engine:
        """The engine, with the model on the device. Raises ModelError, or UsageError for the device."""
        if self.engine is None:
            started = time.monotonic()
            self.engine = create_engine(self.plan.config, self.task, self.model_folder)
            self.load_seconds = time.monotonic() - started
            log.debug(
                f"loaded {self.plan.model.name} in {self.load_seconds:.1f} s: {self.engine.dtype} on "
                f"{self.engine.device_kind}, texts cut at {self.plan.model.max_length:,} tokens"
            )
        return self.engine

    def process(
        self, folder: RunFolder, spans: Sequence[Span], committed: Iterable[Shard] = ()
    ) -> Iterator[Shard]:
        """Yield a committed shard for each chunk; the device stays busy throughout.

        `committed`: the shards that stand already, for the progress display.
        """
        plan, engine = self.plan, self.load()
        self.budget = self._choose_budget(engine, folder)
        writer = ShardWriter(folder, plan, self.task, self.budget, engine.dtype, engine.device_kind)
        self._begin(folder, sum(shard.num_rows for shard in committed))
        started = time.monotonic()
        try:
            answered = answer(self._load_ahead(engine, spans), engine, self.progress, self.stop)
            for shard in write_behind(writer.commit, answered):
                self.shards.append(shard)
                self.seconds = time.monotonic() - started
                yield shard
        finally:
            self.progress.end()

    def _begin(self, folder: RunFolder, rows_done: int) -> None:
        plan = self.plan
        left = max(0, plan.num_rows_estimate - rows_done)
        log.info(
            f"{plan.model.task} by {plan.model.name} ({plan.config.dtype}): about {left:,} rows to "
            f"answer, {plan.chunk_rows:,} a shard, into {folder.path}"
        )
        log.debug(
            f"batches of at most {self.budget.max_batch_tokens:,} tokens and "
            f"{self.budget.max_batch_rows:,} rows"
        )
        self.progress.begin(rows_done=rows_done, rows_expected=plan.num_rows_estimate)

    def _load_ahead(self, engine: Engine, spans: Sequence[Span]) -> Iterator[LoadedChunk]:
        """Read, tokenize and batch: in this process, or in others that run ahead of the device."""
        plan = self.plan
        encoder = create_encoder(plan.config, plan.model, self.model_folder)
        loader = Loader(self.task, encoder, self.budget, plan.chunk_rows, plan.read_options)
        workers = self._num_workers(spans)
        log.debug(f"{workers or 'no'} processes read and tokenize ahead")
        if workers == 0:
            return loader.stream(spans)
        from batchinfer.dataloader import stream_from_workers

        return stream_from_workers(
            loader,
            spans,
            workers=workers,
            pin_memory=engine.pins_memory,
            chunk_bytes=int(plan.row_bytes * plan.chunk_rows),
        )

    @property
    def effort(self) -> Effort:
        """What this worker did so far."""
        return Effort(
            new_shards=tuple(self.shards),
            seconds=self.seconds,
            load_seconds=self.load_seconds,
            device=self.engine.device_kind if self.engine else "",
            max_batch_tokens=self.budget.max_batch_tokens,
        )

    def close(self) -> None:
        """Give the device back."""
        if self.engine is not None:
            self.engine.close()

    def _choose_budget(self, engine: Engine, folder: RunFolder) -> BatchBudget:
        """What the user set; for the rest, what this kind of device began the job with."""
        config, usual = self.plan.config, engine.default_budget
        if config.max_batch_tokens is None or config.max_batch_rows is None:
            usual = folder.freeze_budget(engine.device_kind, usual)
        return usual.override(config.max_batch_tokens, config.max_batch_rows)

    def _num_workers(self, spans: Sequence[Span]) -> int:
        """Processes that load ahead: none where starting them would cost more than they save."""
        if self.plan.config.workers is not None:
            return self.plan.config.workers
        if self.plan.config.engine == "fake":
            return 0
        size = sum(span.segment.size for span in spans)
        if size < SMALL_INPUT_BYTES:
            return 0
        return max(1, min(MAX_WORKERS, len(spans), (os.cpu_count() or 1) // 2))


def answer(
    chunks: Iterable[LoadedChunk], engine: Engine, progress: Progress, stop: StopSignal
) -> Iterator[AnsweredChunk]:
    """Yield each chunk when its last answer is in."""
    gathering: dict[ChunkId, _Gathering] = {}

    def feed() -> Iterator[Batch]:
        for loaded in chunks:
            if stop.is_set:
                return
            gathering[loaded.chunk.id] = _Gathering.of(loaded, engine.task.answers)
            for batch in loaded.batches:
                if stop.out_of_time:
                    return
                yield batch

    for batch, answers in engine.stream(feed()):
        gathered = gathering[batch.chunk]
        gathered.add(batch, answers)
        progress.answered(len(batch), batch.num_tokens)
        if gathered.is_complete:
            answered = gathering.pop(batch.chunk).result()
            progress.answered(answered.chunk.num_rows - len(answered.requests), 0)
            progress.failed(len(answered.errors))
            yield answered


def write_behind(
    commit: Callable[[AnsweredChunk], Shard], answered: Iterable[AnsweredChunk]
) -> Iterator[Shard]:
    """Commit chunks in a thread behind the device, in their order; yield the shards."""
    pending: deque[Future[Shard]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as writer:
        for chunk in answered:
            pending.append(writer.submit(commit, chunk))
            while pending and (len(pending) > WRITE_BEHIND or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass
class _Gathering:
    """The answers of one chunk, as they come in."""

    loaded: LoadedChunk
    values: Mapping[str, npt.NDArray[Any]]
    requests_left: int
    errors: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: LoadedChunk, answers: Mapping[str, AnswerField]) -> _Gathering:
        size = len(loaded.requests)
        values = {name: np.zeros((size, *f.shape), dtype=f.dtype) for name, f in answers.items()}
        return cls(loaded, values, size)

    def add(self, batch: Batch, answers: Answers) -> None:
        self.requests_left -= len(batch)
        if answers.error is not None:
            for row in self.loaded.requests.row[batch.indices]:
                self.errors[int(row)] = answers.error
            return
        finite = np.ones(len(batch), dtype=np.bool_)
        for name, values in answers.values.items():
            self.values[name][batch.indices] = values
            if np.issubdtype(values.dtype, np.floating):
                finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        for index in batch.indices[~finite]:
            self.errors[int(self.loaded.requests.row[index])] = (
                "the model's answer is NaN or infinite"
            )

    @property
    def is_complete(self) -> bool:
        return self.requests_left == 0

    def result(self) -> AnsweredChunk:
        errors = {**self.loaded.requests.errors, **self.errors, **self.loaded.chunk.errors}
        return AnsweredChunk(self.loaded.chunk, self.loaded.requests, self.values, errors)
