"""How far a run is, in figures, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchinfer.reporting.progress import duration

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Shares of the recent time, 0 to 1: the device waited for `input`, for the `writer`, or was at work.

    `reads`: whether reading the input took longer than tokenizing it.
    """

    input: float
    writer: float
    device: float
    reads: bool = False

    @property
    def what(self) -> str:
        """What all else waits for."""
        if self.device >= max(self.input, self.writer):
            return "device"
        if self.writer >= self.input:
            return "writer"
        return "reader" if self.reads else "tokenizer"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is. `rows`, `tokens` and `errors` are its own; `rows_done` were there before.

    Tokens are useful ones: no padding. `seconds`: since work began. `seconds_left` is told from the tokens
    that are left, None where nobody knows yet. `splits`: batches that were halved for want of memory.
    `padding`: its share of the tokens that were computed, None where nobody knows.
    `device_memory_bytes`: what all devices held at most, None on a CPU; `memory_bytes`: resident, this
    process alone. The fields are those of a line of an events file.
    """

    seconds: float
    rows: int
    tokens: int
    errors: int
    rows_done: int
    rows_expected: int
    rows_per_second: float
    tokens_per_second: float
    recent_rows_per_second: float
    recent_tokens_per_second: float
    seconds_left: float | None
    splits: int
    padding: float | None
    device_memory_bytes: int | None
    device_memory_total_bytes: int | None
    memory_bytes: int
    waiting: Waiting | None

    def to_line(self) -> str:
        """One line for a log."""
        parts = [
            f"{self.rows_done + self.rows:,} of ~{self.rows_expected:,} rows",
            f"{self.recent_rows_per_second:,.0f} rows/s",
            f"{self.recent_tokens_per_second:,.0f} tokens/s",
            f"{self.errors:,} errors",
        ]
        if self.splits:
            parts.append(f"{self.splits:,} batches halved for want of memory")
        if self.waiting is not None:
            parts.append(
                f"device busy {100 * self.waiting.device:.0f} %"
                if self.waiting.what == "device"
                else f"waits for the {self.waiting.what}"
            )
        if self.device_memory_bytes is not None:
            parts.append(memory_text(self.device_memory_bytes, self.device_memory_total_bytes))
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


def memory_text(used: int, total: int | None) -> str:
    """What a device holds, for people."""
    return f"{used / 1e9:.1f} GB" + (f" of {total / 1e9:.0f} GB" if total else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `report`: RunReport's dictionary, None where there is none."""

    state: State
    exit_code: int
    error: str | None = None
    report: Mapping[str, Any] | None = None
