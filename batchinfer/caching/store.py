"""Entries on disk, bytes by key: a SQLite database in WAL mode.

SQLite because it is in Python, because any number of processes may read while one writes, and because one
that is killed at any moment leaves the entries that were committed. (LMDB looks up two to three times as
fast, but maps its file into memory: a process that reads one that was cut off dies of SIGBUS.) Each entry
ends in a checksum of its key and itself, and is looked at as if it were a stranger's.
"""

from __future__ import annotations

import sqlite3
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: Keys that one statement asks for.
_AT_ONCE = 500
#: How long another process may write before this one gives up, in seconds.
_WAIT_SECONDS = 10.0
#: Where there is no room, so much of the limit is emptied at once: not a few entries each time.
_ROOM = 0.1
#: Of an entry, beside its content and its key, which stands in the index too.
_OVERHEAD = 32
_CHECKSUM = struct.Struct("<I")

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries "
    "(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, content BLOB NOT NULL)"
)


class Store:
    """A database of at most about `max_bytes`; the oldest entries make room for new ones.

    For one thread at a time. Each method raises sqlite3.Error or OSError for what goes wrong.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self._max_bytes = path, max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(
            path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The entries of these keys that are there and whole."""
        found: dict[bytes, bytes] = {}
        # Neighbours in the index lie on one page: in their order, 16,384 keys take half the time.
        ordered = sorted(keys)
        for start in range(0, len(ordered), _AT_ONCE):
            part = ordered[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._database.execute(
                f"SELECT key, content FROM entries WHERE key IN ({marks})", part
            )
            for key, content in rows:
                if (whole := _checked(key, content)) is not None:
                    found[key] = whole
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep entries, in place of those that are there; no more of them than half the limit."""
        rows, size = [], 0
        for key, content in entries.items():
            size += len(content) + 2 * len(key) + _OVERHEAD
            if size > self._max_bytes // 2:
                break
            rows.append((key, content + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(key)))))
        rows.sort()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._make_room(size)
            self._database.executemany(
                "INSERT OR REPLACE INTO entries (key, content) VALUES (?, ?)", rows
            )
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._shrink()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()

    def _prepare(self) -> None:
        """Make what a new database lacks; several processes may be at it."""
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                if not self._number(
                    "PRAGMA page_count"
                ):  # later it would write, and wait for writers
                    self._database.execute("PRAGMA auto_vacuum = INCREMENTAL")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute("PRAGMA journal_size_limit = 67108864")
                self._database.execute(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                # Whoever changes the journal's mode is not waited for as a writer is.
                is_busy = error.sqlite_errorcode & 0xFF in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                )
                if not is_busy or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _number(self, statement: str) -> int:
        return int(self._database.execute(statement).fetchone()[0] or 0)

    def _used(self) -> int:
        """Bytes of the database that hold something."""
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _make_room(self, size: int) -> None:
        """Remove the oldest entries where `size` more bytes would not fit."""
        while (used := self._used()) + size > self._max_bytes:
            first = self._number("SELECT min(id) FROM entries")
            last = self._number("SELECT max(id) FROM entries")
            if first == last:
                self._database.execute("DELETE FROM entries")
                return
            excess = used + size - (1 - _ROOM) * self._max_bytes
            share = min(1.0, max(excess / used, 0.01))
            until = first + max(1, int(share * (last - first + 1)))
            self._database.execute("DELETE FROM entries WHERE id < ?", (until,))

    def _shrink(self) -> None:
        """Give pages back to the disk where the file is larger than it may be."""
        size = self._number("PRAGMA page_size")
        excess = self._number("PRAGMA page_count") - self._max_bytes // size
        if excess > 0:
            # `execute` would take a single step of it, and give back a single page.
            self._database.executescript(f"PRAGMA incremental_vacuum({excess})")


def _checked(key: bytes, content: object) -> bytes | None:
    """An entry without its checksum; None where it is not what was written."""
    if not isinstance(content, bytes) or len(content) < _CHECKSUM.size:
        return None
    whole = content[: -_CHECKSUM.size]
    (written,) = _CHECKSUM.unpack_from(content, len(whole))
    return whole if zlib.crc32(whole, zlib.crc32(key)) == written else None
