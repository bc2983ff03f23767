"""Real data that nobody here wrote."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError, StorageError, UsageError

from .conftest import corpora, read_all

GOOD = b'{"good_id": %d, "text": "good"}'


def _is_blank(line: bytes) -> bool:
    return not line.strip(b" \t\r")


def test_every_file_of_jsontestsuite_is_one_record_among_good_ones(tmp_path: Path) -> None:
    accepted = refused = 0
    for path in sorted(corpora("jsontestsuite").glob("test_parsing/*.json")):
        data = path.read_bytes()
        lines = data.removesuffix(b"\n").split(b"\n")
        rows = [line for line in lines if not _is_blank(line)]
        mixed = tmp_path / "mixed.jsonl"
        mixed.write_bytes(GOOD % 1 + b"\n" + b"\n".join(lines) + b"\n" + GOOD % 2 + b"\n")
        reading = read_all(mixed, chunk_rows=2)

        assert reading.table.num_rows == len(rows) + 2, path.name
        ids = reading.column("good_id")
        assert (ids[0], ids[-1]) == (1, 2), path.name
        first, last = 0, len(rows) + 1
        assert first not in reading.errors and last not in reading.errors, path.name
        if len(rows) == 1:
            is_object = path.name.startswith("y_") and isinstance(json.loads(data), dict)
            line = next(i for i, text in enumerate(lines) if not _is_blank(text)) + 2
            if is_object:
                assert not reading.errors, path.name
                accepted += 1
            elif not path.name.startswith("i_"):
                assert reading.errors[1].startswith(f"line {line}: not "), path.name
                refused += 1
        elif rows and path.name.startswith("n_"):
            assert reading.errors, path.name
        assert all("\n" not in why and len(why) < 200 for why in reading.errors.values()), path.name
    assert accepted >= 10 and refused >= 180


@pytest.mark.parametrize("kind", ["y", "n", "i"])
def test_a_file_of_jsontestsuite_alone_never_ends_in_a_traceback(kind: str, tmp_path: Path) -> None:
    for path in sorted(corpora("jsontestsuite").glob(f"test_parsing/{kind}_*.json")):
        try:
            reading = read_all(path)
        except UsageError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert reading.chunks[-1].ends_segment


def test_csv_spectrum_is_equal_field_for_field() -> None:
    folder = corpora("csv-spectrum")
    names = sorted(path.stem for path in folder.glob("csvs/*.csv"))
    assert len(names) == 12
    for name in names:
        expected = json.loads((folder / "json" / f"{name}.json").read_text())
        reading = read_all(folder / "csvs" / f"{name}.csv", chunk_rows=2)
        columns = reading.summary.schema.names
        rows = expected if isinstance(expected, list) else [expected]
        if name == "location_coordinates":  # the corpus changed the number in one of its two files
            rows[0]["Contact Phone Number"] = "2095257564"
        assert reading.table.select(columns).to_pylist() == rows, name
        assert not reading.errors, name


def test_naughty_strings_come_back_byte_for_byte(tmp_path: Path) -> None:
    strings = json.loads((corpora("naughty-strings") / "blns.json").read_text())
    for ascii_only in (True, False):
        path = tmp_path / "blns.jsonl"
        lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in strings]
        path.write_bytes("\n".join(lines).encode())
        reading = read_all(path, chunk_rows=64, text_columns=("text",))
        assert reading.column("text") == strings and len(strings) == 515
        assert not reading.errors


def test_a_naughty_string_that_is_not_utf8_is_an_error_row(tmp_path: Path) -> None:
    encoded = json.loads((corpora("naughty-strings") / "blns.base64.json").read_text())
    texts = [base64.b64decode(text) for text in encoded]
    path = tmp_path / "blns.jsonl"
    quoted = [
        text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") for text in texts
    ]
    path.write_bytes(b"".join(b'{"text":"' + _escaped(text) + b'"}\n' for text in quoted))
    reading = read_all(path, chunk_rows=50)
    undecodable = {row for row, text in enumerate(texts) if not _is_utf8(text)}
    not_utf8 = {row for row, why in reading.errors.items() if "not valid UTF-8" in why}
    assert len(undecodable) == 66 and not_utf8 == undecodable
    found = reading.column("text")
    assert len(found) == len(texts) >= 515
    for row, text in enumerate(texts):
        if row not in reading.errors:
            assert found[row].encode() == text


def _escaped(text: bytes) -> bytes:
    return b"".join(b"\\u%04x" % byte if byte < 32 else bytes([byte]) for byte in text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet_files() -> list[Path]:
    try:
        folder = corpora("parquet-testing")
    except pytest.skip.Exception:
        return []
    return sorted([*folder.glob("data/*.parquet"), *folder.glob("bad_data/*.parquet")])


def _expected_rows(path: Path) -> int | None:
    try:
        return int(pq.read_table(path).num_rows)
    except Exception:
        return None


def _parameter(path: Path) -> Any:
    # Two rows of 1 GiB each; decoding them takes half a minute.
    marks = pytest.mark.slow if path.stem.startswith("large_string_map") else ()
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [_parameter(path) for path in _parquet_files()])
def test_parquet_testing_has_the_rows_pyarrow_gives_or_one_clear_line(path: Path) -> None:
    try:
        reading = read_all(path, chunk_rows=1 if "large" in path.stem else 1000)
    except (InputError, StorageError, UsageError) as error:
        assert path.name in str(error) and "\n" not in str(error)
        expected = _expected_rows(path)
        assert expected is None or "CRC checksum" in str(error), error
    else:
        assert reading.table.num_rows == (_expected_rows(path) or reading.summary.num_rows_estimate)
        reading.table.validate(full=True)


def test_gzipped_human_eval_equals_the_same_file_uncompressed(tmp_path: Path) -> None:
    packed = corpora("human-eval") / "data" / "HumanEval.jsonl.gz"
    plain = tmp_path / "HumanEval.jsonl"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    columns = ["task_id", "prompt", "canonical_solution", "test"]
    first = read_all(packed, text_columns=("prompt",))
    second = read_all(plain, text_columns=("prompt",))
    assert first.table.num_rows == 164 and not first.errors
    assert first.table.select(columns).equals(second.table.select(columns))
    assert [chunk.digest for chunk in first.chunks] == [chunk.digest for chunk in second.chunks]
    assert first.summary.schema == second.summary.schema


def test_gsm8k_keeps_every_row_and_its_nested_column_typed() -> None:
    folder = corpora("gsm8k") / "grade_school_math" / "data"
    counts = {"train.jsonl": 7473, "test.jsonl": 1319}
    for name, count in counts.items():
        reading = read_all(folder / name, chunk_rows=1000, text_columns=("question",))
        expected = [json.loads(line) for line in (folder / name).read_bytes().splitlines()]
        assert reading.table.select(["question", "answer"]).to_pylist() == expected
        assert reading.table.num_rows == count
    reading = read_all(folder / "example_model_solutions.jsonl", chunk_rows=500)
    kinds = [column.type for column in reading.summary.schema]
    assert any(pa.types.is_struct(kind) or pa.types.is_list(kind) for kind in kinds)
    assert reading.column("_rescued_data") == [None] * reading.table.num_rows


def test_mt_bench_turns_are_lists_of_strings() -> None:
    (path,) = corpora("mt-bench").rglob("mt_bench/question.jsonl")
    reading = read_all(path)
    assert reading.summary.schema.field("turns").type == pa.list_(pa.string())
    expected: list[Any] = [json.loads(line)["turns"] for line in path.read_bytes().splitlines()]
    assert reading.column("turns") == expected


def test_pretty_printed_documents_are_refused_with_a_hint() -> None:
    for path in sorted(corpora("xquad").glob("*.json")):
        with pytest.raises(UsageError, match="jq -c"):
            read_all(path)


def test_every_self_instruct_file_is_read_whole() -> None:
    for path in sorted(corpora("self-instruct").rglob("*.jsonl")):
        reading = read_all(path, chunk_rows=1000)
        with path.open("rb") as lines:
            assert reading.table.num_rows == sum(1 for line in lines if line.strip())
