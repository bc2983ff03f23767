"""The charts of a report that are drawn over time: throughput, memory, waiting.

The axis is working time, over all runs of the folder; the pauses between them are shaded, and short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.reporting.overview.drawing import (
    ACCENT,
    SECOND,
    SHADE,
    Chart,
    new_figure,
    ticks,
    to_chart,
)
from batchinfer.reporting.overview.facts import Facts
from batchinfer.reporting.overview.history import Moment, PastRun
from batchinfer.reporting.progress import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GIB = 1 << 30
#: A pause between runs is drawn as this share of the time at work, however long it was.
_PAUSE = 0.05
#: More than these get no names of their own.
_MAX_NAMED_PAUSES = 3


@dataclass(frozen=True, slots=True)
class _Clock:
    """Where moments stand on an axis of working time, on which pauses are short."""

    spans: Sequence[tuple[float, float]]
    unit: float
    pause: float

    def at(self, time: float) -> float:
        """The place of a moment, in `unit`s."""
        passed = 0.0
        for start, end in self.spans:
            if time <= end:
                return (passed + max(0.0, time - start)) / self.unit
            passed += end - start + self.pause
        return (passed - self.pause) / self.unit

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """Where each pause begins and ends."""
        places, passed = [], 0.0
        for start, end in self.spans[:-1]:
            passed += end - start
            places.append((passed / self.unit, (passed + self.pause) / self.unit))
            passed += self.pause
        return places


def _clock_of(facts: Facts) -> tuple[_Clock, str]:
    spans = facts.spans
    total = sum(end - start for start, end in spans)
    unit, name = next(
        (size, name)
        for least, size, name in (
            (3 * 86400, 86400.0, "days"), (3 * 3600, 3600.0, "hours"), (180, 60.0, "minutes"),
            (0, 1.0, "seconds"),
        )
        if total >= least
    )  # fmt: skip
    pause = min(_PAUSE, 0.3 / max(1, len(spans) - 1)) * total
    return _Clock(spans, unit, pause), name


def _over_time(
    facts: Facts,
    panels: Sequence[tuple[str, Sequence[tuple[str, Callable[[Moment], float | None]]]]],
) -> tuple[Figure, list[Axes]] | None:
    """Lines over working time, a panel each for a name of an axis; None where nothing is known."""
    runs = [run for run in facts.runs if len(run.moments) > 1]
    if not any(len(run.moments) > 2 for run in runs):  # two points make no curve
        return None
    known = [
        any(value(m) is not None for run in runs for m in run.moments for _, value in lines)
        for _, lines in panels
    ]
    panels = [panel for panel, is_known in zip(panels, known, strict=True) if is_known]
    if not panels:
        return None
    clock, unit = _clock_of(facts)
    figure, axes = new_figure(0.7 + 1.55 * len(panels), len(panels))
    for panel, (label, lines) in zip(axes, panels, strict=True):
        for number, (name, value) in enumerate(lines):
            color, dashes = ((ACCENT, "-"), (SECOND, "--"))[number % 2]
            for run in runs:
                _line(panel, clock, run, value, color, dashes, name)
            name = ""
        _pauses(panel, clock, facts)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.grid(axis="y")
        ticks(panel.yaxis, whole=False)
        if len(lines) > 1:
            handles, names = panel.get_legend_handles_labels()
            named = dict(zip(names, handles, strict=True))
            panel.legend(named.values(), named, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    ticks(axes[-1].xaxis, whole=False)
    shaded = "; shaded: pauses, not to scale" if clock.pauses else ""
    axes[-1].set_xlabel(f"working time, {unit}{shaded}")
    axes[-1].set_xlim(0, clock.at(clock.spans[-1][1]) or 1)
    return figure, axes


def _line(
    panel: Axes,
    clock: _Clock,
    run: PastRun,
    value: Callable[[Moment], float | None],
    color: str,
    dashes: str,
    name: str,
) -> None:
    points = [(m.seconds, found) for m in run.moments if (found := value(m)) is not None]
    if points and points[0][0] == 0 and len(points) > 1:  # nothing is known yet where work begins
        points = [(0.0, points[1][1]), *points[1:]]
    places = [clock.at(run.work_began + seconds) for seconds, _ in points]
    panel.plot(places, [y for _, y in points], dashes, color=color, linewidth=1.6, label=name)


def _pauses(panel: Axes, clock: _Clock, facts: Facts) -> None:
    spans = clock.spans
    for number, (start, end) in enumerate(clock.pauses):
        panel.axvspan(start, end, facecolor=SHADE, linewidth=0)
        if len(clock.pauses) <= _MAX_NAMED_PAUSES:
            text = duration(spans[number + 1][0] - spans[number][1])
            middle = (start + end) / 2
            panel.text(
                middle, 0.5, text, rotation=90, ha="center", va="center", fontsize=8.5,
                transform=panel.get_xaxis_transform(),
            )  # fmt: skip


def throughput(facts: Facts) -> Chart | None:
    drawn = _over_time(
        facts,
        (
            ("tokens/s", [("tokens", lambda m: m.tokens_per_second)]),
            ("rows/s", [("rows", lambda m: m.rows_per_second)]),
        ),
    )
    if drawn is None:
        return None
    tokens, rows = facts.work.tokens_per_second or 0, facts.work.rows_per_second or 0
    pauses = len(facts.spans) - 1
    stops = "" if not pauses else f", with {pauses} pause{'' if pauses == 1 else 's'} between runs"
    caption = (
        f"{tokens:,.0f} tokens and {rows:,.0f} rows a second on average{stops}. Each point is the rate "
        "since the one before."
    )
    return to_chart(drawn[0], "throughput", "Throughput over time", caption)


def memory(facts: Facts) -> Chart | None:
    drawn = _over_time(
        facts,
        (
            (
                "device, GiB",
                [
                    ("in use at most", lambda m: _gib(m.device_memory_bytes)),
                    ("there is", lambda m: _gib(m.device_memory_total_bytes)),
                ],
            ),
            ("process, GiB", [("resident", lambda m: _gib(m.memory_bytes))]),
        ),
    )
    if drawn is None:
        return None
    moments = [moment for run in facts.runs for moment in run.moments]
    parts = []
    if device := max((m.device_memory_bytes or 0 for m in moments), default=0):
        parts.append(f"the device held at most {device / _GIB:,.1f} GiB")
    if process := max((m.memory_bytes or 0 for m in moments), default=0):
        parts.append(f"the main process at most {process / _GIB:,.2f} GiB")
    if machine := max((run.memory_bytes for run in facts.runs), default=0):
        parts.append(f"the machine has {machine / _GIB:,.0f} GiB")
    if splits := sum(run.splits for run in facts.runs):
        parts.append(f"{splits:,} batches were halved for want of memory")
    said = ", ".join(parts)
    return to_chart(drawn[0], "memory", "Memory over time", said[:1].upper() + said[1:] + ".")


def _gib(value: float | None) -> float | None:
    return None if value is None else value / _GIB


def waiting(facts: Facts) -> Chart | None:
    drawn = _over_time(
        facts,
        (
            (
                "share of the time, %",
                [
                    ("for input", lambda m: _percent(m.wait_input)),
                    ("for the writer", lambda m: _percent(m.wait_writer)),
                ],
            ),
        ),
    )
    if drawn is None:
        return None
    drawn[1][0].set_ylim(0, 100)
    moments = [m for run in facts.runs for m in run.moments if m.wait_input is not None]
    most = max((m.wait_input or 0.0 for m in moments), default=0.0)
    caption = (
        f"The share of the time in which the device had nothing to do: at most {100 * most:.0f} % of an "
        "interval for input (more --workers help), and for the writer (a slow disk, or wide rows)."
    )
    return to_chart(drawn[0], "waiting", "What the device waited for, over time", caption)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
