"""The shim sees what changes the world, makes the faults it is told to, and knows what it does not know."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.shim import Board, Fault, Injector, Recorder, Shim, Watcher

BOARD = Board()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return tmp_path.resolve() / "world"


@pytest.fixture
def shim(world: Path) -> Iterator[Shim]:
    world.mkdir()
    shim = Shim(world)
    yield shim
    if shim.real:
        shim.remove()


def write_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps_of(shim: Shim, path: Path, content: bytes) -> list[tuple[str, str]]:
    recorder = Recorder()
    shim.install(recorder)
    write_file(path, content)
    shim.remove()
    return [(step.operation, step.path) for step in recorder.steps]


def strike(shim: Shim, operation: str, phase: str, error: int) -> None:
    """Let a fault hit the writing of a file."""
    recorder = Recorder()
    shim.install(recorder)
    write_file(shim.world / "first", b"abcd")
    shim.remove()
    point = next(step.point for step in recorder.steps if step.operation == operation)
    BOARD.clear()
    watcher: Watcher = Injector(Fault(point, 1, phase, error), BOARD, shim)
    shim.install(watcher)
    try:
        write_file(shim.world / "second", b"abcd")
    finally:
        shim.remove()


def test_every_call_on_the_world_is_seen_and_no_other(shim: Shim, world: Path) -> None:
    assert steps_of(shim, world / "f", b"abc") == [
        ("create", "f"), ("write", "f"), ("fsync", "f"), ("close", "f"),
    ]  # fmt: skip
    assert steps_of(shim, world.parent / "elsewhere", b"abc") == []


def test_a_full_disk_takes_a_part_and_then_refuses(shim: Shim, world: Path) -> None:
    with pytest.raises(OSError) as caught:
        strike(shim, "write", "torn", errno.ENOSPC)
    assert caught.value.errno == errno.ENOSPC
    assert (world / "second").read_bytes() == b"ab"
    assert BOARD.fired


def test_a_failed_fsync_loses_the_bytes(shim: Shim, world: Path) -> None:
    with pytest.raises(OSError):
        strike(shim, "fsync", "before", errno.EIO)
    assert (world / "second").read_bytes() == bytes(4)


def test_a_lost_reply_is_an_error_although_the_call_took_effect(shim: Shim, world: Path) -> None:
    with pytest.raises(OSError):
        strike(shim, "create", "after", errno.EIO)
    assert (world / "second").exists()


def test_a_call_that_the_model_does_not_know_is_refused(shim: Shim, world: Path) -> None:
    shim.install(Recorder())
    with pytest.raises(AssertionError, match="not modelled"):
        os.symlink("anywhere", world / "link", target_is_directory=False)
    with pytest.raises(AssertionError, match="not modelled"):
        (world / "text").write_text("written behind the shim's back")
    with pytest.raises(AssertionError, match="not modelled"):
        os.truncate(world / "text", 0)
