"""The runs of a folder, as their events files tell: best effort, and never state.

A line of such a file is a JSON object with `event` and `time`. Whoever can write into the folder can write
anything in it: what is no such line, or has another type, counts as not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, BinaryIO

from batchinfer.errors import BatchInferError
from batchinfer.reporting.events import is_events_file, read_events
from batchinfer.stages import StageSeconds
from batchinfer.storage import Place, list_names
from batchinfer.writers.durable import open_regular

#: The last runs are shown; a folder that grows every hour has many.
MAX_RUNS = 200
#: Progress that is kept of a run: above it, every other moment goes.
_MAX_MOMENTS = 2000
_MAX_MESSAGES = 20
_MAX_NUMBER = 1e18
_ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Moment:
    """How a run was going. Rates are those since the moment before; None: not known.

    `seconds` since its work began. `wait_input`, `wait_writer`: shares of the time, 0 to 1, that the
    device's thread waited.
    """

    seconds: float
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: float | None = None
    device_memory_bytes: float | None = None
    device_memory_total_bytes: float | None = None
    wait_input: float | None = None
    wait_writer: float | None = None


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run or resume. `state`: finished, stopped, failed, running, or killed: it ended without a word.

    `began` and `work_began` in seconds since 1970, the second of them when loading was over; `seconds` of
    work after that. `rows` and `tokens` are what it answered. `device`, `host`, … as it said when it began.
    `padding`: its share of the tokens that were computed; None where nobody knows. `stages` and
    `load_seconds` are of its report: None where it left none.
    """

    run_id: str
    command: str
    state: str
    began: float
    work_began: float
    seconds: float
    rows: int
    tokens: int
    exit_code: int | None = None
    error: str = ""
    splits: int = 0
    padding: float | None = None
    pid: int = 0
    host: str = ""
    cpu: str = ""
    cores: int = 0
    threads: int = 0
    memory_bytes: int = 0
    device: str = ""
    num_devices: int = 1
    attention: str = ""
    max_batch_tokens: int = 0
    max_batch_rows: int = 0
    rows_expected: int = 0
    version: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stages: StageSeconds | None = None
    load_seconds: float | None = None
    workers: int | None = None
    moments: tuple[Moment, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def is_interrupted(self) -> bool:
        return self.state not in ("finished", "running")


def read_history(place: Place, holders: str) -> list[PastRun]:
    """The runs whose events files lie in this folder, the earliest first; those that can be read.

    `holders`: who is at work in the folder, as `describe_holder` says it; "" where nobody is.
    """
    try:
        names = sorted(filter(is_events_file, list_names(place)))
    except OSError:
        return []
    runs = []
    for name in names[-MAX_RUNS:]:  # names begin with the time
        try:
            with open_regular(place / name) as file:
                run = _run_of(_events_in(file), holders)
        except (OSError, BatchInferError):
            continue
        if run is not None:
            runs.append(run)
    return sorted(runs, key=lambda run: run.began)


def busy_spans(runs: Iterable[PastRun]) -> list[tuple[float, float]]:
    """When any run was at work: from, to, in seconds since 1970; runs side by side count once."""
    spans: list[tuple[float, float]] = []
    for start, end in sorted((run.work_began, run.work_began + run.seconds) for run in runs):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def pauses(spans: Sequence[tuple[float, float]]) -> list[float]:
    """The seconds between spans in which nothing was at work."""
    return [after[0] - before[1] for before, after in pairwise(spans)]


def whole_number(value: object, most: int = 1 << 62) -> int:
    """A count that somebody wrote; 0 for anything else."""
    return value if type(value) is int and 0 <= value <= most else 0


def finite(value: object) -> float | None:
    """A number that somebody wrote, from 0 to what can be drawn; None for anything else."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if 0 <= number <= _MAX_NUMBER else None


def share(value: object) -> float | None:
    """A share that somebody wrote, from 0 to 1; None for anything else."""
    found = finite(value)
    return None if found is None else min(1.0, found)


def words(value: object) -> str:
    """A text that somebody wrote; "" for anything else."""
    return value[:10_000] if isinstance(value, str) else ""


def objects(value: object) -> dict[str, Any]:
    """An object that somebody wrote; {} for anything else."""
    return value if isinstance(value, dict) else {}


def stages_of(value: object) -> StageSeconds | None:
    """The stages of a report.json or of an end event; None where there are none."""
    stages = objects(value)
    if not stages:
        return None
    names = [field.name for field in dataclasses.fields(StageSeconds)]
    return StageSeconds(**{name: finite(stages.get(f"{name}_seconds")) or 0.0 for name in names})


def _events_in(file: BinaryIO) -> Iterator[tuple[float, dict[str, Any]]]:
    """The events of a file with their times; those that have none are passed over."""
    for event in read_events(file):
        if event["event"] == "shard":
            continue  # there are as many as shards, and the shards themselves say more
        try:
            yield datetime.fromisoformat(event["time"]).timestamp(), event
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            continue


def _run_of(events: Iterator[tuple[float, dict[str, Any]]], holders: str) -> PastRun | None:
    """A run out of its events; None where it does not say when it began."""
    began: float | None = None
    begin: dict[str, Any] = {}
    progress: dict[str, Any] = {}
    end: dict[str, Any] = {}
    work_began = last = 0.0
    moments: list[Moment] = []
    messages: list[str] = []
    for time, event in events:
        last = time
        match event.get("event"):
            case "begin" if began is None:
                began, begin = time, event
            case "progress" if (seconds := finite(event.get("seconds"))) is not None:
                if not progress:
                    work_began = time - seconds
                progress = event
                _keep(moments, event, seconds)
            case "log":
                messages.append(words(event.get("message"))[:1000])
                del messages[:-_MAX_MESSAGES]
            case "end":
                end = event
    if began is None:
        return None
    report = objects(end.get("report"))
    state = end.get("state")
    pid, host = whole_number(begin.get("pid")), words(begin.get("host"))
    if state not in _ENDED:
        state = "running" if f"pid {pid} on {host}" in holders.split(", ") else "killed"
    seconds = finite(report.get("seconds"))
    if seconds is None:
        seconds = finite(progress.get("seconds")) or 0.0
    return PastRun(
        run_id=words(begin.get("run_id")),
        command=words(begin.get("command")),
        state=str(state),
        began=began,
        work_began=work_began or min(last, began + (finite(report.get("load_seconds")) or 0.0)),
        seconds=seconds,
        rows=whole_number(report.get("new_rows", progress.get("rows"))),
        tokens=whole_number(report.get("new_tokens", progress.get("tokens"))),
        exit_code=end["exit_code"] if type(end.get("exit_code")) is int else None,
        error=words(end.get("error")),
        splits=whole_number(progress.get("splits")),
        padding=share(report.get("padding", progress.get("padding"))),
        pid=pid,
        host=host,
        cpu=words(begin.get("cpu")),
        cores=whole_number(begin.get("cores")),
        threads=whole_number(begin.get("threads")),
        memory_bytes=whole_number(begin.get("memory_bytes")),
        device=words(begin.get("device")),
        num_devices=max(1, whole_number(begin.get("num_devices"))),
        attention=words(begin.get("attention")),
        max_batch_tokens=whole_number(begin.get("max_batch_tokens")),
        max_batch_rows=whole_number(begin.get("max_batch_rows")),
        rows_expected=whole_number(progress.get("rows_expected", begin.get("rows_expected"))),
        version=words(begin.get("version")),
        versions={
            name: words(value) for name, value in list(objects(begin.get("versions")).items())[:50]
        },
        stages=stages_of(report.get("stages")),
        load_seconds=finite(report.get("load_seconds")),
        workers=whole_number(report["workers"]) if "workers" in report else None,
        moments=tuple(moments),
        messages=tuple(messages),
    )


def _keep(moments: list[Moment], event: Mapping[str, Any], seconds: float) -> None:
    """Add a moment; a run of weeks keeps fewer of them."""
    if moments and seconds <= moments[-1].seconds:
        return  # a second line of the same moment, or a clock that was set back
    waiting = objects(event.get("waiting"))
    moments.append(
        Moment(
            seconds=seconds,
            rows_per_second=finite(event.get("recent_rows_per_second")),
            tokens_per_second=finite(event.get("recent_tokens_per_second")),
            memory_bytes=finite(event.get("memory_bytes")),
            device_memory_bytes=finite(event.get("device_memory_bytes")),
            device_memory_total_bytes=finite(event.get("device_memory_total_bytes")),
            wait_input=share(waiting.get("input")),
            wait_writer=share(waiting.get("writer")),
        )
    )
    if len(moments) > _MAX_MOMENTS:
        del moments[1::2]
