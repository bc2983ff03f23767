"""verify(): prove that every input row stands in the output exactly once.

    plan.json ─▶ each segment's shards, one behind the other ─▶ the chain of their footers
                                                             ─▶ the rows of each, counted and in order
                                                             ─▶ the input they came from, read again

The chain says that shards follow each other without a gap, the rows of each that it holds what its
place in the chain says, and the input that the chain is the whole of it. Nothing is written, and no
more than one chunk and its shard are in memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from batchinfer.core import (
    ERROR,
    NUM_TOKENS,
    RESCUED,
    ROW,
    SOURCE,
    TRUNCATED,
    Chunk,
    ChunkId,
    InputFile,
    Position,
    Segment,
    Shard,
    Span,
    parse_shard_name,
    shard_name,
)
from batchinfer.errors import BatchInferError, Interrupted, JobMismatchError, StorageError
from batchinfer.plan import Plan
from batchinfer.readers import read_chunks
from batchinfer.readers.base import shown
from batchinfer.readers.digests import digest_of
from batchinfer.tasks import create_task
from batchinfer.writers.footer import KEY, FooterError, read_footer, read_pages
from batchinfer.writers.run_folder import (
    SUCCESS,
    describe_holder,
    describe_segment,
    is_locked,
    require_plan,
)
from batchinfer.writers.shard import count_rescued

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute

FINDINGS = 65
#: Findings that are printed; `--json` has them all.
MAX_LINES = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be: in which file, what, and what to do about it."""

    file: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{shown(self.file)}: {self.what}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. `num_input_rows` is None where the inputs were not all read."""

    output: str
    findings: tuple[Finding, ...]
    num_shards: int = 0
    num_rows: int = 0
    num_input_rows: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 65 where anything was found."""
        return FINDINGS if self.findings else 0

    def to_text(self) -> str:
        """A line a finding, and a last one that sums up."""
        lines = [str(finding) for finding in self.findings[:MAX_LINES]]
        if len(self.findings) > MAX_LINES:
            lines.append(f"… and {len(self.findings) - MAX_LINES:,} more (--json has them all)")
        if self.findings:
            plural = "s" if len(self.findings) > 1 else ""
            lines.append(f"{len(self.findings):,} finding{plural}")
        elif self.num_input_rows is None:
            lines.append(f"{self.num_rows:,} rows out, each once: OK (the inputs were not read)")
        else:
            lines.append(
                f"{self.num_input_rows:,} rows in, {self.num_rows:,} rows out, each once: OK"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}


def verify(output: str | os.PathLike[str], *, inputs: bool = True) -> Verification:
    """Read all of a run folder, and say what is not as it must be; changes nothing.

    With `inputs` the input files are read again and compared row by row. Raises UsageError where the
    folder is no run folder, JobMismatchError where another version of batchinfer planned it,
    Interrupted while a live run holds it, and StorageError where it cannot be read.
    """
    _refuse_live(output)
    try:
        found = _verify(Path(output), inputs)
    except OSError as error:
        raise StorageError(f"{error.filename or output}: {error.strerror or error}") from error
    if found.findings:
        _refuse_live(output)  # what a run that has begun since is about to mend is no finding
    return found


def _refuse_live(output: str | os.PathLike[str]) -> None:
    if is_locked(output):
        raise Interrupted(
            f"{output}: a run is at work here ({describe_holder(output)}); verify it when it is done, "
            f"or watch it with `batchinfer status {output}`"
        )


def _verify(output: Path, inputs: bool) -> Verification:
    try:
        plan = require_plan(output)
    except StorageError as error:
        path = str(output / "_batchinfer" / "plan.json")
        what, _, advice = str(error).removeprefix(f"{path}: ").partition("; ")
        return Verification(str(output), (Finding(path, what, advice),))
    verifier = _Verifier(output, plan, inputs)
    return verifier.verify()


@dataclass
class _Link:
    """The place in a segment's chain that the next shard must take.

    `start` is None where the shard before it is missing or cannot be read; `ended` where no further
    shard is due, None where that cannot be told.
    """

    chunk: int = 0
    start: Position | None = field(default_factory=Position)
    ended: bool | None = False


class _Verifier:
    """One pass over the shards of a folder, in input order."""

    def __init__(self, output: Path, plan: Plan, inputs: bool) -> None:
        self.output, self.data = output, output / "data"
        self.plan, self.inputs = plan, inputs
        self.schema = _as_stored(plan.output_schema)
        self.kept = _columns_of_the_input(plan)
        self.findings: list[Finding] = []
        self.missing: list[Finding] = []
        self.foreign: list[Path] = []
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

    def _list(self) -> tuple[dict[int, dict[int, Path]], bool]:
        """The shards' paths by segment and chunk, and whether _SUCCESS stands among them."""
        by_segment: dict[int, dict[int, Path]] = {}
        names = sorted(os.listdir(self.data)) if self.data.is_dir() else []
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

    def _verify_segment(self, segment: Segment, paths: Mapping[int, Path]) -> None:
        again = _InputAgain(segment, self.plan, self.findings.append)
        if self.inputs and paths:
            again.open(last=max(paths))
        link = _Link()
        try:
            for index in sorted(paths):
                if index > link.chunk and not link.ended:
                    self._add_missing(segment, link.chunk, index)
                    link = _Link(index, None, False)
                shard = self._verify_shard(
                    segment, ChunkId(segment.index, index), paths, link, again
                )
                if shard is None:
                    link = _Link(index + 1, None, None)
                else:
                    link = _Link(index + 1, shard.next, shard.ends_segment)
        finally:
            again.close()
        if link.ended is False:
            self._add_missing(segment, link.chunk, None)
        self.num_input_rows += again.num_rows
        self.read_all_inputs &= again.ended

    def _verify_shard(
        self,
        segment: Segment,
        chunk: ChunkId,
        paths: Mapping[int, Path],
        link: _Link,
        again: _InputAgain,
    ) -> Shard | None:
        """Check one shard; return it, or None where its footer cannot be believed."""
        path = paths[chunk.chunk]
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
        sound = True
        for what in _wrong_rows(table, shard, segment, self.plan, self.schema):
            self._add(path, what)
            sound = False
        if sound:
            self._compare_with_input(path, table, shard, segment, again)
        return shard

    def _read_footer(self, path: Path, chunk: ChunkId) -> Shard | None:
        try:
            shard, plan_id = read_footer(path)
        except FooterError as error:
            self._add_damaged(path, error)
        except JobMismatchError:
            self._add(path, "was not written by this version of batchinfer")
        except OSError as error:
            self._add_unreadable(path, error)
        else:
            if plan_id != self.plan.id:
                self.foreign.append(path)
            elif shard.id != chunk:
                self._add(path, f"is {shard_name(shard.id)} under another name")
            else:
                return shard
        return None

    def _compare_with_input(
        self, path: Path, table: pa.Table, shard: Shard, segment: Segment, again: _InputAgain
    ) -> None:
        """The shard beside the rows of the input that it was made from."""
        chunk = again.chunk(shard.id.chunk)
        if chunk is None:
            return
        there = (chunk.digest, chunk.start, chunk.next, chunk.ends_segment)
        if there != (shard.digest, shard.start, shard.next, shard.ends_segment):
            again.changed(shard)
            return
        if chunk.num_rows != table.num_rows:
            self._add(path, f"holds {table.num_rows:,} rows, its input {chunk.num_rows:,}")
            return
        for name in self.kept:
            row = _first_difference(table.column(name), chunk.table.column(name))
            if row is not None:
                place = f"{table.column(SOURCE)[row]}:{table.column(ROW)[row]}"
                self._add(path, f"column '{shown(name)}' is not the input's from {place} on")

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

    def _add(self, path: Path, what: str, advice: str = "") -> None:
        advice = advice or f"move it out of the run folder; {self._resume_makes}"
        self.findings.append(Finding(str(path), what, advice))

    def _add_damaged(self, path: Path, error: FooterError) -> None:
        what = "is damaged: " + str(error).removeprefix(f"{path}: ")
        self._add(path, what, f"`batchinfer resume {self.output} --verify` makes it again")

    def _add_unreadable(self, path: Path, error: OSError) -> None:
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


_WITHOUT_INPUTS = "put the old input back, or verify the output alone with --no-inputs"


class _InputAgain:
    """The chunks of a segment, read again as far as they are asked for.

    What is wrong with the input itself is told to `found`, once; from there on there are no chunks.
    """

    def __init__(self, segment: Segment, plan: Plan, found: Callable[[Finding], None]) -> None:
        self.segment, self.plan, self.found = segment, plan, found
        self.num_rows = 0
        self.ended = False
        self._chunks: Iterator[Chunk] | None = None

    def open(self, last: int) -> None:
        """Get ready to read up to chunk `last`, if the files are as large as they were."""
        segment = self._as_it_is_now()
        if segment is not None:
            span = Span(segment, first=0, start=Position(), stop=last + 1)
            self._chunks = read_chunks(span, self.plan.chunk_rows, self.plan.read_options)

    def chunk(self, index: int) -> Chunk | None:
        """Chunk `index`; those before it are passed over. None where the input cannot tell."""
        while self._chunks is not None:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self.close()
                self._add(self.segment.files[-1], "has fewer rows than were answered")
            except BatchInferError as error:
                self.close()
                self._add(self._named_in(error), _reason(error, self.segment))
            else:
                self.num_rows += chunk.num_rows
                self.ended = chunk.ends_segment
                if chunk.id.chunk == index:
                    return chunk
        return None

    def changed(self, shard: Shard) -> None:
        """Tell that the shard was made from other bytes; behind them nothing can be compared."""
        self.close()
        file = self.segment.files[shard.start.file]
        self._add(
            file,
            f"changed since it was answered: {shard_name(shard.id)} was made from other rows than stand "
            f"there from row {shard.start.row:,} on",
        )

    def close(self) -> None:
        """Read no further."""
        close = getattr(self._chunks, "close", None)
        self._chunks = None
        if close is not None:
            close()

    def _as_it_is_now(self) -> Segment | None:
        """The segment with the files' present times: one that was merely touched is read as well."""
        files = []
        for file in self.segment.files:
            try:
                status = os.stat(file.path)
            except OSError as error:
                self._add(file, f"cannot be read: {error.strerror}")
                continue
            if status.st_size == file.size:
                files.append(dataclasses.replace(file, mtime_ns=status.st_mtime_ns))
            else:
                sizes = f"{file.size:,} bytes then, {status.st_size:,} now"
                self._add(file, f"changed since the job was planned ({sizes})")
        if len(files) < len(self.segment.files):
            return None
        return dataclasses.replace(self.segment, files=tuple(files))

    def _named_in(self, error: BatchInferError) -> InputFile:
        files = self.segment.files
        return next((f for f in files if str(error).startswith(f"{shown(f.path)}: ")), files[0])

    def _add(self, file: InputFile, what: str) -> None:
        self.found(Finding(file.path, what, _WITHOUT_INPUTS))


# -- the rows of a shard ---------------------------------------------------------------------------


def _wrong_rows(
    table: pa.Table, shard: Shard, segment: Segment, plan: Plan, schema: pa.Schema
) -> Iterator[str]:
    """Say what about a shard's rows is not what its footer and its place in the chain say."""
    if not table.schema.equals(schema, check_metadata=False):
        yield f"its columns are not the job's ({_schema_difference(table.schema, schema)})"
        return
    if table.num_rows != shard.num_rows:
        yield f"holds {table.num_rows:,} rows, where its footer says {shard.num_rows:,}"
    due = plan.chunk_rows
    if table.num_rows > due or (table.num_rows < due and not shard.ends_segment):
        yield f"holds {table.num_rows:,} rows, where {due:,} were due"
    elif not table.num_rows and shard.id.chunk:
        yield "holds no row"
    document = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    if document.get("first_row") != shard.id.chunk * due:
        yield "its footer gives a wrong number to its first row"
    errors = table.column(ERROR)
    for what, counted, said in (
        ("rows with an error", table.num_rows - errors.null_count, shard.num_errors),
        ("tokens", pc.sum(table.column(NUM_TOKENS)).as_py() or 0, shard.num_tokens),
        ("truncated rows", pc.sum(table.column(TRUNCATED)).as_py() or 0, shard.num_truncated),
        ("rescued values", _rescued(table), dict(shard.rescued)),
    ):
        if counted != said:
            yield f"holds {counted} {what}, where its footer says {said}"
    yield from _wrong_order(table, shard, segment)


def _rescued(table: pa.Table) -> dict[str, int]:
    try:
        return count_rescued(table.column(RESCUED))
    except ValueError:
        return {"that are not JSON": 1}


def _wrong_order(table: pa.Table, shard: Shard, segment: Segment) -> Iterator[str]:
    """Follow `_source` and `_row` from the shard's start to its next position.

    Where a file ends is not known here, so a file may follow at any row; how many rows there must be
    is the chunk's size, and which, the input's to say.
    """
    if not {shard.start.file, shard.next.file} <= set(range(len(segment.files))):
        yield "its footer names a file that the job does not have"
        return
    if table.column(SOURCE).null_count or table.column(ROW).null_count:
        yield f"has rows without {SOURCE} or {ROW}"
        return
    encoded: Any = table.column(SOURCE).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    names: list[str] = encoded.dictionary.to_pylist()
    rows = table.column(ROW).to_numpy()
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(codes) != 0)) + 1
    sources = [file.source for file in segment.files]
    file, row = shard.start.file, shard.start.row
    for begin, end in pairwise(sorted({0, *breaks.tolist(), len(rows)})):
        source, number = names[codes[begin]], int(rows[begin])
        if (source, number) != (sources[file], row):
            behind = range(file + 1, len(sources))
            later = next((index for index in behind if sources[index] == source), None)
            if number or later is None:
                yield (
                    f"row {begin:,} of it is {shown(source)}:{number}, where "
                    f"{shown(sources[file])}:{row} was due: rows are missing, doubled or out of order"
                )
                return
            file, row = later, 0
        row += end - begin
    after = shard.next
    if (file, row) != (after.file, after.row) and not (after.file > file and after.row == 0):
        yield (
            f"ends before {shown(sources[file])}:{row}, but its footer says that "
            f"{shown(sources[after.file])}:{after.row} comes next"
        )


def _columns_of_the_input(plan: Plan) -> list[str]:
    """The columns of a shard that are carried through, as `assemble` chooses them."""
    config = plan.config
    task = create_task(plan.model, config.text_column, config.text_pair_column)
    made = {config.output_prefix + column.name for column in task.columns}
    there = {SOURCE, ROW, RESCUED, *plan.input_schema.names} - made
    return [name for name in plan.output_schema.names if name in there]


def _as_stored(schema: pa.Schema) -> pa.Schema:
    """A schema as Parquet gives it back: seconds are milliseconds, a list's item is an element."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink, version="2.6")
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _schema_difference(found: pa.Schema, wanted: pa.Schema) -> str:
    for name in wanted.names:
        if name not in found.names:
            return f"{shown(name)} is missing"
        if found.field(name) != wanted.field(name):
            return f"{shown(name)} is {found.field(name).type}, not {wanted.field(name).type}"
    more = [name for name in found.names if name not in wanted.names]
    return f"{shown(more[0])} is one more" if more else "they stand in another order"


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


def _place(segment: Segment, position: Position) -> str:
    source = shown(segment.files[min(position.file, len(segment.files) - 1)].source)
    return f"{source}:{position.row} (offset {position.offset:,})"


def _reason(error: BatchInferError, segment: Segment) -> str:
    """An error of a reader without the file's name in front and the advice for a run behind."""
    message = str(error)
    for file in segment.files:
        message = message.removeprefix(f"{shown(file.path)}: ")
    return message.partition(";")[0]
