"""What a run does with spans of input: load ahead, have them answered, tell how it went.

loader ──▶ LoadedChunk ──▶ executor ──▶ Shard
(ahead)                    (devices, and writers behind them)
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from batchinfer.attempts import Attempts
from batchinfer.caching import AnswerCache
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget, LoadedChunk, Shard, Span
from batchinfer.engines import create_encoder, kind_of_device
from batchinfer.engines.base import DeviceLostError
from batchinfer.executors import Executor, Job, Work, create_executor
from batchinfer.loader import Loader, LoaderKilledError
from batchinfer.machine import usable_cores
from batchinfer.plan import Plan
from batchinfer.profiles import Settings, Tuned
from batchinfer.reporting.facts import facts_of
from batchinfer.reporting.monitor import Monitor
from batchinfer.reporting.report import Effort
from batchinfer.stages import StageSeconds, Stopwatch
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from batchinfer.writers.run_folder import RunFolder

log = logging.getLogger("batchinfer")

#: Input below this is read in the main process: a worker takes two seconds to start.
SMALL_INPUT_BYTES = 8 << 20
#: One worker tokenizes about 1 M tokens/s a core and uses all cores; more of them only read ahead.
MAX_WORKERS = 4


class Worker:
    """Loads the model onto the devices, and turns spans of input into committed shards."""

    def __init__(
        self, plan: Plan, model_folder: Path | None, monitor: Monitor, stop: StopSignal
    ) -> None:
        self.plan, self.model_folder = plan, model_folder
        self.monitor, self.stop = monitor, stop
        config = plan.config
        self.task = create_task(plan.model, config, plan.input_schema)
        monitor.tokens_ahead = self.task.tokens_ahead
        self.executor: Executor | None = None
        self._is_isolated = False
        #: What a profile decides, and the user left open; nothing before the device is known.
        self.tuned: Tuned | None = None
        #: Whether rows of this job have answers: then a row that fails is not the model's fault.
        self.has_answered = False
        #: Whether this call began the job. A probe that was killed is not made again by each resume.
        self.may_probe = False
        self.load_seconds = self.seconds = 0.0
        self.budget = BatchBudget(0, 0)
        self.new_rows = self.new_tokens = self.new_batches = 0
        self.duplicate_rows = self.cached_rows = 0
        #: Processes that load ahead, and where the time of all that was processed went.
        self.workers = 0
        self.stages = StageSeconds()

    def load(self, *, isolated: bool = False) -> Executor:
        """The executor, with the model on its devices; `isolated`: in a process of its own, on one.

        Raises ModelError, or UsageError for the device.
        """
        if self.executor is not None and self._is_isolated != isolated:
            self.close()
        if self.executor is None:
            started = time.monotonic()
            self.executor = create_executor(self.job(), self.stop, isolated=isolated)
            self._is_isolated = isolated
            seconds = time.monotonic() - started
            self.load_seconds += seconds
            cut = f", texts cut at {self.plan.model.max_length:,} tokens"
            alone = isolated or self.plan.config.batch_timeout is not None
            log.debug(
                f"loaded {self.plan.model.name} in {seconds:.1f} s: {self.executor.dtype} on "
                f"{self.executor.device_kind}{', in a process of its own' if alone else ''}"
                f"{cut if self.task.takes_text else ''}"
            )
        return self.executor

    def job(self) -> Job:
        """What executors load."""
        config = self._settle()
        return Job(self.plan, config, self.model_folder, self._settings.ceiling_tokens)

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
        rows_expected: int = 0,
        *,
        isolated: bool = False,
    ) -> Iterator[Shard]:
        """Yield a committed shard for each chunk; the device stays busy throughout.

        `rows_done`: rows that have answers already, of about so many expected, for the progress display.
        `isolated`: the chunks
        are suspected to have killed a process, and are answered in one of their own.
        """
        executor = self.load(isolated=isolated)
        if self.has_answered:
            executor.vouch()
        self.budget = self.choose_budget(executor, folder)
        self._tell_settings()
        if isolated:
            log.info(
                "a process died without a word: what it was at is answered in a process of its own"
            )
        self._begin(folder, executor, spans, rows_done, rows_expected)
        began, before = time.monotonic(), self.seconds
        watch = Stopwatch()
        # The marks of suspected chunks stand already, and stay until each was looked into.
        attempts = Attempts() if isolated else folder.attempts
        is_suspicious = isolated

        def load() -> Generator[LoadedChunk]:
            with watch.measure("wait_start"):  # a tokenizer is made
                return self._counted(self._load_ahead(folder, executor, spans, attempts))

        try:
            work = Work(spans, load)
            with closing(
                executor.process(folder, self.budget, work, self.monitor, attempts)
            ) as done:
                for committed in done:
                    self.new_rows += committed.new_rows
                    self.new_tokens += committed.new_tokens
                    self.duplicate_rows += committed.duplicate_rows
                    self.cached_rows += committed.cached_rows
                    self.monitor.num_devices = executor.num_devices
                    self.monitor.committed(committed.shard)
                    yield committed.shard
                self.seconds = before + time.monotonic() - began
                self.stages += watch.seconds + executor.stages
        except DeviceLostError as error:
            is_suspicious = True
            raise DeviceLostError(
                f"{error}; `batchinfer resume` goes on, and finds out whether a row is the cause"
            ) from error
        except LoaderKilledError:
            is_suspicious = True
            raise
        finally:
            if not is_suspicious and not executor.has_suspects:
                folder.attempts.clear()  # also those of loader processes, which are gone by now
            self.monitor.end()

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

    def _begin(
        self,
        folder: RunFolder,
        executor: Executor,
        spans: Sequence[Span],
        rows_done: int,
        expected: int,
    ) -> None:
        plan = self.plan
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
        if plan.config.cache is not None and self.task.obstacle_to_caching:
            log.info(f"--cache is not used: {self.task.obstacle_to_caching}")
        self.monitor.num_devices = executor.num_devices
        self.monitor.begin(rows_done=rows_done, rows_expected=expected)
        self.monitor.open(
            facts_of(
                plan,
                self.budget,
                device=self._device_text(executor),
                num_devices=executor.num_devices,
                threads=executor.threads,
            )
        )

    def _load_ahead(
        self, folder: RunFolder, executor: Executor, spans: Sequence[Span], attempts: Attempts
    ) -> Generator[LoadedChunk]:
        """Read, tokenize and batch: in this process, or in others that run ahead of the device."""
        plan, encoder = self.plan, executor.encoder
        if encoder is not None:
            workers = 0
        else:
            encoder = create_encoder(plan.config, plan.model, self.model_folder)
            workers = self.num_workers(spans)
        self.workers = workers
        loader = Loader(
            self.task,
            encoder,
            self.budget,
            plan.chunk_rows,
            plan.read_options,
            attempts,
            folder.index_of(plan),
            self.task.shares_answers,
            AnswerCache.of(plan.config, self.task),
        )

        def stopped() -> bool:
            return self.stop.is_set

        log.debug(f"{workers or 'no'} processes read and tokenize ahead")
        if workers == 0:
            return loader.stream(spans, stopped)
        from batchinfer.dataloader import stream_from_workers

        return stream_from_workers(
            loader,
            spans,
            stopped,
            workers=workers,
            pin_memory=executor.pins_memory,
            chunk_bytes=int(plan.row_bytes * plan.chunk_rows),
        )

    def _counted(self, chunks: Generator[LoadedChunk]) -> Generator[LoadedChunk]:
        with closing(chunks):
            for loaded in chunks:
                self.new_batches += sum(len(batch) > 0 for batch in loaded.batches)
                yield loaded

    @property
    def effort(self) -> Effort:
        """What this worker did so far."""
        return Effort(
            new_rows=self.new_rows,
            new_tokens=self.new_tokens,
            duplicate_rows=self.duplicate_rows,
            cached_rows=self.cached_rows,
            seconds=self.seconds,
            load_seconds=self.load_seconds,
            device="" if self.executor is None else self._device_text(self.executor),
            max_batch_tokens=self.budget.max_batch_tokens,
            workers=self.workers,
            stages=self.stages,
            splits=self.monitor.splits,
            padding=self.monitor.padding,
            peak_device_memory_bytes=self.monitor.peak_device_memory,
            peak_memory_bytes=self.monitor.peak_memory,
            new_batches=self.new_batches,
        )

    @staticmethod
    def _device_text(executor: Executor) -> str:
        count = executor.num_devices
        return executor.device_kind if count == 1 else f"{count} × {executor.device_kind}"

    @property
    def has_suspects(self) -> bool:
        """Whether chunks were left out, at which a device's process died."""
        return self.executor is not None and self.executor.has_suspects

    def close(self) -> None:
        """Give the devices back."""
        if self.executor is not None:
            self.executor.close()
            self.executor = None

    def choose_budget(self, executor: Executor, folder: RunFolder) -> BatchBudget:
        """What the user set; for the rest, what this kind of device began the job with.

        The first time, that is what a profile says; without one, what a few probes find.
        """
        config, settings = self.plan.config, self._settings
        usual = settings.budget(executor.default_budget)
        if config.max_batch_tokens is None or config.max_batch_rows is None:
            frozen = folder.frozen_budget(executor.device_kind)
            if frozen is None:
                is_open = (config.max_batch_tokens or settings.max_batch_tokens) is None
                if is_open and self.may_probe:
                    started = time.monotonic()
                    usual = executor.probe()
                    self.load_seconds += time.monotonic() - started
                frozen = folder.freeze_budget(executor.device_kind, usual)
            usual = frozen
        return usual.override(config.max_batch_tokens, config.max_batch_rows)

    def num_workers(self, spans: Sequence[Span]) -> int:
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
