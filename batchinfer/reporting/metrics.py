"""A run as a Prometheus text file, for the textfile collector of node_exporter."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.errors import Interrupted, UsageError
from batchinfer.reporting.monitor import Display
from batchinfer.reporting.snapshot import Outcome, Snapshot

if TYPE_CHECKING:
    from prometheus_client import Gauge


_PREFIX = "batchinfer_"
_FINISHED = "finished_timestamp_seconds"
_ROWS_HELP = "Rows that have an answer or an error"
_EXPECTED_HELP = "Rows expected in all"
_FINISHED_HELP = "When a run last found every row durable"


class MetricsFile(Display):
    """Replaces a file with the run's figures every 15 s, and at its end.

    All are gauges of the last run that was told to write there; the file's name should end in `.prom`.
    Raises UsageError where its folder is not there.
    """

    every = 15.0

    def __init__(self, path: str, output: str) -> None:
        from prometheus_client import CollectorRegistry

        if not Path(path).absolute().parent.is_dir():
            raise UsageError(
                f"--metrics-file {path}: its folder is not there; make it, or name another file"
            )
        self._path, self._output = path, output
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._has_begun = False
        if (finished := self._finished_before()) is not None:
            self._set(_FINISHED, _FINISHED_HELP, finished)

    def begin(self, about: Mapping[str, Any], now: Snapshot) -> None:
        self._has_begun = True
        self._set("running", "1 while a run is at work", 1)
        self._set("begin_timestamp_seconds", "When the last run began its work", time.time())
        self.show(now)

    def show(self, now: Snapshot) -> None:
        self._set_figures(now)
        self._write()

    def _set_figures(self, now: Snapshot) -> None:
        self._set("rows", _ROWS_HELP, now.rows_done + now.rows)
        self._set("rows_expected", _EXPECTED_HELP, now.rows_expected)
        self._set("run_rows", "Rows answered by the last run", now.rows)
        self._set("run_tokens", "Useful tokens answered by the last run", now.tokens)
        self._set("run_errors", "Rows of the last run that have an error", now.errors)
        self._set("run_seconds", "Seconds that the last run has worked", now.seconds)
        self._set("rows_per_second", "Rows a second, recently", now.recent_rows_per_second)
        self._set(
            "tokens_per_second", "Useful tokens a second, recently", now.recent_tokens_per_second
        )
        self._set("halved_batches", "Batches halved for want of memory", now.splits)
        self._set("resident_memory_bytes", "Memory of the main process", now.memory_bytes)
        self._set_if_known("seconds_left", "Seconds left, by tokens", now.seconds_left)
        self._set_if_known(
            "device_memory_bytes", "Memory in use on devices", now.device_memory_bytes
        )
        if now.waiting is not None:
            for what in ("input", "writer", "device"):
                share = getattr(now.waiting, what)
                help_text = (
                    "Share of the recent time: waiting for input, for the writer; device at work"
                )
                self._set("time_ratio", help_text, share, of=what)

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        report = outcome.report
        if self._has_begun:
            self._set_figures(now)
        elif report is None and outcome.exit_code == Interrupted.exit_code:
            return  # another run is at work, and its figures stay as they are
        if report is not None:  # also of a run that had nothing to do, and so counted nothing
            self._set("rows", _ROWS_HELP, report["num_rows"])
            expected = max(now.rows_expected, report["num_rows"])
            self._set("rows_expected", _EXPECTED_HELP, expected)
            self._set("errors", "Rows that have an error", report["num_errors"])
            if report["finished"]:
                self._set(_FINISHED, _FINISHED_HELP, time.time())
        self._set("running", "1 while a run is at work", 0)
        self._set("exit_code", "Exit code of the last run", outcome.exit_code)
        self._set("end_timestamp_seconds", "When the last run ended", time.time())
        self._write()

    def _finished_before(self) -> float | None:
        """What an earlier run wrote: a run that fails must not take it away."""
        from prometheus_client.parser import text_string_to_metric_families

        try:
            text = Path(self._path).read_text(encoding="utf-8")
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if (sample.name, sample.labels.get("output")) == (
                        _PREFIX + _FINISHED,
                        self._output,
                    ):
                        return float(sample.value)
        except (OSError, ValueError):  # none yet, or none of ours
            pass
        return None

    def _set_if_known(self, name: str, help_text: str, value: float | None) -> None:
        if value is not None:
            self._set(name, help_text, value)

    def _set(self, name: str, help_text: str, value: float, **labels: str) -> None:
        from prometheus_client import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(
                _PREFIX + name, help_text, ["output", *labels], registry=self._registry
            )
        self._gauges[name].labels(self._output, *labels.values()).set(value)

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        write_to_textfile(self._path, self._registry)
