"""What verify() found, as data and as text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from batchinfer.readers.base import shown

FINDINGS = 65
#: Findings that are printed; `--json` has them all.
MAX_LINES = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be: in which file, what, and what to do about it."""

    file: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{shown(self.file)}: {self.what}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. `num_input_rows` is None where the inputs were not all read."""

    output: str
    findings: tuple[Finding, ...]
    num_shards: int = 0
    num_rows: int = 0
    num_input_rows: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 65 where anything was found."""
        return FINDINGS if self.findings else 0

    def to_text(self) -> str:
        """A line a finding, and a last one that sums up."""
        lines = [str(finding) for finding in self.findings[:MAX_LINES]]
        if len(self.findings) > MAX_LINES:
            lines.append(f"… and {len(self.findings) - MAX_LINES:,} more (--json has them all)")
        if self.findings:
            plural = "s" if len(self.findings) > 1 else ""
            lines.append(f"{len(self.findings):,} finding{plural}")
        elif self.num_input_rows is None:
            lines.append(f"{self.num_rows:,} rows out, each once: OK (the inputs were not read)")
        else:
            lines.append(
                f"{self.num_input_rows:,} rows in, {self.num_rows:,} rows out, each once: OK"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}
