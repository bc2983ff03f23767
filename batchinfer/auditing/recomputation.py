"""The rows once more, each alone."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchinfer.auditing.comparison import Comparison
from batchinfer.auditing.report import Audit, Limits
from batchinfer.auditing.sampling import choose_rows
from batchinfer.config import RunConfig
from batchinfer.core import ERROR, ROW, SOURCE, BatchBudget, Chunk, ChunkId, Shard, retry_spans
from batchinfer.engines import (
    create_encoder,
    create_engine,
    describe_model,
    prepare_to_decode,
)
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.gathering import answer
from batchinfer.inputs import as_it_is_now, require_same
from batchinfer.loader import Loader
from batchinfer.plan import Plan, first_difference
from batchinfer.planning import check_schemas
from batchinfer.readers import read_chunks
from batchinfer.reporting.monitor import Display, Monitor
from batchinfer.runner import require_consent
from batchinfer.stop import StopSignal
from batchinfer.storage import Place, place_of, place_of_output
from batchinfer.tasks import create_task
from batchinfer.tuning.accuracy import MAX_FLIPS, MAX_MOVEMENT, MAX_OTHER_WORDS, MIN_COSINE
from batchinfer.writers.committed import committed_shards
from batchinfer.writers.footer import read_columns
from batchinfer.writers.holders import refuse_live
from batchinfer.writers.run_folder import require_plan
from batchinfer.writers.shard import assemble

log = logging.getLogger("batchinfer")


def audit(
    output: str | os.PathLike[str],
    *,
    sample: int = 200,
    seed: int = 0,
    device: str = "auto",
    max_flips: float = MAX_FLIPS,
    max_difference: float = MAX_MOVEMENT,
    min_cosine: float = MIN_COSINE,
    max_other_words: float = MAX_OTHER_WORDS,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    displays: Iterable[Display] = (),
    stop: StopSignal | None = None,
) -> Audit:
    """Compute `sample` answered rows of a run folder again, and say how far off the answers are.

    Each row goes through transformers' own model alone, in float32, with the model's own attention and
    layers; a quantised model in its own precision. The folder may be unfinished; nothing in it changes.
    `seed` draws the rows. The limits are those of `Limits`.

    Raises UsageError where the folder is no run folder or has no answer yet, and for a task that cannot
    be audited; JobMismatchError where the input or the model is not that of the job; Interrupted while
    a live run holds the folder, or where `stop` was set; StorageError for what cannot be read; and
    ModelError. What a job trusts (`trust_remote_code`, `allow_pickle`) must be trusted anew.
    """
    limits = Limits(max_flips, max_difference, min_cosine, max_other_words)
    if sample < 1:
        raise UsageError(f"--sample: should be 1 or more, got {sample}")
    if seed < 0:
        raise UsageError(f"--seed: should be 0 or more, got {seed}")
    refuse_live(output, "audit")
    consents = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    try:
        plan = require_plan(output)
        plan = plan.with_changes(output=str(output))
        require_consent(plan, consents, "audit")
        check_schemas(plan)
        auditor = _Auditor(place_of_output(output), plan, device, limits)
        with Monitor(displays, tokens_ahead=auditor.task.tokens_ahead) as monitor:
            return auditor.audit(sample, seed, monitor, stop or StopSignal())
    except OSError as error:
        raise StorageError(f"{error.filename or output}: {error.strerror or error}") from error


class _Auditor:
    """One audit of a run folder."""

    def __init__(self, output: Place, plan: Plan, device: str, limits: Limits) -> None:
        self.output, self.plan, self.limits = output, plan, limits
        self.config = _plainest(plan, device)
        self.task = create_task(plan.model, plan.config, plan.input_schema)
        if why := self.task.obstacle_to_audit:
            raise UsageError(f"{output}: --task {self.task.name} cannot be audited: {why}")
        prefix = plan.config.output_prefix
        self.made = [prefix + field.name for field in self.task.columns]

    def audit(self, sample: int, seed: int, monitor: Monitor, stop: StopSignal) -> Audit:
        """Draw rows, compute them again, and compare."""
        shards = committed_shards(self.output, self.plan)
        rows = choose_rows(shards, sample, seed)
        if not rows:
            raise UsageError(
                f"{self.output}: no row has an answer yet, so there is nothing to audit"
            )
        written = pa.concat_tables([self._written(shards[i], rows[i]) for i in sorted(rows)])
        fresh, device = self._recompute(shards, rows, monitor, stop)
        compared = Comparison(self.plan, self.task, self.made, self.limits, written, fresh)
        return Audit(
            output=str(self.output),
            num_rows=written.num_rows,
            num_answered=sum(shard.num_rows - shard.num_errors for shard in shards.values()),
            num_changed=len(compared.changed),
            num_failed=len(compared.failed),
            engine=self.plan.config.engine,
            dtype=self.plan.config.dtype,
            reference=self.config.dtype,
            device=device,
            seed=seed,
            limits=self.limits,
            columns=tuple(compared.columns()),
            worst=tuple(compared.worst()),
        )

    def _written(self, shard: Shard, rows: Sequence[int]) -> pa.Table:
        table = read_columns(place_of(shard.path), [SOURCE, ROW, *self.made, ERROR])
        return table.take(np.array(rows)).select([SOURCE, ROW, *self.made, ERROR])

    def _recompute(
        self,
        shards: Mapping[ChunkId, Shard],
        rows: Mapping[ChunkId, tuple[int, ...]],
        monitor: Monitor,
        stop: StopSignal,
    ) -> tuple[pa.Table, str]:
        """These rows' answers, in input order, and the kind of device that gave them."""
        folder = self._require_same_model()
        schema = pa.schema(
            [self.plan.output_schema.field(name) for name in (SOURCE, ROW, *self.made, ERROR)]
        )
        prepare_to_decode(self.task, self.config, folder)
        prefix = self.plan.config.output_prefix
        with closing(create_engine(self.config, self.task, folder, plain=True)) as engine:
            encoder = create_encoder(self.config, self.plan.model, folder)
            options, budget = self.plan.read_options, BatchBudget(1, 1)
            loader = Loader(self.task, encoder, budget, self.plan.chunk_rows, options)
            log.info(
                f"{self.output}: computing {sum(map(len, rows.values())):,} answers again, each alone, in "
                f"{self.config.dtype} on {engine.device_kind}"
            )
            monitor.begin(rows_done=0, rows_expected=sum(map(len, rows.values())))
            monitor.open({})
            chunks = (
                loader.prepare(chunk, rows[chunk.id])
                for chunk in self._sampled_chunks(shards, rows)
            )
            tables = {
                done.chunk.id: assemble(done, self.task, schema, prefix).take(
                    np.array(rows[done.chunk.id])
                )
                for done in answer(chunks, engine, monitor, stop)
            }
            device = engine.device_kind
        if stop.is_set:
            raise Interrupted(f"{self.output}: the audit was stopped; nothing was changed")
        return pa.concat_tables([tables[chunk] for chunk in sorted(tables)]), device

    def _require_same_model(self) -> Path | None:
        """The model's folder. Raises JobMismatchError where it is not the model that answered."""
        try:
            widths = self.plan.model.widths
            spec, folder = describe_model(self.config, self.plan.input_schema, widths)
        except UsageError as error:  # it could do what is asked when the job was planned
            raise JobMismatchError(f"{self.output}: the model changed: {error}") from None
        now = dataclasses.replace(self.plan, model=spec)
        if found := first_difference(self.plan, now):
            raise JobMismatchError(
                f"{self.output}: {found}; an audit needs the model that answered: put it back"
            )
        return folder

    def _sampled_chunks(
        self, shards: Mapping[ChunkId, Shard], rows: Mapping[ChunkId, tuple[int, ...]]
    ) -> Iterator[Chunk]:
        """Read the input again: the chunks that the sampled rows are in, with the errors of those alone.

        They are whole: what a row draws depends on its place in its chunk. Raises JobMismatchError where
        the input is not what the shards were made from.
        """
        segments = list(self.plan.segments)
        for index in sorted({chunk.segment for chunk in rows}):
            segments[index], changes = as_it_is_now(segments[index])
            if changes:
                raise changes[0]
        for span in retry_spans(segments, shards, rows):
            with closing(read_chunks(span, self.plan.chunk_rows, self.plan.read_options)) as chunks:
                for chunk in chunks:
                    if chunk.id in rows:
                        require_same(chunk, shards[chunk.id], span.segment)
                        chosen, errors = rows[chunk.id], chunk.errors
                        kept = {row: errors[row] for row in chosen if row in errors}
                        yield dataclasses.replace(chunk, errors=kept)


def _plainest(plan: Plan, device: str) -> RunConfig:
    """The job's configuration, answered by transformers itself as far as that can be."""
    config = plan.config
    update = {
        "device": device,
        "devices": None,
        "executor": "auto",
        **(
            {}
            if device == "auto"
            else dict.fromkeys(("device_map", "max_memory", "offload_folder"))
        ),
        "attention": "auto",
        "compile": False,
        "threads": None,
        "streams": None,
    }
    if config.engine != "fake":
        update["engine"] = "local"
        # A quantised model has no weights in float32 that it could be compared with.
        update["dtype"] = plan.model.dtype or "float32"
    return config.model_copy(update=update)
