"""How near a run came to what its machine can multiply: measured here and now, on that same machine.

Useful work is what the model's linear layers do with the tokens of the texts: two operations for each
weight and token. Their number is read off the architecture, built without memory for weights. Against it
stands one large matrix product in the same precision, the fastest of a few sizes.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.errors import UsageError, one_line
from batchinfer.machine import usable_cores
from batchinfer.reporting.overview.facts import Ceiling, Facts, Job
from batchinfer.reporting.overview.history import PastRun

if TYPE_CHECKING:
    import torch

_TASKS = ("classify", "embed", "token-classify", "score", "zero-shot", "fill-mask")
#: Rows and columns of the products that are tried, and how long each is repeated.
_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_SECONDS = 0.5
#: Layers that only one token of a row goes through.
_ONCE_A_ROW = re.compile(r"(^|\.)pooler(\.|$)")

#: Settings of models whose tokens do not go through each layer once.
_SHARED = re.compile(r"(num|n)_(\w+_)?experts$|num_hidden_groups$")


def measure_ceiling(facts: Facts) -> Ceiling:
    """Measure this machine, for the run of the folder that answered the most tokens here and told of it.

    Raises UsageError where nothing can be compared: there is no such run, or its model or device is not
    here.
    """
    if not can_be_measured(facts.job):
        raise UsageError(
            "--measure: says something of models that answer texts in one pass, and are not quantised"
        )
    run = _run_of_here(facts)
    weights = _weights(facts)
    device = run.device.partition(":")[0]
    threads = run.threads or usable_cores()
    measured = _multiply(device, run.device, facts.job.dtype, threads)
    flops = 2 * weights * run.tokens
    busy = run.stages.on_device if run.stages is not None else 0.0
    return Ceiling(
        run_id=run.run_id,
        flops_per_token=2 * weights,
        achieved=flops / run.seconds,
        while_busy=flops / busy if busy else None,
        measured=measured,
        dtype=facts.job.dtype,
        device=run.device,
        threads=threads if device == "cpu" else 0,
    )


def can_be_measured(job: Job) -> bool:
    """Whether the linear layers of a job's model say how fast it could be."""
    return job.task in _TASKS and job.engine != "fake" and not job.quantization


def _run_of_here(facts: Facts) -> PastRun:
    host = socket.gethostname()
    runs = [run for run in facts.runs if run.host == host and run.tokens and run.seconds]
    if not runs:
        raise UsageError(
            "--measure: no run of this folder says that it was on this machine; measure where it ran"
        )
    run = max(runs, key=lambda run: (run.stages is not None, run.tokens))
    if run.num_devices > 1:
        raise UsageError("--measure: the run had several devices; one of them says little of all")
    if run.device.partition(":")[0] not in _SIZES:
        raise UsageError(f"--measure: cannot measure device {run.device[:100]!r}")
    return run


def _weights(facts: Facts) -> int:
    """The weights of the linear layers that every token goes through; fetches nothing, runs no code."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.pytorch_utils import Conv1D

    job = facts.job
    commit = job.identity.partition("+")[0]
    is_local = Path(job.model).is_dir()
    try:
        config: Any = AutoConfig.from_pretrained(
            job.model,
            revision=None if is_local else commit,
            local_files_only=True,
            trust_remote_code=False,
        )
        with torch.device("meta"):
            factory: Any = AutoModel
            model: Any = factory.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"--measure: {job.model} is not here: {one_line(error, 150)}") from None
    # Of a mixture of experts a token goes through some, and ALBERT's layers are gone through several times.
    if any(map(_SHARED.match, vars(config))):
        raise UsageError(f"--measure: what a token costs {job.model} is not said by its weights")
    return sum(
        layer.weight.numel()
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, torch.nn.Linear | Conv1D) and not _ONCE_A_ROW.search(name)
    )


def _multiply(kind: str, device: str, dtype: str, threads: int) -> float:
    """The fastest product of two square matrices, in operations a second."""
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--measure: the run was on a GPU, and there is none here")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best = 0.0
        for size in _SIZES[kind]:
            a, b = (
                torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2)
            )
            seconds = _time_of(a, b, torch.cuda.synchronize if kind == "cuda" else lambda: None)
            best = max(best, 2 * size**3 / seconds)
        return best
    finally:
        torch.set_num_threads(before)


def _time_of(a: torch.Tensor, b: torch.Tensor, synchronize: Callable[[], None]) -> float:
    """The shortest time of a product, of those that half a second has room for."""
    import torch

    with torch.inference_mode():
        a @ b  # the first makes kernels
        synchronize()
        best, end = float("inf"), time.perf_counter() + _SECONDS
        while (start := time.perf_counter()) < end:
            a @ b
            synchronize()
            best = min(best, time.perf_counter() - start)
    return best
