"""Who writes for a run stops when the folder is another's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchinfer.errors import Interrupted, StorageError
from batchinfer.writers import fence
from batchinfer.writers.run_folder import RunFolder
from tests.conftest import ROOT

_GUEST = """
import sys
from pathlib import Path
from batchinfer.writers.fence import guest_of
with guest_of(Path(sys.argv[1]), sys.argv[2], "one"):
    print("in", flush=True)
    sys.stdin.read()
"""


def guest(folder: RunFolder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _GUEST, str(folder.state), folder.run_id],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "in\n"
    return process


def test_a_guest_of_the_holder_is_let_in_and_leaves_nothing(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as folder:
        with fence.guest_of(folder.state, folder.run_id, "one"):
            pass
        assert not list(folder.temporary.iterdir())


def test_a_guest_of_a_run_that_is_over_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as before:
        pass
    with (
        pytest.raises(Interrupted, match="is over"),
        fence.guest_of(before.state, before.run_id, "a"),
    ):
        pass
    with (
        RunFolder(tmp_path / "out") as folder,
        pytest.raises(Interrupted, match="is over"),
        fence.guest_of(folder.state, before.run_id, "b"),
    ):
        pass


def test_a_folder_that_cannot_be_seen_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="that all machines share"),
        fence.guest_of(tmp_path / "out" / "_batchinfer", "run", "one"),
    ):
        pass


def test_the_next_run_waits_for_guests_of_the_one_before(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as before:
        process = guest(before)
    timer = threading.Timer(1.0, process.communicate)
    began = time.monotonic()
    timer.start()
    with RunFolder(tmp_path / "out") as folder:
        assert time.monotonic() - began >= 1.0
        assert not list(folder.temporary.glob("guest-*"))
    timer.join()


def test_the_lock_of_a_guest_that_died_does_not_stay(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as folder:
        process = guest(folder)
        process.kill()
        process.communicate()
    assert not list(folder.temporary.iterdir())


def test_a_guest_that_stays_keeps_the_next_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_WAIT_SECONDS", 0.3)
    with RunFolder(tmp_path / "out") as before:
        process = guest(before)
    with pytest.raises(Interrupted, match="still at work"), RunFolder(tmp_path / "out"):
        pass
    process.kill()
    process.communicate()
    with RunFolder(tmp_path / "out"):
        pass
