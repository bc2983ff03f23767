"""What all commands share on a terminal: printing, logging, progress and signals around a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from batchinfer.config import RunConfig
from batchinfer.errors import without_secrets
from batchinfer.lean import spare_pandas

if TYPE_CHECKING:
    from batchinfer.reporting.monitor import Display
    from batchinfer.stop import StopSignal

log = logging.getLogger("batchinfer")

#: Whether stderr is to hold JSON lines alone.
_speaks_json = False

ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file with the same keys as the flags")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON summary, alone, on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen, and why")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress")]
Output = Annotated[str, typer.Argument(metavar="OUT", help="Run folder")]


class Conduct:
    """Signals, logging and progress around a run. `progress`: as of RunConfig."""

    def __init__(self, quiet: bool, verbose: bool, progress: str) -> None:
        set_up_logging(quiet, verbose, as_json=progress == "json")
        if quiet and progress != "json":
            progress = "none"
        if progress == "auto":
            progress = "bar" if is_terminal(sys.stderr) else "log"
        self.progress = progress
        self.before: dict[int, Any] = {}

    def __enter__(self) -> tuple[list[Display], StopSignal]:
        spare_pandas()
        from batchinfer.stop import StopSignal

        stop = StopSignal()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if stop.is_set:
                if is_terminal(sys.stderr):
                    os.write(2, b"\x1b[?25h\n")  # the bar hid the cursor
                os._exit(128 + number)
            stop.set()
            name = signal.Signals(number).name
            log.warning(f"{name}: finishing what is begun; once more to leave at once")

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and `&` in scripts ignore some
                self.before[number] = signal.signal(number, on_signal)
        warn_of_variables()
        return self._displays(), stop

    def _displays(self) -> list[Display]:
        if self.progress == "none":
            return []
        if self.progress == "json":
            from batchinfer.reporting.events import EventLines

            return [EventLines(print_to_stderr)]
        from batchinfer.reporting.displays import Bar, LogLines

        return [Bar() if self.progress == "bar" else LogLines()]

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def set_up_logging(quiet: bool, verbose: bool, *, as_json: bool = False) -> None:
    logging.raiseExceptions = False  # a closed terminal is no reason to stop
    handler = logging.StreamHandler(sys.stderr) if sys.stderr else logging.NullHandler()
    stamp = "" if is_terminal(sys.stderr) else "%(asctime)s "
    handler.setFormatter(_SafeFormatter(f"{stamp}batchinfer: %(message)s"))
    global _speaks_json
    _speaks_json = as_json
    if as_json:
        from batchinfer.reporting.events import JsonLogFormatter

        handler.setFormatter(JsonLogFormatter())
    handler.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    files = [one for one in log.handlers if isinstance(one, logging.FileHandler)]
    for file in files:
        file.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.handlers = [handler, *files]
    log.propagate = False
    log.setLevel(min(one.level for one in log.handlers))


class _SafeFormatter(logging.Formatter):
    """One line a record, without secrets and without codes that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))


def warn_of_variables() -> None:
    """Say which BATCHINFER_… variables are misspelt: nothing else would tell that they are not heard."""
    for name, meant in RunConfig.misspelt_variables(os.environ).items():
        log.warning(f"{name}: no such variable, so it is not heard; did you mean {meant}?")


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value)  # in ASCII: any name, on any stdout


def print_out(text: str) -> bool:
    """Print to stdout; return whether anybody is there to read on."""
    if sys.stdout is None:
        return False
    text = safe_lines(text)
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:  # the reader has gone, or its disk is full; what was done is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            log.warning(f"stdout: {error.strerror}: the summary could not be printed")
        return False
    return True


def safe_lines(text: str) -> str:
    """A text of several lines to show."""
    return "\n".join(map(safe, text.split("\n")))


def safe(text: str) -> str:
    """A line to show: names in it are other people's, and may hold line breaks or terminal codes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return without_secrets(shown)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def complain(message: str) -> None:
    """Say an error in the form that stderr has: a line of text, or of JSON."""
    global _speaks_json
    if _speaks_json:
        _speaks_json = False  # this was the command's last word
        from batchinfer.reporting.events import to_line

        print_to_stderr(to_line("log", {"level": "error", "message": message}))
    else:
        print_to_stderr(safe(f"batchinfer: {message}"))


def print_to_stderr(text: str) -> None:
    if sys.stderr is not None:  # print() would take stdout instead
        with suppress(OSError):  # a terminal that is gone can be told nothing
            print(text, file=sys.stderr, flush=True)
