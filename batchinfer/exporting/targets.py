"""Where exported rows go, chosen by the scheme of what `--to` names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from batchinfer.errors import UsageError
from batchinfer.exporting.files import file_target
from batchinfer.readers.base import shown


@dataclass(frozen=True, slots=True)
class Options:
    """How to write. `codec` and `row_group_size` (rows) are of Parquet."""

    overwrite: bool = False
    codec: str | None = None
    row_group_size: int | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """What a target is told of the rows before the first one.

    `repeating`: the columns whose values may repeat. `metadata`: where they come from.
    """

    schema: pa.Schema
    repeating: tuple[str, ...]
    metadata: Mapping[str, str]


class Sheet(Protocol):
    """Takes tables of the content's schema."""

    @property
    def num_nulled(self) -> int:
        """Values so far that the format has no word for, and that became null."""

    def write(self, table: pa.Table) -> None: ...


class Target(Protocol):
    """Something that exported rows are written to: whole when the block of `opened` ends, or not at all."""

    def check(self, content: Content) -> None:
        """Find all that is to be refused before anything is written. Raises UsageError."""

    def opened(self, content: Content) -> AbstractContextManager[Sheet]: ...

    @property
    def num_bytes(self) -> int:
        """What was written takes so much."""


#: By scheme; a file has none.
_TARGETS: Mapping[str, Callable[[str, Options], Target]] = {"": file_target}


def target_of(name: str | os.PathLike[str], options: Options) -> Target:
    """The target that a name stands for. Raises UsageError where nothing here writes such a one."""
    scheme, separator, _ = os.fspath(name).partition("://")
    kind = _TARGETS.get(scheme if separator else "")
    if kind is None:
        raise UsageError(
            f"--to {shown(os.fspath(name))}: only files on a disk are written; export to one, and copy it"
        )
    return kind(os.fspath(name), options)
