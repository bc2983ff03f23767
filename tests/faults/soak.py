"""Kills a run with SIGKILL at random moments, resumes it, and compares its bytes with an undisturbed run.

    python -m tests.faults.soak INPUT --model MODEL --text-column question --kills 20 --work-folder soak

Each round starts `batchinfer run` or `resume`, waits a random time, and kills it, until it was killed so
often; then it is resumed to its end. Prints one JSON object. The batch budget is fixed, as byte-identity
demands. A kill that hits a run which has just finished does not count: the fault must have fired.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from tests.conftest import read_output, shard_bytes

BATCHINFER = [sys.executable, "-m", "batchinfer"]


def run_to_end(job: list[str], output: Path) -> float:
    """An undisturbed run; returns its seconds."""
    started = time.monotonic()
    command = [*BATCHINFER, "run", *job, "--output", str(output), "--quiet"]
    subprocess.run(command, check=True)
    return time.monotonic() - started


def count_readable_rows(output: Path) -> int:
    """Open data/ as a reader would, at whatever moment; check that no row stands twice."""
    if not list((output / "data").glob("*.parquet")):
        return 0
    table = ds.dataset(output / "data", format="parquet").to_table(columns=["_source", "_row"])
    rows = list(zip(table["_source"].to_pylist(), table["_row"].to_pylist(), strict=True))
    assert len(rows) == len(set(rows)), "a row stands twice"
    return len(rows)


def soak(
    job: list[str], work: Path, *, kills: int, longest_wait: float, seed: int
) -> dict[str, Any]:
    """Kill and resume; assert that every row stands once and the bytes are those of a whole run.

    `longest_wait` in seconds: every kill comes at a random moment before it.
    """
    whole, output = work / "whole", work / "killed"
    for folder in (whole, output):
        shutil.rmtree(folder, ignore_errors=True)
    seconds = run_to_end(job, whole)
    draw = random.Random(seed)
    fired, starts, grown = 0, 0, set()
    while fired < kills:
        command = ["resume", str(output)] if (output / "_batchinfer" / "plan.json").exists() else [
            "run", *job, "--output", str(output)
        ]  # fmt: skip
        process = subprocess.Popen([*BATCHINFER, *command, "--quiet"], stderr=subprocess.PIPE)
        starts += 1
        try:
            process.wait(draw.uniform(0, longest_wait))
        except subprocess.TimeoutExpired:
            process.kill()
        _, stderr = process.communicate()
        if process.returncode == -signal.SIGKILL:
            fired += 1
            grown.add(count_readable_rows(output))
        else:
            assert process.returncode in (0, 65), stderr
            shutil.rmtree(output)  # it got to its end: begin anew
    if not (output / "_batchinfer" / "plan.json").exists():
        run_to_end(job, output)
    else:
        subprocess.run([*BATCHINFER, "resume", str(output), "--quiet"], check=True)
    table = read_output(output)
    assert shard_bytes(output) == shard_bytes(whole), "the bytes differ"
    return {
        "kills": fired,
        "starts": starts,
        "different_states_at_a_kill": len(grown),
        "rows": table.num_rows,
        "identical": True,
        "undisturbed_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("input", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="auto")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--chunk-rows", default="256")
    parser.add_argument("--max-batch-tokens", default="4096")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest-wait", type=float, default=60.0)
    parser.add_argument("--work-folder", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    job = [
        str(chosen.input), "--model", chosen.model, "--task", chosen.task,
        "--text-column", chosen.text_column, "--dtype", chosen.dtype, "--workers", chosen.workers,
        "--chunk-rows", chosen.chunk_rows, "--max-batch-tokens", chosen.max_batch_tokens,
    ]  # fmt: skip
    result = soak(
        job,
        chosen.work_folder,
        kills=chosen.kills,
        longest_wait=chosen.longest_wait,
        seed=chosen.seed,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
