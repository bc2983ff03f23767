"""A forecast in the user's cache: where `plan` leaves it, and the run of the same job finds it.

A hint, never state: it decides nothing, and whatever is wrong with it, the run goes on without.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchinfer import checked
from batchinfer.config import RunConfig, knob_of
from batchinfer.engines import kind_of_device
from batchinfer.errors import BatchInferError, one_line
from batchinfer.machine import cache_folder, write_whole
from batchinfer.plan import Plan
from batchinfer.profiles import key_of

log = logging.getLogger("batchinfer")

FORMAT = 1
_MAX_BYTES = 1 << 20
#: What may change at a resume and says nothing about speed, or is said elsewhere in the key.
_NO_MATTER = (
    "max_errors", "deadline", "shard", "profile", "offload_folder",
    "progress", "metrics_file", "log_file",
)  # fmt: skip
#: What is held against what came, by its name in the forecast.
FIGURES = ("num_rows", "num_tokens", "num_batches", "num_shards", "num_bytes")


@dataclasses.dataclass(frozen=True)
class ForecastKey:
    """What a forecast is of: a job, on this machine as it is, from where it was found on.

    `part`: I/N, or "". `rows_done`: the rows that had answers.
    """

    plan: Plan
    part: str
    rows_done: int

    @property
    def path(self) -> Path:
        """Where it is kept. Raises RuntimeError where the user has no home, UsageError for the device."""
        config = self.plan.config
        free = [n for n in RunConfig.model_fields if knob_of(n)["free"] and n not in _NO_MATTER]
        tuned = self.plan.tuned
        identity = {
            "plan_id": self.plan.ids[-1],
            "part": self.part,
            "rows_done": self.rows_done,
            "settings": {name: str(getattr(config, name)) for name in free},
            "tuned": None if tuned is None else dataclasses.asdict(tuned.settings),
            # The device, the cores and the versions of what computes: as of a profile.
            "machine": dataclasses.asdict(key_of(config, self.plan.model, kind_of_device(config))),
        }
        canonical = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:24]
        return cache_folder() / "forecasts" / f"{digest}.json"

    def keep(self, forecast: Mapping[str, Any]) -> None:
        """Leave a forecast for the run, in place of an earlier one; where that fails, the log says so."""
        try:
            write_whole(self.path, json.dumps({"format": FORMAT, **forecast}, indent=1) + "\n")
        except (BatchInferError, OSError, RuntimeError) as error:
            log.info(f"the forecast is not kept for the run: {one_line(error)}")

    def find(self) -> dict[str, Any] | None:
        """The forecast that was left for this run; None where there is none, or it is none."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            checked.require(len(content) <= _MAX_BYTES, "too large")
            found = checked.mapping(json.loads(content), "forecast")
            checked.require(found.get("format") == FORMAT, "another format")
            for name in FIGURES:
                checked.count(found[name], name, most=1 << 62)
            seconds = checked.mapping(found["seconds"], "seconds")
            checked.number(seconds["total"], "total")
        except FileNotFoundError:
            return None
        except (
            BatchInferError, OSError, RuntimeError, ValueError, TypeError, KeyError, RecursionError,
        ) as error:  # fmt: skip
            log.debug(f"the forecast of this run is not used: {one_line(error)}")
            return None
        return found


def held_against(
    forecast: Mapping[str, Any], came: Mapping[str, int], seconds: float
) -> dict[str, dict[str, float]]:
    """What was predicted beside what came: rows, tokens, batches, shards and bytes of a run, and seconds.

    `came` has those of FIGURES; `seconds` are those of the whole run, from planning on.
    """
    return {
        "predicted": {
            **{name: forecast[name] for name in FIGURES},
            "seconds": forecast["seconds"]["total"],
        },
        "actual": {**{name: came[name] for name in FIGURES}, "seconds": round(seconds, 3)},
    }
