"""The rows of a shard beside the input that they were made from, read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from batchinfer.core import RESCUED, ROW, SOURCE, Segment, Shard
from batchinfer.errors import BatchInferError
from batchinfer.inputs import SegmentAgain, as_it_is_now
from batchinfer.plan import Plan
from batchinfer.readers.base import shown
from batchinfer.readers.digests import digest_of
from batchinfer.tasks import create_task
from batchinfer.verification.findings import Finding

_WITHOUT_INPUTS = "put the old input back, or verify the output alone with --no-inputs"


class Comparison:
    """A segment's shards beside its input, in order; compares nothing until it is opened.

    What is wrong with the input itself is told to `found`, once; from there on nothing is compared.
    """

    def __init__(self, segment: Segment, plan: Plan, found: Callable[[Finding], None]) -> None:
        self.num_input_rows = 0
        self.ended = False
        self._segment, self._plan, self._found = segment, plan, found
        self._kept = _columns_of_the_input(plan)
        self._again: SegmentAgain | None = None

    def open(self, last: int) -> None:
        """Get ready to read up to chunk `last`, if the files are as large as they were."""
        segment, changes = as_it_is_now(self._segment)
        for change in changes:
            self._tell(change)
        if not changes:
            self._again = SegmentAgain(segment, self._plan, last)

    def differences(self, shard: Shard, table: pa.Table) -> Iterator[str]:
        """Say where the rows of a shard are not those of the input."""
        if self._again is None:
            return
        try:
            chunk = self._again.chunk_of(shard)
        except BatchInferError as error:
            self._tell(error)
            self.close()
            return
        if chunk.num_rows != table.num_rows:
            yield f"holds {table.num_rows:,} rows, its input {chunk.num_rows:,}"
            return
        for name in self._kept:
            row = _first_difference(table.column(name), chunk.table.column(name))
            if row is not None:
                place = f"{table.column(SOURCE)[row]}:{table.column(ROW)[row]}"
                yield f"column '{shown(name)}' is not the input's from {place} on"

    def close(self) -> None:
        """Read no further; `num_input_rows` were read, and `ended` says whether there are no more."""
        if self._again is not None:
            self.num_input_rows, self.ended = self._again.num_rows, self._again.ended
            self._again.close()
            self._again = None

    def _tell(self, error: BatchInferError) -> None:
        files = self._segment.files
        file = next((file for file in files if shown(file.path) == error.file), files[0])
        self._found(Finding(file.path, error.what, _WITHOUT_INPUTS))


def _columns_of_the_input(plan: Plan) -> list[str]:
    """The columns of a shard that are carried through, as `assemble` chooses them."""
    config = plan.config
    task = create_task(plan.model, config, plan.input_schema)
    made = {config.output_prefix + column.name for column in task.columns}
    there = {SOURCE, ROW, RESCUED, *plan.input_schema.names} - made
    return [name for name in plan.output_schema.names if name in there]


def _first_difference(found: Any, wanted: Any) -> int | None:
    """The first row at which two columns of one length differ."""
    if str(wanted.type) != str(found.type):
        wanted = wanted.cast(found.type)  # to milliseconds, or to a list whose item is an element
    if _same(found, wanted):
        return None
    low, high = 0, len(found)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high)
            if _same(found.slice(low, middle - low), wanted.slice(low, middle - low))
            else (low, middle)
        )
    return low


def _same(found: Any, wanted: Any) -> bool:
    """Whether two columns hold the same values; NaN is NaN here."""
    if found.equals(wanted):
        return True
    return digest_of(_one_chunk(found)) == digest_of(_one_chunk(wanted))


def _one_chunk(column: Any) -> pa.Table:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return pa.table({"values": array})
