"""From what the user names (files, globs, folders) to the frozen list of files and segments."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from batchinfer.core import InputFile, Segment
from batchinfer.errors import InputError, UsageError
from batchinfer.readers.base import shown

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

#: Small files share a segment, so that a million of them do not make a million shards.
MAX_GROUP_BYTES = 32 << 20
MAX_SMALL_FILE_BYTES = 8 << 20


class _Kind(NamedTuple):
    format: str | None
    compression: str


def list_inputs(inputs: Sequence[str], format: str = "auto", exclude: str = "") -> list[InputFile]:
    """Return the files that `inputs` name, in the order given; those of a glob or folder, sorted.

    A file that is named twice is read once; what lies below the folder `exclude` (the run's own output)
    is no input. Raises InputError for what is missing or unreadable and
    UsageError for a file whose format is not known.
    """
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"--format {format}: choose one of auto, {', '.join(FORMATS)}")
    found: dict[str, tuple[str, _Kind]] = {}
    excluded = os.path.join(os.path.realpath(exclude), "") if exclude else None
    passed_over = ""
    for name in inputs:
        for path in _expand(name, format):
            real = os.path.realpath(path)
            if excluded and real.startswith(excluded):
                passed_over = path
                continue
            found.setdefault(real, (path, _kind(path, format)))
    if passed_over and not found:
        raise UsageError(
            f"{shown(passed_over)}: lies in the run folder that --output names; an output cannot be "
            "its own input: name another --output"
        )
    if not found:
        raise InputError("no input was named; give a file, a glob or a folder")
    base = os.path.commonpath([os.path.dirname(path) for path, _ in found.values()])
    return [_input_file(path, kind, base) for path, kind in found.values()]


def group_segments(files: Iterable[InputFile]) -> tuple[Segment, ...]:
    """Cut the list into segments: a large file, or a run of small ones up to 32 MiB on disk."""
    groups: list[list[InputFile]] = []
    room = 0
    for file in files:
        small = file.size < MAX_SMALL_FILE_BYTES
        if not (groups and small and file.size <= room):
            groups.append([])
            room = MAX_GROUP_BYTES if small else 0
        groups[-1].append(file)
        room -= file.size if small else 0
    return tuple(Segment(index, tuple(group)) for index, group in enumerate(groups))


def _expand(name: str, format: str) -> Iterator[str]:
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
    else:
        raise InputError(f"{shown(name)}: no such file or folder; check the path")


def _expand_glob(pattern: str, format: str) -> Iterator[str]:
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


def _walk(folder: str, format: str) -> Iterator[str]:
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
        raise InputError(
            f"{shown(folder)}: no usable file in this folder; it takes {', '.join(EXTENSIONS)}"
            f" (text also with {', '.join(COMPRESSIONS)}); for other names use a glob and --format"
        )
    for path in sorted(paths, key=_parts):
        yield _checked(path, format)


def _in_folder(name: str, format: str) -> bool:
    """Whether a file counts when its folder was named: `--format` narrows a mixed folder."""
    known = _kind(name, "auto").format
    if format == "auto" or known is None:
        return known is not None
    return known == format or {known, format} == {"csv", "tsv"}


def _checked(path: str, format: str) -> str:
    path = os.path.abspath(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}; check the path") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{shown(path)}: not a regular file; copy what it gives into a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)}: cannot be read; check its permissions")
    if _kind(path, format).format is None:
        raise UsageError(f"{shown(path)}: unknown extension; say what it is with --format")
    return path


def _kind(path: str, format: str) -> _Kind:
    stem, extension = os.path.splitext(os.path.basename(path).lower())
    compression = COMPRESSIONS.get(extension, "")
    if compression:
        extension = os.path.splitext(stem)[1]
    known = EXTENSIONS.get(extension) if format == "auto" else format
    if known == "parquet" and compression:
        return _Kind(None, compression)
    return _Kind(known, compression)


def _input_file(path: str, kind: _Kind, base: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}; check the path") from None
    assert kind.format is not None
    source = os.path.relpath(path, base).replace(os.sep, "/")
    source = source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return InputFile(
        path, source, kind.format, kind.compression, status.st_size, status.st_mtime_ns
    )


def _parts(path: str) -> list[str]:
    return path.split(os.sep)
