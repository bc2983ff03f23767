"""The figures of a whole run of the suite, as docs/faults.md. Nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.faults.mutants import MUTANTS, Hunt
from tests.faults.powercut import STATES_PER_CORE

#: A double kill injects two.
FAULTS_OF_A_CASE = {"double kill": 2}

_HEAD = """\
# Faults

Written by `make faults`, from what was counted in that run.

**{promise}**

In each of {cases:,} cases a command was disturbed, what it left was read, it was recovered, and every file
of `data/` was compared with an undisturbed run's.

## What is disturbed

All scenarios work on 55 rows of two files, two rows of them bad, in four or six shards, with the fake
engine. The commands are those of the command line, with their real exit codes and messages.

| scenario | |
|---|---|
{scenarios}

## How

| sweep | what happens | what must hold |
|---|---|---|
| kill | SIGKILL before and after each call that changes the run folder, half-way through each write, and \
before each call that reads it | at the crash, `data/` holds nothing but whole shards, no row twice, and \
`_SUCCESS` only beside a complete set; one `resume` later every byte is that of an undisturbed run, `tmp/` \
is empty, and another `resume` changes nothing |
| double kill | a sample of these, and the recovery is killed too, at a random point of it | the same |
| full disk | ENOSPC at each call that needs room, once, and from there on until there is room again; also \
as a short write first | exit code 75 and one line, or no harm at all; then the same |
| I/O error | EIO at each call; before it takes effect, after it did (a lost reply), half-way through a \
write; and writes that keep half and claim all. After a failed fsync the file's bytes are gone | exit code \
74 and one line, or no harm at all; fsync is never tried again on that descriptor; then the same |
| power cut | the calls of an undisturbed run, with what they wrote; after each of them, the states of the \
disk in which nothing that was not synced is there, everything, each single entry, all but one, and \
random ones | the same in each state; and once the command has exited, every row is there in all of them |
| race | another worker of the same job, or of another one, has the shard's name first, or a torn file has \
it; a second command comes while the first one lives | the other's bytes stay; another job's shard is \
refused (73), a torn one too (74); the second command is refused (75) and changes nothing |

A *point* is an operation and the chain of lines in batchinfer that led to it, in one phase (before, after,
half-way); it counts once, however many shards pass it, and is tried the first, the middle and the last
time (the first alone, where it only reads). Each cell: distinct points, and cases; of power cuts: states of
the disk that differ in content, and cases, one of which looks at all states at the end.

{table}

Of the {kill_points:,} points of the kill sweep, {kill_reads:,} only read the folder. ENOSPC and EIO were
injected at {error_points:,} points, {error_reads:,} of which only read. All {cases:,} cases recovered.

## The protocol broken on purpose

A sweep that never fails proves nothing. Each of these {mutants} mutants passes every check as long as
nothing disturbs it, and each was caught. Cases were run, likely ones first, until three had failed.

| mutant | caught by |
|---|---|
{caught}

## Again

```console
make faults                                              # all of it, and this page
python -m tests.faults.suite --all                       # all of it
python -m tests.faults.suite --sweep kill --scenario fresh
python -m tests.faults.suite --case kill/fresh/…         # one case, by the name that a failure is told with
```

The suite is in [tests/faults/](../tests/faults): `shim.py` stands between batchinfer and the file system,
`scenarios.py` prepares, `sweeps.py` and `powercut.py` make the cases, `checks.py` judges, `mutants.py`
breaks the protocol. `make test` runs a sample of the cases and all mutants.

## What this covers, and what not

- Faults are injected where Python calls the operating system. All calls that change the run folder pass
  there (seen with `strace`), and one that the suite does not know makes it fail.
- The power-cut model follows ALICE: a file's bytes are durable with its fsync, a name with its folder's,
  entries reach the disk in any order, unsynced bytes are absent, whole, half there, or zeros. Within a
  single write other tears than half are not tried; a disk that lies about flushing is not modelled. Of
  states that differ only in `tmp/`, which recovery empties, at most {per_core} are tried.
- The fake engine answers, so what is tested is the way of the rows and the files, not of the model. Loader
  processes (`--workers`) read inputs and change nothing but marks in `tmp/`; real models are killed by
  `tests/faults/soak.py` and `test_real_model.py`, runs of several processes by `kills.py`.
- The process that answers suspected chunks is forked here, not spawned, for the sake of speed.
- The file system of the suite is local and sound, with hard links and, in one scenario, without them.
"""


@dataclass(frozen=True)
class Result:
    """How a case ended; `failure` is empty where the promise held."""

    sweep: str
    scenario: str
    name: str
    title: str
    point: str
    reads: bool
    failure: str


@dataclass(frozen=True)
class Caught:
    """How a mutant fared."""

    mutant: str
    hunts: tuple[Hunt, ...]
    failure: str = ""

    @property
    def was_caught(self) -> bool:
        return any(hunt.failures for hunt in self.hunts)


def promise_of(results: Sequence[Result]) -> str:
    """The sentence of the README; only for results of which none has failed."""
    faults = sum(FAULTS_OF_A_CASE.get(result.sweep, 1) for result in results)
    return f"{faults:,} injected faults, 0 rows lost, 0 duplicated"


def num_points(results: Sequence[Result], *sweeps: str, reads: bool | None = None) -> int:
    """Distinct points of some sweeps; with `reads`, only those that do or do not only read."""
    return len(
        {
            (result.sweep, result.scenario, result.point)
            for result in results
            if result.sweep in sweeps and reads in (None, result.reads) and result.point
        }
    )


def to_markdown(
    results: Sequence[Result], caught: Sequence[Caught], titles: Mapping[str, str]
) -> str:
    """docs/faults.md, of a run in which all cases recovered and all mutants were caught."""
    order = {mutant.name: number for number, mutant in enumerate(MUTANTS)}
    caught = sorted(caught, key=lambda one: order[one.mutant])
    return _HEAD.format(
        promise=promise_of(results),
        cases=len(results),
        scenarios="\n".join(f"| {name} | {title} |" for name, title in titles.items()),
        table=_table(results, list(titles)),
        kill_points=num_points(results, "kill"),
        kill_reads=num_points(results, "kill", reads=True),
        error_points=num_points(results, "full disk", "I/O error"),
        error_reads=num_points(results, "full disk", "I/O error", reads=True),
        per_core=STATES_PER_CORE,
        mutants=len(caught),
        caught="\n".join(f"| {one.mutant} | {_hunts(one)} |" for one in caught),
    )


def _table(results: Sequence[Result], scenarios: Sequence[str]) -> str:
    sweeps = list(dict.fromkeys(result.sweep for result in results))
    lines = ["| scenario | " + " | ".join(sweeps) + " |", "|---|" + "---|" * len(sweeps)]
    for scenario in (*scenarios, ""):
        cells = []
        for sweep in sweeps:
            some = [r for r in results if r.sweep == sweep and scenario in ("", r.scenario)]
            cells.append(f"{num_points(some, sweep):,} in {len(some):,}" if some else "–")
        lines.append(f"| {scenario or '**all**'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _hunts(one: Caught) -> str:
    return "; ".join(
        f"{hunt.sweep} ({hunt.scenario}), {len(hunt.failures)} of {hunt.cases} cases"
        for hunt in one.hunts
        if hunt.failures
    )
