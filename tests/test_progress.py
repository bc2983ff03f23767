"""What a run says of itself, by a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from batchinfer.reporting.progress import LogProgress, Rates, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_one_line_every_thirty_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="batchinfer")
    logging.getLogger("batchinfer").propagate = True
    clock = Clock()
    progress = LogProgress(clock)
    progress.begin(rows_done=0, rows_expected=1000)
    for _ in range(95):
        clock.now += 1
        progress.answered(2, 10)
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("60 of ~1,000 rows, 2 rows/s, 10 tokens/s, 0 errors")


def test_rates_count_this_run_and_the_rest_counts_all() -> None:
    clock = Clock()
    rates = Rates(clock)
    rates.begin(rows_done=500, rows_expected=1000)
    clock.now += 10
    rates.answered(100, 700)
    assert (rates.rows_per_second, rates.tokens_per_second) == (10, 70)
    assert rates.seconds_left == 40


def test_more_rows_than_expected_raise_the_total() -> None:
    rates = Rates(Clock())
    rates.begin(rows_done=0, rows_expected=10)
    rates.answered(15, 1)
    assert rates.total == 15


def test_durations_read_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.4, 59, 61, 3600, 7384)]
    assert said == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]
