"""Reading, tokenizing and batching ahead of the device.

With `workers` = 0 all of it happens in the calling process, without torch; otherwise in the processes
of a PyTorch DataLoader (dataloader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchinfer.batching import make_batches
from batchinfer.core import BatchBudget, Chunk, LoadedChunk, Span
from batchinfer.readers import ReadOptions, read_chunks
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder


@dataclass(frozen=True)
class Loader:
    """Turns spans of input into chunks with their batches. It pickles: workers get a copy."""

    task: Task
    encoder: Encoder
    budget: BatchBudget
    chunk_rows: int
    options: ReadOptions

    def load(self, span: Span) -> Iterator[LoadedChunk]:
        """Yield the chunks of a span in order, ready for the device."""
        for chunk in read_chunks(span, self.chunk_rows, self.options):
            yield self.prepare(chunk)

    def prepare(self, chunk: Chunk) -> LoadedChunk:
        """Tokenize a chunk and cut it into batches."""
        requests = self.task.encode(chunk, self.encoder)
        return LoadedChunk(chunk, requests, make_batches(chunk.id, requests, self.budget))

    def stream(
        self, spans: Sequence[Span], *, workers: int, pin_memory: bool, chunk_bytes: int
    ) -> Iterator[LoadedChunk]:
        """Yield the chunks of all spans: in order within a span, in any order across spans.

        `chunk_bytes` is the expected size of a chunk's input; it bounds how many are kept ready.
        """
        if workers == 0:
            for span in spans:
                yield from self.load(span)
        else:
            from batchinfer.dataloader import stream_from_workers

            yield from stream_from_workers(
                self, spans, workers=workers, pin_memory=pin_memory, chunk_bytes=chunk_bytes
            )
