"""Files that are there whole or not at all, also after a power cut.

    write a temporary file, check its length, fsync it
    link it under its final name      create if absent: of several writers one wins
    fsync the directory               the name itself is durable
    unlink the temporary file

A rename would replace what another writer committed, and an exclusive create of the final name would
show readers a half-written file. After a failed fsync the kernel may have dropped the pages: nothing
is retried on that descriptor, the error goes up and the work is done again at resume.

In a store (see storage.py) an object appears whole, and is created if absent, in one request; then
there is no temporary file and nothing to sync.

What is read back is opened by `open_regular`, as the folder may be a stranger's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from batchinfer.errors import JobMismatchError, StorageError
from batchinfer.storage import Place, RemotePath


@contextmanager
def open_regular(path: Place) -> Iterator[BinaryIO]:
    """Open a file to read, without waiting for anybody.

    Raises JobMismatchError for what is no regular file: a FIFO may have no writer, a device no end.
    """
    if isinstance(path, RemotePath):
        with path.open() as stream:
            yield stream
        return
    strange = JobMismatchError(
        "no regular file, so not written by batchinfer",
        file=str(path),
        advice="move it out of the run folder",
    )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise strange from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise strange
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def make_directory(path: Place) -> None:
    """Create a directory and those above it; each name is durable."""
    if isinstance(path, RemotePath) or path.is_dir():
        return
    make_directory(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(path.parent)


def sync_directory(path: Place) -> None:
    """Make the names in a directory durable."""
    if isinstance(path, RemotePath):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file and make its content, not yet its name, durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if os.fstat(descriptor).st_size != len(content):
            raise StorageError(
                f"{path}: the file system kept fewer bytes than were written; check the disk"
            )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Place, content: bytes | memoryview) -> bool:
    """Create `final` with this content unless it exists; return whether this call created it.

    Raises StorageError where the file system can neither link nor rename without replacing.
    """
    if isinstance(final, RemotePath):
        return final.create(content)
    write_durably(temporary, content)
    try:
        link(temporary, final)
        created = True
    except FileExistsError:
        created = False
    sync_directory(final.parent)
    temporary.unlink(missing_ok=True)
    return created


def replace(temporary: Path, final: Place, content: bytes | memoryview) -> None:
    """Put `final` in place, over whatever was there; only for the holder of the exclusive lock."""
    if isinstance(final, RemotePath):
        final.put(content)
        return
    write_durably(temporary, content)
    os.replace(temporary, final)
    sync_directory(final.parent)


def move(path: Place, to: Place) -> None:
    """Give a file another name; both directories are for the caller to sync."""
    if isinstance(path, RemotePath):
        assert isinstance(to, RemotePath), "of one store"
        path.move(to)
    else:
        os.replace(path, to)  # type: ignore[arg-type]


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_NO_EXCLUSIVE_RENAME = {errno.EINVAL, errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


def link(temporary: Path, final: Path) -> None:
    """Give a file a name that no other has. Raises FileExistsError, and StorageError as `publish` does."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_without_replacing(temporary, final)


def _rename_without_replacing(temporary: Path, final: Path) -> None:
    """Linux renameat2 with RENAME_NOREPLACE, for file systems without hard links (FAT, some FUSE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_working_directory, no_replace = -100, 1
    if not hasattr(libc, "renameat2"):
        raise StorageError(_UNSUITABLE.format(folder=final.parent))
    if libc.renameat2(
        at_working_directory,
        os.fsencode(temporary),
        at_working_directory,
        os.fsencode(final),
        no_replace,
    ):
        code = ctypes.get_errno()
        if code in _NO_EXCLUSIVE_RENAME:
            raise StorageError(_UNSUITABLE.format(folder=final.parent))
        raise OSError(code, os.strerror(code), str(final))  # among them FileExistsError


_UNSUITABLE = (
    "{folder}: this file system can neither link nor rename without replacing, so shards cannot be "
    "committed safely; use ext4, XFS, Btrfs, ZFS, APFS, NFS or Lustre"
)
