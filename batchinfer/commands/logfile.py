"""--log-file: the log once more, in a file that is rotated by size; stderr stays as it is.

It has what is said at the usual level also under --quiet, the error that a command ends with, and its
summary.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from typing import Any

from batchinfer.commands.console import log, safe
from batchinfer.config import ENV_PREFIX
from batchinfer.errors import UsageError

#: A file of this size is given a number, .1 for the last one; so many of those are kept.
MAX_BYTES, KEPT = 10_000_000, 5


class LogFile(RotatingFileHandler):
    """The file, opened to be appended to. Raises UsageError where it cannot be."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(
                path,
                maxBytes=MAX_BYTES,
                backupCount=KEPT,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise UsageError(
                f"--log-file {path}: cannot be written: {error.strerror}; its folder must be there"
            ) from None
        self.setFormatter(_Formatter())


class _Formatter(logging.Formatter):
    """A line a record: when (UTC), how grave, which process, and what; as safe to show as on stderr."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s [%(process)d] %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))


def open_log_file(path: str | None) -> None:
    """Have the log go to this file too, from here on. Raises UsageError."""
    there = log_file()
    if path is None or (there and there.baseFilename == os.path.abspath(path)):
        return
    close_log_file()
    log.addHandler(LogFile(path))


def open_named(flags: Mapping[str, Any]) -> None:
    """Open the file that a flag or variable names, before the rest of the configuration is looked at."""
    open_log_file(flags.get("log_file") or os.environ.get(f"{ENV_PREFIX}LOG_FILE") or None)


def log_file() -> LogFile | None:
    """The file that the log goes to, if any."""
    return next((one for one in log.handlers if isinstance(one, LogFile)), None)


def close_log_file() -> None:
    """End what an earlier command of this process has begun."""
    if (there := log_file()) is not None:
        log.removeHandler(there)
        there.close()


def note(level: int, text: str) -> None:
    """Write to the file alone, a record a line: stderr or stdout has it already."""
    if (there := log_file()) is not None:
        for line in text.splitlines():
            there.handle(log.makeRecord(log.name, level, "", 0, line, (), None))
