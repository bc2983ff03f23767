"""A kill or two of each scenario of kills.py, and a broken protocol that must be caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import SCENARIOS, hunt, sweep
from tests.faults.runs import Place

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("kills") / "place")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_process_is_killed_at_a_random_moment(scenario: str, place: Place) -> None:
    tally = sweep(place, scenario, cases=1, seed=0)
    assert not tally.failure
    assert tally.kills >= 1


def test_a_broken_protocol_is_caught(tmp_path: Path) -> None:
    tally = hunt(tmp_path, "a part that is done vouches for the whole", cases=3, seed=0)
    assert "not every row is there" in tally.failure
