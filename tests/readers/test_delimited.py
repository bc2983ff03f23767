"""CSV and TSV: strings as they stand, records with their lines, quotes that cost one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import UsageError

from .conftest import Reading, read_all


def read(tmp_path: Path, data: str | bytes, name: str = "rows.csv", **options: Any) -> Reading:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_all(path, **options)


def rows(reading: Reading) -> list[tuple[Any, ...]]:
    names = reading.summary.schema.names
    return [tuple(row[name] for name in names) for row in reading.rows]


def test_fields_stay_the_strings_they_are(tmp_path: Path) -> None:
    reading = read(tmp_path, "id,text\n007, a \n1e5,\nNULL,NaN\n")
    assert rows(reading) == [("007", " a "), ("1e5", ""), ("NULL", "NaN")]
    assert not reading.errors


def test_quotes_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    data = 'id,text\r\n1,"a, ""b""\r\nc\n\nd"\r\n\r\n\n2,x\r\n"3",5" pipe\r\n4,last'
    reading = read(tmp_path, data, text_columns=("text",), chunk_rows=1)
    assert rows(reading) == [
        ("1", 'a, "b"\r\nc\n\nd'),
        ("2", "x"),
        ("3", '5" pipe'),
        ("4", "last"),
    ]
    assert not reading.errors


def test_a_row_of_another_width_is_an_error_row(tmp_path: Path) -> None:
    reading = read(tmp_path, 'a,b\n1,2\n1\n"x\ny",2,3\n3,4\n')
    assert reading.errors == {
        1: "line 3: 1 field where the header has 2",
        2: "line 4: 3 fields where the header has 2",
    }
    assert rows(reading) == [("1", "2"), (None, None), (None, None), ("3", "4")]


def test_an_unterminated_quote_costs_its_first_line_only(tmp_path: Path) -> None:
    reading = read(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n7,8\n', chunk_rows=1)
    assert reading.errors == {1: "line 3: unterminated quote"}
    assert rows(reading) == [("1", "2"), (None, None), ("5", "6"), ("7", "8")]


def test_a_malformed_quote_costs_the_first_line_of_its_record(tmp_path: Path) -> None:
    reading = read(tmp_path, 'a,b\n1,"x"y\n3,"4\n5,6\n7,"z"\n9,0\n')
    assert {row: why.split(": ")[0] for row, why in reading.errors.items()} == {
        0: "line 2",
        1: "line 3",
    }
    assert rows(reading)[2:] == [("5", "6"), ("7", "z"), ("9", "0")]


def test_an_open_quote_is_given_up_beyond_the_limit(tmp_path: Path) -> None:
    lines = "".join(f"{i},x\n" for i in range(1000))
    for end in ("", '1,"closed"\n', '1,"'):
        reading = read(tmp_path, f'a,b\n0,"open\n{lines}{end}', max_line_bytes=1000, chunk_rows=77)
        assert reading.errors[0] == "line 2: unterminated quote"
        assert rows(reading)[1:1001] == [(str(i), "x") for i in range(1000)]
        assert len(reading.errors) == 1 + (end == '1,"')


def test_a_field_larger_than_any_block_is_read_whole(tmp_path: Path) -> None:
    text = 'line with ""quotes""\n' * 200_000
    reading = read(tmp_path, f'a,b\n1,"{text}"\n2,x\n', chunk_rows=1)
    assert reading.column("b") == [text.replace('""', '"'), "x"]


def test_many_unterminated_quotes_do_not_take_forever(tmp_path: Path) -> None:
    reading = read(tmp_path, "a,b\n" + '1,"x"y\n2,"\n' * 20_000, chunk_rows=5000)
    assert len(reading.column("a")) == 40_000


def test_undecodable_bytes_cost_their_record_only(tmp_path: Path) -> None:
    reading = read(tmp_path, b'a,b\n1,x\n2,\xff\n3,"y\nz\xfe"\n4,z\n')
    assert reading.errors == {
        1: "line 3: not valid UTF-8 (byte 3)",
        2: "line 5: not valid UTF-8 (byte 2)",
    }
    assert rows(reading)[3] == ("4", "z")


def test_empty_and_repeated_names_become_unique(tmp_path: Path) -> None:
    reading = read(tmp_path, "name,,name,name_2,\na,b,c,d,e\n")
    names = reading.summary.schema.names
    assert names == ["name", "column_1", "name_3", "name_2", "column_4"]
    assert rows(reading) == [("a", "b", "c", "d", "e")]


def test_without_a_header_columns_are_numbered(tmp_path: Path) -> None:
    reading = read(tmp_path, "\ufeff1,2\n3,4\n", header=False, chunk_rows=1)
    assert reading.summary.schema.names == ["column_0", "column_1"]
    assert rows(reading) == [("1", "2"), ("3", "4")]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa,b\n1,2\n").summary.schema.names == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "mark"), [("a;b", ";"), ("a\tb", "\t"), ("a|b", "|"), ("a;b,c", ","), ("a b", ",")]
)
def test_the_delimiter_is_taken_from_the_header(tmp_path: Path, header: str, mark: str) -> None:
    assert read(tmp_path, header + "\n").summary.schema.names == header.split(mark)


def test_tsv_has_tabs_and_a_delimiter_can_be_given(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "a\tb,c\n1\t2,3\n", "rows.tsv")) == [("1", "2,3")]
    assert rows(read(tmp_path, "a:b\n1:2\n", delimiter=":")) == [("1", "2")]


@pytest.mark.parametrize("mark", ["", "::", '"', "\n"])
def test_a_delimiter_that_is_not_one_character_is_refused(tmp_path: Path, mark: str) -> None:
    with pytest.raises(UsageError, match="--delimiter"):
        read(tmp_path, "a,b\n", delimiter=mark)


def test_columns_of_several_files_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("b;c\n3;4\n")
    reading = read_all(tmp_path)
    assert rows(reading) == [("1", "2", None), (None, "3", "4")]


def test_types_that_are_asked_for_are_parsed_strictly(tmp_path: Path) -> None:
    data = "n,x,flag,day\n1,0.5,true,2024-02-29\n007,1e999,yes,2023-02-29\n0x1F, 1,1,\n,,,\n"
    types = {"n": "int64", "x": "float64", "flag": "bool", "day": "date"}
    reading = read(tmp_path, data, types=types)
    found = rows(reading)
    assert found[0][:3] == (1, 0.5, True)
    assert found[1] == (7, None, None, None)
    assert found[2] == (None, None, True, None)
    assert found[3] == (None,) * 4
    assert [text and json.loads(text) for text in reading.column("_rescued_data")] == [
        None,
        {"x": "1e999", "flag": "yes", "day": "2023-02-29"},
        {"n": "0x1F", "x": " 1"},
        None,
    ]


def test_empty_files_and_headers_alone_have_no_rows(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "")) == []
    reading = read(tmp_path, "a,b\n")
    assert rows(reading) == [] and reading.summary.schema.names == ["a", "b"]


def test_lines_that_end_with_a_carriage_return_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="carriage return"):
        read(tmp_path, "a,b\r1,2\r3,4\r")


def test_a_header_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unterminated quote"):
        read(tmp_path, 'a,"b\n1,2\n')
    with pytest.raises(UsageError, match="--encoding"):
        read(tmp_path, "naïve,b\n1,2\n".encode("latin-1"))


def test_a_column_without_a_text_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("id\n1\n")
    (tmp_path / "2.csv").write_text("id,text\n1,\n")
    reading = read_all(tmp_path, text_columns=("text",))
    assert reading.errors == {0: "line 2: no text: column 'text' is null or missing"}
