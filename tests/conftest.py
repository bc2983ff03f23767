"""What all tests share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _no_profiles_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `batchinfer tune` kept for whoever runs the tests decides nothing in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_as_a_library_has_it() -> Iterator[None]:
    """The command line sets up the log of its process; where a test calls it, others must not see that."""
    yield
    log = logging.getLogger("batchinfer")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the command line in a process of its own, in tmp_path."""

    def call(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "batchinfer", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def read_output(output: Path) -> pa.Table:
    """All rows of a run folder, shards in the order of their names."""
    shards = sorted((output / "data").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in shards])


def shard_bytes(output: Path) -> dict[str, bytes]:
    """The content of data/ by file name."""
    return {path.name: path.read_bytes() for path in (output / "data").iterdir()}
