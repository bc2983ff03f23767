"""report: the figures of a run folder, from its shards, its plan and its events files."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer import resume, run
from batchinfer.cli import main
from batchinfer.reporting.overview import gather as gathering
from batchinfer.reporting.overview import sample as sampling
from batchinfer.reporting.overview.facts import Facts, Histogram
from batchinfer.reporting.overview.gather import gather
from batchinfer.reporting.overview.history import pauses
from batchinfer.reporting.overview.page import default_place
from batchinfer.reporting.overview.sample import spread
from batchinfer.writers.run_folder import RunFolder
from tests.conftest import ROOT
from tests.test_run import config, run_partly, write_jsonl

#: When the first run of a history begins.
BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
SAMPLES = ROOT / "sample_data"


def write_events(
    output: Path,
    name: str = "a",
    *,
    after: float = 0.0,
    seconds: float = 40.0,
    rate: float = 10.0,
    state: str | None = "finished",
    padding: float | None = None,
    **begin: Any,
) -> Path:
    """An events file as a run leaves it that began `after` seconds, loaded for 5 and then worked."""
    lines = []

    def add(event: str, time: float, **fields: Any) -> None:
        stamp = datetime.fromtimestamp(BEGAN + after + time, UTC).isoformat(timespec="milliseconds")
        stamp = stamp.replace("+00:00", "Z")
        lines.append(json.dumps({"event": event, "time": stamp, **fields}))

    about = {
        "run_id": name, "version": "0.1.0", "command": "run", "pid": 1, "host": "night",
        "cpu": "x86_64", "cores": 2, "memory_bytes": 24 << 30, "device": "cpu", "num_devices": 1,
        "attention": "packed", "threads": 2, "max_batch_tokens": 64, "max_batch_rows": 4096,
        "rows_done": 0, "rows_expected": 45, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    add("begin", 0.0, **{**about, **begin})
    moments = [*np.arange(0.0, seconds, 10.0).tolist(), seconds]
    for moment in moments:
        known = moment > 0
        add(
            "progress", 5.0 + moment, seconds=moment, rows=int(rate * moment),
            tokens=int(7 * rate * moment), errors=0, rows_done=0, rows_expected=45,
            rows_per_second=rate * known, tokens_per_second=7 * rate * known,
            recent_rows_per_second=rate * known, recent_tokens_per_second=7 * rate * known,
            seconds_left=None, splits=2, device_memory_bytes=None,
            device_memory_total_bytes=None, memory_bytes=1 << 30,
            waiting={"input": 0.25, "writer": 0.05, "device": 0.7} if known else None,
        )  # fmt: skip
    add("shard", 6.0, segment=0, chunk=0, num_rows=10)
    add("log", 7.0, level="warning", message="something is odd")
    if state is not None:
        report = {
            "seconds": seconds, "load_seconds": 5.0, "workers": 1, "padding": padding,
            "new_rows": int(rate * seconds), "new_tokens": int(7 * rate * seconds),
            "stages": {"forward_seconds": 0.8 * seconds, "wait_input_seconds": 0.1 * seconds},
        }  # fmt: skip
        code = {"finished": 0, "stopped": 75, "failed": 1}[state]
        error = None if state == "finished" else "SIGTERM"
        add("end", 5.0 + seconds, state=state, exit_code=code, error=error, report=report)
    path = output / "_batchinfer" / f"events-{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def forget_events(output: Path) -> None:
    """Leave a folder as runs of earlier versions did."""
    for path in (output / "_batchinfer").glob("events-*.jsonl"):
        path.unlink()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """45 rows, of which three fail for two reasons, and the longest are cut."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": i, "text": "word " * (1 + i % 7)}) for i in range(42)]
    lines[20:20] = ['{"id"', "{", '{"id": 3}']
    source = tmp_path / "in" / "rows.jsonl"
    source.parent.mkdir()
    source.write_text("\n".join(lines) + "\n")
    run(config(source, Path("out"), max_length=5))
    forget_events(tmp_path / "out")
    return tmp_path / "out"


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["report", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_has_the_figures_of_the_shards(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(capsys, "out")
    main(["status", "out", "--json"])
    status = json.loads(capsys.readouterr().out)
    for name in ("num_rows", "num_errors", "num_truncated", "num_tokens", "num_shards", "state"):
        assert found[name] == status[name]
    assert (found["state"], found["rows_expected"]) == ("finished", 45)
    assert found["headline"].startswith("45 of 45 rows answered, 3 with errors, in ")
    assert found["lengths"]["num_values"] == 42
    assert sum(found["lengths"]["counts"]) == 42
    assert found["sampled_truncated"] == found["num_truncated"] > 0
    assert (
        found["job"]["plan_id"]
        == json.loads((output / "_batchinfer/plan.json").read_bytes())["plan_id"]
    )
    assert not (output / "_batchinfer" / "report.html").exists(), "--json writes no page"


def test_errors_are_counted_as_errors_summary_counts_them(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(capsys, "out")["errors"]
    main(["errors", "out", "--summary", "--jsonl"])
    summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["reason"], one["count"]) for one in found] == [
        (one["reason"], one["count"]) for one in summary
    ]
    assert found[0]["example"] == "rows.jsonl:20"


def test_a_page_is_written_beside_the_state_and_named(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(output.rglob("*"))
    assert main(["report", "out"]) == 0
    headline, place = capsys.readouterr().out.splitlines()
    assert headline.startswith("45 of 45 rows answered")
    assert place == "out/_batchinfer/report.html"
    page = output / "_batchinfer" / "report.html"
    assert headline in page.read_text(encoding="utf-8")
    assert sorted(output.rglob("*")) == sorted([*before, page]), "and nothing else"


def test_to_names_another_file_also_with_json(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures(capsys, "out", "--to", "here.html")["num_rows"] == 45
    assert Path("here.html").read_text().startswith("<!DOCTYPE html>")


def test_a_link_in_the_place_of_the_page_is_replaced_and_one_of_the_folder_refused(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = output.parent / "victim"
    victim.write_text("mine")
    (output / "_batchinfer" / "report.html").symlink_to(victim)
    assert main(["report", "out"]) == 0
    assert victim.read_text() == "mine"
    (output / "_batchinfer").rename(output.parent / "elsewhere")
    (output / "_batchinfer").symlink_to(output.parent / "elsewhere")
    assert main(["report", "out"]) == 73
    assert "a link" in capsys.readouterr().err


def test_what_cannot_be_written_is_one_line(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, why in (("missing/page.html", "No such file"), (str(output), "is a folder")):
        assert main(["report", "out", "--to", place]) == 74
        [line] = capsys.readouterr().err.splitlines()
        assert place in line and why in line and line.endswith("name another place with --to")
    assert not list(output.parent.glob(".*")), "nothing is left behind"


def test_a_disk_that_is_full_leaves_nothing_behind(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(output.rglob("*"))
    monkeypatch.setattr("batchinfer.reporting.overview.page.os.replace", full)
    assert main(["report", "out"]) == 74
    assert "No space left" in capsys.readouterr().err
    assert sorted(output.rglob("*")) == before


def test_the_page_of_a_store_is_written_here() -> None:
    assert default_place("s3://bucket/vectors/") == Path("vectors-report.html")


def test_without_matplotlib_the_figures_are_there_and_the_page_says_what_is_missing(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["report", "out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install 'batchinfer[report]'" in line and "--json" in line
    assert figures(capsys, "out")["num_rows"] == 45


def test_what_is_no_run_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


# -- the history of the runs ----------------------------------------------------------------------


def test_runs_are_told_from_their_events(output: Path) -> None:
    write_events(output, "1", seconds=40, state=None)  # killed
    write_events(output, "2", after=100, seconds=20, state="stopped")
    write_events(output, "3", after=3600, seconds=30)
    facts = gather("out")
    assert [run.state for run in facts.runs] == ["killed", "stopped", "finished"]
    assert facts.headline == (
        "45 of 45 rows answered, 3 with errors, in 1 min 30 s (3 runs, 2 interruptions)"
    )
    assert [run.seconds for run in facts.runs] == [40, 20, 30]
    assert [run.rows for run in facts.runs] == [400, 200, 300]
    assert pauses(facts.spans) == [60, 3480]
    assert facts.work.seconds == 90
    assert facts.work.rows_per_second == 10
    assert facts.work.stage_seconds == 50, "the killed run left no stages"
    assert facts.work.device_busy == pytest.approx(0.8)
    assert facts.runs[0].moments[-1].wait_input == 0.25
    assert facts.runs[2].messages == ("something is odd",)
    assert facts.runs[1].error == "SIGTERM"


def test_what_runs_leave_is_read(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "word"}] * 45)
    run_partly(config(source, tmp_path / "out"), 20)
    resume(str(tmp_path / "out"))
    facts = gather(str(tmp_path / "out"))
    assert [(one.command, one.state) for one in facts.runs] == [
        ("run", "stopped"), ("resume", "finished"),
    ]  # fmt: skip
    assert sum(one.rows for one in facts.runs) == facts.work.rows == 45
    assert facts.headline.endswith("(2 runs, 1 interruption)")
    assert all(one.stages and one.versions and one.host and one.cores for one in facts.runs)
    assert facts.work.load_seconds is not None


def test_runs_side_by_side_count_their_time_once(output: Path) -> None:
    write_events(output, "1", seconds=40)
    write_events(output, "2", after=20, seconds=40)
    facts = gather("out")
    assert facts.work.seconds == 60
    assert facts.work.rows == 800


def test_a_run_at_work_is_no_interruption(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events(output, "1", state=None)
    write_events(output, "2", after=60, state=None, pid=os.getpid(), host=socket.gethostname())
    with RunFolder("out"):
        facts = gather("out")
        assert main(["report", "out"]) == 0
    assert facts.state == "running"
    assert [run.state for run in facts.runs] == ["killed", "running"]
    assert "1 interruption)" in facts.headline
    assert facts.headline.endswith("; a run is at work")
    assert facts.steps[0].command == "batchinfer status out --watch"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n{}\n[]\n1\nnull\n",
        b'{"event": "begin"}\n',
        b'{"event": "begin", "time": 3}\n{"event": "begin", "time": "2026"}\n',
        b"\xff\xfe\x00" * 1000,
        b"[" * 100_000 + b"\n",
        b'{"event": "end", "time": "2026-03-01T12:00:00.000Z", "state": "finished"}\n',
    ],
)
def test_an_events_file_that_is_none_is_passed_over(output: Path, content: bytes) -> None:
    (output / "_batchinfer" / "events-x.jsonl").write_bytes(content)
    facts = gather("out")
    assert facts.runs == ()
    assert any("no events files" in sentence for sentence in facts.missing)


def test_events_with_other_types_are_not_believed(output: Path) -> None:
    """Whatever an object holds, the report is made, and has plain numbers."""
    source = write_events(output, "1")
    lines = source.read_text().splitlines()
    wrong = [None, -1, 1e400, "1", [], {}, True, 10**400, float("nan"), "\ud800", "x" * 100_000]
    random.seed(0)
    for number in range(30):
        changed = []
        for line in lines:
            event = json.loads(line)
            for name in list(event):
                if name not in ("event", "time") and random.random() < 0.4:
                    event[name] = random.choice(wrong)
            changed.append(json.dumps(event))
        source.write_text("\n".join(changed) + "\n")
        facts = gather("out")
        json.dumps(facts.to_dict(), allow_nan=False)
        if number < 3:
            assert main(["report", "out"]) == 0
    assert len(facts.runs) == 1


def test_a_torn_last_line_is_passed_over(output: Path) -> None:
    path = write_events(output, "1", state=None)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(gather("out").runs) == 1


def test_a_link_or_a_pipe_in_the_place_of_events_holds_nobody_up(output: Path) -> None:
    os.mkfifo(output / "_batchinfer" / "events-1.jsonl")
    assert gather("out").runs == ()


def test_a_run_of_weeks_keeps_a_bounded_number_of_moments(output: Path) -> None:
    write_events(output, "1", seconds=100_000)
    [run] = gather("out").runs
    assert 1000 <= len(run.moments) <= 2000
    assert run.seconds == 100_000


# -- folders in every state -----------------------------------------------------------------------


def test_a_folder_of_before_says_what_it_cannot_show(output: Path) -> None:
    facts = gather("out")
    assert facts.runs == ()
    assert facts.headline.count("(") == 0, "how many runs there were is not known"
    assert facts.work.stages is not None, "report.json has those of the last run"
    assert any("no events files" in sentence for sentence in facts.missing)
    (output / "_batchinfer" / "report.json").unlink()
    facts = gather("out")
    assert facts.headline == "45 of 45 rows answered, 3 with errors"
    assert any("Where the time went" in sentence for sentence in facts.missing)


def test_the_report_of_a_last_run_is_not_taken_for_that_of_all(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "word"}] * 45)
    run_partly(config(source, tmp_path / "out"), 20)
    resume(str(tmp_path / "out"))
    forget_events(tmp_path / "out")
    facts = gather(str(tmp_path / "out"))
    assert facts.headline == "45 of 45 rows answered, none with an error"
    assert any("earlier runs" in sentence for sentence in facts.missing)


def test_an_unfinished_folder_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder; with 'marks'"
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "word"}] * 45)
    run_partly(config(source, folder), 20)
    facts = gather(str(folder))
    assert facts.state == "stopped"
    assert facts.headline.startswith(f"{facts.num_rows} of about 45 rows answered")
    assert 0 < facts.num_rows < 45
    assert facts.steps[0].command.endswith("""/a folder; with '"'"'marks'"'"''""")
    assert main(["report", str(folder)]) == 0


def test_an_input_without_rows_is_finished(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n")
    run(config(tmp_path / "in.csv", tmp_path / "out"))
    facts = gather(str(tmp_path / "out"))
    assert facts.headline.startswith("The input has no rows")
    assert facts.lengths is None and facts.answers == () and facts.padding is None
    assert main(["report", str(tmp_path / "out")]) == 0


def test_a_plan_without_shards_has_a_report(output: Path) -> None:
    for path in (output / "data").iterdir():
        path.unlink()
    facts = gather("out")
    assert facts.headline.startswith("No row is answered yet")
    assert main(["report", "out"]) == 0


def test_a_damaged_shard_is_counted_and_left_out(output: Path) -> None:
    damaged = sorted((output / "data").glob("*.parquet"))[0]
    damaged.write_bytes(silently_changed(damaged.read_bytes()))
    facts = gather("out")
    assert any(sentence.startswith("1 shards that could not be read") for sentence in facts.missing)
    assert facts.sampled_rows == 35


def silently_changed(content: bytes) -> bytes:
    """A shard with one byte changed, which only its checksum tells."""
    columns = ["_num_tokens", "_truncated", "_error"]
    as_it_was = pq.read_table(pa.BufferReader(content), columns=columns)
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(pages - 1, 4, -1):
        changed = bytearray(content)
        changed[place] ^= 1
        with suppress(pa.ArrowException, OSError):
            if pq.read_table(pa.BufferReader(changed), columns=columns) != as_it_was:
                return bytes(changed)
    raise AssertionError("every change is noticed")


# -- samples --------------------------------------------------------------------------------------


@given(st.integers(0, 3000), st.integers(1, 64))
def test_any_beginning_of_a_spread_lies_evenly(count: int, beginning: int) -> None:
    order = list(spread(count))
    assert sorted(order) == list(range(count))
    first = sorted(order[:beginning])
    if len(first) == beginning:
        gaps = np.diff([*first, first[0] + count])
        assert gaps.max() <= 4 * count / beginning + 1


def test_of_many_shards_some_are_read_and_the_footers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"text": "word " * (i % 9)} for i in range(300)]
    run(config(write_jsonl(tmp_path / "in.jsonl", lines), tmp_path / "out", chunk_rows=5))
    monkeypatch.setattr(sampling, "MAX_SHARDS", 8)
    opened: list[str] = []
    whole = gathering.list_shards

    def counted(path: str) -> Any:
        opened.append(path)
        return whole(path)

    monkeypatch.setattr(gathering, "list_shards", counted)
    facts = gather(str(tmp_path / "out"))
    assert (facts.num_shards, facts.num_rows) == (60, 300)
    assert (facts.sampled_shards, facts.sampled_rows, facts.answer_rows) == (8, 40, 40)
    assert len(opened) == 1
    assert main(["report", str(tmp_path / "out"), "--to", str(tmp_path / "page.html")]) == 0
    assert "Counted in 40 of 300 rows." in (tmp_path / "page.html").read_text()


TASKS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "classify": ("reviews.jsonl", {"model": "tiny-sentiment"}, ["Labels", "Scores of the best answer"]),
    "embed": ("reviews.jsonl", {"model": "tiny-sentiment"}, ["Lengths of the vectors"]),
    "token-classify": (
        "reviews.jsonl", {"model": "tiny-entities"}, ["Entities by label", "Entities a row"],
    ),
    "score": (
        "searches.jsonl",
        {"model": "tiny-reranker", "text_column": "query", "text_pair_column": "documents"},
        ["Scores"],
    ),
    "zero-shot": (
        "reviews.jsonl", {"model": "tiny-entailment", "labels": ("good", "bad")},
        ["Labels", "Scores of the best answer"],
    ),
    "fill-mask": (
        "reviews.jsonl", {"model": "tiny-gaps", "template": "{{ text[:20] }} [MASK]"},
        ["Scores of the best answer"],
    ),
    "generate": (
        "reviews.jsonl", {"model": "tiny-writer", "max_new_tokens": 8},
        ["Lengths of the answers", "Why answers ended"],
    ),
    "module": (
        "loans.parquet", {"features": ("age", "income")}, ["Values of prediction"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_distribution_of_its_answers(task: str, tmp_path: Path) -> None:
    name, settings, expected = TASKS[task]
    if "model" in settings:
        settings = {**settings, "model": str(SAMPLES / settings["model"])}
    run(
        config(
            SAMPLES / name, tmp_path / "out", task=task, limit=40, chunk_rows=20,
            output_prefix="my.", max_batch_tokens=4096, **settings,
        )
    )  # fmt: skip
    facts = gather(str(tmp_path / "out"))
    assert [one.what for one in facts.answers] == expected
    for one in facts.answers:
        assert one.column.startswith("my.")
        values = one.histogram.num_values if one.histogram else sum(n for _, n in one.labels)
        assert values > 0
        if one.histogram:
            assert sum(one.histogram.counts) == one.histogram.num_values
    assert (facts.lengths is None) == (task == "module")


def test_labels_that_are_texts_of_the_input_are_not_shown(tmp_path: Path) -> None:
    lines = [{"text": "a text", "about": ["private matter", "private thing"]}] * 20
    source = write_jsonl(tmp_path / "in.jsonl", lines)
    model = str(SAMPLES / "tiny-entailment")
    run(config(source, tmp_path / "out", task="zero-shot", model=model, labels_column="about"))
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "_batchinfer" / "report.html").read_text()
    assert "private" not in page and "a text" not in page
    assert "Scores of the best answer" in page


def test_padding_is_that_of_the_batches_that_were_planned(tmp_path: Path) -> None:
    lengths = [1, 8] * 4 + [1] * 8  # two rows a batch: sorted, no padding
    lines = [{"text": "word " * n} for n in lengths]
    source = write_jsonl(tmp_path / "in.jsonl", lines)
    run(config(source, tmp_path / "out", chunk_rows=16, max_batch_rows=2))
    facts = gather(str(tmp_path / "out"))
    padding, found = facts.padding, facts.lengths
    assert padding is not None and found is not None
    assert padding.useful == padding.padded == 12 * found.minimum + 4 * found.maximum
    assert padding.in_order == 8 * found.minimum + 8 * found.maximum
    forget_events(tmp_path / "out")
    write_events(tmp_path / "out", "1", seconds=10, padding=0.5)
    write_events(tmp_path / "out", "2", after=100, seconds=30, padding=0.1)
    told = gather(str(tmp_path / "out")).padding
    assert told is not None and told.computed == pytest.approx(0.2)


@given(
    st.lists(st.floats(-1e99, 1e99), min_size=1, max_size=50),
    st.sampled_from([None, 1.0]),
)
def test_a_histogram_holds_every_number(values: list[float], top: float | None) -> None:
    found = Histogram.of(np.array(values), top=top)
    assert sum(found.counts) == found.num_values == len(values)
    assert found.minimum <= found.median <= found.maximum


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_bins_of_whole_numbers_hold_equally_many(values: list[int]) -> None:
    found = Histogram.of(np.array(values), whole=True)
    assert sum(found.counts) == len(values)
    assert len({round(width, 6) for width in np.diff(found.edges)}) == 1
    assert float(np.diff(found.edges)[0]).is_integer()


# -- plans and limits -----------------------------------------------------------------------------


def test_a_forecast_is_shown_only_where_there_is_one(output: Path) -> None:
    assert gather("out").forecast == ()
    rest = '{"num_rows": 20, "rows_done": 25}'
    for nonsense in ("", "[]", "{", '{"num_rows": "many", "num_tokens": -3, "seconds": 3}', rest):
        (output / "_batchinfer" / "forecast.json").write_text(nonsense)
        assert gather("out").forecast == ()
    document = {
        "num_rows": 50, "num_tokens": 400, "num_shards": 6, "num_bytes": 9000, "rows_done": 0,
        "seconds": {"plan": 1.0, "load": 4.0, "work": 2.5},
    }  # fmt: skip
    (output / "_batchinfer" / "forecast.json").write_text(json.dumps(document))
    facts = gather("out")
    assert [(one.name, one.planned) for one in facts.forecast] == [
        ("rows", 50), ("tokens", 400), ("shards", 6), ("output", 9000), ("time at work", 2.5),
    ]  # fmt: skip
    assert [one.actual for one in facts.forecast[:3]] == [45, facts.num_tokens, 5]
    assert main(["report", "out"]) == 0
    assert "Planned and actual" in (output / "_batchinfer" / "report.html").read_text()


@pytest.fixture
def answered_here(tmp_path: Path) -> Path:
    """As a run of the tiny classifier on this machine left it."""
    source = SAMPLES / "reviews.jsonl"
    model = str(SAMPLES / "tiny-sentiment")
    run(config(source, tmp_path / "out", model=model, limit=40))
    forget_events(tmp_path / "out")
    write_events(tmp_path / "out", host=socket.gethostname())
    return tmp_path / "out"


def with_engine(facts: Facts, engine: str) -> Facts:
    return dataclasses.replace(facts, job=dataclasses.replace(facts.job, engine=engine))


def test_the_limit_is_that_of_the_linear_layers(
    answered_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchinfer.reporting.overview import ceiling

    monkeypatch.setitem(ceiling._SIZES, "cpu", (64,))
    monkeypatch.setattr(ceiling, "_SECONDS", 0.02)
    facts = with_engine(gather(str(answered_here)), "local")
    found = ceiling.measure_ceiling(facts)
    # Two layers of 96: four square matrices, and two to 192 and back; no embeddings, pooler and head.
    assert found.flops_per_token == 2 * 2 * (4 * 96 * 96 + 2 * 96 * 192)
    assert found.achieved == pytest.approx(found.flops_per_token * 2800 / 40)
    assert found.while_busy == pytest.approx(found.achieved / 0.8)
    assert found.measured > 0


def test_what_another_machine_or_no_model_did_is_not_measured(
    answered_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(answered_here), "--measure"]) == 2
    assert "models that answer texts in one pass" in capsys.readouterr().err
    from batchinfer.errors import UsageError
    from batchinfer.reporting.overview.ceiling import measure_ceiling

    write_events(answered_here, host="elsewhere")
    facts = with_engine(gather(str(answered_here)), "local")
    with pytest.raises(UsageError, match="no run of this folder says that it was on this machine"):
        measure_ceiling(facts)
