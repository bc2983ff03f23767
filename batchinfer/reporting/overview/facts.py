"""What a report says, as plain values: the page and `--json` show the same.

Nothing here is drawn, measured or read; `gather.py` fills it in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchinfer.reporting.overview.history import PastRun, busy_spans
from batchinfer.reporting.progress import duration
from batchinfer.stages import StageSeconds

_BINS = 40


@dataclass(frozen=True, slots=True)
class Histogram:
    """How numbers are spread: `counts[i]` of them lie in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    num_values: int
    mean: float
    minimum: float
    median: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: Any, *, top: float | None = None, whole: bool = False) -> Histogram:
        """A histogram of finite numbers, at least one. `top`: from 0 to there; `whole`: whole numbers."""
        low, high = float(values.min()), float(values.max())
        edges: Any
        if top is not None and low >= 0 and high <= top:
            edges = np.linspace(0, top, _BINS + 1)
        elif whole:
            step = max(1, -(-int(high - low + 1) // _BINS))
            edges = np.arange(low - 0.5, high + step, step)
        else:
            room = max(
                (high - low) / 100, abs(high) * 1e-3, 1e-9
            )  # equal numbers have a width, too
            edges = np.linspace(low - room, high + room, _BINS + 1)
        counts, edges = np.histogram(values, edges)
        median, p95 = np.quantile(values, (0.5, 0.95))
        return cls(
            edges=tuple(map(float, edges)),
            counts=tuple(map(int, counts)),
            num_values=len(values),
            mean=float(values.mean(dtype=np.float64)),
            minimum=low,
            median=float(median),
            p95=float(p95),
            maximum=high,
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the answers of a column look: a histogram, or how often each of the first labels occurs."""

    column: str
    what: str
    unit: str
    histogram: Histogram | None = None
    labels: tuple[tuple[str, int], ...] = ()
    num_other_labels: int = 0
    num_others: int = 0


@dataclass(frozen=True, slots=True)
class ErrorReason:
    """Failed rows with one reason, and the first of them, as `errors --summary` shows it."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Padding:
    """Tokens of the rows looked at, and what their batches would compute with padding.

    `padded`: the batches of the plan, each row padded to the longest of its batch. `in_order`: the same
    rows in the order of the input, in batches of the same budget. `computed`: the share of padding in what
    the runs computed, as they told; None where they did not.
    """

    useful: int
    padded: int
    in_order: int
    computed: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure as forecast, and as it was."""

    name: str
    unit: str
    planned: float
    actual: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How near a run came to what this machine multiplies, in floating-point operations a second.

    `flops_per_token`: two for each weight of the linear layers that every token goes through. `achieved`:
    those of useful tokens over the whole of the run; `while_busy`: over the time in which the device had
    work, None where it is not known. `measured`: one large matrix product in the same precision.
    """

    run_id: str
    flops_per_token: int
    achieved: float
    while_busy: float | None
    measured: float
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next, and the command for it."""

    text: str
    command: str


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked of which model; `settings` are those that are not the default's."""

    plan_id: str
    model: str
    identity: str
    architecture: str
    task: str
    engine: str
    dtype: str
    quantization: str
    max_length: int
    num_inputs: int
    input_bytes: int
    inputs: tuple[str, ...]
    segments: int
    chunk_rows: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """How long the runs worked, together, and where that time went.

    `seconds`: of the wall clock, without loading; runs side by side count once. `stage_seconds` and
    `stages`: the seconds of those runs that left a report, and where they went.
    """

    seconds: float | None = None
    load_seconds: float | None = None
    rows: int = 0
    tokens: int = 0
    stage_seconds: float = 0.0
    stages: StageSeconds | None = None
    workers: int = 0

    @property
    def rows_per_second(self) -> float | None:
        return self.rows / self.seconds if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def device_busy(self) -> float | None:
        """The share of the time in which the device had work."""
        if self.stages is None or not self.stage_seconds:
            return None
        return min(1.0, self.stages.on_device / self.stage_seconds)


@dataclass(frozen=True, slots=True)
class Facts:
    """All figures of a run folder. `state`: finished, running or stopped; `holder`: who is at work.

    `made_at`: seconds since 1970. `rows_expected` is exact where `state` is finished. `sampled_shards` and
    `sampled_rows` are what lengths were counted in, `answer_rows` what answers were. `missing`: what is not
    shown, and why, a sentence each.
    """

    output: str
    state: str
    holder: str
    made_at: float
    version: str
    job: Job
    num_rows: int
    rows_expected: int
    num_errors: int
    num_truncated: int
    num_tokens: int
    num_shards: int
    num_bytes: int
    rescued: Mapping[str, int]
    device_kind: str
    work: Work
    runs: tuple[PastRun, ...] = ()
    sampled_shards: int = 0
    sampled_rows: int = 0
    answer_rows: int = 0
    sampled_truncated: int = 0
    lengths: Histogram | None = None
    padding: Padding | None = None
    errors: tuple[ErrorReason, ...] = ()
    num_errors_read: int = 0
    answers: tuple[Distribution, ...] = ()
    forecast: tuple[Comparison, ...] = ()
    ceiling: Ceiling | None = None
    steps: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def num_interruptions(self) -> int:
        """Runs that ended before the job did."""
        return sum(run.is_interrupted for run in self.runs)

    @property
    def headline(self) -> str:
        """The state in one sentence."""
        if not self.num_rows:
            what = {
                "finished": "The input has no rows: nothing was left to answer",
                "running": "No row is answered yet; a run is at work",
                "stopped": "No row is answered yet",
            }[self.state]
            return what + self._in_how_long()
        expected = f"{max(self.num_rows, self.rows_expected):,}"
        if self.state != "finished":
            expected = f"about {expected}"
        errors = f"{self.num_errors:,} with errors" if self.num_errors else "none with an error"
        at_work = "; a run is at work" if self.state == "running" else ""
        return (
            f"{self.num_rows:,} of {expected} rows answered, {errors}{self._in_how_long()}{at_work}"
        )

    def _in_how_long(self) -> str:
        if self.work.seconds is None:
            return ""
        time = f", in {duration(self.work.seconds)}"
        if not self.runs:
            return time
        stops = self.num_interruptions
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        breaks = "" if not stops else f", {stops} interruption{'' if stops == 1 else 's'}"
        return f"{time} ({runs}{breaks})"

    @property
    def spans(self) -> Sequence[tuple[float, float]]:
        """When any run was at work, in seconds since 1970."""
        return busy_spans(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        fields = dataclasses.asdict(self)
        work = fields["work"]
        if self.work.stages is not None:
            work["stages"] = {f"{name}_seconds": spent for name, spent in work["stages"].items()}
        for run in fields["runs"]:
            if run["stages"] is not None:
                run["stages"] = {f"{name}_seconds": s for name, s in run["stages"].items()}
        for name in ("rows_per_second", "tokens_per_second", "device_busy"):
            value = getattr(self.work, name)
            work[name] = None if value is None else round(value, 4)
        return {
            "headline": self.headline,
            "num_interruptions": self.num_interruptions,
            **fields,
        }
