"""Kills runs of several processes at random moments: the driver, a device's, a part's, a machine's.

    python -m tests.faults.kills --kills 20                        # every scenario, and every mutant
    python -m tests.faults.kills --scenario parts --seed 7         # one case of it
    python -m tests.faults.kills --kills 20 --report docs/faults.md

A case starts processes as a user does, waits for a random moment, kills, sees that the kill fired (one that
came too late is repeated at another moment), goes on as a user does, and has a witness (witness.py) look at
data/ all the while: whole shards, each the same file from the first look to the last, no row twice,
`_SUCCESS` only beside every row. In the end every row is there in order, the bytes are those of an
undisturbed run of one process, `batchinfer verify` agrees, and tmp/ holds nothing but locks.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.checks import Broken, expect
from tests.faults.runs import (
    NUM_ROWS,
    NUM_SHARDS,
    Case,
    Place,
    TooLateError,
    begin_case,
    device_processes,
    is_device,
)

TWO = ("--devices", "cpu:2")
#: Moments that a case tries before it gives up: the fault must fire.
MOST_MOMENTS = 10
_WRITING = ("--task", "generate", "--max-new-tokens", "8")
#: How a run may end whose locks hold nobody back: another one takes its temporary files for those of the
#: dead, or has the folder's names first. What matters is what stands in data/.
_LAWLESS_ENDS = (0, 73, 74, 75)


# -- scenarios -----------------------------------------------------------------------------------------


def worker(case: Case) -> None:
    run = case.start(*TWO)
    case.moment(run)
    case.kill_device(run)
    if case.end(run, 0, 69) == 69:  # it died while it loaded the model
        expect("SIGKILL" in run.said, run.said)
        case.go_on()
    if "SIGKILL" not in run.said:  # it had nothing more to do, and nobody missed it
        raise TooLateError


def driver(case: Case) -> None:
    run = case.start(*TWO)
    case.moment(run)
    children = device_processes(run)
    case.kill(run)
    case.until(lambda: not any(map(is_device, children)), "processes outlive the run")
    case.go_on()


def both(case: Case) -> None:
    run = case.start(*TWO)
    case.moment(run)
    case.kill_device(run)
    pause = time.monotonic() + case.draw.random() * 0.4
    case.until(lambda: time.monotonic() >= pause, "")
    case.kill(run)
    case.go_on()


def parts(case: Case) -> None:
    shards = [f"{index}/3" for index in range(3)]
    runs = {shard: case.start("--shard", shard) for shard in shards}
    victim = case.draw.choice(shards)
    case.moment(runs[victim])
    case.kill(runs[victim])
    for shard in shards:
        if shard != victim:
            case.end(runs[shard], 0)
    case.end(case.start("--shard", victim), 0)


def machines(case: Case) -> None:
    """Which of them is killed, and which comes first, is drawn."""
    runs = [case.start("--resume", locks=False)]
    pause = time.monotonic() + case.draw.choice((0, case.draw.random()))
    case.until(lambda: time.monotonic() >= pause, "")
    runs.append(case.start("--resume", locks=False))
    victim = case.draw.choice(runs)
    case.moment(*runs)
    case.kill(victim)
    for run in runs:
        if run is not victim:
            case.end(run, *_LAWLESS_ENDS)
    case.go_on()


def crowd(case: Case) -> None:
    runs = [
        case.start("--resume", *TWO, locks=False),
        case.start("--resume", locks=False),
        case.start("--shard", "0/2", locks=False),
        case.start("--shard", "1/2", locks=False),
        case.start("--shard", "1/2", locks=False),
    ]
    case.moment(*runs)
    victims = case.draw.sample(runs, 3)
    for victim in victims:
        if victim is runs[0] and case.draw.random() < 0.5:
            with suppress(TooLateError):
                case.kill_device(victim)
        elif victim.is_alive:
            with suppress(TooLateError):
                case.kill(victim)
    if not case.kills:
        raise TooLateError
    for run in runs:
        case.end(run, *_LAWLESS_ENDS, 69, -signal.SIGKILL)
    case.go_on()


@dataclass(frozen=True)
class Scenario:
    """What is started and killed; `extra`: flags of the job."""

    title: str
    act: Callable[[Case], None]
    extra: tuple[str, ...] = ()


SCENARIOS = {
    "worker": Scenario("`--devices cpu:2`, one of the two processes is killed; the run goes on", worker),
    "driver": Scenario("`--devices cpu:2`, the run itself is killed; `resume`", driver),
    "both": Scenario("`--devices cpu:2`, first a process, then the run; `resume`", both),
    "parts": Scenario("`--shard 0/3` to `2/3` at once, one is killed and started again", parts),
    "machines": Scenario(
        "two `run --resume` of one folder at once whose locks hold nobody back, one is killed; `resume`",
        machines,
    ),
    "machines that write": Scenario(
        "the same with `--task generate`, whose open chunks have journals", machines, _WRITING
    ),
    "crowd": Scenario(
        "five at once, no locks: `--devices cpu:2`, another run, and parts, one of them twice; up to three "
        "are killed; `resume`",
        crowd,
    ),
}  # fmt: skip
#: Where each protocol of outside.py that is broken on purpose is looked for.
HUNTS = {
    "a replacing rename in place of the link": "machines",
    "shards are written straight under their final name": "driver",
    "a name that is taken becomes the next free one": "machines",
    "who saw no plan begins anew, though there is one by now": "crowd",
    "a part that is done vouches for the whole": "parts",
    "what a process was at when it died is forgotten": "worker",
}


@dataclass
class Tally:
    """What the cases of a scenario came to; the first failure ends them."""

    name: str
    cases: int = 0
    kills: int = 0
    too_late: int = 0
    seconds: float = 0.0
    failure: str = ""


def sweep(place: Place, name: str, cases: int, seed: int) -> Tally:
    """So many cases of a scenario in which the kill fired, or up to the first failure."""
    scenario, tally, began = SCENARIOS[name], Tally(name), time.monotonic()
    for number in range(seed, seed + cases):
        draw = random.Random(f"{name} {number}")
        try:
            for _ in range(MOST_MOMENTS):
                with begin_case(place, draw, scenario.extra) as case:
                    try:
                        scenario.act(case)
                    except TooLateError:
                        tally.too_late += 1
                        continue
                    case.conclude()
                    tally.cases += 1
                    tally.kills += case.kills
                    break
            else:
                raise Broken(f"no kill fired in {MOST_MOMENTS} attempts")
        except Broken as broken:
            tally.cases += 1
            tally.failure = f"--scenario '{name}' --seed {number}: {broken}"
            break
    tally.seconds = time.monotonic() - began
    return tally


def hunt(work: Path, mutant: str, cases: int, seed: int) -> Tally:
    """The same with a broken protocol, whose failure is what is wanted."""
    place = Place(work / f"mutant-{list(HUNTS).index(mutant)}", mutant)
    return sweep(place, HUNTS[mutant], cases, seed)


# -- the page ------------------------------------------------------------------------------------------

_HEADING = "## Processes killed from outside"
_SECTION = (
    _HEADING
    + """

Written by `python -m tests.faults.kills --kills {cases}`. {rows} rows in {shards} shards, the fake engine
made slow, real processes; SIGKILL at a random moment, before the first shard or behind any. While they run,
a reader (pyarrow alone) looks at `data/`: whole shards, each the same file from then on, no row twice,
`_SUCCESS` only beside every row. In the end every row is there once and in order, the bytes are those of
one undisturbed process, and `verify` agrees. A kill that met nobody is repeated at another moment.

| scenario | | cases | kills | too late | s |
|---|---|---|---|---|---|
{table}

All {total} cases recovered, after {kills} kills. Each of these {mutants} mutants was caught too:

| mutant | caught by |
|---|---|
{caught}

Parts that overlap are no such mutant: what two runs answer is created once, as in `crowd`.

"""
)


def write_section(page: Path, tallies: Sequence[Tally], caught: dict[str, Tally]) -> None:
    """Put the figures into docs/faults.md, in place of those that it has."""
    section = _SECTION.format(
        cases=max(tally.cases for tally in tallies), rows=NUM_ROWS, shards=NUM_SHARDS,
        total=sum(tally.cases for tally in tallies), kills=sum(tally.kills for tally in tallies),
        table="\n".join(
            f"| {t.name} | {SCENARIOS[t.name].title} | {t.cases} | {t.kills} | {t.too_late} | "
            f"{t.seconds:.0f} |" for t in tallies
        ),
        caught="\n".join(
            f"| {name} | {tally.name}, case {tally.cases} |" for name, tally in caught.items()
        ),
        mutants=len(caught),
    )  # fmt: skip
    text = page.read_text()
    next_heading = "## Again"
    end = text.index(next_heading)
    begin = text.index(_HEADING) if _HEADING in text else end
    page.write_text(text[:begin] + section + text[end:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1, help="cases of each scenario")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), default=[])
    parser.add_argument("--mutant", action="append", choices=list(HUNTS), default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    everything = not chosen.scenario and not chosen.mutant
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk's fsync takes long
    work = Path(tempfile.mkdtemp(prefix="kills-", dir=parent)).resolve()
    tallies, caught = [], {}
    try:
        place = Place(work / "place")
        for name in SCENARIOS if everything else chosen.scenario:
            tallies.append(sweep(place, name, chosen.kills, chosen.seed))
            one = tallies[-1]
            print(
                f"{name:20} {one.cases:4} cases {one.kills:4} kills {one.too_late:3} too late "
                f"{one.seconds:5.0f} s  {one.failure or 'every row once'}",
                flush=True,
            )
        for name in HUNTS if everything else chosen.mutant:
            caught[name] = hunt(work, name, max(10, chosen.kills), chosen.seed)
            print(f"mutant: {name}: {caught[name].failure or 'NOT CAUGHT'}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    is_well = not any(t.failure for t in tallies) and all(t.failure for t in caught.values())
    if chosen.report and is_well and everything:
        write_section(chosen.report, tallies, caught)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
