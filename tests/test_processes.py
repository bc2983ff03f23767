"""Several devices, a process each: the same shards as one makes, whichever process dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, shard_bytes
from tests.test_poison import JOB, assert_only_these_fail, poisoned, write_rows

TWO = ["--devices", "cpu:2"]


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.poison", *arguments],
        cwd=ROOT, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def device_processes(run: subprocess.Popen[str]) -> list[int]:
    """The children with a model: with no loaders, those that are no helper of multiprocessing's."""
    try:
        pids = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    except OSError:
        return []
    return [int(pid) for pid, line in lines.items() if "spawn_main" in line]


def wait_for_shards(output: Path, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(list((output / "data").glob("part-*"))) < count and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_shards_are_those_of_one_process(cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {}, num_rows=200)
    assert cli("run", str(source), *JOB, "--output", "one").returncode == 0
    two = cli("run", str(source), *JOB, *TWO, "--output", "two", "--json")
    assert two.returncode == 0, two.stderr
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    summary = json.loads(two.stdout)
    assert summary["new_rows"] == 200 and summary["finished"]
    assert not list((tmp_path / "two" / "_batchinfer" / "tmp").iterdir())


def test_a_row_that_kills_a_process_is_found_while_others_go_on(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    done = poisoned("run", str(source), *JOB, *TWO, "--output", str(output))
    assert done.returncode == 65, done.stderr
    assert "it is started again" in done.stderr
    assert_only_these_fail(output, source, cli, tmp_path, {33: "SIGSEGV"})


def test_a_batch_that_hangs_is_cut_down_within_its_process(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {7: "HANG"}), tmp_path / "out"
    job = [*JOB, *TWO, "--output", str(output), "--batch-timeout", "0.5s"]
    assert poisoned("run", str(source), *job).returncode == 65
    assert_only_these_fail(output, source, cli, tmp_path, {7: "more than 0.5 s"})


def test_processes_that_always_die_end_the_run(tmp_path: Path) -> None:
    poison = dict.fromkeys(range(200), "OOMKILL")
    source, output = write_rows(tmp_path / "in.jsonl", poison, num_rows=200), tmp_path / "out"
    done = poisoned("run", str(source), *JOB, *TWO, "--output", str(output))
    assert done.returncode == 69, done.stderr
    assert "the processes of all devices died" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_processes_are_killed_and_no_row_is_lost(seed: int, cli: Cli, tmp_path: Path) -> None:
    """Each kill is of some process at some moment; what it was at is looked into, and found innocent."""
    draw = random.Random(seed)
    source, output = write_rows(tmp_path / "in.jsonl", {}, num_rows=600), tmp_path / "out"
    run = start("run", str(source), *JOB, *TWO, "--output", str(output), POISON_ANSWER="0.02")
    killed = 0
    for _ in range(3):
        wait_for_shards(output, draw.randint(1, 4) + 5 * killed, run)
        time.sleep(draw.random() / 5)
        if victims := device_processes(run):
            os.kill(draw.choice(victims), signal.SIGKILL)
            killed += 1
    _, said = run.communicate(timeout=120)
    assert killed and run.returncode == 0, said
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert shard_bytes(output) == shard_bytes(tmp_path / "healthy")


def test_a_stop_ends_all_and_resume_goes_on_in_one_process(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}, num_rows=400), tmp_path / "out"
    run = start("run", str(source), *JOB, *TWO, "--output", str(output), POISON_ANSWER="0.05")
    wait_for_shards(output, 2, run)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 75, said
    assert not list((output / "_batchinfer" / "tmp").glob("attempt-*"))
    done = cli("resume", str(output), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert shard_bytes(output) == shard_bytes(tmp_path / "healthy")


def test_processes_die_with_the_run(cli: Cli, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {}, num_rows=400), tmp_path / "out"
    run = start("run", str(source), *JOB, *TWO, "--output", str(output), POISON_ANSWER="0.05")
    wait_for_shards(output, 2, run)
    pids = device_processes(run)
    assert len(pids) == 2
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 5
    while any("spawn_main" in _command(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlives the run"
        time.sleep(0.05)
    assert cli("resume", str(output)).returncode == 0
    assert cli("run", str(source), *JOB, "--output", "healthy").returncode == 0
    assert shard_bytes(output) == shard_bytes(tmp_path / "healthy")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()  # a zombie's is empty
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", "0,0"], "--devices: names a GPU twice"),
        (["--devices", "cpu:0"], "should be auto, numbers of GPUs"),
        (["--devices", "gpu"], "should be auto, numbers of GPUs"),
        (["--devices", "0", "--device", "cuda"], "not with --device"),
    ],
)
def test_devices_that_make_no_sense(flags: list[str], said: str, cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    done = cli("run", str(source), *JOB, *flags, "--output", "out")
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_gpus_that_are_not_there_are_named(cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    model = str(ROOT / "sample_data" / "tiny-sentiment")
    done = cli("run", str(source), "--model", model, "--devices", "97,98", "--output", "out")
    assert done.returncode == 2
    assert "97" in done.stderr and done.stderr.count("\n") == 1


def test_a_stretch_of_bad_rows_is_not_taken_for_the_model(cli: Cli, tmp_path: Path) -> None:
    """One process sees nothing but rows that fail, while the others have answered."""
    poison = dict.fromkeys(range(100, 140), "RAISE")
    source, output = write_rows(tmp_path / "in.jsonl", poison, num_rows=200), tmp_path / "out"
    done = poisoned(
        "run",
        str(source),
        *JOB,
        "--devices",
        "cpu:4",
        "--output",
        str(output),
        POISON_ANSWER="0.05",
    )
    assert done.returncode == 65, done.stderr
    assert_only_these_fail(output, source, cli, tmp_path, dict.fromkeys(poison, "poison"))
