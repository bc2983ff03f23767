"""What was written beside what was computed again: column by column, and the rows that are furthest off."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import pyarrow as pa

from batchinfer.auditing.differences import (
    Difference,
    difference,
    holds_floats,
    holds_more_than_floats,
    is_vector,
)
from batchinfer.auditing.report import Change, ChangedRow, ColumnAudit, Limits
from batchinfer.core import ERROR, ROW, SOURCE
from batchinfer.plan import Plan
from batchinfer.readers.base import shown
from batchinfer.tasks import Task

#: Rows that are shown.
MAX_ROWS = 10
#: Characters of a text's first word that count: about two tokens, also where nobody puts spaces.
_WORD = 8
#: Characters that are shown in front of where two texts part.
_BEFORE_PARTING = 20


class Comparison:
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
        words = [plan.config.output_prefix + name for name in task.word_columns]
        for names in _together(made, task, plan.config.output_prefix):
            kind, before = _values(plan.output_schema, written, names)
            _, after = _values(plan.output_schema, fresh, names)
            part = _Part(", ".join(names), kind, before, after, self.failed)
            if names[0] in words:
                part.hold_words(is_text=names[0] == words[0])
            self.parts.append(part)

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
            return max(part.badness(row, self.limits) for part in self.parts)

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
        #: Whether it is one of the task's `word_columns`; of those flips are told, but not judged.
        self.holds_words = False
        #: By row, whether it is a text that begins with another word; None where that is not asked.
        self.other_words: list[bool] | None = None

    def hold_words(self, *, is_text: bool) -> None:
        """Take it for one of the task's `word_columns`; `is_text`: for the text that the others follow.

        In nearly every long text two tokens are near ties somewhere, and bfloat16 takes the other one.
        So what a text begins with is judged alone: there all that came before was the same.
        """
        self.holds_words = True
        if is_text:
            self.other_words = [
                one.flipped and _first_word(before) != _first_word(after)
                for one, before, after in zip(
                    self.differences, self.before, self.after, strict=True
                )
            ]

    def _largest(self, name: str) -> float:
        return max((float(getattr(one, name)) for one in self.differences), default=0.0)

    def badness(self, row: int, limits: Limits) -> float:
        """How far off a row is, as a multiple of what is allowed."""
        if self.holds_words and not (self.other_words and self.other_words[row]):
            return 0.0
        return limits.badness(self.differences[row], self.scale)

    def audited(self, limits: Limits) -> ColumnAudit:
        """What to say of it, and whether it is near enough."""
        flips = sum(one.flipped for one in self.differences)
        cosines = [one.cosine for one in self.differences if one.cosine is not None]
        has_floats, has_cosine = holds_floats(self.kind), is_vector(self.kind)
        smallest, moved = min(cosines, default=1.0), self._largest("moved")
        rows, complaint = len(self.differences), ""
        others = None if self.other_words is None else sum(self.other_words)
        if others is not None and others > limits.max_other_words * rows:
            complaint = (
                f"{others:,} of {rows:,} rows begin with another word, more than "
                f"{limits.max_other_words:.1%}"
            )
        elif not self.holds_words and flips > limits.max_flips * rows:
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
            other_words=others,
            complaint=complaint,
        )

    def change(self, row: int) -> Change:
        """A row's value before and after."""
        found = self.differences[row]
        if found.cosine is not None:
            return Change(self.name, "a vector", f"one at a cosine of {found.cosine:.6f}")
        return Change(self.name, *map(_short, _parting(self.before[row], self.after[row])))


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


def _first_word(text: str | None) -> str:
    return ((text or "").split(maxsplit=1) or [""])[0][:_WORD]


def _parting(before: Any, after: Any) -> tuple[Any, Any]:
    """Two values; of texts that begin alike, from shortly before they part."""
    if not (isinstance(before, str) and isinstance(after, str)):
        return before, after
    alike = (one == other for one, other in zip(before, after, strict=False))
    start = sum(takewhile(bool, alike)) - _BEFORE_PARTING
    return (before, after) if start <= 0 else ("…" + before[start:], "…" + after[start:])


def _short(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = shown(value) if isinstance(value, str) else _limited.repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


_limited = reprlib.Repr()
_limited.maxlist, _limited.maxdict, _limited.maxlevel, _limited.maxother = 3, 6, 4, 20
