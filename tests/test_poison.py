"""A row that kills the process which answers it is found, marked, and takes no neighbour with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.batching import make_batches
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget, ChunkId
from batchinfer.engines import supervised
from batchinfer.engines.fake import FakeEncoder
from batchinfer.tokenization import encode_requests
from tests.conftest import ROOT, Cli, read_output, shard_bytes
from tests.modelled import TASK, sample_of

JOB = [
    "--engine", "fake", "--workers", "0", "--chunk-rows", "20", "--max-batch-tokens", "256",
    "--no-progress",
]  # fmt: skip


def poisoned(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.poison", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=90,
    )


def write_rows(path: Path, poison: dict[int, str], num_rows: int = 60) -> Path:
    """Rows of several lengths; `poison`: words, by row."""
    texts = [f"row {i} " * (1 + i % 7) + poison.get(i, "") for i in range(num_rows)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def errors_of(output: Path) -> dict[int, str]:
    table = read_output(output).select(["_row", "_error"]).to_pylist()
    return {row["_row"]: row["_error"] for row in table if row["_error"] is not None}


def answers_without(output: Path, rows: Sequence[int]) -> pa.Table:
    table = read_output(output)
    return table.filter(pa.array([row not in rows for row in table["_row"].to_pylist()]))


def assert_only_these_fail(
    output: Path, source: Path, cli: Cli, tmp_path: Path, rows: dict[int, str]
) -> None:
    """Compare with a run of the same input by an engine to which nothing is poison."""
    errors = errors_of(output)
    assert set(errors) == set(rows)
    for row, word in rows.items():
        assert word in errors[row]
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert answers_without(output, list(rows)).equals(
        answers_without(tmp_path / "healthy", list(rows))
    )
    assert not list((output / "_batchinfer" / "tmp").iterdir())


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("SEGFAULT", -signal.SIGSEGV, "SIGSEGV"),
        ("OOMKILL", -signal.SIGKILL, "SIGKILL"),
        ("EXIT", 3, "exit code 3"),
        ("TOKENIZER", -signal.SIGABRT, "SIGABRT"),
    ],
)
def test_a_row_that_kills_the_process_is_marked_and_no_other(
    word: str, code: int, said: str, cli: Cli, tmp_path: Path
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: word}), tmp_path / "out"
    assert poisoned("run", str(source), *JOB, "--output", str(output)).returncode == code
    done = poisoned("resume", str(output))
    assert done.returncode == 65, done.stderr
    assert done.stderr.count("halved until the row is found") == 1
    assert_only_these_fail(output, source, cli, tmp_path, {33: said})


def test_several_such_rows_are_all_found(cli: Cli, tmp_path: Path) -> None:
    rows = {21: "SEGFAULT", 22: "RAISE", 38: "OOMKILL", 55: "SEGFAULT"}
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out"
    assert poisoned("run", str(source), *JOB, "--output", str(output)).returncode < 0
    assert (
        poisoned("resume", str(output)).returncode < 0
    )  # the second chunk is done, the third kills
    assert poisoned("resume", str(output)).returncode == 65
    said = {21: "SIGSEGV", 22: "the row is poison", 38: "SIGKILL", 55: "SIGSEGV"}
    assert_only_these_fail(output, source, cli, tmp_path, said)


def test_a_loader_process_that_dies_of_a_row_is_no_endless_loop(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "TOKENIZER"}), tmp_path / "out"
    job = [*JOB, "--workers", "1", "--output", str(output)]
    assert poisoned("run", str(source), *job).returncode == 75
    assert poisoned("resume", str(output)).returncode == 65
    assert_only_these_fail(output, source, cli, tmp_path, {33: "SIGABRT"})


@pytest.mark.parametrize("task", ["classify", "token-classify"])
def test_a_tokenizer_that_dies_leaves_windows_and_places_as_they_are(
    task: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    source = write_rows(tmp_path / "in.jsonl", {3: "TOKENIZER", 14: "TOKENIZER"}, num_rows=20)
    job = ["--task", task, "--long", "stride", "--max-length", "8", *JOB]
    assert poisoned("run", str(source), *job, "--output", str(output)).returncode < 0
    done = poisoned("resume", str(output))
    assert done.returncode == 65, done.stderr
    errors = errors_of(output)
    assert set(errors) == {3, 14} and all("SIGABRT" in why for why in errors.values())
    healthy = poisoned(
        "run", str(write_rows(tmp_path / "in.jsonl", {3: "x", 14: "x"}, num_rows=20)), *job,
        "--output", str(tmp_path / "healthy"),
    )  # fmt: skip
    assert healthy.returncode == 0, healthy.stderr
    assert answers_without(output, [3, 14]).equals(answers_without(tmp_path / "healthy", [3, 14]))


@pytest.mark.parametrize("dead", [(), (0,), (4,), (0, 1, 2), (2, 3, 4), tuple(range(5))])
@pytest.mark.parametrize("max_length", [6, 100])
@pytest.mark.parametrize("notes_places", [True, False])
def test_halves_of_texts_are_joined_as_if_they_were_encoded_together(
    dead: tuple[int, ...], max_length: int, notes_places: bool
) -> None:
    words = [
        "some words",
        "more words than that are here, by far",
        "",
        "a",
        "the end of it all, at last",
    ]
    encoder = FakeEncoder(max_length, notes_places=notes_places, windows=True)
    engine = object.__new__(supervised.SupervisedEngine)

    def ask(what: str, argument: Any, *, alone: bool, timeout: float | None) -> tuple[Any, str]:
        texts, pairs = argument
        die = "died" if len(texts) > 1 or words.index(texts[0].as_py()) in dead else ""
        return (None, die) if die else (encoder.encode(texts, pairs), "")

    engine._ask, engine._give_up = ask, lambda death: None  # type: ignore[method-assign]
    rows, texts = np.arange(5, dtype=np.int32) + 7, pa.array(words, pa.large_string())
    found = encode_requests(engine, rows, texts, None)
    kept = np.array([i for i in range(5) if i not in dead], np.int64)
    assert set(found.errors) == {7 + i for i in dead}
    if not len(kept):
        assert not len(found.row)
        return
    expected = encode_requests(encoder, rows[kept], texts.take(pa.array(kept)), None)
    for name in ("row", "cost", "truncated", "offsets"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("fields", "notes"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert set(theirs) <= set(ours)
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    assert (found.windows is None) == (expected.windows is None)
    if found.windows is not None and expected.windows is not None:
        assert np.array_equal(kept[expected.windows.text], found.windows.text)
        assert np.array_equal(expected.windows.fresh, found.windows.fresh)


def test_a_batch_that_hangs_is_cut_down_to_the_row(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {7: "HANG"}), tmp_path / "out"
    job = [*JOB, "--output", str(output), "--batch-timeout", "0.5s"]
    assert poisoned("run", str(source), *job).returncode == 65
    assert_only_these_fail(output, source, cli, tmp_path, {7: "more than 0.5 s"})


def test_an_ordinary_kill_marks_nothing_and_changes_no_byte(cli: Cli, tmp_path: Path) -> None:
    """The chunk at which a run was killed is answered in another process, in the same batches."""
    source, output = write_rows(tmp_path / "in.jsonl", {33: "HANG"}), tmp_path / "out"
    for command in (["run", str(source), *JOB, "--output", str(output)], ["resume", str(output)]):
        run = subprocess.Popen(
            [sys.executable, "-m", "tests.poison", *command], cwd=ROOT, stderr=subprocess.PIPE
        )
        while not list((output / "_batchinfer" / "tmp").glob("attempt-*-000001.parquet")):
            time.sleep(0.01)
        time.sleep(0.7)  # the second time, its child is at the row
        run.kill()
        run.communicate()
        assert run.returncode == -signal.SIGKILL
    done = cli("resume", str(output), "--verbose")
    assert done.returncode == 0, done.stderr
    assert "died without a word" in done.stderr
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert shard_bytes(output) == shard_bytes(tmp_path / "healthy")


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {0: "HANG"}), tmp_path / "out"
    job = ["run", str(source), *JOB, "--output", str(output), "--batch-timeout", "50s"]
    run = subprocess.Popen([sys.executable, "-m", "tests.poison", *job], cwd=ROOT)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while not list((output / "_batchinfer" / "tmp").glob("attempt-*")):
        time.sleep(0.01)
    time.sleep(0.3)
    pids = [int(pid) for pid in children.read_text().split()]
    assert pids
    run.kill()
    run.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, "a child outlives its parent"
        time.sleep(0.05)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_retry_that_dies_of_its_row_is_isolated_too(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    poisoned("run", str(source), *JOB, "--output", str(output))
    assert poisoned("resume", str(output)).returncode == 65
    before = shard_bytes(output)
    assert poisoned("resume", str(output), "--retry-errors").returncode == -signal.SIGSEGV
    assert poisoned("resume", str(output), "--retry-errors").returncode == 65
    assert shard_bytes(output) == before
    # A better engine comes, and the row gets its answer; nothing else is touched.
    assert cli("resume", str(output), "--retry-errors").returncode == 0
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert read_output(output).equals(read_output(tmp_path / "healthy"))
    changed = {n for n, content in shard_bytes(output).items() if before.get(n) != content}
    assert changed == {"part-000000-000001.parquet"}


def test_a_suspicion_outlives_a_resume_that_is_stopped_before_it_was_looked_into(
    cli: Cli, tmp_path: Path
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    assert poisoned("run", str(source), *JOB, "--output", str(output)).returncode < 0
    assert poisoned("resume", str(output), "--deadline", "0.001").returncode == 75
    assert poisoned("resume", str(output)).returncode == 65
    assert_only_these_fail(output, source, cli, tmp_path, {33: "SIGSEGV"})


def test_markers_of_an_orderly_stop_are_taken_away(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "RAISE"}), tmp_path / "out"
    environ = {**os.environ, "BATCHINFER_DEADLINE": "1ms"}
    job = ["run", str(source), *JOB, "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", "tests.poison", *job], cwd=ROOT, env=environ)
    assert done.returncode == 2  # no such unit
    environ["BATCHINFER_DEADLINE"] = "0.001"
    done = subprocess.run([sys.executable, "-m", "tests.poison", *job], cwd=ROOT, env=environ)
    assert done.returncode == 75
    assert not list((output / "_batchinfer" / "tmp").iterdir())


def test_where_every_row_kills_it_is_the_machine(tmp_path: Path) -> None:
    every = dict.fromkeys(range(60), "SEGFAULT")
    source, output = write_rows(tmp_path / "in.jsonl", every), tmp_path / "out"
    assert poisoned("run", str(source), *JOB, "--output", str(output)).returncode < 0
    done = poisoned("resume", str(output))
    assert done.returncode == 69, done.stderr
    assert "8 rows one after the other each killed its process (SIGSEGV)" in done.stderr
    assert list((output / "_batchinfer" / "tmp").iterdir()), "the suspicion stands"


def test_time_allowed_to_a_batch_is_that_of_a_warm_model(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {7: "HANG"}), tmp_path / "out"
    job = [*JOB, "--output", str(output), "--batch-timeout", "0.6s"]
    assert poisoned("run", str(source), *job, POISON_COLD="0.8").returncode == 65
    assert_only_these_fail(output, source, cli, tmp_path, {7: "more than 0.6 s"})


def test_time_allowed_to_a_batch_is_not_that_of_tokenizing(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}), tmp_path / "out"
    job = [*JOB, "--output", str(output), "--batch-timeout", "0.5s"]
    done = poisoned("run", str(source), *job, POISON_TOKENIZER="0.8")
    assert done.returncode == 0, done.stderr
    assert "halved" not in done.stderr


def test_a_stop_is_heard_while_a_row_is_looked_for(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", dict.fromkeys(range(10), "HANG"))
    job = [*JOB, "--output", str(tmp_path / "out"), "--batch-timeout", "30s", "--deadline", "4s"]
    started = time.monotonic()
    done = poisoned("run", str(source), *job)
    assert done.returncode == 75, done.stderr
    assert time.monotonic() - started < 12  # the grace, and the starts of two processes


@pytest.mark.parametrize("wait", [0.05, 0.15, 0.3])
def test_ctrl_c_while_the_child_starts_is_an_orderly_stop(wait: float, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    assert poisoned("run", str(source), *JOB, "--output", str(output)).returncode < 0
    resume = subprocess.Popen(
        [sys.executable, "-m", "tests.poison", "resume", str(output)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{resume.pid}/task/{resume.pid}/children")
    while len(children.read_text().split()) < 2:  # the resource tracker, and ours
        time.sleep(0.002)
    time.sleep(wait)
    os.killpg(resume.pid, signal.SIGINT)
    _, stderr = resume.communicate(timeout=30)
    assert resume.returncode in (75, 65), stderr  # 65: the row was found within the grace
    assert "Traceback" not in stderr
    assert "loading the model" not in stderr


def test_an_orderly_stop_takes_the_marks_of_loader_processes_away(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}), tmp_path / "out"
    job = ["run", str(source), *JOB, "--workers", "1", "--output", str(output)]
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.poison", *job],
        cwd=ROOT, env={**os.environ, "POISON_TOKENIZER": "5"}, start_new_session=True,
    )  # fmt: skip
    while not list((output / "_batchinfer" / "tmp").glob("attempt-*")):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(timeout=30) == 75
    assert not list((output / "_batchinfer" / "tmp").iterdir())


def test_an_overwritten_job_leaves_no_suspicion(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    job = ["run", str(source), *JOB, "--output", str(output)]
    assert poisoned(*job).returncode < 0
    write_rows(source, {})
    done = poisoned(*job, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "without a word" not in done.stderr


def test_what_the_child_logs_is_logged_by_its_parent(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {5: "NOROOM"}), tmp_path / "out"
    job = [*JOB, "--quiet", "--output", str(output), "--batch-timeout", "30s"]
    done = poisoned("run", str(source), *job)
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stderr
    assert all(" batchinfer: cpu: out of memory" in line for line in done.stderr.splitlines())


def test_a_script_without_its_guard_is_told_of_it(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}), tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(
        "from batchinfer import RunConfig, run\n"
        f"run(RunConfig(inputs={str(source)!r}, output={str(output)!r}, engine='fake', workers=0,\n"
        "    batch_timeout='5s'))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_each_child_knows_what_ran_out_of_memory_in_those_before_it() -> None:
    sample = sample_of([64] * 32)
    [batch] = make_batches(ChunkId(0, 0), sample.requests, BatchBudget(4096, 4096))
    engine = supervised.SupervisedEngine(TASK, RunConfig(engine="fake"), None)
    try:
        assert [len(part) for part, _ in engine.stream([batch])] == [32]
        engine.stay_below(600)
        assert [len(part) for part, _ in engine.stream([batch])] == [8] * 4
        engine._ceiling = None
        list(engine.stream([batch]))
        assert engine.ceiling_tokens == 600, "what the child learns, its parent does"
        engine.close()  # the next one is another child
        assert [len(part) for part, _ in engine.stream([batch])] == [8] * 4
    finally:
        engine.close()


def test_a_child_that_dies_in_the_middle_of_its_reply_has_died() -> None:
    ours, theirs = Pipe()
    os.write(theirs.fileno(), b"\0\0\1\0half a message")
    theirs.close()

    class Dead:
        exitcode = -9
        sentinel = os.dup(ours.fileno())

        def join(self, timeout: float | None = None) -> None: ...

        def is_alive(self) -> bool:
            return False

    child = object.__new__(supervised._Child)
    child.pipe, child.process, child._stopped = ours, Dead(), lambda: False  # type: ignore[assignment]
    assert child._receive(None) == (None, "killed its process (SIGKILL)")
