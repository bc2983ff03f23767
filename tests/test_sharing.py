"""Parts of a job that share a folder: each chunk is of one part, and whoever dies, no row is lost."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchinfer
from batchinfer.config import RunConfig
from batchinfer.core import (
    BatchBudget,
    ChunkId,
    InputFile,
    Position,
    Segment,
    Shard,
    Span,
    pending_spans,
)  # fmt: skip
from batchinfer.errors import JobMismatchError, StorageError, UsageError
from batchinfer.readers import chunking, listing, offsets
from batchinfer.runner import run as run_here
from batchinfer.sharing import Part, Share, part_of
from batchinfer.writers import durable, footer, holders, run_folder
from batchinfer.writers.run_folder import RunFolder, require_plan
from tests.conftest import Cli, shard_bytes
from tests.test_poison import JOB, write_rows
from tests.test_processes import start, wait_for_shards

THREE = [f"{index}/3" for index in range(3)]


def segments_of(sizes: list[int]) -> list[Segment]:
    return [
        Segment(index, (InputFile(f"{index}", f"{index}", "jsonl", "", size, 0),))
        for index, size in enumerate(sizes)
    ]


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    real=st.lists(st.integers(1, 40), min_size=8, max_size=8),
    count=st.integers(1, 12),
    num_rows=st.integers(0, 3000),
)
def test_each_chunk_is_of_one_part(
    sizes: list[int], real: list[int], count: int, num_rows: int
) -> None:
    """However many chunks a segment turns out to have."""
    segments = segments_of(sizes)
    shares = [Share.of(Part(i, count), segments, num_rows, 100) for i in range(count)]
    for segment, chunks in zip(segments, real, strict=False):
        spans = [
            [span for span in share.of_spans([Span(segment, 0, Position(), None)])]
            for share in shares
        ]
        for number in range(chunks):
            named = [share for share in shares if ChunkId(segment.index, number) in share]
            assert len(named) == 1
            covered = [
                span for own in spans for span in own
                if span.begin <= number and (span.stop is None or number < span.stop)
            ]  # fmt: skip
            assert len(covered) == 1


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    committed=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12))),
    count=st.integers(1, 5),
    ends=st.booleans(),
)
def test_the_shards_that_a_part_needs_say_what_is_left_of_it(
    sizes: list[int], committed: set[tuple[int, int]], count: int, ends: bool
) -> None:
    """As all of them would; and they are its own, and one in front of them in a segment."""
    segments = segments_of(sizes)
    found = sorted(ChunkId(*one) for one in committed if one[0] < len(segments))
    shards = {chunk: shard_of(chunk, ends and chunk == found[-1]) for chunk in found}
    for index in range(count):
        share = Share.of(Part(index, count), segments, sum(sizes), 100)
        needed = {chunk: shards[chunk] for chunk in share.needed(found)}
        left = [list(share.of_spans(pending_spans(segments, some))) for some in (shards, needed)]
        wanted = [(span.begin, span.stop) for span in left[0]]
        assert [(span.begin, span.stop) for span in left[1]] == wanted
        others = [chunk for chunk in needed if chunk not in share]
        assert len(others) == len({chunk.segment for chunk in others})
        assert set(needed) >= {chunk for chunk in found if chunk in share}


def shard_of(chunk: ChunkId, ends: bool) -> Shard:
    return Shard(
        chunk, "", 100, 0, 0, 0, {}, 1, Position(), Position(row=chunk.chunk), ends, ""
    )  # fmt: skip


def test_parts_are_alike_in_size() -> None:
    segments = segments_of([1000] * 7)
    shares = [Share.of(Part(i, 5), segments, 70_000, 100) for i in range(5)]
    assert {share.num_rows for share in shares} == {14_000}


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, Part(1, 4)),
        (
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "14",
             "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_STEP": "2"},
            Part(1, 3),
        ),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "6"}, Part(0, 6)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Part(3, 4)),
    ],
)  # fmt: skip
def test_launchers_say_which_part_it_is(environ: dict[str, str], part: Part) -> None:
    assert part_of("auto", environ) == part


@pytest.mark.parametrize(
    ("shard", "environ", "said"),
    [
        ("3/3", {}, "I/N"),
        ("1", {}, "I/N"),
        ("auto", {}, "no launcher's variables"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not set"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "4/4"),
        ("auto", {"WORLD_SIZE": "x", "RANK": "0"}, "'x'"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9",
             "SLURM_ARRAY_TASK_COUNT": "3"},
            "no range",
        ),
    ],
)  # fmt: skip
def test_parts_that_are_none(shard: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        part_of(shard, environ)


def write_all(tmp_path: Path, num_rows: int = 300) -> list[Path]:
    """The same rows in each format, some of the lines blank."""
    plain = write_rows(tmp_path / "a.jsonl", {}, num_rows)
    table = pa_json.read_json(plain)
    lines = plain.read_bytes().splitlines(keepends=True)
    plain.write_bytes(b"\n".join(lines[:150]) + b"\n \n" + b"".join(lines[150:]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    pa_csv.write_csv(table, tmp_path / "c.csv")
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=70)
    return [plain, *(tmp_path / name for name in ("b.jsonl.gz", "c.csv", "d.parquet"))]


def test_parts_one_after_the_other_write_the_shards_of_one_run(cli: Cli, tmp_path: Path) -> None:
    job = ["run", *map(str, write_all(tmp_path)), *JOB, "--keep", "none"]
    assert cli(*job, "--output", "one").returncode == 0
    for shard in reversed(THREE):
        assert not (tmp_path / "parts" / "data" / "_SUCCESS").exists()
        done = cli(*job, "--output", "parts", "--shard", shard)
        assert done.returncode == 0, done.stderr
        assert ("other parts of the job" in done.stdout) == (shard != "0/3")
    assert (tmp_path / "parts" / "data" / "_SUCCESS").exists()
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "parts")
    left = (tmp_path / "parts" / "_batchinfer" / "tmp").glob("**/*")
    assert {path.name for path in left if path.is_file()} == {"lock"}
    again = cli(*job, "--output", "parts", "--shard", "1/3")
    assert again.returncode == 0 and "nothing was left to do" in again.stdout
    assert cli("verify", "parts").returncode == 0


def test_launched_processes_share_a_folder(cli: Cli, tmp_path: Path) -> None:
    """As torchrun starts them: all at once, and told by variables which one they are."""
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=400)
    job = ["run", str(source), *JOB, "--output", str(tmp_path / "parts"), "--shard", "auto"]
    runs = [start(*job, RANK=str(rank), WORLD_SIZE="4") for rank in range(4)]
    for run in runs:
        _, said = run.communicate(timeout=90)
        assert run.returncode == 0, said
    assert cli("run", str(source), *JOB, "--output", "one").returncode == 0
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "parts")
    assert (tmp_path / "parts" / "data" / "_SUCCESS").exists()


@pytest.mark.parametrize("seed", range(3))
def test_parts_are_killed_and_begun_again(seed: int, cli: Cli, tmp_path: Path) -> None:
    draw = random.Random(seed)
    source, output = write_rows(tmp_path / "in.jsonl", {}, num_rows=300), tmp_path / "parts"
    job = ["run", str(source), *JOB, "--output", str(output), "--shard"]
    for shard in THREE:
        while True:
            run = start(*job, shard, POISON_ANSWER="0.02")
            if draw.random() < 0.5:
                time.sleep(0.5 + draw.random())
                run.kill()
            _, said = run.communicate(timeout=90)
            if run.returncode == 0:
                break
            assert run.returncode == -signal.SIGKILL, said
    assert (output / "data" / "_SUCCESS").exists()
    assert cli("run", str(source), *JOB, "--output", "one").returncode == 0
    assert shard_bytes(tmp_path / "one") == shard_bytes(output)


def test_one_run_takes_over_what_parts_began(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}, num_rows=3000), tmp_path / "parts"
    run = start(
        "run", str(source), *JOB, "--output", str(output), "--shard", "1/3", POISON_ANSWER="0.3"
    )
    wait_for_shards(output, 2, run)
    refused = cli("resume", str(output))
    assert refused.returncode == 75 and f"pid {run.pid}" in refused.stderr
    twice = cli("run", str(source), *JOB, "--output", str(output), "--shard", "1/3")
    assert twice.returncode == 75 and f"pid {run.pid}" in twice.stderr
    assert "pid" in cli("verify", str(output)).stderr
    run.kill()
    run.communicate()
    done = cli("resume", str(output))
    assert done.returncode == 0, done.stderr
    assert not list((output / "_batchinfer" / "tmp").iterdir())
    assert cli("run", str(source), *JOB, "--output", "one").returncode == 0
    assert shard_bytes(tmp_path / "one") == shard_bytes(output)


def test_what_needs_the_folder_alone_is_refused(cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    job = ["run", str(source), *JOB, "--output", "out", "--shard", "0/2"]
    refused = cli(*job, "--overwrite")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert cli(*job).returncode == 0
    for flag in ("--retry-errors", "--verify"):
        refused = cli("resume", "out", "--shard", "1/2", flag)
        assert refused.returncode == 2 and flag in refused.stderr
    other = cli("run", str(source), *JOB, "--output", "out", "--shard", "1/2", "--max-length", "9")
    assert other.returncode == 73, other.stderr
    assert cli("resume", "out", "--shard", "1/2").returncode == 0
    assert (tmp_path / "out" / "data" / "_SUCCESS").exists()
    min((tmp_path / "out" / "data").glob("part-*")).unlink()
    incomplete = cli(*job)
    assert incomplete.returncode == 74 and "without --shard" in incomplete.stderr
    assert cli("resume", "out").returncode == 0
    damaged = min((tmp_path / "out" / "data").glob("part-*"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    refused = cli(*job)
    assert refused.returncode == 74 and "without --shard" in refused.stderr


def test_a_part_answers_no_other_input_than_the_parts_before_it(tmp_path: Path) -> None:
    """A file that was replaced by one as large is compared with what anybody made of it."""
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=300)
    config = RunConfig(
        inputs=(str(source),), output=str(tmp_path / "out"), engine="fake", workers=0, chunk_rows=10
    )
    run_here(config.model_copy(update={"shard": "0/3"}))
    content = source.read_bytes()
    changed = content[:30].replace(b"0", b"7") + content[30:]
    assert changed != content and len(changed) == len(content)
    source.write_bytes(changed)
    with pytest.raises(
        JobMismatchError, match="part-000000-000000.parquet was made from other rows"
    ):
        run_here(config.model_copy(update={"shard": "2/3"}))


def test_a_shard_that_is_not_of_the_job_is_refused_in_the_end(tmp_path: Path) -> None:
    """One of an actor, say, that outlived the job that stood in the folder before."""
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=30)
    config = RunConfig(
        inputs=(str(source),), output=str(tmp_path / "out"), engine="fake", workers=0, chunk_rows=10
    )
    data = tmp_path / "out" / "data"
    run_here(config)
    (data / "_SUCCESS").unlink()
    shutil.copy(data / "part-000000-000002.parquet", tmp_path / "late.parquet")
    with RunFolder(tmp_path / "out") as folder:
        shards = folder.shards(require_plan(tmp_path / "out"))
        shutil.copy(tmp_path / "late.parquet", data / "part-000000-000003.parquet")
        with pytest.raises(
            JobMismatchError, match="000003.parquet: stands for a part of the input"
        ):
            folder.finish(shards)
    assert not (data / "_SUCCESS").exists()


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (2, 0, 3, 1)])
def test_parts_that_lie_behind_the_end_have_nothing_to_do(
    order: tuple[int, ...], cli: Cli, tmp_path: Path
) -> None:
    """The rows that are looked at to estimate how many there are may be shorter than the others."""
    source = tmp_path / "in.jsonl"
    short = [json.dumps({"text": "a"}) for _ in range(50_000)]
    long = [json.dumps({"text": "much longer " * 60}) for _ in range(6_000)]
    source.write_text("\n".join([*short, *long]))
    job = ["run", str(source), "--engine", "fake", "--no-progress", "--chunk-rows", "4000"]
    said = []
    for index in order:
        done = cli(*job, "--output", "parts", "--shard", f"{index}/4")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert any(" 0 rows in 0 shards" in text for text in said), "the estimate was right"
    assert cli(*job, "--output", "one").returncode == 0
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "parts")
    assert (tmp_path / "parts" / "data" / "_SUCCESS").exists()


def test_a_part_reads_the_footers_of_its_own_shards_and_of_one_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whoever is last, and vouches for the whole, looks at everybody's."""
    read: list[str] = []
    real = footer.read_footer

    def reading(path: Path) -> tuple[Shard, str]:
        read.append(path.name)
        return real(path)

    for module in (footer, run_folder):
        monkeypatch.setattr(module, "read_footer", reading)
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=300)
    output = str(tmp_path / "out")
    config = RunConfig(
        inputs=(str(source),), output=output, engine="fake", workers=0, chunk_rows=10
    )
    run_here(config.model_copy(update={"shard": "0/4"}))
    run_here(config.model_copy(update={"shard": "1/4"}))
    second = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())[7:]
    assert second
    read.clear()
    run_here(config.model_copy(update={"shard": "1/4"}))
    assert {*second} <= {*read} and len({*read}) <= len(second) + 2
    read.clear()
    run_here(config.model_copy(update={"shard": "3/4"}))
    assert len({*read}) <= 2
    read.clear()
    run_here(config.model_copy(update={"shard": "2/4"}))
    assert len({*read}) == 30


def test_parts_count_a_file_together_and_write_the_shards_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, with an index that is deleted, or wrong, in between."""
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 500)
    monkeypatch.setattr(listing, "MAX_SMALL_FILE_BYTES", 0)
    paths = [str(path) for path in write_all(tmp_path)]
    base = {"inputs": paths, "engine": "fake", "workers": 0, "chunk_rows": 10, "keep": ("none",)}
    run_here(RunConfig(**base, output=str(tmp_path / "one")))
    parts = tmp_path / "parts"
    index = parts / "_batchinfer" / "index"
    for part in (3, 1, 4, 0, 2):
        run_here(RunConfig(**base, output=str(parts), shard=f"{part}/5"))
        if part == 3:
            assert any(index.iterdir())
            shutil.rmtree(index)
        elif part == 1:
            for path in index.iterdir():
                path.write_bytes(path.read_bytes()[:-9])
    assert shard_bytes(tmp_path / "one") == shard_bytes(parts)


def test_shards_that_do_not_join_are_not_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a place that is wrong would leave them, whoever said it."""
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=60)
    base = {"inputs": [str(source)], "engine": "fake", "workers": 0, "chunk_rows": 10}
    output = tmp_path / "out"

    def wrong(file: InputFile, start: Position, row: int, *more: object) -> Position:
        first = Path(file.path).read_bytes().split(b"\n")[0]
        return Position(0, len(first) + 1, 1, row)

    monkeypatch.setattr(chunking, "seek", wrong)
    run_here(RunConfig(**base, output=str(output), shard="1/2"))
    with pytest.raises(StorageError, match="does not begin where"):
        run_here(RunConfig(**base, output=str(output), shard="0/2"))
    assert not (output / "data" / "_SUCCESS").exists()


@pytest.mark.parametrize("flags", [["--workers", "0"], ["--workers", "1"], ["--devices", "cpu:2"]])
def test_a_stop_is_heard_while_a_part_passes_over_a_file(flags: list[str], tmp_path: Path) -> None:
    """Rows at the beginning, in the middle and at the end of 400 GB of nothing."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    rows = b"".join(b'{"text": "row %d"}\n' % number for number in range(100_000))
    size = 400 << 30
    with source.open("wb") as file:
        for offset in (0, size // 2, size - len(rows)):
            file.seek(offset)
            file.write(b"\n" + rows)
    job = ("run", str(source), "--engine", "fake", "--no-progress", "--output", str(output))
    process = start(*job, "--shard", "1/2", *flags)
    index = output / "_batchinfer" / "index"
    until = time.monotonic() + 90
    while not index.exists() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert time.monotonic() - told < 15
    assert "batchinfer resume" in said and not list((output / "data").iterdir())


def test_what_is_passed_over_is_what_would_have_been_read(cli: Cli, tmp_path: Path) -> None:
    """Lines that are too long, files that end where a chunk does, and a limit in the middle."""
    for name, num_rows in (("a", 40), ("b", 40), ("c", 35)):
        source = write_rows(tmp_path / f"{name}.jsonl", {7: "x" * 3000}, num_rows)
        source.write_text(source.read_text() + "not an object\n")
    job = [
        "run", *(str(tmp_path / f"{name}.jsonl") for name in "abc"), *JOB,
        "--max-line-bytes", "2000", "--limit", "110", "--max-errors", "100%",
    ]  # fmt: skip
    for shard in ("2/3", "0/3", "1/3"):
        done = cli(*job, "--output", "parts", "--shard", shard)
        assert done.returncode == 0, done.stderr
    assert cli(*job, "--output", "one").returncode == 0
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "parts")


def test_writers_that_no_lock_keeps_apart_leave_each_other_s_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has linked its file and died; another one dies while it writes the same."""
    monkeypatch.setattr(fcntl, "lockf", lambda *arguments: None)
    content = BatchBudget(100, 10)
    with RunFolder(tmp_path / "out") as first:
        for module in (run_folder, holders):
            monkeypatch.setattr(module, "HELD", set())
        with RunFolder(tmp_path / "out") as second:
            with monkeypatch.context() as patch:
                patch.setattr(durable, "sync_directory", _die)
                with pytest.raises(KeyboardInterrupt):
                    first.freeze_budget("cpu", content)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", _die)
                with pytest.raises(KeyboardInterrupt):
                    second.freeze_budget("cpu", content)
            assert second.frozen_budget("cpu") == content


def test_a_job_that_no_lock_keeps_out_is_not_begun_beside_another(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked for a plan before there was one."""
    source = write_rows(tmp_path / "in.jsonl", {})
    assert cli("run", str(source), *JOB, "--output", "one").returncode == 0
    other = [str(source), *JOB, "--max-length", "9", "--output", "two"]
    assert cli("run", *other).returncode == 0
    theirs = require_plan(tmp_path / "two")
    monkeypatch.setattr(run_folder, "has_plan", lambda path: False)
    with RunFolder(tmp_path / "one") as folder:
        assert folder.begin(theirs).id != theirs.id


def test_a_run_that_saw_no_plan_joins_the_job_that_was_begun_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    output = tmp_path / "out"
    config = RunConfig(inputs=(str(source),), output=str(output), engine="fake", chunk_rows=20)
    batchinfer.run(config)
    before = {path.name: path.stat().st_ino for path in (output / "data").iterdir()}
    monkeypatch.setattr("batchinfer.runner.load_plan", lambda path: None)
    batchinfer.run(config)
    assert {path.name: path.stat().st_ino for path in (output / "data").iterdir()} == before


def test_what_a_dead_process_was_writing_is_removed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as folder:
        names = [
            f"part-000000-000077.parquet.20260101T000000-{pid}-ab.inprogress" for pid in (77, 78)
        ]
        for name in (*names, "attempt-part-000000-000077.parquet"):
            (folder.temporary / name).touch()
        folder.clear_behind(77)
        left = {path.name for path in folder.temporary.iterdir()}
        assert left == {names[1], "attempt-part-000000-000077.parquet"}


def _die(*arguments: object) -> None:
    raise KeyboardInterrupt
