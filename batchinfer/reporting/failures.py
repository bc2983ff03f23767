"""Which rows failed and why, read from the shards without the folder's lock."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import starmap

import pyarrow.compute as pc

from batchinfer.core import ERROR, ROW, SOURCE
from batchinfer.readers.base import shown
from batchinfer.storage import place_of
from batchinfer.writers.footer import read_columns
from batchinfer.writers.run_folder import list_shards, require_plan


@dataclass(frozen=True, slots=True)
class Failure:
    """A row of the input that has no answer: `row` is 0-based in `file`, as `_row` is."""

    file: str
    row: int
    error: str

    def __str__(self) -> str:
        return f"{self.place}  {shown(self.error)}"

    @property
    def place(self) -> str:
        """The row as `file:row`."""
        return f"{shown(self.file)}:{self.row}"


@dataclass(slots=True)
class Reason:
    """Failures that differ in numbers only, and the first of them."""

    reason: str
    count: int
    example: Failure

    def __str__(self) -> str:
        return f"{self.count:,}  {shown(self.reason)}\n    such as {self.example}"


def count_failures(output: str) -> int:
    """How many rows failed so far, by the shards' footers. Raises UsageError where it is no run."""
    require_plan(output)
    return sum(shard.num_errors for shard in list_shards(output))


def read_failures(output: str) -> Iterator[Failure]:
    """Yield the failed rows in input order, a shard at a time; works while a run goes on.

    Raises UsageError where the folder is no run folder, StorageError where a shard is damaged.
    """
    require_plan(output)
    for shard in list_shards(output):
        if shard.num_errors:
            yield from failures_of(shard.path)


def summarize(failures: Iterable[Failure]) -> list[Reason]:
    """Count failures by reason, the most frequent first; numbers in a reason do not tell two apart."""
    reasons: dict[str, Reason] = {}
    for failure in failures:
        masked = _NUMBER.sub("N", failure.error)
        reasons.setdefault(masked, Reason(masked, 0, failure)).count += 1
    return sorted(reasons.values(), key=lambda reason: -reason.count)


#: A number that stands alone: not that of int64 or UTF-8.
_NUMBER = re.compile(r"(?<!\w)(?<!\w-)\d+(?:[.,_]\d+)*(?!\w)")


def failures_of(path: str) -> Iterator[Failure]:
    table = read_columns(place_of(path), [SOURCE, ROW, ERROR])
    failed = table.filter(pc.is_valid(table.column(ERROR)))
    columns = (failed.column(name).to_pylist() for name in (SOURCE, ROW, ERROR))
    return starmap(Failure, zip(*columns, strict=True))
