"""The pipeline without a model: rows a second and peak memory of whole commands, fake engine.

    python benchmarks/pipeline.py                      1 M short rows, 3 rounds, and the memory cases
    python benchmarks/pipeline.py --rows 100000 --rounds 1 --no-memory

Each round runs, one after the other, a bare loop (orjson → Arrow → Parquet, one file, nothing kept safe)
and `batchinfer run --engine fake --workers 0`; medians are printed, and one JSON line at the end.
Peak memory is the largest resident set of the process, as the operating system accounts for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "good",
    "bad",
    "fine",
    "quick",
    "slow",
    "train",
    "table",
    "house",
    "review",
    "product",
    "love",
    "hate",
    "works",
    "broken",
    "again",
    "never",
    "always",
    "quite",
]

BARE_LOOP = """
import sys, orjson, pyarrow as pa, pyarrow.parquet as pq
schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
with open(sys.argv[1], "rb") as lines, pq.ParquetWriter(sys.argv[2], schema, compression="zstd") as out:
    rows = []
    for line in lines:
        rows.append(orjson.loads(line))
        if len(rows) == 16384:
            out.write_table(pa.Table.from_pylist(rows, schema))
            rows = []
    out.write_table(pa.Table.from_pylist(rows, schema))
"""


def write_rows(path: Path, count: int, words: int) -> None:
    """Write JSONL of `count` rows of about `words` words."""
    rng = random.Random(1)
    with path.open("w") as file:
        for i in range(count):
            text = " ".join(rng.choices(WORDS, k=max(1, round(words * (0.3 + 1.4 * rng.random())))))
            file.write(f'{{"id": {i}, "text": "{text}"}}\n')


def measure(command: list[str], env: dict[str, str] | None = None) -> tuple[float, float, str]:
    """Run a command; return wall seconds, peak MB, and what it printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        if status:
            raise SystemExit(f"{command[0]} failed: {status}")
        return seconds, usage.ru_maxrss / 1024, output.read()


def run_batchinfer(source: Path, folder: Path) -> tuple[float, float, dict[str, Any]]:
    """A whole `batchinfer run` with the fake engine."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable, "-m", "batchinfer", "run", str(source), "--engine", "fake", "--workers", "0",
        "--json", "--quiet", "--output", str(out),
    ]  # fmt: skip
    seconds, megabytes, printed = measure(command)
    return seconds, megabytes, json.loads(printed)


def throughput(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Rows a second of the bare loop and of batchinfer, interleaved."""
    source = folder / "short.jsonl"
    write_rows(source, rows, 10)
    bare, whole, inner = [], [], []
    for _ in range(rounds):
        seconds, _, _ = measure(
            [sys.executable, "-c", BARE_LOOP, str(source), str(folder / "bare.parquet")]
        )
        bare.append(rows / seconds)
        seconds, _, report = run_batchinfer(source, folder)
        whole.append(rows / seconds)
        inner.append(report["rows_per_second"])
    result = {
        "bare_rows_per_second": statistics.median(bare),
        "command_rows_per_second": statistics.median(whole),
        "pipeline_rows_per_second": statistics.median(inner),
    }
    print(f"{rows:,} short rows, {rounds} rounds, medians:")
    for what, key in (
        ("bare orjson → Arrow → Parquet loop, whole command", "bare_rows_per_second"),
        ("batchinfer, whole command", "command_rows_per_second"),
        ("batchinfer, first chunk to last", "pipeline_rows_per_second"),
    ):
        print(f"  {what:<50} {result[key]:>9,.0f} rows/s")
    return result


def memory(folder: Path, rounds: int) -> dict[str, Any]:
    """Peak memory over the number of rows, and with large rows."""
    result: dict[str, Any] = {}
    for name, rows, words in (
        ("100k short", 100_000, 10),
        ("1M short", 1_000_000, 10),
        ("20k of 100 KB", 20_000, 18_500),
    ):
        source = folder / "memory.jsonl"
        write_rows(source, rows, words)
        peaks = [run_batchinfer(source, folder)[1] for _ in range(rounds if rows > 20_000 else 1)]
        result[f"peak_mb {name}"] = statistics.median(peaks)
        print(f"  {name:<14} {result[f'peak_mb {name}']:>6,.0f} MB peak")
        source.unlink()
    ratio = result["peak_mb 1M short"] / result["peak_mb 100k short"]
    print(f"  1 M over 100 k: {ratio:.2f}")
    return {**result, "memory_ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = throughput(Path(name), settings.rows, settings.rounds)
        if not settings.no_memory:
            result |= memory(Path(name), settings.rounds)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({**machine, "python": platform.python_version(), **result}))


if __name__ == "__main__":
    main()
