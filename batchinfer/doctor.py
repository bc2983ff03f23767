"""What is here to work with: versions, devices, memory, what is missing for what, and whether a folder can
take a job.

Everything is asked of the thing itself: a run folder's file system is made to create a name twice.
"""

from __future__ import annotations

import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchinfer import __version__
from batchinfer.checkup import complaints
from batchinfer.errors import BatchInferError, one_line
from batchinfer.machine import cache_folder, cpu_name, usable_cores, usable_memory
from batchinfer.reporting.facts import versions
from batchinfer.storage import Place, RemotePath, place_of_output
from batchinfer.writers.durable import publish
from batchinfer.writers.holders import describe_holder, is_locked
from batchinfer.writers.run_folder import has_plan

#: What opens more doors: its module, what it is for, and how it is installed.
_OPTIONAL = (
    ("openvino", "--engine openvino", "batchinfer[openvino]"),
    ("peft", "--adapter", "batchinfer[peft]"),
    ("ray", "--executor ray", "batchinfer[ray]"),
    ("matplotlib", "the plots of tune", "batchinfer[report]"),
    ("s3fs", "s3://", "batchinfer[s3]"),
    ("gcsfs", "gs://", "batchinfer[gs]"),
    ("adlfs", "az://", "batchinfer[az]"),
    ("aiohttp", "https://", "batchinfer[http]"),
)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and its memory in bytes; `free_memory` None where only the system knows."""

    name: str
    kind: str
    memory: int
    free_memory: int | None
    dtype: str


@dataclass(frozen=True, slots=True)
class Folder:
    """Whether a folder can take a job: `problem` says why not. `seconds`: what one file took."""

    path: str
    problem: str
    state: str
    free_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found. `missing`: optional libraries that are not there, with what they are for.

    `complaints`: what will get in the way of a job, with the way out.
    """

    versions: dict[str, str]
    platform: str
    cores: int
    devices: tuple[Device, ...]
    cache: str
    cache_free_bytes: int | None
    missing: tuple[tuple[str, str, str], ...]
    complaints: tuple[str, ...]
    folder: Folder | None

    @property
    def exit_code(self) -> int:
        """74 where the folder cannot take a job."""
        return 74 if self.folder is not None and self.folder.problem else 0

    def to_dict(self) -> dict[str, Any]:
        missing = [
            dict(zip(("module", "for", "install"), one, strict=True)) for one in self.missing
        ]
        return {**asdict(self), "missing": missing, "exit_code": self.exit_code}

    def to_text(self) -> str:
        """The findings for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        others = dict(self.versions)
        yield f"batchinfer {others.pop('batchinfer')}, Python {others.pop('python')}, {self.platform}"
        yield "  " + ", ".join(f"{name} {number}" for name, number in others.items())
        for device in self.devices:
            free = "" if device.free_memory is None else f", {_size(device.free_memory)} free"
            yield (
                f"{device.name}: {device.kind}, {_size(device.memory)} of memory{free}; computes in "
                f"{device.dtype} where nothing is said"
            )
        yield f"cores that this process may use: {self.cores}"
        free = "" if self.cache_free_bytes is None else f", {_size(self.cache_free_bytes)} free"
        yield f"cache: {self.cache}{free}"
        for module, purpose, package in self.missing:
            yield f"not installed: {module}, for {purpose} (pip install '{package}')"
        for line in self.complaints:
            yield f"in the way: {line}"
        if self.folder is not None:
            yield from self._folder_lines(self.folder)

    @staticmethod
    def _folder_lines(folder: Folder) -> Iterator[str]:
        if folder.problem:
            yield f"{folder.path}: cannot take a job: {folder.problem}; name another folder, or mend that"
            return
        free = "" if folder.free_bytes is None else f"; {_size(folder.free_bytes)} free"
        yield (
            f"{folder.path}: creates a name once and refuses it the second time ({folder.seconds:.2f} s)"
            f"{free}"
        )
        yield f"  {folder.state}"


def examine(output: str = "") -> Diagnosis:
    """Look at this machine and, where one is named, at a folder for a run.

    In the folder, or the one that it would be made in, a small file is created and removed. Raises
    UsageError for an address that nothing can be written to.
    """
    return Diagnosis(
        versions={"batchinfer": __version__, **versions()},
        platform=platform.platform(terse=True),
        cores=usable_cores(),
        devices=tuple(_devices()),
        cache=_cache(),
        cache_free_bytes=_free(Path(_cache())),
        missing=tuple(one for one in _OPTIONAL if find_spec(one[0]) is None),
        complaints=tuple(complaints()),
        folder=_examine_folder(output) if output else None,
    )


def _devices() -> Iterator[Device]:
    import torch

    from batchinfer.engines.devices import resolve_dtype

    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            kind = torch.cuda.get_device_name(index)
            yield Device(name, kind, total, free, resolve_dtype("auto", name))
        except RuntimeError as error:  # broken, or another process's alone
            yield Device(name, f"cannot be used: {one_line(error)}", 0, None, "nothing")
    if torch.backends.mps.is_available():
        yield Device("mps", "Apple GPU", usable_memory(), None, resolve_dtype("auto", "mps"))
    yield Device("cpu", cpu_name(), usable_memory(), None, resolve_dtype("auto", "cpu"))


def _cache() -> str:
    try:
        return str(cache_folder())
    except RuntimeError:
        return "none: this user has no home; set XDG_CACHE_HOME"


def _free(place: Path) -> int | None:
    """Free bytes on the file system that a path lies on, or would lie on."""
    for folder in (place, *place.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _examine_folder(output: str) -> Folder:
    place = place_of_output(output)
    problem, began = "", time.monotonic()
    try:
        _create_twice(place)
    except OSError as error:
        problem = f"{error.filename or place}: {error.strerror or one_line(error)}"
    except BatchInferError as error:
        problem = str(error)
    seconds = time.monotonic() - began
    free = _free(place.absolute()) if isinstance(place, Path) else None
    return Folder(str(place), problem, "" if problem else _state(place), free, seconds)


def _create_twice(place: Place) -> None:
    """See that the file system creates a name once, and refuses it the second time.

    Raises StorageError or OSError where it does not.
    """
    name = f".batchinfer-probe-{secrets.token_hex(4)}"
    if isinstance(place, RemotePath):
        (place / "_batchinfer" / name).require_exclusive_create()
        return
    folder = place.absolute()
    while not folder.is_dir() and folder != folder.parent:
        if folder.exists():
            raise NotADirectoryError(0, "not a folder", str(folder))
        folder = folder.parent
    temporary, final = folder / f"{name}-new", folder / name
    try:
        if not publish(temporary, final, b"first") or publish(temporary, final, b"second"):
            raise OSError(0, "creates a name that is taken", str(folder))
    finally:
        for leftover in (temporary, final):
            leftover.unlink(missing_ok=True)


def _state(place: Place) -> str:
    if not has_plan(place):
        return "no run was begun there"
    if is_locked(place):
        return f"a run is at work there ({describe_holder(place)})"
    return f"a run was begun there: batchinfer status {place}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
