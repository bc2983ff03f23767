"""--incremental: what was added to the inputs is answered, and nothing that was answered changes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, export, growth, resume, run
from batchinfer.core import Answers, Batch
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import (
    InputError,
    Interrupted,
    JobMismatchError,
    StorageError,
    UsageError,
)
from batchinfer.forecasting.forecast import forecast
from batchinfer.readers import listing, offsets
from batchinfer.reporting.failures import read_failures
from batchinfer.reporting.progress import Rates
from batchinfer.reporting.report import RunReport
from batchinfer.reporting.status import read_status
from batchinfer.verification import verify
from batchinfer.worker import Worker
from batchinfer.writers import run_folder
from batchinfer.writers.run_folder import RunFolder, require_plan
from tests.conftest import read_output, shard_bytes
from tests.test_run import StopAfter, config, rows, write_jsonl

Row = dict[str, Any]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl", rows(25))
    return folder


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch had that went through the model."""
    counts: list[int] = []
    answer = FakeEngine.answer

    def counting(self: FakeEngine, batch: Batch) -> Answers:
        counts.append(len(batch))
        return answer(self, batch)

    monkeypatch.setattr(FakeEngine, "answer", counting)
    return counts


def job(inputs: Path | str, output: Path, **more: Any) -> RunConfig:
    return config(inputs, output, **{"max_errors": "1000", "dedup": "off", **more})


def go_on(inputs: Path | str, output: Path, **more: Any) -> RunReport:
    return run(job(inputs, output, **more), incremental=True)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(start: int, count: int) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(count, start))


def by_key(output: Path) -> dict[tuple[str, int], Row]:
    """The rows of a run folder by `_source` and `_row`, each of which stands once."""
    found = read_output(output).to_pylist()
    keyed = {(row.pop("_source"), row.pop("_row")): row for row in found}
    assert len(keyed) == len(found), "a row stands twice"
    return keyed


def identities(output: Path) -> dict[str, tuple[int, int, bytes]]:
    """The shards: each its own file, as it was written."""
    found = {}
    for path in (output / "data").glob("*.parquet"):
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
    return found


# -- what is new is answered, once -----------------------------------------------------------------


def test_ten_appends_and_ten_runs_answer_what_one_run_over_all_does(
    tmp_path: Path, answered: list[int]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write_jsonl(folder / "log.jsonl", rows(13))
    (folder / "log.csv").write_text("id,text\n")
    go_on(folder, output)
    for step in range(10):
        append(folder / "log.jsonl", lines(100 * step, 3 + step))
        append(folder / "log.csv", f'{step},"in two\nlines"\n' * (step % 3))
        if step % 2:
            write_jsonl(folder / f"new-{step}.jsonl", rows(5, 10 * step))
        stood, before = identities(output), sum(answered)
        report = go_on(folder, output)
        assert sum(answered) - before == report.new_rows, "rows that were answered already"
        assert stood.items() <= identities(output).items(), "shards that stood changed"
    total = sum(answered)
    run(job(folder, tmp_path / "whole"))
    assert total == len(by_key(output)) == sum(answered) - total
    assert by_key(output) == by_key(tmp_path / "whole")
    assert verify(output).exit_code == 0
    assert read_status(str(output)).state == "finished"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_appended_and_whoever_dies_every_row_is_answered_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files grow by any number of bytes, in the middle of rows too, and runs die at any call."""
    draw = random.Random(seed)
    monkeypatch.setattr(listing, "MAX_SMALL_FILE_BYTES", draw.choice([0, 600, 8 << 20]))
    folder, output = tmp_path / "in", tmp_path / "out"
    contents = {
        "a.jsonl": _jsonl(draw, 40),
        "sub/b.csv": _csv(draw, 40),
        "sub/c.tsv": _csv(draw, 15, "\t"),
        "d.jsonl": _jsonl(draw, 15).removesuffix(b"\n"),
        "e.jsonl.gz": gzip.compress(_jsonl(draw, 12)),
        "f.parquet": _parquet(15),
    }
    shown = dict.fromkeys(contents, 0)
    types = {"id": "string", "text": "string"}
    settings: dict[str, Any] = {"chunk_rows": draw.choice([3, 7, 10]), "types": types}
    write_jsonl(folder / "there.jsonl", [{"id": "0", "text": "from the first run on"}])
    steps = 8
    for step in range(steps):
        is_last = step == steps - 1
        for name, content in contents.items():
            grows = name.endswith(("jsonl", "csv", "tsv"))
            size = shown[name]
            if is_last or (not grows and draw.random() < 0.2):
                size = len(content)
            elif grows and draw.random() < 0.7:
                size = min(len(content), size + draw.randint(0, len(content) // 4))
            if size > shown[name] or (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("ab") as file:
                    file.write(content[shown[name] : size])
            shown[name] = size
        for dies_at in (draw.randint(1, 9), draw.randint(1, 9), 0):
            with suppress(_Death), _dying(monkeypatch, dies_at):
                go_on(folder, output, **settings)
                break
    run(job(folder, tmp_path / "whole", **settings))
    assert by_key(output) == by_key(tmp_path / "whole")
    assert verify(output).exit_code == 0


def _jsonl(draw: random.Random, count: int) -> bytes:
    made = []
    for n in range(count):
        row = {"id": str(n), "text": "ü word " * draw.randint(0, 4)}
        kinds = [json.dumps(row, ensure_ascii=False), '{"id": "broken", "text', "", "  ", "[1]"]
        made.append(draw.choices(kinds, [12, 1, 1, 1, 1])[0] + draw.choice(["\n", "\n", "\r\n"]))
    return "".join([*made, '{"id": "last", "text": "whole"}\n']).encode()


def _csv(draw: random.Random, count: int, delimiter: str = ",") -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerow(["id", "text"])
    for n in range(count):
        text = draw.choice(["plain", 'with "quotes"', "in\ntwo lines", "", "ü" * 5])
        writer.writerow([n, text, *(["too many"] if draw.random() < 0.1 else [])])
        if draw.random() < 0.1:
            sink.write(draw.choice([f'{n}{delimiter}"malformed"quote\n', "\n"]))
    return sink.getvalue().encode()


def _parquet(count: int) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": [str(n) for n in range(count)], "text": ["parquet"] * count})
    pq.write_table(table, sink)
    return sink.getvalue()


class _Death(BaseException):
    """Takes the place of a kill; tests/faults has real ones."""


class _dying:  # noqa: N801 - reads as a word
    """Within it, the call that publishes something for the n-th time dies, before or behind it."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.patch, self.left = patch, after

    def __enter__(self) -> None:
        self.real = run_folder.publish

        def publish(*arguments: Any) -> bool:
            self.left -= 1
            if self.left == 1:
                raise _Death
            created = self.real(*arguments)
            if self.left == 0:
                raise _Death
            return created

        self.patch.setattr(run_folder, "publish", publish)

    def __exit__(self, *exception: object) -> None:
        self.patch.setattr(run_folder, "publish", self.real)


def test_without_anything_new_nothing_changes(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    append(inputs / "a.jsonl", lines(50, 5))
    go_on(inputs, output)
    stood = {path: path.stat() for path in output.rglob("*") if "tmp" not in path.parts}
    assert go_on(inputs, output).new_rows == 0
    now = {path: path.stat() for path in stood if path.name != "holder.json"}
    for path, status in now.items():
        assert (status.st_ino, status.st_mtime_ns) == (stood[path].st_ino, stood[path].st_mtime_ns)


def test_too_many_row_errors_are_told_again_each_time(inputs: Path, tmp_path: Path) -> None:
    go_on(inputs, tmp_path / "out")
    append(inputs / "a.jsonl", "no json\n")
    strict = config(inputs, tmp_path / "out")
    assert [run(strict, incremental=True).exit_code for _ in range(2)] == [65, 65]
    (failure,) = read_failures(str(tmp_path / "out"))
    assert (failure.file, failure.row) == ("a.jsonl", 25)
    assert "line 26" in failure.error


def test_an_unfinished_job_is_finished_too(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    progress = StopAfter(10)
    with pytest.raises(Interrupted):
        run(job(inputs, output), incremental=True, progress=progress, stop=progress.stop)
    append(inputs / "a.jsonl", lines(25, 20))
    progress = StopAfter(10)
    with pytest.raises(Interrupted):
        run(job(inputs, output), incremental=True, progress=progress, stop=progress.stop)
    assert "_SUCCESS" not in shard_bytes(output)
    write_jsonl(inputs / "b.jsonl", rows(5))
    assert go_on(inputs, output).finished
    run(job(inputs, tmp_path / "whole"))
    assert by_key(output) == by_key(tmp_path / "whole")


def test_resume_and_parts_finish_what_an_incremental_run_has_begun(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 200)
    output = tmp_path / "out"
    (inputs / "b.csv").write_text("id,text\n" + "1,one\n" * 12)
    go_on(inputs, output)
    append(inputs / "a.jsonl", lines(25, 60))
    append(inputs / "b.csv", '2,"two\nlines"\n' * 40)
    progress = StopAfter(1)
    with pytest.raises(Interrupted):
        run(job(inputs, output), incremental=True, progress=progress, stop=progress.stop)
    shutil.copytree(output, tmp_path / "resumed")
    for part in ("2/3", "1/3", "0/3"):
        resume(output, shard=part)
    assert read_status(str(output)).state == "finished"
    assert resume(tmp_path / "resumed").finished
    assert shard_bytes(tmp_path / "resumed") == shard_bytes(output)
    run(job(inputs, tmp_path / "whole"))
    assert by_key(output) == by_key(tmp_path / "whole")
    assert verify(output).exit_code == 0


def test_a_file_may_grow_while_it_is_answered(inputs: Path, tmp_path: Path) -> None:
    class Grows(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            super().answered(num_rows, num_tokens)
            append(inputs / "a.jsonl", lines(1000, 1))

    output = tmp_path / "out"
    run(job(inputs, output), incremental=True, progress=Grows())
    assert len(by_key(output)) == 25
    assert verify(output).exit_code == 0
    go_on(inputs, output)
    run(job(inputs, tmp_path / "whole"))
    assert by_key(output) == by_key(tmp_path / "whole")


# -- rows that are not whole yet -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole", "torn", "rest"),
    [
        ("a.jsonl", '{"text": "one"}\n', '{"text": "tw', 'o"}\n'),
        ("a.csv", "id,text\n1,one\n", "2,tw", "o\n"),
        ("a.csv", "id,text\n1,one\n", '2,"in two\n', 'lines"\n'),
        ("a.csv", "id,text\n1,one\n", '2,"in\nthree\n', 'lines"\n3,three\n'),
        ("a.tsv", "id\ttext\n1\tone\n", "2\t", "two\n"),
    ],
)
def test_a_row_that_is_half_written_is_left_for_the_next_run(
    name: str, whole: str, torn: str, rest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, output = tmp_path / "in" / name, tmp_path / "out"
    path.parent.mkdir()
    path.write_text(whole + torn)
    assert go_on(path, output).num_rows == 1
    assert f"the last {len(torn)} bytes are no whole row yet" in caplog.text
    assert go_on(path, output).new_rows == 0
    append(path, rest)
    go_on(path, output)
    run(job(path, tmp_path / "whole"))
    assert by_key(output) == by_key(tmp_path / "whole")
    assert not any(row["_error"] for row in by_key(output).values())


def test_an_object_without_a_line_end_is_whole(tmp_path: Path) -> None:
    path, output = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text('{"text": "one"}')
    assert go_on(path, output).num_rows == 1
    append(path, ' \r\n{"text": "two"\n{"text": "three"}')
    assert go_on(path, output).new_rows == 2
    keyed = by_key(output)
    assert [keyed["a.jsonl", n]["text"] for n in range(3)] == ["one", None, "three"]
    assert "line 2" in keyed["a.jsonl", 1]["_error"]


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "tw', 'o"}\n'),
        ("a.jsonl", '{"text": "one"}', ', {"text": "two"}\n'),
        ("a.csv", "text\none\ntw", "o\n"),
        ("a.csv", "text\none\ntwo", " \n"),
        ("a.csv", 'text\none\n"in two\n', 'lines"\n'),
    ],
)
def test_a_row_that_a_plain_run_answered_in_half_is_refused(
    name: str, content: str, more: str, tmp_path: Path
) -> None:
    path, output = tmp_path / name, tmp_path / "out"
    path.write_text(content)
    run(job(path, output))
    stood = shard_bytes(output)
    append(path, more)
    with pytest.raises(JobMismatchError, match="its last row was answered before it was whole"):
        go_on(path, output)
    assert shard_bytes(output) == stood


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "tw', '\n{"text": "three"}\n'),
        ("a.csv", "text\none\ntwo", "\r\nthree\n"),
    ],
)
def test_a_line_that_only_gets_its_end_stays_as_it_was_answered(
    name: str, content: str, more: str, tmp_path: Path
) -> None:
    path, output = tmp_path / name, tmp_path / "out"
    path.write_text(content)
    run(job(path, output))
    append(path, more)
    assert go_on(path, output).new_rows == 1
    run(job(path, tmp_path / "whole"))
    assert by_key(output) == by_key(tmp_path / "whole")


def test_the_first_run_waits_for_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "o')
    with pytest.raises(InputError, match="no whole row yet"):
        go_on(path, tmp_path / "out")
    append(path, 'ne"}\n')
    assert go_on(path, tmp_path / "out").num_rows == 1


# -- what is refused -------------------------------------------------------------------------------


def edit_and_append(path: Path) -> None:
    path.write_text(path.read_text().replace('"id": 3,', '"id": 4,') + lines(90, 3))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def replace_by_another(path: Path) -> None:
    path.write_text(lines(500, 60))


def insert_a_blank_line(path: Path) -> None:
    path.write_text("\n" + path.read_text())


@pytest.mark.parametrize("change", [edit_and_append, cut, replace_by_another, insert_a_blank_line])
@pytest.mark.parametrize("begun", ["run", "incremental"])
def test_an_answered_part_that_changed_is_refused(
    change: Callable[[Path], None], begun: str, inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(job(inputs, output), incremental=begun == "incremental")
    append(inputs / "a.jsonl", lines(25, 5))
    go_on(inputs, output)
    stood = shard_bytes(output)
    change(inputs / "a.jsonl")
    with pytest.raises(JobMismatchError, match=r"a\.jsonl: changed since") as error:
        go_on(inputs, output)
    assert "\n" not in str(error.value)
    assert shard_bytes(output) == stood, "_SUCCESS and every shard stay"
    assert len(require_plan(output).increments) == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "latin.jsonl"])
def test_a_file_that_can_only_be_rewritten_is_refused_with_what_to_do(
    name: str, tmp_path: Path
) -> None:
    path, output = tmp_path / name, tmp_path / "out"
    contents = {
        "a.parquet": _parquet(10),
        "a.jsonl.gz": gzip.compress(lines(0, 5).encode()),
        "latin.jsonl": lines(0, 5).encode(),
    }
    more = {"encoding": "latin-1"} if "latin" in name else {}
    path.write_bytes(contents[name])
    go_on(path, output, **more)
    path.write_bytes(_parquet(20) if "parquet" in name else contents[name] * 2)
    with pytest.raises(JobMismatchError, match=r"grew from .* new rows into a file of their own"):
        go_on(path, output, **more)


def test_a_file_that_grew_and_is_not_named_is_refused(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    other = write_jsonl(inputs / "b.jsonl", rows(5))
    assert go_on(other, output).new_rows == 5, "what is named is added to what was"
    append(inputs / "a.jsonl", lines(25, 5))
    append(other, lines(5, 5))
    with pytest.raises(JobMismatchError, match=r"a\.jsonl: .* not named now; name it too"):
        go_on(other, output)


def test_inputs_of_another_place_are_refused(inputs: Path, tmp_path: Path) -> None:
    go_on(inputs, tmp_path / "out")
    other = write_jsonl(tmp_path / "elsewhere" / "x.jsonl", rows(5))
    with pytest.raises(JobMismatchError, match="neither an input of this job nor below"):
        go_on(other, tmp_path / "out")


def test_another_job_is_refused(inputs: Path, tmp_path: Path) -> None:
    go_on(inputs, tmp_path / "out")
    append(inputs / "a.jsonl", lines(25, 5))
    with pytest.raises(JobMismatchError, match="max_length was"):
        go_on(inputs, tmp_path / "out", max_length=3)


@pytest.mark.parametrize(
    ("more", "flags", "names"),
    [
        ({"limit": 5}, {}, "--limit"),
        ({"shard": "0/2"}, {}, "--shard"),
        ({}, {"overwrite": True}, "--overwrite"),
    ],
)
def test_what_has_no_meaning_beside_it_is_refused(
    more: Row, flags: Row, names: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--incremental: not with {names}"):
        run(job(inputs, tmp_path / "out", **more), incremental=True, **flags)
    assert not (tmp_path / "out").exists()


def test_a_plain_run_does_not_take_a_folder_that_was_added_to(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    append(inputs / "a.jsonl", lines(25, 5))
    go_on(inputs, output)
    with pytest.raises(JobMismatchError, match="say --incremental again"):
        run(job(inputs, output), resume=True)
    assert resume(output).new_rows == 0
    assert run(job(inputs, output), overwrite=True).new_rows == 30
    assert require_plan(output).increments == ()
    assert run(job(inputs, output), resume=True).new_rows == 0


def test_a_damaged_increment_stops_everything(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    for start in (25, 30):
        append(inputs / "a.jsonl", lines(start, 5))
        go_on(inputs, output)
    first, second = sorted((output / "_batchinfer").glob("plan-*.json"))
    content = first.read_bytes()
    first.write_bytes(content.replace(b'"num_rows_estimate": ', b'"num_rows_estimate": 1'))
    for command in (lambda: go_on(inputs, output), lambda: resume(output)):
        with pytest.raises(StorageError, match=r"plan-000001\.json: damaged"):
            command()
    first.write_bytes(second.read_bytes())
    with pytest.raises(StorageError, match="does not go on with the plan in front of it"):
        resume(output)
    first.write_bytes(content)
    assert go_on(inputs, output).finished


def test_of_two_runs_that_add_something_at_once_one_wins(inputs: Path, tmp_path: Path) -> None:
    """As it may happen in a store, where no lock reaches another machine."""
    output = tmp_path / "out"
    go_on(inputs, output)
    before = require_plan(output)
    shutil.copytree(output, tmp_path / "other")
    append(inputs / "a.jsonl", lines(25, 5))
    go_on(inputs, tmp_path / "other")
    append(inputs / "a.jsonl", lines(30, 5))
    go_on(inputs, output)
    theirs = require_plan(tmp_path / "other")
    assert before.ids == theirs.ids[:1]
    with RunFolder(output) as folder, pytest.raises(Interrupted, match="at the same moment"):
        folder.extend(theirs)
    assert verify(output).exit_code == 0


def test_what_was_answered_is_compared_first_and_success_goes_before_the_plan_grows(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(place: Any, name: str) -> None:
        real = getattr(place, name)

        def call(*arguments: Any, **more: Any) -> Any:
            order.append(name)
            return real(*arguments, **more)

        monkeypatch.setattr(place, name, call)

    go_on(inputs, tmp_path / "out")
    append(inputs / "a.jsonl", lines(25, 5))
    noted(growth, "check_inputs")
    noted(Worker, "load")
    for name in ("retract_success", "extend", "commit", "finish"):
        noted(RunFolder, name)
    go_on(inputs, tmp_path / "out")
    firsts = list(dict.fromkeys(order))
    assert firsts == ["check_inputs", "load", "retract_success", "extend", "commit", "finish"]


# -- inputs that go, and names that stay -----------------------------------------------------------


def test_an_input_that_is_gone_keeps_its_rows(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    write_jsonl(inputs / "b.jsonl", rows(5))
    go_on(inputs, output)
    (inputs / "b.jsonl").unlink()
    append(inputs / "a.jsonl", lines(25, 5))  # which shares a chunk with what is gone
    progress = StopAfter(1)
    with pytest.raises(Interrupted):
        run(
            job(inputs, output, chunk_rows=10),
            incremental=True,
            progress=progress,
            stop=_stopped(progress),
        )
    assert caplog.text.count("gone: b.jsonl") == 1
    assert resume(output).finished
    assert go_on(inputs, output).new_rows == 0
    assert caplog.text.count("gone: b.jsonl") == 1, "it is told once"
    assert sum(source == "b.jsonl" for source, _ in by_key(output)) == 5
    assert [f.what for f in verify(output).findings] == [
        "was there when the job was planned and cannot be read now (No such file or directory)"
    ]
    assert verify(output, inputs=False).exit_code == 0


def _stopped(progress: StopAfter) -> Any:
    progress.stop.set()
    return progress.stop


def test_what_shared_chunks_with_an_input_that_is_gone_is_compared_all_the_same(
    inputs: Path, tmp_path: Path
) -> None:
    write_jsonl(inputs / "b.jsonl", rows(5))
    go_on(inputs, tmp_path / "out")
    (inputs / "b.jsonl").unlink()
    edit_and_append(inputs / "a.jsonl")
    with pytest.raises(JobMismatchError, match=r"a\.jsonl: changed since rows"):
        go_on(inputs, tmp_path / "out")


def test_an_input_that_is_gone_before_it_was_answered_is_missed(
    inputs: Path, tmp_path: Path
) -> None:
    write_jsonl(inputs / "b.jsonl", rows(25))
    progress = StopAfter(10)
    with pytest.raises(Interrupted):
        run(job(inputs, tmp_path / "out"), incremental=True, progress=progress, stop=progress.stop)
    (inputs / "b.jsonl").unlink()
    with pytest.raises(JobMismatchError, match=r"b\.jsonl: was there .* put it back"):
        go_on(inputs, tmp_path / "out")


def test_sources_stay_when_new_files_have_another_folder_in_common(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = write_jsonl(tmp_path / "logs" / "2025" / "a.jsonl", rows(3))
    go_on(first, output)
    write_jsonl(tmp_path / "logs" / "2026" / "a.jsonl", rows(3))
    write_jsonl(tmp_path / "logs" / "2025" / "deep" / "b.jsonl", rows(3))
    go_on(f"{tmp_path}/logs/*/*.jsonl", output)
    go_on(f"{tmp_path}/logs/**/*.jsonl", output)
    sources = {source for source, _ in by_key(output)}
    assert sources == {"a.jsonl", "../2026/a.jsonl", "deep/b.jsonl"}
    assert len(by_key(output)) == 9


def test_data_that_was_moved_as_a_whole_is_the_same_data(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    inputs.rename(tmp_path / "moved")
    append(tmp_path / "moved" / "a.jsonl", lines(25, 5))
    assert go_on(tmp_path / "moved", output).new_rows == 5
    assert resume(output).new_rows == 0
    assert verify(output).exit_code == 0


def test_columns_stay_and_new_ones_are_rescued(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    append(inputs / "a.jsonl", '{"id": "x", "text": "late", "more": [1]}\n')
    go_on(inputs, output)
    assert "new columns: more" in caplog.text
    row = by_key(output)["a.jsonl", 25]
    assert (row["id"], json.loads(row["_rescued_data"])) == (None, {"id": "x", "more": [1]})
    shards = (output / "data").glob("*.parquet")
    assert len({pq.read_schema(path).remove_metadata() for path in shards}) == 1


def test_verify_sees_what_changed_in_a_part(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    append(inputs / "a.jsonl", lines(25, 5))
    go_on(inputs, output)
    text = (inputs / "a.jsonl").read_text()
    (inputs / "a.jsonl").write_text(text.replace('"id": 27', '"id": 72'))
    assert [f.file for f in verify(output).findings] == [str(inputs / "a.jsonl")]


def test_a_second_run_is_told_who_holds_the_folder(inputs: Path, tmp_path: Path) -> None:
    go_on(inputs, tmp_path / "out")
    with (
        RunFolder(tmp_path / "out"),
        pytest.raises(Interrupted, match=rf"another batchinfer .*pid {os.getpid()} .* since 20"),
    ):
        go_on(inputs, tmp_path / "out")


def test_the_names_of_increments_are_told_from_others() -> None:
    from batchinfer.increments import increment_name, is_increment

    assert all(is_increment(increment_name(n)) for n in (1, 42, 999_999, 1_000_000))
    for name in ("plan.json", "plan-1.json", "plan-000001.json~", "plan-x.json", "budget-cpu.json"):
        assert not is_increment(name)
    assert re.fullmatch(r"plan-000001\.json", increment_name(1))


# -- beside other commands -------------------------------------------------------------------------


def test_what_was_added_is_exported_planned_and_expected_rightly(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    go_on(inputs, output)
    before = read_output(output).num_rows
    (inputs / "z.jsonl").write_text(lines(100, 7))
    caplog.clear()
    caplog.set_level("INFO", logger="batchinfer")
    report = go_on(inputs, output)
    assert report.new_rows == 7
    (said,) = [message for message in caplog.messages if "rows to answer" in message]
    assert "about 7 rows to answer" in said
    export(str(output), str(tmp_path / "all.jsonl"))
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == before + 7
    with pytest.raises(JobMismatchError, match="say --incremental again"):
        forecast(job(inputs, output))


def test_failed_rows_of_inputs_that_are_gone_are_not_tried_again(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    (inputs / "z.jsonl").write_text("no json\n" + lines(100, 7))
    go_on(inputs, output)
    (inputs / "z.jsonl").unlink()
    go_on(inputs, output)
    caplog.clear()
    assert resume(output, retry_errors=True).finished
    assert any("not tried again: 1 failed rows" in message for message in caplog.messages)
    assert (output / "data" / "_SUCCESS").exists()
