"""run() and resume(): answer every input row, committing one shard at a time.

Both come down to the same thing: map the chunks that have no shard yet.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from batchinfer.config import RunConfig
from batchinfer.core import ChunkId, Shard
from batchinfer.engines import describe_model
from batchinfer.errors import Interrupted, JobMismatchError, StorageError
from batchinfer.plan import Plan, first_difference
from batchinfer.planning import check_inputs, make_plan
from batchinfer.reporting.progress import Progress, Silent
from batchinfer.reporting.report import Effort, RunReport, summarize
from batchinfer.worker import StopSignal, Worker
from batchinfer.writers.run_folder import RunFolder, load_plan, require_plan

log = logging.getLogger("batchinfer")


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
        previous = load_plan(config.output)
        plan, model_folder = make_plan(config, None if overwrite else previous)
        with RunFolder(config.output) as folder:
            if overwrite and previous is not None:
                folder.overwrite(plan)
            elif not folder.adopt(plan) and not (resume or folder.is_finished):
                raise JobMismatchError(
                    f"{config.output}: holds this job, unfinished; go on with `batchinfer resume "
                    f"{config.output}` (or run --resume)"
                )
            shards = folder.shards(plan)
            plan = check_inputs(plan, shards)
            return _answer_pending(
                folder, plan, shards, model_folder, progress or Silent(), stop or StopSignal()
            )


def resume(
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
    **changes: Any,
) -> RunReport:
    """Go on with the job of a run folder after any failure.

    `changes` may name what does not change the answers: device, attention, max_batch_tokens,
    max_batch_rows, workers, max_errors. Raises what `run` raises; JobMismatchError names the input or
    the part of the model that changed.
    """
    with _io_errors_named(output):
        plan = require_plan(output)
        config = RunConfig.model_validate(
            {**plan.config.model_dump(), "output": str(output), **changes}
        )
        plan = dataclasses.replace(plan, config=config)
        with RunFolder(output) as folder:
            shards = folder.shards(plan)
            if not folder.pending(plan, shards):
                return _answer_pending(
                    folder, plan, shards, None, progress or Silent(), stop or StopSignal()
                )
            plan = check_inputs(plan, shards)
            model, model_folder = describe_model(config)
            if difference := first_difference(plan, dataclasses.replace(plan, model=model)):
                raise JobMismatchError(f"{output}: {difference}; start anew with another --output")
            return _answer_pending(
                folder, plan, shards, model_folder, progress or Silent(), stop or StopSignal()
            )


def _answer_pending(
    folder: RunFolder,
    plan: Plan,
    shards: dict[ChunkId, Shard],
    model_folder: Path | None,
    progress: Progress,
    stop: StopSignal,
) -> RunReport:
    """Answer the chunks that have no shard yet; then vouch for the whole."""
    effort = Effort()
    if spans := folder.pending(plan, shards):
        rows_done = sum(shard.num_rows for shard in shards.values())
        log.info(
            f"{plan.model.task} by {plan.model.name} ({plan.config.dtype}): "
            f"about {plan.num_rows_estimate - rows_done:,} rows to answer, "
            f"{plan.chunk_rows:,} a shard, into {folder.path}"
        )
        progress.begin(rows_done=rows_done, rows_expected=plan.num_rows_estimate)
        try:
            with closing(Worker(plan, folder, model_folder, progress, stop)) as worker:
                for shard in worker.process(spans):
                    shards[shard.id] = shard
                effort = worker.effort
        finally:
            progress.end()
    finished = not folder.pending(plan, shards)
    if finished:
        folder.finish(plan, shards)
    report = summarize(plan, shards.values(), effort, finished=finished)
    if spans:
        folder.write_report(report.to_dict())
    if not finished:
        raise Interrupted(
            f"stopped with {report.num_rows:,} rows durable; go on with `batchinfer resume {folder.path}`"
        )
    return report


def _refuse_foreign_folder(path: str | os.PathLike[str]) -> None:
    """A folder with other things in it is not ours to write into."""
    if not path or load_plan(path) is not None:
        return
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise JobMismatchError(f"{path}: is a file; name a folder with --output") from None
    data = Path(path) / "data"
    if names - {"data", "_batchinfer"} or (data.is_dir() and any(data.iterdir())):
        raise JobMismatchError(
            f"{path}: holds other files and no run of batchinfer; name a new or empty folder with --output"
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
            raise Interrupted(
                f"{where}: no space left; what is committed stays: make room, then `batchinfer resume "
                f"{output}`"
            ) from error
        raise StorageError(f"{where}: {error.strerror or error}") from error
