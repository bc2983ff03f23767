"""JSON Lines: no bad line takes another along, and nothing changes silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from .conftest import Reading, read_all


def read(tmp_path: Path, *lines: str | bytes, **options: Any) -> Reading:
    path = tmp_path / "rows.jsonl"
    data = [line.encode() if isinstance(line, str) else line for line in lines]
    path.write_bytes(b"\n".join(data) + b"\n")
    return read_all(path, **options)


def schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


def rescued(reading: Reading) -> list[Any]:
    return [text and json.loads(text) for text in reading.column("_rescued_data")]


GOOD = '{"text": "good"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "not valid JSON: "),
        ("{'text': 1}", "not valid JSON: "),
        ('{"text": NaN}', "not valid JSON: "),
        ('{"text": -Infinity}', "not valid JSON: "),
        ('{"text": "\\ud800"}', "not valid JSON: "),
        ("[1, 2]", "not a JSON object but an array"),
        ("17", "not a JSON object but a number"),
        ("true", "not a JSON object but a boolean"),
        ("null", "not a JSON object but null"),
        ('"text"', "not a JSON object but a string"),
        (b'{"text": "\xff"}', "not valid UTF-8 (byte 11)"),
        (b"\x0c", "not valid JSON: "),
        ("[" * 100_000, "not valid JSON: "),
        ('{"text":' * 100_000, "not valid JSON: "),
        ('{"text": "a"}{"text": "b"}', "not valid JSON: "),
    ],
)
def test_a_line_that_is_no_object_is_an_error_row(
    tmp_path: Path, line: str | bytes, says: str
) -> None:
    reading = read(tmp_path, GOOD, line, GOOD)
    assert reading.column("text") == ["good", None, "good"]
    assert list(reading.errors) == [1]
    assert reading.errors[1].startswith(f"line 2: {says}")
    assert len(reading.errors[1]) < 120


def test_a_reason_names_the_column(tmp_path: Path) -> None:
    reading = read(tmp_path, GOOD, '{"text": "a"')
    assert reading.errors == {1: "line 2: not valid JSON: unexpected end of data (column 13)"}


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    reading = read(tmp_path, "", GOOD, " \t", "\r", "x", GOOD + "\r", "", "")
    assert reading.column("text") == ["good", None, "good"]
    assert reading.column("_row") == [0, 1, 2]
    assert reading.errors[1].startswith("line 5: ")


def test_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    reading = read(tmp_path, json.dumps({"text": text}, ensure_ascii=False))
    assert reading.column("text") == [text]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert not read(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), GOOD).errors


def test_the_last_of_two_equal_keys_wins(tmp_path: Path) -> None:
    assert read(tmp_path, '{"text": "a", "text": "b"}').column("text") == ["b"]


def test_integers_beyond_64_bits_are_rescued_digit_for_digit(tmp_path: Path) -> None:
    big = "1" + "0" * 300
    lines = ['{"x": 0.5}', '{"x": 18446744073709551617}', f'{{"x": {big}}}', '{"x": 1e300}']
    reading = read(tmp_path, *lines)
    assert reading.column("x") == [0.5, None, None, 1e300]
    texts = reading.column("_rescued_data")
    assert texts == [None, '{"x":18446744073709551617}', f'{{"x":{big}}}', None]


def test_integers_beyond_64_bits_are_found_in_nested_values(tmp_path: Path) -> None:
    reading = read(tmp_path, '{"x": [0.5]}', '{"x": [0.5, -9223372036854775809, 1.5]}')
    assert reading.column("x") == [[0.5], None]
    assert reading.column("_rescued_data")[1] == '{"x":[0.5,-9223372036854775809,1.5]}'


def test_integers_that_a_float_holds_exactly_are_floats_at_any_depth(tmp_path: Path) -> None:
    """Arrow takes none above 2**53 for a float, though every other one up to 2**54 is exact."""
    exact, odd = 2**53 + 2, 2**53 + 3
    reading = read(tmp_path, f'{{"x": [{exact}, 0.5]}}', '{"x": [1]}', f'{{"x": [{odd}]}}')
    assert reading.column("x") == [[float(exact), 0.5], [1.0], None]
    assert reading.column("_rescued_data")[2] == f'{{"x":[{odd}]}}'
    reading = read(tmp_path, '{"x": {"y": [0.5]}}', f'{{"x": {{"y": [{exact}, null]}}}}')
    assert reading.column("x")[1] == {"y": [float(exact), None]}


@pytest.mark.parametrize(
    ("kind", "fits", "misfits"),
    [
        (pa.int64(), [1, None, -(2**63)], [1.0, True, "1", [1], 2**63, {"a": 1}]),
        (pa.int8(), [1, None, -128], [128, 1.5]),
        (pa.float64(), [1, 0.5, None, 2**53], [2**53 + 1, True, "0.5"]),
        (pa.float32(), [1, 0.5, None], [2**24 + 1, 1e300]),
        (pa.bool_(), [True, None], [1, 0.0, "true"]),
        (pa.string(), ["a", "", None], [1, True, ["a"], {"a": 1}]),
        (pa.list_(pa.int64()), [[1, None], [], None], [[1.0], [True], "x", [[1]], 1]),
        (
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
            [{"a": 1, "b": ["x"]}, None],
            [{"a": 1, "b": ["x"], "c": None}, {"a": 1.5}, {"b": [1]}, [], "x"],
        ),
        (pa.date32(), ["2024-02-29", None], ["2023-02-29", "", 5]),
        (pa.timestamp("us"), ["2024-02-29T12:00:00", None], ["noon", "", 5]),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_rescued(
    tmp_path: Path, kind: pa.DataType, fits: list[Any], misfits: list[Any]
) -> None:
    values = [*fits, *misfits]
    lines = [json.dumps({"x": value, "n": i}) for i, value in enumerate(values)]
    reading = read(tmp_path, *lines, schema=schema(x=kind, n=pa.int64()), chunk_rows=4)
    assert reading.column("n") == list(range(len(values)))
    assert rescued(reading) == [None] * len(fits) + [{"x": value} for value in misfits]
    found = reading.column("x")
    assert [v is None for v in found] == [v is None for v in fits] + [True] * len(misfits)
    if not pa.types.is_temporal(kind):
        assert found[: len(fits)] == fits
    assert not reading.errors


def test_a_struct_key_that_is_absent_is_null(tmp_path: Path) -> None:
    reading = read(tmp_path, '{"x": {"a": 1, "b": 2}}', '{"x": {"a": 1}}', '{"x": {}}')
    assert reading.column("x") == [{"a": 1, "b": 2}, {"a": 1, "b": None}, {"a": None, "b": None}]


def test_keys_that_the_plan_does_not_know_are_rescued_or_left(tmp_path: Path) -> None:
    lines = ['{"text": "a", "b": {"c": [1, null]}}', '{"b": null}', '{"text": "c"}']
    plan = schema(text=pa.string())
    assert rescued(read(tmp_path, *lines, schema=plan)) == [
        {"b": {"c": [1, None]}},
        {"b": None},
        None,
    ]
    assert rescued(read(tmp_path, *lines, schema=plan, rescue_unknown=False)) == [None] * 3


def test_bookkeeping_of_an_earlier_run_is_dropped(tmp_path: Path) -> None:
    reading = read(tmp_path, '{"text": "a", "_error": "x", "_row": 7, "_rescued_data": "{}"}')
    assert reading.summary.schema.names == ["text"]
    assert rescued(reading) == [None]


def test_a_deeply_nested_value_is_rescued_and_not_lost(tmp_path: Path) -> None:
    line = '{"x": ' + "[" * 900 + "]" * 900 + "}"
    reading = read(tmp_path, '{"x": 1}', line, schema=schema(x=pa.int64()))
    assert reading.column("_rescued_data")[1] == line


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": 1}', "no text: column 'text' is null or missing"),
        ('{"text": null}', "no text: column 'text' is null or missing"),
        ('{"text": 5}', "column 'text' holds a number, not a string"),
        ('{"text": ["a"]}', "column 'text' holds an array, not a string"),
        ('{"text": {"a": 1}}', "column 'text' holds an object, not a string"),
        ('{"text": false}', "column 'text' holds a boolean, not a string"),
    ],
)
def test_a_row_without_a_text_is_an_error_row(tmp_path: Path, line: str, says: str) -> None:
    reading = read(tmp_path, GOOD, GOOD, "", line, '{"text": ""}', text_columns=("text",))
    assert reading.errors == {2: f"line 4: {says}"}


def test_a_text_column_of_numbers_is_errors_throughout(tmp_path: Path) -> None:
    reading = read(tmp_path, '{"text": 5}', '{"text": 6}', text_columns=("text",))
    assert reading.errors[1] == "line 2: column 'text' holds a number, not a string"
    reading = read(tmp_path, '{"id": 5}', text_columns=("text",))
    assert reading.errors[0] == "line 1: no text: column 'text' is null or missing"


def test_a_line_over_the_limit_is_an_error_row(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 5000})
    reading = read(tmp_path, GOOD, long, GOOD, long, max_line_bytes=1000)
    assert reading.errors == {
        1: "line 2: longer than 1000 bytes",
        3: "line 4: longer than 1000 bytes",
    }
    exact = read(tmp_path, "x" * 1000, "x" * 1001, GOOD, max_line_bytes=1000)
    assert exact.errors[0].startswith("line 1: not valid JSON")
    assert exact.errors[1].startswith("line 2: longer")
