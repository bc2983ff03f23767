"""Files that are larger than memory, whole or not at all: written as a stream, then as in durable.py."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchinfer.writers.durable import link, sync_directory
from batchinfer.writers.fence import is_held


@contextmanager
def created(final: Path, *, replacing: bool = False) -> Iterator[BinaryIO]:
    """A file to write from front to back; when the block ends it stands under its name, durably.

    Where the block raises there is no such file, and what `replacing` was to replace is as it was. What
    killed processes left of the same file goes first. Raises FileExistsError where the name is taken.
    """
    stem = f".batchinfer-{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:12]}-"
    for leftover in final.parent.glob(f"{stem}*.inprogress"):
        if not is_held(leftover):
            leftover.unlink(missing_ok=True)
    temporary = final.with_name(f"{stem}{secrets.token_hex(4)}.inprogress")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with suppress(
            OSError
        ):  # where there are no locks, another attempt may remove it: this one fails
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(descriptor, "wb", closefd=False) as file:
            yield file
        os.fsync(descriptor)
        if replacing:
            os.replace(temporary, final)
        else:
            link(temporary, final)
        sync_directory(final.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(descriptor)
