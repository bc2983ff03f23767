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
    Spared,
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
#: Where a request's answer comes from, as `Gathering.origin` says; a row has the lowest of its requests'.
ASKED, DUPLICATE, CACHED, RECALLED = range(4)


def answer(
    chunks: Iterable[LoadedChunk],
    engine: Engine,
    progress: Progress,
    stop: StopSignal,
    journal: Journal = NO_JOURNAL,
) -> Generator[AnsweredChunk]:
    """Yield each chunk when its last answer is in; what a cache or its journal holds is not asked again."""
    gathering: dict[ChunkId, Gathering] = {}
    engine.stopped = lambda: stop.out_of_time
    meter = _Meter(engine, progress)

    def feed() -> Iterator[Batch]:
        for loaded in chunks:
            if stop.is_set:
                return
            gathered = gathering[loaded.chunk.id] = Gathering.of(loaded, engine.task.answers)
            if cached := gathered.take_cached():
                progress.answered(cached, 0)
            num_recalled = 0
            for indices, answers in journal.read(loaded):
                num_recalled += (fresh := gathered.recall(indices, answers))
                progress.recalled(fresh)
            batches = list(gathered.open_batches())
            tokens = sum(batch.num_tokens for batch in batches)
            progress.loaded(loaded.num_rows - num_recalled, tokens)
            for batch in batches:
                if stop.out_of_time:
                    return
                yield batch

    with closing(engine.stream(feed())) as stream:
        for batch, answers in stream:
            gathered = gathering[batch.chunk]
            gathered.add(batch, answers)
            journal.write(gathered.loaded, batch, answers)
            progress.answered(gathered.num_answered_by(batch.indices), batch.num_tokens)
            meter.tell(batch)
            if gathered.is_complete:
                answered = gathering.pop(batch.chunk).result()
                progress.answered(answered.num_rows - gathered.num_asked_about, 0)
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
    #: bool[n]: the requests that have an answer, or an error; or that another one has it for.
    done: npt.NDArray[np.bool_]
    #: int8[n]: where the answers of requests come from.
    origin: npt.NDArray[np.int8]
    #: int64[n]: how many rows get their first answer with each one's; None: no request stands for others.
    copies: Int64Array | None = None
    #: int64[n]: 1 for the first request of each row; None: each row has one.
    firsts: Int64Array | None = None
    errors: dict[int, str] = field(default_factory=dict)
    #: Whether a journal had some of the answers.
    is_recalled: bool = False

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
        done, origin = np.zeros(requests, dtype=np.bool_), np.zeros(requests, dtype=np.int8)
        copies = None
        if (same_as := loaded.requests.same_as) is not None:
            done[same_as != np.arange(requests)] = True
            origin[done] = DUPLICATE
        row, firsts = loaded.requests.row, None
        begins = np.diff(row, prepend=-1) != 0
        if not begins.all():
            firsts = begins.astype(np.int64)
        if same_as is not None:
            weights = None if firsts is None else firsts.astype(np.float64)
            counts = np.bincount(same_as, weights=weights, minlength=requests)
            copies = counts.astype(np.int64)
        return cls(loaded, answers, values, items, done, origin, copies, firsts)

    @property
    def num_asked_about(self) -> int:
        """Rows that have requests."""
        return len(self.loaded.requests) if self.firsts is None else int(self.firsts.sum())

    def num_answered_by(self, indices: Int64Array) -> int:
        """How many rows have their first answer once these were asked: with those of the same input."""
        counts = self.firsts if self.copies is None else self.copies
        return len(indices) if counts is None else int(counts[indices].sum())

    def open_batches(self) -> Iterator[Batch]:
        """The batches with what has no answer yet; an empty one, where nothing is left to ask."""
        if not self.is_recalled:
            yield from self.loaded.batches
            return
        left = [batch.keep(~self.done[batch.indices]) for batch in self.loaded.batches]
        yield from [batch for batch in left if len(batch)] or left[:1]

    def add(self, batch: Batch, answers: Answers) -> None:
        """Take the answers of a batch, or the error of its requests."""
        if answers.error is not None:
            self.done[batch.indices] = True
            self._fail(batch.indices, answers.error)
            return
        self.take(batch.indices, answers)

    def take_cached(self) -> int:
        """Take the answers that a cache had; return how many requests have one thereby."""
        cached = self.loaded.cached
        if cached is None or not cached.found.any():
            return 0
        indices = cached.indices[cached.found]
        self.origin[indices] = CACHED
        self.take(indices, cached.answers)
        return self.num_answered_by(indices)

    def recall(self, indices: Int64Array, answers: Answers) -> int:
        """Take the answers that these requests got in an earlier run; return how many have one thereby."""
        fresh = indices[~self.done[indices]]
        self.origin[fresh], self.is_recalled = RECALLED, True
        self.take(indices, answers)
        return self.num_answered_by(fresh)

    def _fail(self, indices: Int64Array, why: str) -> None:
        """Note an error for the rows of these requests, and of those of the same input."""
        requests = self.loaded.requests
        if requests.same_as is not None:
            indices = np.flatnonzero(np.isin(requests.same_as, indices))
        self.errors.update(dict.fromkeys(requests.row[indices].tolist(), why))

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
        if not finite.all():
            self._fail(indices[~finite], "the model's answer is NaN or infinite")

    @property
    def is_complete(self) -> bool:
        return bool(self.done.all())

    def result(self) -> AnsweredChunk:
        loaded, same_as = self.loaded, self.loaded.requests.same_as
        errors = {**loaded.requests.errors, **self.errors, **loaded.chunk.errors}
        values = dict(self.values)
        if same_as is not None:
            for name, array in values.items():
                # Equal inputs have as many tokens, so that their answers have as many items.
                values[name] = array[loaded.requests.places(same_as, self.fields[name].unit)]
        for name, parts in self.items.items():
            if same_as is not None:
                parts = [parts[index] for index in same_as.tolist()]
            none = np.zeros((0, *self.fields[name].shape), dtype=self.fields[name].dtype)
            values[name] = np.concatenate([none, *parts])
        return AnsweredChunk(
            loaded.chunk,
            loaded.requests,
            values,
            errors,
            loaded.rows,
            loaded.cached,
            self._spared(),
        )

    def _spared(self) -> Spared:
        """What the model was not asked for."""
        requests, origin = self.loaded.requests, self.origin
        if not origin.any():
            return Spared()
        if requests.same_as is not None:  # a duplicate of what was not asked was not asked either
            origin = np.maximum(origin, origin[requests.same_as])
        begins = np.flatnonzero(np.diff(requests.row, prepend=-1))
        rows = np.bincount(np.minimum.reduceat(origin, begins), minlength=RECALLED + 1)
        return Spared(
            duplicate_rows=int(rows[DUPLICATE]),
            cached_rows=int(rows[CACHED]),
            recalled_rows=int(rows[RECALLED]),
            num_tokens=int(requests.tokens[origin != ASKED].sum()),
        )
