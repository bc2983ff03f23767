"""Several batches at a time on one CPU, each on cores of its own.

Cores that share a layer wait for each other behind each one. Cores that have a batch of their own do not,
nor does one wait while another makes a kernel for a shape that is new. Measured on two cores with AMX, with
all-MiniLM-L6-v2 in bfloat16: 1.05 times the rate of one batch on both cores, 1.1 times in the first minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from batchinfer.core import Answers, Batch
from batchinfer.stages import StageSeconds

Answer = Callable[[Batch], Answers]

#: Of more cores than the most, several share a batch: each batch under way takes memory, and all of them
#: share one interpreter. Then, fewer streams where more cores have work.
LEAST_STREAMS, MOST_STREAMS = 4, 8


def share(threads: int, streams: int | None) -> tuple[int, int]:
    """Streams, and the threads of each; None: as many as there are threads, `MOST_STREAMS` at most."""
    if streams is None and threads <= MOST_STREAMS:
        streams = threads
    elif streams is None:
        counts = range(LEAST_STREAMS, MOST_STREAMS + 1)
        streams = max(counts, key=lambda count: (threads // count * count, count))
    return streams, max(1, threads // streams)


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of a batch: its answers, or the error that was raised; and what it took of the device."""

    answers: Answers | None
    error: Exception | None
    seconds: StageSeconds


def timed(answer: Answer, batch: Batch, streams: int = 1) -> Landed:
    """Answer a batch; of several streams each is a part of the device."""
    began = time.perf_counter()
    answers = failure = None
    try:
        answers = answer(batch)
    except Exception as error:  # whatever the model raises
        # It leads to the frame that failed, and to all of its tensors: they must be gone before it is
        # tried again.
        failure = error.with_traceback(None)
        failure.__cause__ = failure.__context__ = None
    seconds = (time.perf_counter() - began) / streams
    return Landed(answers, failure, StageSeconds(forward=seconds))


class Streams:
    """Threads that answer a batch each; each of them begins with `begin`."""

    def __init__(self, count: int, begin: Callable[[], None]) -> None:
        self.count = count
        #: Batches that may be under way. One waits behind each: a stream need not wait for the thread
        #: that hands them out, unless that one tokenizes.
        self.room = 2 * count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="stream", initializer=begin)

    def start(self, answer: Answer, batch: Batch) -> Future[Landed]:
        """Answer a batch as soon as a thread is free."""
        return self._pool.submit(timed, answer, batch, self.count)

    def make_room(self) -> None:
        """Have one batch less under way: together they do not fit into memory."""
        self.room = max(1, min(self.room, self.count) - 1)

    def close(self) -> None:
        """Wait for batches under way; those that wait are dropped."""
        self._pool.shutdown(cancel_futures=True)
