"""What runs on what: the first thing that a run tells."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from batchinfer import __version__
from batchinfer.core import BatchBudget
from batchinfer.machine import cpu_name, usable_cores, usable_memory
from batchinfer.plan import Plan

#: What the answers and the speed depend on.
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "pyarrow", "pandas", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # vendored, or run from a checkout
            continue
    return found


def facts_of(
    plan: Plan, budget: BatchBudget, *, device: str, num_devices: int, threads: int | None
) -> dict[str, Any]:
    """A run's model, settings, device and versions, as plain values."""
    config, model = plan.config, plan.model
    return {
        "version": __version__,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "plan_id": plan.id,
        "model": model.name,
        "revision": model.identity or None,
        "task": model.task,
        "engine": config.engine,
        "dtype": config.dtype,
        "device": device,
        "num_devices": num_devices,
        "attention": config.attention,
        "threads": threads,
        "max_batch_tokens": budget.max_batch_tokens,
        "max_batch_rows": budget.max_batch_rows,
        "versions": versions(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": usable_memory(),
    }
