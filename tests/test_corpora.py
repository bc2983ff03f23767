"""Whole runs over data that nobody here wrote: all rows, in order, or one clear line."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, run
from batchinfer.errors import BatchInferError, UsageError
from tests.conftest import ROOT, read_output

CORPORA = Path(os.environ.get("BATCHINFER_CORPORA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not CORPORA.is_dir(), reason=f"the corpora are not at {CORPORA}; set BATCHINFER_CORPORA"
)


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in CORPORA.rglob(pattern))


def name_of(path: Path) -> str:
    return path.relative_to(CORPORA).as_posix()


def answer(path: Path, output: Path, **settings: Any) -> pa.Table:
    """Run a file through the fake engine.

    The text column is the first that holds text; where none does, the first that can be read as text.
    """
    job: dict[str, Any] = {
        "inputs": (str(path),), "output": str(output), "engine": "fake", "workers": 0,
        "chunk_rows": 100, "output_prefix": "fake_", **settings,
    }  # fmt: skip
    try:
        run(RunConfig(**job))
    except UsageError as error:
        if "no column 'text'" not in str(error) or "text_column" in settings:
            raise
        columns = str(error).split("it has: ")[1].rsplit(" (choose", 1)[0].split(", ")
        tries = [{"text_column": column} for column in columns]
        tries += [{"text_column": column, "types": {column: "string"}} for column in columns]
        for attempt in tries:
            try:
                return answer(path, output, **{**settings, **attempt})
            except UsageError as refused:
                if "not text" not in str(refused):
                    raise
        raise AssertionError(f"no column of {name_of(path)} can be read as text") from error
    return read_output(output)


@pytest.mark.parametrize("path", files("*.jsonl", "*.jsonl.gz"), ids=name_of)
def test_every_line_of_json_is_a_row_in_order(path: Path, tmp_path: Path) -> None:
    import gzip

    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    records = [orjson.loads(line) for line in content.split(b"\n") if line.strip()]
    table = answer(path, tmp_path / "out")
    assert table["_row"].to_pylist() == list(range(len(records)))
    for name in records[0]:
        got = table[name].to_pylist()
        rescued = [json.loads(r or "{}") for r in table["_rescued_data"].to_pylist()]
        for index, record in enumerate(records):
            value = got[index] if name not in rescued[index] else rescued[index][name]
            assert _filled(record.get(name), value), (index, name)


def _filled(wanted: Any, got: Any) -> bool:
    """Whether a value came through; a key that only other rows have is null in a struct."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return all(_filled(wanted.get(key), got[key]) for key in {*wanted, *got})
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(_filled, wanted, got))
    return bool(wanted == got)


@pytest.mark.parametrize("path", files("*.csv"), ids=name_of)
def test_every_csv_record_is_a_row(path: Path, tmp_path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        header, *records = [record for record in csv.reader(file) if record]
    table = answer(path, tmp_path / "out")
    assert table["_row"].to_pylist() == list(range(len(records)))
    for index, name in enumerate(header):
        if name and header.count(name) == 1:
            assert table[name].to_pylist() == [record[index] for record in records]


#: 2 rows of 1 GiB each: a minute of its own, and tests/readers reads it
GIANT = "large_string_map.brotli.parquet"


@pytest.mark.parametrize(
    "path",
    [path for path in files("parquet-testing/**/*.parquet*") if path.name != GIANT],
    ids=name_of,
)
def test_every_parquet_file_is_read_or_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    try:
        expected = sum(batch.num_rows for batch in pq.ParquetFile(path).iter_batches())
    except Exception:  # whatever pyarrow says of a file that is broken on purpose
        expected = -1
    try:
        table = answer(path, tmp_path / "out", format="parquet")
    except BatchInferError as error:
        assert "\n" not in str(error)
        assert path.name in str(error) or "column" in str(error), error
        return
    assert table["_row"].to_pylist() == list(range(expected))


def test_json_documents_are_refused_with_a_hint(tmp_path: Path) -> None:
    for path in files("xquad/*.json", "naughty-strings/*.json"):
        with pytest.raises(BatchInferError, match=r"jq|no column 'text'"):
            run(
                RunConfig(
                    inputs=(str(path),), output=str(tmp_path / "out"), engine="fake", workers=0
                )
            )


@pytest.mark.parametrize("language", ["en", "zh", "th", "ar"])
def test_question_and_context_pairs_in_every_language(language: str, tmp_path: Path) -> None:
    document = json.loads((CORPORA / "xquad" / f"xquad.{language}.json").read_bytes())
    pairs = [
        {"id": qa["id"], "question": qa["question"], "context": paragraph["context"]}
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    table = answer(source, tmp_path / "out", text_column="question", text_pair_column="context")
    assert table.select(["id", "question", "context"]).to_pylist() == pairs
    assert len(pairs) == 1190
    assert table["_error"].null_count == len(pairs)


def test_naughty_strings_come_through_byte_for_byte(tmp_path: Path) -> None:
    strings = json.loads((CORPORA / "naughty-strings" / "blns.json").read_bytes())
    source = tmp_path / "blns.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in strings))
    table = answer(source, tmp_path / "out")
    assert table["text"].to_pylist() == strings
    assert len(strings) == 515
    assert table["_error"].null_count == 515
