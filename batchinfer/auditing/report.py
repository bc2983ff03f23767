"""What audit() found: by column, and the rows that are furthest off; as data and as text."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from batchinfer.auditing.differences import Difference
from batchinfer.errors import UsageError
from batchinfer.readers.base import shown
from batchinfer.tuning.accuracy import MAX_FLIPS, MAX_MOVEMENT, MAX_OTHER_WORDS, MIN_COSINE

#: As for a run with too many row errors: it ended, and not as it must.
BEYOND = 65
_HEADINGS = ("column", "flips", "largest difference", "relative", "smallest cosine", "other words")


@dataclass(frozen=True, slots=True)
class Limits:
    """How far answers may be from those computed again; what `tune` allows, unless told otherwise.

    `max_flips`: the share of rows whose label, or whatever is no float, may differ. `max_difference`: how
    far a float may move; where a column's go beyond 1, as a share of the largest. `min_cosine`: of
    vectors, which are judged by nothing else. `max_other_words`: of texts that the model writes, and of
    words that it fills in, the share that may begin with another word; `max_flips` is not for them.
    Raises UsageError for what is no such number.
    """

    max_flips: float = MAX_FLIPS
    max_difference: float = MAX_MOVEMENT
    min_cosine: float = MIN_COSINE
    max_other_words: float = MAX_OTHER_WORDS

    def __post_init__(self) -> None:
        for name, value, most in (
            ("--max-flips", self.max_flips, 1.0),
            ("--max-difference", self.max_difference, math.inf),
            ("--min-cosine", self.min_cosine, 1.0),
            ("--max-other-words", self.max_other_words, 1.0),
        ):
            if not 0 <= value <= most:  # NaN is not
                end = "0 or more" if math.isinf(most) else f"from 0 to {most:.0f}"
                raise UsageError(f"{name}: should be {end}, got {value}")

    def badness(self, difference: Difference, scale: float) -> float:
        """How far off a value is, as a multiple of what is allowed; a flip counts more than all else."""
        if difference.flipped:
            return math.inf
        if difference.cosine is not None:
            return (1.0 - difference.cosine) / max(1.0 - self.min_cosine, 1e-12)
        return difference.moved / scale / max(self.max_difference, 1e-12)


@dataclass(frozen=True, slots=True)
class ColumnAudit:
    """A column beside what was computed again.

    `flips`: rows in which it differs in what is no float; None where there are only floats.
    `largest_difference`, `largest_relative`: of its floats; None where it has none.
    `smallest_cosine`: of its vectors, else None. `other_words`: rows whose text begins with another
    word, where that is what counts, else None. `complaint`: why that is not near enough, or "".
    """

    column: str
    flips: int | None
    largest_difference: float | None
    largest_relative: float | None
    smallest_cosine: float | None
    other_words: int | None = None
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A value as it was written, and as it was computed again, both in a few words."""

    column: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.column}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row of the input whose answer is not the same: `row` is 0-based in `file`, as `_row` is."""

    file: str
    row: int
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.row}  {'; '.join(map(str, self.changes))}"


@dataclass(frozen=True, slots=True)
class Audit:
    """What `audit` found.

    `num_rows` of the `num_answered` rows that have an answer were computed again, `num_changed` of them
    differ in anything, and `num_failed` have no answer now, though they had one. `engine`, `dtype`:
    those of the run; `reference`: the precision in which rows were computed again, on `device`.
    `worst`: the rows that are furthest off, those first.
    """

    output: str
    num_rows: int
    num_answered: int
    num_changed: int
    num_failed: int
    engine: str
    dtype: str
    reference: str
    device: str
    seed: int
    limits: Limits
    columns: tuple[ColumnAudit, ...]
    worst: tuple[ChangedRow, ...]

    @property
    def complaints(self) -> list[str]:
        """Why the answers do not hold; none where they do."""
        found = [
            f"{column.column}: {column.complaint}" for column in self.columns if column.complaint
        ]
        if self.num_failed:
            found.append(
                f"rows that have an answer and cannot be answered again: {self.num_failed:,}"
            )
        return found

    @property
    def exit_code(self) -> int:
        """0, or 65 where the answers are further off than the limits allow."""
        return BEYOND if self.complaints else 0

    def to_text(self) -> str:
        """A table by column, the worst rows, and a last line that sums up."""
        rows = [_HEADINGS, *(self._cells(column) for column in self.columns)]
        if all(column.other_words is None for column in self.columns):
            rows = [row[:-1] for row in rows]
        lines = _aligned(rows)
        if self.worst:
            lines += ["", f"furthest off, as written -> as {self.reference} alone says:"]
            lines += [f"  {row}" for row in self.worst]
        lines += ["", *self.complaints]
        summary = (
            f"{self.num_rows:,} of {self.num_answered:,} answers of {self.engine} in {self.dtype} computed "
            f"again, each alone, in {self.reference} on {self.device}: "
        )
        if self.complaints:
            summary += "they do not hold"
        elif self.num_changed:
            summary += "they hold"
        else:
            summary += "they are the same to the last bit"
        return "\n".join([*lines, summary])

    def _cells(self, column: ColumnAudit) -> tuple[str, ...]:
        def text(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        def share(count: int | None) -> str:
            return "-" if count is None else f"{count:,} ({count / self.num_rows:.1%})"

        return (
            shown(column.column),
            share(column.flips),
            text(column.largest_difference, ".3g"),
            text(column.largest_relative, ".2%"),
            text(column.smallest_cosine, ".6f"),
            share(column.other_words),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            **dataclasses.asdict(self),
            "complaints": self.complaints,
            "exit_code": self.exit_code,
        }


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
