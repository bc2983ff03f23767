"""What lies elsewhere: objects of a store (s3://, gs://, az://), datasets (hf://), web addresses.

Each address is opened by the fsspec file system that its ecosystem keeps, with the credentials that one
finds by itself. `RemotePath` has what is asked of a path here, and `place_of` gives it, or a Path.

An object is there whole or not at all: its content is complete before the first byte is sent, and the
store is told to refuse a name that is taken (`If-None-Match: *` on a PUT, or on the end of a multipart
upload; on Google's `ifGenerationMatch=0`).
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from batchinfer.errors import StorageError, UsageError, one_line


class _Scheme(NamedTuple):
    """What an address needs: the module that fsspec opens it with, and how it is installed."""

    module: str
    package: str
    takes_output: bool


_S3 = _Scheme("s3fs", "batchinfer[s3]", True)
_GS = _Scheme("gcsfs", "batchinfer[gs]", True)
_AZ = _Scheme("adlfs", "batchinfer[az]", True)
_WEB = _Scheme("aiohttp", "batchinfer[http]", False)
SCHEMES: Mapping[str, _Scheme] = {
    "s3": _S3,
    "gs": _GS,
    "gcs": _GS,
    "az": _AZ,
    "abfs": _AZ,
    "abfss": _AZ,
    "hf": _Scheme("huggingface_hub", "huggingface_hub", False),
    "https": _WEB,
    "http": _WEB,
}
_TAKEN = "s3://, gs://, az://, hf:// and https://"

#: Texts are read from front to back, so much at once.
_AHEAD_BYTES = 8 << 20
#: The columns of a Parquet file are read side by side: that many pieces are kept, 128 MiB in all.
_PIECE_BYTES, _PIECES = 4 << 20, 32
#: An upload that met another one of the same name is sent again so often (S3's 409).
_CONFLICTS = 5


def is_remote(name: str | os.PathLike[str] | RemotePath) -> bool:
    """Whether a name is an address. Raises UsageError for one of a kind that nobody here opens."""
    if isinstance(name, RemotePath):
        return True
    scheme, separator, _ = os.fspath(name).partition("://")
    if not separator or not scheme.isalnum():
        return False
    if scheme not in SCHEMES:
        raise UsageError(f"{name}: cannot be opened; besides files this takes {_TAKEN}")
    return True


def place_of(name: str | os.PathLike[str] | RemotePath) -> Place:
    """The path, or the address, that a name stands for."""
    if isinstance(name, RemotePath):
        return name
    return RemotePath(os.fspath(name).rstrip("/")) if is_remote(name) else Path(name)


def place_of_output(name: str | os.PathLike[str] | RemotePath) -> Place:
    """The same of a run folder. Raises UsageError for an address that nothing can be written to."""
    place = place_of(name)
    if isinstance(place, RemotePath) and not SCHEMES[place.scheme].takes_output:
        raise UsageError(
            f"{place}: nothing can be written there safely; name a folder, or one of s3://, gs:// or az://"
        )
    return place


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What tells whether a file is still the one it was.

    `version`: what a store says (an ETag, a generation, a blob's id, or the time of a change); "" on a
    disk, where `mtime_ns` says it.
    """

    size: int
    mtime_ns: int = 0
    version: str = ""
    is_regular: bool = True


def status_of(path: str) -> FileStatus:
    """Look at a file or an object. Raises FileNotFoundError and other OSErrors."""
    if is_remote(path):
        return RemotePath(path).status()
    found = os.stat(path)
    return FileStatus(found.st_size, found.st_mtime_ns, is_regular=stat.S_ISREG(found.st_mode))


def open_file(path: str, *, buffered: bool = False) -> BinaryIO:
    """Open a file or an object to be read from front to back; on a disk, as it is asked or `buffered`."""
    if is_remote(path):
        return RemotePath(path).open("readahead", _AHEAD_BYTES)
    return Path(path).open("rb", buffering=-1 if buffered else 0)


def open_pieces(path: str) -> BinaryIO:
    """Open an object to be read at several places by turns, as the columns of a Parquet file are."""
    return RemotePath(path).open("blockcache", _PIECE_BYTES, {"maxblocks": _PIECES})


def list_names(folder: Place) -> list[str]:
    """What lies right in a folder, by name; nothing where there is no such folder in a store.

    Raises FileNotFoundError where a folder on a disk is missing.
    """
    return folder.names() if isinstance(folder, RemotePath) else os.listdir(folder)


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An address, with what is asked of a path here. What a store refuses is an OSError that names it."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        return posixpath.basename(self.url.partition("?")[0] if self.is_web else self.url)

    @property
    def root(self) -> str:
        """The address of the bucket or container that it lies in."""
        return f"{self.scheme}://{self.url.partition('://')[2].partition('/')[0]}"

    @property
    def is_web(self) -> bool:
        """Whether it is one file at an address: there is no listing, and `?` begins a query."""
        return SCHEMES[self.scheme] is _WEB

    # -- reading ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such an object."""
        try:
            self.status()
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True

    def status(self) -> FileStatus:
        """Raises FileNotFoundError, IsADirectoryError and other OSErrors."""
        with self._named() as files:
            return self._status(files.info(self.url))

    def _status(self, info: Mapping[str, Any]) -> FileStatus:
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder", self.url)
        if info.get("size") is None:
            raise OSError(errno.ESPIPE, "the server does not say how large it is", self.url)
        said = (info.get(key) for key in _VERSIONS)
        return FileStatus(int(info["size"]), version=str(next(filter(None, said), ""))[:200])

    def open(
        self, cache_type: str = "none", block_size: int = 1 << 20, options: Any = None
    ) -> BinaryIO:
        """Open it for reading. Raises FileNotFoundError and other OSErrors."""
        with self._named() as files:
            file = files.open(
                self.url,
                "rb",
                block_size=block_size,
                cache_type=cache_type,
                cache_options=options or {},
            )
        if not file.seekable():
            file.close()
            raise OSError(
                errno.ESPIPE, "the server sends it as a whole only; download it first", self.url
            )
        return io.BufferedReader(_RemoteFile(self, file), 64 << 10)

    def names(self) -> list[str]:
        """The objects right below, as in a folder; none where there are none."""
        with self._named() as files:
            try:
                found = files.ls(self.url, detail=True)
            except FileNotFoundError:
                return []
        objects = [info["name"].rstrip("/") for info in found if info["type"] != "directory"]
        return [posixpath.basename(name) for name in objects if not self.url.endswith(f"/{name}")]

    def walk(self) -> dict[str, FileStatus]:
        """All objects below, by address."""
        with self._named() as files:
            found = files.find(self.url, detail=True)
        return self._addressed(found)

    def matches(self) -> dict[str, FileStatus]:
        """The objects whose addresses match this one as a pattern, by address."""
        with self._named() as files:
            found = files.glob(self.url, detail=True)
        return self._addressed(found)

    def _addressed(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, FileStatus]:
        named = {f"{self.scheme}://{name.lstrip('/')}": info for name, info in found.items()}
        return {
            url: RemotePath(url)._status(info)
            for url, info in named.items()
            if info["type"] != "directory"
        }

    # -- writing ---------------------------------------------------------------------------------

    def create(self, content: bytes | memoryview) -> bool:
        """Create the object unless there is one; return whether this call created it."""
        for left in reversed(range(_CONFLICTS)):
            try:
                with self._named() as files:
                    files.pipe_file(self.url, bytes(content), mode="create")
                    return True
            except FileExistsError:
                return False
            except OSError as error:
                code = _code_of(error)
                if code == 412:
                    return False
                if code != 409 or not left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def put(self, content: bytes | memoryview) -> None:
        """Put the object in place, over one that may be there."""
        with self._named() as files:
            files.pipe_file(self.url, bytes(content))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            with self._named() as files:
                files.rm_file(self.url)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def move(self, to: RemotePath) -> None:
        """Give the object another name: a copy, then a removal."""
        with self._named() as files:
            files.cp_file(self.url, to.url)
        self.unlink()

    def require_exclusive_create(self) -> None:
        """See that the store refuses to create an object twice. Raises StorageError."""
        try:
            if self.create(b"first") and not self.create(b"second"):
                return
        except FileNotFoundError:
            raise StorageError(
                "no such bucket or container", file=self.root, advice="create it, or name another"
            ) from None
        finally:
            with suppress(OSError):
                self.unlink(missing_ok=True)
        raise StorageError(
            "the store creates an object over one that is there, so shards cannot be committed safely",
            file=self.url,
            advice="use one that honours `If-None-Match: *`, as S3, Google's and Azure's do",
        )

    @contextmanager
    def _named(self) -> Iterator[Any]:
        """The file system; what its library raises is an OSError that names the address."""
        try:
            yield _file_system(self.scheme)
        except (FileNotFoundError, FileExistsError, IsADirectoryError) as error:
            raise type(error)(
                error.errno or errno.ENOENT, _REASONS[type(error)], self.url
            ) from error
        except (UsageError, MemoryError):
            raise
        except Exception as error:  # each library has its own
            raise OSError(errno.EIO, _reason(error), self.url) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError) and "range requests" in str(error):
        return "the server sends it as a whole only (no range requests); download it first"
    return one_line(error)


Place = Path | RemotePath

_REASONS = {
    FileNotFoundError: "no such object",
    FileExistsError: "exists already",
    IsADirectoryError: "is a folder",
}
#: Where stores say which version of an object this is, the most exact first.
_VERSIONS = (
    "ETag", "etag", "generation", "blob_id", "content_md5", "md5Hash",
    "LastModified", "last_modified", "updated", "mtime",
    "Content-MD5", "Digest", "Last-Modified",
)  # fmt: skip


@cache
def _file_system(scheme: str) -> Any:
    """The file system of a kind of address; what it lists is asked anew each time."""
    import fsspec  # type: ignore[import-untyped]

    kind = SCHEMES[scheme]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise UsageError(
            f"{scheme}:// needs {kind.module} ({one_line(error)}); install it: "
            f"pip install '{kind.package}'"
        ) from None


def _code_of(error: BaseException) -> int | None:
    """The HTTP status behind an error; of those that came before it, too."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):  # botocore's
            metadata = response.get("ResponseMetadata", {})
            if isinstance(code := metadata.get("HTTPStatusCode"), int):
                return code
        for name in ("status", "code", "status_code"):
            code = getattr(seen, name, None)
            if isinstance(code, int) and 400 <= code < 600:
                return code
        seen = seen.__cause__ or seen.__context__
    return None


class _RemoteFile(io.RawIOBase):
    """An object that is open, with its library's errors as OSErrors that name it."""

    def __init__(self, path: RemotePath, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._path._named():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
