"""How soon a large input is at the device, and what memory a run takes: 200 files of 100 MB.

    python -m benchmarks.startup --folder /data/startup        JSON Lines, CSV and Parquet, a minute each
    python -m benchmarks.startup --folder /data/startup --cases large --runs "parts 4-7 of 8 at once"

One file is generated and linked under 200 names, so 20 GB take 100 MB of disk; `large` is a single JSON
Lines file of --large-gb, of which each part of an array answers some. Whole commands, with the fake engine,
seen from outside: the first mark (a chunk is being tokenized), the first shard and the CPU time until then
(which other work on the machine does not change as much), and the resident memory of all processes. After
--seconds the run is told to stop, and `resume` goes on from there for as long. The page cache holds what is
read, as soon as it was read once: what a disk takes comes on top.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.peers.contest import ROOT
from benchmarks.pipeline import WORDS

NUM_FILES, FILE_BYTES = 200, 100_000_000
SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "parquet": "parquet", "large": "jsonl"}
#: By name, the flags of the commands that are started at the same time.
RUNS: dict[str, list[list[str]]] = {
    "one process": [[]],
    "two devices": [["--devices", "cpu:2"]],
    "part 7 of 16": [["--shard", "7/16"]],
    "parts 4-7 of 8 at once": [["--shard", f"{index}/8"] for index in range(4, 8)],
}
_LOOK_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="emptied in the end")
    parser.add_argument("--cases", nargs="+", choices=SUFFIXES, default=["jsonl", "csv", "parquet"])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS)[:3])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--large-gb", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="a JSON file of the figures")
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    given.folder.mkdir(parents=True)
    try:
        for case in given.cases:
            pattern = write_inputs(given.folder / case, case, given.large_gb)
            for name in given.runs:
                output = given.folder / "out"
                for command in ("run", "resume"):
                    figures = watch(command, pattern, output, RUNS[name], given.seconds)
                    found.append({"case": case, "run": name, "command": command, **figures})
                    print(json.dumps(found[-1]), flush=True)
                shutil.rmtree(output)
            shutil.rmtree(given.folder / case)
    finally:
        shutil.rmtree(given.folder)
    if given.out:
        save(given.out, {
            "kind": "startup", "machine": machine(), "versions": versions(), "revision": revision(),
            "seconds": given.seconds, "results": found,
        })  # fmt: skip


def write_inputs(folder: Path, case: str, large_gb: float) -> str:
    """Generate one file and link it; return the glob of all."""
    folder.mkdir()
    suffix = SUFFIXES[case]
    first = folder / f"part-0000.{suffix}"
    write_file(first, suffix)
    if case == "large":
        content = first.read_bytes()
        with first.open("ab") as file:
            while file.tell() < large_gb * 1e9:
                file.write(content)
    else:
        for index in range(1, NUM_FILES):
            os.link(first, folder / f"part-{index:04}.{suffix}")
    return str(folder / f"*.{suffix}")


def write_file(path: Path, suffix: str) -> None:
    """About 100 MB of rows of 20 to 200 words."""
    draw = random.Random(0)
    size = 0
    ids: list[int] = []
    texts: list[str] = []
    while size < FILE_BYTES:
        texts.append(" ".join(draw.choices(WORDS, k=draw.randint(20, 200))) + ', "quoted"')
        ids.append(len(ids))
        size += len(texts[-1]) + 30
    if suffix == "jsonl":
        with path.open("wb") as file:
            for number, text in zip(ids, texts, strict=True):
                file.write(orjson.dumps({"id": number, "text": text}) + b"\n")
        return
    table = pa.table({"id": ids, "text": texts})
    if suffix == "csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=10_000)


def watch(
    command: str, pattern: str, output: Path, flags: list[list[str]], seconds: float
) -> dict[str, Any]:
    """Start the commands, look on for so long, and tell them to stop."""
    job = [pattern, "--engine", "fake", "--keep", "none", "--output", str(output)]
    what = job if command == "run" else [str(output)]
    before = len(list(output.glob("data/part-*")))
    first_mark = first_shard = cpu_seconds = None
    peak, resident = 0, 0
    started = time.monotonic()
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "batchinfer", command, *what, "--quiet", *one],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for one in flags
    ]  # fmt: skip
    state = output / "_batchinfer" / "tmp"
    while (now := time.monotonic() - started) < seconds and any(run.poll() is None for run in runs):
        if first_mark is None and any(state.glob("**/attempt-*")):
            first_mark = round(now, 2)
        if first_shard is None and len(os.listdir(output / "data") if first_mark else ()) > before:
            first_shard = round(now, 2)
            cpu_seconds = round(sum(cpu_of(pid) for run in runs for pid in tree_of(run.pid)), 2)
        resident = max(sum(map(resident_of, tree_of(run.pid))) for run in runs)
        peak = max(peak, resident)
        time.sleep(_LOOK_SECONDS if first_shard is None else 0.2)
    told = time.monotonic()
    for run in runs:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
    said = [run.communicate()[1].strip().splitlines()[-1:] for run in runs]
    codes = [run.returncode for run in runs]
    if set(codes) - {0, 75}:
        raise SystemExit(f"a run failed: {codes} {said}")
    return {
        "load": round(os.getloadavg()[0], 1),
        "first_mark": first_mark, "first_shard": first_shard, "cpu_seconds": cpu_seconds,
        "peak_mb": round(peak / 1e6), "last_mb": round(resident / 1e6),
        "shards": len(list(output.glob("data/part-*"))) - before,
        "to_stop": round(time.monotonic() - told, 2), "exit_codes": codes,
    }  # fmt: skip


def tree_of(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from tree_of(int(child))


def resident_of(pid: int) -> int:
    """The resident memory of a process in bytes; what processes share counts in each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_of(pid: int) -> float:
    """Seconds of CPU time that a process has taken."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
