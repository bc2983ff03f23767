"""What an engine is: batches in, answers out, in any order and across chunk boundaries."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np

from batchinfer.core import Answers, Batch, BatchBudget
from batchinfer.engines.streams import Landed, Streams, timed
from batchinfer.errors import ModelError, one_line
from batchinfer.machine import MemoryUse
from batchinfer.stages import Stopwatch
from batchinfer.stop import never
from batchinfer.tasks.base import Task

log = logging.getLogger("batchinfer")

#: So many requests that fail alone, with none answered before, and the run stops.
HOPELESS = 8
#: After a batch did not fit into memory, batches stay below this share of it.
CEILING_SHARE = 0.8


class DeviceLostError(ModelError):
    """The device no longer answers, perhaps because of a row; a new process may have it back."""


class StoppedError(Exception):
    """The run was told to stop while a batch was under way, which is dropped."""


class Engine(ABC):
    """Answers batches on one device."""

    #: "cpu", or the name of the accelerator: runs on the same kind share a batch budget.
    device_kind: str
    #: The precision in which the model runs.
    dtype: str
    #: The batch budget where neither the user nor the run folder names one.
    default_budget: BatchBudget
    #: Of a CPU, that the model computes with; None: the engine does not say.
    threads: int | None = None

    def __init__(self, task: Task) -> None:
        self.task = task
        #: Of the thread that drives the device. A call of `answer` counts as forward.
        self.watch = Stopwatch()
        #: Asked by what answers a batch step by step: whether to drop it, and end `stream`.
        self.stopped: Callable[[], bool] = never
        self._streams: Streams | None = None
        self._has_answered = False
        self._failed_alone = 0
        self._ceiling: int | None = None
        #: How often a batch was halved for want of memory.
        self.splits = 0

    @abstractmethod
    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise whatever the model raises."""

    @property
    def streams(self) -> int:
        """Batches that are answered at a time."""
        return 1 if self._streams is None else self._streams.count

    def open_streams(self, count: int, begin: Callable[[], None]) -> None:
        """Have so many batches answered at a time from here on, `answer` being called by as many threads.

        Each of them begins with `begin`.
        """
        if count > 1:
            self._streams = Streams(count, begin)

    @property
    def pins_memory(self) -> bool:
        """Whether batches should arrive in page-locked memory."""
        return False

    def stream(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Answers]]:
        """Answer every request of every batch, up to a stop.

        A batch that fails is halved, down to the request that fails alone; that one comes back with
        `Answers.error`, the others are untouched. Raises DeviceLostError, or ModelError where the first
        so many requests all fail alone: then it is the model that is wrong, not the rows.
        """
        try:
            if self._streams is not None:
                yield from self._side_by_side(batches, self._streams)
                return
            for batch in batches:
                yield from self.answer_or_halve(batch)
        except StoppedError:
            return

    def _side_by_side(
        self, batches: Iterable[Batch], streams: Streams
    ) -> Generator[tuple[Batch, Answers]]:
        """Answer batches in streams, in their order."""
        flying: deque[_Flying] = deque()
        try:
            for batch in batches:
                for part in self.split(batch):
                    landing = streams.start(self.answer, part) if len(part) else None
                    flying.append(_Flying(part, landing, streams.room))
                    while len(flying) >= streams.room:
                        yield from self._collect(flying, streams)
            while flying:
                yield from self._collect(flying, streams)
        finally:
            for other in flying:
                if other.landing is not None:
                    other.landing.cancel()

    def _collect(self, flying: deque[_Flying], streams: Streams) -> Iterator[tuple[Batch, Answers]]:
        """Wait for the batch that was begun first. One that fails is answered again, alone."""
        first = flying.popleft()
        batch = first.batch
        if first.landing is None:
            yield batch, self.no_answers()
            return
        landed = first.landing.result()
        self.watch.add(landed.seconds)
        if landed.answers is not None:
            self._has_answered = True
            yield batch, landed.answers
            return
        assert landed.error is not None
        if self.is_fatal(landed.error):
            raise self.lost(landed.error) from landed.error
        wait([other.landing for other in flying if other.landing is not None])
        ceiling = self._ceiling
        yield from self.answer_or_halve(batch)
        fits_alone = self.is_out_of_memory(landed.error) and self._ceiling == ceiling
        if fits_alone and first.room == streams.room:  # else that was learned from another one
            streams.make_room()
            log.warning(
                f"{self.device_kind}: out of memory with several batches at a time; fewer from here on"
            )

    def split(self, batch: Batch) -> Iterator[Batch]:
        """A batch in as few parts as memory is known to need."""
        pending = [batch]
        while pending:
            part = pending.pop()
            if self.is_too_large(part):
                pending += reversed(part.halves())
            else:
                yield part

    def answer_or_halve(self, batch: Batch) -> Iterator[tuple[Batch, Answers]]:
        """Answer a batch in as few parts as it takes."""
        pending = [batch]
        while pending:
            part = pending.pop()
            if not len(part):
                yield part, self.no_answers()
                continue
            if self.is_too_large(part):
                pending += reversed(part.halves())
                continue
            landed = self._answer_alone(part)
            self.watch.add(landed.seconds)
            if landed.answers is not None:
                self._has_answered = True
                yield part, landed.answers
                continue
            error = landed.error  # whatever the model raises is the fault of some row
            assert error is not None
            if isinstance(error, StoppedError):
                raise error
            if self.is_fatal(error):
                raise self.lost(error) from error
            if len(part) == 1:
                failure = reason(error)
                self._failed_alone += 1
                if self._failed_alone >= HOPELESS and not self._has_answered:
                    raise ModelError(
                        f"{self.task.spec.name} fails on every row that it was given: {failure}"
                    )
                yield part, Answers({}, error=failure)
            else:
                self.recover()
                if self.is_out_of_memory(error):
                    self._lower_ceiling(part)
                pending += reversed(part.halves())

    def _answer_alone(self, batch: Batch) -> Landed:
        """Answer a batch with as many threads as in any run: the last bits depend on them."""
        if self._streams is None:
            return timed(self.answer, batch)
        return self._streams.start(self.answer, batch).result()

    def no_answers(self) -> Answers:
        """The answers of a batch without requests."""
        return Answers(
            {name: np.zeros((0, *f.shape), dtype=f.dtype) for name, f in self.task.answers.items()}
        )

    def is_fatal(self, error: Exception) -> bool:
        """Whether an error means that the device is lost, rather than that a batch was bad."""
        return False

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error means that the batch was too large for the device's memory."""
        return isinstance(error, MemoryError)

    def is_too_large(self, batch: Batch) -> bool:
        """Whether a batch is above what this device was seen to have memory for; one row never is."""
        return self._ceiling is not None and len(batch) > 1 and self._size(batch) > self._ceiling

    @property
    def ceiling_tokens(self) -> int | None:
        """The size above which batches are split, as a budget counts it; None: memory has sufficed."""
        return self._ceiling

    def stay_below(self, tokens: int) -> None:
        """Split larger batches from the start: memory is known not to suffice for them."""
        self._ceiling = tokens

    def memory_use(self) -> MemoryUse | None:
        """What the device's memory was used for since this was asked last; None where nobody knows."""
        return None

    def tokens_computed(self, batch: Batch) -> int | None:
        """The tokens that the model computes for a batch, padding and all; None where nobody knows.

        Of one that writes, those of the prompts.
        """
        return batch.num_tokens

    def _lower_ceiling(self, batch: Batch) -> None:
        """Remember that a batch of this size ran out of memory."""
        self._ceiling = int(self._size(batch) * CEILING_SHARE)
        self.splits += 1
        more = self.task.tokens_ahead
        ahead = f" and up to {more:,} more" if more else ""
        log.warning(
            f"{self.device_kind}: out of memory with {len(batch):,} rows of {batch.max_length:,} tokens"
            f"{ahead}; batches of more than {self._ceiling:,} tokens are split from here on"
        )

    def _size(self, batch: Batch) -> int:
        """What the budget counts: rows times the longest one's tokens, with those that it may grow by."""
        return len(batch) * (batch.max_length + self.task.tokens_ahead)

    def lost(self, error: Exception) -> DeviceLostError:
        """The error to stop with where `is_fatal`."""
        return DeviceLostError(f"{self.device_kind} failed: {reason(error)}")

    def vouch(self) -> None:
        """Say that this model has answered before, in another process: it is not the model."""
        self._has_answered = True

    def recover(self) -> None:  # noqa: B027 - most engines have nothing to free
        """Free what a failed batch left behind on the device."""

    def close(self) -> None:
        """Give the device back."""
        if self._streams is not None:
            self._streams.close()
            self._streams = None


@dataclass(frozen=True, slots=True)
class _Flying:
    """A batch that a stream has, but for an empty one; `room`: of the streams when it was begun."""

    batch: Batch
    landing: Future[Landed] | None
    room: int


def reason(error: BaseException) -> str:
    """One line that says what an exception says."""
    kind, says = type(error).__name__, one_line(error)
    return kind if says == kind else f"{kind}: {says}"[:300]
