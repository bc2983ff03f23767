"""Columns as text: the values of JSON and the cells of CSV, a column at a time.

No Python object is made of a value (but for binary ones): numbers are cast to text by Arrow, a list is
its joined items, an object its joined fields, and a line its joined cells. So the bytes of a batch of
lines stand in one buffer in the end.

What JSON has no value for, NaN and infinities, is null; `Texts.num_nulled` counts them. CSV says `nan`,
`inf` and `-inf`. Points in time are ISO 8601, in UTC with a Z where the column has a time zone; decimals
are text in JSON, with all their digits; bytes are base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pat

#: The stubs know fewer signatures than the functions take.
pc: Any = pyarrow.compute
#: Offsets of 64 bits: the lines of a batch may be long.
_TEXT = pa.large_string()

_PLAIN = (
    pat.is_null, pat.is_boolean, pat.is_integer, pat.is_floating, pat.is_decimal, pat.is_string,
    pat.is_large_string, pat.is_binary, pat.is_large_binary, pat.is_fixed_size_binary, pat.is_timestamp,
    pat.is_date, pat.is_time,
)  # fmt: skip
#: Escapes of JSON that have a letter; the backslash is first, as the others bring more of them.
_ESCAPES = (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t"))


def has_no_text(kind: pa.DataType) -> bool:
    """Whether values of this type cannot be written as text."""
    nested: Any = kind
    if pat.is_dictionary(kind) or _is_list(kind):
        return has_no_text(nested.value_type)
    if pat.is_struct(kind):
        return any(has_no_text(nested.field(i).type) for i in range(nested.num_fields))
    return not any(test(kind) for test in _PLAIN)


class Texts:
    """Writes batches of columns as lines."""

    def __init__(self) -> None:
        self.num_nulled = 0

    # -- lines -----------------------------------------------------------------------------------

    def json_lines(self, batch: pa.RecordBatch) -> memoryview:
        """One JSON object a row."""
        return _joined(self._objects(batch.schema.names, batch.columns), "\n")

    def csv_lines(self, batch: pa.RecordBatch, delimiter: str) -> memoryview:
        """One row a line, or several where a cell has line breaks."""
        cells = [self._cells(column, delimiter) for column in batch.columns]
        if len(cells) == 1:  # readers pass over an empty line
            cells = [pc.if_else(pc.equal(cells[0], ""), _text('""'), cells[0])]
        return _joined(pc.binary_join_element_wise(*cells, _text(delimiter)), "\n")

    def csv_header(self, names: Sequence[str], delimiter: str) -> memoryview:
        """The line with the columns' names."""
        row = pa.record_batch([pa.array([name]) for name in names], names=list(names))
        return self.csv_lines(row, delimiter)

    # -- CSV -------------------------------------------------------------------------------------

    def _cells(self, column: Any, delimiter: str) -> Any:
        """Cells, quoted where they must be: null is nothing at all, an empty text two quotes."""
        kind = column.type
        if pat.is_dictionary(kind):
            return self._cells(column.dictionary_decode(), delimiter)
        if pat.is_nested(kind):
            texts = pc.if_else(column.is_valid(), self.json(column), pa.scalar(None, _TEXT))
        else:
            texts = _plain(column)
        special = pc.match_substring_regex(texts, f'["\\r\\n{delimiter}]')
        quoted = pc.or_(special, pc.equal(texts, ""))
        if pc.any(quoted).as_py():
            doubled = pc.replace_substring(texts, '"', '""')
            wrapped = pc.binary_join_element_wise(_text('"'), doubled, _text('"'), _text(""))
            texts = pc.if_else(quoted, wrapped, texts)
        return texts.fill_null("")

    # -- JSON ------------------------------------------------------------------------------------

    def json(self, column: Any) -> Any:
        """The values of a column as JSON; null is a value too."""
        kind = column.type
        if pat.is_dictionary(kind):
            return self.json(column.dictionary_decode())
        if _is_list(kind):
            texts = self._lists(column)
        elif pat.is_struct(kind):
            names = [kind.field(i).name for i in range(kind.num_fields)]
            texts = self._objects(names, column.flatten())
        elif pat.is_floating(kind):
            texts = self._floats(column)
        elif pat.is_boolean(kind) or pat.is_integer(kind) or pat.is_null(kind):
            texts = _plain(column)
        else:
            texts = _plain(column)
            if pat.is_string(kind) or pat.is_large_string(kind):
                texts = _escaped(texts)
            texts = _wrapped('"', texts, '"')
        return pc.if_else(column.is_valid(), texts, _text("null")).fill_null("null")

    def _floats(self, column: Any) -> Any:
        texts = _plain(column)
        wide = column.cast(pa.float32()) if pat.is_float16(column.type) else column
        finite = pc.is_finite(wide)
        if not pc.all(finite, min_count=0).as_py():
            self.num_nulled += int(pc.sum(pc.invert(finite), min_count=0).as_py())
            texts = pc.if_else(finite, texts, pa.scalar(None, _TEXT))
        # Whoever guesses types from the text is to see that 1.0 is no integer.
        whole = pc.and_(finite, pc.equal(pc.floor(wide), wide))
        if pc.any(whole).as_py():
            whole = pc.and_(whole, pc.invert(pc.match_substring(texts, "e")))
            texts = pc.if_else(whole, _wrapped("", texts, ".0"), texts)
        return texts

    def _lists(self, column: Any) -> Any:
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        items = self.json(column.flatten())
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), items)
        return _wrapped("[", pc.binary_join(lists, _text(",")), "]")

    def _objects(self, names: Sequence[str], columns: Sequence[Any]) -> Any:
        if not columns:
            raise AssertionError("neither a table nor a Parquet struct is without a column")
        parts: list[Any] = []
        for index, (name, column) in enumerate(zip(names, columns, strict=True)):
            key = json.dumps(name, ensure_ascii=False)
            parts += [_text(f"{',' if index else '{'}{key}:"), self.json(column)]
        return pc.binary_join_element_wise(*parts, _text("}"), _text(""))


def _plain(column: Any) -> Any:
    """Values as text without quotes; null stays null."""
    kind = column.type
    if pat.is_timestamp(kind):
        if kind.tz is not None:
            return _wrapped("", _plain(column.cast(pa.timestamp(kind.unit))), "Z")
        return pc.replace_substring(column.cast(_TEXT), " ", "T")
    if pat.is_binary(kind) or pat.is_large_binary(kind) or pat.is_fixed_size_binary(kind):
        values = (None if v is None else base64.b64encode(v).decode() for v in column.to_pylist())
        return pa.array(values, _TEXT)
    return column.cast(_TEXT)


def _escaped(texts: Any) -> Any:
    if not pc.any(pc.match_substring_regex(texts, r'["\\\x00-\x1f]')).as_py():
        return texts
    texts = reduce(lambda so_far, pair: pc.replace_substring(so_far, *pair), _ESCAPES, texts)
    if pc.any(pc.match_substring_regex(texts, r"[\x00-\x1f]")).as_py():
        for code in range(0x20):
            texts = pc.replace_substring(texts, chr(code), f"\\u{code:04x}")
    return texts


def _is_list(kind: pa.DataType) -> bool:
    return pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)


def _text(value: str) -> Any:
    return pa.scalar(value, _TEXT)


def _wrapped(before: str, texts: Any, behind: str) -> Any:
    return pc.binary_join_element_wise(_text(before), texts, _text(behind), _text(""))


def _joined(texts: Any, end: str) -> memoryview:
    """The bytes of texts, none of which is null, each with an end."""
    lines = _wrapped("", texts, end)
    if not len(lines):
        return memoryview(b"")
    first, last = np.frombuffer(lines.buffers()[1], np.int64)[
        [lines.offset, lines.offset + len(lines)]
    ]
    return memoryview(lines.buffers()[2])[first:last]
