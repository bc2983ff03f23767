"""run() and resume(): answer every input row, committing one shard at a time.

Both come down to the same thing: map the chunks that have no shard yet.
"""

from __future__ import annotations

import dataclasses
import errno
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
        plan, model_folder = make_plan(config, None if overwrite else load_plan(config.output))
        worker = Worker(plan, model_folder, progress or Silent(), stop or StopSignal())
        with RunFolder(config.output) as folder, closing(worker):
            held = None if overwrite else load_plan(config.output)
            if held is None:
                worker.load()  # a model that cannot be loaded leaves the folder as it was
                folder.begin(plan)
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
            return _answer_pending(folder, check_inputs(plan, shards), shards, worker)


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
        require_plan(output)  # before a lock makes a run folder of whatever was named
        with RunFolder(output) as folder:
            plan = require_plan(output).with_changes(output=str(output), **changes)
            shards = folder.shards(plan)
            model_folder = None
            if folder.pending(plan, shards):
                plan = check_inputs(plan, shards)
                model, model_folder = describe_model(plan.config)
                if difference := first_difference(plan, dataclasses.replace(plan, model=model)):
                    raise JobMismatchError(
                        f"{output}: {difference}; start anew with another --output"
                    )
            worker = Worker(plan, model_folder, progress or Silent(), stop or StopSignal())
            with closing(worker):
                return _answer_pending(folder, plan, shards, worker)


def _answer_pending(
    folder: RunFolder, plan: Plan, shards: dict[ChunkId, Shard], worker: Worker
) -> RunReport:
    """Answer the chunks that have no shard yet; then vouch for the whole."""
    spans = folder.pending(plan, shards)
    if spans:
        folder.retract_success()
        for shard in worker.process(folder, spans, shards.values()):
            shards[shard.id] = shard
    finished = not folder.pending(plan, shards)
    if finished:
        folder.finish(shards)
    report = summarize(plan, shards.values(), worker.effort, finished=finished)
    if spans:
        folder.write_report(report.to_dict())
    if not finished:
        raise Interrupted(
            f"stopped with {report.num_rows:,} rows durable; go on with `batchinfer resume {folder.path}`"
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
    if names - {"data", "_batchinfer"} or (data.is_dir() and any(data.iterdir())):
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
            raise Interrupted(
                f"{where}: no space left; what is committed stays: make room, then `batchinfer resume "
                f"{output}`"
            ) from error
        raise StorageError(f"{where}: {error.strerror or error}") from error
