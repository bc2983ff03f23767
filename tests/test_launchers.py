"""torchrun and accelerate launch start the processes; their shards are those of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, shard_bytes

pytestmark = pytest.mark.slow

#: As docs/scaling.md says how to type them, but for the interpreter.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}
JOB = [
    "run", str(ROOT / "sample_data" / "reviews.jsonl"), "--model",
    str(ROOT / "sample_data" / "tiny-sentiment"), "--chunk-rows", "50", "--limit", "300",
    "--max-batch-tokens", "512", "--threads", "1", "--workers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of one process."""
    folder = tmp_path_factory.mktemp("inline")
    command = [sys.executable, "-m", "batchinfer", *JOB, "--output", str(folder / "one")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return shard_bytes(folder / "one")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_a_launcher_starts_writes_the_shards_of_one(
    launcher: str, inline: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "parts"
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "batchinfer", *JOB, "--shard", "auto",
         "--output", str(output)],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shard_bytes(output) == inline
    reports = {path.name for path in (output / "_batchinfer").glob("report-part-*")}
    assert reports == {"report-part-0-of-2.json", "report-part-1-of-2.json"}


def test_devices_and_parts_write_the_shards_of_one(
    inline: dict[str, bytes], cli: Cli, tmp_path: Path
) -> None:
    two = cli(*JOB, "--workers", "1", "--devices", "cpu:2", "--output", "two")
    assert two.returncode == 0, two.stderr
    assert shard_bytes(tmp_path / "two") == inline
    for shard in ("0/3", "1/3", "2/3"):
        assert cli(*JOB, "--shard", shard, "--output", "parts").returncode == 0
    assert shard_bytes(tmp_path / "parts") == inline
