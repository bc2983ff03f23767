"""JSON and CSV values into typed Arrow columns, without a silent change: what does not fit is told.

`pa.array` takes True for 1.0, 1.0 for 1 and drops the keys a struct does not have. So the Python
types of a column are looked at first (cheap, as a set), and each value only where that fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pat

from batchinfer.readers.columns import is_plain_list, nulls

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute

Fits = Callable[[Any], bool]

#: Beyond this a double does not hold every integer.
_EXACT = 2**53
#: orjson makes a float of an integer that does not fit into 64 bits.
_SUSPECT = float(2**63)
_LONG_NUMBER = re.compile(rb"\d{19}")
_INTEGER = r"^-?[0-9]+$"


def exact_record(record: dict[str, Any], line: bytes) -> dict[str, Any]:
    """The record with integers beyond 64 bits as they were written (as JSON fragments).

    Where the standard library cannot parse as deep as orjson can, the values are objects that cannot
    be written as JSON, so that the line itself is kept.
    """
    if not _LONG_NUMBER.search(line):
        return record
    try:
        exact: dict[str, Any] = json.loads(line, parse_int=_integer)
    except RecursionError:
        return dict.fromkeys(record, object())
    return exact


def _integer(digits: str) -> Any:
    if len(digits) < 21:
        value = int(digits)
        if -(2**63) <= value < 2**64:
            return value
    return orjson.Fragment(digits)


def json_array(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array[Any], list[int]]:
    """JSON values as a column; also the indices of those that do not fit, which are null there."""
    found = set(map(type, values))
    found.discard(type(None))
    if found <= _python_types(kind):
        try:
            array: pa.Array[Any] = pa.array(values, kind)
            if not pat.is_floating(kind) or _is_exact(array):
                return array, []
        except (pa.ArrowInvalid, OverflowError, ValueError):
            pass
    if pat.is_temporal(kind):
        return _temporal_array(values, kind)
    fits = checker(kind)
    bad = [i for i, value in enumerate(values) if value is not None and not fits(value)]
    kept = list(values)
    for index in bad:
        kept[index] = None
    try:
        return pa.array(kept, kind), bad
    except pa.ArrowInvalid:  # Arrow takes no integer above 2**53 for a float, however exact it is
        return pa.array([_with_floats(value, kind) for value in kept], kind), bad


def _with_floats(value: Any, kind: pa.DataType) -> Any:
    """A value that fits a type, with floats where the type has them."""
    nested: Any = kind
    if value is None:
        return None
    if pat.is_floating(kind):
        return float(value)
    if is_plain_list(kind):
        return [_with_floats(item, nested.value_type) for item in value]
    if pat.is_struct(kind):
        kinds = {field.name: field.type for field in nested}
        return {name: _with_floats(item, kinds[name]) for name, item in value.items()}
    return value


def _python_types(kind: pa.DataType) -> set[type]:
    """The types that pa.array turns into a column of this type without a check of each value."""
    if pat.is_string(kind) or pat.is_large_string(kind):
        return {str}
    if pat.is_boolean(kind):
        return {bool}
    if pat.is_integer(kind):
        return {int}
    if pat.is_float64(kind):
        return {int, float}
    return set()


def _is_exact(array: pa.Array[Any]) -> bool:
    if array.null_count == len(array):
        return True
    bounds = pc.min_max(array)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    return bool(low >= -_EXACT and high <= _EXACT)


def _temporal_array(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array[Any], list[int]]:
    texts = [value if isinstance(value, str) else None for value in values]
    array, bad = text_array(pa.array(texts, pa.string()), kind)
    other = [i for i, v in enumerate(values) if v == "" or not isinstance(v, str | None)]
    return array, sorted(bad + other)


@lru_cache(maxsize=512)
def checker(kind: pa.DataType, trust_floats: bool = False) -> Fits:
    """A test whether a JSON value can be of a type with nothing dropped or changed.

    A float that may be an integer beyond 64 bits does not pass, unless `trust_floats`.
    """
    nested: Any = kind
    if pat.is_string(kind) or pat.is_large_string(kind):
        return lambda value: type(value) is str
    if pat.is_boolean(kind):
        return lambda value: type(value) is bool
    if pat.is_integer(kind):
        info = np.iinfo(nested.to_pandas_dtype())
        low, high = int(info.min), int(info.max)
        return lambda value: type(value) is int and low <= value <= high
    if pat.is_float64(kind) or pat.is_float32(kind):
        return _float_checker(single=bool(pat.is_float32(kind)), trusted=trust_floats)
    if is_plain_list(kind):
        item = checker(nested.value_type, trust_floats)
        return lambda value: type(value) is list and all(v is None or item(v) for v in value)
    if pat.is_struct(kind):
        fields = {field.name: checker(field.type, trust_floats) for field in nested}
        return lambda value: type(value) is dict and _struct_fits(value, fields)
    return lambda value: False


def _float_checker(*, single: bool, trusted: bool) -> Fits:
    largest = float(np.finfo(np.float32 if single else np.float64).max)
    exact = 2**24 if single else _EXACT

    def fits(value: Any) -> bool:
        if type(value) is float:
            return abs(value) <= largest and (trusted or abs(value) < _SUSPECT)
        return type(value) is int and (
            abs(value) <= exact or (not single and float(value) == value)
        )

    return fits


def _struct_fits(value: dict[str, Any], fields: Mapping[str, Fits]) -> bool:
    for name, item in value.items():
        fits = fields.get(name)
        if fits is None or not (item is None or fits(item)):
            return False
    return True


def text_array(texts: pa.Array[Any], kind: pa.DataType) -> tuple[pa.Array[Any], list[int]]:
    """CSV fields, or JSON strings, parsed strictly; the indices of those that do not parse.

    An empty field is null in a column that is not text.
    """
    if pat.is_string(kind) or pat.is_large_string(kind):
        return texts.cast(kind), []
    texts = texts.cast(pa.string())
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    wanted = texts
    if pat.is_integer(kind):  # Arrow takes 0x1F too
        wanted = pc.if_else(pc.match_substring_regex(texts, _INTEGER), texts, None)
    array, bad = cast_where_possible(wanted, kind)
    if pat.is_floating(kind):  # 1e999 is not infinity
        spelled = pc.match_substring_regex(texts, "(?i)inf")
        array = pc.if_else(pc.and_(pc.is_inf(array), pc.invert(spelled)), None, array)
    lost = pc.and_(pc.is_null(array), pc.is_valid(texts))
    bad = np.flatnonzero(lost.to_numpy(zero_copy_only=False)).tolist()
    return array, bad


def cast_where_possible(array: pa.Array[Any], kind: pa.DataType) -> tuple[pa.Array[Any], list[int]]:
    """A safe cast; where it fails, the halves are cast, down to the values that cannot be."""
    try:
        cast = array.cast(kind, safe=True)
        cast.validate(full=True)
        return cast, []
    except pa.ArrowNotImplementedError:
        return nulls(len(array), kind), valid_rows(array)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        if len(array) <= 1:
            return nulls(len(array), kind), valid_rows(array)
    half = len(array) // 2
    # take() and not slice(): a slice of a nested array is validated as a whole.
    left, bad = cast_where_possible(array.take(np.arange(half)), kind)
    right, more = cast_where_possible(array.take(np.arange(half, len(array))), kind)
    return pa.concat_arrays([left, right]), bad + [half + index for index in more]


def valid_rows(array: pa.Array[Any]) -> list[int]:
    """The indices that are not null."""
    rows: list[int] = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False)).tolist()
    return rows
