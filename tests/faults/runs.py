"""A folder with inputs, and runs of batchinfer in it that are killed, looked at and gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.conftest import ROOT, shard_bytes
from tests.faults.checks import expect
from tests.faults.witness import Witness

#: What takes longer has hung; it takes seconds.
TIMEOUT_SECONDS = 120
NUM_ROWS, _CHUNK_ROWS = 360, 20
NUM_SHARDS = NUM_ROWS // _CHUNK_ROWS
_JOB = (
    "a.jsonl", "b.jsonl", "--engine", "fake", "--workers", "0", "--chunk-rows", str(_CHUNK_ROWS),
    "--max-batch-tokens", "256", "--no-progress",
)  # fmt: skip


class TooLateError(Exception):
    """The kill met nobody."""


@dataclass
class Run:
    """A process that a case has started, and what it says."""

    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    @property
    def said(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace").strip()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


class Place:
    """A folder with inputs, the bytes of undisturbed runs, and cases one after the other."""

    def __init__(self, folder: Path, mutant: str = "") -> None:
        self.folder, self.mutant = folder, mutant
        folder.mkdir(parents=True)
        for name, begin in (("a.jsonl", 0), ("b.jsonl", NUM_ROWS * 3 // 5)):
            end = NUM_ROWS * 3 // 5 if name == "a.jsonl" else NUM_ROWS
            texts = [f"row {i} " * (1 + i % 7) for i in range(begin, end)]
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (folder / name).write_text(lines)
        self.output = folder / "out"
        self._references: dict[tuple[str, ...], dict[str, bytes]] = {}

    def reference(self, extra: tuple[str, ...]) -> dict[str, bytes]:
        """The bytes of data/ that one process leaves with nothing to disturb it."""
        if extra not in self._references:
            command = ["run", *_JOB, *extra, "--output", "whole"]
            done = self.call("batchinfer", *command)
            assert done.returncode == 0, done.stderr
            self._references[extra] = shard_bytes(self.folder / "whole")
            shutil.rmtree(self.folder / "whole")
        return self._references[extra]

    def call(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=self.folder, env=self.environ(),
            capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip

    def environ(self, *, locks: bool = True, seconds: float = 0.0) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "LOCKS": "on" if locks else "off",
            "MUTANT": self.mutant,
            "POISON_ANSWER": str(seconds),
        }


class Case:
    """One disturbance of one output folder."""

    def __init__(self, place: Place, draw: random.Random, extra: tuple[str, ...] = ()) -> None:
        self.place, self.draw, self.extra = place, draw, extra
        self.kills = 0
        self._runs: list[Run] = []
        shutil.rmtree(place.output, ignore_errors=True)
        inputs = [place.folder / "a.jsonl", place.folder / "b.jsonl"]
        self.witness = Witness(place.output / "data", inputs)

    def start(self, *more: str, locks: bool = True, command: str = "run") -> Run:
        """Start a run of the job, or with `resume` one that goes on."""
        job = ["run", *_JOB, *self.extra, "--output", "out", *more]
        if command == "resume":
            job = ["resume", "out", *more]
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.outside", *job], cwd=self.place.folder,
            env=self.place.environ(locks=locks, seconds=0.02), stderr=stderr,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._runs.append(Run(process, stderr))
        return self._runs[-1]

    def close(self) -> None:
        for run in self._runs:
            if run.is_alive:
                run.process.kill()
            run.process.wait()
            run.stderr.close()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Look at data/ until something is so."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not holds():
            self.witness.look()
            expect(time.monotonic() < deadline, f"hangs: {what}")
            time.sleep(0.005)

    def moment(self, *runs: Run) -> None:
        """Wait for a random one: so many shards, and a little more; or before the first of them."""
        shards, after = self.draw.randrange(NUM_SHARDS), self.draw.random() * 0.15
        if not shards:
            after *= 8

        def has_come() -> bool:
            is_over = not any(run.is_alive for run in runs)
            return is_over or self.witness.look() >= shards

        self.until(has_come, "shards do not come")
        then = time.monotonic() + after
        self.until(lambda: time.monotonic() >= then, "")

    def kill(self, run: Run) -> None:
        """Kill a process that must be alive. Raises TooLateError."""
        run.process.kill()
        if run.process.wait() != -signal.SIGKILL:
            raise TooLateError
        self.kills += 1

    def kill_device(self, run: Run) -> None:
        """Kill one of the processes that have the model. Raises TooLateError."""
        victims = device_processes(run)
        if not victims:
            raise TooLateError
        victim = self.draw.choice(victims)
        os.kill(victim, signal.SIGKILL)
        self.kills += 1

    def end(self, run: Run, *codes: int) -> int:
        """Wait for the end of a run, which must be one of these, said in a line."""
        self.until(lambda: not run.is_alive, "a run does not end")
        code = run.process.returncode
        expect(code in codes, f"a run ended with {code}: {run.said[-500:]}")
        expect("Traceback" not in run.said, f"a run shows a traceback: {run.said[-500:]}")
        return code

    def go_on(self) -> None:
        """What a user does behind a kill: resume, or begin again where there is no plan yet."""
        has_plan = (self.place.output / "_batchinfer" / "plan.json").exists()
        self.end(self.start(command="resume") if has_plan else self.start(), 0)

    def conclude(self) -> None:
        """Every row is there, as an undisturbed run leaves it."""
        self.witness.conclude()
        expect(
            shard_bytes(self.place.output) == self.place.reference(self.extra), "the bytes differ"
        )
        done = self.place.call("batchinfer", "verify", "out")
        expect(done.returncode == 0, f"verify: {done.stdout} {done.stderr}")
        left = (self.place.output / "_batchinfer" / "tmp").glob("**/*")
        names = {path.name for path in left if path.is_file()}
        expect(names <= {"lock"}, f"temporary files are left: {names}")


def device_processes(run: Run) -> list[int]:
    """The children of a run that have the model; there are no loaders, and helpers are no such."""
    found = []
    with suppress(OSError):
        pid = run.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():  # a zombie's is empty
                found.append(int(child))
    return found


def is_device(pid: int) -> bool:
    with suppress(OSError):
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    return False


@contextmanager
def begin_case(place: Place, draw: random.Random, extra: tuple[str, ...]) -> Iterator[Case]:
    case = Case(place, draw, extra)
    try:
        yield case
    finally:
        case.close()
