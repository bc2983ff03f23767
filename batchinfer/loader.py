"""Reading, tokenizing and batching ahead of the device.

A Loader works in the process that calls it, without torch; dataloader.py runs it in processes of its
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

from batchinfer.attempts import Attempts
from batchinfer.batching import make_batches
from batchinfer.caching import AnswerCache
from batchinfer.core import BatchBudget, Chunk, LoadedChunk, Span
from batchinfer.duplicates import OncePerText, without_duplicates
from batchinfer.errors import Interrupted
from batchinfer.readers import OffsetIndex, ReadOptions, read_chunks
from batchinfer.stages import Stopwatch
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder


class LoaderKilledError(Interrupted):
    """A process that reads and tokenizes died by a signal that nobody sent to stop the run."""


@dataclass(frozen=True)
class Loader:
    """Turns spans of input into chunks with their batches. It pickles: workers get a copy.

    `shares_answers`: requests of the same input are asked once. What the `cache` has is not asked at all.
    """

    task: Task
    encoder: Encoder
    budget: BatchBudget
    chunk_rows: int
    options: ReadOptions
    attempts: Attempts = field(default_factory=Attempts)
    places: OffsetIndex = field(default_factory=OffsetIndex)
    shares_answers: bool = False
    cache: AnswerCache | None = None

    def load(self, span: Span, stopped: Callable[[], bool]) -> Iterator[LoadedChunk]:
        """Yield the chunks of a span in order, ready for the device.

        There is none where `stopped` says so before the first one was found: that may take a while.
        """
        watch = Stopwatch()
        chunks = read_chunks(span, self.chunk_rows, self.options, self.places, stopped)
        for chunk in watch.each("read", chunks):
            if span.rows is None or chunk.id.chunk in span.rows:
                rows = None if span.rows is None else span.rows[chunk.id.chunk]
                with self.attempts.loading(chunk.id):
                    loaded = self.prepare(chunk, rows)
                yield dataclasses.replace(loaded, seconds=loaded.seconds + watch.take())

    def prepare(self, chunk: Chunk, rows: tuple[int, ...] | None = None) -> LoadedChunk:
        """Tokenize a chunk, or these rows of it, and cut it into batches."""
        wanted = chunk
        if rows is not None:
            others = dict.fromkeys(set(range(chunk.num_rows)).difference(rows), "answered already")
            wanted = dataclasses.replace(chunk, errors={**others, **chunk.errors})
        watch = Stopwatch()
        with watch.measure("tokenize"):
            encoder = OncePerText(self.encoder) if self.shares_answers else self.encoder
            requests = self.task.encode(wanted, encoder)
            if self.shares_answers:
                requests = without_duplicates(requests)
            asked = None if requests.same_as is None else requests.asked
        cached = None
        if self.cache is not None:
            with watch.measure("read"):
                cached = self.cache.look_up(requests)
            asked = cached.indices[~cached.found]
        with watch.measure("tokenize"):
            ahead = self.task.tokens_ahead
            batches = make_batches(chunk.id, requests, self.budget, ahead, asked)
        # The batches hold the tokens now; a second copy would travel to the device's process too.
        light = dataclasses.replace(requests, fields={})
        return LoadedChunk(chunk, light, batches, rows, watch.seconds, cached)

    def stream(self, spans: Iterable[Span], stopped: Callable[[], bool]) -> Generator[LoadedChunk]:
        """Yield the chunks of all spans, in order, loaded in this process, up to a stop."""
        try:
            for span in spans:
                if stopped():
                    return
                yield from self.load(span, stopped)
        finally:
            if self.cache is not None:
                self.cache.close()
