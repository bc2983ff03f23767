"""A run in figures, shown as it goes on to whoever looks: a terminal, a log, files.

    worker ─(Progress: each batch)─▶ Monitor ─(Snapshot: each so many seconds)─▶ displays

The displays are called by a thread of the monitor's own: one line says that nothing happens, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from batchinfer.core import Shard
from batchinfer.errors import BatchInferError, Interrupted, one_line
from batchinfer.reporting.progress import Measured, Progress, Rates, Silent
from batchinfer.reporting.snapshot import Outcome, Snapshot, Waiting
from batchinfer.stages import StageSeconds

log = logging.getLogger("batchinfer")

#: What "recent" means at least, and how far back the time that is left is told from, in seconds.
RECENT_SECONDS, WINDOW_SECONDS = 10.0, 300.0


class Display:
    """Shows a run. A subclass says how; `every` so many seconds at most."""

    every: float = 1.0

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        """Work begins. `about`: what runs on what, as in the `begin` line of an events file."""

    def show(self, now: Snapshot) -> None:
        """It goes on."""

    def committed(self, shard: Shard) -> None:
        """A shard is durable."""

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        """It is over; also called of a run that had nothing to do, and so never began."""


class Monitor(Rates):
    """Counts, and shows what it counted to displays; tells `listener` of each batch as well.

    As a context manager, it shows an error as the end of the run.
    """

    def __init__(
        self,
        displays: Iterable[Display] = (),
        listener: Progress | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        tokens_ahead: int = 0,
    ) -> None:
        super().__init__(clock, tokens_ahead)
        self.displays = list(displays)
        self.num_devices = 1
        #: The most bytes that all devices were seen to hold together: 0 on a CPU.
        self.peak_device_memory = self._peak_memory = 0
        #: What the displays' `begin` is told besides.
        self.facts: dict[str, Any] = {}
        self._listener = listener or Silent()
        self._samples: deque[_Sample] = deque([_Sample.of(self)])
        self._failed: list[Display] = []
        self._has_ended = threading.Event()
        self._thread: threading.Thread | None = None
        #: Displays are called by two threads: the one that ticks and the one that works.
        self._lock = threading.RLock()
        self._due: dict[Display, float] = {}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Interrupted):
            report = None if error.report is None else error.report.to_dict()
            self.close(Outcome("stopped", error.exit_code, str(error), report))
        elif isinstance(error, BatchInferError):
            self.close(Outcome("failed", error.exit_code, str(error)))
        elif error is not None:
            self.close(Outcome("failed", 1, one_line(error)))
        else:
            self.close(Outcome("finished", 0))

    # -- told by the work ------------------------------------------------------------------------

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        super().begin(rows_done=rows_done, rows_expected=rows_expected)
        self._listener.begin(rows_done=rows_done, rows_expected=rows_expected)

    def loaded(self, num_rows: int, num_tokens: int) -> None:
        super().loaded(num_rows, num_tokens)
        self._listener.loaded(num_rows, num_tokens)

    def recalled(self, num_rows: int) -> None:
        super().recalled(num_rows)
        self._listener.recalled(num_rows)

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        self._listener.answered(num_rows, num_tokens)

    def failed(self, num_errors: int) -> None:
        super().failed(num_errors)
        self._listener.failed(num_errors)

    def measured(self, said: Measured) -> None:
        super().measured(said)
        self.peak_device_memory = max(self.peak_device_memory, self._device_memory or 0)
        self._listener.measured(said)

    def end(self) -> None:
        self._listener.end()

    # -- shown -----------------------------------------------------------------------------------

    def open(self, about: Mapping[str, Any]) -> None:
        """Show that work begins, and from here on how far it is; a second time changes nothing."""
        if self._thread is not None:
            return
        self._samples = deque([_Sample.of(self)])
        about = {**self.facts, **about}
        self._show_all(lambda display: display.begin(about, self.snapshot()))
        now = self.clock()
        self._due = {display: now + display.every for display in self.displays}
        self._thread = threading.Thread(target=self._tick, daemon=True, name="monitor")
        self._thread.start()

    def committed(self, shard: Shard) -> None:
        """Show a durable shard."""
        self._show_all(lambda display: display.committed(shard))

    def close(self, outcome: Outcome) -> None:
        """Show how it ended; a second time changes nothing."""
        if self._has_ended.is_set():
            return
        self._has_ended.set()
        self._samples.append(_Sample.of(self))
        self._show_all(lambda display: display.end(self.snapshot(), outcome))
        for display in self._failed:  # what it can still put right, it should
            with suppress(Exception):
                display.end(self.snapshot(), outcome)

    def show_due(self) -> None:
        """Show the figures to those displays whose time has come."""
        now = self.clock()
        if now >= self._samples[-1].at + 1.0:
            self._samples.append(_Sample.of(self))
            while len(self._samples) > 2 and self._samples[1].at <= now - WINDOW_SECONDS:
                self._samples.popleft()
        due = [display for display in self.displays if now >= self._due.get(display, now)]
        for display in due:
            self._show(display, self._show_now)
            self._due[display] = now + display.every

    def _show_now(self, display: Display) -> None:
        if not self._has_ended.is_set():  # meanwhile: nothing comes behind the end
            display.show(self.snapshot(display.every))

    def snapshot(self, every: float = 0.0) -> Snapshot:
        """The figures as they are; `every`: recent is what happened in so many seconds, or in ten."""
        now = _Sample.of(self)
        recent = now.since(self._sample_before(now.at - max(every, RECENT_SECONDS)))
        window = now.since(self._samples[0])
        left, seconds = self.work_left, self.seconds
        rate = window.work / window.at if window.at > 0 else 0.0
        in_use = self._device_memory
        total = sum(memory.available for memory in list(self.device_memory.values()))
        return Snapshot(
            seconds=round(seconds, 3),
            rows=self.num_rows,
            tokens=self.num_tokens,
            errors=self.num_errors,
            rows_done=self.rows_done,
            rows_expected=self.total,
            rows_per_second=round(self.num_rows / seconds, 1) if seconds else 0.0,
            tokens_per_second=round(self.num_tokens / seconds, 1) if seconds else 0.0,
            recent_rows_per_second=recent.per_second(recent.rows),
            recent_tokens_per_second=recent.per_second(recent.tokens),
            seconds_left=round(left / rate, 1) if left is not None and rate > 0 else None,
            splits=self.splits,
            padding=None if self.padding is None else round(self.padding, 4),
            device_memory_bytes=in_use,
            device_memory_total_bytes=None if in_use is None else total,
            memory_bytes=self._look_at_memory(),
            waiting=recent.waiting(self.num_devices),
        )

    @property
    def _device_memory(self) -> int | None:
        devices = list(self.device_memory.values())
        return sum(memory.peak for memory in devices) if devices else None

    @property
    def peak_memory(self) -> int:
        """The most bytes that this process was seen to have in memory."""
        self._look_at_memory()
        return self._peak_memory

    def _look_at_memory(self) -> int:
        resident = resident_bytes()
        self._peak_memory = max(self._peak_memory, resident)
        return resident

    def _sample_before(self, moment: float) -> _Sample:
        """The last sample from before a moment, or the first that is kept."""
        before = [sample for sample in list(self._samples) if sample.at <= moment]
        return before[-1] if before else self._samples[0]

    def _tick(self) -> None:
        every = min((display.every for display in self.displays), default=1.0)
        while not self._has_ended.wait(every):
            self.show_due()

    def _show_all(self, call: Callable[[Display], None]) -> None:
        for display in list(self.displays):
            self._show(display, call)

    def _show(self, display: Display, call: Callable[[Display], None]) -> None:
        """Call a display; one that fails is not asked again. What is shown must never end a run."""
        with self._lock:
            if display not in self.displays:
                return
            try:
                call(display)
            except Exception as error:
                self.displays.remove(display)
                self._failed.append(display)
                log.warning(f"{type(display).__name__}: nothing more is shown there: {error}")


@dataclass(frozen=True, slots=True)
class _Sample:
    """What was counted at a moment, or between two."""

    at: float
    rows: int
    tokens: int
    work: int
    stages: StageSeconds

    @classmethod
    def of(cls, rates: Rates) -> _Sample:
        return cls(rates.clock(), rates.num_rows, rates.num_tokens, rates.work, rates.stages)

    def since(self, before: _Sample) -> _Sample:
        return _Sample(
            self.at - before.at,
            self.rows - before.rows,
            self.tokens - before.tokens,
            self.work - before.work,
            self.stages - before.stages,
        )

    def per_second(self, count: int) -> float:
        return round(count / self.at, 1) if self.at > 0 else 0.0

    def waiting(self, num_devices: int) -> Waiting | None:
        """Where the time between two samples went; None where no device has said."""
        stages = self.stages
        if self.at <= 0 or stages == StageSeconds():
            return None

        def share(seconds: float) -> float:
            return round(min(1.0, max(0.0, seconds / self.at / num_devices)), 3)

        return Waiting(
            input=share(stages.wait_start + stages.wait_input),
            writer=share(stages.wait_writer),
            device=share(stages.on_device),
            reads=stages.read > stages.tokenize,
        )


def resident_bytes() -> int:
    """The memory that this process has in use."""
    import psutil

    return int(psutil.Process().memory_info().rss)
