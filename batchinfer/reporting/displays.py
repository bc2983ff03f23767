"""What people see of a run while it goes on: a bar in a terminal or a notebook, or lines in a log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from batchinfer.reporting.monitor import Display
from batchinfer.reporting.progress import duration
from batchinfer.reporting.snapshot import Outcome, Snapshot, memory_text

log = logging.getLogger("batchinfer")

LOG_SECONDS = 30.0


class LogLines(Display):
    """A line in the log every 30 s, also where nothing happens."""

    every = LOG_SECONDS

    def show(self, now: Snapshot) -> None:
        log.info(now.to_line())


class Bar(Display):
    """A bar on a terminal's stderr, with a line of figures below it."""

    every = 0.25

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.fields[rows]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._figures = Text(style="dim", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bar, self._figures), console=console, transient=True)
        self._task: Any = None

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        with suppress(OSError):
            self._live.start()
        self._task = self._bar.add_task("", total=now.rows_expected, rows="loading", left="")
        self.show(now)

    def show(self, now: Snapshot) -> None:
        left = "" if now.seconds_left is None else f"about {duration(now.seconds_left)} left"
        with suppress(OSError):  # a terminal that was closed shows nothing more
            self._bar.update(
                self._task,
                completed=now.rows_done + now.rows,
                total=now.rows_expected,
                rows=f"{now.rows_done + now.rows:,} of ~{now.rows_expected:,} rows",
                left=left,
            )
            self._figures.plain = figures(now)

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        with suppress(OSError):
            self._live.stop()


def figures(now: Snapshot) -> str:
    """Speed, and what all else waits for, in one line."""
    parts = [
        f"{now.recent_tokens_per_second:,.0f} tokens/s",
        f"{now.recent_rows_per_second:,.0f} rows/s",
    ]
    if now.errors:
        parts.append(f"{now.errors:,} errors")
    if now.splits:
        parts.append(f"{now.splits:,} batches halved for want of memory")
    if now.waiting is not None:
        parts.append(f"device busy {100 * now.waiting.device:.0f} %")
        if now.waiting.what != "device":
            parts.append(f"waits for the {now.waiting.what}")
    if now.device_memory_bytes is not None:
        held = memory_text(now.device_memory_bytes, now.device_memory_total_bytes)
        parts.append(f"{held} on the device")
    parts.append(f"{now.memory_bytes / 1e9:.1f} GB in memory")
    return " · ".join(parts)


class Notebook(Display):
    """A tqdm bar, for Python and notebooks; nothing where nobody looks."""

    every = 0.5

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        from tqdm.auto import tqdm

        # disable=None: no bar where stderr is neither a terminal nor a notebook's
        done = now.rows_done + now.rows
        self._bar = tqdm(total=now.rows_expected, initial=done, unit="row", disable=None)

    def show(self, now: Snapshot) -> None:
        self._bar.total = now.rows_expected
        self._bar.update(now.rows_done + now.rows - self._bar.n)
        self._bar.set_postfix_str(
            f"{now.recent_tokens_per_second:,.0f} tokens/s, {now.errors:,} errors"
        )

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        if hasattr(self, "_bar"):
            self.show(now)
            self._bar.close()
