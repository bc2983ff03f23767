"""What Ray adds to a chunk: many small chunks, answered at once by the fake engine, whole runs in turn.

    python -m benchmarks.ray_overhead --out NAME.json

Seconds from the first chunk asked for to the last shard on disk, as each run reports them, by the number of
chunks; Ray's own start and the model's loading are told apart. Then the same number of pieces through an
actor pool of Ray Data, and through two plain actors, neither of which does anything.
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
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.peers.contest import ROOT

CONTESTANTS: dict[str, list[str]] = {
    "inline": [],
    "ray, 1 actor": ["--executor", "ray", "--ray-actors", "1"],
    "ray, 2 actors": ["--executor", "ray", "--ray-actors", "2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pieces", type=int, default=100, help="through Ray Data; 0: leave it out")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name:
        source, output = Path(name) / "texts.jsonl", Path(name) / "out"
        rows = (json.dumps({"text": f"row {i}"}) for i in range(given.chunks * 10))
        source.write_text("\n".join(rows) + "\n")
        job = [
            sys.executable, "-m", "batchinfer", "run", str(source), "--engine", "fake", "--output",
            str(output), "--chunk-rows", "10", "--json", "--quiet", "--no-progress",
        ]  # fmt: skip
        for _ in range(given.rounds):
            for contestant, flags in CONTESTANTS.items():
                shutil.rmtree(output, ignore_errors=True)
                runs[contestant].append(answer([*job, *flags], given.chunks))
                print(contestant, runs[contestant][-1], file=sys.stderr)
    medians = {
        contestant: {key: round(statistics.median(run[key] for run in ran), 3) for key in ran[0]}
        for contestant, ran in runs.items()
    }
    base = medians["inline"]["ms_a_chunk"]
    result: dict[str, Any] = {
        "what": "Ray's overhead a chunk: fake engine, 10 rows a chunk, medians",
        "chunks": given.chunks,
        "rounds": given.rounds,
        "medians": medians,
        "ray_adds_ms_a_chunk": {
            contestant: round(median["ms_a_chunk"] - base, 3)
            for contestant, median in medians.items()
            if contestant != "inline"
        },
        "ms_a_piece_of_nothing": pieces_of_nothing(given.pieces) if given.pieces else {},
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
    }
    save(given.out, result)
    print(json.dumps({key: result[key] for key in list(result)[3:6]}, indent=1))


def answer(command: list[str], chunks: int) -> dict[str, float]:
    """Run it; return milliseconds a chunk, and the seconds that starting took."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["num_shards"] == chunks
    return {
        "ms_a_chunk": summary["seconds"] * 1000 / chunks,
        "load_seconds": summary["load_seconds"],
    }


class Nothing:
    """An actor that hands back what it is given."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def pieces_of_nothing(count: int) -> dict[str, float]:
    """Milliseconds a piece behind the first one, in Ray Data and with plain actors; two at work."""
    import logging

    import ray
    import ray.data

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    pieces = ray.data.from_items(list(range(count)), override_num_blocks=count).map_batches(
        Nothing, batch_size=1, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=0.5
    )
    began = time.monotonic()
    times = [time.monotonic() for _ in pieces.iter_batches(batch_size=1, prefetch_batches=0)]
    by_data = (times[-1] - times[0]) * 1000 / (count - 1)
    first = times[0] - began
    actors = [ray.remote(num_cpus=0.5)(Nothing).remote() for _ in range(2)]
    ray.get([actor.__call__.remote({}) for actor in actors])
    began = time.monotonic()
    pending = {actor.__call__.remote({}): actor for actor in actors}
    for _ in range(count):
        done, _ = ray.wait(list(pending), num_returns=1)
        actor = pending.pop(done[0])
        pending[actor.__call__.remote(ray.get(done[0]))] = actor
    by_actors = (time.monotonic() - began) * 1000 / count
    ray.shutdown()
    return {
        "Ray Data": round(by_data, 3),
        "Ray Data, seconds to the first": round(first, 3),
        "plain actors": round(by_actors, 3),
    }


if __name__ == "__main__":
    main()
