"""What a job would find in its run folder, and what of it is left; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget, ChunkId, Shard, Span, pending_spans
from batchinfer.forecasting.pipeline import chunk_rows_of
from batchinfer.inputs import check_inputs
from batchinfer.plan import Plan
from batchinfer.planning import make_plan
from batchinfer.sharing import Part, Share, part_of
from batchinfer.writers.claims import (
    refuse_foreign_folder,
    refuse_increments,
    refuse_other_job,
    refuse_part_that_overwrites,
)
from batchinfer.writers.holders import refuse_live
from batchinfer.writers.run_folder import RunFolder, list_shards, load_plan


@dataclass(frozen=True)
class JobAsItIs:
    """A job, and what of it is left. `chunk_rows`: the rows of each chunk."""

    plan: Plan
    model_folder: Path | None
    action: str
    part: Part | None
    rows_done: int
    spans: Sequence[Span]
    chunk_rows: Sequence[int]

    @classmethod
    def of(cls, config: RunConfig, *, overwrite: bool) -> JobAsItIs:
        """What `run` would find; raises what it would raise."""
        refuse_foreign_folder(config.output)
        part = part_of(config.shard, os.environ)
        refuse_part_that_overwrites(part, overwrite)
        config = config.model_copy(update={"shard": None})
        held = load_plan(config.output) if config.output else None
        if held is not None and part is None:
            refuse_live(config.output, "plan")
        is_kept = held is not None and not overwrite
        if held is not None and is_kept:
            refuse_increments(held, config.output)
        plan, model_folder = make_plan(config, held if is_kept else None, is_rehearsal=True)
        shards: dict[ChunkId, Shard] = {}
        if held is not None and is_kept:
            refuse_other_job(held, plan)
            shards = {shard.id: shard for shard in list_shards(config.output)}
            plan = check_inputs(plan.as_held(held), shards)
        spans = list(pending_spans(plan.segments, shards))
        if part is not None:
            share = Share.of(part, plan.segments, plan.num_rows_estimate, plan.chunk_rows)
            spans = list(share.of_spans(spans))
            shards = {id: shard for id, shard in shards.items() if id in share}
        counts = chunk_rows_of(spans, plan.segments, plan.num_rows_estimate, plan.chunk_rows)
        if part is not None:  # nobody expects rows behind the last chunk of a part
            counts = [rows for rows in counts if rows] or counts[:1]
        action = "begin" if config.output else ""
        if held is not None:
            action = "replace" if overwrite else "join" if part else "resume"
            action = action if spans else "nothing"
        done = sum(shard.num_rows for shard in shards.values())
        return cls(plan, model_folder, action, part, done, spans, counts if spans else [])


class Unwritten(RunFolder):
    """The run folder as far as it goes: what would be frozen in it is not."""

    def __init__(self, job: JobAsItIs) -> None:
        super().__init__(job.plan.config.output or "out")
        self._is_there = job.action in ("resume", "join")

    def frozen_budget(self, device_kind: str) -> BatchBudget | None:
        return super().frozen_budget(device_kind) if self._is_there else None

    def freeze_budget(self, device_kind: str, budget: BatchBudget) -> BatchBudget:
        return budget
