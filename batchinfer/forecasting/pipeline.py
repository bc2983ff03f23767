"""From what rows, batches and shards take to what a run takes: chunks on their way, one after the other.

Pure: no reading, no model. Reading runs ahead of the devices or in turn with them, writing behind them; on
a CPU all of them share its cores.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchinfer.batching import plan_batches
from batchinfer.core import BatchBudget, Int32Array, Segment, Span
from batchinfer.forecasting.speed import Speed
from batchinfer.gathering import WRITE_BEHIND

#: Of more sizes of chunks than these, those within a 64th of each other are taken to be alike.
_MANY_SIZES, _ALIKE = 64, 64

Bottleneck = Literal["device", "input", "writer"]


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """One chunk: its batches, their tokens, without padding and with it, and seconds of the device."""

    rows: int
    tokens: float
    batches: int
    padded: float
    forward: float


@dataclass(frozen=True, slots=True)
class Beside:
    """What a row costs beside the model: wall seconds, and seconds of one core.

    `start`: seconds before the first row is asked for. `commit`: of a shard, until it is durable.
    `loaders`: processes that load ahead; 0: none. `cores`: those that the model shares with it; 0: none.
    """

    start: float
    load: float
    load_core: float
    write: float
    write_core: float
    commit: float
    loaders: int
    cores: int


@dataclass(frozen=True, slots=True)
class Course:
    """A run: seconds from the first chunk asked for to the last shard, and what they were spent on."""

    seconds: float
    waited_for_input: float
    waited_for_writer: float
    answered: float

    @property
    def bottleneck(self) -> Bottleneck:
        """What a run waits for most."""
        parts: dict[Bottleneck, float] = {
            "device": self.answered,
            "input": self.waited_for_input,
            "writer": self.waited_for_writer,
        }
        return max(parts, key=lambda name: parts[name])


def chunk_rows_of(
    spans: Iterable[Span], segments: Sequence[Segment], num_rows: int, chunk_rows: int
) -> list[int]:
    """The rows of each chunk that is left, as far as they are known: `num_rows` is of all segments."""
    size = max(1, sum(segment.size for segment in segments))
    counts = []
    for span in spans:
        if span.stop is not None:
            counts += [chunk_rows] * (span.stop - span.begin)
            continue
        rows = span.segment.max_rows
        if rows is None:
            rows = round(num_rows * span.segment.size / size)
        left = max(0, rows - span.begin * chunk_rows)
        whole, rest = divmod(left, chunk_rows)
        counts += [chunk_rows] * whole
        if rest or not whole:
            counts.append(rest)
    return counts


def chunk_costs(
    chunk_rows: Sequence[int],
    cost: Int32Array,
    requests_a_row: float,
    budget: BatchBudget,
    tokens_ahead: int,
    speed: Speed,
) -> list[ChunkCost]:
    """What chunks of so many rows cost, if their requests are as long as those of a sample."""
    ordered = np.sort(cost)
    is_rough = len(set(chunk_rows)) > _MANY_SIZES

    @functools.cache
    def alike(rows: int) -> ChunkCost:
        number = round(rows * requests_a_row)
        if not number or not len(ordered):
            return ChunkCost(rows, 0.0, 1, 0.0, 0.0)
        places = ((np.arange(number) + 0.5) * len(ordered) / number).astype(np.int64)
        costs = ordered[places]
        batches, padded, seconds = 0, 0, 0.0
        for indices in plan_batches(costs, budget, tokens_ahead):
            lengths = costs[indices]
            batches += 1
            padded += len(lengths) * int(lengths[0])
            seconds += speed.seconds(float(lengths.sum()), len(lengths))
        return ChunkCost(rows, float(costs.sum()), batches, padded, seconds)

    def of(rows: int) -> ChunkCost:
        step = max(1, (1 << max(0, rows.bit_length() - 1)) // _ALIKE) if is_rough else 1
        near = rows // step * step
        found = alike(near)
        if near == rows:
            return found
        share = rows / near
        return dataclasses.replace(
            found,
            rows=rows,
            tokens=found.tokens * share,
            padded=found.padded * share,
            forward=found.forward * share,
        )

    return list(map(of, chunk_rows))


def padding_in_order(cost: Int32Array, budget: BatchBudget) -> float:
    """The share of padding in padded batches of requests as they come, by the same budget."""
    padded, longest, number = 0, 0, 0
    for length in cost.tolist():
        longer = max(longest, length)
        if number and (
            (number + 1) * longer > budget.max_batch_tokens or number == budget.max_batch_rows
        ):
            padded += number * longest
            longer, number = length, 0
        longest, number = longer, number + 1
    padded += number * longest
    return 1 - float(cost.sum()) / padded if padded else 0.0


def course(chunks: Sequence[ChunkCost], beside: Beside, devices: int) -> Course:
    """Go through a run, chunk by chunk; each goes to the device that is free first.

    What is computed beside the model on the same cores takes them from it.
    """
    ready = _ready(chunks, beside)
    free = [(0.0, device) for device in range(devices)]
    written: list[list[float]] = [[] for _ in range(devices)]
    waited_input = waited_writer = answered = 0.0
    for place, chunk in enumerate(chunks):
        at, device = heapq.heappop(free)
        load = beside.load * chunk.rows
        in_turn = not beside.loaders and devices == 1
        begin = max(at, beside.start) + load if in_turn else max(at, next(ready))
        waited_input += (begin - at) / devices
        forward = chunk.forward + _stolen(chunk, beside, devices, is_last=place == len(chunks) - 1)
        answered += forward / devices
        end = begin + forward
        shards = written[device]
        if len(shards) > WRITE_BEHIND and shards[-1 - WRITE_BEHIND] > end:
            waited_writer += (shards[-1 - WRITE_BEHIND] - end) / devices
            end = shards[-1 - WRITE_BEHIND]
        write = beside.write * chunk.rows + beside.commit
        shards.append(max(end, shards[-1] if shards else 0.0) + write)
        heapq.heappush(free, (end, device))
    last = max((shards[-1] for shards in written if shards), default=0.0)
    still = max(at for at, _ in free)
    return Course(last, waited_input, waited_writer + max(0.0, last - still), answered)


def _ready(chunks: Sequence[ChunkCost], beside: Beside) -> Iterator[float]:
    """When each chunk is loaded, where that happens ahead of the devices."""
    loaders = [beside.start] * max(1, beside.loaders)
    for chunk in chunks:
        done = heapq.heappop(loaders) + beside.load * chunk.rows
        heapq.heappush(loaders, done)
        yield done


def _stolen(chunk: ChunkCost, beside: Beside, devices: int, *, is_last: bool) -> float:
    """Seconds that the model loses to what is done beside it on its cores."""
    if not beside.cores or is_last:
        return 0.0
    seconds = beside.write_core * chunk.rows
    if beside.loaders or devices > 1:
        seconds += beside.load_core * chunk.rows
    return devices * seconds / beside.cores
