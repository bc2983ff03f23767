"""How far a run is, read from the folder without its lock."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from batchinfer.core import pending_spans
from batchinfer.storage import place_of_output
from batchinfer.writers.run_folder import (
    SUCCESS,
    describe_holder,
    is_locked,
    list_shards,
    require_plan,
)


@dataclass(frozen=True, slots=True)
class Status:
    """A run folder as it is now. `state` is finished, running or stopped."""

    output: str
    state: str
    holder: str
    num_rows: int
    num_rows_estimate: int
    num_errors: int
    num_truncated: int
    num_tokens: int
    num_shards: int
    segments_complete: int
    segments: int
    model: str
    task: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The status for people."""
        rows = f"{self.num_rows:,} rows"
        if self.state != "finished":
            rows += f" of about {max(self.num_rows, self.num_rows_estimate):,}"
        lines = [
            f"{self.output}: {self.state}" + (f" ({self.holder})" if self.holder else ""),
            f"  {rows} in {self.num_shards:,} shards, {self.num_errors:,} with errors, "
            f"{self.num_truncated:,} truncated",
            f"  {self.task} by {self.model}; {self.segments_complete:,} of {self.segments:,} input "
            "segments complete",
        ]
        if self.state == "stopped":
            lines.append(f"  go on with: batchinfer resume {self.output}")
        return "\n".join(lines)


def read_status(output: str) -> Status:
    """Look at a run folder. Raises UsageError where it is none."""
    plan = require_plan(output)
    shards = {shard.id: shard for shard in list_shards(output)}
    incomplete = {span.segment.index for span in pending_spans(plan.segments, shards)}
    finished = not incomplete and (place_of_output(output) / "data" / SUCCESS).exists()
    running = is_locked(output)
    return Status(
        output=output,
        state="running" if running else "finished" if finished else "stopped",
        holder=describe_holder(output) if running else "",
        num_rows=sum(shard.num_rows for shard in shards.values()),
        num_rows_estimate=plan.num_rows_estimate,
        num_errors=sum(shard.num_errors for shard in shards.values()),
        num_truncated=sum(shard.num_truncated for shard in shards.values()),
        num_tokens=sum(shard.num_tokens for shard in shards.values()),
        num_shards=len(shards),
        segments_complete=len(plan.segments) - len(incomplete),
        segments=len(plan.segments),
        model=plan.model.name,
        task=plan.model.task,
    )
