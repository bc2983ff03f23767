"""What of this machine will get in the way of a job, each found by asking the machine, with the way out.

No check reaches out to a network, and none writes anything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from batchinfer.config import RunConfig
from batchinfer.machine import cache_folder, usable_memory

#: Below this, a model of some size and the loader processes beside it do not fit.
_LITTLE_MEMORY = 2 << 30
#: Loader processes share locks and counters there, and no data: a run with 64 KiB could not start any.
_LITTLE_SHARED_MEMORY = 4 << 20
#: A model of a few hundred million parameters.
_LITTLE_DISK = 2 << 30
_GIB, _MIB = 1 << 30, 1 << 20


def complaints(
    shared_memory: Path = Path("/dev/shm"), nvidia: Path = Path("/proc/driver/nvidia/gpus")
) -> Iterator[str]:
    """What is wrong here, a line each: what, where, what to do.

    `shared_memory`: where the system has it; `nvidia`: where a driver lists its GPUs.
    """
    yield from _cuda(nvidia)
    yield from _memory(shared_memory)
    yield from _folders()
    yield from _environment()


def _cuda(nvidia: Path) -> Iterator[str]:
    """A GPU that torch does not see, or a torch for GPUs that sees none."""
    import torch

    if torch.cuda.device_count():
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    has_driver = nvidia.is_dir() and any(nvidia.iterdir())
    if torch.version.cuda is None:
        if has_driver:
            yield (
                f"there is an NVIDIA GPU, but torch {torch.__version__} is a build for CPUs: install one "
                "for CUDA (https://pytorch.org/get-started/locally)"
            )
    elif hidden is not None and has_driver:
        yield f"CUDA_VISIBLE_DEVICES is '{hidden}', which hides every GPU from torch: unset it to use them"
    elif not has_driver:
        yield (
            f"torch is built for CUDA {torch.version.cuda}, but no NVIDIA driver is there, so the CPU "
            "computes: install the driver, or start the container with the GPUs (docker run --gpus all)"
        )
    else:
        yield (
            f"there is an NVIDIA GPU, but torch for CUDA {torch.version.cuda} cannot use it: compare the "
            "driver's version in `nvidia-smi` with that, and update the driver"
        )


def _memory(shared_memory: Path) -> Iterator[str]:
    memory = usable_memory()
    if memory < _LITTLE_MEMORY:
        yield (
            f"this process may use {memory / _GIB:.1f} GiB of memory: raise the limit of its container, or "
            "take a small model and --workers 0"
        )
    with suppress(OSError):
        free = shutil.disk_usage(shared_memory).free
        is_writable = os.access(shared_memory, os.W_OK)
        if free < _LITTLE_SHARED_MEMORY or not is_writable:
            why = f"has {free / _MIB:.1f} MiB free" if is_writable else "cannot be written to"
            yield (
                f"{shared_memory} {why}, and loader processes share their locks in it: give the container "
                "more (docker run --shm-size 1g), or run with --workers 0"
            )


def _folders() -> Iterator[str]:
    """Caches and the temporary folder: what is fetched and what is kept has to go somewhere."""
    from huggingface_hub import constants

    places = {"models": (constants.HF_HUB_CACHE, "HF_HOME")}
    with suppress(RuntimeError):  # no home: the caches are told apart
        places["profiles and exported models"] = (str(cache_folder()), "XDG_CACHE_HOME")
    for what, (name, variable) in places.items():
        path = _nearest(Path(name))
        if not path.is_dir():
            yield f"the cache of {what}, {name}: {path} is no folder; set {variable} to another"
        elif not os.access(path, os.W_OK | os.X_OK):
            yield (
                f"the cache of {what}, {name}: {path} cannot be written to; set {variable} to a folder "
                "that can"
            )
        elif what == "models" and (free := shutil.disk_usage(path).free) < _LITTLE_DISK:
            yield (
                f"the cache of models, {name}, has {free / _GIB:.1f} GiB left: make room, or set HF_HOME "
                "to a larger disk"
            )
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        yield "no temporary folder can be written to: set TMPDIR to one that can"


def _environment() -> Iterator[str]:
    """Variables that decide more than one may remember."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        stated = next((name for name in names if os.environ.get(name)), names[0])
        yield f"{stated} is set, so only models in the local cache can be used: unset it to fetch others"
    token = os.environ.get("HF_TOKEN_PATH")
    if token and not Path(token).is_file():
        yield f"HF_TOKEN_PATH names {token}, which is no file: private and gated models will be refused"
    for name, meant in RunConfig.misspelt_variables(os.environ).items():
        yield f"{name}: no such variable, so no run hears it; did you mean {meant}?"


def _nearest(path: Path) -> Path:
    """The path, or the first thing above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists() or one == one.parent)
