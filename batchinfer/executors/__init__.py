"""Who answers spans of input: a model in this process, or one in each of several.

    spans ──▶ Executor.process ──▶ Committed     inline.py     the model in this process
                                                 processes.py  a process for each of several devices
                                                 cluster.py    actors of a Ray cluster (ray.py)

An executor decides nothing but where a chunk is answered. What keeps rows from being lost or doubled is
that a chunk has one name, under which its shard is created once.
"""

from __future__ import annotations

from batchinfer.engines import devices_of
from batchinfer.executors.base import Committed, Executor, Job, Work
from batchinfer.executors.inline import Inline
from batchinfer.stop import StopSignal

__all__ = ["Committed", "Executor", "Job", "Work", "create_executor"]


def create_executor(job: Job, stop: StopSignal, *, isolated: bool = False) -> Executor:
    """Load the model where the job wants it; `isolated`: once, in a process of its own that may die.

    Raises ModelError, or UsageError for a device that is not there.
    """
    if job.config.executor == "ray":
        from batchinfer.executors.cluster import Cluster

        return Cluster(job, stop, isolated=isolated)
    devices = devices_of(job.config)
    jobs = [job.on(device, len(devices)) for device in devices]
    if len(jobs) == 1 or isolated:
        return Inline(jobs[0], stop, isolated=isolated)
    from batchinfer.executors.processes import Processes

    return Processes(jobs, stop)
