"""Timing one setting: the same rows for each, a warm-up, repetitions until their median stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from batchinfer.core import Batch, BatchBudget
from batchinfer.engines.base import Engine
from batchinfer.tuning.accuracy import cut
from batchinfer.tuning.sample import Sample

#: A repetition should take about so long, in seconds: many times what a clock or a scheduler adds.
REPETITION_SECONDS = 0.5
MIN_REPETITIONS, MAX_REPETITIONS = 3, 6
#: The middle half of the repetitions lies within this share of the median: it stands.
STABLE = 0.02
#: After one repetition at less than this share of the best, a setting is not worth the others.
HOPELESS = 0.8
#: Windows of the sample, from long rows to short ones.
MAX_WINDOWS = 4
#: The first batch that an engine is calibrated by is this part of its budget, the next ones larger by
#: this factor: a whole one of a slow model might take all of the time.
_FIRST_PART, _GROWTH = 16, 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What a setting does: useful tokens a second, seconds a full batch, and how sure that is.

    `spread`: the middle half of the repetitions, as a share of their median. `ran_out`: of memory.
    `is_hopeless`: too slow to be timed again. `is_short`: timed less often than it takes to be believed.
    """

    tokens_per_second: float
    latency: float
    spread: float
    ran_out: bool = False
    is_hopeless: bool = False
    is_short: bool = False


class Bench:
    """Times engines on a sample.

    All settings answer the same windows of the length-sorted sample, so that a small budget is not
    flattered by shorter rows; each repetition moves them on, as no two batches of a run have one shape.
    `deadline` is by `clock`, in seconds. `tokens_ahead`: those that each request may write.
    """

    def __init__(
        self,
        sample: Sample,
        deadline: float,
        clock: Callable[[], float],
        tokens_ahead: int = 0,
    ) -> None:
        self.sample, self.deadline, self.clock = sample, deadline, clock
        self.tokens_ahead = tokens_ahead
        self.seconds = deadline - clock()
        lengths = sample.requests.cost[sample.order].astype(np.int64)
        #: Tokens before each request of the sorted sample, and all of them.
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._windows = 1
        self._window_tokens = 0
        #: Tokens a second of the engine that this was calibrated by; 0: not yet.
        self.rate = 0.0
        #: Batches that the engine timed last answers at a time.
        self.streams = 1

    @property
    def seconds_left(self) -> float:
        return self.deadline - self.clock()

    @property
    def is_half_over(self) -> bool:
        """Whether more of the time has passed than is left."""
        return 2 * self.seconds_left < self.seconds

    def calibrate(self, engine: Engine, budget: BatchBudget) -> None:
        """Choose how much is answered in a repetition, by batches of up to this budget."""
        most = self._size(budget)
        size, self.streams = max(1, most // _FIRST_PART), engine.streams
        while True:
            rows = max(1, budget.max_batch_rows * size // most)
            part = BatchBudget(max(1, budget.max_batch_tokens * size // most), rows)
            batch = self._batches(part, 0, 1, 0, 1)[0]
            everywhere = [batch] * engine.streams
            _, seconds = self._answer(everywhere, engine)
            if seconds < REPETITION_SECONDS:  # else what the first one pays once is little of it
                _, seconds = self._answer(everywhere, engine)
            if size == most or 2 * seconds > REPETITION_SECONDS:
                break
            size = min(most, _GROWTH * size)
        self.rate = engine.streams * batch.num_tokens / max(1e-9, seconds)
        tokens = REPETITION_SECONDS * self.rate
        windows = int(min(MAX_WINDOWS, max(1, 2 * tokens // most)))
        self._windows = 1 << (windows.bit_length() - 1)  # so that they divide among streams
        self._window_tokens = int(tokens / self._windows)

    def seconds_for(self, budget: BatchBudget, tokens_per_second: float) -> float:
        """About what measuring a setting takes that is as fast as this."""
        total, size = int(self._before[-1]), self._size(budget)
        batches = self._windows * self._per_window(budget)
        alone, a_repetition = min(size, total), min(batches * size, total)
        if a_repetition > alone:  # a batch is timed alone, too, on one stream of several
            a_repetition += alone * self.streams
        warm = alone * self.streams
        return (warm + MIN_REPETITIONS * a_repetition) / max(1.0, tokens_per_second)

    def measure(
        self, engine: Engine, budget: BatchBudget, best: float = 0.0, *, is_cold: bool = False
    ) -> Measured:
        """Time an engine at a budget; `best` is the rate that it has to come near to.

        `is_cold`: the first repetition makes the kernels of its shapes, and is not counted.
        """
        self.streams = engine.streams
        rates: list[float] = []
        latencies: list[float] = []
        last = 0.0
        for turn in range(-1 if is_cold else 0, MAX_REPETITIONS):
            if rates and self.clock() + last > self.deadline:
                break
            began = self.clock()
            batches = self._repetition(budget, max(0, turn))
            alone = batches[len(batches) // 2]
            if turn < 0:
                self._answer(batches, engine)
                continue
            if not turn and not is_cold:
                warm, seconds = self._answer([alone] * engine.streams, engine)
                if best and self.seconds_left < 0:
                    return _summary([warm * alone.num_tokens / max(1e-9, seconds)], [seconds])
            answered, seconds = self._answer(batches, engine)
            if answered < len(batches) and rates:  # the time is over; part of a repetition is none
                break
            latency = seconds / answered
            if len(batches) > 1 and self.seconds_left > 0:
                _, latency = self._answer([alone], engine)
            latencies.append(latency)
            tokens = sum(batch.num_tokens for batch in batches[:answered])
            rates.append(tokens / max(1e-9, seconds))
            last = self.clock() - began
            if engine.ceiling_tokens is not None and engine.ceiling_tokens < self._largest(budget):
                return _summary(rates, latencies, ran_out=True)
            if not turn and rates[0] < HOPELESS * best:
                return _summary(rates, latencies, is_hopeless=True)
            if len(rates) >= MIN_REPETITIONS and _spread(rates) < STABLE:
                break
        return _summary(rates, latencies)

    def _repetition(self, budget: BatchBudget, turn: int) -> list[Batch]:
        """The batches of one repetition, from every window."""
        num = self._per_window(budget)
        windows = (
            self._batches(budget, window, self._windows, turn, num)
            for window in range(self._windows)
        )
        return [batch for window in windows for batch in window]

    def _per_window(self, budget: BatchBudget) -> int:
        """Batches of a window: about the same tokens at each budget, and as many for each stream."""
        num = max(1, round(self._window_tokens / self._size(budget)))
        alike = math.lcm(self._windows, self.streams) // self._windows
        return -(-num // alike) * alike

    def _batches(
        self, budget: BatchBudget, window: int, windows: int, turn: int, num: int
    ) -> list[Batch]:
        """Full batches from one of the windows; a rest that fills none is left out."""
        total = int(self._before[-1])
        stratum = total / windows
        size = min(total, num * self._size(budget))
        # In the middle of its share of the sample, and further on with every turn.
        room = max(1.0, stratum - size)
        start = window * stratum + (max(0.0, stratum - size) / 2 + turn * size) % room
        start = min(max(0.0, start), total - size)
        first = int(np.searchsorted(self._before, start, side="right")) - 1
        rows = self.sample.order[first : int(np.searchsorted(self._before, start + 2 * size)) + 1]
        return cut(self.sample, rows, budget, self.tokens_ahead)[:num]

    def _largest(self, budget: BatchBudget) -> int:
        """The largest batch of a budget, as it counts: one of more is split, as memory did not suffice."""
        if not self.tokens_ahead:
            return budget.max_batch_tokens
        longest = int(self.sample.requests.cost.max()) + self.tokens_ahead
        return min(budget.max_batch_tokens, budget.max_batch_rows * longest)

    def _size(self, budget: BatchBudget) -> int:
        """About how many tokens of the input a full batch has."""
        mean = float(self._before[-1]) / max(1, len(self.sample.order))
        rows = min(
            budget.max_batch_rows, budget.max_batch_tokens / max(1.0, mean + self.tokens_ahead)
        )
        return max(1, round(rows * mean))

    def _answer(self, batches: list[Batch], engine: Engine) -> tuple[int, float]:
        """How many of these were answered before the time was over, at least one, and the seconds."""
        answered = 0

        def feed() -> Iterator[Batch]:
            nonlocal answered
            for batch in batches:
                if answered and self.seconds_left < 0:
                    return
                answered += 1
                yield batch

        started = self.clock()
        for _ in engine.stream(feed()):
            pass
        return answered, self.clock() - started


def _summary(
    rates: list[float], latencies: list[float], *, ran_out: bool = False, is_hopeless: bool = False
) -> Measured:
    return Measured(
        tokens_per_second=float(np.median(rates)),
        latency=float(np.median(latencies)),
        spread=_spread(rates),
        ran_out=ran_out,
        is_hopeless=is_hopeless,
        is_short=len(rates) < MIN_REPETITIONS,
    )


def _spread(rates: list[float]) -> float:
    low, middle, high = np.percentile(rates, [25, 50, 75])
    return float((high - low) / middle)
