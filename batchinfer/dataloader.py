"""The loader in processes of its own: a PyTorch DataLoader over spans of input.

One process reads one span at a time, from its start to its end, and takes the next when it is free.
What is kept ready is bounded: a slow device stops the readers, not the memory.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any, Self

from torch.utils.data import DataLoader, IterableDataset

from batchinfer.children import hold_signals, settle_child
from batchinfer.core import LoadedChunk, Span
from batchinfer.errors import BatchInferError, Interrupted, StorageError
from batchinfer.lean import spare_pandas
from batchinfer.loader import Loader, LoaderKilledError
from batchinfer.stop import never

#: Chunks kept ready hold about this much input in all (but one a worker is always kept ready).
PREFETCH_BYTES = 512 << 20
#: How often it is looked whether the workers should stop, in seconds.
_LOOK_SECONDS = 0.2


class SpanDataset(IterableDataset[LoadedChunk | BatchInferError]):
    """The loaded chunks of the spans that this process gets hold of.

    An error that is ours is handed over as the last item: raised here, DataLoader would turn it into
    another one with the traceback of this process as its message.
    """

    def __init__(self, loader: Loader, spans: Sequence[Span]) -> None:
        self.loader = loader
        self.spans = spans
        with _shared_memory_named():
            self.taken = multiprocessing.get_context("spawn").Value("q", 0)
            self.stopping = multiprocessing.get_context("spawn").Event()

    def __iter__(self) -> Iterator[LoadedChunk | BatchInferError]:
        try:
            while not self.stopping.is_set() and (index := self._take()) < len(self.spans):
                yield from self.loader.load(self.spans[index], self.stopping.is_set)
        except BatchInferError as error:
            yield error

    def _take(self) -> int:
        with self.taken.get_lock():
            index = int(self.taken.value)
            self.taken.value += 1
        return index


def stream_from_workers(
    loader: Loader,
    spans: Sequence[Span],
    stopped: Callable[[], bool] = never,
    *,
    workers: int,
    pin_memory: bool,
    chunk_bytes: int,
) -> Generator[LoadedChunk]:
    """Yield the chunks of all spans as the workers have them ready, up to a stop."""
    if not spans:
        return
    workers = min(workers, len(spans))
    ready = PREFETCH_BYTES // (max(1, chunk_bytes) * workers)
    dataset = SpanDataset(loader, spans)
    with _no_advice():
        items = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=min(4, max(1, ready)),
            pin_memory=pin_memory,
            multiprocessing_context="spawn",
            worker_init_fn=_settle,
            in_order=False,
        )
    with _WorkerWatch() as watch, _passing_on(stopped, dataset.stopping):
        for item in watch.iterate(items):
            if isinstance(item, BatchInferError):
                raise item
            yield item


@contextmanager
def _passing_on(stopped: Callable[[], bool], stopping: Event) -> Iterator[None]:
    """Tell the workers of a stop: this thread waits for what they send, and cannot."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if stopped():
                stopping.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(
            1.0
        )  # one that was killed while it looked at the event would hold this one up for ever


@contextmanager
def _shared_memory_named() -> Iterator[None]:
    """What processes share, they share in the system's shared memory, of which containers may have none.

    Raises StorageError where it refuses, which would else pass for the run folder's disk.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"no processes that read and tokenize can be started: {error.filename or 'shared memory'}: "
            f"{error.strerror}; give the container shared memory (docker run --shm-size 1g), or run with "
            "--workers 0"
        ) from error


@contextmanager
def _no_advice() -> Iterator[None]:
    """DataLoader warns of more workers than cores; who asked for them knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class _WorkerWatch:
    """Sees to it that a loader process that is killed stops the run, and does nothing else.

    DataLoader's own SIGCHLD handler raises in the main thread wherever that happens to be; in the
    model's forward a dead worker would pass for a bad row. Without any handler, a worker killed in
    the middle of sending leaves the main process waiting for the rest for ever. So this one raises
    while the next item is waited for; at other times it waits for that moment.
    """

    def __init__(self) -> None:
        self._workers: list[BaseProcess] = []
        self._is_waiting = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGCHLD)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._before)

    def iterate(self, items: DataLoader[Any]) -> Iterator[Any]:
        """Yield what the workers send. Raises Interrupted where one of them was killed."""
        others = set(multiprocessing.active_children())
        with _no_advice(), hold_signals(), _shared_memory_named():
            iterator = iter(items)  # starts the workers, and sets DataLoader's handler
        self._workers = [w for w in multiprocessing.active_children() if w not in others]
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._on_child)
        while True:
            self._is_waiting = True
            try:
                self._check()
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                self._check()
                raise error
            finally:
                self._is_waiting = False
            yield item

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting:
            self._check()

    def _check(self) -> None:
        codes = {worker.exitcode for worker in self._workers} - {None, 0}
        if codes == {-signal.SIGTERM}:  # sent to the whole process group, as service managers do
            raise Interrupted(
                "the processes that read and tokenize were told to stop (SIGTERM); what is committed "
                "stays: `batchinfer resume`"
            )
        if codes:
            raise LoaderKilledError(
                "a process that reads and tokenizes was killed (out of memory?); what is committed "
                "stays: `batchinfer resume`, with fewer --workers or --workers 0"
            )


def _settle(worker: int) -> None:
    spare_pandas()
    settle_child([signal.SIGINT, signal.SIGHUP])
