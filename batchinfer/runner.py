"""run() and resume(): answer every input row, committing one shard at a time.

Both come down to the same thing: map the chunks that have no shard yet.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from batchinfer.config import RunConfig, flag_name
from batchinfer.core import ChunkId, Shard, Span, retry_spans
from batchinfer.engines import describe_model, require_fit
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.forecasting.kept import ForecastKey, held_against
from batchinfer.growth import with_what_is_new
from batchinfer.inputs import are_touched, check_inputs
from batchinfer.plan import Plan, first_difference
from batchinfer.planning import check_schemas, make_plan, plan_again, with_profile
from batchinfer.reporting.displays import Notebook
from batchinfer.reporting.events import EventsFile
from batchinfer.reporting.metrics import MetricsFile
from batchinfer.reporting.monitor import Display, Monitor
from batchinfer.reporting.progress import Progress
from batchinfer.reporting.report import RunReport, summarize
from batchinfer.reporting.snapshot import Outcome
from batchinfer.sharing import Part, Share, part_of
from batchinfer.stop import StopSignal
from batchinfer.worker import Worker
from batchinfer.writers.claims import (
    refuse_foreign_folder,
    refuse_increments,
    refuse_other_job,
    refuse_part_that_overwrites,
)
from batchinfer.writers.run_folder import RunFolder, has_plan, load_plan, require_plan
from batchinfer.writers.shard_table import ShardTable

log = logging.getLogger("batchinfer")


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    incremental: bool = False,
    progress: Progress | None = None,
    displays: Iterable[Display] | None = None,
    stop: StopSignal | None = None,
) -> RunReport:
    """Answer every row of `config.inputs`, and leave them in `config.output` as sharded Parquet.

    A finished folder of the same job is left as it is. An unfinished one goes on with `resume`;
    `overwrite` replaces whatever job the folder holds; `incremental` also answers what was added to its
    inputs since, as further shards. Raises a BatchInferError: UsageError,
    InputError, ModelError, JobMismatchError, StorageError, or Interrupted where `stop` was set, the
    disk is full, or another process holds the folder.

    `displays` are shown how far it is (None: a tqdm bar, where a terminal or a notebook shows it), and
    `progress` is told of each batch, from the thread that drives the device.
    """
    began = time.monotonic()
    monitor = _monitor("run", config.output, config.metrics_file, displays, progress)
    with monitor, _io_errors_named(config.output):
        refuse_foreign_folder(config.output)
        stop = stop or StopSignal()
        if config.deadline is not None:
            stop.set_by(config.deadline)
        part = part_of(config.shard, os.environ)
        refuse_part_that_overwrites(part, overwrite)
        if part is not None and config.executor == "ray":
            raise UsageError("--shard: not with --executor ray, which hands out all chunks")
        # These are this call's, not the job's.
        config = config.model_copy(update={"shard": None, "log_file": None})
        previous = None if overwrite else load_plan(config.output)
        if incremental:
            _refuse_beside_incremental(config, part, overwrite)
        elif previous is not None:
            refuse_increments(previous, config.output)
        if incremental and previous is not None:
            plan, model_folder = plan_again(config, previous)
        else:
            plan, model_folder = make_plan(config, previous, incremental=incremental)
        worker = Worker(plan, model_folder, monitor, stop)
        with RunFolder(config.output, part) as folder, closing(worker):
            held = None if overwrite else load_plan(config.output)
            if incremental and previous is not None:
                work = _Work.of(folder, _as_held_now(plan, previous, held))
                _add_what_is_new(work, worker)
                return _answer_all(work, worker, began)
            begins = held is None
            if held is None:
                worker.load()  # a model that cannot be loaded leaves the folder as it was
                worker.may_probe = True
                # That there was no plan a moment ago says little where no lock holds others back: what
                # has one by now is joined, never begun anew.
                held = folder.begin(plan) if overwrite else folder.join(plan)
            refuse_other_job(held, plan)
            if not (begins or resume or incremental or part or folder.is_finished):
                raise JobMismatchError(
                    f"{config.output}: holds this job, unfinished; go on with `batchinfer resume "
                    f"{config.output}` (or run --resume)"
                )
            plan = plan.as_held(held)
            work = _Work.of(folder, plan)
            work.check_inputs()
            return _answer_all(work, worker, began)


def resume(
    output: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    retry_errors: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    displays: Iterable[Display] | None = None,
    stop: StopSignal | None = None,
    **changes: Any,
) -> RunReport:
    """Go on with the job of a run folder after any failure.

    `retry_errors` also puts the rows that have errors through the model again, and replaces only the
    shards that change. `verify` reads every page of every shard first; those that do not match their
    checksums are set aside and made again. `changes` may name what does not change the answers:
    device, devices, device_map, max_memory, offload_folder, executor, ray_address, ray_actors, ray_gpus,
    ray_cpus, attention, compile, threads, streams, profile, max_batch_tokens, max_batch_rows, workers,
    cache (which is not taken from the folder), cache_size, max_errors, deadline, batch_timeout, progress,
    metrics_file, log_file.
    `displays`, `progress` and what is raised are as of `run`; JobMismatchError names the input or the part
    of the model that changed.

    A job that trusts its model (`trust_remote_code`, `allow_pickle`) must be trusted anew: the folder
    may be another's, and whoever can write plan.json can name any model in it.
    """
    began = time.monotonic()
    consents = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    monitor = _monitor("resume", str(output), changes.get("metrics_file"), displays, progress)
    with monitor, _io_errors_named(output):
        require_plan(output)  # before a lock makes a run folder of whatever was named
        stop = stop or StopSignal()
        part = part_of(changes.get("shard"), os.environ)
        if part is not None and (retry_errors or verify):
            flag = "--retry-errors" if retry_errors else "--verify"
            raise UsageError(f"--shard: not with {flag}, which needs the folder for itself")
        with RunFolder(output, part) as folder:
            changes = _with_what_they_replace(changes, part)
            held = require_plan(output)
            plan = held.with_changes(output=str(output), **changes)
            if part is not None and plan.config.executor == "ray":
                raise UsageError("--shard: not with --executor ray, which hands out all chunks")
            if plan.config.deadline is not None:
                stop.set_by(plan.config.deadline)
            if retry_errors or verify:
                folder.require_alone()
            work = _Work.of(folder, plan, read_pages=verify)
            if retry_errors:
                work.failed = _without_gone(plan, work.shards, folder.failed(work.shards))
            model_folder = None
            if work.left:
                require_consent(plan, consents, "resume")
                check_schemas(plan)
                work.check_inputs()
                require_fit(plan.config)
                try:
                    model, model_folder = describe_model(
                        plan.config, plan.input_schema, plan.model.widths
                    )
                except UsageError as error:  # it could do what is asked when the job was planned
                    raise JobMismatchError(f"{output}: the model changed: {error}") from None
                if difference := first_difference(plan, dataclasses.replace(plan, model=model)):
                    raise JobMismatchError(
                        f"{output}: {difference}; start anew with another --output"
                    )
                work.plan = with_profile(work.plan, held)
            worker = Worker(work.plan, model_folder, monitor, stop)
            with closing(worker):
                return _answer_all(work, worker, began)


#: What a command says of itself alone: the plan may hold what an earlier one said, and a plan, which may be
#: another's, names no folder to write to.
_OF_ONE_COMMAND = {
    "deadline": None, "progress": "auto", "metrics_file": None, "log_file": None, "cache": None,
}  # fmt: skip


def _without_gone(
    plan: Plan, shards: Mapping[ChunkId, Shard], failed: dict[ChunkId, tuple[int, ...]]
) -> dict[ChunkId, tuple[int, ...]]:
    """The failed rows but for those of inputs that are gone: nobody can read these again."""
    left = {}
    for id, rows in failed.items():
        shard = shards[id]
        files = plan.segments[id.segment].files[shard.start.file : shard.next.file + 1]
        if not any(file.source in plan.gone for file in files):
            left[id] = rows
    if count := sum(map(len, failed.values())) - sum(map(len, left.values())):
        log.warning(f"not tried again: {count:,} failed rows, as their inputs are gone")
    return left


def _with_what_they_replace(changes: Mapping[str, Any], part: Part | None) -> dict[str, Any]:
    """The changes that a resume asks for, and what follows: whoever names devices means those alone."""
    changes = {**_OF_ONE_COMMAND, **changes, "shard": None}
    is_spread = changes.get("device_map") not in (None, "none")
    if part is not None or changes.get("devices"):
        changes.setdefault("executor", "auto")
    if changes.get("executor") == "ray":
        changes.setdefault("devices", None)
    if changes.get("devices") or is_spread:
        changes.setdefault("device", "auto")
    if changes.get("device") and (is_spread or not changes.get("devices")):
        changes.setdefault("devices", None)
    if changes.get("devices") or changes.get("device", "auto") != "auto":
        changes.setdefault("device_map", None)
    if changes.get("device_map", "") in (None, "none"):
        changes.setdefault("max_memory", None)
        changes.setdefault("offload_folder", None)
    return changes


def require_consent(plan: Plan, consents: Mapping[str, bool], command: str) -> None:
    """See that what the plan would load is trusted by this call of `command` too. Raises UsageError.

    A module is code, of whatever file: `run` was given its name by whoever started it, but here it is the
    folder that names it.
    """
    config = plan.config
    is_code = plan.model.task == "module" and config.engine != "fake"
    for name, given in consents.items():
        wanted = getattr(config, name) or (is_code and name == "trust_remote_code")
        if wanted and not given:
            loads = "Python code" if name == "trust_remote_code" else "pickled weights"
            raise UsageError(
                f"{config.output}: the job loads {loads} of {config.model}; if you trust it, say so again: "
                f"`batchinfer {command} {config.output} {flag_name(name)}`"
            )


@dataclass
class _Work:
    """What a job has, and what it lacks: the chunks without a shard, and failed rows to try again.

    `share`: what of the job is this run's; None: all of it. Of a share, `shards` are those that say what is
    left of it.
    """

    folder: RunFolder
    plan: Plan
    share: Share | None
    shards: ShardTable
    failed: dict[ChunkId, tuple[int, ...]] = field(default_factory=dict)
    retried_rows: int = 0
    cured_rows: int = 0
    #: Whether a part has gone through all of its share: what has no shard then is not there, as the share
    #: goes by an estimate.
    is_exhausted: bool = False

    @classmethod
    def of(cls, folder: RunFolder, plan: Plan, *, read_pages: bool = False) -> _Work:
        """What the folder's shards say; raises what `RunFolder.shards` raises."""
        share = None
        if folder.part is not None:
            share = Share.of(folder.part, plan.segments, plan.num_rows_estimate, plan.chunk_rows)
        return cls(folder, plan, share, folder.shards(plan, share, read_pages=read_pages))

    def check_inputs(self) -> None:
        """See that the inputs are what was planned; raises what `inputs.check_inputs` raises."""
        shards: Mapping[ChunkId, Shard] = self.shards
        if self.share is not None and are_touched(self.plan):
            shards = self.folder.shards(self.plan)  # others' too: all are made of one input
        self.plan = check_inputs(self.plan, shards)

    @property
    def own_shards(self) -> Iterator[Shard]:
        share = self.share
        return (shard for id, shard in self.shards.items() if share is None or id in share)

    @property
    def left(self) -> list[Span]:
        pending = self.folder.pending(self.plan, self.shards)
        if (share := self.share) is not None:
            return [] if self.is_exhausted else list(share.of_spans(pending))
        return [*pending, *retry_spans(self.plan.segments, self.shards, self.failed)]

    @property
    def rows_done(self) -> int:
        rows = sum(shard.num_rows for shard in self.own_shards)
        return rows - sum(map(len, self.failed.values()))

    @property
    def rows_expected(self) -> int:
        if self.share is not None:
            return self.share.num_rows
        return self.plan.rows_expected(
            {span.segment.index for span in self.folder.pending(self.plan, self.shards)},
            self.shards,
        )

    @property
    def is_complete(self) -> bool:
        """Whether every chunk of the job has a shard, whoever made it."""
        if self.folder.part is not None:
            return not self.left and self.folder.is_complete(self.plan)
        return not self.folder.pending(self.plan, self.shards)

    @property
    def is_complete_by_now(self) -> bool:
        """The same, with the shards that others made since this run has looked."""
        self.shards = self.folder.shards(self.plan, self.share)
        return self.is_complete

    def process(self, worker: Worker, spans: list[Span], *, isolated: bool) -> None:
        """Answer spans of what is left."""
        shards = worker.process(
            self.folder, spans, self.rows_done, self.rows_expected, isolated=isolated
        )
        for shard in shards:
            if rows := self.failed.pop(shard.id, None):
                self.retried_rows += len(rows)
                self.cured_rows += self.shards[shard.id].num_errors - shard.num_errors
            self.shards.add(shard)


def _monitor(
    command: str,
    output: str,
    metrics_file: str | None,
    displays: Iterable[Display] | None,
    progress: Progress | None,
) -> Monitor:
    """What shows a run while it goes on. Raises UsageError for the metrics file."""
    metrics = [MetricsFile(metrics_file, output)] if metrics_file else []
    shown = [Notebook()] if displays is None else displays
    monitor = Monitor([*shown, *metrics], progress)
    monitor.facts = {"command": command}
    return monitor


def _refuse_beside_incremental(config: RunConfig, part: Part | None, overwrite: bool) -> None:
    """Raise UsageError for what has no meaning beside --incremental."""
    if overwrite:
        raise UsageError("--incremental: not with --overwrite, which begins the job anew")
    if part is not None:
        raise UsageError(
            "--incremental: not with --shard, as it needs the folder for itself; parts may go on with "
            f"`batchinfer resume {config.output} --shard {part}` what an incremental run has begun"
        )
    if config.limit is not None:
        raise UsageError("--incremental: not with --limit, behind which there is nothing new")


def _as_held_now(plan: Plan, previous: Plan, held: Plan | None) -> Plan:
    """The plan that was made of `previous`, now that the folder is held. Raises JobMismatchError."""
    if held is None or held.ids != previous.ids:
        raise Interrupted(
            f"{plan.config.output}: another run has changed the job at the same moment; start this again"
        )
    refuse_other_job(held, plan)
    return plan


def _add_what_is_new(work: _Work, worker: Worker) -> None:
    """Add to the job what its inputs have by now and the plan has not.

    Before anything changes, what was answered is proven to be what it was; then `_SUCCESS` goes, as it does
    not speak for what is new, and then the plan grows.
    """
    folder, before = work.folder, work.plan
    work.plan = worker.plan = with_what_is_new(before, work.shards)
    if work.plan.increments == before.increments:
        return
    if len(work.plan.segments) > len(before.segments):
        worker.load()  # a model that cannot be loaded leaves the folder as it was
        folder.retract_success()
    folder.extend(work.plan)


def _answer_all(work: _Work, worker: Worker, began: float) -> RunReport:
    """Answer what is left, and vouch for the whole; `began`: when this call did, by the monotonic clock."""
    folder, plan, monitor = work.folder, work.plan, worker.monitor
    if work.left and folder.is_finished:  # by another run, since this one has looked
        work.shards = folder.shards(plan, work.share)
    begun = bool(work.left)
    if begun:
        monitor.facts["run_id"] = folder.run_id
        monitor.displays.append(EventsFile(folder.local, folder.run_id))
        worker.has_answered = any(s.num_errors < s.num_rows for s in work.shards.values())
        if folder.part is None:
            folder.retract_success()
        elif folder.is_finished and not work.is_complete_by_now:
            raise StorageError(
                f"{folder.path}: marked as complete, but shards of part {folder.part} are missing; "
                f"`batchinfer resume {folder.path}`, without --shard, makes them"
            )
        foretold = _Foretold.of(work)
        goes_on = True
        while goes_on:
            # First, in a process of their own, the chunks at which a process died without a word: one of
            # an earlier run's, or of those that this one has for its devices.
            if suspects := folder.suspects(work.left):
                work.process(worker, suspects, isolated=True)
            goes_on = bool(work.left) and not worker.stop.is_set
            if goes_on:
                work.process(worker, work.left, isolated=False)
                goes_on = worker.has_suspects and not worker.stop.is_set
                work.is_exhausted = not worker.has_suspects and not worker.stop.is_set
    finished = work.is_complete
    if finished:
        # Of parts, whoever is last looks at everybody's.
        is_last = folder.part is not None and not folder.is_finished
        folder.finish(folder.shards(plan) if is_last else work.shards)
    report = summarize(
        plan,
        work.own_shards,
        worker.effort,
        finished=finished,
        part="" if folder.part is None else str(folder.part),
        retried_rows=work.retried_rows,
        cured_rows=work.cured_rows,
        run_id=folder.run_id if begun else "",
        stopped=bool(work.left),
    )
    if begun:
        if foretold is not None and not work.left:
            report = foretold.beside(report, time.monotonic() - began)
        folder.write_report(report.to_dict())
    if work.left:
        retry = "" if folder.pending(plan, work.shards) else " --retry-errors"
        if folder.part is not None:
            retry = f" --shard {folder.part}"
        raise Interrupted(
            f"stopped with {report.num_rows:,} rows durable; go on with `batchinfer resume {folder.path}"
            f"{retry}`",
            report=report,
        )
    monitor.close(Outcome("finished", report.exit_code, report=report.to_dict()))
    return report


@dataclass(frozen=True)
class _Foretold:
    """What `batchinfer plan` said of this run, and what stood in the folder before it."""

    forecast: Mapping[str, Any]
    num_shards: int
    num_bytes: int

    @classmethod
    def of(cls, work: _Work) -> _Foretold | None:
        """Take the forecast up, if there is one, and leave it in the folder."""
        part = "" if work.folder.part is None else str(work.folder.part)
        if work.failed or (found := ForecastKey(work.plan, part, work.rows_done).find()) is None:
            return None
        work.folder.keep_forecast(found)
        shards = list(work.own_shards)
        return cls(found, len(shards), sum(shard.num_bytes for shard in shards))

    def beside(self, report: RunReport, seconds: float) -> RunReport:
        """The report, with what was predicted and what came."""
        came = {
            "num_rows": report.new_rows,
            "num_tokens": report.new_tokens,
            "num_batches": report.new_batches,
            "num_shards": report.num_shards - self.num_shards,
            "num_bytes": report.num_bytes - self.num_bytes,
        }
        return dataclasses.replace(report, forecast=held_against(self.forecast, came, seconds))


_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What helps where a folder cannot be written to at all.
_NOT_YOURS = "look at whose it is and its permissions, or name another folder with --output"
_ADVICE = {
    errno.EACCES: _NOT_YOURS,
    errno.EPERM: _NOT_YOURS,
    errno.EROFS: "name a folder on another file system with --output",
    errno.ENAMETOOLONG: "name a shorter one with --output",
}


def _is_begun(output: str | os.PathLike[str]) -> bool:
    """Whether there is something to resume, as far as that can be seen."""
    try:
        return has_plan(output)
    except OSError:
        return False


@contextmanager
def _io_errors_named(output: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one line what the operating system refused."""
    try:
        yield
    except OSError as error:
        where = error.filename or output
        is_begun = _is_begun(output)
        again = f"`batchinfer resume {output}`" if is_begun else "start it again"
        if error.errno in _FULL:
            raise Interrupted(
                f"{where}: no space left; what is committed stays: make room, then {again}"
            ) from error
        advice = f"mend that, then {again}"
        if not is_begun:
            advice = _ADVICE.get(error.errno or 0, advice)
        raise StorageError(f"{where}: {error.strerror or error}; {advice}") from error
