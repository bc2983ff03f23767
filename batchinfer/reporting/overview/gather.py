"""Everything that a report says of a run folder, read without its lock.

Each footer is read once, columns of a bounded number of shards (`sample.py`), and the events files of the
runs; nothing is changed.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from batchinfer import __version__
from batchinfer.config import RunConfig
from batchinfer.core import pending_spans, shard_name
from batchinfer.errors import BatchInferError
from batchinfer.plan import Plan
from batchinfer.reporting.failures import failures_of, summarize
from batchinfer.reporting.overview.ceiling import can_be_measured, measure_ceiling
from batchinfer.reporting.overview.facts import (
    Comparison,
    Distribution,
    ErrorReason,
    Facts,
    Histogram,
    Job,
    Padding,
    Step,
    Work,
)
from batchinfer.reporting.overview.history import (
    PastRun,
    busy_spans,
    finite,
    objects,
    read_history,
    stages_of,
    whole_number,
)
from batchinfer.reporting.overview.sample import (
    MAX_SHARDS,
    Question,
    Sample,
    questions_of,
    read_sample,
    spread,
)
from batchinfer.stages import StageSeconds
from batchinfer.storage import Place, place_of_output
from batchinfer.writers.durable import open_regular
from batchinfer.writers.holders import describe_holder, is_locked
from batchinfer.writers.run_folder import SUCCESS, RunFolder, list_shards, require_plan
from batchinfer.writers.shard_table import ShardTable

#: Reasons, and labels, that are told apart; the others are one figure.
_MAX_REASONS = 10
_MAX_LABELS = 12
_MAX_INPUTS = 10
#: Failed rows whose reasons are read.
_MAX_FAILURES = 200_000
#: Documents of the state folder that are read are small.
_MAX_DOCUMENT = 1 << 20
#: Figures of a forecast, by the name that they have in it and among the totals, and the unit.
_FORECAST = (
    ("rows", "num_rows", "rows"),
    ("tokens", "num_tokens", "tokens"),
    ("shards", "num_shards", "shards"),
    ("output", "num_bytes", "bytes"),
)


def gather(output: str, *, measure: bool = False) -> Facts:
    """Read what there is to tell of a run folder; also of one that is unfinished, or at work.

    `measure`: also measure this machine. Raises UsageError where it is no run folder, or nothing of it can
    be measured here, and what reading its plan raises.
    """
    plan = require_plan(output)
    place = place_of_output(output)
    holder = describe_holder(output) if is_locked(output) else ""
    shards = ShardTable(place / "data")
    for shard in list_shards(output):
        shards.add(shard)
    unfinished = (
        any(pending_spans(plan.segments, shards)) or not (place / "data" / SUCCESS).exists()
    )
    state = "running" if holder else "stopped" if unfinished else "finished"
    runs = read_history(RunFolder(output).local, holder)
    totals: Counter[str] = Counter()
    rescued: Counter[str] = Counter()
    names, failed = [], []
    for id, shard in shards.items():
        totals.update({name: getattr(shard, name) for name in _TOTALS})
        rescued.update(shard.rescued)
        names.append(shard_name(id))
        if shard.num_errors:
            failed.append(shard.path)
    names.sort()
    questions = questions_of(plan)
    sample = read_sample(plan, [place / "data" / name for name in names], questions)
    reasons, num_errors_read = _reasons(sorted(failed))
    report = _document(place / "_batchinfer" / "report.json")
    work = _work(runs, report, totals["num_rows"])
    expected = plan.num_rows_estimate
    if runs and runs[-1].rows_expected:
        expected = runs[-1].rows_expected
    facts = Facts(
        output=output,
        state=state,
        holder=holder,
        made_at=time.time(),
        version=__version__,
        job=_job(plan),
        num_rows=totals["num_rows"],
        rows_expected=totals["num_rows"] if state == "finished" else expected,
        num_errors=totals["num_errors"],
        num_truncated=totals["num_truncated"],
        num_tokens=totals["num_tokens"],
        num_bytes=totals["num_bytes"],
        num_shards=len(shards),
        rescued=dict(rescued),
        device_kind=sample.device_kind,
        work=work,
        runs=tuple(runs),
        sampled_shards=sample.num_shards,
        sampled_rows=sample.num_rows,
        answer_rows=sample.num_answer_rows,
        sampled_truncated=sample.truncated,
        lengths=_lengths(sample) if plan.model.task != "module" else None,
        padding=_padding(sample, runs),
        errors=reasons,
        num_errors_read=num_errors_read,
        answers=_answers(sample, questions),
        forecast=_forecast(
            _document(place / "_batchinfer" / "forecast.json"),
            {**totals, "num_shards": len(shards)},
            work,
        ),
    )
    if measure:
        facts = dataclasses.replace(facts, ceiling=measure_ceiling(facts))
    return dataclasses.replace(facts, steps=_steps(facts), missing=_missing(facts, sample, report))


_TOTALS = ("num_rows", "num_errors", "num_truncated", "num_tokens", "num_bytes")


def _job(plan: Plan) -> Job:
    config = plan.config
    files = [file for segment in plan.segments for file in segment.files]  # or parts of them
    sources = list(dict.fromkeys(file.source for file in files))
    named = ("inputs", "output", "model", "task", "engine", "dtype", "max_length", "chunk_rows")
    settings = {
        name: value
        for name, value in config.model_dump(mode="json").items()
        if name not in named
        and value != RunConfig.model_fields[name].get_default(call_default_factory=True)
        and value not in ([], {})
    }
    return Job(
        plan_id=plan.id,
        model=config.model or plan.model.name,
        identity=plan.model.identity,
        architecture=plan.model.architecture,
        task=plan.model.task,
        engine=config.engine,
        dtype=config.dtype,
        quantization=plan.model.quantization,
        max_length=plan.model.max_length,
        num_inputs=len(sources),
        input_bytes=sum(file.num_bytes for file in files),
        inputs=tuple(sources[:_MAX_INPUTS]),
        segments=len(plan.segments),
        chunk_rows=plan.chunk_rows,
        settings=settings,
    )


def _work(runs: Sequence[PastRun], report: Mapping[str, Any], num_rows: int) -> Work:
    """What the runs did; without events, what the last report says of the last run."""
    if not runs:
        stages, seconds = stages_of(report.get("stages")), finite(report.get("seconds"))
        rows = whole_number(report.get("new_rows"))
        if stages is None or seconds is None or not rows:
            return Work()
        is_only_one = rows == num_rows  # else others answered too
        return Work(
            seconds=seconds if is_only_one else None,
            load_seconds=finite(report.get("load_seconds")),
            rows=rows,
            tokens=whole_number(report.get("new_tokens")),
            stage_seconds=seconds,
            stages=stages,
            workers=whole_number(report.get("workers")),
        )
    told = [run for run in runs if run.stages is not None]
    loads = [run.load_seconds for run in runs if run.load_seconds is not None]
    return Work(
        seconds=sum(end - start for start, end in busy_spans(runs)),
        load_seconds=sum(loads) if loads else None,
        rows=sum(run.rows for run in runs),
        tokens=sum(run.tokens for run in runs),
        stage_seconds=sum(run.seconds for run in told),
        stages=sum((run.stages for run in told if run.stages), StageSeconds()) if told else None,
        workers=max((run.workers or 0 for run in runs), default=0),
    )


def _lengths(sample: Sample) -> Histogram | None:
    lengths = np.concatenate([*sample.lengths, np.zeros(0, np.int32)])
    return Histogram.of(lengths, whole=True) if len(lengths) else None


def _padding(sample: Sample, runs: Sequence[PastRun]) -> Padding | None:
    if not sample.useful:
        return None
    told = [(run.padding, run.tokens) for run in runs if run.padding is not None]
    tokens = sum(count for _, count in told)
    computed = sum(share * count for share, count in told) / tokens if tokens else None
    return Padding(sample.useful, sample.padded, sample.in_order, computed)


def _reasons(paths: Sequence[str]) -> tuple[tuple[ErrorReason, ...], int]:
    """Why rows failed, by how often, and in how many rows that was read; of many shards some."""
    chosen = sorted(islice(spread(len(paths)), MAX_SHARDS))
    read = 0
    found = []
    for number in chosen:
        if read >= _MAX_FAILURES:
            break
        try:
            failures = list(islice(failures_of(paths[number]), _MAX_FAILURES))
        except (BatchInferError, OSError):  # replaced, or damaged
            continue
        read += len(failures)
        found += failures
    ranked = summarize(found)
    reasons = [
        ErrorReason(one.reason, one.count, one.example.place) for one in ranked[:_MAX_REASONS]
    ]
    if rest := ranked[_MAX_REASONS:]:
        count = sum(one.count for one in rest)
        reasons.append(ErrorReason(f"{len(rest):,} other reasons", count, rest[0].example.place))
    return tuple(reasons), read


def _answers(sample: Sample, questions: Iterable[Question]) -> tuple[Distribution, ...]:
    found = []
    for number, question in enumerate(questions):
        distribution = Distribution(question.column, question.what, question.unit)
        numbers = np.concatenate([*sample.numbers.get(number, []), np.zeros(0)])
        if len(numbers):
            is_whole = question.unit.startswith(("tokens", "entities"))
            histogram = Histogram.of(numbers, top=question.top, whole=is_whole)
            found.append(dataclasses.replace(distribution, histogram=histogram))
        elif labels := sample.labels.get(number):
            ranked = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
            rest = ranked[_MAX_LABELS:]
            found.append(
                dataclasses.replace(
                    distribution,
                    labels=tuple(ranked[:_MAX_LABELS]),
                    num_other_labels=len(rest),
                    num_others=sum(count for _, count in rest),
                )
            )
    return tuple(found)


def _forecast(
    document: Mapping[str, Any], totals: Mapping[str, int], work: Work
) -> tuple[Comparison, ...]:
    """What was forecast, beside what came; nothing where nothing was, or for a part of the job alone."""
    if whole_number(document.get("rows_done")) or document.get("part"):
        return ()
    found = [
        Comparison(name, unit, planned, float(totals[key]))
        for name, key, unit in _FORECAST
        if (planned := finite(document.get(key))) is not None
    ]
    seconds = finite(objects(document.get("seconds")).get("work"))
    if seconds is not None and work.seconds is not None:
        found.append(Comparison("time at work", "seconds", seconds, work.seconds))
    return tuple(found)


def _steps(facts: Facts) -> tuple[Step, ...]:
    """What is left to do, the most urgent first."""
    folder = shlex.quote(facts.output)
    steps = []
    if facts.state == "running":
        steps.append(
            Step("A run is at work here; see how far it is:", f"batchinfer status {folder} --watch")
        )
    elif facts.state == "stopped":
        steps.append(Step("The job is unfinished; go on with it:", f"batchinfer resume {folder}"))
    if facts.num_errors:
        steps.append(Step("See which rows failed, and why:", f"batchinfer errors {folder}"))
        if facts.state == "finished":
            again = f"batchinfer resume {folder} --retry-errors"
            steps.append(Step("Once the cause is gone, only those rows again:", again))
    if facts.state == "finished":
        steps.append(Step("Prove that every row is there once:", f"batchinfer verify {folder}"))
    return tuple(steps)


def _missing(facts: Facts, sample: Sample, report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the report cannot show, and why."""
    said = []
    if not facts.runs:
        said.append(
            "Throughput, memory and interruptions over time: the folder has no events files. Runs of "
            "earlier versions left none."
        )
    elif not any(len(run.moments) > 2 for run in facts.runs):
        said.append("Throughput over time: the runs were over before they wrote how they went.")
    if facts.work.stages is None and facts.num_rows:
        said.append("Where the time went: no run of this folder has left a report.")
    elif not facts.runs and report and facts.work.rows < facts.num_rows:
        said.append("The time of earlier runs: report.json tells of the last one alone.")
    if not facts.num_shards:
        said.append("Lengths and answers: no shard is written yet.")
    if sample.unreadable:
        said.append(
            f"{sample.unreadable:,} shards that could not be read: `batchinfer verify` says why."
        )
    if facts.runs and facts.ceiling is None and can_be_measured(facts.job):
        said.append(
            "How near the run came to the hardware's limit: `batchinfer report --measure` on the machine "
            "that ran it finds out."
        )
    return tuple(said)


def _document(path: Place) -> dict[str, Any]:
    """A JSON object of the state folder; {} where there is none, or one that cannot be read."""
    try:
        with open_regular(path) as file:
            return objects(json.loads(file.read(_MAX_DOCUMENT)))
    except (OSError, BatchInferError, ValueError, RecursionError):
        return {}
