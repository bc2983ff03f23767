"""Runs batchinfer's command line in forked children, hundreds of times a minute.

A bench is a single-threaded process that has imported all that a run with the fake engine needs. For
each command it forks a child, which installs the shim and the fault and calls the command line; it
dies by its own SIGKILL or exits with the command's code. Starting an interpreter each time would take
twenty times as long.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import multiprocessing.context
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tests.faults.shim import Board, Fault, Injector, Recorder, Shim, Step, Watcher

#: A command that takes longer has hung; an undisturbed one takes 0.05 s.
TIMEOUT_SECONDS = 60

#: What a run with the fake engine imports when it gets there.
_LAZY = (
    "numpy.ma",
    "pyarrow.parquet",
    "typer._adapters",
    "batchinfer.engines.fake",
    "batchinfer.reporting.progress",
    "batchinfer.runner",
    "batchinfer.tasks.classify",
)

#: A folder by relative path: a file's content, or None for a folder.
Tree = dict[str, bytes | None]

#: Changes batchinfer in the child before the command runs.
Patch = Callable[[], None]


def import_all() -> None:
    """Import what a run imports lazily, without starting a thread of Arrow's."""
    from batchinfer.lean import spare_pandas

    spare_pandas()
    for name in _LAZY:
        importlib.import_module(name)
    import typer.main

    import batchinfer.cli
    import batchinfer.readers.listing

    # Every input file is a segment of its own, however small it is.
    assert batchinfer.readers.listing.MAX_SMALL_FILE_BYTES
    batchinfer.readers.listing.MAX_SMALL_FILE_BYTES = 0
    # Building the parser takes half of a small run's time, and gives the same each time.
    typer.main.get_command = functools.cache(typer.main.get_command)
    command: Any = typer.main.get_command(batchinfer.cli.app)
    for one in (command, *command.commands.values()):
        for parameter in one.params:
            parameter.get_runtime_param()
    # Children that a command starts are forked from it: a spawned one imports everything anew.
    contexts: Any = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = _ForkAsSpawn()
    resource_tracker.ensure_running()  # once, and not in each child
    gc.collect()
    gc.freeze()  # children need not copy pages to collect what they inherited


class _ForkAsSpawn(multiprocessing.context.ForkContext):
    """Forks where batchinfer spawns; as there, a child inherits no pipe but what it is given."""

    def Pipe(self, duplex: bool = True) -> Any:  # noqa: N802 - the name in multiprocessing
        ours, theirs = super().Pipe(duplex)
        os.register_at_fork(after_in_child=ours.close)
        return ours, theirs


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, or minus the signal that killed it."""

    code: int
    stderr: str
    fired: bool
    complaint: str
    steps: list[Step]

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def said(self) -> str:
        """The end of stderr, in one line."""
        return " / ".join(self.stderr.split("\n")[-4:]).strip(" /")

    @property
    def error_lines(self) -> list[str]:
        """What stderr says beside the log, whose lines begin with a time."""
        lines = self.stderr.splitlines()
        return [line for line in lines if not line[:4].isdigit()]


class Meanwhile:
    """Lets the bench do something while a command stands still.

    It must be this process that does it: a second command that were forked from the first one would
    inherit what that one knows.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._stopped = os.pipe()
        self._done = os.pipe()

    def stand_still(self) -> None:
        """In the child: wait until the action is over."""
        os.write(self._stopped[1], b".")
        os.read(self._done[0], 1)

    def attend(self) -> None:
        """In the bench: act once the child stands still, if it ever does."""
        os.close(self._stopped[1])
        try:
            if os.read(self._stopped[0], 1):
                self._action()
        finally:
            os.write(self._done[1], b".")
            for descriptor in (self._stopped[0], *self._done):
                os.close(descriptor)


class Bench:
    """A world, and the means to run commands in it: their working folder is the world."""

    def __init__(self, work: Path, world: Path | None = None) -> None:
        self.work = work
        self.world = world or work / "world"
        self.output = self.world / "out"
        self.board = Board()
        #: Changes batchinfer for every command: a mutant.
        self.mutation: Patch | None = None
        work.mkdir(parents=True, exist_ok=True)
        if sys.platform == "linux":
            # Children of a command that was killed come to this process, which takes them away.
            set_child_subreaper = 36
            ctypes.CDLL(None).prctl(set_child_subreaper, 1)

    def reset(self, tree: Tree) -> None:
        """Make the world this."""
        shutil.rmtree(self.world, ignore_errors=True)
        self.world.mkdir()
        for name in sorted(tree):
            content = tree[name]
            if content is None:
                (self.world / name).mkdir()
            else:
                (self.world / name).write_bytes(content)

    def run(self, arguments: Sequence[str], patch: Patch | None = None) -> Outcome:
        """Run a command to its end."""
        return self._call(arguments, patch, lambda shim: Recorder())

    def strike(self, arguments: Sequence[str], fault: Fault, patch: Patch | None = None) -> Outcome:
        """Run a command with a fault in it."""
        return self._call(arguments, patch, lambda shim: Injector(fault, self.board, shim))

    def record(
        self, arguments: Sequence[str], patch: Patch | None = None, *, contents: bool = False
    ) -> Outcome:
        """Run a command to its end, and keep every call on the world that succeeded."""
        return self._call(arguments, patch, lambda shim: Recorder(contents), keep_steps=True)

    def watch(
        self,
        arguments: Sequence[str],
        make: Callable[[Shim], Watcher],
        patch: Patch | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> Outcome:
        """Run a command under a watcher of one's own."""
        return self._call(arguments, patch, make, meanwhile=meanwhile)

    def _call(
        self,
        arguments: Sequence[str],
        patch: Patch | None,
        make: Callable[[Shim], Watcher],
        *,
        keep_steps: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> Outcome:
        self.board.clear()
        child = os.fork()
        if child == 0:
            self._be_the_child(arguments, patch, make, keep_steps)
        if meanwhile is not None:
            meanwhile.attend()
        _, status = os.waitpid(child, 0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        steps = pickle.loads(self._steps.read_bytes()) if keep_steps else []
        return Outcome(
            code=os.waitstatus_to_exitcode(status),
            stderr=self._stderr.read_text(errors="replace"),
            fired=self.board.fired,
            complaint=self.board.complaint,
            steps=steps,
        )

    def _be_the_child(
        self,
        arguments: Sequence[str],
        patch: Patch | None,
        make: Callable[[Shim], Watcher],
        keep_steps: bool,
    ) -> None:
        code = 70
        try:
            signal.alarm(TIMEOUT_SECONDS)
            for descriptor, path in ((1, self._stdout), (2, self._stderr)):
                opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, descriptor)
                os.close(opened)
            os.chdir(self.world)
            shim = Shim(self.world)
            watcher = make(shim)
            shim.install(watcher)
            for change in (self.mutation, patch):
                if change is not None:
                    change()
            from batchinfer.cli import main

            code = main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            shim.remove()
            if keep_steps and isinstance(watcher, Recorder):
                self._steps.write_bytes(pickle.dumps(watcher.steps))
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    @property
    def _stdout(self) -> Path:
        return self.work / "stdout"

    @property
    def _stderr(self) -> Path:
        return self.work / "stderr"

    @property
    def _steps(self) -> Path:
        return self.work / "steps"


def read_tree(folder: Path) -> Tree:
    """Everything below a folder."""
    tree: Tree = {}
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        tree.update({str(below / name): None for name in folders})
        tree.update({str(below / name): (Path(place) / name).read_bytes() for name in files})
    return tree
