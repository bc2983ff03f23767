"""How long batches take, by their size and by how long their rows are: a few of the run's own, timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batchinfer.core import Batch
from batchinfer.engines.base import Engine

#: The first batches are this part of a whole one (where answers are written, the second), the next ones
#: larger by this factor: a whole one of a slow model might take all of the time.
_FIRST_PART, _FIRST_WRITTEN_PART, _GROWTH = 64, 16, 4
#: A model that writes reads its weights once a step, for all rows: so four times the rows take no more than
#: so many times the time, and this share of a batch's time is there with few rows already.
_GROWTH_OF_WRITING, _FIXED_OF_WRITING = 2, 0.8
#: Below this, a batch is answered once more: what the first one pays once would be most of its time.
_SHORT_SECONDS = 0.5
#: A round of batches of all lengths takes about so long, and longer where that is too few of them; a class
#: has at least so many a stream.
ROUND_SECONDS, _ENOUGH_BATCHES = 2.0, 16
_BATCHES_OF_CLASS = 2
#: So many rounds are enough, or three that lie within this share of their median.
MIN_ROUNDS, MAX_ROUNDS = 3, 6
STABLE = 0.02
#: Batches are told apart by the length of their rows in so many classes at most.
MAX_CLASSES = 8
#: The golden ratio: so shifted, rounds meet batches that none has met.
_GOLDEN = 0.618034
#: Of a round's time, what the batches of half the size need besides.
_HALVES_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class LengthClass:
    """Batches whose rows are about as long: tokens of a row; the size of a batch, and its seconds."""

    length: float
    size: float
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Seconds a batch takes of a device that is busy throughout; of several streams, what each adds.

    A batch takes `fixed` seconds and, by its length class, more for its size: in tokens, or in rows where
    answers are written (`by_rows`). `cold`: what the first batches took longer, once. `spread`: how far
    rounds lie apart, as a share. `is_whole`: whether batches of the run's own size were timed. `written`:
    tokens of the answers that were written meanwhile.
    """

    classes: tuple[LengthClass, ...]
    fixed: float
    by_rows: bool
    cold: float = 0.0
    spread: float = 0.0
    is_whole: bool = True
    written: tuple[int, ...] = ()

    def seconds(self, tokens: float, rows: int) -> float:
        """What a batch of so many rows with so many tokens takes."""
        if not rows:
            return 0.0
        lengths = [one.length for one in self.classes]
        slopes = [(one.seconds - self.fixed) / one.size for one in self.classes]
        slope = float(np.interp(tokens / rows, lengths, slopes))
        return self.fixed + slope * (rows if self.by_rows else tokens)


def measure(
    engine: Engine, batches: Sequence[Batch], deadline: float, clock: Callable[[], float]
) -> Speed | None:
    """Time batches of a sample, which are sorted by length, until it is clear what they take.

    Returns None where not even a small one is answered before `deadline`, by `clock`.
    """
    engine.stopped = lambda: clock() > deadline  # asked by what writes answers, behind each token
    return _Measuring(engine, batches, deadline, clock).speed()


class _Measuring:
    def __init__(
        self, engine: Engine, batches: Sequence[Batch], deadline: float, clock: Callable[[], float]
    ) -> None:
        self.engine, self.batches = engine, [batch for batch in batches if len(batch)]
        self.deadline, self.clock = deadline, clock
        self.by_rows = engine.task.tokens_ahead > 0
        self.cold = 0.0
        self.written: list[int] = []

    def speed(self) -> Speed | None:
        if not self.batches:
            return None
        grown = self._grow()
        if not grown:
            return None
        last, middle = grown[-1], self.batches[len(self.batches) // 2]
        is_whole = last.size >= self._size(middle)
        a_round = _BATCHES_OF_CLASS * self.engine.streams * last.seconds
        if is_whole and 2 * a_round < self.deadline - self.clock():
            return self._by_length(last)
        fixed = _intercept(grown)
        if len(grown) == 1 and self.by_rows:
            fixed = _FIXED_OF_WRITING * last.seconds
        written = tuple(self.written)
        return Speed((last,), fixed, self.by_rows, self.cold, is_whole=is_whole, written=written)

    # -- growing ---------------------------------------------------------------------------------

    def _grow(self) -> list[LengthClass]:
        """Parts of a batch from the middle, larger and larger, up to all of it, while there is time."""
        batch, streams = self.batches[len(self.batches) // 2], self.engine.streams
        found: list[LengthClass] = []
        first, growth = _FIRST_PART, 2 * _GROWTH
        if self.by_rows:
            first, growth = _FIRST_WRITTEN_PART, _GROWTH_OF_WRITING
        rows = max(1, len(batch) // first)
        while True:
            part = _part(batch, rows)
            seconds = self._time([part] * streams)
            if seconds is None:
                return found
            left = self.deadline - self.clock()
            if seconds < _SHORT_SECONDS or (not found and 2 * growth * seconds < left):
                again = self._time([part] * streams)
                if again is not None:
                    self.cold += max(0.0, seconds - again)
                    seconds = again
            size = self._size(part)
            found.append(LengthClass(part.num_tokens / len(part), size, seconds / streams))
            if rows == len(batch) or growth * seconds > self.deadline - self.clock():
                return found
            rows = min(len(batch), rows * _GROWTH)

    def _time(self, batches: Sequence[Batch]) -> float | None:
        """Seconds for all of these; None where the time was over before."""
        ready = self._ready(batches)
        began, answered = self.clock(), 0
        for part, answers in self.engine.stream(ready):
            answered += len(part)
            if self.by_rows and answers.error is None:
                self.written += answers.values["count"].tolist()
        whole = answered == sum(map(len, batches))
        return self.clock() - began if whole else None

    def _ready(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches as they come to the device; a run pins them ahead of it."""
        return [batch.pin_memory() for batch in batches] if self.engine.pins_memory else batches

    # -- rounds ----------------------------------------------------------------------------------

    def _by_length(self, middle: LengthClass) -> Speed:
        """Rounds of batches of all lengths; each takes others, as no two batches of a run are alike."""
        number, streams = len(self.batches), self.engine.streams
        left = self.deadline - self.clock()
        seconds = max(ROUND_SECONDS, _ENOUGH_BATCHES * middle.seconds)
        seconds = min(seconds, left / (MIN_ROUNDS + 2))
        at_least = _BATCHES_OF_CLASS * streams
        count = max(at_least, int(seconds / max(1e-9, middle.seconds)))
        count = max(1, min(number, count // streams * streams))
        num_classes = max(1, min(MAX_CLASSES, count // at_least))
        rounds: list[list[_Tally]] = []
        last = 0.0
        while len(rounds) <= MAX_ROUNDS and (
            not rounds or self.clock() + (1 + _HALVES_SHARE) * last < self.deadline
        ):
            began = self.clock()
            rounds.append(self._round(_spaced(number, count, len(rounds)), num_classes))
            last = self.clock() - began
            if len(rounds) > MIN_ROUNDS and _spread(rounds[1:]) < STABLE:
                break
        warm = rounds[1:] or rounds
        classes = _classes(warm)
        warmed = self._expected(_spaced(number, count, 0), classes)
        self.cold += max(0.0, sum(one.seconds for one in rounds[0]) - warmed)
        fixed = 0.0
        if self.clock() + last < self.deadline:
            fixed = self._fixed(_spaced(number, max(1, count // 2), 0), classes)
        written = tuple(self.written)
        return Speed(classes, fixed, self.by_rows, self.cold, _spread(warm) / 2, written=written)

    def _round(self, chosen: Sequence[int], num_classes: int, part: int = 1) -> list[_Tally]:
        """Answer these batches, or one `part`-th of each; what those of each class took."""
        tallies = [_Tally() for _ in range(num_classes)]
        class_of: dict[int, int] = {}
        batches = []
        for index in chosen:
            batch = self.batches[index]
            batch = _part(batch, max(1, len(batch) // part))
            number = index * num_classes // len(self.batches)
            class_of.update(dict.fromkeys(batch.indices.tolist(), number))
            tallies[number].batches += 1
            batches.append(batch)
        ready = self._ready(batches)
        before = self.clock()
        for answered, _ in self.engine.stream(ready):
            now = self.clock()
            tally = tallies[class_of[int(answered.indices[0])]]
            tally.seconds += now - before
            tally.size += self._size(answered)
            tally.tokens += answered.num_tokens
            tally.rows += len(answered)
            before = now
        return tallies

    def _fixed(self, chosen: Sequence[int], classes: tuple[LengthClass, ...]) -> float:
        """What a batch takes however small it is: by that much, two halves take longer than a whole."""
        self._round(chosen, 1, part=2)  # of sizes that are new to the engine
        halves = self._round(chosen, 1, part=2)[0]
        fixed = (2 * halves.seconds - self._expected(chosen, classes)) / len(chosen)
        return min(max(0.0, fixed), min(one.seconds for one in classes) / 2)

    def _expected(self, chosen: Sequence[int], classes: tuple[LengthClass, ...]) -> float:
        """What these batches take, by what those of their classes took."""
        speed = Speed(classes, 0.0, self.by_rows)
        batches = (self.batches[index] for index in chosen)
        return sum(speed.seconds(batch.num_tokens, len(batch)) for batch in batches)

    def _size(self, batch: Batch) -> int:
        return len(batch) if self.by_rows else batch.num_tokens


@dataclass(slots=True)
class _Tally:
    """What was answered of a class in a round."""

    size: int = 0
    tokens: int = 0
    rows: int = 0
    batches: int = 0
    seconds: float = 0.0


def _rates(rounds: Sequence[Sequence[_Tally]]) -> list[float]:
    """Of each class, seconds for one of its size: the median of the rounds."""
    return [
        float(np.median([one.seconds / one.size for one in several if one.size] or [0.0]))
        for several in zip(*rounds, strict=True)
    ]


def _classes(rounds: Sequence[Sequence[_Tally]]) -> tuple[LengthClass, ...]:
    """The classes that were answered, by rising length."""
    found = []
    for several, rate in zip(zip(*rounds, strict=True), _rates(rounds), strict=True):
        tokens, rows, size, batches = (
            sum(getattr(one, name) for one in several)
            for name in ("tokens", "rows", "size", "batches")
        )
        if size:
            found.append(LengthClass(tokens / rows, size / batches, rate * size / batches))
    return tuple(sorted(found, key=lambda one: one.length))


def _spread(rounds: Sequence[Sequence[_Tally]]) -> float:
    """How far the slowest and the fastest round lie apart, each beside what its classes took."""
    rates = _rates(rounds)
    shares = []
    for tallies in rounds:
        expected = sum(one.size * rate for one, rate in zip(tallies, rates, strict=True))
        shares.append(sum(one.seconds for one in tallies) / max(1e-12, expected))
    return max(shares) - min(shares)


def _spaced(number: int, count: int, turn: int) -> list[int]:
    """`count` of so many batches, evenly spaced; others at each turn."""
    shift = turn * _GOLDEN % 1.0
    return sorted({int((index + shift) * number / count) for index in range(count)})


def _part(batch: Batch, rows: int) -> Batch:
    """So many of a batch's rows, evenly spaced, so that they are as long."""
    if rows >= len(batch):
        return batch
    kept = np.zeros(len(batch), np.bool_)
    kept[np.arange(rows) * len(batch) // rows] = True
    return batch.keep(kept)


def _intercept(points: Sequence[LengthClass]) -> float:
    """What is left at size nought, by the last two points; never more than most of the smaller one."""
    if len(points) < 2:
        return 0.0
    one, two = points[-2:]
    slope = (two.seconds - one.seconds) / max(1e-9, two.size - one.size)
    return min(max(0.0, one.seconds - slope * one.size), 0.95 * one.seconds)
