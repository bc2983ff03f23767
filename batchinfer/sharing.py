"""Parts of a job: which chunks each of several runs answers that share a folder.

A part is a run of chunks, worked out from the plan alone: nobody asks anybody. What it is based on is an
estimate (how many rows a file has is known when it was read), so parts differ in size, but each chunk, also
one that nobody had expected, is of exactly one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from batchinfer.core import ChunkId, Segment, Span
from batchinfer.errors import UsageError

_PART = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One of `count` parts of a job, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """As files and folders are called."""
        return f"part-{self.index}-of-{self.count}"


def part_of(shard: str | None, environ: Mapping[str, str]) -> Part | None:
    """The part that `--shard` names; `auto`: the one that a launcher has set in the environment.

    Raises UsageError where it names none.
    """
    if shard is None:
        return None
    if shard == "auto":
        return _of_launcher(environ)
    found = _PART.fullmatch(shard)
    if not found or int(found[1]) >= int(found[2]):
        raise UsageError(
            f"--shard {shard}: should be auto, or I/N with I from 0 to N - 1, such as 0/8"
        )
    return Part(int(found[1]), int(found[2]))


def _of_launcher(environ: Mapping[str, str]) -> Part:
    def number(name: str, default: int | None = None) -> int:
        value = environ.get(name)
        if value is None and default is not None:
            return default
        if value is None or not value.isdecimal():
            shown = "is not set" if value is None else f"is {value!r}, no number"
            raise UsageError(f"--shard auto: {name} {shown}; give --shard I/N")
        return int(value)

    if "WORLD_SIZE" in environ:  # torchrun, accelerate launch
        part = Part(number("RANK"), number("WORLD_SIZE"))
    elif "SLURM_ARRAY_TASK_ID" in environ:
        step = number("SLURM_ARRAY_TASK_STEP", 1)
        index, rest = divmod(
            number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN"), max(1, step)
        )
        count, steps = number("SLURM_ARRAY_TASK_COUNT"), number("SLURM_ARRAY_TASK_MAX")
        steps = (steps - number("SLURM_ARRAY_TASK_MIN")) // max(1, step) + 1
        if rest or steps != count:
            raise UsageError(
                "--shard auto: the array's indices are no range (such as 0-7); give --shard I/N"
            )
        part = Part(index, count)
    elif "JOB_COMPLETION_INDEX" in environ:
        part = Part(number("JOB_COMPLETION_INDEX"), number("JOB_COMPLETIONS"))
    elif "SLURM_PROCID" in environ:
        part = Part(number("SLURM_PROCID"), number("SLURM_NTASKS"))
    else:
        raise UsageError(
            "--shard auto: no launcher's variables are set (RANK and WORLD_SIZE, SLURM_ARRAY_TASK_ID, "
            "JOB_COMPLETION_INDEX and JOB_COMPLETIONS, or SLURM_PROCID and SLURM_NTASKS); give --shard I/N"
        )
    if not 0 <= part.index < part.count:
        raise UsageError(
            f"--shard auto: the launcher says {part}, which is no part; give --shard I/N"
        )
    return part


@dataclasses.dataclass(frozen=True)
class Share:
    """The chunks of a part: of segment s, those from `begin[s]` on, up to `end[s]`; None: to its end."""

    begin: Mapping[int, int]
    end: Mapping[int, int | None]
    #: About so many rows.
    num_rows: int

    @classmethod
    def of(cls, part: Part, segments: Iterable[Segment], num_rows: int, chunk_rows: int) -> Share:
        """`num_rows`: about so many, in all segments; a part has as many chunks as any other, by that."""
        segments = list(segments)
        size = max(1, sum(segment.size for segment in segments))

        def chunks(segment: Segment) -> int:
            rows = segment.max_rows
            if rows is None:
                rows = num_rows * segment.size // size
            return max(1, -(-rows // chunk_rows))

        counts = list(map(chunks, segments))
        total = sum(counts)
        low, high = (total * edge // part.count for edge in (part.index, part.index + 1))
        begin, end, base = {}, {}, 0
        for segment, count in zip(segments, counts, strict=True):
            if low < base + count and base < high:
                begin[segment.index] = max(0, low - base)
                # Whoever has the last chunk that is expected also has those that are not.
                end[segment.index] = None if high >= base + count else high - base
            base += count
        return cls(begin, end, num_rows * (high - low) // total)

    def __contains__(self, chunk: ChunkId) -> bool:
        begin, end = self.begin.get(chunk.segment), self.end.get(chunk.segment)
        return begin is not None and begin <= chunk.chunk and (end is None or chunk.chunk < end)

    def needed(self, chunks: Iterable[ChunkId]) -> Iterator[ChunkId]:
        """Of committed chunks, in order, those whose shards say what of the share is left.

        That is, its own, and in each segment the last one in front of them: there the gap begins that
        reaches into the share, unless the segment ends there.
        """
        front: ChunkId | None = None
        for chunk in chunks:
            is_own = chunk in self
            if front is not None and (is_own or chunk.segment != front.segment):
                yield front
                front = None
            if is_own:
                yield chunk
            elif chunk.chunk < self.begin.get(chunk.segment, 0):
                front = chunk
        if front is not None:
            yield front

    def of_spans(self, spans: Iterable[Span]) -> Iterator[Span]:
        """What of these spans is in it."""
        for span in spans:
            number = span.segment.index
            if number not in self.begin:
                continue
            begin = max(span.begin, self.begin[number])
            ends = [stop for stop in (span.stop, self.end[number]) if stop is not None]
            stop = min(ends, default=None)
            if stop is None or begin < stop:
                yield dataclasses.replace(span, passed=begin - span.first, stop=stop)
