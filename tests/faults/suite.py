"""The fault suite: `python -m tests.faults.suite --all` runs every case on every core.

    --all             every case of every sweep, and every mutant
    --sample N        N cases of each sweep instead, spread over scenarios and points
    --sweep, --scenario, --case   only these; --case takes an id that the suite printed
    --mutants, --no-mutants       only, or without, the broken protocols
    --quick           a mutant is caught by the first case that fails
    --jobs N          processes (as many as there are cores)
    --report FILE     write the figures as Markdown, if all is well
    --json FILE       write the figures as JSON

Exit code 0: every case recovered and every mutant was caught.
"""

from __future__ import annotations

import os

# Before numpy and Arrow are imported: a process that forks should have one thread.
os.environ.update(
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    ARROW_DEFAULT_MEMORY_POOL="system",
    JE_ARROW_MALLOC_CONF="background_thread:false",
)

import argparse
import contextlib
import dataclasses
import json
import shutil
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.faults.bench import Bench, import_all
from tests.faults.checks import Broken
from tests.faults.mutants import ALL_SWEEPS, MUTANTS, Hunt, Mutant, hunt
from tests.faults.report import Caught, Result, promise_of, to_markdown
from tests.faults.scenarios import Scenario, build_scenarios
from tests.faults.sweeps import Case, sample


def main() -> int:
    chosen = _parser().parse_args()
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk's fsync takes long
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=parent)).resolve()
    try:
        import_all()
        bench = Bench(work)
        scenarios = build_scenarios(bench, chosen.scenario)
        cases = [
            case
            for sweep in ALL_SWEEPS
            if not chosen.mutants and (not chosen.sweep or sweep in chosen.sweep)
            for case in _cases_of(bench, sweep, scenarios, chosen.sample)
            if not chosen.case or case.id in chosen.case
        ]
        with_mutants = chosen.mutants or (chosen.all and not chosen.no_mutants)
        tasks = [*(range(len(MUTANTS)) if with_mutants else ())]
        _say(f"{len(cases):,} cases, {len(tasks)} mutants")
        results, caught = share_out(work, cases, scenarios, len(tasks), chosen.quick, chosen.jobs)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for result in results:
        if result.failure:
            _say(f"FAILED {result.sweep}/{result.scenario}/{result.name}: {result.title}")
            _say(f"  {result.failure}")
    for one in caught:
        if one.failure or not one.was_caught:
            _say(f"NOT CAUGHT: {one.mutant} {one.failure}")
    if chosen.json:
        document = {
            "results": [dataclasses.asdict(result) for result in results],
            "mutants": [dataclasses.asdict(one) for one in caught],
        }
        chosen.json.write_text(json.dumps(document))
    failed = sum(bool(result.failure) for result in results)
    missed = sum(bool(one.failure) or not one.was_caught for one in caught)
    _say(
        f"{len(results) - failed:,} of {len(cases):,} recovered, {len(caught) - missed} mutants caught"
    )
    if results and not failed:
        _say(promise_of(results))
    well = not failed and not missed and len(results) == len(cases) and len(caught) == len(tasks)
    if chosen.report and well:
        titles = {name: scenario.title for name, scenario in scenarios.items()}
        chosen.report.write_text(to_markdown(results, caught, titles))
    return 0 if well else 1


def _cases_of(
    bench: Bench, sweep: str, scenarios: Mapping[str, Scenario], size: int | None
) -> Iterator[Case]:
    for scenario in scenarios.values():
        cases = list(ALL_SWEEPS[sweep](bench, scenario))
        yield from cases if size is None else sample(cases, -(-size // len(scenarios)))


def share_out(
    work: Path,
    cases: Sequence[Case],
    scenarios: Mapping[str, Scenario],
    num_mutants: int,
    quick: bool,
    jobs: int,
) -> tuple[list[Result], list[Caught]]:
    """Run cases and mutants in so many processes, each of which takes the next one when it is free."""
    # Mutants first: they take longest. A pipe is the queue; reads of a few bytes are indivisible.
    tasks = [-1 - n for n in range(num_mutants)] + list(range(len(cases)))
    readable, writable = os.pipe()
    workers = []
    for job in range(jobs):
        worker = os.fork()
        if worker == 0:
            os.close(writable)
            _work(work, job, readable, cases, scenarios, quick)
        workers.append(worker)
    os.close(readable)
    with contextlib.suppress(BrokenPipeError):
        for task in tasks:
            os.write(writable, struct.pack("i", task))
    os.close(writable)
    for worker in workers:
        os.waitpid(worker, 0)
    results: list[Result] = []
    caught: list[Caught] = []
    for job in range(jobs):
        for line in (work / f"results-{job}").read_text().splitlines():
            document = json.loads(line)
            if "mutant" in document:
                hunts = tuple(Hunt(**one) for one in document.pop("hunts"))
                caught.append(Caught(**document, hunts=hunts))
            else:
                results.append(Result(**document))
    return results, caught


def _work(
    work: Path,
    job: int,
    queue: int,
    cases: Sequence[Case],
    scenarios: Mapping[str, Scenario],
    quick: bool,
) -> None:
    """A worker process: take tasks until there are none."""
    try:
        bench = Bench(work / f"job-{job}")
        with (work / f"results-{job}").open("w") as file:
            while task := os.read(queue, 4):
                (number,) = struct.unpack("i", task)
                if number >= 0:
                    done: Result | Caught = _run(cases[number], bench)
                else:
                    done = _hunt(MUTANTS[-1 - number], bench, scenarios, quick)
                print(json.dumps(dataclasses.asdict(done)), file=file, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _run(case: Case, bench: Bench) -> Result:
    failure = ""
    try:
        case.act(bench)
    except Broken as broken:
        failure = str(broken)
    except Exception as error:
        failure = f"the suite itself failed: {type(error).__name__}: {error}"
    return Result(case.sweep, case.scenario, case.name, case.title, case.point, case.reads, failure)


def _hunt(mutant: Mutant, bench: Bench, scenarios: Mapping[str, Scenario], quick: bool) -> Caught:
    try:
        hunts = hunt(bench, mutant, scenarios, quick=quick)
        return Caught(mutant.name, tuple(hunts))
    except Exception as error:
        return Caught(mutant.name, (), f"the suite itself failed: {type(error).__name__}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--sweep", action="append", choices=list(ALL_SWEEPS), default=[])
    parser.add_argument("--scenario", action="append", default=[])
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--no-mutants", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", type=Path)
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
