"""The rows once more, each alone, and what was written beside what comes out."""

from __future__ import annotations

import dataclasses
import logging
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.auditing.differences import (
    Difference,
    difference,
    holds_floats,
    holds_more_than_floats,
    is_vector,
)
from batchinfer.auditing.report import Audit, Change, ChangedRow, ColumnAudit, Limits
from batchinfer.auditing.sampling import choose_rows, committed_shards
from batchinfer.config import RunConfig
from batchinfer.core import ERROR, ROW, SOURCE, BatchBudget, Chunk, ChunkId, Shard, retry_spans
from batchinfer.engines import create_encoder, create_engine, describe_model
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.inputs import as_it_is_now, require_same
from batchinfer.loader import Loader
from batchinfer.plan import Plan, first_difference
from batchinfer.planning import check_schemas
from batchinfer.readers import read_chunks
from batchinfer.reporting.progress import Progress, Silent
from batchinfer.runner import require_consent
from batchinfer.tasks import Task, create_task
from batchinfer.tuning.accuracy import MAX_FLIPS, MAX_MOVEMENT, MIN_COSINE
from batchinfer.worker import StopSignal, answer
from batchinfer.writers.footer import read_columns
from batchinfer.writers.run_folder import refuse_live, require_plan
from batchinfer.writers.shard import assemble

log = logging.getLogger("batchinfer")

#: Rows that are shown.
MAX_ROWS = 10


def audit(
    output: str | os.PathLike[str],
    *,
    sample: int = 200,
    seed: int = 0,
    device: str = "auto",
    max_flips: float = MAX_FLIPS,
    max_difference: float = MAX_MOVEMENT,
    min_cosine: float = MIN_COSINE,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
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
    limits = Limits(max_flips, max_difference, min_cosine)
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
        auditor = _Auditor(Path(output), plan, device, limits)
        return auditor.audit(sample, seed, progress or Silent(), stop or StopSignal())
    except OSError as error:
        raise StorageError(f"{error.filename or output}: {error.strerror or error}") from error


class _Auditor:
    """One audit of a run folder."""

    def __init__(self, output: Path, plan: Plan, device: str, limits: Limits) -> None:
        self.output, self.plan, self.limits = output, plan, limits
        self.config = _plainest(plan, device)
        self.task = create_task(plan.model, plan.config, plan.input_schema)
        if why := self.task.obstacle_to_audit:
            raise UsageError(f"{output}: --task {self.task.name} cannot be audited: {why}")
        prefix = plan.config.output_prefix
        self.made = [prefix + field.name for field in self.task.columns]

    def audit(self, sample: int, seed: int, progress: Progress, stop: StopSignal) -> Audit:
        """Draw rows, compute them again, and compare."""
        shards = committed_shards(self.output, self.plan)
        rows = choose_rows(shards, sample, seed)
        if not rows:
            raise UsageError(
                f"{self.output}: no row has an answer yet, so there is nothing to audit"
            )
        written = pa.concat_tables([self._written(shards[i], rows[i]) for i in sorted(rows)])
        fresh, device = self._recompute(shards, rows, progress, stop)
        compared = _Comparison(self.plan, self.task, self.made, self.limits, written, fresh)
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
        table = read_columns(Path(shard.path), [SOURCE, ROW, *self.made, ERROR])
        return table.take(np.array(rows)).select([SOURCE, ROW, *self.made, ERROR])

    def _recompute(
        self,
        shards: Mapping[ChunkId, Shard],
        rows: Mapping[ChunkId, tuple[int, ...]],
        progress: Progress,
        stop: StopSignal,
    ) -> tuple[pa.Table, str]:
        """These rows' answers, in input order, and the kind of device that gave them."""
        folder = self._require_same_model()
        schema = pa.schema(
            [self.plan.output_schema.field(name) for name in (SOURCE, ROW, *self.made, ERROR)]
        )
        with closing(create_engine(self.config, self.task, folder, plain=True)) as engine:
            encoder = create_encoder(self.config, self.plan.model, folder)
            options, budget = self.plan.read_options, BatchBudget(1, 1)
            loader = Loader(self.task, encoder, budget, self.plan.chunk_rows, options)
            log.info(
                f"{self.output}: computing {sum(map(len, rows.values())):,} answers again, each alone, in "
                f"{self.config.dtype} on {engine.device_kind}"
            )
            progress.begin(rows_done=0, rows_expected=sum(map(len, rows.values())))
            chunks = map(loader.prepare, self._sampled_chunks(shards, rows))
            try:
                answered = list(answer(chunks, engine, progress, stop))
            finally:
                progress.end()
            device = engine.device_kind
        if stop.is_set:
            raise Interrupted(f"{self.output}: the audit was stopped; nothing was changed")
        answered.sort(key=lambda done: done.chunk.id)
        prefix = self.plan.config.output_prefix
        return pa.concat_tables([assemble(a, self.task, schema, prefix) for a in answered]), device

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
        """Read the input again: chunks that hold the sampled rows only.

        Raises JobMismatchError where it is not what the shards were made from.
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
                        yield _rows_of(chunk, rows[chunk.id])


def _plainest(plan: Plan, device: str) -> RunConfig:
    """The job's configuration, answered by transformers itself as far as that can be."""
    config = plan.config
    update = {
        "device": device,
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


def _rows_of(chunk: Chunk, rows: Sequence[int]) -> Chunk:
    """These rows of a chunk, as one of their own."""
    errors = {new: chunk.errors[old] for new, old in enumerate(rows) if old in chunk.errors}
    return dataclasses.replace(chunk, table=chunk.table.take(np.array(rows)), errors=errors)


class _Comparison:
    """What was written beside what was computed again: two tables of the same rows."""

    def __init__(
        self,
        plan: Plan,
        task: Task,
        made: Sequence[str],
        limits: Limits,
        written: pa.Table,
        fresh: pa.Table,
    ) -> None:
        self.limits = limits
        self.files: list[Any] = written.column(SOURCE).to_pylist()
        self.rows: list[Any] = written.column(ROW).to_pylist()
        errors = fresh.column(ERROR).to_pylist()
        #: Why rows cannot be answered now, by row.
        self.failed = {row: why for row, why in enumerate(errors) if why is not None}
        self.parts = []
        for names in _together(made, task, plan.config.output_prefix):
            kind, before = _values(plan.output_schema, written, names)
            _, after = _values(plan.output_schema, fresh, names)
            self.parts.append(_Part(", ".join(names), kind, before, after, self.failed))

    @property
    def changed(self) -> list[int]:
        """Rows that differ in anything."""
        return [
            row
            for row in range(len(self.rows))
            if row in self.failed or not all(part.differences[row].is_none for part in self.parts)
        ]

    def columns(self) -> Iterator[ColumnAudit]:
        """What to say of each column."""
        for part in self.parts:
            yield part.audited(self.limits)

    def worst(self) -> Iterator[ChangedRow]:
        """The rows that are furthest off, those first."""

        def badness(row: int) -> float:
            if row in self.failed:
                return float("inf")
            return max(self.limits.badness(p.differences[row], p.scale) for p in self.parts)

        for row in sorted(self.changed, key=badness, reverse=True)[:MAX_ROWS]:
            if row in self.failed:
                changes = [Change(ERROR, "none", _short(self.failed[row]))]
            else:
                changes = [p.change(row) for p in self.parts if not p.differences[row].is_none]
                changes = [change for change in changes if change.before != change.after]
            if changes:  # of the last bits there is nothing to show
                yield ChangedRow(self.files[row], self.rows[row], tuple(changes))


class _Part:
    """A column, or several that belong together, beside what was computed again."""

    def __init__(
        self,
        name: str,
        kind: Any,
        before: Sequence[Any],
        after: Sequence[Any],
        failed: Mapping[int, str],
    ) -> None:
        self.name, self.kind, self.before, self.after = name, kind, before, after
        #: By row; of rows that cannot be answered now there is nothing to compare.
        self.differences = [
            Difference() if row in failed else difference(kind, *pair)
            for row, pair in enumerate(zip(before, after, strict=True))
        ]
        #: What a movement is measured by: 1, or the largest float where they go beyond.
        self.scale = max(1.0, self._largest("size"))

    def _largest(self, name: str) -> float:
        return max((float(getattr(one, name)) for one in self.differences), default=0.0)

    def audited(self, limits: Limits) -> ColumnAudit:
        """What to say of it, and whether it is near enough."""
        flips = sum(one.flipped for one in self.differences)
        cosines = [one.cosine for one in self.differences if one.cosine is not None]
        has_floats, has_cosine = holds_floats(self.kind), is_vector(self.kind)
        smallest, moved = min(cosines, default=1.0), self._largest("moved")
        complaint = ""
        if flips > limits.max_flips * len(self.differences):
            rows = len(self.differences)
            complaint = f"{flips:,} of {rows:,} rows differ, more than {limits.max_flips:.1%}"
        elif has_cosine and smallest < limits.min_cosine:
            complaint = f"smallest cosine {smallest:.6f}, below {limits.min_cosine}"
        elif not has_cosine and moved > limits.max_difference * self.scale:
            by = f" by a scale of {self.scale:.3g}" if self.scale > 1 else ""
            complaint = f"moved by {moved:.3g}{by}, more than {limits.max_difference}"
        return ColumnAudit(
            column=self.name,
            flips=flips if flips or holds_more_than_floats(self.kind) else None,
            largest_difference=moved if has_floats else None,
            largest_relative=self._largest("relative") if has_floats else None,
            smallest_cosine=smallest if has_cosine else None,
            complaint=complaint,
        )

    def change(self, row: int) -> Change:
        """A row's value before and after."""
        found = self.differences[row]
        if found.cosine is not None:
            return Change(self.name, "a vector", f"one at a cosine of {found.cosine:.6f}")
        return Change(self.name, _short(self.before[row]), _short(self.after[row]))


def _together(made: Sequence[str], task: Task, prefix: str) -> Iterator[list[str]]:
    """Columns as they are compared: each alone, but for lists that belong together, item by item."""
    parallel = [prefix + name for name in task.parallel_lists]
    for name in made:
        if name not in parallel:
            yield [name]
        elif name == parallel[0]:
            yield parallel


def _values(schema: pa.Schema, table: pa.Table, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """The type and the values of a column; of several lists, as lists of structs."""
    kinds: list[Any] = [schema.field(name).type for name in names]
    columns = [table.column(name).to_pylist() for name in names]
    if len(names) == 1:
        return kinds[0], columns[0]
    items = pa.list_(pa.struct([(n, k.value_type) for n, k in zip(names, kinds, strict=True)]))
    return items, [_zipped(names, row) for row in zip(*columns, strict=True)]


def _zipped(names: Sequence[str], lists: Iterable[Any]) -> list[dict[str, Any]] | None:
    parts = list(lists)
    if any(part is None for part in parts):
        return None
    return [dict(zip(names, item, strict=True)) for item in zip(*parts, strict=True)]


def _short(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else _limited.repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


_limited = reprlib.Repr()
_limited.maxlist, _limited.maxdict, _limited.maxlevel, _limited.maxother = 3, 6, 4, 20
