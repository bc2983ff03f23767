"""tune(): from a job's configuration to the profile that `run` picks up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from batchinfer.config import RunConfig
from batchinfer.engines import create_encoder, create_engine, kind_of_device
from batchinfer.engines.base import Engine
from batchinfer.errors import InputError, StorageError, UsageError, one_line
from batchinfer.plan import Plan
from batchinfer.planning import make_plan
from batchinfer.profiles import Profile, ProfileKey, key_of
from batchinfer.tasks import create_task
from batchinfer.tasks.base import Task
from batchinfer.tuning.display import SilentTable
from batchinfer.tuning.lab import Listener
from batchinfer.tuning.result import TuneReport
from batchinfer.tuning.sample import Sample, take_sample
from batchinfer.tuning.search import Search
from batchinfer.tuning.trial import Bench

#: Tokens of the sample: enough for several of the largest batches, and encoded in a second.
SAMPLE_TOKENS = {"cpu": 250_000, "mps": 250_000}
SAMPLE_TOKENS_OF_GPU = 2_000_000

CreateEngine = Callable[[RunConfig, Task, Path | None], Engine]


def tune(
    config: RunConfig,
    *,
    max_seconds: float = 90.0,
    listener: Listener | None = None,
    create: CreateEngine = create_engine,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneReport:
    """Find the fastest setting for a job on this machine, and keep it as a profile.

    The profile goes to the user's cache, to the file that `config.profile` names, or nowhere ("none").
    What takes longer than `max_seconds` is not tried. Raises UsageError, InputError (also where no row
    of the sample has a text), ModelError, or StorageError.
    """
    began = clock()
    if config.device_map is not None:
        raise UsageError("--device-map: what `tune` compares runs on one device; leave it out")
    # Only the text columns are read, and neither an earlier profile nor a limit to a batch's time must
    # decide anything.
    update = {"profile": "none", "keep": ("none",), "batch_timeout": None}
    plan, folder = make_plan(config.model_copy(update=update), is_rehearsal=True)
    kind = kind_of_device(plan.config)
    key = key_of(config, plan.model, kind)
    path = _path(config, key)
    if path is not None:
        require_writable(path, "the profile", "name another with --profile")
    task = create_task(plan.model, plan.config, plan.input_schema)
    sample = _sample(plan, task, folder, kind)
    bench = Bench(sample, began + max_seconds, clock, task.tokens_ahead)
    search = Search(
        asked=config,
        resolved=plan.config,
        device_kind=kind,
        bench=bench,
        create=lambda wanted: create(wanted, task, folder),
        listener=listener or SilentTable(),
        num_rows=plan.num_rows_estimate,
    )
    found = search.run()
    profile = Profile(
        key=key,
        engine=found.chosen.engine,
        dtype=found.chosen.dtype,
        settings=found.chosen.settings,
        trials=found.trials,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    if path is not None:
        profile.write(path)
    return TuneReport(
        profile=profile,
        path="" if path is None else str(path),
        model=plan.model.name,
        num_rows=len(sample.requests),
        lengths=sample.lengths,
        num_tokens_estimate=int(plan.num_rows_estimate * sample.lengths["mean"]),
        reasons=found.reasons,
        not_tried=found.not_tried,
        seconds=clock() - began,
    )


def _sample(plan: Plan, task: Task, folder: Path | None, kind: str) -> Sample:
    encoder = create_encoder(plan.config, plan.model, folder)
    sample = take_sample(plan, task, encoder, SAMPLE_TOKENS.get(kind, SAMPLE_TOKENS_OF_GPU))
    if not len(sample.requests):
        columns = "', '".join(plan.read_options.answering)
        what, flag = ("text", "--text-column") if task.takes_text else ("value", "--features")
        raise InputError(
            f"no row of the sample has a {what} in column '{columns}'; choose another with {flag}"
            if plan.config.template is None
            else "the template gives no row of the sample a text; try it with `batchinfer run --limit`"
        )
    return sample


def require_writable(path: Path, what: str, advice: str) -> None:
    """See that a file can be written there, before anything is measured. Raises StorageError.

    Its folder is made where there is none.
    """
    why = "is a folder" if path.is_dir() else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Asking for permission is not enough: root has it on a disk that takes no writes.
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"0")
    except OSError as error:
        why = error.strerror or one_line(error)
    if why:
        raise StorageError(f"{what} cannot be written: {why}", file=str(path), advice=advice)


def _path(config: RunConfig, key: ProfileKey) -> Path | None:
    if config.profile == "none":
        return None
    return key.path if config.profile == "auto" else Path(config.profile)
