"""A run that is killed at any file-system call loses nothing, doubles nothing, and can be resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.conftest import read_output, shard_bytes

pytestmark = pytest.mark.faults

DRIVER = Path(__file__).with_name("driver.py")
NUM_ROWS = 95
KILLS = 10


def drive(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DRIVER), *arguments], capture_output=True, text=True, timeout=60
    )


def job(source: Path, output: Path) -> list[str]:
    return [
        "--", "run", str(source), "--engine", "fake", "--workers", "0", "--chunk-rows", "10",
        "--max-batch-tokens", "64", "--no-progress", "--output", str(output),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": i, "text": f"row {i} " * (i % 7)}) + "\n" for i in range(NUM_ROWS)
        )
    )
    return path


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a run that nothing disturbed, and how many calls it made."""
    folder = tmp_path_factory.mktemp("whole")
    done = drive("count", str(folder / "calls"), *job(source, folder / "out"))
    assert done.returncode == 0, done.stderr
    return folder / "out", len((folder / "calls").read_text().splitlines())


def assert_readable(output: Path) -> None:
    """Whatever stands in data/ is whole shards with rows that stand once, and _SUCCESS means all."""
    data = output / "data"
    shards = list(data.glob("*.parquet")) if data.is_dir() else []
    if shards:
        ids = ds.dataset(data, format="parquet").to_table(columns=["id"])["id"].to_pylist()
        assert len(ids) == len(set(ids))
    if (data / "_SUCCESS").exists():
        assert len(shards) == 10


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("tenth", range(KILLS))
def test_a_killed_run_is_resumed_to_the_same_bytes(
    tenth: int, phase: str, source: Path, uninterrupted: tuple[Path, int], tmp_path: Path
) -> None:
    whole, num_calls = uninterrupted
    call = 1 + (num_calls - 1) * tenth // (KILLS - 1)
    killed = drive("kill", str(call), phase, *job(source, tmp_path / "out"))
    assert killed.returncode == -signal.SIGKILL, f"the fault did not fire: {killed.stderr}"
    assert_readable(tmp_path / "out")

    again = drive("count", str(tmp_path / "calls"), *job(source, tmp_path / "out"), "--resume")
    assert again.returncode == 0, again.stderr
    assert shard_bytes(tmp_path / "out") == shard_bytes(whole)
    assert read_output(tmp_path / "out")["_row"].to_pylist() == list(range(NUM_ROWS))
    assert not list((tmp_path / "out" / "_batchinfer" / "tmp").iterdir())


def test_a_resume_that_is_killed_is_resumed(
    source: Path, uninterrupted: tuple[Path, int], tmp_path: Path
) -> None:
    whole, num_calls = uninterrupted
    output = tmp_path / "out"
    drive("kill", str(num_calls // 2), "before", *job(source, output))
    for call in (5, 20, 33):
        killed = drive("kill", str(call), "after", "--", "resume", str(output), "--workers", "0")
        assert killed.returncode == -signal.SIGKILL, f"the fault did not fire: {killed.stderr}"
        assert_readable(output)
    done = drive("count", str(tmp_path / "calls"), "--", "resume", str(output), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(output) == shard_bytes(whole)
