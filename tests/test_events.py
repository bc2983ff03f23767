"""What a run leaves behind it of its course: events, metrics, and a summary also where it was stopped."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchinfer import cli
from batchinfer.config import RunConfig
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import BatchInferError, Interrupted, UsageError
from batchinfer.reporting import events as events_module
from batchinfer.reporting.events import EventLines, is_events_file, last_progress, read_events
from batchinfer.reporting.monitor import Display
from batchinfer.reporting.progress import Rates
from batchinfer.reporting.status import read_status
from batchinfer.runner import resume, run
from batchinfer.stop import StopSignal
from tests.conftest import ROOT
from tests.test_progress import Clock, begun

NUM_ROWS, CHUNK = 40, 10

Job = Callable[..., RunConfig]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": i, "text": "word " * (i % 7 + 1)}) for i in range(NUM_ROWS)]
    lines[3] = "{"
    source.write_text("\n".join(lines) + "\n")

    def make(**changes: Any) -> RunConfig:
        settings = {
            "inputs": (str(source),), "output": str(tmp_path / "out"), "engine": "fake", "workers": 0,
            "chunk_rows": CHUNK, "max_batch_tokens": 64, "max_errors": "100%", **changes,
        }  # fmt: skip
        return RunConfig(**settings)

    return make


class StopAt(Rates):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.stop = rows, StopSignal()

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        if self.num_rows >= self.rows:
            self.stop.set()


def stop_at(config: RunConfig, rows: int, **options: Any) -> Interrupted:
    progress = StopAt(rows)
    with pytest.raises(Interrupted) as stopped:
        run(config, progress=progress, stop=progress.stop, **options)
    return stopped.value


def told(config: RunConfig) -> list[list[dict[str, Any]]]:
    """The events of each run of a folder."""
    return [events_in(path) for path in events_files(Path(config.output))]


def events_files(output: Path) -> list[Path]:
    state = output / "_batchinfer"
    return sorted(path for path in state.iterdir() if is_events_file(path.name))


def events_in(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        return list(read_events(file))


# -- the events file -------------------------------------------------------------------------------


def test_a_run_tells_its_course_from_begin_to_end(job: Job) -> None:
    report = run(job())
    (events,) = told(job())
    assert [event["event"] for event in events] == [
        "begin", "progress", *["shard"] * 4, "progress", "end",
    ]  # fmt: skip
    begin, end = events[0], events[-1]
    assert (begin["command"], begin["engine"], begin["rows_expected"]) == ("run", "fake", 40)
    assert begin["run_id"] == report.run_id
    assert {"python", "pyarrow"} <= set(begin["versions"])
    shards = [event for event in events if event["event"] == "shard"]
    assert [shard["chunk"] for shard in shards] == [0, 1, 2, 3]
    assert sum(shard["num_errors"] for shard in shards) == 1
    last = events[-2]
    assert (last["rows"], last["errors"], last["tokens"]) == (40, 1, report.new_tokens)
    assert (end["state"], end["exit_code"], end["error"]) == ("finished", 0, None)
    assert end["report"] == report.to_dict()
    times = [event["time"] for event in events]
    assert times == sorted(times)


def test_each_run_that_has_something_to_do_has_a_file_of_its_own(job: Job) -> None:
    stop_at(job(), 15)
    resume(job().output)
    resume(job().output)  # has nothing to do
    first, second = told(job())
    assert (first[-1]["state"], first[-1]["exit_code"]) == ("stopped", 75)
    assert "batchinfer resume" in first[-1]["error"]
    assert second[0]["command"] == "resume"
    done = first[-1]["report"]["num_rows"]
    assert second[0]["rows_done"] == done > 0
    assert second[-2]["rows"] == NUM_ROWS - done


def test_a_run_that_fails_says_why(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FakeEngine, batch: object) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(FakeEngine, "answer", fails)
    with pytest.raises(BatchInferError):
        run(job())
    (events,) = told(job())
    assert (events[-1]["state"], events[-1]["exit_code"]) == ("failed", 69)
    assert "no such layer" in events[-1]["error"]


def test_warnings_stand_among_the_events_without_secrets(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sesameopenwide")

    class Warns(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            logging.getLogger("batchinfer").warning("asked with hf_sesameopenwide")

    run(job(), progress=Warns())
    (events,) = told(job())
    messages = [event["message"] for event in events if event["event"] == "log"]
    assert set(messages) == {"asked with ***"}


def test_python_goes_on_to_show_warnings_where_nobody_set_up_a_log(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Warns(Rates):
        def failed(self, num_errors: int) -> None:
            log.warning("a row went wrong")

    log = logging.getLogger("batchinfer")
    monkeypatch.setattr(log, "propagate", False)  # pytest itself listens at the root
    run(job(), progress=Warns(), displays=[])
    assert "a row went wrong\n" in capsys.readouterr().err


def test_a_disk_without_room_for_events_is_no_reason_to_stop(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name.startswith("events-"):
            raise OSError(28, "No space left on device")
        return opened(self, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    assert run(job()).finished
    assert told(job()) == []


def test_a_run_that_has_just_begun_says_more_often_how_far_it_is() -> None:
    clock = Clock()
    lines: list[str] = []
    monitor = begun(clock, EventLines(lines.append))
    for _ in range(70):
        clock.now += 1
        monitor.show_due()
    told = [json.loads(line) for line in lines]
    seconds = [event["seconds"] for event in told if event["event"] == "progress"]
    assert seconds == [0, *range(2, 31, 2), 40, 50, 60, 70]


def test_status_of_a_run_that_is_loading_its_model(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    holder = (
        "import sys, time\n"
        "from batchinfer.writers.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(output)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Interrupted, match=r"a run is beginning here \(pid \d+ .*look again"):
            read_status(str(output))
        process.kill()
    with pytest.raises(UsageError, match="ended before it had a plan"):
        read_status(str(output))


def test_old_files_make_room(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_FILES", 3)
    monkeypatch.setattr(events_module, "_QUIET_SECONDS", 0.0)
    for _ in range(3):
        progress = StopAt(1)
        with pytest.raises(Interrupted):
            run(job(), resume=True, progress=progress, stop=progress.stop)
    resume(job().output)
    files = told(job())
    assert len(files) == 3
    assert files[-1][-1]["state"] == "finished"


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events-20260101T000000-1-abcdef.jsonl"
    path.write_bytes(
        b'{"event": "progress", "rows": 1}\n[]\n{"event": 3}\n\xff\n'
        b'{"event": "progress", "rows": 2}\n' + b"[" * 100_000 + b"\n"
        b'{"event": "progress", "ro'
    )
    assert [event["rows"] for event in events_in(path)] == [1, 2]
    found = last_progress(path)
    assert found is None or found["rows"] == 2
    assert last_progress(tmp_path / "none") is None


# -- on stderr, and the summary --------------------------------------------------------------------


def test_json_progress_is_json_lines_and_nothing_else(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "run", str(tmp_path / "rows.jsonl"), "--engine", "fake", "-o", str(tmp_path / "out"),
        "--progress", "json", "--json", "--max-errors", "1", "--workers", "0",
    ]  # fmt: skip
    assert cli.main(command) == 0
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.err.splitlines()]
    assert {event["event"] for event in events} == {"log", "begin", "progress", "shard", "end"}
    assert json.loads(said.out)["num_rows"] == NUM_ROWS
    assert cli.main([*command, "--output-prefix", "z_"]) == 73
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["event"], last["level"]) == ("log", "error")
    assert "another job" in last["message"]


def test_a_stopped_run_prints_its_summary_too(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "run", str(tmp_path / "rows.jsonl"), "--engine", "fake", "-o", str(tmp_path / "out"),
        "--chunk-rows", "1", "--deadline", "0.001s", "--json", "--workers", "0",
    ]  # fmt: skip
    assert cli.main(command) == 75
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["exit_code"], summary["stopped"], summary["finished"]) == (75, True, False)
    assert "batchinfer resume" in said.err


def test_no_file_of_an_earlier_command_is_written_by_a_resume(job: Job, tmp_path: Path) -> None:
    stop_at(job(metrics_file=str(tmp_path / "job.prom")), 15)
    (tmp_path / "job.prom").unlink()
    resume(job().output)
    assert not (tmp_path / "job.prom").exists()


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_padding_is_what_the_model_was_given_beside_the_tokens(
    job: Job, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    from batchinfer.engines.local import LocalEngine

    given: list[int] = []

    def counted(self: LocalEngine, batch: Any) -> Any:
        inputs = made(self, batch)
        given.append(inputs["input_ids"].numel())
        return inputs

    class Begins(Display):
        def begin(self, about: Any, now: Any) -> None:
            given.clear()  # what loading the model asked of it

    made = LocalEngine._inputs
    monkeypatch.setattr(LocalEngine, "_inputs", counted)
    config = job(
        engine="local", model=str(ROOT / "sample_data" / "tiny-sentiment"), attention=attention,
        dtype="float32", streams=1, device="cpu", dedup="off",
    )  # fmt: skip
    report = run(config, displays=[Begins()])
    assert report.padding == round(1 - report.num_tokens / sum(given), 4) > 0
    (events,) = told(config)
    assert events[-2]["padding"] == report.padding


# -- metrics ---------------------------------------------------------------------------------------


def metrics(path: Path) -> dict[str, float]:
    families = text_string_to_metric_families(path.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_metrics_say_how_the_last_run_went(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "job.prom"
    config = job(metrics_file=str(path))
    stop_at(config, 15)
    stopped = metrics(path)
    assert (stopped["batchinfer_exit_code"], stopped["batchinfer_running"]) == (75, 0)
    assert 15 <= stopped["batchinfer_rows"] < NUM_ROWS == stopped["batchinfer_rows_expected"]
    assert "batchinfer_finished_timestamp_seconds" not in stopped
    run(config, resume=True)
    finished = metrics(path)
    assert (finished["batchinfer_exit_code"], finished["batchinfer_rows"]) == (0, NUM_ROWS)
    assert finished["batchinfer_errors"] == 1
    run(config)  # nothing is left to do
    again = metrics(path)
    assert again["batchinfer_rows"] == again["batchinfer_rows_expected"] == NUM_ROWS
    assert (
        again["batchinfer_finished_timestamp_seconds"]
        >= finished["batchinfer_finished_timestamp_seconds"]
    )


def test_a_run_that_fails_does_not_forget_when_one_finished(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.prom"
    config = job(metrics_file=str(path))
    run(config)
    when = metrics(path)["batchinfer_finished_timestamp_seconds"]
    (tmp_path / "rows.jsonl").write_text('{"id": 0, "text": "other"}\n')
    with pytest.raises(BatchInferError):
        run(config)
    found = metrics(path)
    assert (found["batchinfer_exit_code"], found["batchinfer_finished_timestamp_seconds"]) == (
        73,
        when,
    )


def test_a_run_that_is_locked_out_leaves_the_metrics_of_the_one_at_work(
    job: Job, tmp_path: Path
) -> None:
    path = tmp_path / "job.prom"
    config = job(metrics_file=str(path))
    found: list[dict[str, float]] = []

    class Second(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            with pytest.raises(Interrupted):
                run(config, resume=True)
            found.append(metrics(path))

    run(config, progress=Second())
    assert {one["batchinfer_running"] for one in found} == {1.0}
    assert metrics(path)["batchinfer_running"] == 0


def test_a_part_that_is_done_does_not_say_that_all_is(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "part.prom"
    run(job(metrics_file=str(path), shard="0/2"))
    found = metrics(path)
    assert found["batchinfer_exit_code"] == 0
    assert "batchinfer_finished_timestamp_seconds" not in found


def test_a_metrics_file_needs_a_folder(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--metrics-file .*its folder is not there"):
        run(job(metrics_file=str(tmp_path / "none" / "job.prom")))
    assert not (tmp_path / "out").exists()


# -- status ----------------------------------------------------------------------------------------


def test_status_shows_what_a_live_run_said_last(job: Job, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            seen.append(read_status(str(tmp_path / "out")))

    run(job(), progress=Looks())
    (one,) = seen[-1].runs
    assert (one["rows_done"], one["rows_expected"], one["age_seconds"] < 60) == (0, 40, True)
    assert "  at row 0, 0 rows/s" in seen[-1].to_text()
    assert read_status(str(tmp_path / "out")).runs == ()


def test_status_watches_until_nobody_is_at_work(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(job())
    assert cli.main(["status", str(tmp_path / "out"), "--watch", "--every", "0.1", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["state"] == "finished"


def test_an_events_file_of_another_version_hides_no_status(job: Job, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Spoils(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            (path,) = events_files(tmp_path / "out")
            with path.open("a") as file:
                file.write('{"event": "progress", "time": "yesterday", "rows": "many"}\n')
                file.flush()
                os.fsync(file.fileno())
            seen.append(read_status(str(tmp_path / "out")))

    run(job(), progress=Spoils())
    assert (seen[-1].state, seen[-1].runs) == ("running", ())
