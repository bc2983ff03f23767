"""Stops of every kind, on real processes: signals, terminals, namespaces, full and read-only disks."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import Interrupted
from batchinfer.writers.run_folder import RunFolder
from tests.conftest import read_output, shard_bytes

NUM_ROWS = 80
#: Of rows.jsonl into out, in the folder that a process is started in.
JOB = (
    "run", "rows.jsonl", "--engine", "fake", "--workers", "0", "--chunk-rows", "4",
    "--max-batch-tokens", "64", "--output", "out",
)  # fmt: skip

#: The command line with a fake engine that takes so many seconds a batch.
SLOW = """
import sys, time
from batchinfer.cli import main
from batchinfer.engines.fake import FakeEngine

quick, seconds = FakeEngine.answer, float(sys.argv[1])

def answer(self, batch):
    time.sleep(seconds)
    return quick(self, batch)

FakeEngine.answer = answer
sys.exit(main(sys.argv[2:]))
"""


def command(*arguments: str, seconds: float = 0.0) -> list[str]:
    return [sys.executable, "-c", SLOW, str(seconds), *arguments]


def start(folder: Path, *arguments: str, seconds: float = 0.05, **options: Any) -> Any:
    """Start a job in a folder, with signals as a terminal's shell leaves them."""
    # A process inherits what is ignored: the tests themselves may run under nohup, or behind `&`.
    wanted = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        return subprocess.Popen(
            options.pop("through", []) + command(*(arguments or JOB), seconds=seconds),
            cwd=folder, **{**streams, **options},
        )  # fmt: skip
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(what: Callable[[], Any], process: Any, seconds: float = 60) -> Any:
    """Whatever the call gives once it gives something; the process must live until then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def wait_for_a_shard(folder: Path, process: Any) -> None:
    data = folder / "out" / "data"
    wait_for(lambda: data.is_dir() and any(data.glob("*.parquet")), process)


def finish(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*(arguments or ("resume", "out", "--quiet"))),
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def assert_right(folder: Path, whole: dict[str, bytes]) -> None:
    """The folder ends in the bytes of a run that nothing disturbed, and leaves nothing lying about."""
    done = finish(folder)
    assert done.returncode == 0, done.stderr
    assert shard_bytes(folder / "out") == whole
    assert read_output(folder / "out")["_row"].to_pylist() == list(range(NUM_ROWS))
    assert not list((folder / "out" / "_batchinfer" / "tmp").iterdir())


def assert_one_line(stderr: str, *words: str) -> None:
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    for word in words:
        assert word in last, stderr


def write_rows(folder: Path) -> None:
    rows = [{"id": i, "text": f"row {i} " * (i % 7)} for i in range(NUM_ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder)
    done = finish(folder, *JOB)
    assert done.returncode == 0, done.stderr
    return shard_bytes(folder / "out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_with_75_and_a_resume_ends_in_the_same_bytes(
    number: signal.Signals, folder: Path, whole: dict[str, bytes]
) -> None:
    process = start(folder)
    wait_for_a_shard(folder, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (75, ""), stderr
    assert number.name in stderr
    assert_one_line(stderr, "batchinfer resume out")
    assert 0 < len(shard_bytes(folder / "out")) < len(whole)
    assert_right(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_leaves_at_once_with_128_and_its_number(
    number: signal.Signals, folder: Path, whole: dict[str, bytes]
) -> None:
    process = start(folder, seconds=4)
    wait_for((folder / "out" / "_batchinfer" / "plan.json").exists, process)
    time.sleep(0.5)  # into the first batch
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number, stderr
    assert time.monotonic() - began < 2
    assert "Traceback" not in stderr
    assert_right(folder, whole)


def test_a_signal_before_the_first_row_stops_with_nothing_lost(
    folder: Path, whole: dict[str, bytes]
) -> None:
    process = start(folder, seconds=0.5)
    wait_for((folder / "out" / "_batchinfer" / "plan.json").exists, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert_right(folder, whole)


def test_a_signal_to_all_processes_of_a_run_stops_it(folder: Path, whole: dict[str, bytes]) -> None:
    """As batch schedulers cancel a step: the loader processes are told too."""
    job = [argument if argument != "0" else "1" for argument in JOB]
    process = start(folder, *job, start_new_session=True)
    wait_for_a_shard(folder, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert_one_line(stderr, "batchinfer resume")
    assert_right(folder, whole)


def test_a_stopped_resume_is_resumed(folder: Path, whole: dict[str, bytes]) -> None:
    for arguments in (JOB, ("resume", "out"), ("resume", "out")):
        process = start(folder, *arguments)
        wait_for(partial(is_held_by, folder, process), process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 75, stderr
    assert_right(folder, whole)


def is_held_by(folder: Path, process: Any) -> bool:
    try:
        holder = json.loads((folder / "out" / "_batchinfer" / "holder.json").read_bytes())
    except FileNotFoundError:
        return False
    return bool(holder["pid"] == process.pid)


# -- terminals and streams -------------------------------------------------------------------------


def start_on_terminal(folder: Path, *arguments: str) -> tuple[Any, int]:
    """Start a job as the leader of a session on a terminal of its own; also the terminal's other end."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start(
        folder, *arguments, stdin=slave, stdout=slave, stderr=slave, text=False,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(slave)
    return process, master


def test_a_terminal_that_closes_stops_the_run(folder: Path, whole: dict[str, bytes]) -> None:
    process, master = start_on_terminal(folder, *JOB)
    wait_for_a_shard(folder, process)
    os.close(master)
    assert process.wait(timeout=30) == 75
    assert 0 < len(shard_bytes(folder / "out")) < len(whole)
    assert_right(folder, whole)


def test_control_c_on_a_terminal_stops_the_run(folder: Path, whole: dict[str, bytes]) -> None:
    process, master = start_on_terminal(folder, *JOB)
    wait_for_a_shard(folder, process)
    os.write(master, b"\x03")
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    assert process.wait(timeout=30) == 75
    assert b"batchinfer resume out" in shown
    assert b"Traceback" not in shown
    assert_right(folder, whole)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str, folder: Path, whole: dict[str, bytes]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec {shlex.join(command(*JOB))} {closed}"],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert shard_bytes(folder / "out") == whole


def test_what_goes_to_a_closed_stderr_goes_nowhere_else(folder: Path) -> None:
    loud = SLOW.replace("time.sleep(seconds)", "__import__('os').write(2, b'a library speaks')")
    line = shlex.join([sys.executable, "-c", loud, "0", *JOB, "--json"])
    done = subprocess.run(
        ["bash", "-c", f"exec {line} 2>&-"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["num_rows"] == NUM_ROWS, "stdout holds the summary alone"
    for path in (folder / "out").rglob("*"):
        assert not path.is_file() or b"a library speaks" not in path.read_bytes(), path


def test_an_error_with_closed_stderr_is_an_exit_code_alone(folder: Path) -> None:
    line = shlex.join(command("run", "nowhere.jsonl", "--engine", "fake", "--output", "out"))
    done = subprocess.run(
        ["bash", "-c", f"exec {line} 2>&-"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (66, "")


# -- as process 1 of a container -------------------------------------------------------------------


@pytest.fixture
def unshare() -> list[str]:
    """The start of a command line that runs the rest as process 1."""
    through = ["unshare", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*through, "true"], stderr=-3).returncode:
        pytest.skip("no permission to make a pid namespace")
    return through


def test_process_1_stops_like_any_other(
    unshare: list[str], folder: Path, whole: dict[str, bytes]
) -> None:
    process = start(folder, through=unshare)
    wait_for_a_shard(folder, process)
    assert json.loads((folder / "out" / "_batchinfer" / "holder.json").read_bytes())["pid"] == 1
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert_one_line(stderr, "batchinfer resume out")
    assert_right(folder, whole)


# -- disks -----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory with these options, or change its options; gives its folder."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        line = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(line, stderr=-3).returncode:
            pytest.skip("no permission to mount a file system")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_fills_up_stops_with_75_until_there_is_room(
    disk: Callable[[str], Path], folder: Path, whole: dict[str, bytes]
) -> None:
    small = disk("size=160k")
    write_rows(small)
    done = finish(small, *JOB, "--no-progress")
    assert done.returncode == 75, done.stderr
    assert_one_line(done.stderr, "no space left", "make room", "`batchinfer resume out`")
    stood = shard_bytes(small / "out")
    assert 0 < len(stood) < len(whole)
    assert stood == {name: whole[name] for name in stood}, "what stands is whole"
    again = finish(small)
    assert again.returncode == 75, "there is no more room than before"
    assert_one_line(again.stderr, "no space left")
    disk("size=10m")
    assert_right(small, whole)


def test_a_disk_that_is_full_from_the_start_names_the_way_on(
    disk: Callable[[str], Path], folder: Path, whole: dict[str, bytes]
) -> None:
    small = disk("size=64k")
    write_rows(small)
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    done = finish(small, *JOB, "--no-progress")
    assert done.returncode == 75, done.stderr
    assert_one_line(done.stderr, "no space left", "start it again")
    disk("size=10m")
    filler.unlink()
    done = finish(small, *JOB, "--quiet")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(small / "out") == whole


def test_a_folder_that_turns_read_only_is_one_line(
    disk: Callable[[str], Path], folder: Path, whole: dict[str, bytes]
) -> None:
    place = disk("size=10m")
    write_rows(place)
    process = start(place)
    wait_for_a_shard(place, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    disk("ro")
    for arguments in (("resume", "out"), JOB, (*JOB[:-1], "elsewhere")):
        done = finish(place, *arguments)
        assert done.returncode in (73, 74), done.stderr
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert_one_line(done.stderr, "out" if "out" in arguments else "elsewhere")
    assert "stopped" in finish(place, "status", "out").stdout, "status only reads"
    disk("rw,size=10m")
    assert_right(place, whole)


# -- two at once -----------------------------------------------------------------------------------


def test_of_two_that_start_at_once_one_wins(folder: Path, whole: dict[str, bytes]) -> None:
    processes = [start(folder, seconds=0.2) for _ in range(2)]
    told = [process.communicate(timeout=60)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 75], told
    winner, loser = processes[codes.index(0)], codes.index(75)
    assert_one_line(told[loser], f"pid {winner.pid} on {socket.gethostname()}")
    assert shard_bytes(folder / "out") == whole
    assert_right(folder, whole)


def test_a_holder_that_has_just_got_the_lock_is_waited_for(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out") as held:
        holder = held.state / "holder.json"
        name = holder.rename(tmp_path / "holder.json")
        thread = threading.Timer(0.2, name.rename, [holder])
        thread.start()
        with pytest.raises(Interrupted, match=f"pid {os.getpid()} on"), RunFolder(held.path):
            pass
        thread.join()


@pytest.mark.parametrize("arguments", [("resume", "out"), JOB])
def test_a_live_run_is_named_with_pid_and_host_and_left_alone(
    arguments: tuple[str, ...], folder: Path, whole: dict[str, bytes]
) -> None:
    process = start(folder, seconds=0.1)
    wait_for_a_shard(folder, process)
    second = finish(folder, *arguments)
    assert second.returncode == 75, second.stderr
    assert_one_line(second.stderr, f"pid {process.pid} on {socket.gethostname()}")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert_right(folder, whole)
