"""export(): a run folder's rows, into a target."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from batchinfer import __version__
from batchinfer.errors import Interrupted, StorageError, UsageError
from batchinfer.exporting.source import Errors, Source, open_source
from batchinfer.exporting.targets import Content, Options, target_of
from batchinfer.prefetch import Prefetch
from batchinfer.readers.base import shown
from batchinfer.stop import StopSignal
from batchinfer.storage import RemotePath, place_of_output
from batchinfer.writers.shard import repeating_columns

log = logging.getLogger("batchinfer")

#: Shards that are read ahead of those that are written.
_AHEAD = 1
_LOG_SECONDS = 10.0
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class Export:
    """What was exported.

    `num_left_out`: rows that `errors` left out. `num_nulled`: numbers that are none (NaN, infinities) and
    became null, as JSON has no word for them.
    """

    output: str
    to: str
    num_rows: int
    num_left_out: int
    num_nulled: int
    num_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    def to_text(self) -> str:
        """One line."""
        line = f"{self.to}: {self.num_rows:,} rows, {_size(self.num_bytes)}, {self.seconds:.1f} s"
        if self.num_left_out:
            line += f"; {self.num_left_out:,} rows left out by --errors"
        if self.num_nulled:
            line += f"; {self.num_nulled:,} numbers that JSON has no word for (NaN, infinities) are null"
        return line


def export(
    output: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    errors: Errors = "keep",
    partial: bool = False,
    overwrite: bool = False,
    codec: str | None = None,
    row_group_size: int | None = None,
    stop: StopSignal | None = None,
) -> Export:
    """Write the rows of a run into one file, in input order; the name's ending says the format.

    `output` may lie in a store. `columns`: these, in this order. `errors`: "keep" rows that have an error,
    "drop" them, or "only" them. `partial`: also of an unfinished run. `codec` and `row_group_size` (rows)
    are of Parquet. The file appears whole, under its name, or not at all. Raises UsageError for what cannot
    be done or written, Interrupted where the run is unfinished, where `stop` was asked for or the disk is
    full, StorageError where a shard is damaged, and JobMismatchError where one is another job's.
    """
    began = time.monotonic()
    name = os.fspath(to)
    try:
        target = target_of(name, Options(overwrite, codec, row_group_size))
        source = open_source(output, columns=columns, errors=errors, partial=partial)
        _refuse_own(output, name, source)
        content = Content(
            source.schema,
            tuple(repeating_columns(source.schema, source.plan)),
            _metadata(source),
        )
        target.check(content)
        num_rows = 0
        with target.opened(content) as sheet:
            for table in _followed(source, stop or StopSignal()):
                sheet.write(table)
                num_rows += table.num_rows
        num_bytes = target.num_bytes
    except OSError as error:
        where = error.filename or name
        if error.errno in _FULL:
            raise Interrupted(
                f"{where}: no space left; nothing was exported: make room, then start it again"
            ) from error
        raise StorageError(f"{where}: {error.strerror or error}") from error
    seconds = time.monotonic() - began
    left_out = source.num_rows - num_rows
    return Export(str(output), name, num_rows, left_out, sheet.num_nulled, num_bytes, seconds)


def _followed(source: Source, stop: StopSignal) -> Generator[pa.Table]:
    """The tables, read ahead; a line in the log now and then."""
    done, due = 0, time.monotonic() + _LOG_SECONDS
    for table, num_rows in Prefetch(source.tables(), _AHEAD).stream():
        if stop.is_set:
            raise Interrupted("stopped; nothing was exported")
        yield table
        done += num_rows
        if time.monotonic() >= due:
            due = time.monotonic() + _LOG_SECONDS
            log.info(f"{done:,} of {source.num_rows:,} rows exported")


def _refuse_own(output: str | os.PathLike[str], to: str, source: Source) -> None:
    """Refuse a target that the job itself consists of, or that it reads."""
    real = os.path.realpath(to)
    place = place_of_output(output)
    if not isinstance(place, RemotePath):
        for folder in (place / "data", place / "_batchinfer"):
            if os.path.dirname(real) == os.path.realpath(folder):
                raise UsageError(
                    f"--to {shown(to)}: only the run writes there; name another folder"
                )
    for segment in source.plan.segments:
        for file in segment.files:
            if os.path.realpath(file.path) == real:
                raise UsageError(f"--to {shown(to)}: is an input of the job; name another file")


def _metadata(source: Source) -> dict[str, str]:
    """What the footer of a Parquet file says of where its rows come from; nothing that varies."""
    plan = source.plan
    return {
        "batchinfer.version": __version__,
        "batchinfer.plan_id": plan.id,
        "batchinfer.model": plan.model.name,
        "batchinfer.model_identity": plan.model.identity,
        "batchinfer.task": plan.model.task,
        "batchinfer.errors": source.errors,
    }


def _size(num_bytes: int) -> str:
    value, unit = float(num_bytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
