"""Helpers of the reader tests: inputs written to a folder, read back as chunks, and the corpora."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer.core import Chunk, Position, Span
from batchinfer.readers import (
    InputSummary,
    ReadOptions,
    group_segments,
    inspect_inputs,
    list_inputs,
    read_chunks,
)

_REPOSITORY = Path(__file__).resolve().parents[2]


def corpora(name: str) -> Path:
    """The folder of a public data set; skips the test where it is not there."""
    root = Path(os.environ.get("BATCHINFER_CORPORA", _REPOSITORY.parent / "shared" / "data"))
    folder = root / name
    if not folder.is_dir():
        pytest.skip(
            f"the corpus {name} is not there; set BATCHINFER_CORPORA to the folder that has it"
        )
    return folder


@dataclass(frozen=True)
class Reading:
    """All chunks of some inputs, read with the schema that inspection found."""

    chunks: list[Chunk]
    summary: InputSummary

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables([chunk.table for chunk in self.chunks])

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    @property
    def errors(self) -> dict[int, str]:
        """By row of the whole reading."""
        errors, done = {}, 0
        for chunk in self.chunks:
            errors.update({done + row: why for row, why in chunk.errors.items()})
            done += chunk.num_rows
        return errors

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.table.column(name).to_pylist()
        return values


def read_all(
    inputs: Path | str | Sequence[str],
    *,
    chunk_rows: int = 100,
    types: Mapping[str, str] | None = None,
    schema: pa.Schema | None = None,
    format: str = "auto",
    **options: Any,
) -> Reading:
    """Everything a user does between naming inputs and having chunks."""
    names = [str(inputs)] if isinstance(inputs, Path | str) else list(inputs)
    files = list_inputs(names, format)
    read = ReadOptions(**options)
    summary = inspect_inputs(files, read, types)
    read = replace(read, schema=schema if schema is not None else summary.schema)
    chunks = []
    for segment in group_segments(files):
        chunks += list(read_chunks(Span(segment, 0, Position(), None), chunk_rows, read))
    return Reading(chunks, summary)
