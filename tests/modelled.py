"""Engines without a model whose speed and memory are known functions of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from batchinfer.core import Answers, Batch, BatchBudget, Chunk, ChunkId, Position
from batchinfer.engines.fake import FakeEncoder, FakeEngine, describe
from batchinfer.machine import MemoryUse
from batchinfer.tasks import create_task
from batchinfer.tuning.sample import Sample, as_sample

TASK = create_task(describe("classify", None))
WRITING = create_task(describe("generate", None))


class Clock:
    """Time that passes only where something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Modelled(FakeEngine):
    """Answers a batch of `size` (rows times longest) at `rate(size)` tokens a second.

    `room`: a larger batch runs out of memory. `shift` is added to every score, NaN for rows of
    `fails_at` tokens. `bytes_a_token`, with `weights` below them, of `memory` bytes: what it says of
    its memory. `threads` and `streams` that it has by itself.
    """

    def __init__(
        self,
        clock: Clock,
        rate: Callable[[int], float],
        *,
        room: int | None = None,
        shift: float = 0.0,
        budget: int = 4096,
        memory: tuple[int, int, int] | None = None,
        device_kind: str = "cpu",
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        super().__init__(TASK)
        self.clock, self.rate, self.room, self.shift = clock, rate, room, shift
        self.default_budget = BatchBudget(budget, 4096)
        self.memory, self.peak = memory, 0
        self.device_kind, self.threads, self.num_streams = device_kind, threads, streams
        self.sizes: list[int] = []

    @property
    def streams(self) -> int:
        return self.num_streams  # though it answers one after the other, by its own clock

    def answer(self, batch: Batch) -> Answers:
        size = len(batch) * batch.max_length
        self.sizes.append(size)
        if self.room is not None and size > self.room:
            raise MemoryError("no room")
        if self.memory is not None:
            weights, a_token, _ = self.memory
            self.peak = max(self.peak, weights + a_token * size)
        self.clock.now += batch.num_tokens / self.rate(size)
        answers = super().answer(batch)
        answers.values["score"][:] += np.float32(self.shift)
        return answers

    def memory_use(self) -> MemoryUse | None:
        if self.memory is None:
            return None
        peak, self.peak = self.peak, 0
        return MemoryUse(peak, self.memory[2])


class Writing(FakeEngine):
    """Writes for batches of rows at `rate(rows)` tokens a second; `other` is added to each token."""

    def __init__(self, clock: Clock, rate: Callable[[int], float], *, rows: int, other: int = 0):
        super().__init__(WRITING)
        self.clock, self.rate, self.other = clock, rate, other
        self.default_budget = BatchBudget(1 << 20, rows)
        self.sizes: list[int] = []

    def answer(self, batch: Batch) -> Answers:
        self.sizes.append(len(batch))
        self.clock.now += batch.num_tokens / self.rate(len(batch))
        answers = super().answer(batch)
        answers.values["tokens"][:] += self.other
        return answers


def sample_of(lengths: Sequence[int]) -> Sample:
    """A sample of requests of these lengths in tokens, encoded at a million tokens a second."""
    texts = ["x" * (4 * (length - 1)) for length in lengths]
    table = pa.table({"text": pa.array(texts, pa.string())})
    chunk = Chunk(ChunkId(0, 0), table, {}, Position(), Position(), True, "")
    return as_sample(TASK.encode(chunk, FakeEncoder(512)), sum(lengths) / 1e6)
