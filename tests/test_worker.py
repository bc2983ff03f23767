"""The worker: answers gathered by chunk, failures kept to their rows, stops that lose nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer import RunConfig, worker
from batchinfer.batching import make_batches
from batchinfer.core import (
    AnsweredChunk,
    Answers,
    Batch,
    BatchBudget,
    Chunk,
    ChunkId,
    LoadedChunk,
    Position,
)
from batchinfer.engines.base import StoppedError
from batchinfer.engines.fake import FakeEncoder, FakeEngine, describe
from batchinfer.errors import ModelError
from batchinfer.gathering import WRITE_BEHIND, Gathering, answer, write_behind
from batchinfer.planning import make_plan
from batchinfer.profiles import Settings, Tuned
from batchinfer.reporting.monitor import Monitor
from batchinfer.reporting.progress import Rates
from batchinfer.stages import Stopwatch
from batchinfer.stop import GRACE_SECONDS, MARGIN_SECONDS, StopSignal
from batchinfer.tasks import create_task
from batchinfer.worker import Worker

TASK = create_task(describe("classify", None))
BUDGET = BatchBudget(64, 8)


def loaded_chunk(index: int, texts: list[str | None]) -> LoadedChunk:
    table = pa.table({"text": pa.array(texts, pa.string())})
    errors = {row: "no text" for row, text in enumerate(texts) if text is None}
    chunk = Chunk(ChunkId(0, index), table, errors, Position(), Position(), False, "")
    requests = TASK.encode(chunk, FakeEncoder(512))
    return LoadedChunk(chunk, requests, make_batches(chunk.id, requests, BUDGET))


def texts(count: int, seed: int = 0) -> list[str | None]:
    return [f"{seed} {'word ' * (i % 9)}{i}" for i in range(count)]


def answer_all(
    chunks: Iterable[LoadedChunk], engine: FakeEngine, stop: StopSignal | None = None
) -> list[AnsweredChunk]:
    return list(answer(chunks, engine, Rates(), stop or StopSignal()))


class OutOfMemory(FakeEngine):
    """Runs out of memory on every batch of more than `room` tokens."""

    def __init__(self, room: int) -> None:
        super().__init__(TASK)
        self.room = room
        self.recovered = 0

    def answer(self, batch: Batch) -> Answers:
        if batch.num_tokens > self.room:
            raise MemoryError("no room")
        return super().answer(batch)

    def recover(self) -> None:
        self.recovered += 1


class Poisoned(FakeEngine):
    """Fails on every batch that holds a text of `tokens` tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__(TASK)
        self.tokens = tokens

    def answer(self, batch: Batch) -> Answers:
        if self.tokens in batch.lengths:
            raise ValueError("poison")
        return super().answer(batch)


class NotANumber(FakeEngine):
    """Answers NaN to the first request of every batch."""

    def answer(self, batch: Batch) -> Answers:
        answers = super().answer(batch)
        answers.values["score"][0] = np.nan
        return answers


class Backwards(FakeEngine):
    """Answers in reverse order, across chunks, as continuous batching might."""

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Answers]]:
        for batch in reversed(list(batches)):
            yield batch, self.answer(batch) if len(batch) else self.no_answers()


def test_answers_stand_at_the_row_that_asked() -> None:
    [done] = answer_all([loaded_chunk(0, texts(50))], FakeEngine(TASK))
    for row, text in enumerate(texts(50)):
        [alone] = answer_all([loaded_chunk(0, [text])], FakeEngine(TASK))
        assert done.values["score"][row] == alone.values["score"][0]


def test_the_order_of_answers_does_not_matter() -> None:
    chunks = [loaded_chunk(i, texts(30, seed=i)) for i in range(3)]
    forward = answer_all(chunks, FakeEngine(TASK))
    backward = answer_all(chunks, Backwards(TASK))
    assert [c.chunk.id.chunk for c in backward] == [2, 1, 0]
    for a, b in zip(forward, reversed(backward), strict=True):
        np.testing.assert_array_equal(a.values["score"], b.values["score"])


def test_out_of_memory_halves_batches_and_changes_no_answer() -> None:
    chunk = loaded_chunk(0, texts(60))
    engine = OutOfMemory(room=20)
    [halved] = answer_all([chunk], engine)
    [whole] = answer_all([chunk], FakeEngine(TASK))
    assert engine.recovered > 0
    assert not halved.errors
    np.testing.assert_array_equal(halved.values["score"], whole.values["score"])


def test_what_ran_out_of_memory_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    engine = OutOfMemory(room=20)
    answer_all([loaded_chunk(0, texts(60))], engine)
    learned = engine.recovered
    caplog.clear()
    [second] = answer_all([loaded_chunk(1, texts(60))], engine)
    assert engine.recovered == learned > 0
    assert not caplog.records
    [whole] = answer_all([loaded_chunk(1, texts(60))], FakeEngine(TASK))
    np.testing.assert_array_equal(second.values["score"], whole.values["score"])


def test_a_batch_that_fails_for_another_reason_teaches_nothing_about_memory() -> None:
    engine = Poisoned(tokens=101)
    answer_all([loaded_chunk(0, [*texts(40), "x" * 400])], engine)
    assert not any(engine.is_too_large(batch) for batch in loaded_chunk(1, texts(60)).batches)


def test_a_row_too_large_for_the_memory_alone_is_an_error() -> None:
    [done] = answer_all([loaded_chunk(0, [*texts(40), "x" * 240])], OutOfMemory(room=40))
    assert done.errors == {40: "MemoryError: no room"}


def test_a_row_that_fails_alone_is_an_error_and_the_others_are_untouched() -> None:
    chunk = loaded_chunk(0, [*texts(40), "x" * 400])
    [done] = answer_all([chunk], Poisoned(tokens=101))
    [whole] = answer_all([chunk], FakeEngine(TASK))
    assert done.errors == {40: "ValueError: poison"}
    np.testing.assert_array_equal(done.values["score"][:40], whole.values["score"][:40])


def test_a_model_that_fails_on_every_row_stops_the_run() -> None:
    class Broken(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            raise RuntimeError("no kernel image is available")

    with pytest.raises(ModelError, match="every row.*no kernel image"):
        answer_all([loaded_chunk(0, texts(40))], Broken(TASK))


def test_a_model_that_fails_on_every_row_stops_the_run_however_small_its_batches() -> None:
    alone = []
    for batch in loaded_chunk(0, texts(60)).batches:
        tokens = {"input_ids": batch.fields["input_ids"][: batch.max_length]}
        alone.append(Batch(batch.chunk, batch.indices[:1], batch.lengths[:1], tokens))

    class Broken(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            raise RuntimeError("no kernel image is available")

    with pytest.raises(ModelError, match="every row.*no kernel image"):
        list(Broken(TASK).stream(alone))


def test_a_lost_device_stops_the_run() -> None:
    class Lost(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            if batch.max_length < 5:
                raise ValueError("illegal memory access")
            return super().answer(batch)

        def is_fatal(self, error: Exception) -> bool:
            return isinstance(error, ValueError)

    with pytest.raises(ModelError, match="illegal memory access"):
        answer_all([loaded_chunk(0, texts(40))], Lost(TASK))


def test_an_answer_that_is_not_a_number_is_an_error() -> None:
    chunk = loaded_chunk(0, texts(5))
    [done] = answer_all([chunk], NotANumber(TASK))
    assert done.errors == {4: "the model's answer is NaN or infinite"}  # the longest comes first


def test_chunks_of_bad_rows_come_out_as_they_are_read() -> None:
    read: list[int] = []

    def chunks() -> Iterator[LoadedChunk]:
        for index in range(5):
            read.append(index)
            yield loaded_chunk(index, [None, None])

    answered = answer(chunks(), FakeEngine(TASK), Rates(), StopSignal())
    first = next(answered)
    assert first.errors == {0: "no text", 1: "no text"}
    assert read == [0], "a file full of bad rows must not pile up in memory"


def test_a_stop_finishes_the_chunk_that_is_begun_and_begins_no_other() -> None:
    stop = StopSignal()

    def chunks() -> Iterator[LoadedChunk]:
        yield loaded_chunk(0, texts(40))
        stop.set()
        yield loaded_chunk(1, texts(40))

    assert [c.chunk.id.chunk for c in answer_all(chunks(), FakeEngine(TASK), stop)] == [0]


def test_a_stop_gives_up_a_chunk_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchinfer.stop.GRACE_SECONDS", 0.0)
    stop = StopSignal()

    class StopsAtOnce(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            stop.set()
            return super().answer(batch)

    assert answer_all([loaded_chunk(0, texts(40))], StopsAtOnce(TASK), stop) == []


def test_a_deadline_leaves_time_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    stop = StopSignal()
    stop.set_by(3600)
    now += 3600 - MARGIN_SECONDS - 1
    assert not stop.is_set
    now += 1
    assert stop.is_set
    assert not stop.out_of_time
    now += GRACE_SECONDS
    assert stop.out_of_time


def test_a_short_deadline_leaves_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    stop = StopSignal()
    stop.set_by(4)
    now += 1.9
    assert not stop.is_set
    now += 0.1
    assert stop.is_set


def test_progress_counts_every_row_once() -> None:
    rates = Rates()
    chunks = [loaded_chunk(0, [*texts(20), None]), loaded_chunk(1, [None])]
    list(answer(chunks, FakeEngine(TASK), rates, StopSignal()))
    assert (rates.num_rows, rates.num_errors) == (22, 2)


def test_rows_of_several_requests_count_once() -> None:
    loaded = loaded_chunk(0, texts(12))
    several = dataclasses.replace(
        loaded,
        requests=dataclasses.replace(loaded.requests, row=np.arange(12, dtype=np.int32) // 3),
    )
    gathered = Gathering.of(several, TASK.answers)
    assert gathered.num_asked_about == 4
    assert sum(gathered.num_answered_by(batch.indices) for batch in several.batches) == 4


def test_the_writer_falls_behind_by_a_bounded_number_of_chunks() -> None:
    asked: list[int] = []
    written: list[int] = []

    def answered() -> Iterator[int]:
        for index in range(20):
            asked.append(index)
            assert len(asked) - len(written) <= WRITE_BEHIND + 2
            yield index

    def commit(index: int) -> int:
        written.append(index)
        return index

    assert list(write_behind(commit, answered(), Stopwatch())) == list(range(20))  # type: ignore[arg-type]


def test_a_failed_write_stops_the_run() -> None:
    def commit(index: int) -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(write_behind(commit, iter(range(5)), Stopwatch()))  # type: ignore[arg-type]


def test_a_batch_that_hears_a_stop_is_dropped() -> None:
    """Whoever drives the engine: a run, or an audit."""
    stop = StopSignal()

    class Stepwise(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            stop.set()
            stop._grace_ends = 0.0
            if self.stopped():
                raise StoppedError
            return super().answer(batch)

    assert answer_all([loaded_chunk(0, texts(2))], Stepwise(TASK), stop) == []


def test_a_stop_out_of_time_drops_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeEngine):
        def answer(self, batch: Batch) -> Answers:
            asked.append(batch)
            stop.set()
            time.sleep(0.1)
            return super().answer(batch)

    monkeypatch.setattr("batchinfer.stop.GRACE_SECONDS", 0.0)
    stop, given = StopSignal(), list[int]()
    asked: list[Batch] = []

    def chunks() -> Iterator[LoadedChunk]:
        for index in range(50):
            given.append(index)
            yield loaded_chunk(index, texts(1, seed=index))

    engine = Slow(TASK)
    engine.open_streams(4, lambda: None)
    done = answer_all(chunks(), engine, stop)
    engine.close()
    assert len(asked) <= 8 and len(given) <= 9
    assert [chunk.chunk.id.chunk for chunk in done] == [0], "the one that had landed"


@pytest.mark.parametrize(
    ("changes", "streams"),
    [
        ({}, 8),
        ({"batch_timeout": 60}, 1),
        ({"batch_timeout": 60, "streams": 2}, 2),
        ({"streams": 3}, 3),
    ],
)
def test_a_watched_process_computes_one_batch_with_all_threads(
    tmp_path: Path, changes: dict[str, Any], streams: int
) -> None:
    """It is asked for one batch at a time, whatever a profile found for runs without a limit."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    job = RunConfig(
        inputs=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), engine="fake", **changes
    )
    plan, folder = make_plan(job)
    tuned = Tuned(
        "cpu", "fake", "float32", Settings(streams=8, threads=16), "some file", "2026-01-31"
    )
    mine = Worker(dataclasses.replace(plan, tuned=tuned), folder, Monitor(), StopSignal())
    assert (mine._settle().streams, mine._settle().threads) == (streams, 16)
