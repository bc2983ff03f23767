"""A sample of a job's input: rows from several places of several files, and how long they are."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.core import Chunk, ChunkId, InputFile, Int64Array, Position, Requests
from batchinfer.errors import StorageError, one_line
from batchinfer.plan import Plan
from batchinfer.readers import ReadOptions, open_reader
from batchinfer.readers.base import combined, shown, text_errors
from batchinfer.readers.chunking import no_rows, with_origin
from batchinfer.readers.parquet import open_parquet
from batchinfer.readers.text import is_utf8
from batchinfer.storage import open_file
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder

#: Files that are looked into, and places in each.
MAX_FILES = 8
MAX_PLACES = 4
#: Places of a text file lie at least this far apart, in bytes.
PLACE_BYTES = 1 << 20
#: Rows that are wrong at a place further on in a file: more of them, and it is no start of a row (in
#: the middle of a quoted field, say).
MAX_WRONG_SHARE = 0.1
#: English text has about so many bytes a token; only how much is read depends on it.
BYTES_A_TOKEN = 4.0
#: Rows that say how many tokens a row has, hence how many rows are wanted.
FIRST_ROWS = 64
#: A sample's rows have about so many bytes at most, with the columns that nobody looks at.
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests that stand for a job's.

    `order` int64[n]: the requests, longest first, as a chunk is sorted. `seconds`: what encoding took.
    """

    requests: Requests
    order: Int64Array
    seconds: float

    @property
    def num_tokens(self) -> int:
        return int(self.requests.cost.sum())

    @property
    def tokens_per_second(self) -> float:
        """What one process encodes."""
        return self.num_tokens / max(1e-9, self.seconds)

    @property
    def lengths(self) -> dict[str, float]:
        """Tokens of a row: the mean, the median, the 95th percentile and the longest."""
        cost = self.requests.cost
        if not len(cost):
            return {"mean": 0.0, "p50": 0, "p95": 0, "max": 0}
        return {
            "mean": round(float(cost.mean()), 1),
            "p50": int(np.percentile(cost, 50)),
            "p95": int(np.percentile(cost, 95)),
            "max": int(cost.max()),
        }


def take_sample(plan: Plan, task: Task, encoder: Encoder, num_tokens: int) -> Sample:
    """About so many tokens of the job's input, by the job's own encoder; fewer where it has fewer.

    Raises what reading raises: StorageError, JobMismatchError.
    """
    seconds = 0.0

    def encode(chunk: Chunk) -> Requests:
        nonlocal seconds
        started = time.perf_counter()
        requests = task.encode(chunk, encoder)
        seconds = time.perf_counter() - started
        return requests

    return as_sample(sample_requests(plan, num_tokens, encode), seconds)


def sample_requests(
    plan: Plan,
    num_tokens: int,
    encode: Callable[[Chunk], Requests],
    max_rows: int | None = None,
    *,
    whole: bool = False,
) -> Requests:
    """About so many tokens of the job's input, as `encode` counts them in the first few rows.

    The size of a row says little of its texts: they may be one column of many. `whole`: as of
    `sample_rows`.
    """
    requests = encode(sample_rows(plan, FIRST_ROWS, whole=whole))
    a_row = plan.row_bytes / BYTES_A_TOKEN
    if len(requests):
        a_row = float(requests.cost.mean())
    most = max(FIRST_ROWS, int(MAX_BYTES / max(1.0, plan.row_bytes)))
    wanted = min(math.ceil(num_tokens / max(1.0, a_row)), most, max_rows or most)
    if wanted > FIRST_ROWS:
        requests = encode(sample_rows(plan, wanted, whole=whole))
    return requests


def as_sample(requests: Requests, seconds: float) -> Sample:
    """Requests in the order in which they are batched."""
    return Sample(requests, np.argsort(-requests.cost, kind="stable"), seconds)


def sample_rows(plan: Plan, num_rows: int, *, whole: bool = False) -> Chunk:
    """About so many rows of the job's input as one chunk, with the columns that it is answered by only.

    `whole`: with all that a run reads, so that a shard can be made of them.
    """
    options = plan.read_options if whole else _answering_only(plan)
    limit = plan.config.limit
    places = list(_places(plan, options, 1 if limit is not None else MAX_PLACES))
    num_rows = min(num_rows, limit or num_rows)
    tables: list[pa.Table] = []
    errors: dict[int, str] = {}
    done = 0
    for index, (file, start) in enumerate(places):
        # What an early place is short of, the later ones make up for.
        share = -(-(num_rows - done) // (len(places) - index))
        table, wrong = _take(file, options, start, share)
        if not whole:
            table = table.select(options.planned.names)
        if start.offset and len(wrong) > MAX_WRONG_SHARE * table.num_rows:
            continue
        errors.update({done + row: why for row, why in wrong.items()})
        tables.append(table)
        done += table.num_rows
    nothing = with_origin(no_rows(options), "", 0) if whole else options.planned.empty_table()
    table = combined(pa.concat_tables([nothing, *tables]))
    return Chunk(ChunkId(0, 0), table, errors, Position(), Position(), True, "")


def _answering_only(plan: Plan) -> ReadOptions:
    options = plan.read_options
    return dataclasses.replace(
        options,
        schema=pa.schema([plan.input_schema.field(name) for name in options.answering]),
        rescue_unknown=False,
    )


def _places(
    plan: Plan, options: ReadOptions, places_a_file: int
) -> Iterator[tuple[InputFile, Position]]:
    """Where to read, by file, from the front to the back."""
    files = [file for segment in plan.segments for file in segment.files if file.size]
    for file in _spaced(files, MAX_FILES):
        yield file, Position()
        if file.format == "parquet":
            starts = _starts_of_groups(file)
        elif file.compression or not is_utf8(options.encoding):
            starts = []
        else:
            starts = list(_starts_of_lines(file, options.max_line_bytes))
        for start in _spaced(starts, places_a_file - 1):
            yield file, start


def _starts_of_groups(file: InputFile) -> list[Position]:
    """Row groups behind the first one: rows before them need not be decoded."""
    parquet = open_parquet(file)
    try:
        metadata = parquet.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    finally:
        parquet.close(force=True)
    rows = np.cumsum(sizes)[:-1].tolist() if sizes else []
    return [Position(0, row, 0, row) for row in sorted(set(rows) - {0, sum(sizes)})]


def _starts_of_lines(file: InputFile, max_line_bytes: int) -> Iterator[Position]:
    """The line that begins behind each of some evenly spaced offsets."""
    num = min(MAX_PLACES, file.size // PLACE_BYTES)
    try:
        with open_file(file.path, buffered=True) as stream:
            for index in range(1, num):
                stream.seek(file.size * index // num)
                if stream.readline(max_line_bytes).endswith(b"\n") and stream.tell() < file.size:
                    yield Position(0, stream.tell(), 0, 0)
    except OSError as error:
        why = error.strerror or one_line(error)
        raise StorageError(f"cannot be read: {why}", file=shown(file.path)) from None


def _take(
    file: InputFile, options: ReadOptions, start: Position, num_rows: int
) -> tuple[pa.Table, Mapping[int, str]]:
    reader = open_reader(file, options, start)
    try:
        rows = reader.take(num_rows)
    finally:
        reader.close()
    errors = text_errors(rows, options)
    return with_origin(rows.table, file.source, rows.first_row), errors


def _spaced(items: Sequence[Any], num: int) -> list[Any]:
    """`num` of the items, evenly spaced, the first among them."""
    if len(items) <= num:
        return list(items)
    return [items[index * len(items) // num] for index in range(num)]
