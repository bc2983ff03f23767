"""A Ray cluster, driven by a process of its own.

    run     hands over spans ─▶ hears of shards
    driver  (a child; ray.py) cuts them into pieces, hands those to actors ─▶ hears of shards and deaths
    actor   reads, tokenizes and answers its pieces, and commits their shards itself

Ray has a process to itself because it writes to stdout whatever it is told, and because it ends its
process at once when it has lost the head of its cluster for a minute.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import connection
from os import _exit as exit_at_once
from pathlib import Path
from typing import Any, NamedTuple

from batchinfer.attempts import Attempts
from batchinfer.children import Child, Line, Said, leave_signals
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines.base import reason
from batchinfer.errors import BatchInferError, Interrupted, ModelError, UsageError
from batchinfer.executors.base import Committed, Executor, Job, Work
from batchinfer.executors.passes import Ready, Told
from batchinfer.lean import spare_pandas
from batchinfer.reporting.progress import Measured, Progress
from batchinfer.stages import StageSeconds
from batchinfer.stop import StopSignal
from batchinfer.writers.run_folder import RunFolder

log = logging.getLogger("batchinfer")

#: How often it is looked whether the run should stop, and how long a driver may take to end, in seconds.
_LOOK_SECONDS, _END_SECONDS = 0.2, 15.0


class Grown(NamedTuple):
    """So many actors have been at work at a time."""

    num_actors: int


class Ended(NamedTuple):
    """A pass is over; `has_suspects`: chunks were left out, as they may have killed actors."""

    stages: StageSeconds
    has_suspects: bool


class Cluster(Executor):
    """Actors of a Ray cluster; `isolated`: each answers in a child of its own, which may die.

    Raises UsageError for settings that do not go together, ModelError where Ray or the model cannot be
    had, and Interrupted where a stop comes first.
    """

    def __init__(self, job: Job, stop: StopSignal, *, isolated: bool = False) -> None:
        require_ray(job.plan.config)
        self._stop = stop
        self._vouched = False
        self._advice = "start the same command again"
        self._driver = Child(_serve, job, log.getEffectiveLevel(), isolated, daemon=False)
        try:
            ready = self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.dtype, self.device_kind, self.default_budget = ready
        self._advice = "what is committed stays: `batchinfer resume`"

    def _wait_until_ready(self) -> Ready:
        while True:
            if self._stop.is_set:
                raise Interrupted(
                    "stopped while the model was being loaded; start the same command again"
                )
            for message in self._heard():
                if isinstance(message, Ready):
                    return message
                self._take(message)

    def vouch(self) -> None:
        self._vouched = True

    def probe(self) -> BatchBudget:
        """What an actor finds."""
        self._send("probe")
        while not self._stop.is_set:
            for message in self._heard():
                if isinstance(message, BatchBudget):
                    return message
                self._take(message)
        self._send("stop")
        return self.default_budget

    def process(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        work: Work,
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        # Where nothing may be said at the end, chunks that were under way stay marked.
        self.has_suspects = True
        path, marks = folder.path, attempts.folder is not None
        if isinstance(path, Path):
            path = path.resolve()
        self._send("begin", path, folder.run_id, budget, list(work.spans), marks, self._vouched)
        is_stopped = False
        while True:
            if self._stop.is_set and not is_stopped:
                is_stopped = True
                self._send("stop")
            for message in self._heard():
                if isinstance(message, Committed):
                    yield message
                elif isinstance(message, Told):
                    message.to(progress)
                elif isinstance(message, Measured):
                    progress.measured(message)
                elif isinstance(message, Ended):
                    self.stages, self.has_suspects = message
                    return
                else:
                    self._take(message)

    def _take(self, message: object) -> None:
        if isinstance(message, Grown):
            self.num_devices = message.num_actors

    def _send(self, *order: Any) -> None:
        with suppress(OSError):  # that it died is heard
            self._driver.pipe.send(order)

    def _heard(self) -> Iterator[Any]:
        """What the driver says, once there is something or a moment has passed. Raises what it raised."""
        pipe = self._driver.pipe
        if not connection.wait([pipe], _LOOK_SECONDS):
            return
        try:
            while pipe.poll():
                message = pipe.recv()
                if isinstance(message, Said):
                    message.log()
                elif isinstance(message, Exception):
                    self.has_suspects = isinstance(message, Interrupted)
                    raise message
                else:
                    yield message
        except (EOFError, OSError):
            self.has_suspects = True
            raise Interrupted(
                f"the Ray cluster is gone (Ray's driver {self._driver.death()}); {self._advice}"
                f"{self._driver.hint}"
            ) from None

    def close(self) -> None:
        self._driver.pipe.close()
        self._driver.process.join(_END_SECONDS)
        self._driver.kill()


def require_ray(config: RunConfig) -> None:
    """See that Ray is installed, and that nothing else is asked for that it decides. Raises UsageError."""
    if config.devices is not None:
        raise UsageError(
            "--executor ray: not with --devices; say --ray-actors, and --ray-gpus for each"
        )
    if config.device.startswith("cuda:"):
        raise UsageError(
            f"--executor ray: not with --device {config.device}; Ray chooses which GPU an actor has"
        )
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--executor ray: Ray is not installed; `pip install 'batchinfer[ray]'`, or answer on this "
            "machine with --executor auto"
        )


def _serve(pipe: connection.Connection[Any, Any], job: Job, level: int, is_isolated: bool) -> None:
    """The child: Ray's driver. What Ray prints goes nowhere; its logs stand in its own folder.

    The kernel is not asked to kill it with its parent: Ray's processes would stay. It sees the pipe close.
    """
    leave_signals([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # the parent was told too
    spare_pandas()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    line = Line(pipe)
    line.relay_log(level)
    try:
        from batchinfer.executors.ray import drive

        drive(pipe, line, job, level, is_isolated=is_isolated)
    except (EOFError, BrokenPipeError):  # the parent has gone
        pass
    except (BatchInferError, OSError) as error:
        _say(line, error)
    except Exception as error:
        _say(line, ModelError(f"Ray: {reason(error)}"))
    exit_at_once(0)  # nothing here is worth the time, or the risk, of an orderly end


def _say(line: Line, error: Exception) -> None:
    with suppress(OSError):  # the parent may be gone
        line.send(error)
