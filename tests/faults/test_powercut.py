"""The model of the disk allows what file systems do, and no more."""

from __future__ import annotations

import os
import random

from tests.faults.bench import Tree
from tests.faults.powercut import Disk, digest
from tests.faults.shim import Point, Step

CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def step(operation: str, path: str, **more: object) -> Step:
    usual: dict[str, object] = {
        "target": "", "descriptor": 3, "flags": CREATE, "size": 0, "data": b"", "result": 3,
    }  # fmt: skip
    return Step(operation, Point(operation, ()), path, **{**usual, **more})  # type: ignore[arg-type]


def states_after(*steps: Step, before: Tree | None = None) -> list[Tree]:
    """The distinct states that a power cut may leave."""
    disk = Disk.holding(before or {})
    for one in steps:
        disk.apply(one)
    return list({digest(tree): tree for tree in disk.states(random.Random(0))}.values())


def test_a_file_that_was_not_synced_may_be_missing_empty_torn_zeros_or_whole() -> None:
    states = states_after(step("create", "f"), step("write", "f", data=b"abcd"))
    assert sorted(state.get("f", b"missing") or b"" for state in states) == [
        b"", b"\0\0\0\0", b"ab", b"abcd", b"missing",
    ]  # fmt: skip


def test_fsync_makes_bytes_durable_but_no_name() -> None:
    states = states_after(step("create", "f"), step("write", "f", data=b"abcd"), step("fsync", "f"))
    assert sorted(states, key=len) == [{}, {"f": b"abcd"}]


def test_the_folders_fsync_makes_the_name_durable_but_no_bytes() -> None:
    states = states_after(
        step("create", "f"),
        step("write", "f", data=b"abcd"),
        step("fsync", ".", descriptor=9),
    )
    assert sorted(state["f"] or b"" for state in states) == [b"", b"\0\0\0\0", b"ab", b"abcd"]


def test_both_ends_of_a_rename_are_independent() -> None:
    states = states_after(step("replace", "a", target="b"), before={"a": b"new", "b": b"old"})
    assert {tuple(sorted(state.items())) for state in states} == {
        (("a", b"new"), ("b", b"old")),
        (("a", b"new"), ("b", b"new")),
        (("b", b"old"),),
        (("b", b"new"),),
    }


def test_what_hangs_below_a_lost_folder_is_lost() -> None:
    states = states_after(
        step("mkdir", "d"),
        step("create", "d/f"),
        step("fsync", "d/f"),
        step("fsync", "d", descriptor=9),
    )
    assert sorted(states, key=len) == [{}, {"d": None, "d/f": b""}]


def test_a_file_has_the_same_bytes_under_both_of_its_names() -> None:
    states = states_after(
        step("create", "a"), step("write", "a", data=b"abcd"), step("link", "a", target="b")
    )
    both = [state for state in states if len(state) == 2]
    assert len(both) == 4
    assert all(state["a"] == state["b"] for state in both)
