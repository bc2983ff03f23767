"""What a power cut may leave: the operations of a run are recorded, and what was not synced is dropped.

The model, after ALICE (OSDI 2014):

    a file's bytes          durable with its fsync; until then all, none, half of them, or as many zeros
    a folder's entries      durable with the folder's fsync; until then each creation, link, removal,
                            and both ends of a rename are there or not, independently, in any order
    a file's fsync          says nothing of its name
    an entry on its own     is never half there; what hangs below a folder that is not there is lost

From the states that this allows after every operation, those are tried in which nothing that was not
synced is there, everything, every single entry, all but one entry, and random selections with random
bytes. States with equal content count once.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath

from tests.faults.bench import Bench, Tree
from tests.faults.checks import check_at_rest, check_recovery, expect
from tests.faults.scenarios import Scenario, commit_in_turn, data_of
from tests.faults.shim import Step
from tests.faults.sweeps import Case

#: Random selections after each operation.
SELECTIONS = 6
#: States are told apart first by what stands outside of tmp/, which recovery merely empties.
STATES_PER_CORE = 24
MODES = ("none", "all", "zeros", "half")


@dataclass(eq=False)
class File:
    """A file's bytes as programs see them, and as the disk has them (None: not at all)."""

    live: bytes = b""
    durable: bytes | None = None
    position: int = 0

    def after_cut(self, mode: str) -> bytes:
        if self.live == self.durable:
            return self.live
        before = self.durable or b""
        return {
            "none": before,
            "all": self.live,
            "zeros": bytes(len(self.live)),
            "half": self.live[: max(len(before), len(self.live) // 2)],
        }[mode]


class _Folder:
    """Stands where a File would."""


FOLDER = _Folder()
Node = File | _Folder


@dataclass(frozen=True)
class Entry:
    """A change of a folder that is not durable yet: the name is this node now, or gone (None)."""

    name: str
    node: Node | None

    @property
    def folder(self) -> str:
        return str(PurePath(self.name).parent)


@dataclass
class Disk:
    """A file system of which it is known what a power cut may take."""

    live: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[Entry] = field(default_factory=list)
    descriptors: dict[int, File] = field(default_factory=dict)

    @classmethod
    def holding(cls, tree: Tree) -> Disk:
        """A disk on which all of this is durable."""
        nodes: dict[str, Node] = {
            name: FOLDER if content is None else File(content, content)
            for name, content in tree.items()
        }
        return cls(dict(nodes), dict(nodes))

    def apply(self, step: Step) -> bool:
        """Take one recorded call; return whether it can have changed what a power cut leaves."""
        name = step.path
        match step.operation:
            case "create":
                node = self.live.get(name)
                if node is None:
                    node = File()
                    self._set(name, node)
                assert isinstance(node, File)
                if step.flags & os.O_TRUNC:
                    node.live = b""
                node.position = 0
                self.descriptors[step.result] = node
            case "write":
                file = self.descriptors[step.descriptor]
                end = file.position + len(step.data)
                file.live = file.live[: file.position] + step.data + file.live[end:]
                file.position = end
            case "ftruncate":
                file = self.descriptors[step.descriptor]
                file.live = file.live[: step.size].ljust(step.size, b"\0")
            case "fsync":
                if step.descriptor in self.descriptors:
                    file = self.descriptors[step.descriptor]
                    file.durable = file.live
                else:
                    self._sync_folder(name)
            case "close":
                self.descriptors.pop(step.descriptor, None)
                return False
            case "link":
                self._set(step.target, self.live[name])
            case "replace":
                self._set(step.target, self.live[name])
                self._set(name, None)
            case "mkdir":
                self._set(name, FOLDER)
            case "unlink" | "rmdir":
                self._set(name, None)
            case _:
                return False
        return True

    def _set(self, name: str, node: Node | None) -> None:
        if node is None:
            del self.live[name]
        else:
            self.live[name] = node
        self.pending.append(Entry(name, node))

    def _sync_folder(self, name: str) -> None:
        for entry in self.pending:
            if entry.folder == name:
                _enter(self.durable, entry)
        self.pending = [entry for entry in self.pending if entry.folder != name]

    def states(self, draw: random.Random) -> Iterator[Tree]:
        """What may stand on the disk if the power goes now."""
        everything = range(len(self.pending))
        selections: list[tuple[int, ...]] = [(), tuple(everything)]
        selections += [(one,) for one in everything]
        selections += [tuple(i for i in everything if i != one) for one in everything]
        for selection in selections:
            for mode in MODES:
                yield self._state(selection, itertools.repeat(mode))
        for _ in range(SELECTIONS):
            selection = tuple(i for i in everything if draw.random() < 0.5)
            yield self._state(selection, iter(lambda: draw.choice(MODES), None))

    def _state(self, selection: Sequence[int], modes: Iterator[str]) -> Tree:
        nodes = dict(self.durable)
        for index in selection:
            _enter(nodes, self.pending[index])
        kept: dict[File, bytes] = {}  # two names of one file have the same bytes
        tree: Tree = {}
        for name in sorted(nodes):  # folders come before what is in them
            above = str(PurePath(name).parent)
            if above != "." and above not in tree:
                continue
            node = nodes[name]
            if isinstance(node, File):
                if node not in kept:
                    kept[node] = node.after_cut(next(modes))
                tree[name] = kept[node]
            else:
                tree[name] = None
        return tree


def _enter(nodes: dict[str, Node], entry: Entry) -> None:
    if entry.node is None:
        nodes.pop(entry.name, None)
    else:
        nodes[entry.name] = entry.node


@dataclass(frozen=True)
class State:
    """What a power cut left after so many operations, `last` being the last of them."""

    tree: Tree
    operations: int
    last: str


def enumerate_states(steps: Sequence[Step], template: Tree) -> tuple[list[State], list[Tree]]:
    """The distinct states to try; and all those that may stand when the command has exited."""
    disk = Disk.holding(template)
    draw = random.Random(0)
    seen: set[str] = set()
    cores: dict[str, int] = {}
    states: list[State] = []
    for number, step in enumerate(steps, start=1):
        if not disk.apply(step):
            continue
        for tree in disk.states(draw):
            key = digest(tree)
            if key in seen:
                continue
            seen.add(key)
            core = digest({n: c for n, c in tree.items() if "/tmp/" not in n})
            cores[core] = cores.get(core, 0) + 1
            if cores[core] <= STATES_PER_CORE:
                states.append(State(tree, number, str(step.point)))
    return states, list(disk.states(draw))


def digest(tree: Tree) -> str:
    """Names a state by its content."""
    whole = hashlib.sha256()
    for name in sorted(tree):
        content = tree[name]
        whole.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
        whole.update(content or b"")
    return whole.hexdigest()


def power_cut_cases(bench: Bench, scenario: Scenario) -> Iterator[Case]:
    """The power goes after any operation; the states differ in content."""
    bench.reset(scenario.template)

    def prepare() -> None:
        commit_in_turn()
        if scenario.patch is not None:
            scenario.patch()

    outcome = bench.record(scenario.command, prepare, contents=True)
    states, last = enumerate_states(outcome.steps, scenario.template)
    for number, state in enumerate(states):
        yield Case(
            "power cut", scenario.name, f"cut-{number}",
            f"power cut after operation {state.operations}, {state.last}", f"{number}",
            partial(cut, scenario=scenario, state=state, number=number),
        )  # fmt: skip
    yield Case(
        "power cut", scenario.name, "end", "power cut after the command had said that all is done",
        "", partial(keep_the_word, scenario=scenario, states=last),  # those states are counted already
    )  # fmt: skip


def cut(bench: Bench, scenario: Scenario, state: State, number: int) -> None:
    """Whole shards, a `_SUCCESS` that does not lie, and after the recovery everything."""
    check_at_rest(data_of(state.tree), scenario)
    bench.reset(state.tree)
    check_recovery(bench, scenario, number)


def keep_the_word(bench: Bench, scenario: Scenario, states: Sequence[Tree]) -> None:
    """Whatever was not synced when the command exited, every row is there."""
    for tree in states:
        expect(data_of(tree) == scenario.reference, "rows were lost after the command had exited")
