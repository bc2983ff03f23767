"""The protocol, broken on purpose, one step at a time: each must be caught, or the sweeps prove nothing.

A mutant is applied in the child, to the command, the recovery and the runs that the references come
from: undisturbed, it does the same as batchinfer. Only a fault shows the difference.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.bench import Bench, Patch
from tests.faults.checks import Broken
from tests.faults.powercut import power_cut_cases
from tests.faults.scenarios import Scenario, build_scenarios, settle
from tests.faults.sweeps import SWEEPS, Case, sample

ALL_SWEEPS: dict[str, Callable[[Bench, Scenario], Iterator[Case]]] = {
    **SWEEPS,
    "power cut": power_cut_cases,
}


#: A sweep has caught a mutant when so many cases fail.
ENOUGH = 3


@dataclass(frozen=True)
class Mutant:
    """A broken protocol, and where it is looked for.

    `hunts`: sweeps and scenarios. `focus`: cases with this in their title are tried first. `other_bytes`:
    what it writes is not what batchinfer writes, also when nothing disturbs it.
    """

    name: str
    patch: Patch
    hunts: tuple[tuple[str, str], ...]
    focus: str = ""
    other_bytes: bool = False


@dataclass(frozen=True)
class Hunt:
    """How a mutant fared in a sweep over a scenario."""

    sweep: str
    scenario: str
    cases: int
    failures: tuple[str, ...]


def hunt(
    bench: Bench, mutant: Mutant, scenarios: Mapping[str, Scenario], *, quick: bool = False
) -> list[Hunt]:
    """Run cases of each of the mutant's sweeps until enough of them fail; `quick`: until one fails."""
    bench.mutation = mutant.patch
    try:
        names = {name for _, name in mutant.hunts}
        if mutant.other_bytes:
            scenarios = build_scenarios(bench, names)
        else:
            for name in names:
                settle(bench, scenarios[name])
        hunts = []
        for sweep, name in mutant.hunts:
            cases = list(ALL_SWEEPS[sweep](bench, scenarios[name]))
            cases = sorted(sample(cases, len(cases)), key=lambda c: mutant.focus not in c.title)
            failures, number = _run_until(bench, cases, 1 if quick else ENOUGH)
            hunts.append(Hunt(sweep, name, number, failures))
            if quick and failures:
                break
        return hunts
    finally:
        bench.mutation = None


def _run_until(bench: Bench, cases: list[Case], enough: int) -> tuple[tuple[str, ...], int]:
    """The first so many failures, and how many cases it took."""
    failures: list[str] = []
    for number, case in enumerate(cases, start=1):
        try:
            case.act(bench)
        except Broken as broken:  # a fault that did not fire is no such thing, and stops the suite
            failures.append(f"{case.title}: {broken}")
            if len(failures) == enough:
                return tuple(failures), number
    return tuple(failures), len(cases)


# -- what is broken ------------------------------------------------------------------------------------


def skip_file_syncs() -> None:
    sync_only(lambda descriptor: not stat.S_ISREG(os.fstat(descriptor).st_mode))


def skip_folder_syncs() -> None:
    sync_only(lambda descriptor: stat.S_ISREG(os.fstat(descriptor).st_mode))


def skip_state_folder_syncs() -> None:
    """Only files and data/ are synced: not the plan's name, and no folder's own."""
    from batchinfer.writers import durable, run_folder

    sync_directory = durable.sync_directory

    def sync_data(path: Path) -> None:
        if path.name == "data":
            sync_directory(path)

    set_all("sync_directory", sync_data, durable, run_folder)


def sync_only(wanted: Callable[[int], bool]) -> None:
    fsync = os.fsync

    def selective(descriptor: int) -> None:
        if wanted(descriptor):
            fsync(descriptor)

    os.fsync = selective  # type: ignore[assignment]


def name_before_sync() -> None:
    """The file gets its name first and is synced then."""
    from batchinfer.writers import durable, run_folder

    def publish(temporary: Path, final: Path, content: bytes | memoryview) -> bool:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        write_all(descriptor, content)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            os.fsync(descriptor)
            os.close(descriptor)
            durable.sync_directory(final.parent)
            os.unlink(temporary)
        return True

    set_all("publish", publish, durable, run_folder)


def rename_over() -> None:
    """A rename that replaces what another worker committed, in place of the link."""

    def link(source: Any, target: Any) -> None:
        os.replace(source, target)

    os.link = link  # type: ignore[assignment]


def write_in_place() -> None:
    """The shard is written straight under its final name."""
    from batchinfer.writers.durable import sync_directory, write_durably
    from batchinfer.writers.run_folder import RunFolder

    def commit(self: RunFolder, name: str, content: memoryview) -> bool:
        if os.path.lexists(self.data / name):
            return False
        write_durably(self.data / name, content)
        sync_directory(self.data)
        return True

    set_all("commit", commit, RunFolder)


def vouch_first() -> None:
    """`_SUCCESS` stands before the first shard does."""
    from batchinfer.writers.durable import publish
    from batchinfer.writers.run_folder import SUCCESS, RunFolder

    def vouch(self: RunFolder) -> None:
        publish(self.temporary / "success", self.data / SUCCESS, b"")

    set_all("retract_success", vouch, RunFolder)


def keep_vouching() -> None:
    """`_SUCCESS` is not taken back before shards change."""
    from batchinfer.writers.run_folder import RunFolder

    set_all("retract_success", lambda self: None, RunFolder)


def forget_position() -> None:
    """The footer does not say where the next row begins in the input."""
    import dataclasses

    from batchinfer.core import Position, Shard
    from batchinfer.writers import run_folder
    from batchinfer.writers import shard as module

    make_footer = vars(module)["make_footer"]

    def forgetful(shard: Shard, **more: Any) -> dict[bytes, bytes]:
        footer: dict[bytes, bytes] = make_footer(
            dataclasses.replace(shard, next=Position()), **more
        )
        return footer

    set_all("make_footer", forgetful, module)
    # Nor does anybody see that shards do not join: that alone ends an undisturbed run.
    set_all("pairwise", lambda shards: (), run_folder)


def replan_first() -> None:
    """On overwrite the new plan stands before the old job's shards are gone."""
    from batchinfer.plan import Plan
    from batchinfer.writers.durable import replace
    from batchinfer.writers.run_folder import RunFolder, has_plan

    begin = RunFolder.begin

    def hasty(self: RunFolder, plan: Plan) -> Plan:
        if has_plan(self.path):
            replace(self.temporary / "plan", self.plan_path, plan.to_json())
        return begin(self, plan)

    set_all("begin", hasty, RunFolder)


def plan_late() -> None:
    """What is new is answered before the plan knows of it."""
    from batchinfer.plan import Plan
    from batchinfer.writers.run_folder import RunFolder

    extend, finish = RunFolder.extend, RunFolder.finish
    late: list[Plan] = []

    def finish_late(self: RunFolder, shards: Any) -> None:
        for plan in late:
            extend(self, plan)
        finish(self, shards)

    set_all("extend", lambda self, plan: late.append(plan), RunFolder)
    set_all("finish", finish_late, RunFolder)


def write_increment_in_place() -> None:
    """An increment is written straight under its final name."""
    from batchinfer.increments import increment_name, to_json
    from batchinfer.plan import Plan
    from batchinfer.writers.durable import sync_directory, write_durably
    from batchinfer.writers.run_folder import RunFolder

    def extend(self: RunFolder, plan: Plan) -> None:
        write_durably(self.state / increment_name(len(plan.increments)), to_json(plan))
        sync_directory(self.state)

    set_all("extend", extend, RunFolder)


def change_plan_in_place() -> None:
    """In place of an increment, a new plan.json: shards that stand are of another one then."""
    import dataclasses

    from batchinfer.plan import Plan
    from batchinfer.writers.durable import replace
    from batchinfer.writers.run_folder import RunFolder

    def extend(self: RunFolder, plan: Plan) -> None:
        whole = dataclasses.replace(plan, increments=())
        replace(self.temporary / "plan", self.plan_path, whole.to_json())

    set_all("extend", extend, RunFolder)


def ignore_short_writes() -> None:
    """What a write did not take is not written; no length is checked."""
    write_unchecked(lambda descriptor, content: os.write(descriptor, content))


def trust_length() -> None:
    """Short writes are gone on with, but nobody looks how long the file has become."""
    write_unchecked(write_all)


def write_unchecked(write: Callable[[int, bytes | memoryview], Any]) -> None:
    from batchinfer.writers import durable

    def write_durably(path: Path, content: bytes | memoryview) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    set_all("write_durably", write_durably, durable)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def swallow_sync_errors() -> None:
    fsync = os.fsync

    def careless(descriptor: int) -> None:
        with suppress(OSError):
            fsync(descriptor)

    os.fsync = careless  # type: ignore[assignment]


def sync_again() -> None:
    """A failed fsync is tried again, and succeeds, on pages that are gone."""
    fsync = os.fsync

    def stubborn(descriptor: int) -> None:
        try:
            fsync(descriptor)
        except OSError:
            fsync(descriptor)

    os.fsync = stubborn  # type: ignore[assignment]


def lock_nothing() -> None:
    set_all("lockf", lambda *arguments: None, fcntl)


def leave_temporary_files() -> None:
    """What a killed run left in tmp/ stays there."""
    from batchinfer.writers.run_folder import RunFolder

    set_all("_clean_temporary", lambda self: None, RunFolder)


def replace_in_two_steps() -> None:
    """A shard that is made again goes before the new one comes."""
    from batchinfer.writers.durable import publish
    from batchinfer.writers.run_folder import RunFolder

    def replace(self: RunFolder, name: str, content: memoryview) -> None:
        (self.data / name).unlink()
        publish(self._temporary_of(name), self.data / name, content)

    set_all("replace", replace, RunFolder)


def set_all(name: str, value: Any, *places: Any) -> None:
    """Replace a function wherever it is looked up; that it is there is part of the test."""
    for place in places:
        assert hasattr(place, name), f"{place.__name__} has no {name} any more: the mutant is none"
        setattr(place, name, value)


MUTANTS = (
    Mutant(
        "files are not synced", skip_file_syncs, (("power cut", "fresh"), ("power cut", "retry")),
        focus="link in commit",
    ),
    Mutant(
        "folders are not synced", skip_folder_syncs,
        (("power cut", "fresh"), ("power cut", "overwrite")), focus="unlink in",
    ),
    Mutant(
        "only data/ is synced, no other folder", skip_state_folder_syncs, (("power cut", "fresh"),),
        focus="link in commit",
    ),
    Mutant(
        "a file gets its name before it is synced", name_before_sync, (("power cut", "fresh"),),
        focus="link in commit",
    ),
    Mutant("a replacing rename in place of the link", rename_over, (("race", "fresh"),), "rival"),
    Mutant(
        "shards are written straight under their final name", write_in_place,
        (("kill", "fresh"), ("power cut", "fresh")), focus="write in commit",
    ),
    Mutant(
        "`_SUCCESS` first", vouch_first, (("kill", "fresh"), ("power cut", "fresh")),
        focus="link in commit",
    ),
    Mutant(
        "`_SUCCESS` is not taken back before shards change", keep_vouching,
        (("kill", "damaged"), ("kill", "retry"), ("kill", "overwrite"), ("kill", "grown")),
        focus="after",
    ),
    Mutant(
        "the footer does not say where the next row begins", forget_position, (("kill", "fresh"),),
        focus="in commit", other_bytes=True,
    ),
    Mutant(
        "on overwrite, the new plan before the old shards go", replan_first,
        (("kill", "overwrite"), ("power cut", "overwrite")), focus="in run:",
    ),
    Mutant(
        "what is new is answered before the plan knows of it", plan_late, (("kill", "grown"),),
        focus="link in commit",
    ),
    Mutant(
        "an increment is written straight under its final name", write_increment_in_place,
        (("kill", "grown"), ("power cut", "grown")), focus="in extend",
    ),
    Mutant(
        "an increment changes plan.json itself", change_plan_in_place, (("kill", "grown"),),
        focus="link in commit",
    ),
    Mutant("a shard is replaced in two steps", replace_in_two_steps, (("kill", "retry"),), "_renew"),
    Mutant("short writes are ignored", ignore_short_writes, (("full disk", "fresh"),), "torn"),
    Mutant(
        "the length of the file is not checked", trust_length, (("I/O error", "fresh"),), "untrue"
    ),
    Mutant(
        "a failed fsync is ignored", swallow_sync_errors,
        (("I/O error", "fresh"), ("full disk", "fresh")), focus="fsync",
    ),
    Mutant(
        "a failed fsync is tried again", sync_again,
        (("I/O error", "fresh"), ("full disk", "fresh")), focus="fsync",
    ),
    Mutant("nobody holds the lock", lock_nothing, (("race", "half"),), "second run"),
    Mutant(
        "temporary files of killed runs stay", leave_temporary_files, (("kill", "fresh"),),
        focus="in commit",
    ),
)  # fmt: skip
