"""Stands between batchinfer and the file system: sees every call on the world, and can spoil one.

The *world* is the folder that holds a case's run folder. Calls elsewhere (inputs, libraries) pass
unseen. batchinfer changes files only through the functions of `os` wrapped here (checked with strace);
one that the shim does not know raises, so that a new kind of call cannot slip past the suite.

A *point* is an operation and the chain of batchinfer's lines that led to it. Faults name a point and
which time it is reached, not the n-th call overall: the writer is a thread, and how its calls fall
between those of the main thread differs from run to run.

    before   the call does not take effect
    after    it takes effect, and only then comes the fault
    torn     a write takes half of its bytes, and then comes the fault
    untrue   a write takes half of its bytes and claims to have taken all; there is no error
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import hashlib
import io
import mmap
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import batchinfer

_PACKAGE = str(Path(batchinfer.__file__).parent) + os.sep

#: Operations that need room on the disk.
NEED_SPACE = frozenset({"create", "write", "fsync", "link", "mkdir", "replace"})
#: Operations that change the world, or the lock on it; the others only read it.
CHANGING = frozenset({*NEED_SPACE, "close", "unlink", "rmdir", "ftruncate", "lockf"})
#: Changing files in a way that is not modelled here.
_UNKNOWN = (
    "pwrite", "writev", "pwritev", "truncate", "symlink", "mkfifo", "mknod", "sendfile", "lseek",
    "copy_file_range", "posix_fallocate", "utime", "chmod", "fchmod", "setxattr",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Point:
    """An operation, and the chain of `file:function:line` in batchinfer that leads to it."""

    operation: str
    chain: tuple[str, ...]

    @property
    def id(self) -> str:
        """A short name, the same in every run of the same code."""
        text = "\n".join((self.operation, *self.chain))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        lines = [link.split(":") for link in self.chain[-3:]]
        return f"{self.operation} in " + " > ".join(f"{name}:{line}" for _, name, line in lines)


@dataclass
class Call:
    """One call on the world; `proceed` makes it. Paths are relative to the world."""

    operation: str
    point: Point
    path: str
    proceed: Callable[[], Any]
    target: str = ""
    descriptor: int = -1
    flags: int = 0
    size: int = 0
    data: bytes | memoryview = b""

    @property
    def changes(self) -> bool:
        return self.operation in CHANGING


class Watcher(Protocol):
    """Is shown every call, and makes it or not."""

    def handle(self, call: Call) -> Any: ...


class Board:
    """What a child tells its parent although it may die at any moment: shared memory."""

    SIZE = 4096

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.SIZE)

    def clear(self) -> None:
        self._memory[:] = bytes(self.SIZE)

    def fire(self) -> None:
        """Say that the fault has come about."""
        self._memory[0] = 1

    def complain(self, message: str) -> None:
        """Say that batchinfer did what it must never do."""
        text = message.encode()[: self.SIZE - 2]
        self._memory[1 : 1 + len(text)] = text

    @property
    def fired(self) -> bool:
        return self._memory[0] == 1

    @property
    def complaint(self) -> str:
        return self._memory[1:].split(b"\0")[0].decode()


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where: at the `occurrence`-th time (from 1) that `point` is reached.

    `error` 0: the process is killed. `lasting`: from then on nothing finds room.
    """

    point: Point
    occurrence: int
    phase: str
    error: int = 0
    lasting: bool = False

    @property
    def id(self) -> str:
        name = errno.errorcode[self.error].lower() if self.error else "kill"
        lasting = "-lasting" if self.lasting else ""
        return f"{name}{lasting}-{self.point.id}-{self.occurrence}-{self.phase}"

    def __str__(self) -> str:
        name = errno.errorcode[self.error] if self.error else "SIGKILL"
        lasting = " from here on" if self.lasting else ""
        return f"{name}{lasting} {self.phase} {self.point} (time {self.occurrence})"


@dataclass(frozen=True)
class Step:
    """A call that was made, as the recorder keeps it; `result` is a descriptor or what was written."""

    operation: str
    point: Point
    path: str
    target: str
    descriptor: int
    flags: int
    size: int
    data: bytes
    result: int


@dataclass
class Recorder:
    """Keeps every call that succeeded; with `contents` also the bytes that were written."""

    contents: bool = False
    steps: list[Step] = field(default_factory=list)

    def handle(self, call: Call) -> Any:
        result = call.proceed()
        if call.operation == "close folder":  # changes nothing, and cannot fail
            return result
        data = b""
        if self.contents and call.operation == "write":
            data = bytes(call.data[:result])
        step = Step(
            operation=call.operation,
            point=call.point,
            path=call.path,
            target=call.target,
            descriptor=call.descriptor,
            flags=call.flags,
            size=call.size,
            data=data,
            result=result if isinstance(result, int) else -1,
        )
        self.steps.append(step)
        return result


class Injector:
    """Makes one fault happen."""

    def __init__(self, fault: Fault, board: Board, shim: Shim) -> None:
        self._fault, self._board, self._shim = fault, board, shim
        self._reached = 0
        self._is_full = False
        self._exhausted: set[int] = set()  # descriptors of files for which there is no more room
        self._unsynced: set[int] = set()  # descriptors whose fsync failed

    def handle(self, call: Call) -> Any:
        self._watch_syncs(call)
        if call.point == self._fault.point:
            self._reached += 1
            if self._reached == self._fault.occurrence:
                return self._strike(call)
        if self._is_full and call.operation in NEED_SPACE:
            raise self._error(call)
        if call.operation == "write" and call.descriptor in self._exhausted:
            raise self._error(call)
        return call.proceed()

    def _strike(self, call: Call) -> Any:
        fault = self._fault
        self._board.fire()
        self._is_full = fault.lasting
        if fault.phase in ("torn", "untrue"):
            written = self._shim.real["write"](call.descriptor, call.data[: call.size // 2])
            if (
                fault.error == errno.ENOSPC
            ):  # as the kernel does: first a short write, then the error
                self._exhausted.add(call.descriptor)
                return written
            if fault.phase == "untrue":
                return call.size
        result = call.proceed() if fault.phase == "after" else None
        if not fault.error:
            os.kill(os.getpid(), signal.SIGKILL)
        if call.operation == "create" and fault.phase == "after":
            self._shim.real["close"](result)  # nobody was given this descriptor
        if call.operation == "fsync":
            self._lose_pages(call)
        raise self._error(call)

    def _error(self, call: Call) -> OSError:
        error = self._fault.error
        return OSError(error, os.strerror(error), str(self._shim.world / call.path))

    def _lose_pages(self, call: Call) -> None:
        """After a failed fsync Linux counts the pages as clean and may drop them: here it does."""
        self._unsynced.add(call.descriptor)
        if self._shim.is_file(call.descriptor):
            size = os.fstat(call.descriptor).st_size
            self._shim.real["pwrite"](call.descriptor, bytes(size), 0)

    def _watch_syncs(self, call: Call) -> None:
        if call.descriptor in self._unsynced:
            if call.operation == "fsync":
                self._board.complain("fsync was tried again on a descriptor on which it had failed")
            elif call.operation.startswith("close"):
                self._unsynced.discard(call.descriptor)


class Shim:
    """Wraps the functions of `os`, `io` and `fcntl` that reach the world, in this process alone."""

    def __init__(self, world: Path) -> None:
        self.world = world
        self.watcher: Watcher = Recorder()
        self._prefix = str(world)
        self._folder = str(Path.cwd())  # what relative paths are relative to; nobody changes it
        # Held while a call is made: calls of two threads are seen in the order they took effect.
        self._lock = threading.RLock()
        self._files: dict[int, str] = {}
        self._folders: set[int] = set()
        self.real: dict[str, Callable[..., Any]] = {}

    def install(self, watcher: Watcher) -> None:
        """Wrap the calls; a process that is forked from this one is free of them."""
        global installed
        installed = self
        self.watcher = watcher
        wrapped: dict[str, Callable[..., Any]] = {
            "open": self._open, "write": self._write, "fsync": self._fsync, "close": self._close,
            "fdatasync": self._fsync, "ftruncate": self._ftruncate, "link": self._link,
            "replace": self._replace, "rename": self._replace,
        }  # fmt: skip
        for name in ("unlink", "mkdir", "rmdir", "stat", "lstat", "listdir", "scandir"):
            wrapped[name] = self._of_path(name)
        wrapped["remove"] = wrapped["unlink"]
        for name in _UNKNOWN:
            if hasattr(os, name):
                wrapped[name] = self._unknown(name)
        for name, function in wrapped.items():
            self.real[name] = getattr(os, name)
            setattr(os, name, function)
        self.real["lockf"], self.real["io.open"] = fcntl.lockf, io.open
        fcntl.lockf = self._lockf  # type: ignore[assignment]
        io.open = self._io_open  # what pathlib calls
        builtins.open = self._io_open
        os.register_at_fork(after_in_child=self.remove)

    def remove(self) -> None:
        """Put the real functions back."""
        for name, function in self.real.items():
            if name not in ("lockf", "io.open"):
                setattr(os, name, function)
        fcntl.lockf = self.real["lockf"]
        io.open = builtins.open = self.real["io.open"]

    def is_file(self, descriptor: int) -> bool:
        return descriptor in self._files and descriptor not in self._folders

    # -- what is asked of the world --------------------------------------------------------------

    def _within(self, path: Any) -> str | None:
        """The path in the world, relative to it; None where it lies elsewhere."""
        if isinstance(path, int):
            return self._files.get(path)
        text = os.path.normpath(os.path.join(self._folder, os.fsdecode(path)))
        if text == self._prefix:
            return "."
        if text.startswith(self._prefix + os.sep):
            return text[len(self._prefix) + 1 :]
        return None

    def _show(self, operation: str, path: str, proceed: Callable[[], Any], **more: Any) -> Any:
        point = Point(operation, _chain())
        with self._lock:
            return self.watcher.handle(Call(operation, point, path, proceed, **more))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def proceed() -> int:
            descriptor: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            if where is not None:
                self._files[descriptor] = where
                if flags & os.O_DIRECTORY:
                    self._folders.add(descriptor)
            return descriptor

        where = self._within(path)
        if where is None:
            return proceed()
        # To open what is there, be it for writing, changes nothing by itself.
        writes = flags & (os.O_WRONLY | os.O_RDWR) and flags & os.O_CREAT
        operation = "create" if writes else "open"
        descriptor: int = self._show(operation, where, proceed, flags=flags)
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        where = self._files.get(descriptor)
        if where is None:
            return int(self.real["write"](descriptor, data))
        written = self._show(
            "write",
            where,
            lambda: self.real["write"](descriptor, data),
            descriptor=descriptor,
            data=data,
            size=len(data),
        )
        return int(written)

    def _fsync(self, descriptor: int) -> None:
        where = self._files.get(descriptor)
        if where is None:
            self.real["fsync"](descriptor)
        else:
            self._show(
                "fsync", where, lambda: self.real["fsync"](descriptor), descriptor=descriptor
            )

    def _close(self, descriptor: int) -> None:
        def proceed() -> None:
            self.real["close"](descriptor)
            self._files.pop(descriptor, None)
            self._folders.discard(descriptor)

        where = self._files.get(descriptor)
        if where is None:
            self.real["close"](descriptor)
        elif descriptor in self._folders:
            self._show("close folder", where, proceed, descriptor=descriptor)
        else:
            self._show("close", where, proceed, descriptor=descriptor)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        where = self._files.get(descriptor)
        if where is None:
            self.real["ftruncate"](descriptor, length)
        else:
            self._show(
                "ftruncate", where, lambda: self.real["ftruncate"](descriptor, length),
                descriptor=descriptor, size=length,
            )  # fmt: skip

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        self.show_two_paths(
            "link", source, target, lambda: self.real["link"](source, target, **options)
        )

    def _replace(self, source: Any, target: Any, **options: Any) -> None:
        self.show_two_paths(
            "replace", source, target, lambda: self.real["replace"](source, target, **options)
        )

    def show_two_paths(
        self, operation: str, source: Any, target: Any, proceed: Callable[[], Any]
    ) -> None:
        """Show a call that gives a file another name, and let it be made."""
        here, there = self._within(source), self._within(target)
        if (here is None) != (there is None):
            raise AssertionError(f"not modelled: {operation} from {source} to {target}")
        if here is None or there is None:
            proceed()
        else:
            self._show(operation, here, proceed, target=there)

    def _lockf(self, descriptor: int, *more: Any) -> Any:
        where = self._files.get(descriptor)
        if where is None:
            return self.real["lockf"](descriptor, *more)
        return self._show("lockf", where, lambda: self.real["lockf"](descriptor, *more))

    def _of_path(self, name: str) -> Callable[..., Any]:
        def call(path: Any = ".", *more: Any, **options: Any) -> Any:
            where = self._within(path)
            if where is None:
                return self.real[name](path, *more, **options)
            return self._show(name, where, lambda: self.real[name](path, *more, **options))

        return call

    def _io_open(self, file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        where = None if isinstance(file, int) else self._within(file)
        if where is None:
            return self.real["io.open"](file, mode, *more, **options)
        if set(mode) & set("wax+"):
            raise AssertionError(f"not modelled: {where} is opened for writing, but not by os.open")
        return self._show("open", where, lambda: self.real["io.open"](file, mode, *more, **options))

    def _unknown(self, name: str) -> Callable[..., Any]:
        def call(subject: Any, *more: Any, **options: Any) -> Any:
            paths = [one for one in more if isinstance(one, str | bytes | os.PathLike)]
            if any(self._within(one) is not None for one in (subject, *paths)):
                raise AssertionError(f"not modelled: os.{name}")
            return self.real[name](subject, *more, **options)

        return call


#: The shim of this process.
installed: Shim | None = None


def _chain() -> tuple[str, ...]:
    """The lines of batchinfer that this thread is in, from the command down."""
    frame = sys._getframe(1)
    links: list[str] = []
    at: Any = frame
    while at is not None:
        name = at.f_code.co_filename
        if name.startswith(_PACKAGE):
            links.append(f"{name[len(_PACKAGE) :]}:{at.f_code.co_name}:{at.f_lineno}")
        at = at.f_back
    return tuple(reversed(links))


def occurrences(steps: list[Step]) -> Counter[Point]:
    """How often each point was reached."""
    return Counter(step.point for step in steps)
