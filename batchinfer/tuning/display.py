"""What a tune shows while it runs: a live table in a terminal, lines in a log, or nothing."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from batchinfer.profiles import Trial
from batchinfer.tuning.result import TABLE_HEAD, row_of

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("batchinfer")


class SilentTable:
    """Shows nothing."""

    def trying(self, what: str) -> None: ...
    def tried(self, trial: Trial) -> None: ...
    def close(self) -> None: ...


class LogTable:
    """A line in the log for each setting."""

    def trying(self, what: str) -> None:
        log.debug(f"trying {what}")

    def tried(self, trial: Trial) -> None:
        setting, rate, latency, spread, agreement, verdict = row_of(trial)
        line = setting
        if rate:
            line += f": {rate} tokens/s, {latency} a batch, spread {spread}"
        if agreement:
            line += f", agreement {agreement}"
        log.info(line + (f"; {verdict}" if verdict else ""))

    def close(self) -> None:
        """Nothing to take down."""


def _log_above(console: Console) -> list[tuple[logging.StreamHandler[Any], Any]]:
    """Let what is logged go above what the console keeps at its end; the handlers' streams before."""
    from rich.file_proxy import FileProxy

    before = []
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            stream = handler.setStream(FileProxy(console, handler.stream))
            before.append((handler, stream))
    return before


class LiveTable:
    """A table on a terminal's stderr that grows with each setting."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._trials: list[Trial] = []
        self._now = "reading a sample of the input"
        console = Console(stderr=True)
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4)
        self._live.start()
        self._streams = _log_above(console)

    def trying(self, what: str) -> None:
        self._now = what
        self._refresh()

    def tried(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._now = ""
        self._refresh()

    def close(self) -> None:
        """Leave the table as it is."""
        self._now = ""
        for handler, stream in self._streams:
            handler.setStream(stream)
        with suppress(OSError):
            self._live.stop()

    def _refresh(self) -> None:
        with suppress(OSError):  # a terminal that was closed shows nothing more
            self._live.refresh()

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(TABLE_HEAD):
            table.add_column(name, justify="right" if 0 < index < len(TABLE_HEAD) - 1 else "left")
        for trial in self._trials:
            table.add_row(*map(Text, row_of(trial)))  # Text: brackets in a verdict are no markup
        if self._now:
            table.add_row(Text(f"{self._now} …", style="dim"))
        return table
