"""A job of a billion rows on 256 GPUs, on paper: how long it takes, what failures cost, what a store sees.

    python -m benchmarks.scale            the tables of docs/scale.md

A simulation of the scheduling alone, by its assumptions below; nothing is computed. Chunks are dealt
out in fixed parts (`--shard`), or to whoever is free (`--devices`, a cluster's scheduler). Nodes fail at
random, and take the chunks under way with them.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Assumptions:
    """What is not measured, but taken to be so."""

    rows: int = 1_000_000_000
    chunk_rows: int = 16_384
    tokens_a_row: int = 140
    gpus: int = 256
    gpus_a_node: int = 8
    #: Standard deviation of a GPU's speed beside another's, and of a chunk's time beside another's.
    spread_of_gpus: float = 0.03
    spread_of_chunks: float = 0.10
    #: Of the whole cluster, and how long it takes until a failed node's GPUs answer again, in seconds.
    failures_an_hour: float = 1.0
    restart_seconds: float = 300.0
    #: From the start of a process to its first chunk, in seconds.
    start_seconds: float = 60.0

    @property
    def chunks(self) -> int:
        return math.ceil(self.rows / self.chunk_rows)

    def chunk_seconds(self, tokens_per_second: float) -> float:
        return self.chunk_rows * self.tokens_a_row / tokens_per_second


@dataclass(frozen=True)
class Outcome:
    """One simulated run; seconds, and GPU-seconds that were computed in vain."""

    seconds: float
    failures: int
    lost_seconds: float


def simulate(given: Assumptions, tokens_per_second: float, *, parts: bool, seed: int) -> Outcome:
    """Answer all chunks, by GPUs of which each asks for its next one, of its own part or of all."""
    draw = np.random.default_rng(seed)
    mean = given.chunk_seconds(tokens_per_second)
    speed = np.exp(draw.normal(0.0, given.spread_of_gpus, given.gpus))
    nodes = given.gpus // given.gpus_a_node
    edges = [given.chunks * gpu // given.gpus for gpu in range(given.gpus + 1)]
    left = [edges[gpu + 1] - edges[gpu] for gpu in range(given.gpus)]
    shared, lost, failures = given.chunks, 0.0, 0

    def next_failure() -> float:
        if not given.failures_an_hour:
            return math.inf
        return float(draw.exponential(3600 / given.failures_an_hour))

    #: By GPU: when its chunk ends, and when it began; inf: it has none.
    begun = np.full(given.gpus, math.inf)
    free = [(given.start_seconds, gpu, 0) for gpu in range(given.gpus)]
    heapq.heapify(free)
    version = np.zeros(given.gpus, dtype=np.int64)
    fails_at, end = next_failure(), 0.0
    while free:
        now, gpu, stamp = heapq.heappop(free)
        while fails_at < now:
            node = int(draw.integers(nodes))
            hit = range(node * given.gpus_a_node, (node + 1) * given.gpus_a_node)
            if any(math.isfinite(begun[one]) for one in hit):
                failures += 1
            for one in hit:
                if math.isfinite(begun[one]):  # its chunk is lost, and is to be answered again
                    lost += max(0.0, fails_at - begun[one])
                    begun[one] = math.inf
                    left[one] += 1
                    shared += 1
                version[one] += 1
                heapq.heappush(free, (fails_at + given.restart_seconds, one, int(version[one])))
            fails_at += next_failure()
        if stamp != version[gpu]:
            continue
        if math.isfinite(begun[gpu]):  # its chunk is done
            begun[gpu], end = math.inf, now
        if (left[gpu] if parts else shared) <= 0:
            if not parts and np.isfinite(begun).any():  # another's chunk may still come back
                heapq.heappush(free, (now + mean, gpu, stamp))
            continue
        left[gpu] -= 1
        shared -= 1
        begun[gpu] = now
        took = mean * speed[gpu] * float(np.exp(draw.normal(0.0, given.spread_of_chunks)))
        heapq.heappush(free, (now + took, gpu, stamp))
    return Outcome(end, failures, lost)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="simulated runs; the table has medians")
    runs = parser.parse_args().runs
    given = Assumptions()
    print(
        "| tokens/s of a GPU | a chunk | ideal | in parts | handed out | failures | lost | commits/s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rate in (2_000_000, 200_000, 20_000):
        ideal = given.chunks * given.chunk_seconds(rate) / given.gpus
        found = {
            parts: [simulate(given, rate, parts=parts, seed=seed) for seed in range(runs)]
            for parts in (True, False)
        }
        took = {p: statistics.median(o.seconds for o in out) for p, out in found.items()}
        failures = statistics.median(o.failures for o in found[False])
        lost = statistics.median(o.lost_seconds for o in found[False]) / (given.gpus * took[False])
        print(
            f"| {rate:,} | {given.chunk_seconds(rate):.1f} s | {ideal / 3600:.2f} h "
            f"| {took[True] / ideal:.2f} × | {took[False] / ideal:.2f} × | {failures:.0f} "
            f"| {100 * lost:.2f} % | {given.chunks / took[False]:.1f} |"
        )


if __name__ == "__main__":
    main()
