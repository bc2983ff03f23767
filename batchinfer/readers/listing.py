"""From what the user names (files, globs, folders) to the frozen list of files and segments."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from batchinfer.core import InputFile, Segment
from batchinfer.errors import InputError, UsageError
from batchinfer.hints import near_path
from batchinfer.readers.base import shown
from batchinfer.storage import FileStatus, RemotePath, is_remote, status_of

FORMATS = ("jsonl", "csv", "tsv", "parquet")
EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}

_NOTHING_USABLE = (
    f"{{folder}}: no usable file in this folder; it takes {', '.join(EXTENSIONS)} (text also with "
    f"{', '.join(COMPRESSIONS)}); for other names use a glob and --format"
)

#: Small files share a segment, so that a million of them do not make a million shards.
MAX_GROUP_BYTES = 32 << 20
MAX_SMALL_FILE_BYTES = 8 << 20


class _Kind(NamedTuple):
    format: str | None
    compression: str


class _Found(NamedTuple):
    path: str
    kind: _Kind
    status: FileStatus


def list_inputs(inputs: Sequence[str], format: str = "auto", exclude: str = "") -> list[InputFile]:
    """Return the files that `inputs` name, in the order given; those of a glob or folder, sorted.

    A file that is named twice is read once; what lies below the folder `exclude` (the run's own output)
    is no input. Raises InputError for what is missing or unreadable and
    UsageError for a file whose format is not known.
    """
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"--format {format}: choose one of auto, {', '.join(FORMATS)}")
    found: dict[str, _Found] = {}
    excluded = os.path.join(_real(exclude), "") if exclude else None
    passed_over = ""
    for name in inputs:
        of_store = is_remote(name)
        for path, status in _expand_remote(name, format) if of_store else _expand(name, format):
            real = _real(path)
            if excluded and real.startswith(excluded):
                passed_over = path
                continue
            found.setdefault(real, _Found(path, _kind(path, format), status))
    if passed_over and not found:
        raise UsageError(
            f"{shown(passed_over)}: lies in the run folder that --output names; an output cannot be "
            "its own input: name another --output"
        )
    if not found:
        raise InputError("no input was named; give a file, a glob or a folder")
    base = os.path.commonpath([os.path.dirname(_as_path(file.path)) for file in found.values()])
    files = [_input_file(file, base) for file in found.values()]
    _refuse_one_name_for_two(files)
    return files


def group_segments(files: Iterable[InputFile]) -> tuple[Segment, ...]:
    """Cut the list into segments: a large file, or a run of small ones up to 32 MiB on disk."""
    groups: list[list[InputFile]] = []
    room = 0
    for file in files:
        size = file.num_bytes
        small = size < MAX_SMALL_FILE_BYTES
        if not (groups and small and size <= room):
            groups.append([])
            room = MAX_GROUP_BYTES if small else 0
        groups[-1].append(file)
        room -= size if small else 0
    return tuple(Segment(index, tuple(group)) for index, group in enumerate(groups))


def _expand(name: str, format: str) -> Iterator[tuple[str, FileStatus]]:
    """The absolute paths behind one name; a path that exists wins over its reading as a glob."""
    if not name or "\0" in name:
        raise InputError(f"'{shown(name)}': not a file name; give a file, a glob or a folder")
    if os.path.lexists(name):
        if os.path.isdir(name):
            yield from _walk(os.path.abspath(name), format)
        else:
            yield _checked(name, format)
    elif glob.has_magic(name):
        yield from _expand_glob(name, format)
    elif name == "-":
        raise InputError("-: standard input cannot be read twice; put it into a file first")
    elif name[0] in "–—":  # as text editors make them of two hyphens
        raise InputError(f"{shown(name)}: no such file; flags begin with --, two plain hyphens")
    else:
        hint = shown(near_path(name)) or "; check the path"
        raise InputError(f"{shown(name)}: no such file or folder{hint}")


def _expand_glob(pattern: str, format: str) -> Iterator[tuple[str, FileStatus]]:
    matches = sorted(glob.glob(pattern, recursive=True), key=_parts)
    if not matches:
        raise InputError(f"{shown(pattern)}: the glob matches nothing; check it, and quote it")
    files = [match for match in matches if not os.path.isdir(match)]
    if not files:
        for folder in matches:
            yield from _walk(os.path.abspath(folder), format)
        return
    usable = [match for match in files if _kind(match, format).format]
    if not usable:
        raise InputError(
            f"{shown(pattern)}: no file it matches has a known extension; name it with --format"
        )
    for match in usable:
        yield _checked(match, format)


def _walk(folder: str, format: str) -> Iterator[tuple[str, FileStatus]]:
    """The usable files below a folder, sorted; hidden names and names with `_` are bookkeeping."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{shown(str(error.filename))}: {error.strerror}; check its permissions")

    seen = {os.path.realpath(folder)}
    paths = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        keep = []
        for name in folders:
            real = os.path.realpath(os.path.join(root, name))
            if not name.startswith((".", "_")) and real not in seen:
                seen.add(real)
                keep.append(name)
        folders[:] = sorted(keep)
        paths += [
            os.path.join(root, name)
            for name in names
            if not name.startswith((".", "_")) and _in_folder(name, format)
        ]
    if not paths:
        raise InputError(_NOTHING_USABLE.format(folder=shown(folder)))
    for path in sorted(paths, key=_parts):
        yield _checked(path, format)


def _in_folder(name: str, format: str) -> bool:
    """Whether a file counts when its folder was named: `--format` narrows a mixed folder."""
    known = _kind(name, "auto").format
    if format == "auto" or known is None:
        return known is not None
    return known == format or {known, format} == {"csv", "tsv"}


def _checked(path: str, format: str) -> tuple[str, FileStatus]:
    path = os.path.abspath(path)
    try:
        status = status_of(path)
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}; check the path") from None
    if not status.is_regular:
        raise InputError(f"{shown(path)}: not a regular file; copy what it gives into a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)}: cannot be read; check its permissions")
    if _kind(path, format).format is None:
        raise UsageError(f"{shown(path)}: unknown extension; say what it is with --format")
    return path, status


def _expand_remote(name: str, format: str) -> Iterator[tuple[str, FileStatus]]:
    """The objects behind an address; one that is there wins over its reading as a pattern."""
    place = RemotePath(name)
    try:
        yield from _find_remote(place, format)
    except OSError as error:
        raise InputError(
            f"{shown(name)}: {error.strerror}; check the address, and the credentials for it"
        ) from None


def _find_remote(place: RemotePath, format: str) -> Iterator[tuple[str, FileStatus]]:
    try:
        status = place.status()
    except IsADirectoryError:
        yield from _below(place, place.walk(), format)
        return
    except FileNotFoundError:
        if place.is_web or not glob.has_magic(place.url):
            raise
        found = place.matches()
        if not found:
            raise InputError(
                f"{shown(place.url)}: the pattern matches nothing; check it, and quote it"
            ) from None
        usable = [url for url in found if _kind(url, format).format]
        if not usable:
            raise InputError(
                f"{shown(place.url)}: no object it matches has a known extension; name it with --format"
            ) from None
        for url in sorted(usable, key=_parts):
            yield url, found[url]
        return
    if _kind(place.url, format).format is None:
        raise UsageError(f"{shown(place.url)}: unknown extension; say what it is with --format")
    yield place.url, status


def _below(
    folder: RemotePath, found: Mapping[str, FileStatus], format: str
) -> Iterator[tuple[str, FileStatus]]:
    """The usable objects below a folder, sorted; as on a disk, names with `.` or `_` are bookkeeping."""
    prefix = folder.url.rstrip("/") + "/"
    usable = [
        url
        for url in sorted(found, key=_parts)
        if not any(part.startswith((".", "_")) for part in url.removeprefix(prefix).split("/"))
        and _in_folder(url, format)
    ]
    if not usable:
        raise InputError(_NOTHING_USABLE.format(folder=shown(folder.url)))
    for url in usable:
        yield url, found[url]


def _kind(path: str, format: str) -> _Kind:
    stem, extension = os.path.splitext(os.path.basename(_as_path(path)).lower())
    compression = COMPRESSIONS.get(extension, "")
    if compression:
        extension = os.path.splitext(stem)[1]
    known = EXTENSIONS.get(extension) if format == "auto" else format
    if known == "parquet" and compression:
        return _Kind(None, compression)
    return _Kind(known, compression)


def _input_file(file: _Found, base: str) -> InputFile:
    kind, status = file.kind, file.status
    assert kind.format is not None
    return InputFile(
        file.path,
        source_below(base, file.path),
        kind.format,
        kind.compression,
        status.size,
        status.mtime_ns,
        status.version,
    )


def source_below(base: str, path: str) -> str:
    """What `_source` says of a file: its path below a folder."""
    source = os.path.relpath(_as_path(path), base).replace(os.sep, "/")
    return source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def base_of(file: InputFile) -> str:
    """The folder that the source of a file lies below."""
    path = _as_path(file.path)
    for _ in file.source.split("/"):
        path = os.path.dirname(path)
    return path


def _refuse_one_name_for_two(files: Sequence[InputFile]) -> None:
    """Of two addresses that differ in their queries alone, rows could not be told apart."""
    by_source: dict[str, str] = {}
    for file in files:
        if is_remote(file.path) and by_source.setdefault(file.source, file.path) != file.path:
            raise UsageError(
                f"{shown(file.path)}: called {shown(file.source)} as another input is, as they differ in "
                "their queries alone; download them under names of their own, or give each a run"
            )


def _real(path: str) -> str:
    """What tells two names of one file from those of two files."""
    return path if is_remote(path) else os.path.realpath(path)


def _as_path(path: str) -> str:
    """An absolute path; of an address, its scheme and what stands before a query: /s3/bucket/key."""
    if not is_remote(path):
        return path
    scheme, _, rest = path.partition("://")
    if RemotePath(path).is_web:
        host, slash, below = rest.partition("?")[0].partition("/")
        rest = host.rpartition("@")[2] + slash + below  # without a password
    return f"/{scheme}/{rest}"


def _parts(path: str) -> list[str]:
    return path.split(os.sep)
