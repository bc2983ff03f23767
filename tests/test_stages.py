"""Where the time went: measured by the run itself, true for slow engines, inputs and writers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer import RunConfig, RunReport, resume, run
from batchinfer.core import Answers, Batch, BatchBudget, Position, Segment, Span
from batchinfer.dataloader import stream_from_workers
from batchinfer.engines.fake import FakeEncoder, FakeEngine, describe
from batchinfer.loader import Loader
from batchinfer.readers import ReadOptions, list_inputs
from batchinfer.readers.jsonl import JsonlReader
from batchinfer.stages import StageSeconds, Stopwatch
from batchinfer.tasks import create_task
from batchinfer.writers import shard
from tests.conftest import ROOT, Cli

CHUNKS, PAUSE = 8, 0.04


@pytest.fixture
def job(tmp_path: Path) -> RunConfig:
    """A job of CHUNKS chunks of 20 rows, one batch each, loaded in the main process."""
    rows = (json.dumps({"text": f"row {i}"}) + "\n" for i in range(20 * CHUNKS))
    (tmp_path / "in.jsonl").write_text("".join(rows))
    return RunConfig(
        inputs=[str(tmp_path / "in.jsonl")],
        output=str(tmp_path / "out"),
        engine="fake",
        chunk_rows=20,
        workers=0,
    )


def write_much(path: Path) -> None:
    """So many rows that no stage is over within half a millisecond; none is there twice."""
    path.write_text(
        "".join(json.dumps({"text": f"{i:04d}" + "a" * 396}) + "\n" for i in range(5000))
    )


def slow(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function take PAUSE longer."""
    original = getattr(owner, name)

    def paused(*arguments: Any, **options: Any) -> Any:
        time.sleep(PAUSE)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, paused)


def shares(report: RunReport) -> StageSeconds:
    """Each stage's part of the run, having seen that those of one thread fit into it."""
    stages = report.stages
    driver = stages.wait_start + stages.wait_input + stages.wait_writer + stages.on_device
    # Rounded to milliseconds, five figures and the run's may differ by three of them.
    assert driver <= report.seconds + 0.003
    assert stages.decode + stages.write <= report.seconds + 0.003
    assert 0 <= report.device_busy <= 1
    return StageSeconds(*(getattr(stages, f.name) / report.seconds for f in fields(stages)))


def test_a_slow_engine_keeps_the_device_busy(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, FakeEngine, "answer")
    report = run(job)
    share = shares(report)
    assert report.stages.forward >= CHUNKS * PAUSE
    assert report.device_busy > 0.6
    assert share.forward == pytest.approx(report.device_busy, abs=0.01)
    assert share.wait_input < 0.3 and share.wait_writer < 0.3


@pytest.mark.parametrize(
    ("owner", "name", "stage"),
    [(JsonlReader, "take", "read"), (FakeEncoder, "encode", "tokenize")],
)
def test_slow_input_is_waited_for_and_the_device_is_idle(
    owner: Any, name: str, stage: str, job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, owner, name)
    report = run(job)
    share = shares(report)
    assert getattr(report.stages, stage) >= CHUNKS * PAUSE
    assert report.stages.wait_start >= PAUSE
    assert report.stages.wait_input >= (CHUNKS - 1) * PAUSE
    assert getattr(share, stage) > 0.6
    loading = report.stages.read + report.stages.tokenize
    assert loading <= report.stages.wait_start + report.stages.wait_input + 0.003
    assert report.device_busy < 0.3
    assert share.wait_writer < 0.3


def test_a_slow_writer_is_waited_for(job: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, shard, "to_parquet")
    report = run(job)
    share = shares(report)
    assert report.stages.write >= CHUNKS * PAUSE
    assert report.stages.decode < CHUNKS * PAUSE / 2
    assert share.wait_writer > 0.6
    assert share.wait_input < 0.3 and report.device_busy < 0.3


def test_slow_decoding_is_told_from_slow_writing(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, shard, "assemble")
    report = run(job)
    assert report.stages.decode >= CHUNKS * PAUSE
    assert shares(report).wait_writer > 0.6


def test_the_stages_of_the_thread_that_drives_the_device_make_up_the_run(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((FakeEngine, "answer"), (FakeEncoder, "encode"), (shard, "to_parquet")):
        slow(monkeypatch, owner, name)
    report = run(job)
    share = shares(report)
    assert share.wait_start + share.wait_input + share.wait_writer + report.device_busy > 0.7
    assert share.forward > 0.25 and share.wait_start + share.wait_input > 0.25


def test_work_in_the_writers_thread_overlaps_the_device(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, FakeEngine, "answer")
    slow(monkeypatch, shard, "to_parquet")
    report = run(job)
    assert report.stages.forward + report.stages.write >= 2 * CHUNKS * PAUSE
    assert report.stages.forward + report.stages.write > 1.2 * report.seconds
    shares(report)


def test_a_batch_that_fails_has_kept_the_device_busy_too(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeEngine.answer

    def fails_together(self: FakeEngine, batch: Batch) -> Answers:
        if len(batch) > 10:
            time.sleep(PAUSE)
            raise ValueError("too many")
        return answer(self, batch)

    monkeypatch.setattr(FakeEngine, "answer", fails_together)
    report = run(job)
    assert report.num_errors == 0
    assert report.stages.forward >= CHUNKS * PAUSE


def test_a_resume_reports_its_own_effort_alone(
    job: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, FakeEngine, "answer")
    whole = run(job)
    (Path(job.output) / "data" / "part-000000-000003.parquet").unlink()
    rest = resume(job.output)
    assert rest.new_rows == 20
    assert PAUSE <= rest.stages.forward < whole.stages.forward / 2
    shares(rest)
    nothing = resume(job.output)
    assert (nothing.stages, nothing.device_busy) == (StageSeconds(), 0.0)


def test_the_summary_and_report_json_say_where_the_time_went(cli: Cli, tmp_path: Path) -> None:
    write_much(tmp_path / "in.jsonl")
    done = cli("run", "in.jsonl", "--engine", "fake", "--workers", "0", "-o", "out")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("device busy ")]
    for word in ("to start", "for input", "for the writer", "in the main process",
                 "read", "tokenize", "decode", "write"):  # fmt: skip
        assert word in line
    report = json.loads((tmp_path / "out" / "_batchinfer" / "report.json").read_text())
    assert set(report["stages"]) == {f"{f.name}_seconds" for f in fields(StageSeconds)}
    for stage in ("read", "tokenize", "wait_start", "forward", "write"):
        assert report["stages"][f"{stage}_seconds"] > 0, stage
    assert 0 <= report["device_busy"] <= 1
    assert report["workers"] == 0


def test_an_engine_in_a_process_of_its_own_measures_there(tmp_path: Path) -> None:
    """The child's first answer, slow as a first one is, comes before any batch and counts for none."""
    write_much(tmp_path / "in.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "tests.poison", "run", tmp_path / "in.jsonl", "--engine", "fake",
         "--batch-timeout", "20", "--json", "-o", tmp_path / "out"],
        cwd=ROOT, env={"POISON_COLD": "1.5", "PATH": ""}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["stages"]["forward_seconds"] < 1
    assert 0 < report["device_busy"] < 1


@dataclass(frozen=True)
class SlowEncoder(FakeEncoder):
    """Takes PAUSE for each chunk."""

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Any:
        time.sleep(PAUSE)
        return super().encode(texts, pairs)


def test_the_seconds_of_loader_processes_come_with_their_chunks(job: RunConfig) -> None:
    files = list_inputs(job.inputs, "auto")
    loader = Loader(
        create_task(describe("classify", None)),
        SlowEncoder(512),
        BatchBudget(64, 8),
        chunk_rows=20,
        options=ReadOptions(text_columns=("text",), schema=pa.schema([("text", pa.string())])),
    )
    spans = [Span(Segment(0, tuple(files)), 0, Position(), None)]
    chunks = list(stream_from_workers(loader, spans, workers=1, pin_memory=False, chunk_bytes=1000))
    assert len(chunks) == CHUNKS
    for loaded in chunks:
        assert loaded.seconds.tokenize >= PAUSE
        assert 0 < loaded.seconds.read < PAUSE
        assert loaded.seconds.wait_input == loaded.seconds.forward == 0


# The stopwatch, by a clock of the test's own


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_moment_counts_once_for_the_innermost_stage() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.measure("forward"):
        clock.now += 1
        with watch.measure("copy"):
            clock.now += 2
        clock.now += 4
    assert watch.seconds == StageSeconds(forward=5, copy=2)
    assert watch.seconds.on_device == 7


def test_what_is_done_with_an_item_is_not_counted_as_waiting_for_it() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def items() -> Iterator[int]:
        for index in range(3):
            clock.now += 1
            yield index
        clock.now += 10

    for _ in watch.each("wait_input", items()):
        clock.now += 100
    assert watch.seconds == StageSeconds(wait_input=13)


def test_what_fails_is_counted() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(ValueError, match="bad"), watch.measure("forward"):
        clock.now += 3
        raise ValueError("bad")
    assert watch.seconds == StageSeconds(forward=3)


def test_seconds_add_and_are_taken_once() -> None:
    watch = Stopwatch(Clock())
    watch.add(StageSeconds(read=1, write=2))
    watch.add(StageSeconds(read=4))
    assert watch.take() == StageSeconds(read=1) + StageSeconds(read=4, write=2)
    assert watch.take() == StageSeconds()
