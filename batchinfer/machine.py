"""What a job has to do with on this machine, asked without importing anything heavy."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

#: Instructions that decide which precision and engine are fastest, as Linux names them.
_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("asimdhp", "sve", "sve2", "bf16", "i8mm"),
)

#: Where the system does not tell how much memory there is.
_UNKNOWN_MEMORY = 8 << 30


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a device: the most that was held since this was asked last, and what can be held."""

    peak: int
    available: int


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: by its affinity, and by the quota of its container.

    A container that may use 2 of 64 cores shows all 64; as many threads would wait for each other.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # "max": no quota; or an older system
        pass
    return cores


def usable_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that this process may use, in bytes: the machine's, or as much as its container may."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        memory = _UNKNOWN_MEMORY
    with contextlib.suppress(OSError, ValueError):  # "max": no limit; or an older system
        memory = min(memory, int((cgroup / "memory.max").read_text()))
    return memory


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """This CPU's architecture and, on Linux, its model and what it has of the instructions that count.

    The model alone does not tell CPUs apart: a virtual machine may name any, and hide any instruction.
    """
    facts: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                name, colon, value = line.partition(":")
                if not colon:  # the first processor ends here; the others are alike
                    break
                facts[name.strip()] = value.strip()
    except OSError:
        pass
    names = [facts[name] for name in ("model name", "CPU implementer", "CPU part") if name in facts]
    has = {*facts.get("flags", "").split(), *facts.get("Features", "").split()}
    return " ".join([platform.machine(), *names, *(name for name in _INSTRUCTIONS if name in has)])


def cache_folder() -> Path:
    """Where what can be made again is kept for the user: batchinfer, below `$XDG_CACHE_HOME` or `~/.cache`.

    Raises RuntimeError where the user has no home.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    return root / "batchinfer"


def write_whole(path: Path, text: str) -> None:
    """Write a file of the user's whole or not at all, with the folders above it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
