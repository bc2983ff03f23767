"""Templates: the text of a row, made of its columns by Jinja.

    {{ title }}: {{ body }}                              columns by name
    {{ row["some column"] }}                             where the name is no identifier
    {% for tag in tags %}{{ tag }} {% endfor %}          any type: lists, structs, numbers, times

What a template may do stands in sandbox.py, which is imported where there is one.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pat

from batchinfer.core import BOOKKEEPING, is_unicode
from batchinfer.errors import UsageError, one_line
from batchinfer.hints import near_path

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

#: Characters of the texts of one chunk.
MAX_CHUNK = 1 << 30
#: What pyarrow raises on values that Python does not have: bytes that are no text, years beyond 9999.
_UNREADABLE = (pa.ArrowException, ValueError, OverflowError, LookupError)


def settled(config: RunConfig) -> RunConfig:
    """The configuration with the template itself in it, also where it names a file.

    Raises UsageError for a file that cannot be read, a template that is none or names no column, and for
    a text column beside it.
    """
    if config.template is None:
        return config
    from batchinfer.sandbox import template_of, with_line_breaks

    if "text_column" in config.model_fields_set:
        raise UsageError(
            "--template and --text-column: give one of them; a template names its columns itself"
        )
    source, where = config.template, "--template"
    if source.startswith("@"):
        where = f"--template {source}"
        source = _read(source[1:])
    try:
        if not config.template.startswith("@"):
            source = with_line_breaks(source)
        template = template_of(source)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if not (template.names or template.takes_all):
        raise UsageError(
            f"{where}: it names no column, so all texts would be the same; write {{{{ text }}}} where "
            "the column text should stand"
        )
    return config.model_copy(update={"template": source})


def render_texts(
    source: str, table: pa.Table, without: Collection[int]
) -> tuple[pa.ChunkedArray[Any], dict[int, str]]:
    """The text of each row of a table, large_string, and by row why a template gives none.

    Rows in `without` are not looked at. Where a row has no text, it is null.
    """
    from batchinfer.sandbox import template_of

    template = template_of(source)
    rows = [row for row in range(table.num_rows) if row not in without]
    names = template.columns(name for name in table.column_names if name not in BOOKKEEPING)
    errors: dict[int, str] = {}
    columns = [python_values(table.column(name), name, rows, errors) for name in names]
    texts: list[str | None] = [None] * table.num_rows
    left = MAX_CHUNK
    for row, *values in zip(rows, *columns, strict=True):
        if row in errors:
            continue
        try:
            text = template.render(dict(zip(names, values, strict=True)))
        except Exception as error:  # whatever a template may raise is the fault of its row
            errors[row] = f"the template fails: {one_line(error)}"
            continue
        left -= len(text)
        if left < 0:
            errors[row] = (
                f"the template fails: the texts of this chunk have more than {MAX_CHUNK:,} characters"
            )
        elif not is_unicode(text):
            errors[row] = "the template fails: it makes half a surrogate pair"
        else:
            texts[row] = text
    return pa.chunked_array([pa.array(texts, pa.large_string())]), errors


def _read(path: str) -> str:
    """A template's file, without a mark at its beginning."""
    from batchinfer.sandbox import MAX_SOURCE

    try:
        with Path(path).open("rb") as file:
            content = file.read(4 * MAX_SOURCE + 1)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        hint = near_path(path) or "; check the path"
        raise UsageError(f"--template @{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error, 100)
        raise UsageError(f"--template @{path}: cannot be read: {why}") from None


def python_values(
    column: pa.ChunkedArray[Any], name: str, rows: list[int], errors: dict[int, str]
) -> list[Any]:
    """The values of these rows as Python has them; None, with its error, for one that it has not."""
    chosen = column if len(rows) == len(column) else column.take(pa.array(rows, pa.int64()))
    try:
        values: list[Any] = _readable(chosen).to_pylist()
        return values
    except _UNREADABLE:
        values = []
    for place, row in enumerate(rows):
        value = None
        try:
            value = _readable(chosen.slice(place, 1)).to_pylist()[0]
        except _UNREADABLE as error:
            errors.setdefault(row, f"column '{name}' cannot be read: {one_line(error, 100)}")
        values.append(value)
    return values


def _readable(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """The column in the types that Python has."""
    kind = _python_type(column.type)
    return column if kind == column.type else column.cast(kind, safe=False)


def _python_type(kind: Any) -> pa.DataType:
    """The type of the same values as Python has them: bytes are text, and times end at microseconds.

    pyarrow gives nanoseconds as values of pandas, or none, according to what else was imported.
    """
    if pat.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pat.is_time64(kind):
        return pa.time64("us")
    if pat.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pat.is_binary(kind) or pat.is_large_binary(kind) or pat.is_fixed_size_binary(kind):
        return pa.large_string()
    if pat.is_map(kind):
        pairs: pa.DataType = pa.map_(_python_type(kind.key_type), _python_type(kind.item_type))
        return pairs
    if pat.is_list(kind):
        return pa.list_(_python_type(kind.value_type))
    if pat.is_large_list(kind):
        return pa.large_list(_python_type(kind.value_type))
    if pat.is_fixed_size_list(kind):
        fixed: pa.DataType = pa.list_(_python_type(kind.value_type), kind.list_size)
        return fixed
    if pat.is_struct(kind):
        return pa.struct([(field.name, _python_type(field.type)) for field in kind])
    return kind  # type: ignore[no-any-return]
