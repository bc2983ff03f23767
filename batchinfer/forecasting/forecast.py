"""forecast(): from a job's configuration to what its run will be like; nothing is written but the cache."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines import devices_of
from batchinfer.errors import UsageError
from batchinfer.executors.inline import Inline
from batchinfer.forecasting.kept import ForecastKey
from batchinfer.forecasting.pipeline import (
    Beside,
    ChunkCost,
    chunk_costs,
    course,
    padding_in_order,
)
from batchinfer.forecasting.rehearsal import (
    Material,
    Rehearsal,
    rehearse,
    seconds_to_import,
    take_material,
)
from batchinfer.forecasting.result import Forecast, Lengths, Seconds, Written
from batchinfer.forecasting.speed import LengthClass, Speed, measure
from batchinfer.forecasting.standing import JobAsItIs, Unwritten
from batchinfer.gathering import WRITE_BEHIND
from batchinfer.machine import MemoryUse, usable_cores
from batchinfer.plan import Plan
from batchinfer.reporting.monitor import Monitor
from batchinfer.stop import StopSignal
from batchinfer.worker import Worker

MAX_SECONDS = 20.0
#: Of the time, what is for batches of all lengths; the rest is for rows that go all the way.
_TIMED_SHARE = 0.75
#: How far a forecast may be off whatever was measured; where no batch of the run's size was; at most.
_LEAST_UNCERTAIN, _UNCERTAIN_OF_SMALL, _MOST_UNCERTAIN = 0.05, 0.5, 0.9
#: Loading a model takes now longer, now shorter, by this share.
_UNCERTAIN_OF_LOADING = 0.2


def forecast(
    config: RunConfig,
    *,
    overwrite: bool = False,
    max_seconds: float = MAX_SECONDS,
    price_per_hour: float | None = None,
) -> Forecast:
    """Measure a few batches of a job, and say what all of it will take.

    The job is the one that `run` would do: where `config.output` holds it already, what is left of it.
    `max_seconds`: the time to measure in, without planning and loading. The forecast is kept for the run in
    the user's cache. Raises what `run` would raise before its first row: UsageError, InputError,
    ModelError, JobMismatchError, StorageError, and Interrupted where a run holds the folder.
    """
    began = time.monotonic()
    if config.executor == "ray":
        raise UsageError(
            "--executor ray: a forecast is of this machine; leave it out to see what the job takes here"
        )
    job = JobAsItIs.of(config, overwrite=overwrite)
    planned = time.monotonic() - began
    if not job.chunk_rows:
        return _without_figures(job, Seconds(planned, 0.0, 0.0, 0.0, planned, planned))
    measured = _measure(job, max_seconds)
    found = _put_together(job, measured, planned, price_per_hour)
    ForecastKey(job.plan, found.part, job.rows_done).keep(found.to_dict())
    return found


@dataclass(frozen=True)
class _Measured:
    """What was found out with the model loaded; `load` and `probe` in seconds."""

    num_devices: int
    dtype: str
    device_kind: str
    tokens_ahead: int
    budget: BatchBudget
    load: float
    probe: float
    material: Material
    speed: Speed
    rehearsal: Rehearsal
    beside: Beside
    memory: MemoryUse | None
    seconds: float

    @property
    def written(self) -> npt.NDArray[np.int64]:
        """Tokens of the answers that were written, int64[n]: of more of them, in batches or all the way."""
        return np.array(max(self.speed.written, self.rehearsal.written, key=len), np.int64)


def _measure(work: JobAsItIs, max_seconds: float) -> _Measured:
    stop = StopSignal()
    plan = work.plan
    worker = Worker(plan, work.model_folder, Monitor(), stop)
    worker.may_probe = work.action in ("", "begin", "replace")
    began = time.monotonic()
    job = worker.job()
    devices = devices_of(job.config)
    with closing(Inline(job.on(devices[0], len(devices)), stop)) as inline:
        load = time.monotonic() - began
        if len(devices) > 1:  # each in a process of its own, which imports first
            fake = plan.config.engine == "fake"
            load += seconds_to_import(
                "batchinfer.executors.inline" if fake else "batchinfer.engines.local"
            )
        budget = worker.choose_budget(inline, Unwritten(work))
        began = time.monotonic()
        deadline = time.perf_counter() + max_seconds
        engine, task = inline.engine, inline.task
        is_gpu = inline.device_kind not in ("cpu", "mps")
        engine.memory_use()  # from here on
        material = take_material(
            plan, task, work.model_folder, budget, work.spans[0], is_gpu=is_gpu
        )
        timed_until = time.perf_counter() + _TIMED_SHARE * (deadline - time.perf_counter())
        speed = measure(engine, material.batches, timed_until, time.perf_counter)
        if not len(material.requests):  # no row can be answered: each will say why
            speed = Speed((LengthClass(1.0, 1.0, 0.0),), 0.0, by_rows=False)
        # Of a busy machine, a round may take longer than there was time for.
        left = max(deadline - time.perf_counter(), (1 - _TIMED_SHARE) * max_seconds)
        rehearsal = rehearse(plan, material, engine, work.model_folder, left)
        if speed is None or rehearsal is None:
            raise UsageError(
                f"--max-seconds {max_seconds:g}: not even a few rows are answered in that time; give more"
            )
        memory = engine.memory_use()
        threads = (engine.threads or usable_cores()) * len(devices)
        shares_cores = inline.device_kind == "cpu" and threads >= usable_cores()
        measured = time.monotonic() - began
        return _Measured(
            num_devices=len(devices),
            dtype=inline.dtype,
            device_kind=inline.device_kind,
            tokens_ahead=task.tokens_ahead,
            budget=budget,
            load=load,
            probe=worker.load_seconds,
            material=material,
            speed=speed,
            rehearsal=rehearsal,
            beside=_beside(worker, work, material, rehearsal, shares_cores=shares_cores),
            memory=memory,
            seconds=measured,
        )


def _beside(
    worker: Worker,
    work: JobAsItIs,
    material: Material,
    rehearsal: Rehearsal,
    *,
    shares_cores: bool,
) -> Beside:
    workers = worker.num_workers(work.spans)
    start = material.start
    if workers:
        start += seconds_to_import("batchinfer.dataloader")
    return Beside(
        start=start,
        load=material.load.wall,
        load_core=material.load.core,
        write=rehearsal.write.wall,
        write_core=rehearsal.write.core,
        commit=rehearsal.commit,
        loaders=min(workers, len(work.spans)),
        cores=usable_cores() if shares_cores else 0,
    )


def _put_together(
    work: JobAsItIs, measured: _Measured, planned: float, price_per_hour: float | None
) -> Forecast:
    plan, material, rehearsal = work.plan, measured.material, measured.rehearsal
    cost, asked, speed = material.requests.cost, material.asked_cost, measured.speed
    chunks = chunk_costs(
        work.chunk_rows,
        asked,
        material.asked_a_row,
        measured.budget,
        measured.tokens_ahead,
        speed,
    )
    expected = course(chunks, measured.beside, measured.num_devices)
    num_rows = sum(work.chunk_rows)
    tokens, padded = sum(chunk.tokens for chunk in chunks), sum(chunk.padded for chunk in chunks)
    has_tokens = plan.model.task != "module" and len(cost) > 0
    peak = available = None
    if (memory := measured.memory) is not None:
        peak, available = memory.peak, memory.available
    return dataclasses.replace(
        _without_figures(work, _seconds(measured, planned, expected.seconds + speed.cold)),
        dtype=measured.dtype,
        device=measured.device_kind,
        num_devices=measured.num_devices,
        num_rows=num_rows,
        num_tokens=round(num_rows * material.tokens_a_row),
        num_batches=sum(chunk.batches for chunk in chunks),
        num_shards=len(chunks),
        num_bytes=round(num_rows * rehearsal.bytes_row + len(chunks) * rehearsal.bytes_chunk),
        rows_sampled=material.chunk.num_rows,
        error_share=_error_share(material, rehearsal),
        truncated_share=_truncated_share(material),
        lengths=Lengths.of(cost) if has_tokens else None,
        padding_in_order=padding_in_order(asked, measured.budget) if has_tokens else 0.0,
        padding_as_planned=1 - tokens / padded if has_tokens and padded else 0.0,
        written=_written(measured.written, measured) if measured.tokens_ahead else None,
        max_batch_tokens=measured.budget.max_batch_tokens,
        max_batch_rows=measured.budget.max_batch_rows,
        device_memory_bytes=peak,
        device_memory_available_bytes=available,
        host_memory_bytes=_host_memory(plan, chunks),
        bottleneck=expected.bottleneck,
        is_whole=speed.is_whole,
        price_per_hour=price_per_hour,
        measured_seconds=round(measured.seconds, 3),
    )


def _without_figures(work: JobAsItIs, seconds: Seconds) -> Forecast:
    """What is known of a job before anything is measured."""
    plan = work.plan
    return Forecast(
        output=plan.config.output,
        action=work.action,
        part="" if work.part is None else str(work.part),
        task=plan.model.task,
        model=plan.model.name,
        engine=plan.config.engine,
        dtype=plan.config.dtype,
        chunk_rows=plan.chunk_rows,
        rows_done=work.rows_done,
        seconds=seconds,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _seconds(measured: _Measured, planned: float, work: float) -> Seconds:
    uncertain = math.hypot(
        _LEAST_UNCERTAIN,
        measured.speed.spread,
        _error_of_mean(measured.material.requests.cost),
        _error_of_mean(measured.written) if measured.tokens_ahead else 0.0,
        0.0 if measured.speed.is_whole else _UNCERTAIN_OF_SMALL,
    )
    off = min(uncertain, _MOST_UNCERTAIN) * work + _UNCERTAIN_OF_LOADING * (planned + measured.load)
    total = planned + measured.load + measured.probe + work
    return Seconds(planned, measured.load, measured.probe, work, max(0.0, total - off), total + off)


def _error_of_mean(values: npt.NDArray[np.integer]) -> float:
    """The standard error of a sample's mean, as a share of it, twice: 19 of 20 lie within."""
    if len(values) < 2:
        return 1.0 if len(values) else 0.0
    mean = float(values.mean())
    return 2 * float(values.std(ddof=1)) / math.sqrt(len(values)) / mean if mean else 0.0


def _error_share(material: Material, rehearsal: Rehearsal) -> float:
    """Rows that cannot be read or encoded, by the sample; of the others, by those that were answered."""
    before = len({*material.chunk.errors, *material.requests.errors}) / max(
        1, material.chunk.num_rows
    )
    return max(before, rehearsal.num_errors / rehearsal.num_rows)


def _truncated_share(material: Material) -> float:
    rows = np.unique(material.requests.row[material.requests.truncated])
    return len(rows) / max(1, material.chunk.num_rows)


def _written(tokens: npt.NDArray[np.int64], measured: _Measured) -> Written:
    return Written(
        num_rows=len(tokens),
        mean=round(float(tokens.mean()), 1) if len(tokens) else 0.0,
        p95=int(np.percentile(tokens, 95)) if len(tokens) else 0,
        max=int(tokens.max(initial=0)),
        at_limit=float((tokens >= measured.tokens_ahead).mean()) if len(tokens) else 0.0,
    )


def _host_memory(plan: Plan, chunks: Sequence[ChunkCost]) -> int:
    """What this process held at most, and the chunks that a run has under way at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    rows = max((chunk.rows for chunk in chunks), default=0)
    return int(peak + min(len(chunks), 2 + WRITE_BEHIND) * rows * plan.row_bytes)
