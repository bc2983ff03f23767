"""Kills a run with SIGKILL at random moments, resumes it, and compares its bytes with an undisturbed run.

    python -m tests.faults.soak INPUT... --model MODEL --text-column question --kills 20
    python -m tests.faults.soak INPUT... --model MODEL --minutes 10 --workers 3

Each round starts `batchinfer run` or `resume`, waits a random time, and kills it: the process itself, or
one of those that read and tokenize for it. A run that got to its end is compared and begun anew. After the
last kill the job is resumed to its end. Prints one JSON object. The batch budget is fixed, as byte-identity
demands. A kill that hits a run which has just finished does not count: the fault must have fired.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from tests.conftest import read_output, shard_bytes

BATCHINFER = [sys.executable, "-m", "batchinfer"]


def run_to_end(job: list[str], output: Path) -> float:
    """An undisturbed run; returns its seconds."""
    started = time.monotonic()
    command = [*BATCHINFER, "run", *job, "--output", str(output), "--quiet"]
    assert subprocess.run(command, check=False).returncode in (0, 65)
    return time.monotonic() - started


def count_readable_rows(output: Path) -> int:
    """Open data/ as a reader would, at whatever moment; check that no row stands twice."""
    if not list((output / "data").glob("*.parquet")):
        return 0
    table = ds.dataset(output / "data", format="parquet").to_table(columns=["_source", "_row"])
    rows = list(zip(table["_source"].to_pylist(), table["_row"].to_pylist(), strict=True))
    assert len(rows) == len(set(rows)), "a row stands twice"
    return len(rows)


def loaders_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that read and tokenize for a run; not the one that isolates suspected rows."""
    found = []
    with suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in children:
            proc = Path("/proc") / pid
            if b"spawn_main" in (proc / "cmdline").read_bytes() and "1000" not in (
                proc / "oom_score_adj"
            ).read_text(encoding="ascii"):
                found.append(int(pid))
    return found


def kill(process: subprocess.Popen[bytes], draw: random.Random, loader_share: float) -> str:
    """Kill the run, or one of its loader processes; return which."""
    loaders = loaders_of(process)
    if loaders and draw.random() < loader_share:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(loaders), signal.SIGKILL)
            return "loader"
    process.kill()
    return "run"


def soak(
    job: list[str],
    work: Path,
    *,
    kills: int,
    longest_wait: float,
    seed: int,
    seconds: float = 0.0,
    loader_share: float = 0.0,
) -> dict[str, Any]:
    """Kill and resume; assert that every row stands once and the bytes are those of a whole run.

    `longest_wait` in seconds: every kill comes at a random moment before it. It goes on until so many
    kills fired and so many `seconds` have passed. `loader_share` of the kills hit a loader process.
    """
    whole, output = work / "whole", work / "killed"
    for folder in (whole, output):
        shutil.rmtree(folder, ignore_errors=True)
    undisturbed = run_to_end(job, whole)
    reference = shard_bytes(whole)
    draw = random.Random(seed)
    fired, starts, compared, grown = {"run": 0, "loader": 0}, 0, 0, set()
    began = time.monotonic()
    while sum(fired.values()) < kills or time.monotonic() - began < seconds:
        command = ["resume", str(output)] if (output / "_batchinfer" / "plan.json").exists() else [
            "run", *job, "--output", str(output)
        ]  # fmt: skip
        process = subprocess.Popen([*BATCHINFER, *command, "--quiet"], stderr=subprocess.PIPE)
        starts += 1
        victim = ""
        try:
            process.wait(draw.uniform(0, longest_wait))
        except subprocess.TimeoutExpired:
            victim = kill(process, draw, loader_share)
        _, stderr = process.communicate()
        if process.returncode in (-signal.SIGKILL, 75):
            assert victim, stderr
            fired[victim] += 1
            grown.add(count_readable_rows(output))
        else:
            assert process.returncode in (0, 65), stderr
            assert shard_bytes(output) == reference, "the bytes differ"
            compared += 1
            shutil.rmtree(output)  # it got to its end: begin anew
    if not (output / "_batchinfer" / "plan.json").exists():
        run_to_end(job, output)
    else:
        done = subprocess.run([*BATCHINFER, "resume", str(output), "--quiet"], check=False)
        assert done.returncode in (0, 65)
    table = read_output(output)
    assert shard_bytes(output) == reference, "the bytes differ"
    assert table.num_rows == read_output(whole).num_rows
    return {
        "kills": sum(fired.values()),
        "kills_of_loaders": fired["loader"],
        "starts": starts,
        "different_states_at_a_kill": len(grown),
        "finished_and_compared": compared + 1,
        "rows": table.num_rows,
        "lost": 0,
        "doubled": 0,
        "identical": True,
        "undisturbed_seconds": round(undisturbed, 1),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("inputs", type=Path, nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="auto")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--chunk-rows", default="256")
    parser.add_argument("--max-batch-tokens", default="4096")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--loader-share", type=float, default=0.0)
    parser.add_argument("--longest-wait", type=float, default=60.0)
    parser.add_argument("--work-folder", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    job = [
        *map(str, chosen.inputs), "--model", chosen.model, "--task", chosen.task,
        "--text-column", chosen.text_column, "--dtype", chosen.dtype, "--workers", chosen.workers,
        "--chunk-rows", chosen.chunk_rows, "--max-batch-tokens", chosen.max_batch_tokens,
    ]  # fmt: skip
    result = soak(
        job,
        chosen.work_folder,
        kills=chosen.kills,
        longest_wait=chosen.longest_wait,
        seed=chosen.seed,
        seconds=chosen.minutes * 60,
        loader_share=chosen.loader_share,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
