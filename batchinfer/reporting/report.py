"""What a run did: the summary that is printed, returned and kept in report.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchinfer.core import Shard
from batchinfer.plan import Plan
from batchinfer.reporting.progress import duration
from batchinfer.stages import StageSeconds

ROW_ERRORS, STOPPED = 65, 75
#: Below this, a second more or less is worth its decimals.
_SHORT_SECONDS = 10.0
#: Columns that a warning names; the JSON summary has all.
MAX_NAMES = 10


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run folder in numbers. `num_…` count the whole folder, `new_…` what this run added to it.

    `retried_rows` had errors and were tried again, `cured_rows` of them have an answer now.
    `finished`: every row is durable and `_SUCCESS` stands. `seconds` is this run's wall time from the
    first chunk asked for to the last shard committed; `stages` says where it went. `load_seconds` went
    before: loading the model, and probing for a batch budget. `workers`: processes that read and tokenized
    ahead; 0: the one that drives the device did.

    `new_tokens` and `new_batches` went through the model. Of the new rows, `duplicate_rows` have the
    answer of a row with the same input in their chunk, `cached_rows` that of the cache. `splits`:
    batches that were halved for want of memory; `padding`: its share of the tokens that were computed,
    None where nobody knows; the peaks are of all devices together (0 on a CPU) and of the main process,
    where progress was looked at. `run_id` is in the name of the run's events file; "" where nothing was
    left to do. `part`: I/N of a run that answered one part of its job; the rows, shards and errors are
    then those of the part. `stopped`: something is left, and `resume` goes on. `forecast`: where
    `batchinfer plan` had foretold this run, what was predicted and what came.
    """

    output: str
    finished: bool
    num_rows: int
    num_errors: int
    num_truncated: int
    rescued: Mapping[str, int]
    num_tokens: int
    num_shards: int
    num_bytes: int
    new_rows: int
    new_tokens: int
    retried_rows: int
    cured_rows: int
    seconds: float
    load_seconds: float
    stages: StageSeconds
    workers: int
    model: str
    task: str
    engine: str
    dtype: str
    device: str
    max_batch_tokens: int
    errors_tolerated: int
    splits: int = 0
    padding: float | None = None
    peak_device_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    run_id: str = ""
    part: str = ""
    stopped: bool = False
    new_batches: int = 0
    forecast: Mapping[str, Mapping[str, float]] | None = None
    duplicate_rows: int = 0
    cached_rows: int = 0

    @property
    def exit_code(self) -> int:
        """0; 65 where more rows have errors than are tolerated; 75 where something is left."""
        if self.stopped:
            return STOPPED
        return ROW_ERRORS if self.num_errors > self.errors_tolerated else 0

    @property
    def rows_per_second(self) -> float:
        return self.new_rows / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def device_busy(self) -> float:
        """The share of `seconds` in which the device had work."""
        return self._share(self.stages.on_device)

    def _share(self, seconds: float) -> float:
        return min(1.0, seconds / self.seconds) if self.seconds else 0.0

    def to_text(self) -> str:
        """The summary for people."""
        whose = f"part {self.part}: " if self.part else ""
        lines = [
            f"{whose}{self.num_rows:,} rows in {self.num_shards:,} shards, "
            f"{self.num_errors:,} with errors, {self.num_truncated:,} truncated: {self.output}/data"
        ]
        if self.new_rows:
            lines.append(
                f"{self.new_rows:,} rows and {self.new_tokens:,} tokens in {in_seconds(self.seconds)}: "
                f"{self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s "
                f"({self.task} by {self.model}, {self.dtype} on {self.device})"
            )
            lines += self.spared()
            lines.append(self.overlap())
        else:
            lines.append("nothing was left to do")
        if self.forecast is not None:
            lines.append(self.against_forecast(self.forecast))
        if self.part and not self.finished:
            lines.append("other parts of the job are not done yet")
        if self.retried_rows:
            lines.append(
                f"{self.retried_rows:,} failed rows were tried again, {self.cured_rows:,} of them have "
                "answers now"
            )
        if self.splits:
            lines.append(
                f"{self.splits:,} batches were halved for want of memory; `batchinfer tune` finds a budget "
                "that fits"
            )
        lines += self.warnings()
        return "\n".join(lines)

    def spared(self) -> list[str]:
        """What the model was not asked for: one line, or none."""
        counts = (
            (self.duplicate_rows, "have the answer of a row with the same input"),
            (self.cached_rows, "have theirs from the cache"),
        )
        told = [f"{count:,} {source}" for count, source in counts if count]
        return [f"of the rows, {', '.join(told)}"] if told else []

    def overlap(self) -> str:
        """One line: how busy the device was, what it waited for, and what went on beside it."""
        stages = self.stages
        if self.workers:
            processes = "process" if self.workers == 1 else "processes"
            loaders = f"ahead of it, in {self.workers} {processes},"
        else:
            loaders = "in the main process,"
        busy, forward, copy, start, loading, writer = (
            f"{100 * self._share(seconds):.0f} %"
            for seconds in (stages.on_device, stages.forward, stages.copy, stages.wait_start,
                            stages.wait_input, stages.wait_writer)
        )  # fmt: skip
        parts = f": forward {forward}, copy {copy}" if stages.copy else ""  # a CPU copies nothing
        return (
            f"device busy {busy}{parts}; waited {start} to start, {loading} for "
            f"input, {writer} for the writer; {loaders} read {in_seconds(stages.read)}, tokenize "
            f"{in_seconds(stages.tokenize)}; behind it, decode {in_seconds(stages.decode)}, write "
            f"{in_seconds(stages.write)}"
            + ("" if self.padding is None else f"; {100 * self.padding:.1f} % padding")
        )

    def against_forecast(self, forecast: Mapping[str, Mapping[str, float]]) -> str:
        """One line: what was predicted, and what it took."""
        predicted, took = forecast["predicted"]["seconds"], forecast["actual"]["seconds"]
        off = 100 * (took / predicted - 1) if predicted else 0.0
        said = in_seconds if max(predicted, took) < _SHORT_SECONDS else duration
        return f"predicted {said(predicted)}, took {said(took)} ({off:+.0f} %)"

    def warnings(self) -> list[str]:
        """What a reader of the output should know of, a line each."""
        lines = []
        if self.rescued:
            ranked = sorted(self.rescued.items(), key=lambda item: -item[1])
            counts = ", ".join(f"{name} ({count:,})" for name, count in ranked[:MAX_NAMES])
            if len(ranked) > MAX_NAMES:
                counts += f", and {len(ranked) - MAX_NAMES:,} more columns"
            lines.append(f"values that fit no column's type went to _rescued_data: {counts}")
        if self.num_errors > self.errors_tolerated:
            lines.append(
                f"{self.num_errors:,} row errors are more than the {self.errors_tolerated:,} tolerated "
                "(--max-errors); the rows are there, `_error` says why"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        fields = dataclasses.asdict(self)
        return {
            **fields,
            "stages": {f"{stage}_seconds": spent for stage, spent in fields["stages"].items()},
            "device_busy": round(self.device_busy, 4),
            "rows_per_second": round(self.rows_per_second, 1),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "exit_code": self.exit_code,
        }


def in_seconds(seconds: float) -> str:
    """A length of time that may be short."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


@dataclass(frozen=True, slots=True)
class Effort:
    """How this run went, beside what it left in the folder."""

    new_rows: int = 0
    new_tokens: int = 0
    duplicate_rows: int = 0
    cached_rows: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    device: str = ""
    max_batch_tokens: int = 0
    workers: int = 0
    splits: int = 0
    padding: float | None = None
    peak_device_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    stages: StageSeconds = field(default_factory=StageSeconds)
    new_batches: int = 0


def summarize(
    plan: Plan,
    shards: Iterable[Shard],
    effort: Effort,
    *,
    finished: bool,
    retried_rows: int = 0,
    cured_rows: int = 0,
    run_id: str = "",
    part: str = "",
    stopped: bool = False,
) -> RunReport:
    """Count a folder's shards."""
    counts: Counter[str] = Counter()
    rescued: Counter[str] = Counter()
    for shard in shards:
        rescued.update(shard.rescued)
        counts["num_shards"] += 1
        for name in ("num_rows", "num_errors", "num_truncated", "num_tokens", "num_bytes"):
            counts[name] += getattr(shard, name)
    num_rows = counts["num_rows"]
    return RunReport(
        output=plan.config.output,
        finished=finished,
        num_rows=num_rows,
        num_errors=counts["num_errors"],
        num_truncated=counts["num_truncated"],
        rescued=dict(+rescued),
        num_tokens=counts["num_tokens"],
        num_shards=counts["num_shards"],
        num_bytes=counts["num_bytes"],
        new_rows=effort.new_rows,
        new_tokens=effort.new_tokens,
        retried_rows=retried_rows,
        cured_rows=cured_rows,
        seconds=round(effort.seconds, 3),
        load_seconds=round(effort.load_seconds, 3),
        stages=effort.stages.rounded(),
        workers=effort.workers,
        model=plan.model.name,
        task=plan.model.task,
        engine=plan.config.engine,
        dtype=plan.config.dtype,
        device=effort.device,
        max_batch_tokens=effort.max_batch_tokens,
        errors_tolerated=plan.config.error_allowance(num_rows),
        splits=effort.splits,
        padding=None if effort.padding is None else round(effort.padding, 4),
        peak_device_memory_bytes=effort.peak_device_memory_bytes,
        peak_memory_bytes=effort.peak_memory_bytes,
        run_id=run_id,
        part=part,
        stopped=stopped,
        new_batches=effort.new_batches,
        duplicate_rows=effort.duplicate_rows,
        cached_rows=effort.cached_rows,
    )
