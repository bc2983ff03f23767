"""Items made ahead: all of them, in order, and no more than there is room for."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from batchinfer.prefetch import Prefetch


def numbers(made: list[int], count: int = 5) -> Generator[int]:
    for number in range(count):
        made.append(number)
        yield number


def test_all_items_come_in_order() -> None:
    assert list(Prefetch(numbers([]), 2).stream()) == [0, 1, 2, 3, 4]


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []
    ahead = Prefetch(numbers(made), 2)
    time.sleep(0.2)
    assert made == [0, 1, 2]  # two ready, and one that waits to be
    ahead.close()
    time.sleep(0.2)
    assert len(made) <= 4 and ahead.is_out


def test_what_fails_ahead_is_raised_where_it_is_taken() -> None:
    def broken() -> Generator[int]:
        yield 1
        raise ValueError("broken")

    stream = Prefetch(broken(), 3).stream()
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_whoever_polls_is_not_kept_waiting() -> None:
    def slow() -> Generator[int]:
        time.sleep(0.3)
        yield 1

    ahead = Prefetch(slow(), 1)
    assert ahead.poll() is None and not ahead.is_out
    time.sleep(0.6)
    assert ahead.poll() == 1
    time.sleep(0.1)
    assert ahead.poll() is None and ahead.is_out
