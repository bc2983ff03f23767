"""Finished answers of open chunks, kept so that a stop or a kill does not pay for them again.

For tasks whose answers are written, token by token: a chunk of them may take an hour. A journal is one file
a chunk in tmp/, to which each batch's answers are appended, with a checksum. It is never state: nothing is
synced, and a file that is torn, of another job, or of other input is passed over, as far as it is wrong.
What is torn is cut off: records that are appended behind it would not be found.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.core import Answers, Batch, ChunkId, Int64Array, LoadedChunk, shard_name
from batchinfer.errors import JobMismatchError
from batchinfer.tasks.base import AnswerField
from batchinfer.writers.durable import open_regular

_PREFIX = "answers-"
#: What has a journal's name already may be a stranger's: no link is followed, no FIFO waited for.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
_FRAME = struct.Struct("<II")
#: A record's own description; answers follow it.
_LONGEST_HEAD = 1 << 16


@dataclass(frozen=True)
class Journal:
    """The journals of a job in a folder; None: nothing is kept.

    `job` names the plan: answers of another one are none. `fields`: what the task answers with.
    """

    folder: Path | None = None
    job: str = ""
    fields: Mapping[str, AnswerField] | None = None

    def write(self, loaded: LoadedChunk, batch: Batch, answers: Answers) -> None:
        """Keep the answers of a batch. What cannot be kept is not: the run goes on."""
        if self.folder is None or loaded.rows is not None or answers.error or not len(batch):
            return
        values = {"": np.ascontiguousarray(batch.indices, np.int64), **answers.values}
        head = json.dumps(
            {**self._owner(loaded), "arrays": [[n, list(v.shape)] for n, v in values.items()]}
        ).encode()
        body = b"".join(
            [struct.pack("<I", len(head)), head, *(v.tobytes() for v in values.values())]
        )
        record = _FRAME.pack(len(body), zlib.crc32(body)) + body
        with suppress(OSError):
            path = self._path(self.folder, loaded.chunk.id)
            descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o666)
            try:
                written = os.write(descriptor, record)
                if written < len(record):  # the disk is full
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            finally:
                os.close(descriptor)

    def read(self, loaded: LoadedChunk) -> Iterator[tuple[Int64Array, Answers]]:
        """Requests of a chunk that were answered, each once: their indices, int64[b], and the answers.

        For the holder of the run folder alone: a record that is torn is cut off.
        """
        if self.folder is None or loaded.rows is not None:
            return
        seen = np.zeros(len(loaded.requests), dtype=np.bool_)
        for body in self._bodies(self._path(self.folder, loaded.chunk.id)):
            found = self._parse(body, loaded)
            if found is not None:
                indices, answers = found
                if not seen[indices].any():
                    seen[indices] = True
                    yield indices, answers

    def end(self, chunk: ChunkId) -> None:
        """Remove the journal of a chunk that is committed."""
        if self.folder is not None:
            with suppress(OSError):
                os.unlink(self._path(self.folder, chunk))

    @staticmethod
    def _bodies(path: Path) -> Iterator[bytes]:
        """The records of a file, up to the first that is torn; there it ends from then on."""
        try:
            with open_regular(path) as file:
                content = file.read()
        except (OSError, JobMismatchError):  # the latter of what is no regular file
            return
        place = 0
        while len(content) - place >= _FRAME.size:
            size, checksum = _FRAME.unpack_from(content, place)
            begin = place + _FRAME.size
            body = content[begin : begin + size]
            if len(body) < size or zlib.crc32(body) != checksum:
                break
            place = begin + size
            yield body
        if place < len(content):
            with suppress(OSError):
                descriptor = os.open(path, _FLAGS)
                try:
                    os.ftruncate(descriptor, place)
                finally:
                    os.close(descriptor)

    def _parse(self, body: bytes, loaded: LoadedChunk) -> tuple[Int64Array, Answers] | None:
        """A record's indices and answers; None where it is not of this chunk as it is now."""
        fields = self.fields or {}
        try:
            (size,) = struct.unpack_from("<I", body)
            head = json.loads(body[4 : 4 + size]) if size <= _LONGEST_HEAD else {}
            if {name: head[name] for name in self._owner(loaded)} != self._owner(loaded):
                return None
            place, values = 4 + size, {}
            for name, shape in head["arrays"]:
                dtype = np.dtype(np.int64 if name == "" else fields[name].dtype)
                count = int(np.prod(shape, dtype=np.int64))
                values[name] = np.frombuffer(body, dtype, count, place).reshape(shape)
                place += values[name].nbytes
            indices = values.pop("")
            if place == len(body) and self._fits(indices, values, len(loaded.requests)):
                return indices, Answers(values)
        except (LookupError, TypeError, ValueError, struct.error, RecursionError):
            pass  # whoever wrote it, it was not this program
        return None

    def _fits(
        self, indices: Int64Array, values: Mapping[str, npt.NDArray[Any]], requests: int
    ) -> bool:
        """Whether the arrays are those of the task, for requests that there are."""
        fields = self.fields or {}
        if indices.ndim != 1 or values.keys() != fields.keys() or not len(indices):
            return False
        if (
            len(np.unique(indices)) != len(indices)
            or not 0 <= indices.min() <= indices.max() < requests
        ):
            return False
        for name, field in fields.items():
            expected = len(indices)
            if field.counted_by:
                counts = values[field.counted_by]
                if counts.min(initial=0) < 0:
                    return False
                expected = int(counts.sum())
            if values[name].shape != (expected, *field.shape):
                return False
        return True

    def _owner(self, loaded: LoadedChunk) -> dict[str, Any]:
        """What the answers are of: the job, the chunk, its input as read, and how many requests it made."""
        chunk = loaded.chunk
        return {
            "job": self.job, "chunk": list(chunk.id), "digest": chunk.digest,
            "requests": len(loaded.requests),
        }  # fmt: skip

    @staticmethod
    def _path(folder: Path, chunk: ChunkId) -> Path:
        return folder / f"{_PREFIX}{shard_name(chunk)}"


def is_journal(name: str) -> bool:
    """Whether a file of this name is a journal."""
    return name.startswith(_PREFIX)
