"""The loader in processes of its own: a PyTorch DataLoader over spans of input.

One process reads one span at a time, from its start to its end, and takes the next when it is free.
What is kept ready is bounded: a slow device stops the readers, not the memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, IterableDataset

from batchinfer.core import LoadedChunk, Span
from batchinfer.errors import BatchInferError
from batchinfer.lean import spare_pandas
from batchinfer.loader import Loader

#: Chunks kept ready hold about this much input in all (but one a worker is always kept ready).
PREFETCH_BYTES = 512 << 20


class SpanDataset(IterableDataset[LoadedChunk | BatchInferError]):
    """The loaded chunks of the spans that this process gets hold of.

    An error that is ours is handed over as the last item: raised here, DataLoader would turn it into
    another one with the traceback of this process as its message.
    """

    def __init__(self, loader: Loader, spans: Sequence[Span]) -> None:
        self.loader = loader
        self.spans = spans
        self.taken = multiprocessing.get_context("spawn").Value("q", 0)

    def __iter__(self) -> Iterator[LoadedChunk | BatchInferError]:
        try:
            while (index := self._take()) < len(self.spans):
                yield from self.loader.load(self.spans[index])
        except BatchInferError as error:
            yield error

    def _take(self) -> int:
        with self.taken.get_lock():
            index = int(self.taken.value)
            self.taken.value += 1
        return index


def stream_from_workers(
    loader: Loader, spans: Sequence[Span], *, workers: int, pin_memory: bool, chunk_bytes: int
) -> Iterator[LoadedChunk]:
    """Yield the chunks of all spans as the workers have them ready."""
    if not spans:
        return
    workers = min(workers, len(spans))
    ready = PREFETCH_BYTES // (max(1, chunk_bytes) * workers)
    items = DataLoader(
        SpanDataset(loader, spans),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=min(4, max(1, ready)),
        pin_memory=pin_memory,
        multiprocessing_context="spawn",
        worker_init_fn=_settle,
        in_order=False,
    )
    for item in items:
        if isinstance(item, BatchInferError):
            raise item
        yield item


def _settle(worker: int) -> None:
    """Leave signals to the parent, and die with it.

    Ctrl-C and a closing terminal reach the whole process group; the parent stops feeding and ends its
    workers itself. A parent that is killed outright cannot, so the kernel is asked to do it.
    """
    spare_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
        if os.getppid() == 1:  # the parent was gone before the kernel was asked
            os._exit(1)
