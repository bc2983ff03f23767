"""Several batches at a time: in order, each row once, the same bits; a failure is its row's alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer.core import Answers, Batch, BatchBudget, ChunkId
from batchinfer.engines import attention
from batchinfer.engines.base import HOPELESS, DeviceLostError, Engine
from batchinfer.engines.fake import FakeEngine
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe
from batchinfer.engines.streams import MOST_STREAMS, share
from batchinfer.errors import ModelError, UsageError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import REPOSITORY, Made, ask
from tests.engines.test_local import batch_of
from tests.modelled import TASK

TEXTS = made.texts(60, seed=11)


class Slow(FakeEngine):
    """Answers with a row's first token, in `count` streams; remembers how many were under way at a time."""

    def __init__(self, count: int, seconds: float = 0.01) -> None:
        super().__init__(TASK)
        self.seconds = seconds
        self.began: list[int] = []
        self.names: set[str] = set()
        self.under_way: list[int] = []
        self._active = 0
        self._lock = threading.Lock()
        self.open_streams(count, lambda: self.began.append(1))

    def answer(self, batch: Batch) -> Answers:
        with self._lock:
            self._active += 1
            self.under_way.append(self._active)
            self.names.add(threading.current_thread().name)
        try:
            time.sleep(self.seconds)
            self.look(batch)
            starts = np.cumsum(batch.lengths) - batch.lengths
            return Answers({"score": batch.fields["input_ids"][starts].astype(np.float32)})
        finally:
            with self._lock:
                self._active -= 1

    def look(self, batch: Batch) -> None:
        """Raise what the model would raise."""


def numbered(count: int, rows: int = 2) -> list[Batch]:
    """Batches of rows of three tokens, all of which are the row's number."""
    batches = []
    for first in range(0, count * rows, rows):
        numbers = np.arange(first, first + rows, dtype=np.int64)
        tokens = np.repeat(numbers, 3).astype(np.int32)
        batches.append(
            Batch(ChunkId(0, 0), numbers, np.full(rows, 3, np.int32), {"input_ids": tokens})
        )
    return batches


def answered(engine: Engine, batches: list[Batch]) -> tuple[list[int], dict[int, str]]:
    """Rows in the order of their answers, and the errors; each answer is its row's number."""
    rows: list[int] = []
    errors = {}
    for batch, answers in engine.stream(iter(batches)):
        rows += batch.indices.tolist()
        if answers.error is not None:
            errors[int(batch.indices[0])] = answers.error
        else:
            assert answers.values["score"].tolist() == batch.indices.tolist()
    return rows, errors


@pytest.mark.parametrize("count", [2, 3, 8])
def test_batches_are_answered_at_the_same_time_and_come_in_order(count: int) -> None:
    engine = Slow(count)
    assert engine.streams == count
    rows, errors = answered(engine, numbered(25))
    assert rows == list(range(50)) and not errors
    assert max(engine.under_way) == count, "all streams had work"
    assert len(engine.began) == len(engine.names) == count, "and each began once"


def test_no_more_batches_are_taken_than_a_stream_has_waiting() -> None:
    """What is taken lies in memory, and would be lost to a stop."""
    engine, taken = Slow(3), []

    def feed() -> Iterator[Batch]:
        for batch in numbered(30):
            taken.append(batch)
            yield batch

    for given, _ in enumerate(engine.stream(feed())):
        assert len(taken) - given <= 2 * 3


def test_a_row_that_fails_is_that_rows_error() -> None:
    class Fails(Slow):
        def look(self, batch: Batch) -> None:
            if 13 in batch.indices:
                raise RuntimeError("thirteen")

    rows, errors = answered(Fails(3), numbered(20, rows=4))
    assert sorted(rows) == list(range(80))
    assert errors == {13: "RuntimeError: thirteen"}


def test_what_ran_out_of_memory_is_tried_again_alone_and_then_split() -> None:
    class Small(Slow):
        def look(self, batch: Batch) -> None:
            if len(batch) <= 2:
                return
            first = int(batch.indices[0])
            if first in tried:  # alone, and with the memory of those that failed
                again.append((self._active, [held() for held in tried.values()]))
            tensor = np.zeros(8)
            tried[first] = weakref.ref(tensor)
            raise MemoryError("no room")

    tried: dict[int, weakref.ref[Any]] = {}
    again: list[tuple[int, list[Any]]] = []
    engine = Small(4)
    rows, errors = answered(engine, numbered(12, rows=4))
    assert sorted(rows) == list(range(48)) and not errors
    assert engine.ceiling_tokens == int(4 * 3 * 0.8), "4 rows of 3 tokens were too many"
    assert again and all(active == 1 for active, _ in again)
    assert not any(tensor is not None for _, tensors in again for tensor in tensors)


def test_what_does_not_fit_together_is_answered_in_fewer_streams() -> None:
    class Crowded(Slow):
        def look(self, batch: Batch) -> None:
            if self._active > 2:
                raise MemoryError("no room")

    engine = Crowded(6, seconds=0.003)
    rows, errors = answered(engine, numbered(150))
    assert rows == list(range(300)) and not errors
    assert engine.ceiling_tokens is None, "a batch alone did fit"
    assert max(engine.under_way[-50:]) == 2


def test_batches_above_the_ceiling_are_split_before_they_are_tried() -> None:
    engine = Slow(2)
    engine.stay_below(6)
    rows, _ = answered(engine, numbered(6, rows=4))
    assert sorted(rows) == list(range(24))
    assert len(engine.under_way) == 12, "twelve halves, and no whole batch"
    assert max(engine.under_way) == 2, "and they fly as others do"


def test_a_device_that_is_lost_ends_the_stream() -> None:
    class Lost(Slow):
        def look(self, batch: Batch) -> None:
            if 6 in batch.indices:
                raise RuntimeError("gone")

        def is_fatal(self, error: Exception) -> bool:
            return "gone" in str(error)

    with pytest.raises(DeviceLostError, match="gone"):
        answered(Lost(2), numbered(20))


def test_a_model_that_fails_on_every_row_is_given_up() -> None:
    class Broken(Slow):
        def look(self, batch: Batch) -> None:
            raise ValueError("broken")

    engine = Broken(3)
    with pytest.raises(
        ModelError, match="fails on every row that it was given: ValueError: broken"
    ):
        answered(engine, numbered(100))
    assert len(engine.under_way) < 8 * HOPELESS


def test_an_empty_batch_and_a_feed_that_fails(made_model: Made) -> None:
    def feed() -> Iterator[Batch]:
        yield from numbered(3)
        raise OSError("the disk is gone")

    stream = Slow(2).stream(feed())
    with pytest.raises(OSError, match="disk"):
        list(stream)
    engine = cpu_engine(made_model("bert"), threads=2)
    [(first, _), (empty, answers), (last, _)] = engine.stream(
        [batch_of(3), batch_of(), batch_of(2)]
    )
    assert [len(first), len(empty), len(last)] == [1, 0, 1]
    assert answers.values["embedding"].shape == (0, 64)


def test_what_waits_is_dropped_when_nobody_listens_any_more() -> None:
    engine = Slow(2, seconds=0.05)
    stream = engine.stream(iter(numbered(50)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 1
    assert len(engine.under_way) <= 5
    assert engine.streams == 1, "and an engine that is closed has no streams"


@pytest.mark.parametrize(
    ("threads", "streams", "expected"),
    [
        (1, None, (1, 1)),
        (2, None, (2, 1)),
        (8, None, (8, 1)),
        (9, None, (8, 1)),  # all but one
        (15, None, (5, 3)),
        (16, None, (8, 2)),
        (64, None, (8, 8)),
        (8, 1, (1, 8)),
        (8, 3, (3, 2)),
        (2, 5, (5, 1)),
    ],
)
def test_threads_are_shared_among_streams(
    threads: int, streams: int | None, expected: tuple[int, int]
) -> None:
    assert share(threads, streams) == expected


def test_few_cores_stand_idle_for_the_sake_of_streams() -> None:
    for threads in range(1, 257):
        streams, each = share(threads, None)
        assert 1 <= streams <= MOST_STREAMS
        assert threads - streams * each <= threads / 8


# -- the local engine ------------------------------------------------------------------------------


def cpu_engine(folder: Path, **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task="embed")
    task = create_task(spec)
    return LocalEngine(task, place, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("architecture", sorted(attention._HEADS))
def test_streams_change_no_bit_of_an_answer(made_model: Made, architecture: str) -> None:
    """A module that kept something between its calls would mix up the batches of two streams."""
    folder = made_model(architecture)
    budget = BatchBudget(96, 64)  # many small batches
    expected = ask(folder, TEXTS * 4, task="embed", budget=budget, threads=1).values["embedding"]
    assert expected.std(axis=0).max() > 0.01, "the model answers the same to every row"
    for _ in range(2):
        found = ask(folder, TEXTS * 4, task="embed", budget=budget, threads=4).values["embedding"]
        np.testing.assert_array_equal(found, expected)


def test_a_model_whose_rows_are_padded_answers_one_batch_at_a_time(made_model: Made) -> None:
    assert cpu_engine(made_model("gpt2"), threads=4).streams == 1
    assert cpu_engine(made_model("bert"), threads=4, attention="sdpa").streams == 1
    assert cpu_engine(made_model("bert"), threads=4).streams == 4
    with pytest.raises(
        UsageError, match="--streams 2: GPT2Model answers one batch at a time"
    ) as error:
        cpu_engine(made_model("gpt2"), streams=2)
    assert "\n" not in str(error.value)


def test_positions_that_depend_on_the_longest_row_are_not_shared(made_model: Made) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert cpu_engine(made_model("qwen3", rope_parameters=rope), threads=4).streams == 1
    assert cpu_engine(made_model("qwen3"), threads=4).streams == 4


def test_the_threads_of_the_process_are_given_back(made_model: Made) -> None:
    before = torch.get_num_threads()
    engine = cpu_engine(made_model("bert"), threads=8, streams=2)
    assert torch.get_num_threads() == 4
    assert len(list(engine.stream([batch_of(3)] * 5))) == 5
    engine.close()
    engine.close()
    assert torch.get_num_threads() == before


def test_two_threads_a_stream_answer_alike(made_model: Made) -> None:
    engines = [cpu_engine(made_model("bert"), threads=4, streams=n) for n in (2, 1)]
    batches = [batch_of(40, 33, 17, first=6 + i) for i in range(12)]
    found = [[a.values["embedding"] for _, a in e.stream(iter(batches))] for e in engines]
    np.testing.assert_allclose(np.array(found[0]), np.array(found[1]), atol=1e-4)


FIRST_USE = """
import sys
import numpy as np
from batchinfer.core import Batch, ChunkId
from batchinfer.engines.models import describe
from batchinfer.engines.openvino import OpenVinoEngine
from batchinfer.tasks import create_task

spec, place = describe(sys.argv[1], task="embed")
engine = OpenVinoEngine(create_task(spec), place, dtype="float32", threads=4)
fields = {"input_ids": np.arange(6, 12, dtype=np.int32)}
batch = Batch(ChunkId(0, 0), np.zeros(1, np.int64), np.array([6], np.int32), fields)
print(engine.streams, len(list(engine.stream([batch] * 8))))
"""


def test_openvino_is_first_used_by_one_thread(
    made_model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that use its binding first at the same time would wait for each other for good."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):  # the second one finds the export, and asks the graph nothing before
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE, made_model("bert")],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.stdout.split() == ["4", "8"], done.stderr
