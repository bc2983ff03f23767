"""What is disturbed: a folder as it is before, a command, and the command that recovers.

Every scenario works on 55 rows in two small files, two of them bad, in chunks of ten, so that all that
happens in a large run happens here within 0.05 s.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.faults import shim
from tests.faults.bench import Bench, Patch, Tree, read_tree
from tests.faults.shim import Fault, Point, Step

SUCCESS = "_SUCCESS"
#: The run folder, in the world.
OUT = "out"
#: That the fourth chunk is under way.
MARK_OF_FOURTH = f"{OUT}/_batchinfer/tmp/attempt-part-000001-000000.parquet"
#: Every row of the inputs, as the output names it.
ROWS = {("a.jsonl", n) for n in range(25)} | {("b.csv", n) for n in range(30)}
#: Rows whose text begins with this fail while the fake engine has a bad day.
POISON = "boom"

#: Scenarios that need a folder whose inputs have grown.
GROWN = {"grown", "overwrite-grown"}

#: The files of data/ by name.
Data = dict[str, bytes]


@dataclass(frozen=True)
class Scenario:
    """A command that is going to be disturbed, and what must come of it.

    `sets`: the complete contents that data/ may have beside `_SUCCESS`, the last one being that of the
    end. `damaged`: contents that stand in the template because a disk spoilt them. `mixes`: whether
    shards of several sets may stand side by side while the command is under way. `code`: the exit code
    of the undisturbed command. `rivals`: what another worker of the same job would write, in other
    bytes; `strangers`: shards of another job under the same names.
    """

    name: str
    title: str
    template: Tree
    command: tuple[str, ...]
    recovery: Callable[[Bench, int], tuple[str, ...]]
    sets: tuple[Data, ...]
    rivals: Data
    strangers: Data
    damaged: frozenset[bytes] = frozenset()
    mixes: bool = True
    code: int = 0
    patch: Patch | None = None

    @property
    def reference(self) -> Data:
        return self.sets[-1]


class Inputs:
    """The input files, and the two jobs that are done on them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = (folder / "a.jsonl", folder / "b.csv")
        records = [
            {"id": f"a{n}", "text": f"{POISON if n in (3, 11) else 'row'} {n} " * (n % 7 + 1)}
            for n in range(25)
        ]
        self.files[0].write_text("".join(json.dumps(record) + "\n" for record in records))
        lines = [
            f"b{n},{POISON if n == 25 else 'line'} {n} {'word ' * (n % 5)}"
            + (",too,many" if n in (3, 17) else "")
            for n in range(30)
        ]
        self.files[1].write_text("id,text\n" + "\n".join(lines) + "\n")

    def job(self, *more: str) -> tuple[str, ...]:
        """The usual job: six shards, two rows with errors, which are tolerated."""
        return self._run("--chunk-rows", "10", "--max-errors", "2", *more)

    def other_job(self, *more: str) -> tuple[str, ...]:
        """Another job: four shards under the same names, and errors that are not tolerated."""
        return self._run("--chunk-rows", "20", "--max-length", "6", *more)

    def third_job(self, *more: str) -> tuple[str, ...]:
        """A job of another length that has a shard for each name of the usual one."""
        return self.job("--max-length", "7", *more)

    def _run(self, *more: str) -> tuple[str, ...]:
        names = [str(path) for path in self.files]
        usual = ("--engine", "fake", "--workers", "0", "--quiet", "--output", OUT)
        return ("run", *names, *usual, *more)


def resume(*more: str) -> tuple[str, ...]:
    return ("resume", OUT, "--workers", "0", "--quiet", *more)


# -- preparing ---------------------------------------------------------------------------------------


def build_scenarios(bench: Bench, names: Collection[str] = ()) -> dict[str, Scenario]:
    """Prepare the folder and the reference of these scenarios, or of all."""
    inputs = Inputs(bench.work / "inputs")
    job, other = inputs.job(), inputs.other_job()

    def finished(command: Sequence[str], code: int = 0, patch: Patch | None = None) -> Tree:
        bench.reset({})
        outcome = bench.run(command, patch)
        assert outcome.code == code, f"{command}: exit code {outcome.code}: {outcome.stderr}"
        tree = read_tree(bench.world)
        check_rows(data_of(tree))
        return tree

    done, done_other = finished(job), finished(other, 65)
    failed = finished(inputs.job("--max-errors", "10"), patch=have_a_bad_day)
    bench.reset(failed)
    cured = bench.run(resume("--retry-errors"))
    assert cured.code == 0, cured.stderr
    retried = data_of(read_tree(bench.world))
    check_rows(retried)
    whole, before_retry = data_of(done), data_of(failed)
    # The footer names the batch budget: the same answers in other bytes.
    rivals = data_of(finished((*job, "--max-batch-rows", "3")))
    other_rivals = data_of(finished((*other, "--max-batch-rows", "3"), 65))
    strangers = data_of(finished(inputs.third_job()))
    written = inputs.job("--task", "generate", "--max-batch-rows", "4")
    written_whole = data_of(finished(written))
    written_rivals = data_of(finished((*written, "--max-batch-tokens", "30")))
    assert before_retry != retried, "the bad day spoilt nothing"

    late_scenarios: list[Scenario] = []
    if not names or GROWN.intersection(names):
        late_scenarios = grown_scenarios(bench, (*other, "--overwrite"), done_other, other_rivals)
    half = killed_half_way(bench, job)
    torn = spoil(done, "part-000000-000001.parquet", tear)
    torn = spoil(torn, "part-000001-000002.parquet", damage_footer)
    flipped = spoil(done, "part-000001-000000.parquet", flip_page)
    worst = spoil(failed, "part-000000-000001.parquet", flip_page)
    worst = spoil(worst, "part-000001-000001.parquet", tear)
    del worst["out/data/part-000000-000002.parquet"], worst[f"out/data/{SUCCESS}"]

    def always(*command: str) -> Callable[[Bench, int], tuple[str, ...]]:
        return lambda bench, number: command

    scenarios = [
        Scenario(
            "fresh", "`run` into a new folder, recovered by `run --resume`",
            rivals=rivals, strangers=strangers,
            template={}, command=job, recovery=always(*job, "--resume"), sets=(whole,),
        ),
        Scenario(
            "no-links", "the same where the file system has no hard links",
            rivals=rivals, strangers=strangers,
            template={}, command=job, recovery=always(*job, "--resume"), sets=(whole,),
            patch=forbid_links,
        ),
        Scenario(
            "written", "`run --task generate`, which keeps a journal of each open chunk",
            rivals=written_rivals, strangers=strangers,
            template={}, command=written, recovery=always(*written, "--resume"), sets=(written_whole,),
        ),
        Scenario(
            "half", "`resume` of a run that was killed half-way",
            rivals=rivals, strangers=strangers,
            template=half, command=resume(), recovery=always(*resume()), sets=(whole,),
        ),
        Scenario(
            "passed", "`resume` that counts the rows in front of what is left, as a part does, and keeps "
            "an index",
            rivals=rivals, strangers=strangers,
            template=without_ends(done), command=resume(), recovery=always(*resume()), sets=(whole,),
            patch=pass_over,
        ),
        Scenario(
            "finished", "`run --resume` of a finished folder",
            rivals=rivals, strangers=strangers,
            template=done, command=(*job, "--resume"), recovery=always(*job, "--resume"),
            sets=(whole,),
        ),
        Scenario(
            "damaged", "`resume` of a finished folder with a torn shard and a damaged footer",
            rivals=rivals, strangers=strangers,
            template=torn, command=resume(), recovery=always(*resume()),
            sets=(data_of(torn), whole), damaged=difference(torn, done),
        ),
        Scenario(
            "verify", "`resume --verify` of a finished folder with a flipped byte in a page",
            rivals=rivals, strangers=strangers,
            template=flipped, command=resume("--verify"),
            recovery=always(*resume("--verify")),
            sets=(data_of(flipped), whole), damaged=difference(flipped, done),
        ),
        Scenario(
            "overwrite", "`run --overwrite` of a finished folder by another job",
            rivals=other_rivals, strangers=strangers,
            template=done, command=(*other, "--overwrite"),
            recovery=lambda bench, number: recover_overwritten(bench, other, number),
            sets=(whole, data_of(done_other)), mixes=False, code=65,
        ),
        Scenario(
            "retry", "`resume --retry-errors` of a finished folder with failed rows",
            rivals=rivals, strangers=strangers,
            template=failed, command=resume("--retry-errors"),
            recovery=always(*resume("--retry-errors")), sets=(before_retry, retried),
        ),
        Scenario(
            "worst", "`resume --verify --retry-errors` with failed rows, a flipped byte, a torn and "
            "a missing shard at once",
            rivals=rivals, strangers=strangers,
            template=worst, command=resume("--verify", "--retry-errors"),
            recovery=always(*resume("--verify", "--retry-errors")),
            sets=(before_retry, whole), damaged=difference(worst, failed),
        ),
        *late_scenarios,
    ]  # fmt: skip
    return {
        scenario.name: settle(bench, scenario)
        for scenario in scenarios
        if not names or scenario.name in names
    }


def grown_scenarios(
    bench: Bench, overwrite: tuple[str, ...], done_other: Tree, other_rivals: Data
) -> list[Scenario]:
    """Those of a folder whose inputs were appended to after it was finished."""
    inputs = Inputs(bench.work / "grown")
    whole = [path.read_bytes() for path in inputs.files]

    def run(before: Tree, *command: str) -> Tree:
        bench.reset(before)
        outcome = bench.run((*command, "--incremental"))
        assert outcome.code == 0, outcome.stderr
        return read_tree(bench.world)

    job, third = inputs.job(), inputs.third_job()
    for path, content, num_lines in zip(inputs.files, whole, (15, 13), strict=True):
        path.write_bytes(b"".join(content.splitlines(keepends=True)[:num_lines]))
    before, before_third = run({}, *job), run({}, *third)
    for path, content in zip(inputs.files, whole, strict=True):
        with path.open("ab") as file:
            file.write(content[path.stat().st_size :])
    after, rivals = run(before, *job), run(before, *job, "--max-batch-rows", "3")
    strangers = run(before_third, *third)
    for tree in (after, rivals, strangers):
        check_rows(data_of(tree))
    command = (*job, "--incremental")
    return [
        Scenario(
            "grown", "`run --incremental` of a finished folder whose inputs were appended to",
            rivals=data_of(rivals), strangers=data_of(strangers),
            template=before, command=command, recovery=lambda bench, number: command,
            sets=(data_of(before), data_of(after)),
        ),
        Scenario(
            "overwrite-grown", "`run --overwrite`, by another job, of a folder that has grown",
            rivals=other_rivals, strangers=data_of(strangers),
            template=after, command=overwrite,
            recovery=lambda bench, number: recover_overwritten(bench, overwrite[:-1], number),
            sets=(data_of(after), data_of(done_other)), mixes=False, code=65,
        ),
    ]  # fmt: skip


def settle(bench: Bench, scenario: Scenario) -> Scenario:
    """See that the undisturbed command does what the scenario says; its result is the reference."""
    bench.reset(scenario.template)
    outcome = bench.run(scenario.command, scenario.patch)
    assert outcome.code == scenario.code, (
        f"{scenario.name}: exit code {outcome.code}: {outcome.stderr}"
    )
    found = data_of(read_tree(bench.world))
    check_rows(found)
    if found != scenario.reference:
        assert scenario.name == "worst", f"{scenario.name}: not the bytes of the reference"
        # It cures some rows by retrying and makes others anew: no other scenario ends so.
        scenario = dataclasses.replace(scenario, sets=(*scenario.sets, found))
    return scenario


def recover_overwritten(bench: Bench, job: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Overwrite again; every other time, if the folder holds the new job already, just go on."""
    try:
        plan = json.loads((bench.output / "_batchinfer" / "plan.json").read_bytes())
        holds_new_job = plan["config"]["max_length"] == 6
    except FileNotFoundError:
        holds_new_job = False
    return (*job, "--resume" if holds_new_job and number % 2 == 0 else "--overwrite")


def killed_half_way(bench: Bench, job: Sequence[str]) -> Tree:
    """The world after a kill just before the third shard got its name."""
    bench.reset({})
    step, time = shard_steps(bench.record(job, commit_in_turn).steps)[2]
    bench.reset({})
    outcome = bench.strike(job, Fault(step.point, time, "before"), commit_in_turn)
    assert outcome.was_killed
    # The chunk behind it had reached the device meanwhile.
    return {**read_tree(bench.world), MARK_OF_FOURTH: b""}


def without_ends(tree: Tree) -> Tree:
    """A finished world without the last shard of each input file."""
    ends = ("part-000000-000002.parquet", "part-000001-000002.parquet", SUCCESS)
    return {name: content for name, content in tree.items() if Path(name).name not in ends}


def data_of(tree: Tree) -> Data:
    """The files of data/ in a world."""
    prefix = "out/data/"
    return {
        n.removeprefix(prefix): c for n, c in tree.items() if n.startswith(prefix) and c is not None
    }


def check_rows(data: Data) -> None:
    """Read every shard in full: each input row stands there once, and `_SUCCESS` vouches for it."""
    found: list[tuple[Any, Any]] = []
    for name, content in data.items():
        if name != SUCCESS:
            table = read_shard(content)
            found += zip(table["_source"].to_pylist(), table["_row"].to_pylist(), strict=True)
    assert len(found) == len(set(found)), "a row stands twice"
    assert set(found) == ROWS, "rows are missing"
    assert SUCCESS in data


def read_shard(content: bytes) -> Any:
    """All pages of a shard, with their checksums. One thread: this process forks."""
    file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    return file.read(use_threads=False)


# -- spoiling ----------------------------------------------------------------------------------------


def spoil(tree: Tree, shard: str, how: Callable[[bytes], bytes]) -> Tree:
    """This world with one damaged shard."""
    name = f"out/data/{shard}"
    content = tree[name]
    assert content is not None
    return {**tree, name: how(content)}


def tear(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_footer(content: bytes) -> bytes:
    return content[:-200] + bytes(180) + content[-20:]


def flip_page(content: bytes) -> bytes:
    """Flip bits of the first page's data; header and footer stay readable."""
    place = 60
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def difference(spoilt: Tree, whole: Tree) -> frozenset[bytes]:
    """The contents of the shards that were damaged."""
    pairs = [(name, content) for name, content in spoilt.items() if content != whole[name]]
    return frozenset(content for _, content in pairs if content is not None)


# -- changing batchinfer, in the child -----------------------------------------------------------------


def have_a_bad_day() -> None:
    """Let the fake engine fail on some rows."""
    from batchinfer.core import Answers, Batch
    from batchinfer.engines.fake import FakeEngine

    token = int.from_bytes(POISON.encode(), "little")
    answer = FakeEngine.answer

    def failing(self: FakeEngine, batch: Batch) -> Answers:
        if (batch.fields["input_ids"] == token).any():
            raise RuntimeError("a bad day")
        return answer(self, batch)

    FakeEngine.answer = failing  # type: ignore[method-assign]


def pass_over() -> None:
    """Take no shard's word for where the next one's rows begin; files are counted in small blocks."""
    from batchinfer import runner
    from batchinfer.core import Position, Span
    from batchinfer.readers import offsets

    vars(offsets)["BLOCK_BYTES"] = 200
    left: Any = runner._Work.left

    def from_the_front(self: Any) -> list[Span]:
        return [
            dataclasses.replace(span, first=0, start=Position(), passed=span.begin)
            for span in left.fget(self)
        ]

    runner._Work.left = property(from_the_front)  # type: ignore[assignment]


def forbid_links() -> None:
    """A file system without hard links: what is left is libc's rename that refuses to replace."""
    from batchinfer.writers import durable

    os.link = refuse_link  # type: ignore[assignment]
    vars(durable)["ctypes"] = LibcSeenByShim()


def refuse_link(source: Path, target: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))


class LibcSeenByShim:
    """Stands in for the module ctypes: shows the shim each renameat2, and takes its faults for errno."""

    def __init__(self) -> None:
        self._real = ctypes.CDLL(None, use_errno=True)
        self._errno = 0

    def CDLL(self, name: str | None, use_errno: bool) -> LibcSeenByShim:  # noqa: N802
        return self

    def get_errno(self) -> int:
        return self._errno

    def renameat2(self, at: int, source: bytes, at_too: int, target: bytes, flags: int) -> int:
        def proceed() -> None:
            if self._real.renameat2(at, source, at_too, target, flags):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))

        assert shim.installed is not None
        try:
            # On the disk it is what a replace is: one name for another, in one step.
            shim.installed.show_two_paths("replace", source, target, proceed)
        except OSError as error:
            self._errno = error.errno or 0
            return -1
        return 0


def commit_in_turn() -> None:
    """Let the writer's thread work only while the main thread waits for it.

    What is recorded is then the same each time.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    def submit(
        self: ThreadPoolExecutor, call: Callable[..., Any], /, *args: Any, **named: Any
    ) -> Any:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **named))
        except BaseException as error:
            future.set_exception(error)
        return future

    ThreadPoolExecutor.submit = submit  # type: ignore[assignment, method-assign]


def shard_steps(steps: Sequence[Step]) -> list[tuple[Step, int]]:
    """The steps that create a shard under its name, each with its number among those of its point."""
    reached: Counter[Point] = Counter()
    found = []
    for step in steps:
        reached[step.point] += 1
        is_shard = (step.target or step.path).startswith(f"{OUT}/data/part-")
        # A shard that is replaced after a retry is named by another function.
        publishes = any(":publish:" in link for link in step.point.chain)
        if is_shard and (step.operation == "create" or (step.target and publishes)):
            found.append((step, reached[step.point]))
    return found
