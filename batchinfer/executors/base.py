"""What an executor is, and what it needs to know."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from batchinfer.attempts import Attempts
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget, LoadedChunk, Shard, Span
from batchinfer.machine import usable_cores
from batchinfer.plan import Plan
from batchinfer.reporting.progress import Progress
from batchinfer.stages import StageSeconds
from batchinfer.tasks import create_task
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder
from batchinfer.writers.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be answered, by which model, and how it is loaded. It pickles.

    `config`: the plan's, filled in by its profile, on one device. `ceiling_tokens`: batches above are
    split, as memory is known not to suffice for them.
    """

    plan: Plan
    config: RunConfig
    model_folder: Path | None
    ceiling_tokens: int | None = None

    def create_task(self) -> Task:
        return create_task(self.plan.model, self.plan.config, self.plan.input_schema)

    def on(self, device: str, count: int) -> Job:
        """The same on one of so many devices; processes on one CPU share its cores."""
        config = self.config.model_copy(update={"device": device, "devices": None})
        job = dataclasses.replace(self, config=config)
        if device == "cpu" and count > 1:
            return job.with_threads(max(1, usable_cores() // count))
        return job

    def with_threads(self, threads: int) -> Job:
        """The same by so many threads of a CPU, where the user names no number."""
        if self.plan.config.threads is not None:
            return self
        # A profile's threads and streams are those of one process alone.
        changes: dict[str, object] = {"threads": threads}
        if self.config.batch_timeout is None:
            changes["streams"] = self.plan.config.streams
        return dataclasses.replace(self, config=self.config.model_copy(update=changes))


@dataclass(frozen=True)
class Work:
    """The spans of input that are to be answered.

    `load` reads, tokenizes and batches their chunks, here or ahead in other processes. An executor whose
    devices are elsewhere hands out the spans, and has them loaded there.
    """

    spans: Sequence[Span]
    load: Callable[[], Generator[LoadedChunk]]


class Committed(NamedTuple):
    """A durable shard, and what of it was answered now: not what an earlier run had in a journal.

    `new_tokens` went through the model. Of `new_rows`, those are counted too that it was not asked for.
    """

    shard: Shard
    new_rows: int
    new_tokens: int
    duplicate_rows: int = 0
    cached_rows: int = 0


class Executor(ABC):
    """Answers chunks and commits their shards.

    `dtype` is the precision that the model runs in. `device_kind`: "cpu", or the name of the accelerator;
    on the same kind, runs share a batch budget. `default_budget`: what it takes where nobody names one.
    """

    dtype: str
    device_kind: str
    default_budget: BatchBudget
    num_devices: int = 1
    #: Of a CPU, that each model computes with; None: nobody knows.
    threads: int | None = None
    #: Whether batches should arrive in page-locked memory.
    pins_memory: bool = False
    #: What tokenizes, where that must happen elsewhere too; None: whoever loads.
    encoder: Encoder | None = None
    #: Whether a chunk was left out as it may have killed a process: its mark stands.
    has_suspects: bool = False
    #: Where the time of the last `process` went.
    stages: StageSeconds = StageSeconds()

    @abstractmethod
    def vouch(self) -> None:
        """Say that this model has answered rows of the job before."""

    @abstractmethod
    def probe(self) -> BatchBudget:
        """The batch budget that a few probes find; the default where they cannot pay."""

    @abstractmethod
    def process(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        work: Work,
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        """Yield each chunk's shard once it is durable, up to a stop.

        `attempts`: where chunks are marked while they are under way. Raises DeviceLostError, ModelError
        where no row can be answered, and what writing raises.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the devices back."""
