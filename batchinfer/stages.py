"""Where the time goes: seconds by stage, measured by the program itself.

A few calls a batch or a chunk, never one a row: it costs nothing that could be measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

Stage = Literal[
    "read", "tokenize", "wait_start", "wait_input", "wait_writer", "copy", "forward", "decode", "write"
]  # fmt: skip
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall seconds spent in each stage; they add.

    In front of the device: `read`, and `tokenize` with batching; of several processes, the sum. In the
    thread that drives the device: `wait_start`, until the first chunk is there, `wait_input` for each
    further one (where that thread loads it itself, all of the loading), and `wait_writer` for shards,
    the last ones too. On the device: `copy`, to move inputs to a GPU and answers back, and `forward`, the
    model; on CUDA both are the device's own time, from the first kernel of a batch to its last, and of a
    CPU that answers several batches at a time it is the mean of its streams. In the writer's thread:
    `decode` to typed columns, and `write`, encoding and commit. Of several devices at work side by side,
    waiting and what is on the device are means, the rest sums.
    """

    read: float = 0.0
    tokenize: float = 0.0
    wait_start: float = 0.0
    wait_input: float = 0.0
    wait_writer: float = 0.0
    copy: float = 0.0
    forward: float = 0.0
    decode: float = 0.0
    write: float = 0.0

    def __add__(self, other: StageSeconds) -> StageSeconds:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return StageSeconds(*(one + another for one, another in pairs))

    def __sub__(self, other: StageSeconds) -> StageSeconds:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return StageSeconds(*(one - another for one, another in pairs))

    @classmethod
    def of_devices(cls, several: Sequence[StageSeconds]) -> StageSeconds:
        """Those of a run from those of its devices."""
        total = sum(several, cls())
        of_one = ("wait_start", "wait_input", "wait_writer", "copy", "forward")
        means = {name: getattr(total, name) / max(1, len(several)) for name in of_one}
        return dataclasses.replace(total, **means)

    @property
    def on_device(self) -> float:
        """Seconds in which the device had work; of a CPU's streams, and of several devices, the mean."""
        return self.copy + self.forward

    def rounded(self) -> StageSeconds:
        """To milliseconds, for people and JSON."""
        return StageSeconds(*(round(seconds, 3) for seconds in dataclasses.astuple(self)))


class Stopwatch:
    """Adds up the seconds of one thread by stage.

    A moment counts once: where stages are measured within one another, for the innermost.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[Stage, float] = {}
        self._total = 0.0

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count what happens inside, also where it fails."""
        began, before = self._clock(), self._total
        try:
            yield
        finally:
            self._count(stage, max(0.0, self._clock() - began - (self._total - before)))

    def each(self, stage: Stage, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; what each takes to come is counted, what is done with it is not."""
        began = self._clock()
        for item in items:
            self._count(stage, self._clock() - began)
            yield item
            began = self._clock()
        self._count(stage, self._clock() - began)

    def add(self, measured: StageSeconds) -> None:
        """Count what was measured elsewhere."""
        for name in _NAMES:
            if seconds := getattr(measured, name):
                self._count(name, seconds)

    @property
    def seconds(self) -> StageSeconds:
        """What was counted so far."""
        return StageSeconds(**self._seconds)

    def take(self) -> StageSeconds:
        """What was counted since it was last taken."""
        taken = self.seconds
        self._seconds.clear()
        return taken

    def _count(self, stage: Stage, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._total += seconds


_NAMES: tuple[Stage, ...] = tuple(field.name for field in dataclasses.fields(StageSeconds))  # type: ignore[misc]
