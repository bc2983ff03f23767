"""A look at all inputs before planning: one schema, the size of a row, the number of rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.types as pat

from batchinfer.core import BOOKKEEPING, InputFile
from batchinfer.errors import InputError, StorageError, UsageError
from batchinfer.hints import closest, unknown_column
from batchinfer.readers.base import ReadOptions, shown
from batchinfer.readers.columns import finished, merge, parse_type
from batchinfer.readers.sampling import FileSample, sample_csv, sample_jsonl, sample_parquet

log = logging.getLogger("batchinfer")

#: A footer or a header is quick to read; a sample of rows less so.
_MAX_HEADERS = 1000
_MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What the inputs look like.

    `schema`: the type of every column, over all inputs. `row_bytes`: mean bytes of a row of the
    decompressed input, at the place with the largest rows. `num_bytes`: of the files on disk.
    """

    schema: pa.Schema
    row_bytes: float
    num_rows_estimate: int
    num_bytes: int


_Sampler = Callable[[InputFile, ReadOptions, bool], FileSample]


@dataclass(slots=True)
class _Survey:
    """What the samples of one format add up to."""

    columns: dict[str, pa.DataType] = field(default_factory=dict)
    row_bytes: float = 0.0
    num_rows: float = 0.0
    bytes_seen: int = 0

    def add(self, file: InputFile, sample: FileSample) -> None:
        for name, kind in sample.columns.items():
            known = self.columns.get(name)
            self.columns[name] = kind if known is None else merge(known, kind)
        self.row_bytes = max(self.row_bytes, sample.row_bytes)
        if sample.num_rows is not None:
            self.num_rows += sample.num_rows
            self.bytes_seen += file.size


def inspect_inputs(
    files: Sequence[InputFile],
    options: ReadOptions,
    schema_overrides: Mapping[str, str] | None = None,
) -> InputSummary:
    """Look at a bounded sample of every kind of input.

    Raises InputError for a file that cannot be read, and UsageError for one that is not what it is
    said to be, or for a `schema_overrides` type that does not exist.
    """
    overrides = {name: parse_type(kind) for name, kind in (schema_overrides or {}).items()}
    columns: dict[str, pa.DataType] = {}
    row_bytes = num_rows = 0.0
    open_ended = False
    for sampler, of_format in _by_sampler(files):
        survey = _survey(sampler, of_format, options)
        for name, kind in survey.columns.items():
            columns[name] = merge(columns[name], kind) if name in columns else kind
        row_bytes = max(row_bytes, survey.row_bytes)
        size = sum(file.size for file in of_format)
        num_rows += survey.num_rows * (size / survey.bytes_seen if survey.bytes_seen else 1)
        open_ended |= sampler is sample_jsonl or len(of_format) > _MAX_HEADERS
    schema = _schema(columns, overrides, options, open_ended)
    return InputSummary(schema, row_bytes, round(num_rows), sum(file.size for file in files))


def _by_sampler(files: Sequence[InputFile]) -> Iterator[tuple[_Sampler, list[InputFile]]]:
    formats: tuple[tuple[_Sampler, tuple[str, ...]], ...] = (
        (sample_parquet, ("parquet",)),
        (sample_jsonl, ("jsonl",)),
        (sample_csv, ("csv", "tsv")),
    )
    for sampler, names in formats:
        if chosen := [file for file in files if file.format in names]:
            yield sampler, chosen


def _survey(sampler: _Sampler, files: Sequence[InputFile], options: ReadOptions) -> _Survey:
    survey = _Survey()
    sampled = set(_spaced(files, _MAX_SAMPLES))
    # Columns are in every header; only JSON Lines have to be parsed to be known.
    looked_at = sampled if sampler is sample_jsonl else set(_spaced(files, _MAX_HEADERS)) | sampled
    for file in (file for file in files if file in looked_at):
        try:
            survey.add(file, sampler(file, options, file in sampled))
        except StorageError as error:
            raise InputError(f"{str(error).rstrip('.')}; check the file") from error
        except OSError as error:
            raise InputError(f"{shown(file.path)}: {error.strerror}; check the file") from error
    return survey


def _spaced(files: Sequence[InputFile], num: int) -> list[InputFile]:
    """`num` of the files, evenly spaced, with the first and the last."""
    if len(files) <= num:
        return list(files)
    return [files[round(i * (len(files) - 1) / (num - 1))] for i in range(num)]


def _schema(
    columns: Mapping[str, pa.DataType],
    overrides: Mapping[str, pa.DataType],
    options: ReadOptions,
    open_ended: bool,
) -> pa.Schema:
    kinds = {name: finished(kind) for name, kind in columns.items() if name not in BOOKKEEPING}
    for name in options.text_columns:
        if name in kinds and (pat.is_binary(kinds[name]) or pat.is_large_binary(kinds[name])):
            kinds[name] = pa.string()
    for name, kind in overrides.items():
        if name not in kinds and not open_ended:
            raise UsageError(unknown_column(shown(name), map(shown, kinds), "--schema"))
        if name not in kinds and (meant := closest(name, kinds)):
            log.warning(
                f"--schema: no sampled row has a column '{shown(name)}'; did you mean '{shown(meant)}'?"
            )
        kinds[name] = kind
    return pa.schema(list(kinds.items()))
