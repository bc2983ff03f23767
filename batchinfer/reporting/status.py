"""How far a run is, read from the folder without its lock."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchinfer.core import pending_spans
from batchinfer.reporting.events import events_name, last_progress
from batchinfer.reporting.progress import duration
from batchinfer.reporting.snapshot import memory_text
from batchinfer.storage import place_of_output
from batchinfer.writers.holders import describe_holder, is_locked, live_runs
from batchinfer.writers.run_folder import SUCCESS, list_shards, require_plan


@dataclass(frozen=True, slots=True)
class Status:
    """A run folder as it is now. `state` is finished, running or stopped.

    `num_rows` and the other counts are of durable shards. `runs`: of each run that is at work here, the
    last `progress` line of its events file (docs/watching.md names the fields), and `age_seconds`, how long
    ago that was written.
    """

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
    runs: tuple[dict[str, Any], ...] = ()

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
        lines += [f"  {_run_line(run)}" for run in self.runs]
        if self.state == "stopped":
            lines.append(f"  go on with: batchinfer resume {self.output}")
        return "\n".join(lines)


def _run_line(run: dict[str, Any]) -> str:
    """What a run said of itself last."""
    parts = [
        f"at row {run['rows_done'] + run['rows']:,}",
        f"{run['recent_rows_per_second']:,.0f} rows/s",
        f"{run['recent_tokens_per_second']:,.0f} tokens/s",
        f"{run['errors']:,} errors",
    ]
    if run["splits"]:
        parts.append(f"{run['splits']:,} batches halved for want of memory")
    if run["waiting"] is not None:
        parts.append(f"device busy {100 * run['waiting']['device']:.0f} %")
        if run["waiting"]["what"] != "device":
            parts.append(f"waits for the {run['waiting']['what']}")
    if run["device_memory_bytes"] is not None:
        parts.append(memory_text(run["device_memory_bytes"], run["device_memory_total_bytes"]))
    if run["seconds_left"] is not None:
        parts.append(f"about {duration(run['seconds_left'])} left")
    return ", ".join(parts) + f" ({duration(run['age_seconds'])} ago)"


def read_status(output: str) -> Status:
    """Look at a run folder. Raises UsageError where it is none."""
    plan = require_plan(output)
    running = is_locked(output)  # asked first: a run that ends meanwhile has finished, not stopped
    shards = {shard.id: shard for shard in list_shards(output)}
    incomplete = {span.segment.index for span in pending_spans(plan.segments, shards)}
    finished = not incomplete and (place_of_output(output) / "data" / SUCCESS).exists()
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
        runs=tuple(_runs(output)) if running else (),
    )


def _runs(output: str) -> Iterator[dict[str, Any]]:
    """What the live runs of a folder said last. One that is loading its model has said nothing yet."""
    for folder, run_id in live_runs(output):
        said = last_progress(folder / events_name(run_id))
        if said is None:
            continue
        try:
            age = time.time() - datetime.fromisoformat(said["time"]).timestamp()
            run = {"run_id": run_id, **said, "age_seconds": round(max(0.0, age), 1)}
            _run_line(run)
        except (KeyError, TypeError, ValueError):  # written by another version
            continue
        yield run
