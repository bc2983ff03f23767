"""Columns of a table as the arrays that a module takes; no Python object a row, but of rows that are wrong.

A column of numbers is an array of a number a row, one of lists an array of so many; a column of texts
stays one of texts. What a type cannot hold (a fraction as an integer, a double beyond float32) is the
row's error; what it rounds is rounded, as in every other way to make a tensor of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pat

from batchinfer.core import Chunk, ModelSpec, Requests, TensorSpec
from batchinfer.readers.base import shown
from batchinfer.readers.columns import is_list
from batchinfer.tokenization import as_strings, rows_without

#: The field of a batch that has all columns side by side.
STACKED = "features"

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute


def is_feature(kind: pa.DataType) -> bool:
    """Whether a column of this type is one of numbers, of lists of numbers, or of texts."""
    nested: Any = kind
    return _is_number(nested.value_type if is_list(kind) else kind) or is_text(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type is one of texts."""
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pat.is_integer(kind)
        or pat.is_floating(kind)
        or pat.is_boolean(kind)
        or pat.is_decimal(kind)
    )


def as_tensors(
    names: Iterable[str], schema: pa.Schema, widths: Mapping[str, int]
) -> list[TensorSpec]:
    """The columns as tensors: integers as int64, booleans as bool, other numbers as float32.

    `widths`: the numbers in a row of those that hold lists.
    """
    found = []
    for name in names:
        kind: Any = schema.field(name).type
        shape = (widths[name],) if is_list(kind) else ()
        item = kind.value_type if is_list(kind) else kind
        dtype = "float32"
        if is_text(item):
            dtype = "string"
        elif pat.is_boolean(item):
            dtype = "bool"
        elif pat.is_integer(item):
            dtype = "int64"
        found.append(TensorSpec(name, dtype, shape))
    return found


def width_of(column: pa.ChunkedArray[Any]) -> int:
    """How many numbers most lists of a column have; 0 where it has none."""
    lengths = pc.value_counts(pc.list_value_length(column.drop_null())).to_pylist()
    return max(lengths, key=lambda found: found["counts"])["values"] if lengths else 0


def encode_features(chunk: Chunk, spec: ModelSpec) -> Requests:
    """The rows without an error as requests, which cost one each.

    `fields`: an array by the name of each of `spec.inputs`; or one, of all of them side by side. Rows whose
    values a type cannot hold are its errors; those with nulls are taken to be errors of the chunk.
    """
    errors: dict[int, str] = {}
    if spec.is_stacked:
        fields = {STACKED: _stacked(chunk.table, spec.inputs, errors)}
    else:
        fields = {one.name: _alone(chunk.table, one, errors) for one in spec.inputs}
    row = rows_without({**chunk.errors, **errors}, chunk.num_rows)
    if len(row) < chunk.num_rows:
        fields = {name: values[row] for name, values in fields.items()}
    return Requests(
        row=row,
        cost=np.ones(len(row), np.int32),
        truncated=np.zeros(len(row), np.bool_),
        offsets=np.arange(len(row) + 1, dtype=np.int64),
        fields=fields,
        errors={row: why for row, why in errors.items() if row not in chunk.errors},
    )


def _stacked(
    table: pa.Table, inputs: Sequence[TensorSpec], errors: dict[int, str]
) -> npt.NDArray[Any]:
    """All columns side by side: [n, numbers a row]."""
    width = sum(one.shape[0] if one.shape else 1 for one in inputs)
    values = np.empty((table.num_rows, width), np.dtype(inputs[0].dtype))
    start = 0
    for one in inputs:
        end = start + (one.shape[0] if one.shape else 1)
        _fill(table, one, values[:, start:end] if one.shape else values[:, start], errors)
        start = end
    return values


def _alone(table: pa.Table, one: TensorSpec, errors: dict[int, str]) -> npt.NDArray[Any]:
    """A column by itself: [n, *shape]; texts as objects [n]."""
    if one.dtype == "string":
        texts: Any = table.column(one.name).cast(pa.large_string()).combine_chunks()
        wrong: dict[int, str] = {}
        found = np.array(as_strings(pc.fill_null(texts, ""), wrong), dtype=object)
        for row in wrong:
            errors.setdefault(row, f"column '{shown(one.name)}' is not valid UTF-8")
        return found
    values = np.empty((table.num_rows, *one.shape), np.dtype(one.dtype))
    _fill(table, one, values, errors)
    return values


def _fill(table: pa.Table, one: TensorSpec, out: npt.NDArray[Any], errors: dict[int, str]) -> None:
    """Put a column's numbers into `out` [n, *shape]; those of rows with errors mean nothing."""
    found: Any = table.column(one.name)
    column = found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()
    name = shown(one.name)
    if not is_list(column.type):
        rows, values = None, _numbers(column).reshape(out.shape)
    else:
        rows, values = _lists(column, one, errors)
    if rows is None:
        bad = _put(values, out)
    else:
        part = np.empty(values.shape, out.dtype)
        bad = _put(values, part)
        out[rows] = part
    if bad is None:
        return
    for index in np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)).tolist():
        value = values[index][bad[index]].flat[0].item()
        row = int(index if rows is None else rows[index])
        errors.setdefault(row, f"column '{name}' holds {value}, and the model takes {one.dtype}")


def _lists(
    column: Any, one: TensorSpec, errors: dict[int, str]
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[Any]]:
    """Which rows have lists of the right length (None: all), and their numbers: [rows, size]."""
    (size,), name = one.shape, shown(one.name)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    fits = valid & (lengths == size)
    for row in np.flatnonzero(valid & ~fits).tolist():
        errors.setdefault(
            row, f"column '{name}' holds a list of {lengths[row]} numbers, not of {size}"
        )
    rows = None if fits.all() else np.flatnonzero(fits)
    flat = (column if rows is None else column.take(rows)).flatten()
    if flat.null_count:
        empty = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, size).any(axis=1)
        for index in np.flatnonzero(empty).tolist():
            row = int(index if rows is None else rows[index])
            errors.setdefault(row, f"a number in the list of column '{name}' is null")
    return rows, _numbers(flat).reshape(-1, size)


def _numbers(array: Any) -> npt.NDArray[Any]:
    """The numbers of an array; zeros for nulls."""
    if pat.is_decimal(array.type):
        array = array.cast(pa.float64())
    elif pat.is_float16(array.type):
        array = array.cast(pa.float32())
    if array.null_count:
        array = pc.fill_null(array, False if pat.is_boolean(array.type) else 0)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _put(values: npt.NDArray[Any], out: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Put numbers into an array of another type; which of them it cannot hold, None where it holds all."""
    if out.dtype.kind == "f":
        with np.errstate(over="ignore"):
            out[...] = values
        if values.dtype.kind != "f" or values.dtype.itemsize <= out.dtype.itemsize:
            return None
        bad = np.isinf(out) & np.isfinite(values)
    elif np.can_cast(values.dtype, out.dtype):
        out[...] = values
        return None
    else:
        low, high = (0, 1) if out.dtype.kind == "b" else _range(out.dtype)
        if values.dtype.kind == "f":  # the largest integer may be no float, the one above it is
            bad = ~((values == np.floor(values)) & (values >= low) & (values < high + 1))
        else:
            bad = (values < low) | (values > high)
        out[...] = np.where(bad, 0, values)
    return bad if bad.any() else None


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and the largest integer of a type."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
