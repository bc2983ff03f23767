"""The work of `batchinfer tune` behind its flags; apart, so that other commands do not import it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from batchinfer.config import RunConfig
from batchinfer.profiles import UNITS
from batchinfer.tuning.display import LiveTable, LogTable, SilentTable
from batchinfer.tuning.plot import check_plot_path, curve_of, sized_by, write_plot
from batchinfer.tuning.result import TuneReport, next_command
from batchinfer.tuning.tune import require_writable, tune


def run_tune(
    config: RunConfig,
    *,
    max_seconds: float,
    plot: str | None,
    shows_table: bool,
    shows_lines: bool,
    command: tuple[Sequence[str], Mapping[str, Any], str | None],
) -> TuneReport:
    """Tune, show it as it goes on, and draw the plot; `command`: inputs, flags and file, as given.

    Raises what `tune` raises, and UsageError or StorageError for a plot that cannot be drawn.
    """
    if plot is not None:
        check_plot_path(plot)
        require_writable(Path(plot), "the plot", "name another with --plot")
    table = LiveTable() if shows_table else LogTable() if shows_lines else SilentTable()
    with closing(table):
        report = tune(config, max_seconds=max_seconds, listener=table)
    if plot is not None:
        title = f"{report.model}: {report.profile.engine} in {report.profile.dtype}"
        write_plot(curve_of(report.profile), UNITS[sized_by(report.profile)], title, plot)
    inputs, flags, file = command
    return dataclasses.replace(report, next_command=next_command(inputs, flags, file, config))
