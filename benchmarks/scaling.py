"""What a second process brings: one thread each, the same chunks, whole runs in turn.

    python -m benchmarks.scaling --corpus gsm8k/test.jsonl --model MODEL --out NAME.json

Seconds from the first chunk asked for to the last shard on disk, as each run reports them; of two parts
(`--shard`), those of the slower one. Reading and tokenizing happen in the process that runs: no loaders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.peers.contest import ROOT
from benchmarks.peers.material import read_corpus, write_rows

#: By name, the flags of each command that is started; they go on at the same time.
CONTESTANTS: dict[str, list[list[str]]] = {
    "one process": [[]],
    "two processes (--devices cpu:2)": [["--devices", "cpu:2"]],
    "two parts (--shard)": [["--shard", "0/2"], ["--shard", "1/2"]],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--chunk-rows", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        source, output = Path(name) / "texts.jsonl", Path(name) / "out"
        texts = read_corpus(given.corpus, seed=0).texts
        write_rows(source, texts, range(given.rows))
        job = [
            sys.executable, "-m", "batchinfer", "run", str(source), "--model", given.model,
            "--output", str(output), "--task", "embed", "--threads", "1", "--workers", "0",
            "--chunk-rows", str(given.chunk_rows), "--profile", "none", "--json", "--quiet",
        ]  # fmt: skip
        for turn in range(given.rounds):
            for contestant, commands in CONTESTANTS.items():
                shutil.rmtree(output, ignore_errors=True)
                took = answer([[*job, *flags] for flags in commands])
                seconds[contestant].append(took)
                print(f"round {turn + 1}, {contestant}: {took:.1f} s", file=sys.stderr)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    result: dict[str, Any] = {
        "kind": "scaling", "machine": machine(), "versions": versions(), "revision": revision(),
        "model": Path(given.model).name, "rows": given.rows, "chunk_rows": given.chunk_rows,
        "seconds": seconds,
        "speedup": {name: medians["one process"] / took for name, took in medians.items()},
    }  # fmt: skip
    save(given.out, result)
    print(json.dumps(result["speedup"], indent=1))


def answer(commands: list[list[str]]) -> float:
    """Run all of them at once; return the seconds that the slowest one reports."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise SystemExit("a run failed")
    return max(float(json.loads(said)["seconds"]) for said in outputs)


if __name__ == "__main__":
    main()
