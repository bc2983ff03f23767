"""The quickest of a contestant's settings: of some to begin with, then one coordinate after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Setting = Mapping[str, Any]

#: Settings within this of the quickest that they were tried beside are tried a second time.
CLOSE = 1.15


class FailedError(Exception):
    """A setting does not work, or a contestant cannot take part, or no longer."""


@dataclass
class Trial:
    """A setting, the seconds that it took each time, and why it failed."""

    setting: Setting
    times: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def seconds(self) -> float:
        """The least that it took; infinite where it failed."""
        return min(self.times) if self.times and not self.failed else math.inf

    def run(self, attempt: Callable[[Setting], float]) -> None:
        try:
            self.times.append(attempt(self.setting))
        except FailedError as error:
            self.failed = str(error)

    def to_json(self) -> dict[str, Any]:
        found = {"failed": self.failed} if self.failed else {"seconds": self.seconds}
        return {"setting": dict(self.setting), **found}


def search(
    settings: Sequence[Setting],
    choices: Mapping[str, Sequence[Any]],
    attempt: Callable[[Setting], float],
) -> list[Trial]:
    """Try all settings, then change the quickest in one coordinate after another until none is quicker.

    `attempt` returns seconds or raises FailedError; no setting is attempted more than twice.
    """
    trials: list[Trial] = []

    def trial_of(setting: Setting) -> Trial:
        found = next((trial for trial in trials if trial.setting == setting), None)
        if found is None:
            found = Trial(setting)
            trials.append(found)
            found.run(attempt)
        return found

    def quickest(candidates: Sequence[Setting]) -> Trial:
        some = [trial_of(setting) for setting in candidates]
        least = min(trial.seconds for trial in some)
        close = [trial for trial in some if trial.seconds < CLOSE * least]
        for trial in close if len(close) > 1 else []:
            if len(trial.times) < 2:
                trial.run(attempt)
        return min(some, key=lambda trial: trial.seconds)

    best, before = quickest(settings), None
    while best is not before:
        before = best
        for name, values in choices.items():
            best = quickest([{**best.setting, name: value} for value in values])
    return trials
