"""What a run says of itself, by a clock of the test's own."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

from batchinfer.machine import MemoryUse
from batchinfer.reporting.displays import Bar, LogLines
from batchinfer.reporting.monitor import Display, Monitor
from batchinfer.reporting.progress import Measured, Rates, duration
from batchinfer.reporting.snapshot import Outcome, Snapshot
from batchinfer.stages import StageSeconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Keeps(Display):
    """Keeps what it is shown."""

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self.begun: list[Any] = []
        self.shown: list[Snapshot] = []
        self.outcomes: list[Outcome] = []

    def begin(self, about: Any, now: Snapshot) -> None:
        self.begun.append(about)

    def show(self, now: Snapshot) -> None:
        self.shown.append(now)

    def end(self, now: Snapshot, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(clock: Clock, *displays: Display, rows_done: int = 0, rows: int = 1000) -> Monitor:
    """A monitor whose thread never ticks: the test says when."""
    monitor = Monitor(displays, clock=clock)
    monitor._tick = lambda: None  # type: ignore[method-assign]
    monitor.begin(rows_done=rows_done, rows_expected=rows)
    monitor.open({})
    return monitor


def test_a_log_gets_one_line_every_thirty_seconds_also_where_nothing_happens(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="batchinfer")
    logging.getLogger("batchinfer").propagate = True
    monitor = begun(clock, LogLines())
    for second in range(95):
        clock.now += 1
        if second < 60:
            monitor.answered(2, 10)
        monitor.show_due()
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("60 of ~1,000 rows, 2 rows/s, 10 tokens/s, 0 errors")
    assert caplog.messages[2].startswith("120 of ~1,000 rows, 0 rows/s, 0 tokens/s, 0 errors")


def test_rates_count_this_run_and_the_rest_counts_all(clock: Clock) -> None:
    rates = Rates(clock)
    rates.begin(rows_done=500, rows_expected=1000)
    clock.now += 10
    rates.answered(100, 700)
    assert (rates.rows_per_second, rates.tokens_per_second) == (10, 70)
    assert rates.rows_done + rates.num_rows == 600


def test_a_second_pass_counts_no_row_twice(clock: Clock) -> None:
    rates = Rates(clock)
    rates.begin(rows_done=500, rows_expected=1000)
    rates.answered(100, 700)
    rates.begin(rows_done=600, rows_expected=1000)
    rates.answered(50, 10)
    assert rates.rows_done + rates.num_rows == 650


def test_more_rows_than_expected_raise_the_total() -> None:
    rates = Rates(Clock())
    rates.begin(rows_done=0, rows_expected=10)
    rates.answered(15, 1)
    assert rates.total == 15


def test_the_time_that_is_left_is_told_from_tokens(clock: Clock) -> None:
    """Long rows come first: after half of the rows, nine of ten tokens are done."""
    monitor = begun(clock, rows=100)
    assert monitor.snapshot().seconds_left is None
    monitor.loaded(100, 1000)
    clock.now += 9
    monitor.answered(50, 900)
    assert monitor.snapshot().seconds_left == 1.0


def test_rows_that_were_not_loaded_yet_are_taken_to_be_as_long_as_the_others(clock: Clock) -> None:
    monitor = begun(clock, rows_done=100, rows=300)
    monitor.loaded(50, 500)
    clock.now += 5
    monitor.answered(50, 500)
    assert monitor.snapshot().seconds_left == 15.0


def test_what_may_be_written_counts_as_work(clock: Clock) -> None:
    monitor = Monitor(clock=clock, tokens_ahead=90)
    monitor.begin(rows_done=0, rows_expected=4)
    monitor.open({})
    monitor.loaded(4, 40)
    clock.now += 3
    monitor.answered(1, 10)
    assert monitor.snapshot().seconds_left == 9.0


def test_recalled_rows_are_done_and_no_work(clock: Clock) -> None:
    monitor = begun(clock, rows=100)
    monitor.recalled(60)
    monitor.loaded(40, 400)
    clock.now += 1
    monitor.answered(20, 200)
    now = monitor.snapshot()
    assert (now.rows_done, now.rows, now.seconds_left) == (60, 20, 1.0)


def test_the_speed_that_is_shown_is_the_recent_one(clock: Clock) -> None:
    monitor = begun(clock)
    for _ in range(100):
        clock.now += 1
        monitor.answered(10, 100)
        monitor.show_due()
    for _ in range(20):
        clock.now += 1
        monitor.answered(1, 10)
        monitor.show_due()
    now = monitor.snapshot()
    assert now.recent_tokens_per_second == 10
    assert now.tokens_per_second == pytest.approx(10_200 / 120, abs=0.1)


@pytest.mark.parametrize(
    ("stages", "devices", "what"),
    [
        (StageSeconds(wait_input=1, forward=9), 1, "device"),
        (StageSeconds(wait_input=6, read=5, tokenize=1, forward=4), 1, "reader"),
        (StageSeconds(wait_input=6, read=1, tokenize=5, forward=4), 1, "tokenizer"),
        (StageSeconds(wait_writer=6, forward=4), 1, "writer"),
        (StageSeconds(wait_input=4, forward=16), 2, "device"),
    ],
)
def test_what_all_else_waits_for(
    clock: Clock, stages: StageSeconds, devices: int, what: str
) -> None:
    monitor = begun(clock)
    monitor.num_devices = devices
    clock.now += 10
    monitor.measured(Measured("a", stages, 0, None))
    waiting = monitor.snapshot().waiting
    assert waiting is not None
    assert waiting.what == what
    assert waiting.device == pytest.approx(stages.forward / 10 / devices, abs=0.001)


def test_memory_of_devices_adds_up_and_its_peak_stays(clock: Clock) -> None:
    monitor = begun(clock)
    assert monitor.snapshot().device_memory_bytes is None
    for device, peak in (("a", 5), ("b", 7), ("a", 2)):
        monitor.measured(Measured(device, StageSeconds(), 1, MemoryUse(peak, 80)))
    now = monitor.snapshot()
    assert (now.device_memory_bytes, now.device_memory_total_bytes) == (9, 160)
    assert (monitor.peak_device_memory, now.splits) == (12, 3)


def test_padding_is_told_of_what_is_known(clock: Clock) -> None:
    monitor = begun(clock)
    monitor.measured(Measured("a", StageSeconds(), 0, None))
    assert monitor.snapshot().padding is None
    monitor.measured(Measured("a", StageSeconds(), 0, None, tokens=60, computed_tokens=80))
    monitor.measured(Measured("b", StageSeconds(), 0, None, tokens=30, computed_tokens=40))
    assert monitor.snapshot().padding == 0.25


def test_a_display_that_fails_is_left_out_and_ends_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Display):
        def show(self, now: Snapshot) -> None:
            raise RuntimeError("no such terminal")

    logging.getLogger("batchinfer").propagate = True
    kept = Keeps()
    monitor = begun(clock, Fails(), kept)
    for _ in range(3):
        clock.now += 1
        monitor.show_due()
    assert len(kept.shown) == 3
    assert caplog.messages == ["Fails: nothing more is shown there: no such terminal"]


def test_a_display_that_failed_is_still_told_of_the_end(clock: Clock) -> None:
    class Fails(Keeps):
        def show(self, now: Snapshot) -> None:
            super().show(now)
            raise RuntimeError("no such terminal")

    fails = Fails()
    monitor = begun(clock, fails)
    for _ in range(3):
        clock.now += 1
        monitor.show_due()
    monitor.close(Outcome("finished", 0))
    assert (len(fails.shown), len(fails.outcomes)) == (1, 1)


def test_nothing_is_shown_behind_the_end(clock: Clock) -> None:
    kept = Keeps()
    monitor = begun(clock, kept)
    monitor.close(Outcome("finished", 0))
    clock.now += 5
    monitor.show_due()
    assert kept.shown == []


def test_rows_that_the_model_was_not_asked_about_are_no_work(clock: Clock) -> None:
    monitor = begun(clock, rows=200)
    monitor.answered(100, 0)  # a cache had them
    monitor.loaded(200, 1000)
    clock.now += 1
    monitor.answered(10, 100)
    assert monitor.snapshot().seconds_left == 9.0


def test_displays_are_shown_as_often_as_they_ask(clock: Clock) -> None:
    often, seldom = Keeps(1), Keeps(10)
    monitor = begun(clock, often, seldom)
    for _ in range(30):
        clock.now += 1
        monitor.show_due()
    assert (len(often.shown), len(seldom.shown)) == (30, 3)


def test_an_end_is_shown_once_and_also_where_nothing_began() -> None:
    kept = Keeps()
    monitor = Monitor([kept])
    monitor.close(Outcome("finished", 0))
    monitor.close(Outcome("failed", 1))
    assert kept.outcomes == [Outcome("finished", 0)]
    assert kept.begun == []


def test_an_error_is_the_end_of_a_run() -> None:
    kept = Keeps()
    with pytest.raises(RuntimeError), Monitor([kept]):
        raise RuntimeError("of the model")
    assert kept.outcomes == [Outcome("failed", 1, "of the model")]


def test_a_bar_shows_rows_time_and_what_is_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich import console

    screen = io.StringIO()
    made = console.Console

    def terminal(**options: Any) -> console.Console:
        return made(file=screen, force_terminal=True, width=200)

    monkeypatch.setattr(console, "Console", terminal)
    monitor = begun(clock, Bar())
    monitor.loaded(1000, 50_000)
    clock.now += 10
    monitor.answered(500, 25_000)
    monitor.measured(Measured("a", StageSeconds(wait_input=8, read=8, forward=2), 0, None))
    monitor.show_due()
    monitor.close(Outcome("finished", 0))
    shown = screen.getvalue()
    for words in (
        "500 of ~1,000 rows",
        "about 10 s left",
        "2,500 tokens/s",
        "device busy 20 %",
        "waits for the reader",
    ):
        assert words in shown, words


def test_durations_read_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.4, 59, 61, 3600, 7384)]
    assert said == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]
