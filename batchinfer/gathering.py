"""From the answers of batches to the answers of chunks, and on to their shards.

    chunks ──▶ batches ──▶ engine.stream ──▶ answers ──▶ Gathering ──▶ writer thread ──▶ Shard

Batches of the next chunk enter while the last answers of this one come in: the device does not run dry
between chunks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from batchinfer.core import (
    AnsweredChunk,
    Answers,
    Batch,
    ChunkId,
    Int64Array,
    LoadedChunk,
)
from batchinfer.engines.base import Engine
from batchinfer.reporting.progress import Measured, Progress
from batchinfer.stages import Stopwatch
from batchinfer.stop import StopSignal
from batchinfer.tasks.base import AnswerField
from batchinfer.writers.journal import Journal

Done = TypeVar("Done")

NO_JOURNAL = Journal()
#: How often a device says what it was at, in seconds.
_METER_SECONDS = 0.5
#: Shards that may wait for the writer before the device waits too.
WRITE_BEHIND = 2


def answer(
    chunks: Iterable[LoadedChunk],
    engine: Engine,
    progress: Progress,
    stop: StopSignal,
    journal: Journal = NO_JOURNAL,
) -> Generator[AnsweredChunk]:
    """Yield each chunk when its last answer is in; what its journal holds is not asked again."""
    gathering: dict[ChunkId, Gathering] = {}
    engine.stopped = lambda: stop.out_of_time
    meter = _Meter(engine, progress)

    def feed() -> Iterator[Batch]:
        for loaded in chunks:
            if stop.is_set:
                return
            gathered = gathering[loaded.chunk.id] = Gathering.of(loaded, engine.task.answers)
            for indices, answers in journal.read(loaded):
                gathered.recall(indices, answers)
                progress.recalled(len(indices))
            batches = list(gathered.open_batches())
            recalled, _ = gathered.recalled
            tokens = sum(batch.num_tokens for batch in batches)
            progress.loaded(loaded.num_rows - recalled, tokens)
            for batch in batches:
                if stop.out_of_time:
                    return
                yield batch

    with closing(engine.stream(feed())) as stream:
        for batch, answers in stream:
            gathered = gathering[batch.chunk]
            gathered.add(batch, answers)
            journal.write(gathered.loaded, batch, answers)
            progress.answered(len(batch), batch.num_tokens)
            meter.tell(batch)
            if gathered.is_complete:
                answered = gathering.pop(batch.chunk).result()
                progress.answered(answered.num_rows - len(answered.requests), 0)
                progress.failed(len(answered.errors))
                yield answered
            if stop.out_of_time:  # what is under way is dropped
                break
    meter.tell()


class _Meter:
    """Says a few times a second what a device was at."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self._engine, self._progress = engine, progress
        self._name = f"{os.uname().nodename}:{os.getpid()}"
        self._told, self._splits, self._due = engine.watch.seconds, engine.splits, 0.0
        self._tokens = self._computed = 0

    def tell(self, batch: Batch | None = None) -> None:
        """Count a batch, and say so where it is time; without one, at the end."""
        if batch is not None:
            computed = self._engine.tokens_computed(batch)
            if computed is not None:
                self._tokens += batch.num_tokens
                self._computed += computed
        now = time.monotonic()
        if now < self._due and batch is not None:
            return
        self._due = now + _METER_SECONDS
        stages, splits = self._engine.watch.seconds, self._engine.splits
        since = Measured(
            self._name,
            stages - self._told,
            splits - self._splits,
            self._engine.memory_use(),
            self._tokens,
            self._computed,
        )
        self._told, self._splits = stages, splits
        self._tokens = self._computed = 0
        self._progress.measured(since)


def write_behind(
    commit: Callable[[AnsweredChunk], Done], answered: Iterable[AnsweredChunk], watch: Stopwatch
) -> Iterator[Done]:
    """Commit chunks in a thread behind the device, in their order; yield what that returns."""
    pending: deque[Future[Done]] = deque()

    def oldest() -> Done:
        with watch.measure("wait_writer"):
            return pending.popleft().result()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as writer:
        for chunk in answered:
            pending.append(writer.submit(commit, chunk))
            while pending and (len(pending) > WRITE_BEHIND or pending[0].done()):
                yield oldest()
        while pending:
            yield oldest()


@dataclass
class Gathering:
    """The answers of one chunk, as they come in."""

    loaded: LoadedChunk
    fields: Mapping[str, AnswerField]
    values: dict[str, npt.NDArray[Any]]
    #: By field that has several items a request, those of each request.
    items: dict[str, list[npt.NDArray[Any]]]
    #: bool[n]: the requests that have an answer, or an error.
    done: npt.NDArray[np.bool_]
    errors: dict[int, str] = field(default_factory=dict)
    #: Requests, and their tokens, whose answers were in a journal.
    recalled: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, loaded: LoadedChunk, answers: Mapping[str, AnswerField]) -> Gathering:
        requests = len(loaded.requests)
        values, items = {}, {}
        for name, f in answers.items():
            if f.counted_by:
                items[name] = [np.zeros((0, *f.shape), dtype=f.dtype)] * requests
            else:
                count = int(loaded.requests.counts(f.unit).sum())
                values[name] = np.zeros((count, *f.shape), dtype=f.dtype)
        return cls(loaded, answers, values, items, np.zeros(requests, dtype=np.bool_))

    def open_batches(self) -> Iterator[Batch]:
        """The batches with what has no answer yet; an empty one, where nothing is left to ask."""
        if not self.done.any():
            yield from self.loaded.batches
            return
        left = [batch.keep(~self.done[batch.indices]) for batch in self.loaded.batches]
        yield from [batch for batch in left if len(batch)] or left[:1]

    def add(self, batch: Batch, answers: Answers) -> None:
        """Take the answers of a batch, or the error of its requests."""
        if answers.error is not None:
            self.done[batch.indices] = True
            for row in self.loaded.requests.row[batch.indices]:
                self.errors[int(row)] = answers.error
            return
        self.take(batch.indices, answers)

    def recall(self, indices: Int64Array, answers: Answers) -> None:
        """Take the answers that these requests got in an earlier run."""
        self.take(indices, answers)
        requests, tokens = self.recalled
        cost = int(self.loaded.requests.cost[indices].sum())
        self.recalled = (requests + len(indices), tokens + cost)

    def take(self, indices: Int64Array, answers: Answers) -> None:
        """Take the answers of these requests."""
        self.done[indices] = True
        finite = np.ones(len(indices), dtype=np.bool_)
        for name, values in answers.values.items():
            answer = self.fields[name]
            if answer.counted_by:
                ends = np.cumsum(answers.values[answer.counted_by], dtype=np.int64)
                parts = np.split(values, ends[:-1]) if len(indices) else []
                for index, part in zip(indices.tolist(), parts, strict=True):
                    self.items[name][index] = part
                continue
            requests, unit = self.loaded.requests, answer.unit
            self.values[name][requests.places(indices, unit)] = values
            if np.issubdtype(values.dtype, np.floating) and len(indices):
                good = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
                if unit != "request":  # of a row, all of them
                    counts = requests.counts(unit)[indices].astype(np.int64)
                    good = np.logical_and.reduceat(good, np.cumsum(counts) - counts)
                finite &= good
        for index in indices[~finite]:
            self.errors[int(self.loaded.requests.row[index])] = (
                "the model's answer is NaN or infinite"
            )

    @property
    def is_complete(self) -> bool:
        return bool(self.done.all())

    def result(self) -> AnsweredChunk:
        errors = {**self.loaded.requests.errors, **self.errors, **self.loaded.chunk.errors}
        values = dict(self.values)
        for name, parts in self.items.items():
            none = np.zeros((0, *self.fields[name].shape), dtype=self.fields[name].dtype)
            values[name] = np.concatenate([none, *parts])
        loaded = self.loaded
        return AnsweredChunk(
            loaded.chunk, loaded.requests, values, errors, loaded.rows, self.recalled
        )
