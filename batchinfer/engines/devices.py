"""The devices of this machine, and what `auto` stands for on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from batchinfer.errors import UsageError

#: Measured on a CPU with 2 cores: 2,048-4,096 tokens are best, 8 k reach 0.95 and 32 k 0.61 of it; where a
#: core has a batch of its own, 2,048 (1.03 of what 4,096 reach with MiniLM in bfloat16, the same with
#: BERT-base). A GPU wants its launches to be long: 32 k and more.
BUDGET_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}


def resolve_device(device: str) -> str:
    """The device that `auto` stands for: cuda, else mps, else cpu.

    A launcher that starts several processes on a machine (torchrun, accelerate launch) numbers them, and
    each takes the GPU of its number. Raises UsageError where the device that was named is not there, or is
    none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            number = os.environ.get("LOCAL_RANK", "")
            is_there = number.isdecimal() and int(number) < torch.cuda.device_count()
            return f"cuda:{number}" if is_there else "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in BUDGET_TOKENS or (index and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"--device {device}: should be auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        found = torch.cuda.device_count()
        if int(index or 0) >= found:
            raise UsageError(f"--device {device}: not available: {without_cuda(found)}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available on this machine; take --device auto")
    return device


def without_cuda(found: int) -> str:
    """Why a GPU is not there, where `found` of them are, and what to do."""
    if found:
        return f"{found} were found, counted from 0: `nvidia-smi` lists them; name one of those"
    if torch.version.cuda is None and not getattr(torch.version, "hip", None):
        return (
            "this torch is a build for CPUs; install one for CUDA (`batchinfer doctor` says more), or take "
            "--device auto"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES is '{hidden}' and hides them; unset it, or take --device auto"
    return "no CUDA device was found: see whether `nvidia-smi` lists any, or take --device auto"


def resolve_devices(devices: str) -> list[str]:
    """GPUs by their numbers (`0,1,3`), or every one (`auto`; without any, the one that `auto` stands for).

    Raises UsageError where one of them is not there.
    """
    found = torch.cuda.device_count()
    if devices == "auto":
        return [f"cuda:{number}" for number in range(found)] or [resolve_device("auto")]
    numbers = [int(number) for number in devices.split(",")]
    if missing := [number for number in numbers if number >= found]:
        raise UsageError(
            f"--devices {devices}: GPU {missing[0]} is not available: {without_cuda(found)}"
        )
    return [f"cuda:{number}" for number in numbers]


def resolve_dtype(dtype: str, device: str) -> str:
    """The precision that `auto` stands for: bfloat16 where the device is fast in it, else float32.

    Raises UsageError where the device is not there.
    """
    device = resolve_device(device)
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device == "cpu" and _cpu_is_fast_in_bfloat16()
    return "bfloat16" if fast else "float32"


def _cpu_is_fast_in_bfloat16() -> bool:
    # AVX-512 bf16 or AMX; without them bfloat16 is emulated and several times slower than float32.
    # Both ways to ask are private, and which one there is depends on the release of torch.
    for owner, name in (
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
    ):
        ask = getattr(owner, name, None)
        if ask is not None and ask():
            return True
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() or {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def device_kind(device: str) -> str:
    """`cpu`, `mps`, or the name of the GPU: runs on the same kind share budgets and profiles.

    Raises UsageError where the device is not there.
    """
    device = resolve_device(device)
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def is_out_of_memory(error: Exception) -> bool:
    """Whether what a model raised means that a device's memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]

    return bool(should_reduce_batch_size(error))
