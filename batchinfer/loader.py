"""Reading, tokenizing and batching ahead of the device.

A Loader works in the process that calls it, without torch; dataloader.py runs it in processes of its
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
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
        batches = make_batches(chunk.id, requests, self.budget)
        # The batches hold the tokens now; a second copy would travel to the device's process too.
        return LoadedChunk(chunk, dataclasses.replace(requests, fields={}), batches)

    def stream(self, spans: Iterable[Span]) -> Iterator[LoadedChunk]:
        """Yield the chunks of all spans, in order, loaded in this process."""
        for span in spans:
            yield from self.load(span)
