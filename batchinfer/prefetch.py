"""Items made ahead of whoever takes them, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """The items of a generator, at most `size` of them ready.

    What the generator raises is raised where the next item is taken.
    """

    def __init__(self, items: Generator[Item], size: int) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(size)
        self._is_closed = threading.Event()
        #: Whether the last item was taken.
        self.is_out = False
        self._thread = threading.Thread(target=self._fill, name="ahead", daemon=True)
        self._thread.start()

    def poll(self) -> Item | None:
        """The next item, if it is ready."""
        if self.is_out:
            return None
        try:
            return self._taken(self._ready.get_nowait())
        except queue.Empty:
            return None

    def stream(self) -> Generator[Item]:
        """Yield the items as they are ready."""
        try:
            while not self.is_out:
                item = self._taken(self._ready.get())
                if item is not None:
                    yield item
        finally:
            self.close()

    def close(self) -> None:
        """Make no more."""
        self.is_out = True
        self._is_closed.set()
        with suppress(queue.Empty):  # room for what the thread waits to put
            while True:
                self._ready.get_nowait()

    def _taken(self, ready: tuple[Item] | BaseException | None) -> Item | None:
        if isinstance(ready, tuple):
            return ready[0]
        self.is_out = True
        if ready is not None:
            raise ready
        return None

    def _fill(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                self._ready.put((item,))
                if self._is_closed.is_set():
                    break
        except BaseException as error:
            end = error
        finally:
            self._items.close()
        with suppress(queue.Full):  # nobody looks any more
            self._ready.put(end, block=not self._is_closed.is_set())
