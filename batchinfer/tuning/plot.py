"""Throughput and latency over the size of batches: as bars of text, and as an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchinfer.errors import StorageError, UsageError, one_line
from batchinfer.profiles import Profile, Size
from batchinfer.tuning.verdicts import OUT_OF_MEMORY, is_of, size_of

EXTENSIONS = (".png", ".svg")
#: Below this, bars say nothing that the figures beside them do not.
_MIN_BAR = 4
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Point:
    """One size of batches of the chosen setting, in tokens or rows; `latency` of a batch in seconds."""

    size: int
    tokens_per_second: float
    latency: float
    is_chosen: bool


def sized_by(profile: Profile) -> Size:
    """The setting that is a batch's size: rows, where it was those that were tried."""
    sizes = {trial.settings.max_batch_rows for trial in profile.trials}
    return "max_batch_rows" if len(sizes - {None}) > 1 else "max_batch_tokens"


def curve_of(profile: Profile) -> list[Point]:
    """The sizes that were tried with the engine, precision, attention, threads and streams chosen."""
    chosen = next((t for t in profile.trials if t.verdict == "chosen"), None)
    if chosen is None:
        return []
    found = {}
    for trial in profile.trials:
        a, b = trial.settings, chosen.settings
        is_measured = trial.tokens_per_second > 0 and trial.verdict != OUT_OF_MEMORY
        if (
            is_of(trial, chosen)
            and is_measured
            and a.threads in (None, b.threads)
            and a.streams in (None, b.streams)
            and (size := size_of(trial, sized_by(profile)))
        ):
            # Sizes were tried before threads and streams: of several, the last one counts.
            found[size] = Point(size, trial.tokens_per_second, trial.latency, trial is chosen)
    return [found[size] for size in sorted(found)]


def text_plot(
    points: Sequence[Point], unit: str, width: int, *, ascii_only: bool = False
) -> list[str]:
    """The curve as lines of at most `width` characters, without codes for colours."""
    if not points:
        return []
    sizes = [f"{p.size:,}" for p in points]
    rates = [f"{p.tokens_per_second:,.0f}" for p in points]
    waits = [milliseconds(p.latency) for p in points]
    left = max(len(unit), *map(len, sizes))
    middle = max(len("tokens/s"), *map(len, rates))
    right = max(len("a batch"), *map(len, waits))
    room = (width - left - middle - right - len("  " * 4) - 2) // 2
    if room < _MIN_BAR:
        room = 0
    lines = [
        f"  {unit:>{left}}  {'tokens/s':>{middle}} {'':<{room}}  {'a batch':>{right}}".rstrip()
    ]
    most = max(p.tokens_per_second for p in points)
    longest = max(p.latency for p in points)
    mark = ("*" if ascii_only else "▸") + " "
    for point, size, rate, wait in zip(points, sizes, rates, waits, strict=True):
        fast = bar(point.tokens_per_second / most, room, ascii_only)
        slow = bar(point.latency / longest if longest else 0.0, room, ascii_only)
        start = mark if point.is_chosen else "  "
        lines.append(
            f"{start}{size:>{left}}  {rate:>{middle}} {fast}  {wait:>{right}} {slow}".rstrip()
        )
    return lines


def check_plot_path(path: str) -> None:
    """See that a plot can be written there, before anything is measured. Raises UsageError."""
    if Path(path).suffix.lower() not in EXTENSIONS:
        raise UsageError(f"--plot {path}: should end in {' or '.join(EXTENSIONS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: pip install 'batchinfer[report]', or leave it out: the plot is "
            "also shown in the terminal"
        ) from None


def write_plot(points: Sequence[Point], unit: str, title: str, path: str) -> None:
    """Write the curve as PNG or SVG, by the file's name. Raises StorageError."""
    from matplotlib.figure import Figure

    sizes = [p.size for p in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    speed = figure.add_subplot()
    wait = speed.twinx()
    [rates] = speed.plot(sizes, [p.tokens_per_second for p in points], "o-", color="tab:blue")
    [waits] = wait.plot(sizes, [p.latency * 1000 for p in points], "s--", color="tab:orange")
    speed.set_xscale("log", base=2)
    speed.set_xticks(sizes, [f"{size:,}" for size in sizes])
    speed.set_ylim(bottom=0)
    wait.set_ylim(bottom=0)
    speed.set_xlabel(f"{unit} a batch")
    speed.set_ylabel("tokens/s")
    wait.set_ylabel("a batch, ms")
    for point in points:
        if point.is_chosen:
            speed.axvline(point.size, color="tab:gray", linewidth=0.8, zorder=0)
    speed.legend([rates, waits], ["throughput", "latency"], loc="lower right")
    speed.set_title(title)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(
            f"the plot cannot be written: {error.strerror or one_line(error)}", file=path
        ) from None


def milliseconds(seconds: float) -> str:
    """A latency for people."""
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"


def bar(share: float, width: int, ascii_only: bool) -> str:
    """A bar of at most `width` characters, padded to it."""
    eighths = round(share * width * 8)
    if ascii_only:
        return ("#" * round(eighths / 8)).ljust(width)
    rest = _EIGHTHS[eighths % 8] if eighths % 8 else ""
    return ("█" * (eighths // 8) + rest).ljust(width)
