"""The command: arguments, the order of things, and the JSON, saved after every round."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import benchmarks.peers
from batchinfer.machine import usable_cores
from benchmarks.peers.contest import ENVIRONMENT, ROOT, WARM_ROWS, Contest, Rival
from benchmarks.peers.entries import CORE, ENTRIES, chosen
from benchmarks.peers.material import (
    MODELS,
    STRETCH,
    Corpus,
    make_model,
    read_corpus,
    stretches,
    token_counts,
    write_rows,
)

PACKAGES = (
    "batchinfer", "torch", "transformers", "tokenizers", "sentence-transformers", "onnxruntime", "onnx",
    "openvino", "numpy", "pyarrow",
)  # fmt: skip
#: Of /proc/cpuinfo: what decides how fast bfloat16 is.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


@dataclass(frozen=True)
class Clock:
    """The time that is left to begin another round."""

    began: float
    budget: float | None

    @property
    def is_over(self) -> bool:
        return self.budget is not None and time.monotonic() - self.began > self.budget


def main() -> None:
    options = parse()
    os.environ.update(ENVIRONMENT)  # of this process too, as it makes the models
    clock = Clock(time.monotonic(), options.budget_seconds)
    corpus = read_corpus(options.corpus, options.seed)
    if len(corpus.texts) < options.rows:
        raise SystemExit(
            f"--rows {options.rows}: the corpus has {len(corpus.texts):,} texts; name more files"
        )
    record: dict[str, Any] = {
        "kind": "peers",
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
        "options": {
            "corpus": [path.name for path in options.corpus], "rows": options.rows,
            "slow_rows": options.slow_rows, "check_rows": options.check_rows,
            "search_rows": options.search_rows, "rounds": options.rounds, "seed": options.seed,
        },
        "sections": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        work = (options.work or Path(name)).resolve()  # the contestants run in another folder
        for model in options.models:
            for task in options.tasks:
                entries = chosen(task, options.cases)
                if entries and not clock.is_over:
                    print(f"{model} {task}", flush=True)
                    contest = set_up(model, task, corpus, work, options)
                    record["sections"][f"{model} {task}"] = contest.section
                    hold(contest, contest.prepare(entries), options, clock, record)
                    print_ratios(contest)
    print(f"{options.out}: {len(record['sections'])} sections; next: python -m benchmarks.tables")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=benchmarks.peers.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        nargs="+",
        required=True,
        help="JSONL files; their strings are the texts",
    )
    add("--out", type=Path, required=True, help="the JSON to write")
    add("--models", type=names(MODELS), default=list(MODELS), help="minilm,bert-base")
    add("--tasks", type=names(tuple(ENTRIES)), default=list(ENTRIES), help="embed,classify")
    add("--cases", type=lambda text: text.split(","), default=["*"], metavar="PATTERN,…",
        help="contestants by name, such as 'batchinfer*,openvino bf16'; core: "
        + ", ".join(CORE))  # fmt: skip
    add("--rounds", type=int, default=3)
    add("--rows", type=int, default=4000, help="texts of the usual contestants")
    add(
        "--slow-rows",
        type=int,
        default=3000,
        help="texts of the slow ones: the first of all, or as many",
    )
    add("--float32-on-few", type=names(MODELS), default=["bert-base"],
        help="models whose float32 contestants all take the slow ones' rows")  # fmt: skip
    add(
        "--check-rows",
        type=int,
        default=200,
        help="rows held against transformers, a row at a time",
    )
    add("--search-rows", type=int, default=256, help="rows on which settings are tried")
    add("--budget-seconds", type=float, help="begin no further round after this")
    add("--patience", type=float, default=3600.0, help="seconds that one answer may take")
    add("--seed", type=int, default=0)
    add("--work", type=Path, help="keep models and texts in this folder [default: a temporary one]")
    return parser.parse_args(arguments)


def names(known: Sequence[str]) -> Any:
    """A converter of comma-separated names."""

    def convert(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: should be of {', '.join(known)}")
        return found

    return convert


def set_up(
    model: str, task: str, corpus: Corpus, work: Path, options: argparse.Namespace
) -> Contest:
    """Write the models and the texts. The corpus is shuffled: its first rows stand for all."""
    work.mkdir(parents=True, exist_ok=True)
    folder = make_model(model, task, corpus, work)
    texts = corpus.texts[: options.rows]
    few = min(options.slow_rows, len(texts))
    check = min(options.check_rows, few)
    search = stretches(token_counts(folder, texts), max(1, options.search_rows // STRETCH))
    rows: dict[str, Sequence[int]] = {
        "all": range(len(texts)),
        "few": range(few),
        "check": range(check),
        "warm": range(min(WARM_ROWS, len(texts))),
        "search": range(min(options.search_rows // 2, len(texts))),
        "sorted-search": search,
    }
    files = {name: write_rows(work / f"{name}.jsonl", texts, ids) for name, ids in rows.items()}
    return Contest(
        f"{model} {task}", task, folder, texts, files, few, check, work,
        few_float32=model in options.float32_on_few, patience=options.patience,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip


def hold(
    contest: Contest,
    rivals: list[Rival],
    options: argparse.Namespace,
    clock: Clock,
    record: dict[str, Any],
) -> None:
    """Round after round, at least one, while there is time."""
    for number in range(options.rounds):
        if number and clock.is_over:
            break
        print(f" round {number + 1}", flush=True)
        contest.round(rivals)
        save(options.out, record)


def save(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


def print_ratios(contest: Contest) -> None:
    for found in contest.section["ratios"]:
        goal = "" if found["goal"] is None else f" (goal {found['goal']:g})"
        print(f"  {found['ours']} over {found['theirs']}: {found['by_medians']:.2f}{goal}")


# Where it was measured ---------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpu, flags = platform.processor() or platform.machine(), []
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
        cpu = fields.get("model name", cpu)
        flags = [flag for flag in FLAGS if flag in fields.get("flags", "").split()]
    except OSError:
        pass  # not Linux
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu, "cores": usable_cores(), "flags": flags, "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def revision() -> str:
    """The commit of this tree, and whether files of the package were changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "batchinfer", "benchmarks/peers")
    return (git("rev-parse", "HEAD") or "unknown") + (" and changes" if changed else "")


if __name__ == "__main__":
    main()
