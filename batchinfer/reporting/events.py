"""A run as JSON lines: on stderr with `--progress json`, and always in the run folder's events file.

Each line is an object with `event` and `time` (UTC):

    begin     what runs on what: model, device, versions, settings
    progress  the fields of Snapshot: at the beginning, every 2 s, after a while every 10 s, and at the end
    shard     a chunk is durable
    log       a warning, or an error
    end       finished, stopped or failed, with the exit code and the summary

A file without `end` is of a run that is alive, or was killed. It is never synced, and never state: whatever
is decided is decided by the shards.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from batchinfer.core import Shard
from batchinfer.errors import without_secrets
from batchinfer.reporting.monitor import Display
from batchinfer.reporting.snapshot import Outcome, Snapshot

log = logging.getLogger("batchinfer")

#: Events files that a run folder keeps: those of the last runs that had something to do.
MOST_FILES = 100
#: So long every 2 s, for who looks at a run that has just begun; then every 10 s.
_FIRST_SECONDS, _LATER = 30.0, 10.0
#: A run at work writes more often than this.
_QUIET_SECONDS = 3600.0
_NAME = re.compile(r"events-[0-9A-Za-z-]+\.jsonl")
#: A longer line is none of ours; and no more of a file is read: 20 days of progress.
_MAX_LINE_BYTES, _MAX_FILE_BYTES = 1 << 20, 100 << 20
#: The end of an events file in which its last `progress` line stands.
_TAIL_BYTES = 64 << 10


def to_line(event: str, fields: Mapping[str, Any]) -> str:
    """An event as a line, in ASCII and without secrets."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return without_secrets(json.dumps({"event": event, "time": now, **fields}))


class EventLines(Display):
    """Writes events by `write`, a line at a time."""

    every = 2.0

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        self._say(
            "begin", {**about, "rows_done": now.rows_done, "rows_expected": now.rows_expected}
        )
        self.show(now)

    def show(self, now: Snapshot) -> None:
        if now.seconds >= _FIRST_SECONDS:
            self.every = _LATER
        self._say("progress", progress_fields(now))

    def committed(self, shard: Shard) -> None:
        counts = ("num_rows", "num_tokens", "num_errors", "num_truncated", "num_bytes")
        self._say(
            "shard",
            {
                "segment": shard.id.segment,
                "chunk": shard.id.chunk,
                **{name: getattr(shard, name) for name in counts},
            },
        )

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        self.show(now)
        self._say("end", asdict(outcome))

    def _say(self, event: str, fields: Mapping[str, Any]) -> None:
        self._write(to_line(event, fields))


def progress_fields(now: Snapshot) -> dict[str, Any]:
    """A snapshot as a line has it."""
    fields = asdict(now)
    if now.waiting is not None:
        fields["waiting"]["what"] = now.waiting.what
        del fields["waiting"]["reads"]
    return fields


class EventsFile(EventLines):
    """The events file of a run, made when there is something to do. Warnings are in it too."""

    def __init__(self, folder: Path, run_id: str) -> None:
        super().__init__(self._append)
        self._path = folder / events_name(run_id)
        self._file: TextIO | None = None
        self._handler = _LogEvents(self._say)

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        _remove_old(self._path.parent)
        with suppress(OSError):  # a full disk is found by whoever has something to lose
            self._file = self._path.open("x", encoding="ascii", buffering=1)
        if not log.hasHandlers():  # then Python itself shows warnings, up to here
            self._handler.behind = logging.lastResort
        log.addHandler(self._handler)
        super().begin(about, now)

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        log.removeHandler(self._handler)
        if self._file is not None:
            super().end(now, outcome)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
        except OSError:
            with suppress(OSError):
                self._file.close()
            self._file = None


class _LogEvents(logging.Handler):
    def __init__(self, say: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = say
        self.behind: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.behind is not None:
            self.behind.handle(record)
        self._tell("log", {"level": record.levelname.lower(), "message": record.getMessage()})


class JsonLogFormatter(logging.Formatter):
    """Log records as events, for a stderr that holds nothing else."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        return to_line("log", fields)


def events_name(run_id: str) -> str:
    return f"events-{run_id}.jsonl"


def is_events_file(name: str) -> bool:
    """Whether a file is called as those are that runs leave; such names sort as the runs began."""
    return _NAME.fullmatch(name) is not None


def read_events(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the events of a file, in their order; lines that are torn or none are passed over."""
    read = 0
    while read < _MAX_FILE_BYTES and (line := file.readline(_MAX_LINE_BYTES)):
        read += len(line)
        if (event := _event_of(line)) is not None:
            yield event


def last_progress(path: Path) -> dict[str, Any] | None:
    """The last `progress` of an events file that may be growing; None where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        event = _event_of(line)
        if event is not None and event["event"] == "progress":
            return event
    return None


def _event_of(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _remove_old(folder: Path) -> None:
    """Make room for another file."""
    with suppress(OSError):
        names = sorted(path.name for path in folder.iterdir() if is_events_file(path.name))
        for name in names[: -(MOST_FILES - 1)]:
            path = folder / name
            if path.stat().st_mtime < time.time() - _QUIET_SECONDS:  # else its run may be at work
                path.unlink()
