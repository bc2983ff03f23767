"""run() and resume(): answer every input row, committing one shard at a time.

Both come down to the same thing: map the chunks that have no shard yet.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchinfer.config import RunConfig, flag_name
from batchinfer.core import ChunkId, Shard, Span, retry_spans
from batchinfer.engines import describe_model
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.inputs import check_inputs
from batchinfer.plan import Plan, first_difference
from batchinfer.planning import check_schemas, make_plan, with_profile
from batchinfer.reporting.progress import Progress, Silent
from batchinfer.reporting.report import RunReport, summarize
from batchinfer.worker import StopSignal, Worker
from batchinfer.writers.run_folder import RunFolder, has_plan, load_plan, require_plan


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
) -> RunReport:
    """Answer every row of `config.inputs`, and leave them in `config.output` as sharded Parquet.

    A finished folder of the same job is left as it is. An unfinished one goes on with `resume`;
    `overwrite` replaces whatever job the folder holds. Raises a BatchInferError: UsageError,
    InputError, ModelError, JobMismatchError, StorageError, or Interrupted where `stop` was set, the
    disk is full, or another process holds the folder.
    """
    with _io_errors_named(config.output):
        _refuse_foreign_folder(config.output)
        stop = stop or StopSignal()
        if config.deadline is not None:
            stop.set_by(config.deadline)
        plan, model_folder = make_plan(config, None if overwrite else load_plan(config.output))
        worker = Worker(plan, model_folder, progress or Silent(), stop)
        with RunFolder(config.output) as folder, closing(worker):
            held = None if overwrite else load_plan(config.output)
            if held is None:
                worker.load()  # a model that cannot be loaded leaves the folder as it was
                folder.begin(plan)
                worker.may_probe = True
            elif difference := first_difference(held, plan):
                raise JobMismatchError(
                    f"{config.output}: holds another job: {difference}; give another --output, or "
                    "--overwrite to replace it"
                )
            elif not (resume or folder.is_finished):
                raise JobMismatchError(
                    f"{config.output}: holds this job, unfinished; go on with `batchinfer resume "
                    f"{config.output}` (or run --resume)"
                )
            else:
                plan = plan.with_times_of(held)
            shards = folder.shards(plan)
            return _answer_all(_Work(folder, check_inputs(plan, shards), shards), worker)


def resume(
    output: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    retry_errors: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
    **changes: Any,
) -> RunReport:
    """Go on with the job of a run folder after any failure.

    `retry_errors` also puts the rows that have errors through the model again, and replaces only the
    shards that change. `verify` reads every page of every shard first; those that do not match their
    checksums are set aside and made again. `changes` may name what does not change the answers:
    device, attention, compile, threads, streams, profile, max_batch_tokens, max_batch_rows, workers,
    max_errors, deadline, batch_timeout.
    Raises what `run` raises; JobMismatchError names the input or the part of the model that changed.

    A job that trusts its model (`trust_remote_code`, `allow_pickle`) must be trusted anew: the folder
    may be another's, and whoever can write plan.json can name any model in it.
    """
    consents = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    with _io_errors_named(output):
        require_plan(output)  # before a lock makes a run folder of whatever was named
        stop = stop or StopSignal()
        with RunFolder(output) as folder:
            # A deadline is that of one command.
            changes.setdefault("deadline", None)
            held = require_plan(output)
            plan = held.with_changes(output=str(output), **changes)
            if plan.config.deadline is not None:
                stop.set_by(plan.config.deadline)
            work = _Work(folder, plan, folder.shards(plan, read_pages=verify))
            if retry_errors:
                work.failed = folder.failed(work.shards)
            model_folder = None
            if work.left:
                require_consent(plan, consents, "resume")
                check_schemas(plan)
                work.plan = check_inputs(plan, work.shards)
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
            worker = Worker(work.plan, model_folder, progress or Silent(), stop)
            with closing(worker):
                return _answer_all(work, worker)


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
    """What a job has, and what it lacks: the chunks without a shard, and failed rows to try again."""

    folder: RunFolder
    plan: Plan
    shards: dict[ChunkId, Shard]
    failed: dict[ChunkId, tuple[int, ...]] = field(default_factory=dict)
    retried_rows: int = 0
    cured_rows: int = 0

    @property
    def left(self) -> list[Span]:
        return [
            *self.folder.pending(self.plan, self.shards),
            *retry_spans(self.plan.segments, self.shards, self.failed),
        ]

    @property
    def rows_done(self) -> int:
        rows = sum(shard.num_rows for shard in self.shards.values())
        return rows - sum(map(len, self.failed.values()))

    def process(self, worker: Worker, spans: list[Span], *, isolated: bool) -> None:
        """Answer spans of what is left."""
        for shard in worker.process(self.folder, spans, self.rows_done, isolated=isolated):
            if rows := self.failed.pop(shard.id, None):
                self.retried_rows += len(rows)
                self.cured_rows += self.shards[shard.id].num_errors - shard.num_errors
            self.shards[shard.id] = shard


def _answer_all(work: _Work, worker: Worker) -> RunReport:
    """Answer what is left, and vouch for the whole."""
    folder, plan, shards = work.folder, work.plan, work.shards
    begun = bool(work.left)
    if begun:
        worker.has_answered = any(shard.num_errors < shard.num_rows for shard in shards.values())
        folder.retract_success()
        # First, in a process of their own, the chunks at which a run died without a word.
        if suspects := folder.suspects(work.left):
            work.process(worker, suspects, isolated=True)
        if work.left and not worker.stop.is_set:
            work.process(worker, work.left, isolated=False)
    finished = not folder.pending(plan, shards)
    if finished:
        folder.finish(shards)
    report = summarize(
        plan,
        shards.values(),
        worker.effort,
        finished=finished,
        retried_rows=work.retried_rows,
        cured_rows=work.cured_rows,
    )
    if begun:
        folder.write_report(report.to_dict())
    if work.left:
        retry = "" if folder.pending(plan, shards) else " --retry-errors"
        raise Interrupted(
            f"stopped with {report.num_rows:,} rows durable; go on with `batchinfer resume {folder.path}"
            f"{retry}`"
        )
    return report


def _refuse_foreign_folder(path: str) -> None:
    """A folder with other things in it is not ours to write into."""
    if not path or has_plan(path):
        return
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise JobMismatchError(f"{path}: not a folder; name one with --output") from None
    data = Path(path) / "data"
    is_other = names - {"data", "_batchinfer"} or (data.is_dir() and any(data.iterdir()))
    if is_other and not has_plan(path):  # asked again: another run may have begun in between
        raise JobMismatchError(
            f"{path}: holds other files and no run of batchinfer; name a new or empty folder with "
            "--output"
        )


_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def _io_errors_named(output: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one line what the operating system refused."""
    try:
        yield
    except OSError as error:
        where = error.filename or output
        if error.errno in _FULL:
            again = f"`batchinfer resume {output}`" if has_plan(output) else "start it again"
            raise Interrupted(
                f"{where}: no space left; what is committed stays: make room, then {again}"
            ) from error
        raise StorageError(f"{where}: {error.strerror or error}") from error
