"""Kill -9 what belongs to a run on Ray, at random moments: python -m tests.ray_kills --kills 20

Of a run with two actors, one of them is killed, or the raylet (then the run has a Ray of its own), the
process that drives Ray, or the run itself. The job must then be complete, or be completed by `resume`, in
one process or by Ray again, with the bytes that a run has that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, shard_bytes
from tests.test_poison import JOB, write_rows

VICTIMS = ("actor", "raylet", "driver", "run")
RAY = ["--executor", "ray", "--ray-actors", "2"]
#: Imported by every process before all else: actors are no children of a run, so they, and their own
#: children, are poisoned (made slow, too) here.
_POISONED = """
import os, sys
if "POISON_ACTOR" in os.environ or any("default_worker.py" in a for a in sys.orig_argv):
    os.environ["POISON_ACTOR"] = "1"
    import tests.poison
"""


_HEAD = """
import sys, ray
print(ray.init("local", num_cpus=2, include_dashboard=False).address_info["address"], flush=True)
sys.stdin.read()
"""
#: A busy machine takes its time.
_TIMEOUT = 600


@contextmanager
def cluster_of_two(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a Ray of two CPUs whose workers are poisoned, and the process above all of it."""
    head = subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        cwd=ROOT, env=environment(folder, POISON_ANSWER="0.05"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert head.stdout
    address = head.stdout.readline().strip()
    assert address, "Ray did not start"
    try:
        yield address, head.pid
    finally:
        head.communicate(timeout=_TIMEOUT)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables that have Ray's actors poisoned, too, and no Ray of anybody else's used."""
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(_POISONED)
    paths = [str(hook), str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    environ = {**os.environ, **own, **variables}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if "RAY_ADDRESS" not in variables:
        environ.pop("RAY_ADDRESS", None)
    return environ


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command line with poison in it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.poison", *arguments],
        cwd=ROOT,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(run: subprocess.Popen[str], head: int | None, victim: str) -> list[int]:
    """The processes of a run, or below a cluster's head, that are called so."""
    if victim == "run":
        return [run.pid]
    word = {"actor": "ray::Actor", "raylet": "/raylet/raylet", "driver": "spawn_main"}[victim]
    above = run.pid if head is None or victim == "driver" else head
    return [pid for pid in descendants(above) if word in command(pid)]


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def command(pid: int) -> str:
    """A process's command line; a zombie's is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_for_shards(output: Path, count: int, run: subprocess.Popen[str]) -> bool:
    """Whether so many shards came before the run ended."""
    deadline = time.monotonic() + _TIMEOUT
    while len(list((output / "data").glob("part-*"))) < count:
        if run.poll() is not None:
            return False
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.01)
    return True


def kill_in_a_run(
    folder: Path,
    source: Path,
    victim: str,
    draw: random.Random,
    kills: int = 1,
    cluster: tuple[str, int] | None = None,
) -> tuple[Path, int, int]:
    """Begin the job on Ray, and kill so often; return the run folder, the kills, and the exit code.

    Without a cluster, the run has a Ray of its own.
    """
    output = folder / f"out-{draw.randrange(1 << 40):x}"
    address, head = (["--ray-address", cluster[0]], cluster[1]) if cluster else ([], None)
    # Actors end some seconds after their raylet: the run must go on until then.
    seconds = "0.5" if victim == "raylet" else "0.05"
    run = start(
        folder, "run", str(source), *JOB, *RAY, *address, "--output", str(output),
        POISON_ANSWER=seconds,
    )  # fmt: skip
    killed = 0
    for _ in range(kills):
        shards = len(list((output / "data").glob("part-*")))
        if not wait_for_shards(output, shards + draw.randint(1, 3), run):
            break
        time.sleep(draw.random() / 4)
        if victims := processes_of(run, head, victim):
            os.kill(draw.choice(victims), signal.SIGKILL)
            killed += 1
    below = descendants(run.pid if head is None else head)
    said = "".join(run.communicate(timeout=_TIMEOUT))
    assert "Traceback" not in said, said
    expected = (0,) if victim == "actor" else (-signal.SIGKILL,) if victim == "run" else (0, 75)
    assert run.returncode in expected, (run.returncode, said)
    deadline = time.monotonic() + 60
    while left := [pid for pid in below if "ray::Actor" in command(pid)]:
        assert time.monotonic() < deadline, [command(pid) for pid in left]
        time.sleep(0.1)
    return output, killed, run.returncode


def resume(
    folder: Path, output: Path, executor: str, cluster: tuple[str, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """Go on with a job, by the executor of that name."""
    address = ["--ray-address", cluster[0]] if cluster else []
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.poison",
            "resume",
            str(output),
            "--executor",
            executor,
            *address,
        ],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each victim")
    parser.add_argument("--victims", nargs="+", default=VICTIMS, choices=VICTIMS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_rows(folder / "in.jsonl", {}, num_rows=1200)
        undisturbed = start(folder, "run", str(source), *JOB, "--output", str(folder / "one"))
        undisturbed.communicate(timeout=_TIMEOUT)
        assert undisturbed.returncode == 0
        expected = shard_bytes(folder / "one")
        with cluster_of_two(folder) as shared:
            for victim in options.victims:
                cluster = None if victim == "raylet" else shared
                draw, killed, resumed = random.Random(f"{options.seed} {victim}"), 0, 0
                while killed < options.kills:
                    several = min(4, options.kills - killed) if victim == "actor" else 1
                    output, kills, code = kill_in_a_run(
                        folder, source, victim, draw, several, cluster
                    )
                    killed += kills
                    if code:
                        done = resume(folder, output, draw.choice(["auto", "ray"]), cluster)
                        assert done.returncode == 0, done.stderr
                        resumed += 1
                    assert shard_bytes(output) == expected, output
                    print(f"{victim}: {killed} kills, {resumed} resumed", flush=True)


if __name__ == "__main__":
    main()
