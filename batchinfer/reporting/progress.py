"""What a run says while it runs: a bar in a terminal, a line every 30 s in a log, or nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

log = logging.getLogger("batchinfer")

LOG_SECONDS = 30.0


class Progress(Protocol):
    """Told of a run as it goes on. `begin` comes once, when it is known what is left to do."""

    def begin(self, *, rows_done: int, rows_expected: int) -> None: ...
    def recalled(self, num_rows: int) -> None: ...
    def answered(self, num_rows: int, num_tokens: int) -> None: ...
    def failed(self, num_errors: int) -> None: ...
    def end(self) -> None: ...


class Silent:
    """Says nothing."""

    def begin(self, *, rows_done: int, rows_expected: int) -> None: ...
    def recalled(self, num_rows: int) -> None: ...
    def answered(self, num_rows: int, num_tokens: int) -> None: ...
    def failed(self, num_errors: int) -> None: ...
    def end(self) -> None: ...


class Rates:
    """Counts what was answered since the run began, and what that is a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.rows_done = self.rows_expected = 0
        self.num_rows = self.num_tokens = self.num_errors = 0
        self.started = clock()

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        self.rows_done, self.rows_expected = rows_done, rows_expected
        self.started = self.clock()

    def recalled(self, num_rows: int) -> None:
        """Count rows that an earlier run had answered as done before this one began."""
        self.rows_done += num_rows

    def answered(self, num_rows: int, num_tokens: int) -> None:
        self.num_rows += num_rows
        self.num_tokens += num_tokens

    def failed(self, num_errors: int) -> None:
        self.num_errors += num_errors

    def end(self) -> None:
        """Nothing to take down: this one only counts."""

    @property
    def total(self) -> int:
        """Rows expected in all; never fewer than there are."""
        return max(self.rows_expected, self.rows_done + self.num_rows)

    @property
    def rows_per_second(self) -> float:
        return self.num_rows / max(1e-9, self.clock() - self.started)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(1e-9, self.clock() - self.started)

    @property
    def seconds_left(self) -> float | None:
        if not self.num_rows:
            return None
        return (self.total - self.rows_done - self.num_rows) / self.rows_per_second

    def line(self) -> str:
        """One line for a log."""
        done = self.rows_done + self.num_rows
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return (
            f"{done:,} of ~{self.total:,} rows, {self.rows_per_second:,.0f} rows/s, "
            f"{self.tokens_per_second:,.0f} tokens/s, {self.num_errors:,} errors{left}"
        )


class LogProgress(Rates):
    """A line in the log every 30 s."""

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        super().begin(rows_done=rows_done, rows_expected=rows_expected)
        self._next = self.started + LOG_SECONDS

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        if self.clock() >= self._next:
            self._next = self.clock() + LOG_SECONDS
            log.info(self.line())


class BarProgress(Rates):
    """A bar on a terminal's stderr."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = None

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        super().begin(rows_done=rows_done, rows_expected=rows_expected)
        self._bar.start()
        self._task = self._bar.add_task(
            "loading", total=self.total, completed=rows_done, figures=""
        )

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        with suppress(OSError):  # a terminal that was closed shows nothing more
            self._bar.update(
                self._task,
                description="answering",
                completed=self.rows_done + self.num_rows,
                total=self.total,
                figures=self.line(),
            )

    def end(self) -> None:
        with suppress(OSError):
            self._bar.stop()


class TqdmProgress(Rates):
    """A bar for Python and notebooks."""

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        super().begin(rows_done=rows_done, rows_expected=rows_expected)
        from tqdm.auto import tqdm

        # disable=None: no bar where nobody looks (stderr is not a terminal and no notebook)
        self._bar = tqdm(total=rows_expected, initial=rows_done, unit="row", disable=None)

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        self._bar.update(num_rows)

    def end(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
