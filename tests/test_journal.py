"""The journal of open chunks: what was answered is not asked again, and nothing is believed blindly."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, resume, run
from batchinfer.core import Answers, Batch, Chunk, ChunkId, LoadedChunk, Position, Requests
from batchinfer.engines import fake
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import Interrupted
from batchinfer.reporting.progress import Rates
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from batchinfer.writers.journal import Journal

ROWS = 40


def job(tmp_path: Path, name: str = "out", **settings: Any) -> RunConfig:
    source = tmp_path / "in.jsonl"
    if not source.exists():
        rows = ({"text": f"row {i} " * (i % 5 + 1)} for i in range(ROWS))
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen: dict[str, Any] = {"chunk_rows": 16, "max_batch_rows": 3, "task": "generate", **settings}
    return RunConfig(inputs=(str(source),), output=str(tmp_path / name), engine="fake", **chosen)


def shards(output: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(output) / "data").glob("*.parquet")}


class Counting:
    """Counts the rows that the fake engine is asked for; stops the run before a batch, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.rows, self.tokens, self.stop = 0, 0, StopSignal()
        answer = FakeEngine.answer

        def counted(engine: FakeEngine, batch: Batch) -> Answers:
            if stop_at is not None and self.rows >= stop_at:
                self.stop.set_by(0)  # no grace
                self.stop._grace_ends = 0.0
            self.rows += len(batch)
            self.tokens += batch.num_tokens
            return answer(engine, batch)

        monkeypatch.setattr(FakeEngine, "answer", counted)


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[RunConfig, int]:
    """A run that was stopped within its second chunk, and the rows that it was asked for."""
    config = job(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        counting = Counting(patch, stop_at=24)
        with pytest.raises(Interrupted):
            run(config, stop=counting.stop)
    assert len(shards(config.output)) == 1
    return config, counting.rows


def whole(tmp_path: Path) -> dict[str, bytes]:
    config = job(tmp_path, "whole")
    run(config)
    return shards(config.output)


def journals(config: RunConfig) -> list[Path]:
    return sorted((Path(config.output) / "_batchinfer" / "tmp").glob("answers-*"))


def test_what_was_answered_is_not_asked_again(
    tmp_path: Path, stopped: tuple[RunConfig, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = stopped
    assert 24 < asked < ROWS and len(journals(config)) == 1
    counting = Counting(monkeypatch)
    report = resume(config.output)
    assert asked + counting.rows == ROWS
    assert report.num_rows == ROWS and shards(config.output) == whole(tmp_path)
    assert journals(config) == []


def test_what_a_journal_gave_is_not_counted_as_new(
    stopped: tuple[RunConfig, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = stopped
    counting, progress = Counting(monkeypatch), Rates()
    report = resume(config.output, progress=progress)
    assert counting.rows < ROWS - 16, "the journal gave something"
    assert (report.new_rows, report.new_tokens) == (counting.rows, counting.tokens)
    assert (progress.num_rows, progress.num_tokens) == (counting.rows, counting.tokens)
    assert progress.rows_done + progress.num_rows == ROWS


def test_tasks_that_answer_at_once_keep_none(tmp_path: Path) -> None:
    config = job(tmp_path, task="classify")
    with pytest.MonkeyPatch.context() as patch:
        counting = Counting(patch, stop_at=24)
        with pytest.raises(Interrupted):
            run(config, stop=counting.stop)
    assert journals(config) == []


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def endless(path: Path) -> None:
    path.write_bytes(struct.pack("<II", 2**32 - 1, 0) + path.read_bytes())


def linked(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(elsewhere)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def renamed(path: Path) -> None:
    path.rename(path.with_name("answers-part-000000-000002.parquet"))


def repeated(path: Path) -> None:
    path.write_bytes(2 * path.read_bytes())


@pytest.mark.parametrize(
    "harm", [torn, flipped, emptied, endless, linked, piped, renamed, repeated]
)
def test_whatever_happens_to_it_the_output_is_the_same(
    tmp_path: Path, stopped: tuple[RunConfig, int], harm: Callable[[Path], None]
) -> None:
    config, _ = stopped
    [path] = journals(config)
    harm(path)
    assert resume(config.output).num_rows == ROWS
    assert shards(config.output) == whole(tmp_path)
    if harm is linked:
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    if harm in (torn, emptied, repeated):
        assert journals(config) == []


def test_a_full_disk_costs_the_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def full(path: Any, *rest: Any, **others: Any) -> int:
        if "answers-" in str(path):
            raise OSError(28, "No space left on device")
        return opened(path, *rest, **others)

    monkeypatch.setattr(os, "open", full)
    config = job(tmp_path)
    assert run(config).num_rows == ROWS


def test_failed_rows_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails today may be answered tomorrow."""
    answer = FakeEngine.answer

    def fail(engine: FakeEngine, batch: Batch) -> Answers:
        if 1 in batch.indices:
            raise RuntimeError("ill")
        return answer(engine, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "answer", fail)
        counting = Counting(patch, stop_at=12)
        with pytest.raises(Interrupted):
            run(job(tmp_path), stop=counting.stop)
    assert resume(tmp_path / "out").num_errors == 0
    assert shards(tmp_path / "out") == whole(tmp_path)


def test_another_job_in_its_place_finds_nothing(
    tmp_path: Path, stopped: tuple[RunConfig, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = stopped
    counting = Counting(monkeypatch)
    other = config.model_copy(update={"max_new_tokens": 3})
    run(other, overwrite=True)
    assert counting.rows == ROWS
    counts = pq.read_table(Path(config.output) / "data")["num_generated_tokens"]
    assert max(counts.to_pylist()) <= 3


# -- records that nobody of this program wrote -----------------------------------------------------


@pytest.fixture
def loaded() -> LoadedChunk:
    table = pa.table({"text": ["a"] * 4})
    chunk = Chunk(ChunkId(0, 0), table, {}, Position(), Position(), True, "digest")
    ones = np.ones(4, np.int32)
    offsets = np.arange(5, dtype=np.int64)
    requests = Requests(np.arange(4, dtype=np.int32), ones, ones == 0, offsets, {})
    return LoadedChunk(chunk, requests, [])


def journal_of(folder: Path) -> Journal:
    return Journal(folder, "job", create_task(fake.describe("generate", None)).answers)


def answers_of(counts: list[int]) -> Answers:
    return Answers(
        {
            "check": np.zeros(len(counts), np.float32),
            "count": np.array(counts, np.int32),
            "finish": np.zeros(len(counts), np.int8),
            "tokens": np.arange(sum(counts), dtype=np.int32),
        }
    )


def batch_of(indices: list[int]) -> Batch:
    lengths = np.ones(len(indices), np.int32)
    return Batch(ChunkId(0, 0), np.array(indices, np.int64), lengths, {})


def test_what_is_written_is_read(tmp_path: Path, loaded: LoadedChunk) -> None:
    journal = journal_of(tmp_path)
    for indices, counts in (([2, 0], [3, 0]), ([1], [2])):
        journal.write(loaded, batch_of(indices), answers_of(counts))
    found = list(journal.read(loaded))
    assert [indices.tolist() for indices, _ in found] == [[2, 0], [1]]
    for (_, answers), counts in zip(found, ([3, 0], [2]), strict=True):
        for name, values in answers_of(counts).values.items():
            np.testing.assert_array_equal(answers.values[name], values)
            assert answers.values[name].dtype == values.dtype
    for other in (
        dataclasses.replace(journal, job="another"),
        dataclasses.replace(journal, folder=None),
    ):
        assert list(other.read(loaded)) == []
    changed = dataclasses.replace(loaded.chunk, digest="edited")
    assert list(journal.read(dataclasses.replace(loaded, chunk=changed))) == []
    assert list(journal.read(dataclasses.replace(loaded, rows=(1,)))) == []


@pytest.mark.parametrize("left", [3, 11, -5])  # of a frame, of a body, of nearly all
def test_records_behind_a_torn_one_are_found(
    tmp_path: Path, loaded: LoadedChunk, left: int
) -> None:
    journal = journal_of(tmp_path)
    journal.write(loaded, batch_of([0]), answers_of([3]))
    [path] = tmp_path.iterdir()
    whole = path.stat().st_size
    journal.write(loaded, batch_of([1]), answers_of([2]))
    path.write_bytes(path.read_bytes()[: whole + left if left > 0 else left])
    assert [indices.tolist() for indices, _ in journal.read(loaded)] == [[0]]
    assert path.stat().st_size == whole
    journal.write(loaded, batch_of([2]), answers_of([1]))
    assert [indices.tolist() for indices, _ in journal.read(loaded)] == [[0], [2]]


def test_a_record_that_finds_no_room_leaves_nothing_behind(
    tmp_path: Path, loaded: LoadedChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_of(tmp_path)
    journal.write(loaded, batch_of([0]), answers_of([3]))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: write(file, content[:20]))
        journal.write(loaded, batch_of([1]), answers_of([2]))
    journal.write(loaded, batch_of([2]), answers_of([1]))
    assert [indices.tolist() for indices, _ in journal.read(loaded)] == [[0], [2]]


@pytest.mark.parametrize(
    "arrays",
    [
        [["", [2]], ["count", [2]], ["finish", [2]]],
        [["", [2]], ["count", [2]], ["finish", [2]], ["tokens", [9]]],
        [["", [2]], ["count", [2]], ["finish", [2]], ["other", [5]]],
        [["", [1 << 62]], ["count", [2]], ["finish", [2]], ["tokens", [5]]],
        [["", [-1]], ["count", [2]], ["finish", [2]], ["tokens", [5]]],
        [["", [2]], ["count", [1]], ["finish", [2]], ["tokens", [5]]],
        [["", "2"]], [[]], 3, None,
    ],
)  # fmt: skip
def test_records_of_another_shape_are_none(
    tmp_path: Path, loaded: LoadedChunk, arrays: Any
) -> None:
    journal = journal_of(tmp_path)
    head = json.dumps({**journal._owner(loaded), "arrays": arrays}).encode()
    values = b"".join(value.tobytes() for value in answers_of([3, 2]).values.values())
    body = struct.pack("<I", len(head)) + head + np.array([0, 1]).tobytes() + values
    journal._path(tmp_path, ChunkId(0, 0)).write_bytes(
        struct.pack("<II", len(body), zlib.crc32(body)) + body
    )
    assert list(journal.read(loaded)) == []


@pytest.mark.parametrize("indices", [[0, 0], [0, 4], [-1, 0]])
def test_requests_that_there_are_not_are_none(
    tmp_path: Path, loaded: LoadedChunk, indices: list[int]
) -> None:
    journal = journal_of(tmp_path)
    journal.write(loaded, batch_of(indices), answers_of([1, 1]))
    assert list(journal.read(loaded)) == []
