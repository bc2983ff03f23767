"""Column types: their names, the types of values, and the type that holds two others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from batchinfer.errors import UsageError
from batchinfer.hints import did_you_mean

#: Deeper or wider than this is no record with columns, but data as keys: it is kept as JSON.
MAX_DEPTH = 16
MAX_FIELDS = 256

_NAMED: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "str": pa.string(),
    "text": pa.string(),
    "large_string": pa.large_string(),
    "bool": pa.bool_(),
    "boolean": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "int": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float": pa.float64(),
    "float64": pa.float64(),
    "double": pa.float64(),
    "date": pa.date32(),
    "date32": pa.date32(),
    "timestamp": pa.timestamp("us"),
}
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(?:, *(?:tz=)?([\w/+:-]+))?\]")
_LIST = re.compile(r"list<(?:(?:item|element): *)?(.+)>")


def parse_type(name: str) -> pa.DataType:
    """The Arrow type of a name as `--schema` takes it. Raises UsageError for an unknown one."""
    key = name.strip()
    if key in _NAMED:
        return _NAMED[key]
    if found := _TIMESTAMP.fullmatch(key):
        unit: Any = found[1]
        return pa.timestamp(unit, tz=found[2])
    if found := _LIST.fullmatch(key):
        return pa.list_(parse_type(found[1]))
    raise UsageError(
        f"--schema: unknown type '{name}'; use string, bool, int64, float64, date, timestamp[us], "
        f"list<string> and their kind{did_you_mean(name, _NAMED)}"
    )


def infer(value: Any, depth: int = 0) -> pa.DataType:
    """The type of a JSON value; null for None and string for what is nested too deeply."""
    if value is None:
        return pa.null()
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar
    if depth >= MAX_DEPTH:
        return pa.string()
    if isinstance(value, list):
        item: pa.DataType = pa.null()
        for element in value:
            item = merge(item, infer(element, depth + 1))
        return pa.list_(item)
    return pa.struct([(name, infer(item, depth + 1)) for name, item in value.items()])


_SCALARS: Mapping[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}


def merge(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type that holds the values of both, as far as there is one; otherwise string."""
    if first == second or pat.is_null(second):
        return first
    if pat.is_null(first):
        return second
    for fits, join in _JOINS:
        if fits(first) and fits(second):
            return join(first, second)
    return pa.string()


def _merge_numbers(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if pat.is_floating(first) or pat.is_floating(second):
        return pa.float64()
    if pat.is_signed_integer(first) == pat.is_signed_integer(second):
        return max(first, second, key=lambda kind: kind.bit_width)
    return pa.int64()


def _merge_structs(first: Any, second: Any) -> pa.DataType:
    fields = {field.name: field.type for field in first}
    for field in second:
        known = fields.get(field.name)
        fields[field.name] = field.type if known is None else merge(known, field.type)
    return pa.struct(list(fields.items()))


def _merge_lists(first: Any, second: Any) -> pa.DataType:
    return pa.list_(merge(first.value_type, second.value_type))


def _merge_text(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Bytes take a string, not the other way round; the larger offsets win."""
    binary = _is_binary(first) or _is_binary(second)
    large = any(pat.is_large_string(kind) or pat.is_large_binary(kind) for kind in (first, second))
    if binary:
        return pa.large_binary() if large else pa.binary()
    return pa.large_string() if large else pa.string()


def _merge_times(first: Any, second: Any) -> pa.DataType:
    if first.tz != second.tz:
        return pa.string()
    unit: Any = max(first.unit, second.unit, key=("s", "ms", "us", "ns").index)
    return pa.timestamp(unit, tz=first.tz)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pat.is_binary(kind) or pat.is_large_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds several values a row."""
    return is_plain_list(kind) or bool(pat.is_fixed_size_list(kind))


def is_plain_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists of any length."""
    return bool(pat.is_list(kind) or pat.is_large_list(kind))


_Join = Callable[[Any, Any], pa.DataType]
_JOINS: tuple[tuple[Callable[[pa.DataType], bool], _Join], ...] = (
    (_is_number, _merge_numbers),
    (lambda kind: bool(pat.is_struct(kind)), _merge_structs),
    (is_plain_list, _merge_lists),
    (lambda kind: _is_string(kind) or _is_binary(kind), _merge_text),
    (lambda kind: bool(pat.is_timestamp(kind)), _merge_times),
)


def finished(kind: pa.DataType) -> pa.DataType:
    """A type that Parquet can store: what was never seen to hold a value becomes a string."""
    nested: Any = kind
    if pat.is_null(kind):
        return pa.string()
    if is_plain_list(kind):
        item = finished(nested.value_type)
        return pa.large_list(item) if pat.is_large_list(kind) else pa.list_(item)
    if pat.is_struct(kind):
        if not 0 < nested.num_fields <= MAX_FIELDS:
            return pa.string()
        return pa.struct([(field.name, finished(field.type)) for field in nested])
    return kind


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without an encoding: no dictionary, view or extension."""
    nested: Any = kind
    if isinstance(kind, pa.BaseExtensionType):
        return plain(nested.storage_type)
    if pat.is_dictionary(kind):
        return plain(nested.value_type)
    if pat.is_run_end_encoded(kind):
        return plain(nested.value_type)
    if pat.is_string_view(kind):
        return pa.string()
    if pat.is_binary_view(kind):
        return pa.binary()
    return kind


def nulls(size: int, kind: pa.DataType) -> pa.Array[Any]:
    """A column without values."""
    wanted: Any = kind  # the stubs list the types one by one
    empty: pa.Array[Any] = pa.nulls(size, wanted)
    return empty
