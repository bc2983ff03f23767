"""What must hold at a crash, and after the recovery."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from tests.faults.bench import Bench, Outcome, read_tree
from tests.faults.scenarios import SUCCESS, Data, Scenario, data_of, read_shard


class Broken(Exception):
    """The promise was broken."""


class MisfiredError(Exception):
    """The fault did not come about: the case proves nothing."""


def check_fired(outcome: Outcome) -> None:
    if not outcome.fired:
        raise MisfiredError(f"exit code {outcome.code}: {outcome.said}")


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def check_at_rest(data: Data, scenario: Scenario) -> None:
    """data/ holds whole shards and perhaps `_SUCCESS`, which vouches for a complete set of them.

    The shards of every set were read in full, row by row, when the scenario was built; so a file
    with their bytes needs no second look.
    """
    known = [set(one.values()) for one in scenario.sets]
    for name, content in data.items():
        if name == SUCCESS:
            expect(content == b"", f"{SUCCESS} is not empty")
        elif any(one.get(name) == content for one in scenario.sets):
            continue
        elif content not in scenario.damaged:
            raise Broken(f"data/{name} {describe(content)}")
    shards = {content for name, content in data.items() if name != SUCCESS}
    if not scenario.mixes:
        expect(any(shards <= one for one in known), "data/ holds shards of two jobs")
    if SUCCESS in data:
        expect(
            any(data.keys() == one.keys() and shards <= set(one.values()) for one in scenario.sets),
            f"{SUCCESS} stands beside an incomplete set of shards: {', '.join(sorted(data))}",
        )


def describe(content: bytes) -> str:
    """What is wrong with a file that no undisturbed run would have left."""
    try:
        table = read_shard(content)
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read ({len(content)} bytes): {error}"
    return f"has {table.num_rows} rows, but other bytes than an undisturbed run leaves"


def check_done(bench: Bench, scenario: Scenario, expected: Data | None = None) -> None:
    """Every row is there, byte by byte as an undisturbed run leaves it, and nothing lies about."""
    tree = read_tree(bench.world)
    found, wanted = data_of(tree), scenario.reference if expected is None else expected
    if found != wanted:
        wrong = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise Broken(f"after the recovery data/ differs in {', '.join(wrong)}")
    left = [name for name in tree if name.startswith("out/_batchinfer/tmp/")]
    expect(not left, f"temporary files are left: {left}")


def check_recovery(
    bench: Bench, scenario: Scenario, number: int, expected: Data | None = None
) -> None:
    """Recover: nothing is lost. Recover once more: nothing changes."""
    outcome = bench.run(scenario.recovery(bench, number), scenario.patch)
    check_success(outcome, scenario, "the recovery")
    check_done(bench, scenario, expected)
    before = identities(bench.output / "data")
    if "--retry-errors" in scenario.command:  # rows that stay bad are tried again, `_SUCCESS` anew
        before.pop(SUCCESS)
    # Overwriting is meant to begin anew each time; going on is not.
    again = tuple(
        "--resume" if flag == "--overwrite" else flag for flag in scenario.recovery(bench, 0)
    )
    outcome = bench.run(again, scenario.patch)
    check_success(outcome, scenario, "the second recovery")
    check_done(bench, scenario, expected)
    after = identities(bench.output / "data")
    changed = [name for name, identity in before.items() if after[name] != identity]
    expect(not changed, f"the second recovery wrote {', '.join(changed)} anew")


def check_success(outcome: Outcome, scenario: Scenario, what: str) -> None:
    expect(
        outcome.code == scenario.code,
        f"{what} ended with {outcome.code}, not {scenario.code}: {outcome.said}",
    )
    expect("Traceback" not in outcome.stderr, f"{what} shows a traceback: {outcome.said}")


def check_refusal(outcome: Outcome, code: int, what: str) -> None:
    """The command gave up with this code, and said why in one line."""
    expect(outcome.code == code, f"{what} ended with {outcome.code}, not {code}: {outcome.said}")
    lines = outcome.error_lines
    expect(
        len(lines) == 1 and lines[0].startswith("batchinfer: "),
        f"{what} says its error in {len(lines)} lines: {outcome.said}",
    )


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files stand in a folder: another inode is another file."""
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}
