"""One device at work: load ahead, predict, write behind.

    loader ──▶ batches ──▶ engine.stream ──▶ answers ──▶ gather ──▶ writer thread ──▶ Shard
    (ahead)                (the device)                             (behind)

Batches of the next chunk enter while the last answers of this one come in: the device does not run
dry between chunks.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.attempts import Attempts
from batchinfer.config import RunConfig
from batchinfer.controller import probe_budget
from batchinfer.core import (
    AnsweredChunk,
    Answers,
    Batch,
    BatchBudget,
    ChunkId,
    Int64Array,
    LoadedChunk,
    Shard,
    Span,
)
from batchinfer.engines import (
    create_encoder,
    create_engine,
    kind_of_device,
    prepare_to_decode,
)
from batchinfer.engines.base import DeviceLostError, Engine
from batchinfer.engines.supervised import SupervisedEngine
from batchinfer.loader import Loader, LoaderKilledError
from batchinfer.machine import usable_cores
from batchinfer.plan import Plan
from batchinfer.profiles import Settings, Tuned
from batchinfer.reporting.progress import Progress
from batchinfer.reporting.report import Effort
from batchinfer.stages import StageSeconds, Stopwatch
from batchinfer.tasks import create_task
from batchinfer.tasks.base import AnswerField
from batchinfer.tokenization import Encoder
from batchinfer.writers.journal import Journal
from batchinfer.writers.run_folder import RunFolder
from batchinfer.writers.shard import ShardWriter

log = logging.getLogger("batchinfer")

_NO_JOURNAL = Journal()
#: Shards that may wait for the writer before the device waits too.
WRITE_BEHIND = 2
#: How long a stopped run goes on with the chunks that it has begun, in seconds.
GRACE_SECONDS = 5.0
#: A run that must end by a deadline stops this much before it: the grace, and as much to commit.
MARGIN_SECONDS = 2 * GRACE_SECONDS
#: Input below this is read in the main process: a worker takes two seconds to start.
SMALL_INPUT_BYTES = 8 << 20
#: One worker tokenizes about 1 M tokens/s a core and uses all cores; more of them only read ahead.
MAX_WORKERS = 4


class StopSignal:
    """Asks a run to stop: no new chunk is begun, and those begun get a few seconds more."""

    def __init__(self) -> None:
        self._grace_ends: float | None = None
        self._due: float | None = None

    def set(self) -> None:
        """Ask; asking again changes nothing."""
        if self._grace_ends is None:
            self._grace_ends = time.monotonic() + GRACE_SECONDS

    def set_by(self, seconds: float) -> None:
        """Ask in time for the run to be over so many seconds from now."""
        self._due = time.monotonic() + seconds - min(MARGIN_SECONDS, seconds / 2)

    @property
    def is_set(self) -> bool:
        if self._due is not None and time.monotonic() >= self._due:
            self.set()
        return self._grace_ends is not None

    @property
    def out_of_time(self) -> bool:
        return self.is_set and time.monotonic() >= (self._grace_ends or 0.0)


class Worker:
    """Loads the model onto one device, and turns spans of input into committed shards."""

    def __init__(
        self, plan: Plan, model_folder: Path | None, progress: Progress, stop: StopSignal
    ) -> None:
        self.plan, self.model_folder = plan, model_folder
        self.progress, self.stop = progress, stop
        config = plan.config
        self.task = create_task(plan.model, config, plan.input_schema)
        self.engine: Engine | None = None
        #: What a profile decides, and the user left open; nothing before the device is known.
        self.tuned: Tuned | None = None
        #: Whether rows of this job have answers: then a row that fails is not the model's fault.
        self.has_answered = False
        #: Whether this call began the job. A probe that was killed is not made again by each resume.
        self.may_probe = False
        self.load_seconds = self.seconds = 0.0
        self.budget = BatchBudget(0, 0)
        self.new_rows = self.new_tokens = 0
        #: Processes that load ahead, and where the time of all that was processed went.
        self.workers = 0
        self.stages = StageSeconds()

    def load(self, *, isolated: bool = False) -> Engine:
        """The engine, with the model on the device; `isolated`: in a process of its own.

        Raises ModelError, or UsageError for the device.
        """
        isolated = isolated or self.plan.config.batch_timeout is not None
        if self.engine is not None and isinstance(self.engine, SupervisedEngine) != isolated:
            self.close()
        if self.engine is None:
            started = time.monotonic()
            config = self._settle()
            if isolated:
                self.engine = SupervisedEngine(
                    self.task,
                    config,
                    self.model_folder,
                    timeout=config.batch_timeout,
                    stopped=lambda: self.stop.out_of_time,
                )
            else:
                self.engine = create_engine(config, self.task, self.model_folder)
            if self._settings.ceiling_tokens is not None:
                self.engine.stay_below(self._settings.ceiling_tokens)
            seconds = time.monotonic() - started
            self.load_seconds += seconds
            cut = f", texts cut at {self.plan.model.max_length:,} tokens"
            log.debug(
                f"loaded {self.plan.model.name} in {seconds:.1f} s: {self.engine.dtype} on "
                f"{self.engine.device_kind}{', in a process of its own' if isolated else ''}"
                f"{cut if self.task.takes_text else ''}"
            )
        return self.engine

    def _settle(self) -> RunConfig:
        """The configuration to load with: the plan's, and its profile's on the same kind of device."""
        config, tuned = self.plan.config, self.plan.tuned
        if config.batch_timeout is not None and config.streams is None:
            # The process that is watched is asked for one batch at a time: all threads are its own.
            config = config.model_copy(update={"streams": 1})
        if tuned is None:
            return config
        kind = kind_of_device(config)
        if kind != tuned.device_kind:
            log.info(f"the job's profile is of {tuned.device_kind}; on {kind} it is not used")
            return config
        self.tuned = dataclasses.replace(tuned, settings=tuned.settings.left_open_by(config))
        return self._settings.fill(config)

    @property
    def _settings(self) -> Settings:
        return Settings() if self.tuned is None else self.tuned.settings

    def process(
        self,
        folder: RunFolder,
        spans: Sequence[Span],
        rows_done: int = 0,
        *,
        isolated: bool = False,
    ) -> Iterator[Shard]:
        """Yield a committed shard for each chunk; the device stays busy throughout.

        `rows_done`: rows that have answers already, for the progress display. `isolated`: the chunks
        are suspected to have killed a process, and are answered in one of their own.
        """
        plan, engine = self.plan, self.load(isolated=isolated)
        if self.has_answered:
            engine.vouch()
        self.budget = self._choose_budget(engine, folder)
        self._tell_settings()
        prepare_to_decode(self.task, plan.config, self.model_folder)
        writer = ShardWriter(folder, plan, self.task, self.budget, engine.dtype, engine.device_kind)
        if isolated:
            log.info(
                "the last run died without a word: what it was at is answered first, in a process of "
                "its own"
            )
        self._begin(folder, spans, rows_done)
        writes = self.task.tokens_ahead > 0  # only those answers take longer than reading them back
        journal = Journal(folder.temporary, plan.id, self.task.answers) if writes else _NO_JOURNAL
        began, before = time.monotonic(), self.seconds
        watch = engine.watch = Stopwatch()
        # The marks of suspected chunks stand already, and stay until each was looked into.
        attempts = Attempts() if isolated else folder.attempts
        is_suspicious = isolated
        try:
            with watch.measure("wait_start"):  # a tokenizer is made
                ahead = self._load_ahead(engine, spans, attempts, isolated=isolated)
            with (
                closing(ahead),
                closing(
                    answer(
                        _begun(ahead, attempts, watch), engine, self.progress, self.stop, journal
                    )
                ) as done,
            ):
                for shard in write_behind(writer.commit, self._counted(done), watch):
                    folder.attempts.end(shard.id)
                    journal.end(shard.id)
                    yield shard
                self.seconds = before + time.monotonic() - began
                self.stages += watch.seconds + writer.watch.seconds
        except DeviceLostError as error:
            is_suspicious = True
            raise DeviceLostError(
                f"{error}; `batchinfer resume` goes on, and finds out whether a row is the cause"
            ) from error
        except LoaderKilledError:
            is_suspicious = True
            raise
        finally:
            if not is_suspicious:
                folder.attempts.clear()  # also those of loader processes, which are gone by now
            self.progress.end()

    def _counted(self, answered: Iterable[AnsweredChunk]) -> Iterator[AnsweredChunk]:
        for chunk in answered:
            rows, tokens = chunk.recalled
            self.new_rows += chunk.num_rows - rows
            self.new_tokens += chunk.requests.num_tokens - tokens
            yield chunk

    def _tell_settings(self) -> None:
        """Say what is used of a profile: all but a budget that the run folder was begun without."""
        if self.tuned is None:
            return
        settings = self.tuned.settings
        other = [
            name
            for name in ("max_batch_tokens", "max_batch_rows")
            if getattr(settings, name) not in (None, getattr(self.budget, name))
        ]
        used = dataclasses.replace(settings, **dict.fromkeys(other))
        said = dataclasses.replace(self.tuned, settings=used).to_text()
        if other:
            said += (
                f"; batches stay as the folder began with them, {self.budget.max_batch_tokens:,} tokens "
                f"and {self.budget.max_batch_rows:,} rows at most"
            )
        log.info(said)

    def _begin(self, folder: RunFolder, spans: Sequence[Span], rows_done: int) -> None:
        plan = self.plan
        expected = plan.num_rows_estimate
        quantised = f", quantised by {plan.model.quantization}" if plan.model.quantization else ""
        precision = f"{plan.config.dtype}{quantised}"
        if all(span.rows is not None for span in spans):
            rows = (rows for span in spans for rows in (span.rows or {}).values())
            expected = rows_done + sum(map(len, rows))
        log.info(
            f"{plan.model.task} by {plan.model.name} ({precision}): about "
            f"{max(0, expected - rows_done):,} rows to answer, {plan.chunk_rows:,} a shard, into "
            f"{folder.path}"
        )
        log.debug(
            f"batches of at most {self.budget.max_batch_tokens:,} tokens and "
            f"{self.budget.max_batch_rows:,} rows"
        )
        self.progress.begin(rows_done=rows_done, rows_expected=expected)

    def _load_ahead(
        self, engine: Engine, spans: Sequence[Span], attempts: Attempts, *, isolated: bool
    ) -> Generator[LoadedChunk]:
        """Read, tokenize and batch: in this process, or in others that run ahead of the device."""
        plan = self.plan
        encoder: Encoder
        if isolated and isinstance(engine, SupervisedEngine):
            encoder, workers = engine, 0
        else:
            encoder = create_encoder(plan.config, plan.model, self.model_folder)
            workers = self._num_workers(spans)
        self.workers = workers
        loader = Loader(
            self.task, encoder, self.budget, plan.chunk_rows, plan.read_options, attempts
        )
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
            new_rows=self.new_rows,
            new_tokens=self.new_tokens,
            seconds=self.seconds,
            load_seconds=self.load_seconds,
            device=self.engine.device_kind if self.engine else "",
            max_batch_tokens=self.budget.max_batch_tokens,
            workers=self.workers,
            stages=self.stages,
        )

    def close(self) -> None:
        """Give the device back."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _choose_budget(self, engine: Engine, folder: RunFolder) -> BatchBudget:
        """What the user set; for the rest, what this kind of device began the job with.

        The first time, that is what a profile says; without one, what a few probes find.
        """
        config, settings = self.plan.config, self._settings
        usual = settings.budget(engine.default_budget)
        if config.max_batch_tokens is None or config.max_batch_rows is None:
            frozen = folder.frozen_budget(engine.device_kind)
            if frozen is None:
                is_open = (config.max_batch_tokens or settings.max_batch_tokens) is None
                if is_open and self.may_probe and not isinstance(engine, SupervisedEngine):
                    started = time.monotonic()
                    usual = probe_budget(
                        engine, self.plan, self.model_folder, lambda: self.stop.is_set
                    )
                    self.load_seconds += time.monotonic() - started
                frozen = folder.freeze_budget(engine.device_kind, usual)
            usual = frozen
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
        files = (file for span in spans for file in span.segment.files)
        if not self.task.takes_text and all(file.format == "parquet" for file in files):
            return (
                0  # read while the device works, and quicker than it could be sent from elsewhere
            )
        if self._settings.workers is not None:
            return self._settings.workers
        return max(1, min(MAX_WORKERS, len(spans), usable_cores() // 2))


def _begun(
    chunks: Iterator[LoadedChunk], attempts: Attempts, watch: Stopwatch
) -> Iterator[LoadedChunk]:
    """The chunks, each marked as it goes to the device."""
    first, others = watch.each("wait_start", islice(chunks, 1)), watch.each("wait_input", chunks)
    for loaded in chain(first, others):
        watch.add(loaded.seconds)
        attempts.begin(loaded.chunk.id)
        yield loaded


def answer(
    chunks: Iterable[LoadedChunk],
    engine: Engine,
    progress: Progress,
    stop: StopSignal,
    journal: Journal = _NO_JOURNAL,
) -> Generator[AnsweredChunk]:
    """Yield each chunk when its last answer is in; what its journal holds is not asked again."""
    gathering: dict[ChunkId, _Gathering] = {}
    engine.stopped = lambda: stop.out_of_time

    def feed() -> Iterator[Batch]:
        for loaded in chunks:
            if stop.is_set:
                return
            gathered = gathering[loaded.chunk.id] = _Gathering.of(loaded, engine.task.answers)
            for indices, answers in journal.read(loaded):
                gathered.recall(indices, answers)
                progress.recalled(len(indices))
            for batch in gathered.open_batches():
                if stop.out_of_time:
                    return
                yield batch

    with closing(engine.stream(feed())) as stream:
        for batch, answers in stream:
            gathered = gathering[batch.chunk]
            gathered.add(batch, answers)
            journal.write(gathered.loaded, batch, answers)
            progress.answered(len(batch), batch.num_tokens)
            if gathered.is_complete:
                answered = gathering.pop(batch.chunk).result()
                progress.answered(answered.num_rows - len(answered.requests), 0)
                progress.failed(len(answered.errors))
                yield answered
            if stop.out_of_time:  # what is under way is dropped
                return


def write_behind(
    commit: Callable[[AnsweredChunk], Shard], answered: Iterable[AnsweredChunk], watch: Stopwatch
) -> Iterator[Shard]:
    """Commit chunks in a thread behind the device, in their order; yield the shards."""
    pending: deque[Future[Shard]] = deque()

    def oldest() -> Shard:
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
class _Gathering:
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
    def of(cls, loaded: LoadedChunk, answers: Mapping[str, AnswerField]) -> _Gathering:
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
