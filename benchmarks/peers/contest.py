"""The contestants' processes, one at work at a time, and the judgement of what they answer."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.peers import figures
from benchmarks.peers.contestants import cores
from benchmarks.peers.entries import REFERENCE, Entry
from benchmarks.peers.material import token_counts

ROOT = Path(__file__).resolve().parents[2]
#: Rows that a contestant answers once before a setting is tried.
WARM_ROWS = 16
#: Without a network and without a word; how many threads is every library's own choice.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}  # fmt: skip


class FailedError(Exception):
    """A contestant cannot take part, or no longer."""


@dataclass
class Rival:
    """A contestant's process, and what is known of it."""

    entry: Entry
    model: Path
    task: str
    work: Path
    patience: float
    process: subprocess.Popen[str] | None = None
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.work / self.entry.name.replace(" ", "-")

    @property
    def is_in(self) -> bool:
        return "failed" not in self.result

    def start(self, warm: Path, search: Path) -> None:
        """Find the quickest setting in one process; then load it in a fresh one.

        `start_seconds` counts from the start of that process to the end of loading.
        """
        settings = [dict(setting) for setting in self.entry.settings]
        if len(settings) > 1:
            self.spawn()
            tried = self.ask(
                **self.named,
                settings=settings,
                warm=str(warm),
                source=str(search),
                output=str(self.output),
            )["tried"]
            self.close()
            found = [one for one in tried if "seconds" in one]
            if not found:
                raise FailedError(tried[0]["failed"])
            settings = [min(found, key=lambda one: float(one["seconds"]))["setting"]]
            self.result["tried"] = tried
        began = time.perf_counter()
        self.spawn()
        self.ask(**self.named, setting=settings[0])
        self.result |= {"setting": settings[0], "start_seconds": time.perf_counter() - began}

    @property
    def named(self) -> dict[str, str]:
        return {"kind": self.entry.kind, "model": str(self.model), "task": self.task}

    def spawn(self) -> None:
        with self.output.with_suffix(".log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip

    def go(self, source: Path, **more: Any) -> dict[str, Any]:
        """Answer a file, with `more` settings than it was loaded with."""
        return self.ask(source=str(source), output=str(self.output), more=more)

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

    def fail(self, why: str) -> None:
        self.result["failed"] = why
        self.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@dataclass
class Contest:
    """A model and a task: contestants, the texts, and what right answers are."""

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
        """Start everyone, and let them answer the rows that are checked: who is wrong is out."""
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
                rival.start(self.files["warm"], self.search_file(rival.entry))
                reply = rival.go(self.files["check"])
                # batchinfer loads in each run; the first time, with all that it imports
                rival.result["start_seconds"] += reply.get("load_seconds", 0.0)
                self.judge(rival, reply, "check")
            except FailedError as error:
                rival.fail(str(error))
                self.say(f"  {rival.entry.name}: out: {error}")
            else:
                self.say(f"  {rival.entry.name}: ready: {rival.result['setting']}")
        self.ceilings = self.rival(Entry("ceilings", "ceilings", [{"dtype": "float32"}]))
        self.ceilings.start(self.files["warm"], self.files["search"])
        return rivals

    def round(self, rivals: Sequence[Rival]) -> None:
        """Everyone once, in turn; and the ceilings."""
        gflops = self.ceilings.go(self.files["check"])["gflops"]
        for name, value in gflops.items():
            self.section.setdefault("gflops_rounds", {}).setdefault(name, []).append(value)
        for rival in rivals:
            if not rival.is_in:
                continue
            rows = self.rows_of(rival)
            try:
                busy = busy_seconds()
                budget = self.budgets.get(rival.entry.follows)
                reply = rival.go(
                    self.files[rows], **({"max_batch_tokens": budget} if budget else {})
                )
                others = busy_seconds() - busy - reply["cpu_seconds"]
                self.judge(rival, reply, rows)
            except FailedError as error:
                rival.fail(str(error))
                self.say(f"  {rival.entry.name}: out: {error}")
                continue
            kept = ("seconds", "cpu_seconds", "load_seconds", "around_seconds", "settings")
            rival.result.setdefault("rounds", []).append(
                {name: reply[name] for name in kept if name in reply}
                # CPU time that the machine spent on something else, over all that there was
                | {"others_share": max(0.0, others) / reply["wall_seconds"] / cores()}
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
            rival.start(self.files["warm"], self.files["search"])
            reply = rival.go(self.files["check"])
        except FailedError as error:
            raise SystemExit(f"{self.name}: the reference failed: {error}") from None
        finally:
            rival.close()
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


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(value) for value in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
