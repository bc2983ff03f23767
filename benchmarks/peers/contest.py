"""The contestants' processes, one at work at a time, and the judgement of what they answer."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.peers import figures
from benchmarks.peers.entries import CEILINGS, REFERENCE, Entry
from benchmarks.peers.material import token_counts
from benchmarks.peers.search import FailedError, search

ROOT = Path(__file__).resolve().parents[2]
#: Rows that a contestant answers in a fresh process before it is timed there.
WARM_ROWS = 16
#: Without a network and without a word; how many threads is every library's own choice.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}  # fmt: skip


@dataclass
class Rival:
    """A contestant, its process while it has one, and what is known of it.

    `setting` is what it is loaded with; `result["setting"]` also has what it decided itself.
    """

    entry: Entry
    model: Path
    task: str
    work: Path
    patience: float
    process: subprocess.Popen[str] | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.work / self.entry.name.replace(" ", "-")

    @property
    def is_in(self) -> bool:
        return "failed" not in self.result

    @property
    def cache(self) -> Path:
        """Its XDG_CACHE_HOME: nothing of the user's is used, and nobody finds what another has made."""
        return self.work.resolve() / "caches" / self.output.name

    def choose(self, warm: Path, source: Path) -> None:
        """Find the quickest setting, each trial in a process of its own. Raises FailedError without any."""

        def attempt(setting: Mapping[str, Any]) -> float:
            with self.loaded(setting):
                self.go(warm)
                return float(self.go(source)["seconds"])

        self.setting = dict(self.entry.settings[0])
        if len(self.entry.settings) > 1 or self.entry.choices:
            trials = search(self.entry.settings, self.entry.choices, attempt)
            best = min(trials, key=lambda trial: trial.seconds)
            if best.failed:
                raise FailedError(best.failed)
            self.setting = dict(best.setting)
            self.result["tried"] = [trial.to_json() for trial in trials]

    def forget(self) -> None:
        """Remove what it has kept: the next loading is like the first one on a machine."""
        shutil.rmtree(self.cache, ignore_errors=True)

    @contextmanager
    def loaded(self, setting: Mapping[str, Any]) -> Iterator[None]:
        """A fresh process with the model loaded; it ends with the block. Raises FailedError."""
        self.spawn()
        try:
            self.ask(
                kind=self.entry.kind, model=str(self.model), task=self.task, setting=dict(setting)
            )
            yield
        finally:
            self.close()

    def spawn(self) -> None:
        with self.output.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(self.cache)},
            )  # fmt: skip

    def go(self, source: Path) -> dict[str, Any]:
        """Answer a file."""
        return self.ask(source=str(source), output=str(self.output))

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the reply. Raises FailedError."""
        assert self.process is not None and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise FailedError("its process is gone") from None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            if not waiting.select(self.patience):
                raise FailedError(f"no answer within {self.patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise FailedError(f"its process ended with {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            raise FailedError(reply["failed"])
        return reply

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@dataclass
class Contest:
    """A model and a task: contestants, the texts, and what right answers are.

    Whoever is timed gets a fresh process for it, loads, and answers a few rows first. Libraries keep
    kernels for shapes that they have met, some by model, some by process; a batchinfer run loads its
    model itself, so that in a process that goes on it would have met all shapes before with the one
    engine, and none with the other.
    """

    name: str
    task: str
    model: Path
    texts: Sequence[str]
    #: name → JSONL file: all, few (the first of all), check (the first of few), search, sorted-search
    files: Mapping[str, Path]
    num_few: int
    num_check: int
    work: Path
    few_float32: bool
    patience: float
    say: Callable[[str], None] = print
    section: dict[str, Any] = field(default_factory=dict)
    #: name → the batch budget that it chose in its latest round
    budgets: dict[str, int | None] = field(default_factory=dict)

    def prepare(self, entries: Sequence[Entry]) -> list[Rival]:
        """Find everyone's setting, and let them answer the rows that are checked: who is wrong is out.

        `start_seconds` counts from the start of a process to the end of loading, nothing being kept from
        an earlier one: exporting is in it.
        """
        counts = token_counts(self.model, self.texts)
        config = json.loads((self.model / "config.json").read_text())
        self.tokens = {
            "all": int(counts.sum()),
            "few": int(counts[: self.num_few].sum()),
            "check": int(counts[: self.num_check].sum()),
        }
        self.section |= {
            "task": self.task, "rows": len(counts), "rows_of_slow": self.num_few,
            "rows_checked": self.num_check, "tokens": self.tokens["all"],
            "tokens_of_slow": self.tokens["few"], "mean_tokens": float(counts.mean()),
            "least_tokens": int(counts.min()), "most_tokens": int(counts.max()),
            "share_at_the_limit": float((counts == counts.max()).mean()),
            "flops_per_token": figures.flops_per_token(config, counts), "contestants": {},
        }  # fmt: skip
        self.expected = self.reference()
        rivals = [self.rival(entry) for entry in entries]
        for rival in rivals:
            self.section["contestants"][rival.entry.name] = rival.result
            rival.result |= {
                "tokens": self.tokens[self.rows_of(rival)],
                "rows": self.num_few if self.rows_of(rival) == "few" else len(counts),
            }
            try:
                rival.forget()
                rival.choose(self.files["warm"], self.search_file(rival.entry))
                rival.forget()
                began = time.perf_counter()
                with rival.loaded(rival.setting):
                    started = time.perf_counter() - began
                    reply = rival.go(self.files["check"])
                # batchinfer loads in each run; the first time, with all that it imports
                started += reply.get("load_seconds", 0.0)
                rival.result |= {"setting": dict(rival.setting), "start_seconds": started}
                self.judge(rival, reply, "check")
            except FailedError as error:
                rival.result["failed"] = str(error)
                self.say(f"  {rival.entry.name}: out: {error}")
            else:
                self.say(f"  {rival.entry.name}: ready: {rival.result['setting']}")
        return rivals

    def round(self, rivals: Sequence[Rival]) -> None:
        """Everyone once, in turn; and the ceilings."""
        ceilings = self.rival(CEILINGS)
        with ceilings.loaded(CEILINGS.settings[0]):
            gflops = ceilings.go(self.files["check"])["gflops"]
        for name, value in gflops.items():
            self.section.setdefault("gflops_rounds", {}).setdefault(name, []).append(value)
        for rival in rivals:
            if not rival.is_in:
                continue
            rows = self.rows_of(rival)
            budget = self.budgets.get(rival.entry.follows)
            setting = {**rival.setting, **({"max_batch_tokens": budget} if budget else {})}
            try:
                with rival.loaded(setting):
                    rival.go(self.files["warm"])
                    busy = busy_seconds()
                    reply = rival.go(self.files[rows])
                    others = busy_seconds() - busy - reply["cpu_seconds"]
                self.judge(rival, reply, rows)
            except FailedError as error:
                rival.result["failed"] = str(error)
                self.say(f"  {rival.entry.name}: out: {error}")
                continue
            kept = ("seconds", "cpu_seconds", "load_seconds", "around_seconds", "settings")
            rival.result.setdefault("rounds", []).append(
                {name: reply[name] for name in kept if name in reply}
                | {"others_share": share_of_others(others, reply["wall_seconds"])}
            )
            speed = self.tokens[rows] / reply["seconds"]
            self.say(f"  {rival.entry.name}: {reply['seconds']:.2f} s, {speed:,.0f} tokens/s")
        self.sum_up()

    def judge(self, rival: Rival, reply: Mapping[str, Any], rows: str) -> None:
        """Hold a round's answers against the reference. Raises FailedError where they are wrong."""
        if reply["tokens"] != self.tokens[rows]:
            raise FailedError(f"it saw {reply['tokens']:,} tokens of {self.tokens[rows]:,}")
        rival.result["padding"] = reply["computed_tokens"] / reply["tokens"] - 1
        settings = reply.get("settings", {})
        rival.result["setting"] |= settings
        self.budgets[rival.entry.name] = settings.get("max_batch_tokens")
        count = {"all": len(self.texts), "few": self.num_few, "check": self.num_check}[rows]
        check = figures.agreement(read_answers(rival.output, count, self.num_check), self.expected)
        worst = rival.result.setdefault("check", dict(check))
        for name, value in check.items():
            worst[name] = (max if "difference" in name else min)(worst[name], value)
        if wrong := figures.what_is_wrong(check, rival.result["setting"]["dtype"]):
            raise FailedError(wrong)

    def sum_up(self) -> None:
        """Figures of all rounds so far."""
        section = self.section
        section["gflops"] = {k: figures.spread(v) for k, v in section["gflops_rounds"].items()}
        for result in section["contestants"].values():
            if values := figures.speeds(result):
                result["tokens_per_second"] = figures.spread(values)
                result["seconds"] = figures.spread([one["seconds"] for one in result["rounds"]])
                top = figures.ceiling(section["gflops"], result["setting"]["dtype"])
                if top is not None:
                    speed = result["tokens_per_second"]["median"]
                    result["share_of_ceiling"] = speed * section["flops_per_token"] / top / 1e9
        section["ratios"] = figures.ratios(self.task, section["contestants"])

    def reference(self) -> dict[str, Any]:
        """Plain transformers in float32, one row at a time."""
        rival = self.rival(REFERENCE)
        try:
            with rival.loaded(REFERENCE.settings[0]):
                reply = rival.go(self.files["check"])
        except FailedError as error:
            raise SystemExit(f"{self.name}: the reference failed: {error}") from None
        assert reply["tokens"] == self.tokens["check"], "the reference saw other tokens"
        answers = read_answers(rival.output, self.num_check, self.num_check)
        self.section["answers"] = describe(answers)
        return answers

    def rival(self, entry: Entry) -> Rival:
        return Rival(entry, self.model, self.task, self.work, self.patience)

    def rows_of(self, rival: Rival) -> str:
        return "few" if rival.entry.takes_few(self.few_float32) else "all"

    def search_file(self, entry: Entry) -> Path:
        return self.files["sorted-search" if entry.sorts else "search"]


def read_answers(output: Path, num_rows: int, num_first: int) -> dict[str, Any]:
    """The answers of the first rows; raises FailedError where rows are missing or not in order."""
    table = ds.dataset(output / "data" if output.is_dir() else output, format="parquet").to_table()
    ids = table["id"].to_pylist()
    if ids != list(range(num_rows)):
        raise FailedError(f"wrote {len(ids):,} rows, or not in order, of {num_rows:,}")
    table = table.slice(0, num_first)
    if "embedding" in table.column_names:
        return {"embedding": np.array(table["embedding"].to_pylist(), np.float32)}
    if "predicted_label" in table.column_names:
        labels = [
            int(str(name).removeprefix("LABEL_")) for name in table["predicted_label"].to_pylist()
        ]
        return {"label": np.array(labels), "score": table["predicted_score"].to_numpy()}
    return {"label": table["label"].to_numpy(), "score": table["score"].to_numpy()}


def describe(answers: Mapping[str, Any]) -> dict[str, float]:
    """How different right answers are from each other: agreement would be trivial if they were alike."""
    if "embedding" in answers:
        vectors = answers["embedding"]
        others = (vectors * np.roll(vectors, 1, axis=0)).sum(axis=1)
        return {"median_cosine_of_different_rows": float(np.median(others))}
    shares = np.bincount(answers["label"]) / len(answers["label"])
    return {"share_of_commoner_label": float(shares.max())}


def share_of_others(seconds: float, wall_seconds: float) -> float:
    """CPU time that the machine spent on something else, of all that it had.

    `busy_seconds` counts every core of the machine, whatever this process may use of them.
    """
    return max(0.0, seconds) / wall_seconds / (os.cpu_count() or 1)


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(value) for value in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
