"""A chunk's answers in the cache: looked up when it is loaded, kept when its shard stands."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from batchinfer.caching.keys import identity_of, keys_of
from batchinfer.caching.store import Store
from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Answers, Cached, Int64Array, Requests
from batchinfer.errors import one_line
from batchinfer.tasks.base import AnswerField, Task

log = logging.getLogger("batchinfer")

FILE = "answers-1.sqlite"
Found = TypeVar("Found")


class AnswerCache:
    """The answers of one kind of job, in a folder that other jobs and processes use too.

    It pickles, and opens the folder where it is first used; of each, one thread at a time may use it. What
    goes wrong with the folder ends the cache, with a warning, and never the run.
    """

    def __init__(
        self, folder: Path, identity: bytes, fields: Mapping[str, AnswerField], max_bytes: int
    ) -> None:
        self.path = folder / FILE
        self._identity, self._fields, self._max_bytes = identity, dict(fields), max_bytes
        self._store: Store | None = None
        self._has_failed = False

    @classmethod
    def of(cls, config: RunConfig, task: Task) -> AnswerCache | None:
        """The cache of a job, by its plan's configuration; None where it has none, or cannot have one."""
        if config.cache is None or task.obstacle_to_caching:
            return None
        folder = Path(os.path.abspath(config.cache))
        return cls(folder, identity_of(config, task.spec), task.answers, config.cache_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def look_up(self, requests: Requests) -> Cached:
        """What there is of the answers to the requests that are to be asked."""
        indices = requests.asked
        keys = keys_of(requests, indices, self._identity) if len(indices) else []
        entries = self._try(lambda store: store.get(keys)) or {}
        sizes = self._sizes(requests)[indices]
        whole = [
            self._fitting(entries.get(key), size)
            for key, size in zip(keys, sizes.tolist(), strict=True)
        ]
        found = np.fromiter((one is not None for one in whole), np.bool_, len(whole))
        parts = [one for one in whole if one is not None]
        return Cached(indices, keys, found, Answers(self._joined(parts)))

    def keep(self, answered: AnsweredChunk) -> None:
        """Keep the answers that were not there, but for those of rows that have an error."""
        cached = answered.cached
        if cached is None or self._has_failed:
            return
        wanted = ~cached.found
        if answered.errors:
            rows = answered.requests.row[cached.indices]
            wanted &= ~np.isin(rows, np.fromiter(answered.errors, np.int64))
        if not wanted.any():
            return
        indices = cached.indices[wanted]
        keys = [cached.keys[place] for place in np.flatnonzero(wanted).tolist()]
        entries = dict(zip(keys, self._contents(answered, indices), strict=True))
        self._try(lambda store: store.put(entries))

    def close(self) -> None:
        """Let go of the folder; what comes after opens it again."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _try(self, use: Callable[[Store], Found]) -> Found | None:
        """What the folder gives; None, from here on, once something was wrong with it."""
        if self._has_failed:
            return None
        try:
            if self._store is None:
                self._store = Store(self.path, self._max_bytes)
            return use(self._store)
        except (sqlite3.Error, OSError) as error:
            self._has_failed = True
            self.close()
            advice = ""
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(
                error, sqlite3.OperationalError
            ):
                advice = "; remove the folder's files while no run uses it"
            log.warning(
                f"{self.path}: {one_line(error)}; this run goes on without the cache{advice}"
            )
            return None

    # -- entries: of each field the request's items, one field behind the other ------------------------

    def _width(self, name: str) -> int:
        """Bytes of an item."""
        field = self._fields[name]
        return int(np.dtype(field.dtype).itemsize * np.prod(field.shape, dtype=np.int64))

    def _sizes(self, requests: Requests) -> npt.NDArray[np.int64]:
        """Bytes of each field of each request, [n, fields]; 0 of those that another field counts."""
        sizes = np.zeros((len(requests), len(self._fields)), np.int64)
        for place, (name, field) in enumerate(self._fields.items()):
            if not field.counted_by:
                sizes[:, place] = requests.counts(field.unit).astype(np.int64) * self._width(name)
        return sizes

    def _fitting(self, content: bytes | None, sizes: list[int]) -> list[bytes] | None:
        """An entry's fields; None where they are not of these sizes."""
        if content is None:
            return None
        parts: dict[str, bytes] = {}
        start = 0
        for (name, field), size in zip(self._fields.items(), sizes, strict=True):
            if field.counted_by:
                count = np.frombuffer(parts[field.counted_by], self._fields[field.counted_by].dtype)
                size = int(count.sum()) * self._width(name)
            parts[name] = content[start : start + max(0, size)]
            start += max(0, size)
        return list(parts.values()) if start == len(content) else None

    def _joined(self, parts: list[list[bytes]]) -> dict[str, npt.NDArray[Any]]:
        """The arrays of these requests, as an engine answers with them."""
        arrays = {}
        for place, (name, field) in enumerate(self._fields.items()):
            content = b"".join([one[place] for one in parts])
            arrays[name] = np.frombuffer(content, field.dtype).reshape(-1, *field.shape)
        return arrays

    def _contents(self, answered: AnsweredChunk, indices: Int64Array) -> Iterator[bytes]:
        """The entries of these requests."""
        requests, columns = answered.requests, []
        for name, field in self._fields.items():
            values = answered.values[name]
            if field.counted_by:
                counts = answered.values[field.counted_by].astype(np.int64)
                ends = np.cumsum(counts)
                starts, ends = (ends - counts)[indices], ends[indices]
            else:
                values = values[requests.places(indices, field.unit)]
                ends = np.cumsum(requests.counts(field.unit)[indices], dtype=np.int64)
                starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
            content, width = np.ascontiguousarray(values).tobytes(), self._width(name)
            bounds = zip((starts * width).tolist(), (ends * width).tolist(), strict=True)
            columns.append([content[start:end] for start, end in bounds])
        return map(b"".join, zip(*columns, strict=True))
