"""The chain of a folder's shards: each must begin where the one before it ends, up to the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from batchinfer.core import ChunkId, Position, Segment, Shard, parse_shard_name, shard_name
from batchinfer.errors import JobMismatchError, StorageError
from batchinfer.plan import Plan
from batchinfer.readers.base import shown
from batchinfer.storage import Place, list_names, place_of_output
from batchinfer.verification.comparison import Comparison
from batchinfer.verification.findings import Finding, Verification
from batchinfer.verification.rows import as_stored, wrong_rows
from batchinfer.writers.footer import FooterError, read_footer, read_pages
from batchinfer.writers.holders import refuse_live
from batchinfer.writers.run_folder import SUCCESS, describe_segment, require_plan


def verify(output: str | os.PathLike[str], *, inputs: bool = True) -> Verification:
    """Read all of a run folder, and say what is not as it must be; changes nothing.

    With `inputs` the input files are read again and compared row by row. Raises UsageError where the
    folder is no run folder, JobMismatchError where another version of batchinfer planned it,
    Interrupted while a live run holds it, and StorageError where it cannot be read.
    """
    refuse_live(output, "verify")
    try:
        found = _verify(place_of_output(output), inputs)
    except OSError as error:
        raise StorageError(f"{error.filename or output}: {error.strerror or error}") from error
    if found.findings:
        refuse_live(
            output, "verify"
        )  # what a run that has begun since is about to mend is no finding
    return found


def _verify(output: Place, inputs: bool) -> Verification:
    try:
        plan = require_plan(output)
    except StorageError as error:
        return Verification(str(output), (Finding(error.file, error.what, error.advice),))
    return _Verifier(output, plan, inputs).verify()


@dataclass
class _Link:
    """The place in a segment's chain that the next shard must take.

    `start` is None where the shard before it is missing or cannot be read; `ended` where no further
    shard is due, None where that cannot be told.
    """

    chunk: int = 0
    start: Position | None = None
    ended: bool | None = False


class _Verifier:
    """One pass over the shards of a folder, in input order."""

    def __init__(self, output: Place, plan: Plan, inputs: bool) -> None:
        self.output, self.data = output, output / "data"
        self.plan, self.inputs = plan, inputs
        self.schema = as_stored(plan.output_schema)
        self.findings: list[Finding] = []
        self.missing: list[Finding] = []
        self.foreign: list[Place] = []
        self.num_shards = self.num_rows = self.num_input_rows = 0
        self.read_all_inputs = inputs

    def verify(self) -> Verification:
        """Find what there is to find."""
        by_segment, success = self._list()
        for segment in self.plan.segments:
            self._verify_segment(segment, by_segment.pop(segment.index, {}))
        for paths in by_segment.values():
            for index in sorted(paths):
                self._add(paths[index], "stands for a part of the input that the job does not have")
        self._sum_up(success)
        return Verification(
            output=str(self.output),
            findings=tuple(self.findings),
            num_shards=self.num_shards,
            num_rows=self.num_rows,
            num_input_rows=self.num_input_rows if self.read_all_inputs else None,
        )

    def _list(self) -> tuple[dict[int, dict[int, Place]], bool]:
        """The shards' paths by segment and chunk, and whether _SUCCESS stands among them."""
        by_segment: dict[int, dict[int, Place]] = {}
        try:
            names = sorted(list_names(self.data))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        for name in names:
            chunk = parse_shard_name(name)
            if chunk is not None:
                by_segment.setdefault(chunk.segment, {})[chunk.chunk] = self.data / name
            elif name != SUCCESS and not name.startswith("."):  # those are the file system's own
                self._add(
                    self.data / name,
                    "was not written by batchinfer",
                    "move it out of the run folder: what reads data/ takes it for a shard",
                )
        return by_segment, SUCCESS in names

    # -- a segment -------------------------------------------------------------------------------

    def _verify_segment(self, segment: Segment, paths: Mapping[int, Place]) -> None:
        link = _Link(start=segment.start)
        with closing(Comparison(segment, self.plan, self.findings.append)) as comparison:
            if self.inputs and paths:
                comparison.open(last=max(paths))
            for index in sorted(paths):
                if index > link.chunk and not link.ended:
                    self._add_missing(segment, link.chunk, index)
                    link = _Link(index, None, False)
                chunk = ChunkId(segment.index, index)
                shard = self._verify_shard(segment, chunk, paths[index], link, comparison)
                if shard is None:
                    link = _Link(index + 1, None, None)
                else:
                    link = _Link(index + 1, shard.next, shard.ends_segment)
        if link.ended is False:
            self._add_missing(segment, link.chunk, None)
        self.num_input_rows += comparison.num_input_rows
        self.read_all_inputs &= comparison.ended

    def _verify_shard(
        self,
        segment: Segment,
        chunk: ChunkId,
        path: Place,
        link: _Link,
        comparison: Comparison,
    ) -> Shard | None:
        """Check one shard; return it, or None where its footer cannot be believed."""
        shard = self._read_footer(path, chunk)
        if shard is None:
            return None
        self.num_shards += 1
        if link.ended:
            self._add(path, f"stands behind the last rows of {describe_segment(segment)}")
        elif link.start is not None and shard.start != link.start:
            self._add(
                path,
                f"begins at {_place(segment, shard.start)}, but the shard before it ends at "
                f"{_place(segment, link.start)}",
            )
        try:
            table = read_pages(path)
        except FooterError as error:
            self._add_damaged(path, error)
            return shard
        except OSError as error:
            self._add_unreadable(path, error)
            return shard
        self.num_rows += table.num_rows
        wrong = list(wrong_rows(table, shard, segment, self.plan, self.schema))
        for what in wrong or comparison.differences(shard, table):
            self._add(path, what)
        return shard

    def _read_footer(self, path: Place, chunk: ChunkId) -> Shard | None:
        try:
            shard, plan_id = read_footer(path)
        except FooterError as error:
            self._add_damaged(path, error)
        except JobMismatchError as error:
            self._add(path, error.what)
        except OSError as error:
            self._add_unreadable(path, error)
        else:
            if plan_id != self.plan.id_of(chunk.segment):
                self.foreign.append(path)
            elif shard.id != chunk:
                self._add(path, f"is {shard_name(shard.id)} under another name")
            else:
                return shard
        return None

    # -- findings --------------------------------------------------------------------------------

    def _sum_up(self, success: bool) -> None:
        """Judge the folder as a whole, when every shard was seen."""
        if self.foreign and not self.num_shards:
            self.findings = [
                Finding(
                    str(self.output / "_batchinfer" / "plan.json"),
                    f"is the plan of another job than the {len(self.foreign):,} shards in data/",
                    "put back the one that they were made with",
                )
            ]
            return
        for path in self.foreign:
            self._add(path, "belongs to another job")
        if success:
            self.findings += self.missing
        else:
            rest = "more are missing" if self.missing else f"but {SUCCESS} is missing"
            self._add(
                self.output,
                f"unfinished: {self.num_shards:,} shards with {self.num_rows:,} rows are there, {rest}",
                f"go on with `batchinfer resume {self.output}`",
            )

    def _add(self, path: Place, what: str, advice: str = "") -> None:
        advice = advice or f"move it out of the run folder; {self._resume_makes}"
        self.findings.append(Finding(str(path), what, advice))

    def _add_damaged(self, path: Place, error: FooterError) -> None:
        advice = f"`batchinfer resume {self.output} --verify` makes it again"
        self._add(path, f"is damaged: {error.what}", advice)

    def _add_unreadable(self, path: Place, error: OSError) -> None:
        self._add(
            path, f"cannot be read: {error.strerror or error}", "mend that, then verify again"
        )

    def _add_missing(self, segment: Segment, first: int, stop: int | None) -> None:
        """Chunks [first, stop) have no shard; `stop` None: to the segment's end."""
        name = shard_name(ChunkId(segment.index, first))
        others = "and those behind it are" if stop is None else f"and {stop - first - 1:,} more are"
        are = "is" if stop == first + 1 else others
        self.missing.append(
            Finding(
                str(self.data / name),
                f"{are} missing, though {SUCCESS} says that every row is there",
                self._resume_makes,
            )
        )

    @property
    def _resume_makes(self) -> str:
        return f"`batchinfer resume {self.output}` makes what is missing"


def _place(segment: Segment, position: Position) -> str:
    source = shown(segment.files[min(position.file, len(segment.files) - 1)].source)
    return f"{source}:{position.row} (offset {position.offset:,})"
