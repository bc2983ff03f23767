"""How a run is asked to stop."""

from __future__ import annotations

import time

#: How long a stopped run goes on with the chunks that it has begun, in seconds.
GRACE_SECONDS = 5.0
#: A run that must end by a deadline stops this much before it: the grace, and as much to commit.
MARGIN_SECONDS = 2 * GRACE_SECONDS


class StopSignal:
    """Asks a run to stop: no new chunk is begun, and those begun get a few seconds more."""

    def __init__(self) -> None:
        self._grace_ends: float | None = None
        self._due: float | None = None

    def set(self) -> None:
        """Ask; asking again changes nothing."""
        if self._grace_ends is None:
            self._grace_ends = time.monotonic() + GRACE_SECONDS

    def set_by(self, seconds: float) -> None:
        """Ask in time for the run to be over so many seconds from now."""
        self._due = time.monotonic() + seconds - min(MARGIN_SECONDS, seconds / 2)

    @property
    def is_set(self) -> bool:
        if self._due is not None and time.monotonic() >= self._due:
            self.set()
        return self._grace_ends is not None

    @property
    def out_of_time(self) -> bool:
        return self.is_set and time.monotonic() >= (self._grace_ends or 0.0)


def never() -> bool:
    """Whether to stop, where nobody says so."""
    return False
