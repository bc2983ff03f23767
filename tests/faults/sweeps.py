"""Kills, full disks and I/O errors at every point, twice in a row, and another worker in between.

A sweep makes cases out of a scenario; a case prepares the world, disturbs the command, looks at what
stands there, recovers, and looks again. It raises Broken where the promise does not hold.
"""

from __future__ import annotations

import errno
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.bench import Bench, Meanwhile, Outcome, read_tree
from tests.faults.checks import (
    check_at_rest,
    check_done,
    check_fired,
    check_recovery,
    check_refusal,
    check_success,
    expect,
)
from tests.faults.scenarios import Scenario, data_of, shard_steps, tear
from tests.faults.shim import (
    CHANGING,
    NEED_SPACE,
    Call,
    Fault,
    Point,
    Shim,
    Step,
    occurrences,
)

#: Operations that can fail with EIO; a close reports nothing that fsync has not.
CAN_FAIL = frozenset({"create", "write", "fsync", "link", "unlink", "replace", "mkdir", "rmdir"})
#: Operations that read, and can fail too.
CAN_FAIL_READING = frozenset({"open", "listdir", "scandir", "stat", "lstat"})

#: Cases of a scenario that are killed twice.
DOUBLE_KILLS = 40

Act = Callable[[Bench], None]


@dataclass(frozen=True)
class Case:
    """One disturbance. `point`: what it counts for, if anything; `reads`: it only reads the folder."""

    sweep: str
    scenario: str
    name: str
    title: str
    point: str
    act: Act
    reads: bool = False

    @property
    def id(self) -> str:
        return f"{self.sweep}/{self.scenario}/{self.name}"


def record(bench: Bench, scenario: Scenario) -> list[Step]:
    """The calls of the undisturbed command."""
    bench.reset(scenario.template)
    return bench.record(scenario.command, scenario.patch).steps


# -- kill --------------------------------------------------------------------------------------------


def kill_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """SIGKILL at every point of the command: before, after, and in the middle of a write."""
    for number, fault in enumerate(faults(record(bench, scenario), phases_of_kill, error=0)):
        yield Case(
            "kill", scenario.name, fault.id, str(fault), f"{fault.point.id} {fault.phase}",
            partial(kill, scenario=scenario, fault=fault, number=number),
            reads=fault.point.operation not in CHANGING,
        )  # fmt: skip


def kill(bench: Bench, scenario: Scenario, fault: Fault, number: int) -> None:
    bench.reset(scenario.template)
    strike_dead(bench, scenario, fault, scenario.command)
    check_recovery(bench, scenario, number)


def strike_dead(bench: Bench, scenario: Scenario, fault: Fault, command: Sequence[str]) -> None:
    """Kill a command, and look at what it left."""
    outcome = bench.strike(command, fault, scenario.patch)
    check_fired(outcome)
    expect(outcome.was_killed, f"the command was not killed: {outcome.code}")
    check_at_rest(data_of(read_tree(bench.world)), scenario)


def double_kill_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """Kill the command, then kill the recovery at a random point of it, then recover; a sample."""
    steps = [step for step in record(bench, scenario) if step.operation in CHANGING]
    cases = [
        Case(
            "double kill", scenario.name, fault.id, f"{fault}; then the recovery",
            f"{fault.point.id} {fault.phase}",
            partial(double_kill, scenario=scenario, fault=fault, number=number),
        )
        for number, fault in enumerate(faults(steps, phases_of_kill, error=0))
    ]  # fmt: skip
    yield from sample(cases, DOUBLE_KILLS)


def double_kill(bench: Bench, scenario: Scenario, fault: Fault, number: int) -> None:
    bench.reset(scenario.template)
    strike_dead(bench, scenario, fault, scenario.command)
    killed = read_tree(bench.world)
    recovery = scenario.recovery(bench, number)
    steps = bench.record(recovery, scenario.patch).steps
    choices = [f for f in faults(steps, phases_of_kill, 0) if f.point.operation in CHANGING]
    second = random.Random(fault.id).choice(choices)
    bench.reset(killed)
    strike_dead(bench, scenario, second, recovery)
    check_recovery(bench, scenario, number)


def phases_of_kill(step: Step) -> list[str]:
    if step.operation not in CHANGING:
        return ["before"]
    if step.operation == "close":
        return ["after"]  # before a close is after the call before it
    return ["before", "after", *(["torn"] if step.operation == "write" and step.size > 1 else [])]


# -- errors ------------------------------------------------------------------------------------------


def full_disk_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """ENOSPC at every call that needs room: once, and from there on until there is room again."""
    steps = [step for step in record(bench, scenario) if step.operation in NEED_SPACE]
    for lasting in (False, True):
        found = faults(steps, phases_of_full_disk, errno.ENOSPC, lasting=lasting)
        for number, fault in enumerate(found):
            yield Case(
                "full disk", scenario.name, fault.id, str(fault), f"{fault.point.id} {fault.phase}",
                partial(refuse, scenario=scenario, fault=fault, number=number, code=75),
            )  # fmt: skip


def io_error_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """EIO at every call: before it takes effect, in the middle of a write, and as a lost reply."""
    steps = record(bench, scenario)
    steps = [step for step in steps if step.operation in CAN_FAIL | CAN_FAIL_READING]
    for number, fault in enumerate(faults(steps, phases_of_io_error, errno.EIO)):
        yield Case(
            "I/O error", scenario.name, fault.id, str(fault), f"{fault.point.id} {fault.phase}",
            partial(refuse, scenario=scenario, fault=fault, number=number, code=74),
            reads=fault.point.operation in CAN_FAIL_READING,
        )  # fmt: skip


def refuse(bench: Bench, scenario: Scenario, fault: Fault, number: int, code: int) -> None:
    """The command must give up with this code and one line, or do all its work in spite of it."""
    bench.reset(scenario.template)
    outcome = bench.strike(scenario.command, fault, scenario.patch)
    check_fired(outcome)
    expect(not outcome.complaint, outcome.complaint)
    if outcome.code == scenario.code:
        expect(fault.point.operation != "fsync", "a failed fsync was passed over")
        check_success(outcome, scenario, "the command")
        check_done(bench, scenario)
    else:
        check_refusal(outcome, code, "the command")
        check_at_rest(data_of(read_tree(bench.world)), scenario)
    check_recovery(bench, scenario, number)


def phases_of_full_disk(step: Step) -> list[str]:
    return ["before", *(["torn"] if step.operation == "write" and step.size > 1 else [])]


def phases_of_io_error(step: Step) -> list[str]:
    if step.operation in CAN_FAIL_READING or step.operation == "fsync":
        return ["before"]
    if step.operation == "write":
        return ["before", *(["torn", "untrue"] if step.size > 1 else [])]
    return ["before", "after"]  # after: a network file system whose reply was lost


def faults(
    steps: list[Step],
    phases: Callable[[Step], list[str]],
    error: int,
    *,
    lasting: bool = False,
) -> Iterator[Fault]:
    """Every point in every phase: the first time that it is reached, one in the middle, the last.

    Points that only read: the first time.
    """
    reached = occurrences(steps)
    examples: dict[Point, Step] = {}
    for step in steps:
        examples.setdefault(step.point, step)
    for point, step in examples.items():
        times = reached[point]
        chosen = {1, (times + 1) // 2, times} if point.operation in CHANGING else {1}
        for time in sorted(chosen):
            for phase in phases(step):
                yield Fault(point, time, phase, error, lasting)


# -- another worker ----------------------------------------------------------------------------------


def race_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """Another worker is first with a shard, or a second run comes while the first one lives."""
    steps = record(bench, scenario)
    for number, (step, time) in enumerate(shard_steps(steps)):
        fault = Fault(step.point, time, "before")
        name = Path(step.target).name
        kinds = {
            "rival": ("a worker of the same job commits", lose_race),
            "stranger": ("a worker of another job commits", meet_stranger),
            "torn": ("somebody leaves a torn", meet_torn),
        }
        for kind, (what, act) in kinds.items():
            yield Case(
                "race", scenario.name, f"{kind}-{name}", f"{what} {name} first", f"{kind} {name}",
                partial(act, scenario=scenario, fault=fault, name=name, number=number),
            )  # fmt: skip
    takes_lock = [n for n, s in enumerate(steps) if s.operation in ("create", "lockf")]
    locked = max(n for n in takes_lock if steps[n].path.endswith("/lock"))
    rest = [step for step in steps[locked + 1 :] if step.operation in CHANGING - {"close"}]
    for fault in faults(rest, lambda step: ["before"], 0):
        if fault.occurrence == 1:
            yield Case(
                "race", scenario.name, f"second-{fault.point.id}",
                f"a second run comes before {fault.point}", f"second {fault.point.id}",
                partial(meet_second_run, scenario=scenario, fault=fault),
            )  # fmt: skip


class Interruption:
    """Does something just before a call is made."""

    def __init__(self, fault: Fault, bench: Bench, action: Callable[[Shim], None], shim: Shim):
        self._fault, self._bench, self._action, self._shim = fault, bench, action, shim
        self._reached = 0

    def handle(self, call: Call) -> Any:
        if call.point == self._fault.point:
            self._reached += 1
            if self._reached == self._fault.occurrence:
                self._bench.board.fire()
                self._action(self._shim)
        return call.proceed()


def interrupt(
    bench: Bench,
    scenario: Scenario,
    fault: Fault,
    action: Callable[[Shim], None],
    meanwhile: Meanwhile | None = None,
) -> Outcome:
    """Run the command, and do something just before it makes a call."""
    bench.reset(scenario.template)
    outcome = bench.watch(
        scenario.command,
        lambda shim: Interruption(fault, bench, action, shim),
        scenario.patch,
        meanwhile,
    )
    check_fired(outcome)
    return outcome


def lose_race(bench: Bench, scenario: Scenario, fault: Fault, name: str, number: int) -> None:
    """The other's shard stays as it is, and the command goes on."""
    theirs = scenario.rivals[name]
    expect(theirs != scenario.reference[name], "the other worker's bytes are ours")
    outcome = interrupt(bench, scenario, fault, lambda shim: put(shim, bench, name, theirs))
    expected = {**scenario.reference, name: theirs}
    check_success(outcome, scenario, "the command that lost the race")
    check_done(bench, scenario, expected)
    check_recovery(bench, scenario, 0, expected)  # 0: overwriting anew would rightly replace it


def meet_stranger(bench: Bench, scenario: Scenario, fault: Fault, name: str, number: int) -> None:
    """A shard of another job is neither replaced nor counted as ours."""
    check_stays(bench, scenario, fault, name, scenario.strangers[name], code=73)
    (bench.output / "data" / name).unlink()
    check_recovery(bench, scenario, number)


def meet_torn(bench: Bench, scenario: Scenario, fault: Fault, name: str, number: int) -> None:
    """A torn file under the shard's name: whoever made it, it is not replaced, but set aside later."""
    check_stays(bench, scenario, fault, name, tear(scenario.reference[name]), code=74)
    check_recovery(bench, scenario, number)


def check_stays(
    bench: Bench, scenario: Scenario, fault: Fault, name: str, content: bytes, code: int
) -> None:
    """A file that appears under a shard's name stops the command, and stays as it is."""
    outcome = interrupt(bench, scenario, fault, lambda shim: put(shim, bench, name, content))
    check_refusal(outcome, code, "the command that met a shard that is not its own")
    data = data_of(read_tree(bench.world))
    expect(data.get(name) == content, f"{name} was changed")
    del data[name]
    check_at_rest(data, scenario)


def meet_second_run(bench: Bench, scenario: Scenario, fault: Fault) -> None:
    """While the command lives, another one is refused and changes nothing."""
    found: list[tuple[Outcome, bool]] = []

    def come() -> None:
        before = read_tree(bench.world)
        second = Bench(bench.work / "second", bench.world)
        outcome = second.run(scenario.recovery(bench, 0), scenario.patch)
        found.append((outcome, read_tree(bench.world) == before))

    meanwhile = Meanwhile(come)
    outcome = interrupt(bench, scenario, fault, lambda shim: meanwhile.stand_still(), meanwhile)
    ((second, is_unchanged),) = found
    check_refusal(second, 75, "the second run")
    expect(is_unchanged, "the second run changed the folder")
    check_success(outcome, scenario, "the command in whose way another came")
    check_done(bench, scenario)


def put(shim: Shim, bench: Bench, name: str, content: bytes) -> None:
    """Commit a shard as another worker would."""
    temporary = bench.work / "theirs"
    with shim.real["io.open"](temporary, "wb") as file:
        file.write(content)
    shim.real["replace"](temporary, bench.output / "data" / name)


def sample(cases: list[Case], size: int, seed: int = 0) -> list[Case]:
    """Some of the cases, spread over points and phases; the same ones each time."""
    if len(cases) <= size:
        return cases

    def rank(case: Case) -> str:
        return hashlib.sha256(f"{seed} {case.id}".encode()).hexdigest()

    return sorted(cases, key=rank)[:size]


SWEEPS: dict[str, Callable[[Bench, Scenario], Iterator[Case]]] = {
    "kill": kill_cases,
    "double kill": double_kill_cases,
    "full disk": full_disk_cases,
    "I/O error": io_error_cases,
    "race": race_cases,
}
