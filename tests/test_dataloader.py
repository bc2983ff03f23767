"""Loading in processes of their own: the same shards, errors in one line, and no orphans."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import Cli, shard_bytes


def write_inputs(folder: Path, files: int = 3, rows: int = 200) -> None:
    folder.mkdir()
    for name in range(files):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", compresslevel=1) as file:
            for i in range(rows):
                file.write(json.dumps({"id": i, "text": f"{name} {i} " * (i % 9)}) + "\n")


def test_workers_write_the_same_bytes_as_the_main_process(cli: Cli, tmp_path: Path) -> None:
    write_inputs(tmp_path / "in")
    job = ("run", "in", "--engine", "fake", "--chunk-rows", "30", "--max-batch-tokens", "64")
    assert cli(*job, "--workers", "0", "-o", "a").returncode == 0
    done = cli(*job, "--workers", "2", "-o", "b")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")


EACH_READS_A_SEGMENT = """
import sys, warnings
import pyarrow as pa
from batchinfer.core import BatchBudget, ChunkId, Position, Segment, Span
from batchinfer.dataloader import stream_from_workers
from batchinfer.engines.fake import FakeEncoder, describe
from batchinfer.loader import Loader
from batchinfer.readers import ReadOptions, list_inputs
from batchinfer.tasks import create_task

if __name__ == "__main__":
    warnings.simplefilter("error")
    files = list_inputs(["in"])
    spans = [Span(Segment(index, (file,)), 0, Position(), None) for index, file in enumerate(files)]
    schema = pa.schema([("text", pa.string())])
    loader = Loader(
        create_task(describe("classify", None)),
        FakeEncoder(512),
        BatchBudget(64, 8),
        chunk_rows=30,
        options=ReadOptions(text_columns=("text",), schema=schema),
    )
    # More workers than this machine may have cores; a warning would be an error.
    chunks = stream_from_workers(loader, spans, workers=3, pin_memory=False, chunk_bytes=1000)
    found = sorted(loaded.chunk.id for loaded in chunks)
    assert found == [ChunkId(segment, chunk) for segment in range(3) for chunk in range(7)], found
"""


def test_each_worker_reads_a_segment_of_its_own_and_no_advice_is_printed(tmp_path: Path) -> None:
    """In a process of its own, as whoever starts loader processes is."""
    write_inputs(tmp_path / "in")
    (tmp_path / "load.py").write_text(EACH_READS_A_SEGMENT)
    done = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_error_in_a_worker_is_one_line(cli: Cli, tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", files=1, rows=50_000)
    path = tmp_path / "in" / "0.jsonl.gz"
    os.truncate(path, path.stat().st_size - 1000)
    job = ("run", "in", "--engine", "fake", "--workers", "1", "--chunk-rows", "5000", "--quiet")
    done = cli(*job, "-o", "out")
    assert done.returncode == 74, done.stderr
    [line] = done.stderr.splitlines()
    assert "0.jsonl.gz" in line
    assert len(list((tmp_path / "out" / "data").glob("*.parquet"))) > 0


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", files=2, rows=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "run", "in", "--engine", "fake", "--workers", "2",
         "--chunk-rows", "10", "--quiet", "--output", "out"],
        cwd=tmp_path,
    )  # fmt: skip
    for _ in range(1200):
        if len(list((tmp_path / "out" / "data").glob("*.parquet"))) > 3:
            break
        time.sleep(0.05)
    children = descendants(process.pid)
    assert process.poll() is None and len(children) >= 2, "the run was over before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if not (left := [pid for pid in children if is_alive(pid)]):
            break
        time.sleep(0.05)
    assert not left


def test_a_worker_that_is_killed_is_a_stop_and_no_bad_row(cli: Cli, tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", files=1, rows=100_000)
    job = ("run", "in", "--engine", "fake", "--chunk-rows", "500", "--max-batch-tokens", "64")
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", *job, "--workers", "1", "--quiet", "-o", "out"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((tmp_path / "out" / "data").glob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.02)
    loaders = [pid for pid in descendants(process.pid) if "spawn_main" in command_of(pid)]
    assert loaders
    for pid in loaders:
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "batchinfer resume" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert cli("resume", "out", "--workers", "0").returncode == 0, "no row may have become an error"


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    children = [int(child) for child in text.split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
