"""Which rows are computed again: a few from all over the job, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute

from batchinfer.core import ERROR, ChunkId, Shard
from batchinfer.storage import place_of
from batchinfer.writers.footer import read_columns

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute


def choose_rows(
    shards: Mapping[ChunkId, Shard], num_rows: int, seed: int
) -> dict[ChunkId, tuple[int, ...]]:
    """`num_rows` rows that have an answer, by chunk and counted in it; all of them where there are fewer.

    The job's answered rows are cut into as many parts of one size, and a row is drawn from each: so
    they come from all shards alike, and the same seed gives the same ones. Raises StorageError where a
    shard cannot be read.
    """
    order = sorted(shards)
    counts = np.array([shards[i].num_rows - shards[i].num_errors for i in order], dtype=np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    num_rows = min(num_rows, total)
    if not num_rows:
        return {}
    edges = np.arange(num_rows + 1, dtype=np.int64) * total // num_rows
    drawn = edges[:-1] + np.random.default_rng(seed).integers(0, np.diff(edges))
    place = np.searchsorted(ends, drawn, side="right")
    chosen = {}
    for index in np.unique(place).tolist():
        shard = shards[order[index]]
        within = drawn[place == index] - (ends[index] - counts[index])
        chosen[order[index]] = tuple(_answered(shard)[within].tolist())
    return chosen


def _answered(shard: Shard) -> npt.NDArray[np.int64]:
    """The rows of a shard that have an answer."""
    if not shard.num_errors:
        return np.arange(shard.num_rows, dtype=np.int64)
    errors = read_columns(place_of(shard.path), [ERROR]).column(ERROR)
    return np.flatnonzero(pc.is_null(errors).to_numpy())
