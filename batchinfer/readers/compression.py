"""Compressed files as streams of bytes that never end silently.

The file objects of the standard library ignore what follows the last whole stream of a .bz2 or
.xz, even where that is a second stream with a damaged head; here that is an error.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from batchinfer.storage import open_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_READ_BYTES = 128 << 10
#: An .xz file says itself how much memory it takes, up to 4 GiB; `xz -9` takes 65 MiB. For .zst the
#: library has such a limit of its own, and the other two need little.
_MAX_XZ_MEMORY = 256 << 20

#: What a decompressor raises on damaged data, besides OSError and EOFError.
DAMAGED = (zlib.error, lzma.LZMAError, zstd.ZstdError)


class ByteStream(Protocol):
    """Bytes from front to back. `read` gives b"" at the end only; `tell` counts bytes on disk."""

    def read(self, size: int, /) -> bytes: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Decompressed:
    """One or several compressed streams in a file, in memory that their ratio does not change."""

    def __init__(self, path: str, new_decoder: Callable[[], _Decoder]) -> None:
        self._raw = open_file(path)
        self._new_decoder = new_decoder
        self._decoder = new_decoder()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                data = self._between_streams()
                if not data:
                    return b""
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                data = self._raw.read(_READ_BYTES)
                if not data:
                    raise EOFError("the compressed data ends in the middle")
            out = self._decoder.decompress(data, size)
            if out:
                return out

    def _between_streams(self) -> bytes:
        """The start of the next stream; .xz files may be padded with zeros between streams."""
        data = self._decoder.unused_data.lstrip(b"\0")
        while not data:
            read = self._raw.read(_READ_BYTES)
            if not read:
                return b""
            data = read.lstrip(b"\0")
        return data

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()


class _Gunzipped:
    """gzip's own file object is strict already; it only has no word for an empty file."""

    def __init__(self, path: str) -> None:
        self._raw = open_file(path)
        self._file = gzip.GzipFile(fileobj=self._raw, mode="rb")
        self._started = False

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        if not data and not self._started and self._raw.tell() == 0:
            raise EOFError("the file is empty, which no .gz file is")
        self._started = True
        return data

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._file.close()
        self._raw.close()


_OPENERS: Mapping[str, Callable[[str], ByteStream]] = {
    "": open_file,
    "gz": _Gunzipped,
    "bz2": lambda path: _Decompressed(path, bz2.BZ2Decompressor),
    "xz": lambda path: _Decompressed(path, partial(lzma.LZMADecompressor, memlimit=_MAX_XZ_MEMORY)),
    "zst": lambda path: _Decompressed(path, zstd.ZstdDecompressor),
}


def open_bytes(path: str, compression: str) -> ByteStream:
    """Open a file for reading what it holds, decompressed."""
    return _OPENERS[compression](path)
