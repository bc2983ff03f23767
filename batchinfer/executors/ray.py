"""Ray: the driver of a cluster's actors, and how they are started and heard. Only here is Ray imported.

Plain actors, not a Dataset: Ray Data wants all pieces before the first is answered, and takes far longer a
piece (benchmarks/ray_overhead.py). Here an actor has its next piece before it is done with the one before,
so its device does not run dry.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported

import ray
from ray.exceptions import RayError

from batchinfer.children import Line
from batchinfer.config import RunConfig
from batchinfer.errors import Interrupted, ModelError, UsageError, one_line
from batchinfer.executors.actor import Actor
from batchinfer.executors.base import Job
from batchinfer.executors.pool import Death, Hand, Pool
from batchinfer.machine import usable_cores

#: Ray gives its own processes 30 s to start, and a cluster 5 s to answer, which busy machines may exceed.
TRIES = 3
#: Of a Ray of this machine alone: nothing but small records goes through it.
_OBJECT_STORE_BYTES = 128 << 20


def drive(
    pipe: connection.Connection[Any, Any], line: Line, job: Job, level: int, *, is_isolated: bool
) -> None:
    """Do what the parent orders, until its end of the pipe closes. Raises EOFError then, or what fails."""
    config = job.plan.config
    _connect(config)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray has taken it
    crew = RayCrew(job, level, is_isolated)
    pool = Pool(pipe, line, job.plan, crew, is_isolated=is_isolated)
    try:
        pool.wait_until_ready()
        while True:
            what, *arguments = pipe.recv()
            if what == "probe":
                pool.probe()
            elif what == "begin":
                pool.answer(*arguments)
    finally:
        pool.close()
        ray.shutdown()


def _address(config: RunConfig) -> str:
    return config.ray_address or os.environ.get("RAY_ADDRESS") or "local"


def _connect(config: RunConfig) -> None:
    """Join the cluster, or make one of this machine. Raises ModelError."""
    address = _address(config)
    options: dict[str, Any] = {}
    if address == "local":
        # Ray gives workers the lowest priority but four, as its own processes may be busy beside them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options = {
            "num_cpus": usable_cores(),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    tries = TRIES
    while True:
        tries -= 1
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:
            ray.shutdown()
            if not tries:
                raise ModelError(f"--ray-address {address}: no Ray there: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Why Ray cannot be joined: where it hands on an error of its own (a token is missing), that one."""
    own = [line for line in str(error.__cause__).splitlines() if line.startswith("ray.exceptions.")]
    return one_line(Exception(own[-1].partition(": ")[2]) if own else error)


class RayCrew:
    """Actors of the cluster that this process is connected to.

    Raises UsageError where a Ray of this machine alone has no room for a single one.
    """

    def __init__(self, job: Job, level: int, is_isolated: bool) -> None:
        config = job.plan.config
        total, free = ray.cluster_resources(), ray.available_resources()
        cpus, gpus = config.ray_cpus or 1, config.ray_gpus
        if gpus is None:
            computes = config.engine not in ("fake", "openvino") and config.device != "cpu"
            gpus = 1.0 if computes and (total.get("GPU") or config.device == "cuda") else 0.0
        self._cpus, self._gpus = cpus, gpus
        if _address(config) == "local" and not self._fits(total):
            has = ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
            raise UsageError(f"--executor ray: an actor needs {self}; this machine has {has}")
        if config.ray_actors is None:
            self.least = max(1, self._fits(free))
            self.most = max(self.least, self._fits(total))
        else:
            least, _, most = config.ray_actors.partition(":")
            self.most = int(most or least)
            # What fits is asked for at once; more, up to the most, when there is work for them.
            self.least = max(int(least), min(self._fits(free), self.most))
        if not gpus and config.device == "auto" and config.device_map is None:
            job = job.on("cpu", 1)
        self._arguments = (job if gpus else job.with_threads(cpus), level, is_isolated)

    def __str__(self) -> str:
        return f"{self._cpus} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")

    def _fits(self, resources: dict[str, float]) -> int:
        """How many actors these are enough for."""
        fits = int(resources.get("CPU", 0.0) // self._cpus)
        if self._gpus:
            fits = min(fits, int(resources.get("GPU", 0.0) // self._gpus))
        return fits

    def start(self) -> Hand:
        """Ask for an actor; it comes when there is room for it."""
        return RayHand(self._cpus, self._gpus, self._arguments)

    def hear(self, hands: Sequence[Hand], seconds: float) -> list[tuple[Hand, list[Any] | Death]]:
        by_ref = {hand.heard: hand for hand in hands if isinstance(hand, RayHand)}
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=seconds)
        if ready:  # and those that are ready by now
            ready, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        return [(by_ref[ref], by_ref[ref].said()) for ref in ready]

    def require_cluster(self) -> None:
        if not any(node["Alive"] for node in ray.nodes()):
            raise Interrupted(
                "the Ray cluster is gone (none of its machines is alive); what is committed stays: "
                "`batchinfer resume`"
            )


class RayHand:
    """An actor of Ray's.

    One call that hears what it says is always under way; it fails where the actor dies.
    """

    def __init__(self, cpus: int, gpus: float, arguments: tuple[Job, int, bool]) -> None:
        self._actor = ray.remote(  # type: ignore[call-overload]
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            concurrency_groups={"orders": 1, "hearing": 1},  # each in order, side by side
        )(Actor).remote(*arguments)
        self.heard = self._hear()

    def _hear(self) -> Any:
        return self._actor.hear.options(concurrency_group="hearing").remote()

    def said(self) -> list[Any] | Death:
        """What it has said, once that is there; hears on."""
        try:
            messages: list[Any] = ray.get(self.heard)
        except RayError as error:
            return Death(_how(error))
        self.heard = self._hear()
        return messages

    def tell(self, *order: Any) -> None:
        self._actor.tell.options(concurrency_group="orders").remote(*order)

    def close(self) -> None:
        with suppress(RayError):
            ray.kill(self._actor)


def _how(error: RayError) -> str:
    """What Ray says of a death: the sentence with the reason, of many."""
    said = " ".join(str(error).split())
    for before in ("Worker exit detail: ", "The actor is dead because "):
        if before in said:
            said = said.partition(before)[2].partition(". ")[0]
            break
    return f"died ({one_line(Exception(said), 200)})"
