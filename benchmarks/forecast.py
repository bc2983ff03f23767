"""Whether a forecast holds: a dry run, and then the run, again and again.

    python -m benchmarks.forecast ../shared/data/gsm8k/grade_school_math/data/{test,train}.jsonl \\
        --model minilm-embed --text-column question --out forecast.json

Each corpus is a job of its own: `batchinfer plan` and `batchinfer run`, each a process of its own, one
after the other, three times. What is predicted is the time from the beginning of planning to the report;
the run says itself what that was (`report.json`). `command_seconds` is seen from outside, with Python's
start. Ratios are actual over predicted; whoever else is at work on the machine is part of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.peers.contest import ROOT

#: How far the time may be off.
ALLOWED = 0.15


def main() -> None:
    given = parse()
    found = []
    with tempfile.TemporaryDirectory(prefix="forecast-") as name:
        for corpus in given.corpus:
            rounds = []
            for turn in range(given.rounds):
                rounds.append(measure(given, corpus, Path(name)))
                print(corpus.name, turn + 1, json.dumps(rounds[-1]), flush=True)
            found.append({"corpus": corpus.name, "rounds": rounds, **summary(rounds)})
            print(corpus.name, json.dumps(summary(rounds)), flush=True)
    if given.out:
        save(given.out, {
            "kind": "forecast", "machine": machine(), "versions": versions(), "revision": revision(),
            "model": given.model.name, "flags": given.flags, "results": found,
        })  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", nargs="+", type=Path, help="files, each a job of its own")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--rows", type=int, help="only so many of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-seconds", default="20", help="of the dry run")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="more of `run`, at the end"
    )
    parser.add_argument("--out", type=Path, help="a JSON file of the figures")
    return parser.parse_args()


def measure(given: argparse.Namespace, corpus: Path, folder: Path) -> dict[str, Any]:
    """One dry run and one run, with an empty cache."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name) / "out"
        job = [
            str(corpus),
            "-m",
            str(given.model),
            "--text-column",
            given.text_column,
            "-o",
            str(output),
        ]
        job += ["--limit", str(given.rows)] if given.rows else []
        job += [*given.flags, "--json", "--quiet"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(Path(name) / "cache"),
        }
        plan, plan_seconds = call(["plan", *job, "--max-seconds", given.max_seconds], environment)
        report, run_seconds = call(["run", *job], environment)
    predicted, actual = report["forecast"]["predicted"], report["forecast"]["actual"]
    return {
        "predicted": predicted,
        "actual": actual,
        "ratios": {
            key: round(actual[key] / predicted[key], 4) for key in predicted if predicted[key]
        },
        "work": {"predicted": plan["seconds"]["work"], "actual": report["seconds"]},
        "load": {"predicted": plan["seconds"]["load"], "actual": report["load_seconds"]},
        "expected_between": [plan["seconds"]["low"], plan["seconds"]["high"]],
        "plan_command_seconds": round(plan_seconds, 2),
        "command_seconds": round(run_seconds, 2),
        "load_average": os.getloadavg()[0],
    }


def call(arguments: list[str], environment: dict[str, str]) -> tuple[dict[str, Any], float]:
    """What a command says in JSON, and its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "batchinfer", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 65):
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - began


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The time in all rounds, actual over predicted, and whether each is within what is allowed."""
    ratios = [one["ratios"]["seconds"] for one in rounds]
    work = [one["work"]["actual"] / one["work"]["predicted"] for one in rounds]
    return {
        "seconds_ratios": ratios,
        "median": round(statistics.median(ratios), 4),
        "work_ratios": [round(ratio, 4) for ratio in work],
        "holds": all(abs(ratio - 1) <= ALLOWED for ratio in ratios),
    }


if __name__ == "__main__":
    main()
