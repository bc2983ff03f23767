"""A forecast, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchinfer.core import Int32Array
from batchinfer.forecasting.pipeline import Bottleneck
from batchinfer.reporting.progress import duration
from batchinfer.reporting.report import in_seconds
from batchinfer.tuning.plot import bar

#: Bars of the histogram, at most, and how wide the longest is.
_MAX_BINS, _BAR = 8, 30
#: What `run` would do with the folder that `--output` names, by `Forecast.action`.
ACTIONS: Mapping[str, str] = {
    "": "none named",
    "begin": "new: `run` begins there",
    "resume": "holds this job, unfinished: `batchinfer resume` goes on, and so does `run --resume`",
    "replace": "holds a job: `run --overwrite` replaces it",
    "join": "holds this job: `run --shard` answers its part",
    "nothing": "holds this job, and nothing of it is left to do",
}


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of the histogram: the share of requests of more than `above` tokens, up to `up_to`."""

    above: int
    up_to: int
    share: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a request in the sample."""

    mean: float
    p50: int
    p95: int
    p99: int
    max: int
    histogram: tuple[Bin, ...]

    @classmethod
    def of(cls, cost: Int32Array) -> Lengths:
        """Those of int32[n] requests, n at least 1."""
        p50, p95, p99 = (int(np.percentile(cost, share)) for share in (50, 95, 99))
        longest = int(cost.max())
        # A few rows that are far longer than the others share the last bar.
        step = _round_up(-(-p99 // (_MAX_BINS - 1)))
        last = (p99 - 1) // step + (longest > -(-p99 // step) * step)
        counts = np.bincount(np.minimum((cost - 1) // step, last))
        bins = tuple(
            Bin(
                above=index * step,
                up_to=longest if index == last else (index + 1) * step,
                share=round(float(count / len(cost)), 4),
            )
            for index, count in enumerate(counts.tolist())
        )
        return cls(round(float(cost.mean()), 1), p50, p95, p99, longest, bins)


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens of the answers written for `num_rows` rows; `at_limit`: the share that was cut off."""

    num_rows: int
    mean: float
    p95: int
    max: int
    at_limit: float


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of a run: planning it, loading the model, probing for a batch budget, and the work.

    `low` and `high`: between which the total is expected, by how far measurements and sample vary.
    """

    plan: float
    load: float
    probe: float
    work: float
    low: float
    high: float

    @property
    def total(self) -> float:
        return self.plan + self.load + self.probe + self.work


@dataclass(frozen=True)
class Forecast:
    """What a run will be like. `num_…` and `seconds` are of what is left to do, of one part with `--shard`.

    `rows_done` have answers already. Shares are of the sample: `error_share` of rows without an answer,
    `truncated_share` of rows cut to the model's limit; of padding in a batch, if batches were cut in input
    order, and as they will be. `lengths` is None where rows have no tokens, `written` where no answers are
    written, what is said of the device's memory where nobody knows. `is_whole`: batches as large as the
    run's were timed; otherwise their time follows from smaller ones.
    """

    output: str
    action: str
    part: str
    task: str
    model: str
    engine: str
    dtype: str
    chunk_rows: int
    rows_done: int
    seconds: Seconds
    created: str
    device: str = ""
    num_devices: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_batches: int = 0
    num_shards: int = 0
    num_bytes: int = 0
    rows_sampled: int = 0
    error_share: float = 0.0
    truncated_share: float = 0.0
    lengths: Lengths | None = None
    padding_in_order: float = 0.0
    padding_as_planned: float = 0.0
    written: Written | None = None
    max_batch_tokens: int = 0
    max_batch_rows: int = 0
    device_memory_bytes: int | None = None
    device_memory_available_bytes: int | None = None
    host_memory_bytes: int = 0
    bottleneck: Bottleneck = "device"
    is_whole: bool = True
    price_per_hour: float | None = None
    measured_seconds: float = 0.0
    next_command: str = ""

    @property
    def cost(self) -> float | None:
        """Of the whole, in the price's currency."""
        price = self.price_per_hour
        return None if price is None else price * self.seconds.total / 3600

    @property
    def cost_per_million_rows(self) -> float | None:
        return self.cost * 1e6 / self.num_rows if self.cost is not None and self.num_rows else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        fields = dataclasses.asdict(self)
        seconds = {name: round(value, 3) for name, value in fields["seconds"].items()}
        work = self.seconds.work
        return {
            **fields,
            "seconds": {**seconds, "total": round(self.seconds.total, 3)},
            "rows_per_second": round(self.num_rows / work, 1) if work else 0.0,
            "tokens_per_second": round(self.num_tokens / work, 1) if work else 0.0,
            "cost": self.cost,
            "cost_per_million_rows": self.cost_per_million_rows,
        }

    def to_text(self, *, ascii_only: bool = False) -> str:
        """The forecast for people."""
        devices = f"{self.num_devices} × {self.device}" if self.num_devices > 1 else self.device
        if ascii_only:
            devices = devices.replace("×", "x")
        whose = f", part {self.part}" if self.part else ""
        done = f"; {self.rows_done:,} rows are done" if self.rows_done else ""
        where = f" on {devices}" if devices else ""
        lines = [
            f"{self.task} by {self.model} ({self.engine} in {self.dtype}{where}){whose}; nothing was "
            "written",
            _line(
                "output", f"{self.output}{': ' if self.output else ''}{ACTIONS[self.action]}{done}"
            ),
        ]
        if not self.num_shards:
            return "\n".join(
                [*lines, *([] if self.action == "nothing" else [_line("rows", "none")])]
            )
        lines.append(
            _line(
                "rows",
                f"about {self.num_rows:,}; of {self.rows_sampled:,} sampled, {self.error_share:.1%} "
                f"without an answer, {self.truncated_share:.1%} truncated",
            )
        )
        if self.lengths is not None:
            lines += self._tokens(self.lengths, ascii_only)
        lines += [
            _line(
                "batches",
                f"about {self.num_batches:,} of at most {self.max_batch_tokens:,} tokens and "
                f"{self.max_batch_rows:,} rows",
            ),
            _line(
                "shards",
                f"{self.num_shards:,} of at most {self.chunk_rows:,} rows, about "
                f"{_size(self.num_bytes)} in all",
            ),
            _line("memory", self._memory()),
        ]
        if self.written is not None:
            lines.append(_line("answers", self._answers(self.written)))
        lines.append(_line("time", self._time()))
        if self.cost is not None:
            per_million = self.cost_per_million_rows or 0.0
            lines.append(
                _line(
                    "cost",
                    f"{_amount(self.cost)} at {self.price_per_hour:g} an hour; "
                    f"{_amount(per_million)} per million rows",
                )
            )
        if self.next_command:
            lines += ["", "next:", f"  {self.next_command}"]
        return "\n".join(lines)

    def _tokens(self, lengths: Lengths, ascii_only: bool) -> list[str]:
        most = max((one.share for one in lengths.histogram), default=0.0) or 1.0
        width = len(f"{lengths.histogram[-1].up_to:,}")
        bars = [
            f"            {one.above + 1:>{width},} - {one.up_to:>{width},} "
            f"{one.share:>6.1%} {bar(one.share / most, _BAR, ascii_only)}".rstrip()
            for one in lengths.histogram
        ]
        return [
            _line(
                "tokens",
                f"about {self.num_tokens:,}; p50 {lengths.p50:,}, p95 {lengths.p95:,}, p99 "
                f"{lengths.p99:,}, max {lengths.max:,}",
            ),
            *bars,
            _line(
                "padding",
                f"{self.padding_in_order:.1%} in padded batches cut in input order, "
                f"{self.padding_as_planned:.1%} in those that will be cut",
            ),
        ]

    def _memory(self) -> str:
        said = f"about {_size(self.host_memory_bytes)} of the machine"
        if self.device_memory_bytes is not None and self.device_memory_available_bytes is not None:
            said += (
                f", {_size(self.device_memory_bytes)} of the device's "
                f"{_size(self.device_memory_available_bytes)}"
            )
        return said

    def _answers(self, written: Written) -> str:
        few = "; few, so the time is a rough guess" if written.num_rows < 30 else ""
        return (
            f"of {written.num_rows:,} rows: {written.mean:,.0f} tokens, p95 {written.p95:,}, max "
            f"{written.max:,}; {written.at_limit:.0%} reach the limit{few}"
        )

    def _time(self) -> str:
        seconds = self.seconds
        probing = f", {in_seconds(seconds.probe)} to probe" if seconds.probe >= 0.05 else ""
        rate = self.num_rows / seconds.work if seconds.work else 0.0
        small = "" if self.is_whole else "; from batches smaller than the run's"
        return (
            f"about {duration(seconds.total)} ({duration(seconds.low)} to {duration(seconds.high)}): "
            f"{in_seconds(seconds.plan)} to plan, {in_seconds(seconds.load)} to load{probing}, "
            f"{in_seconds(seconds.work)} at {rate:,.0f} rows/s, limited by the {self.bottleneck}{small}"
        )


def _line(name: str, said: str) -> str:
    return f"{name:<11} {said}"


def _round_up(number: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= number:
                return digit * power
        power *= 10


def _size(num_bytes: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def _amount(money: float) -> str:
    return f"{money:,.2f}" if money >= 0.1 else f"{money:.2g}"
