"""The batch budget of a run without a profile: grown while it pays, in a hundredth of the run's time.

The probes are made before the first chunk, and what they find is frozen in the run folder, so that a
resume batches alike. They have the lengths of rows of the input, but harmless words: a row that kills
the process must do so in its own chunk, where it is marked (attempts.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from batchinfer.batching import make_batches
from batchinfer.core import Batch, BatchBudget, Chunk, ChunkId, Position, Requests
from batchinfer.engines import create_encoder
from batchinfer.engines.base import Engine
from batchinfer.errors import BatchInferError
from batchinfer.plan import Plan
from batchinfer.readers.columns import is_list
from batchinfer.tuning.sample import BYTES_A_TOKEN, sample_requests

log = logging.getLogger("batchinfer")

#: The share of a run that finding its budget may take, and at most so many seconds.
SHARE = 0.01
MAX_SECONDS = 30.0
#: A larger budget has to be faster by this share, or it is not worth its memory. On a CPU differences
#: are as small as what other processes do to a probe.
GAIN, GAIN_OF_CPU = 0.02, 0.05
#: The share of a device's memory that a batch may need; the rest is for fragments and longer rows.
MEMORY_SHARE = 0.87
#: Tokens a second that no engine answers more than: below, a run is over before a probe would pay.
_FASTEST = {"cpu": 50_000, "other": 2_000_000}
#: Batches of a probe, the first of which is not timed.
_BATCHES = 3
_MAX_ROWS = 20_000
_WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun "
_TEXTS = (pat.is_string, pat.is_large_string, pat.is_binary, pat.is_large_binary)

#: Makes a number of batches of a budget.
MakeBatches = Callable[[BatchBudget, int], list[Batch]]


def probe_budget(
    engine: Engine, plan: Plan, model_folder: Path | None, stopped: Callable[[], bool]
) -> BatchBudget:
    """The budget to freeze for a job that has none; the engine's default where probing cannot pay.

    It is also the default where the input cannot be read: the run says so, at its place.
    """
    usual = engine.default_budget
    most = MAX_SECONDS
    if plan.config.deadline is not None:
        most = min(most, SHARE * plan.config.deadline)

    def pays(expected_tokens: float) -> bool:
        """Whether a second or more is left for the probes, even if the device is that fast."""
        fastest = _FASTEST["cpu" if engine.device_kind == "cpu" else "other"]
        return min(most, SHARE * expected_tokens / fastest) >= 1.0

    longest = min(float(plan.model.max_length), plan.row_bytes)  # no token is less than a byte
    # Nothing but rows of the input would do for a module, and one may kill the process; an answer that
    # is written takes as long as its longest row.
    if not engine.task.takes_text or engine.task.tokens_ahead:
        return usual
    if plan.config.engine == "fake" or not pays(plan.num_rows_estimate * longest):
        return usual
    try:
        requests = _harmless(plan, model_folder, engine)
    except BatchInferError as error:
        log.debug(f"batches are not probed: {error}")
        return usual
    if not len(requests):
        return usual
    expected = int(plan.num_rows_estimate * float(requests.cost.mean()))
    if not pays(expected):
        return usual

    def batches(budget: BatchBudget, num: int) -> list[Batch]:
        found = [b for b in make_batches(ChunkId(0, 0), requests, budget) if len(b)]
        # Evenly spaced: neither the longest rows alone nor the shortest.
        return [found[(2 * i + 1) * len(found) // (2 * num)] for i in range(num)]

    return choose_budget(engine, batches, expected, max_seconds=most, stopped=stopped)


def choose_budget(
    engine: Engine,
    batches: MakeBatches,
    expected_tokens: int,
    *,
    max_seconds: float = MAX_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    stopped: Callable[[], bool] = lambda: False,
) -> BatchBudget:
    """Grow the engine's budget while throughput and memory allow it; shrink it where memory ran out.

    `expected_tokens` of the whole run: the probes may take a share of the time for those, and at most
    `max_seconds`.
    """
    began, best, allowed = clock(), 0.0, max_seconds
    budget = tried = engine.default_budget
    gain = GAIN_OF_CPU if engine.device_kind == "cpu" else GAIN
    memory = MemoryModel(engine)

    def is_over() -> bool:
        return stopped() or clock() - began > allowed

    found = _probe(engine, batches, tried, memory, clock, is_over)
    while found and engine.ceiling_tokens is None and found.rate >= best * (1 + gain):
        budget, best = tried, found.rate
        allowed = min(max_seconds, SHARE * expected_tokens / max(1e-9, best))
        tried = BatchBudget(2 * budget.max_batch_tokens, budget.max_batch_rows)
        if clock() - began + 2 * found.seconds > allowed or found.is_whole:
            break
        if not memory.has_room_for(tried.max_batch_tokens):
            break
        found = _probe(engine, batches, tried, memory, clock, is_over)
    if engine.ceiling_tokens is not None:
        budget = _below(budget, engine.ceiling_tokens)
    log.debug(
        f"probed batches for {clock() - began:.1f} s: {budget.max_batch_tokens:,} tokens a batch, "
        f"{best:,.0f} tokens/s"
    )
    return budget


class MemoryModel:
    """What a batch needs of the device's memory, as a line through what others needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sizes: list[int] = []
        self._peaks: list[int] = []
        self._available = 0
        engine.memory_use()  # from here on

    def saw(self, tokens: int) -> None:
        """Take down what was needed since last time, the largest batch of which had so many tokens."""
        if (use := self._engine.memory_use()) is not None:
            self._sizes.append(tokens)
            self._peaks.append(use.peak)
            self._available = use.available

    def has_room_for(self, tokens: int) -> bool:
        """Whether a batch of this size will fit; yes where nothing is known."""
        if not self._peaks:
            return True
        if len(set(self._sizes)) < 2:
            # The weights are part of the peak: this errs on the safe side.
            need = self._peaks[-1] * tokens / max(1, self._sizes[-1])
        else:
            slope, base = np.polyfit(self._sizes, self._peaks, 1)
            need = max(0.0, slope) * tokens + base
        return bool(need <= MEMORY_SHARE * self._available)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a probe found: tokens a second, its own seconds, and whether the sample fills no batch."""

    rate: float
    seconds: float
    is_whole: bool


def _probe(
    engine: Engine,
    batches: MakeBatches,
    budget: BatchBudget,
    memory: MemoryModel,
    clock: Callable[[], float],
    is_over: Callable[[], bool],
) -> _Found | None:
    """Time batches of a budget; None where that was over before they were answered."""
    # As many for each stream, lest some stand still at the end.
    timed = engine.streams if engine.streams > 1 else _BATCHES - 1
    first, *others = batches(budget, 1 + timed)
    began = clock()
    # What is paid once is not timed: kernels, caches, memory from the driver. Where memory is known, a
    # half of a batch, then a whole one: two points of the line that it follows.
    parts = (first.halves()[0], first) if engine.memory_use() is not None else (first,)
    for part in parts:
        if len(part):
            if not _answer_all(engine, [part] * engine.streams, is_over):
                return None
            memory.saw(_size(part))
    started = clock()
    if not _answer_all(engine, others, is_over):
        return None
    ended = clock()
    largest = max(map(_size, (first, *others)))
    memory.saw(largest)
    tokens = sum(batch.num_tokens for batch in others)
    return _Found(
        rate=tokens / max(1e-9, ended - started),
        seconds=ended - began,
        is_whole=2 * largest < budget.max_batch_tokens,
    )


def _answer_all(engine: Engine, batches: Sequence[Batch], is_over: Callable[[], bool]) -> bool:
    """Answer batches until it is over; whether all of them were answered."""
    asked = 0

    def feed() -> Iterator[Batch]:
        nonlocal asked
        for batch in batches:
            if is_over():
                return
            asked += 1
            yield batch

    for _ in engine.stream(feed()):
        pass
    return asked == len(batches)


def _size(batch: Batch) -> int:
    return len(batch) * batch.max_length


def _below(budget: BatchBudget, ceiling: int) -> BatchBudget:
    """The budget, halved until it is below what memory was seen to suffice for."""
    tokens = budget.max_batch_tokens
    while tokens > max(1, ceiling):
        tokens //= 2
    return BatchBudget(tokens, budget.max_batch_rows)


def _harmless(plan: Plan, model_folder: Path | None, engine: Engine) -> Requests:
    """Requests as long as rows of the input, made of ordinary words.

    A template gets such words in place of the rows' own, and may decide otherwise what it decides by them.
    """
    encoder = create_encoder(plan.config, plan.model, model_folder)
    longest = int(2 * BYTES_A_TOKEN * plan.model.max_length)
    text = f"{plan.model.mask_token} {_WORDS * (longest // len(_WORDS) + 1)}".lstrip()

    def alike(column: Any) -> pa.Array[Any]:
        """As many characters in each text, also in those of lists and structs; numbers as they are."""
        if is_list(column.type):
            counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
            return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), alike(column.flatten()))
        if pat.is_struct(column.type):
            parts = [alike(column.field(i)) for i in range(column.type.num_fields)]
            names = [field.name for field in column.type]
            return pa.StructArray.from_arrays(parts, names=names, mask=column.is_null())
        if pat.is_nested(column.type) or pat.is_dictionary(column.type):
            return pa.nulls(len(column), pa.string())
        if not any(is_kind(column.type) for is_kind in _TEXTS):
            kept: pa.Array[Any] = column
            return kept
        sizes: Any = pc.fill_null(pc.binary_length(column), 0)
        shown = np.minimum(sizes.to_numpy(zero_copy_only=False), longest).tolist()
        return pa.array([text[:size] for size in shown], pa.string())

    def encode(found: Chunk) -> Requests:
        columns: dict[str, Any] = {}
        for name in found.table.column_names:
            columns[name] = pa.chunked_array([alike(found.table.column(name).combine_chunks())])
        chunk = Chunk(ChunkId(0, 0), pa.table(columns), {}, Position(), Position(), True, "")
        return engine.task.encode(chunk, encoder)

    wanted = 4 * _BATCHES * engine.streams * engine.default_budget.max_batch_tokens
    return sample_requests(plan, wanted, encode, _MAX_ROWS)
