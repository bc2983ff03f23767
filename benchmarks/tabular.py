"""A table through a module: whole runs, Parquet to Parquet, beside the bare module on tensors in memory.

    python benchmarks/tabular.py                       1 M rows × 16 columns, 7 rounds
    python benchmarks/tabular.py --rows 100000 --rounds 1

What is compared, in turn, each time in a fresh process:

- bare: the exported program on float32[rows, columns] that is in memory already, in inference mode, batch
  by batch; of several batch sizes and of one thread or all, the fastest. Only these calls are timed, the
  second time they are made.
- run: `batchinfer run table.parquet --model mlp.pt2`, from the first chunk that is asked for to the last
  shard that is durable: reading, answering, writing, with all input columns kept, or `--keep id`. Loading
  the model (and PyTorch) is not counted, as it is not for the bare module.

Medians are printed, their ratio, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Rows of a batch that the bare module is tried with.
BATCHES = (2048, 8192, 65536, 1 << 20)

MAKE = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
folder, rows, columns, hidden = sys.argv[1], *map(int, sys.argv[2:5])
draw = np.random.default_rng(0)
table = {"id": np.arange(rows)}
table |= {f"c{i}": draw.standard_normal(rows) for i in range(columns)}
pq.write_table(pa.table(table), f"{folder}/table.parquet")
torch.manual_seed(0)
mlp = torch.nn.Sequential(
    torch.nn.Linear(columns, hidden), torch.nn.ReLU(),
    torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1),
).eval()
sizes = {0: torch.export.Dim("rows")}
torch.export.save(
    torch.export.export(mlp, (torch.zeros(8, columns),), dynamic_shapes=(sizes,)), f"{folder}/mlp.pt2"
)
"""

BARE = """
import sys, time, numpy as np, pyarrow.parquet as pq, torch
folder, batch, threads = sys.argv[1], *map(int, sys.argv[2:4])
if threads:
    torch.set_num_threads(threads)
table = pq.read_table(f"{folder}/table.parquet").drop_columns(["id"])
x = torch.from_numpy(np.stack([c.to_numpy() for c in table.columns], axis=1).astype(np.float32))
module = torch.export.load(f"{folder}/mlp.pt2").module()
with torch.inference_mode():
    for turn in range(2):
        started = time.perf_counter()
        answers = [module(x[i : i + batch]) for i in range(0, len(x), batch)]
        seconds = time.perf_counter() - started
print(seconds)
"""


def bare(folder: Path, batch: int, threads: int) -> float:
    """Seconds of the bare module."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE, str(folder), str(batch), str(threads)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(done.stdout)


def run(folder: Path, columns: int, *flags: str) -> dict[str, Any]:
    """The report of a whole run."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    features = ",".join(f"c{i}" for i in range(columns))
    done = subprocess.run(
        [
            sys.executable, "-m", "batchinfer", "run", str(folder / "table.parquet"), "--model",
            str(folder / "mlp.pt2"), "--trust-remote-code", "--features", features, "--output", str(out),
            "--json", "--quiet", *flags,
        ],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flags", default="", help="further flags of batchinfer run")
    given = parser.parse_args()
    cases = {"all columns kept": (), "--keep id": ("--keep", "id")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = map(str, (given.rows, given.columns, given.hidden))
        subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, name, *sizes], check=True)
        ways = [(batch, threads) for batch in BATCHES for threads in (0, 1)]
        tried = {way: bare(folder, *way) for way in ways}
        best = min(tried, key=lambda way: tried[way])
        for (batch, threads), seconds in tried.items():
            print(f"bare, batches of {batch:,}, {threads or 'all'} threads: {seconds:.3f} s")
        found: dict[str, list[float]] = {"bare": [], **{case: [] for case in cases}}
        for turn in range(given.rounds):
            found["bare"].append(bare(folder, *best))
            for case, flags in cases.items():
                report = run(folder, given.columns, *flags, *given.flags.split())
                found[case].append(report["seconds"])
                if turn == given.rounds - 1:
                    print(case, report["stages"], f"busy {report['device_busy']:.0%}")
    medians = {case: statistics.median(seconds) for case, seconds in found.items()}
    for case, seconds in medians.items():
        rate = given.rows / seconds
        print(
            f"{case}: {seconds:.3f} s, {rate:,.0f} rows/s, {seconds / medians['bare']:.2f} × bare"
        )
    print(
        json.dumps(
            {
                **vars(given), "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(),
                "bare_batch": best[0], "bare_threads": best[1], "seconds": found, "medians": medians,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
