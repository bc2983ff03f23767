"""Actors of a Ray cluster: the same shards as one process makes, whatever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchinfer.config import RunConfig
from batchinfer.errors import UsageError
from batchinfer.executors import cluster as cluster_module
from tests.conftest import Cli, shard_bytes
from tests.ray_kills import (
    RAY,
    VICTIMS,
    cluster_of_two,
    kill_in_a_run,
    resume,
    start,
    wait_for_shards,
)
from tests.test_poison import JOB, assert_only_these_fail, write_rows

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of a Ray of two CPUs, whose workers are poisoned, and its head's process."""
    with cluster_of_two(tmp_path_factory.mktemp("ray")) as shared:
        yield shared


@pytest.fixture
def cluster(shared: tuple[str, int]) -> str:
    return shared[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Rows, and the shards that one process makes of them."""
    folder = tmp_path_factory.mktemp("job")
    source = write_rows(folder / "in.jsonl", {}, num_rows=600)
    run = start(folder, "run", str(source), *JOB, "--output", str(folder / "one"))
    run.communicate(timeout=120)
    assert run.returncode == 0
    return source, shard_bytes(folder / "one")


@needs_ray
def test_the_shards_are_those_of_one_process(
    job: tuple[Path, dict[str, bytes]], cluster: str, cli: Cli, tmp_path: Path
) -> None:
    source, expected = job
    flags = [*JOB, *RAY, "--ray-address", cluster, "--output", "out", "--json", "--quiet"]
    done = cli("run", str(source), *flags, RAY_AUTH_MODE="disabled")
    assert (done.returncode, done.stderr) == (0, "")
    assert shard_bytes(tmp_path / "out") == expected
    summary = json.loads(done.stdout)  # and nothing else
    assert summary["new_rows"] == 600
    assert summary["device"] in ("2 × cpu", "cpu")  # the second actor may come too late
    assert not list((tmp_path / "out" / "_batchinfer" / "tmp").iterdir())


@needs_ray
def test_what_ray_began_one_process_ends_and_the_other_way_round(
    job: tuple[Path, dict[str, bytes]], cluster: str, tmp_path: Path
) -> None:
    source, expected = job
    ray = [*RAY, "--ray-address", cluster]
    for begins, goes_on in ((ray, ["--executor", "auto"]), ([], ray)):
        output = tmp_path / f"out{len(begins)}"
        run = start(
            tmp_path, "run", str(source), *JOB, *begins, "--output", str(output),
            POISON_ANSWER="0.05",
        )  # fmt: skip
        wait_for_shards(output, 2, run)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=250)
        assert run.returncode == 75, said
        assert f"batchinfer resume {output}" in said
        assert not list((output / "_batchinfer" / "tmp").glob("attempt-*"))
        assert len(shard_bytes(output)) < len(expected)
        again = start(tmp_path, "resume", str(output), *goes_on)
        _, said = again.communicate(timeout=250)
        assert again.returncode == 0, said
        assert shard_bytes(output) == expected


@needs_ray
def test_a_row_that_kills_actors_is_found_while_others_go_on(
    cluster: str, cli: Cli, tmp_path: Path
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", {33: "SEGFAULT"}), tmp_path / "out"
    run = start(
        tmp_path, "run", str(source), *JOB, *RAY, "--ray-address", cluster, "--output", str(output)
    )
    _, said = run.communicate(timeout=250)
    assert run.returncode == 65, said
    assert "another is started" in said and "looked into afterwards" in said
    assert_only_these_fail(output, source, cli, tmp_path, {33: "SIGSEGV"})


@needs_ray
@pytest.mark.parametrize("victim", VICTIMS)
def test_something_is_killed_and_no_row_is_lost(
    victim: str, job: tuple[Path, dict[str, bytes]], shared: tuple[str, int], tmp_path: Path
) -> None:
    source, expected = job
    cluster = None if victim == "raylet" else shared
    output, killed, code = kill_in_a_run(
        tmp_path, source, victim, random.Random(victim), cluster=cluster
    )
    assert killed
    if code:
        done = resume(tmp_path, output, "auto")
        assert done.returncode == 0, done.stderr
    assert shard_bytes(output) == expected


@needs_ray
def test_a_cluster_that_is_not_there_is_one_line(cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    done = cli("run", str(source), *JOB, *RAY, "--ray-address", "nonsense", "--output", "out")
    assert done.returncode == 69, done.stderr
    assert "--ray-address nonsense" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", "cpu:2"], "--executor ray: not with --devices"),
        (["--device", "cuda:1"], "Ray chooses which GPU"),
        (["--shard", "0/2"], "--shard: not with --executor ray"),
        (["--ray-actors", "3:2"], "--ray-actors: should be a number, or MIN:MAX"),
        (["--ray-actors", "0"], "--ray-actors: should be a number, or MIN:MAX"),
    ],
)
def test_what_does_not_go_with_ray(flags: list[str], said: str, cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {})
    done = cli("run", str(source), *JOB, "--executor", "ray", *flags, "--output", "out")
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'batchinfer\[ray\]'"):
        cluster_module.require_ray(RunConfig(executor="ray"))


def test_a_number_of_actors_in_yaml_is_what_it_looks_like(tmp_path: Path) -> None:
    """YAML 1.1 reads 1:8 as 68."""
    path = tmp_path / "job.yaml"
    path.write_text("executor: ray\nray_actors: 1:8\n")
    assert RunConfig.load({}, path, os.environ).ray_actors == "1:8"
