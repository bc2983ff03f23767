"""What a run tells of itself while it goes on, and the counting of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from batchinfer.machine import MemoryUse
from batchinfer.stages import StageSeconds


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device was at since it said so last: seconds by stage, and batches halved for want of memory.

    `device`: a name that tells it from others of the run. `tokens`: useful ones, and `computed_tokens`
    those that they were among, with padding; both of engines that know. `memory`: None where nobody knows.
    """

    device: str
    stages: StageSeconds
    splits: int
    memory: MemoryUse | None
    tokens: int = 0
    computed_tokens: int = 0


class Progress(Protocol):
    """Told of a run as it goes on, from the thread that drives the device.

    `begin` comes when it is known what is left to do; where part of that is answered in a process of its
    own, once for each of the two. `loaded` comes for each chunk that goes to the device, `recalled` for
    rows of it that an earlier run had answered, `answered` for each batch, `failed` for rows that have an
    error, `measured` a few times a second and `end` where the work ends, however it does.
    """

    def begin(self, *, rows_done: int, rows_expected: int) -> None: ...
    def loaded(self, num_rows: int, num_tokens: int) -> None: ...
    def recalled(self, num_rows: int) -> None: ...
    def answered(self, num_rows: int, num_tokens: int) -> None: ...
    def failed(self, num_errors: int) -> None: ...
    def measured(self, said: Measured) -> None: ...
    def end(self) -> None: ...


class Silent:
    """Takes no notice."""

    def begin(self, *, rows_done: int, rows_expected: int) -> None: ...
    def loaded(self, num_rows: int, num_tokens: int) -> None: ...
    def recalled(self, num_rows: int) -> None: ...
    def answered(self, num_rows: int, num_tokens: int) -> None: ...
    def failed(self, num_errors: int) -> None: ...
    def measured(self, said: Measured) -> None: ...
    def end(self) -> None: ...


class Rates:
    """Counts what was answered since the run began, and what that is a second.

    `tokens_ahead`: tokens that an answer may be long, of a task that writes. They count as work, which is
    what the time that is left is told from: rows come longest first, so that the first half of them takes
    more than half of the time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, tokens_ahead: int = 0) -> None:
        self.clock = clock
        self.tokens_ahead = tokens_ahead
        self.rows_done = self.rows_expected = 0
        self.num_rows = self.num_tokens = self.num_errors = self.num_recalled = 0
        #: Of chunks that went to the device; rows whose answers were recalled are not among them.
        self.loaded_rows = 0
        self.loaded_work = self.work = 0
        #: Batches that were halved for want of memory.
        self.splits = 0
        #: Tokens that went through the model where it is known how many were padding, and with padding.
        self.useful_tokens = self.computed_tokens = 0
        #: By device, as it was told last.
        self.device_memory: dict[str, MemoryUse] = {}
        self.stages = StageSeconds()
        self.started: float | None = None

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        self.rows_done, self.rows_expected = rows_done - self.num_rows, rows_expected
        if self.started is None:
            self.started = self.clock()

    def loaded(self, num_rows: int, num_tokens: int) -> None:
        """Count a chunk that goes to the device."""
        self.loaded_rows += num_rows
        self.loaded_work += self._work_of(num_rows, num_tokens)

    def recalled(self, num_rows: int) -> None:
        """Count rows that an earlier run had answered as done before this one began."""
        self.rows_done += num_rows
        self.num_recalled += num_rows

    def answered(self, num_rows: int, num_tokens: int) -> None:
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.work += self._work_of(num_rows, num_tokens)

    def failed(self, num_errors: int) -> None:
        self.num_errors += num_errors

    def measured(self, said: Measured) -> None:
        self.stages += said.stages
        self.splits += said.splits
        self.useful_tokens += said.tokens
        self.computed_tokens += said.computed_tokens
        if said.memory is not None:
            self.device_memory[said.device] = said.memory

    def end(self) -> None:
        """Nothing to take down: this one only counts."""

    def _work_of(self, num_rows: int, num_tokens: int) -> int:
        if not num_tokens:  # rows that the model was not asked about
            return 0
        return num_tokens + num_rows * self.tokens_ahead

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def total(self) -> int:
        """Rows expected in all; never fewer than there are."""
        return max(self.rows_expected, self.rows_done + self.num_rows)

    @property
    def work_left(self) -> float | None:
        """Of all rows that have no answer; None before the first chunk is there.

        What was loaded is known; of the rest it is taken that rows are as long as those so far.
        """
        if not self.loaded_rows:
            return None
        unseen = max(0, self.total - self.rows_done - self.loaded_rows)
        return max(0, self.loaded_work - self.work) + unseen * self.loaded_work / self.loaded_rows

    @property
    def padding(self) -> float | None:
        """The share of the tokens that were computed that is padding; None where nobody knows."""
        if not self.computed_tokens:
            return None
        return 1 - self.useful_tokens / self.computed_tokens

    @property
    def rows_per_second(self) -> float:
        return self.num_rows / max(1e-9, self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(1e-9, self.seconds)


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
