"""export: the rows of a run in one file, in order, whole or not at all."""

from __future__ import annotations

import csv
import datetime
import decimal
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from batchinfer import export, run
from batchinfer.cli import main
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.exporting import files
from batchinfer.exporting.texts import Texts
from batchinfer.stop import StopSignal
from tests.conftest import ROOT, read_output
from tests.test_run import config, rows, run_partly, write_jsonl

#: Every tenth row has no text, and so an error.
ROWS = [row if row["id"] % 10 else {"id": row["id"], "text": None} for row in rows(95)]
FORMATS = ("parquet", "jsonl", "csv", "tsv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two files, in ten shards."""
    folder = tmp_path_factory.mktemp("finished")
    write_jsonl(folder / "in" / "a.jsonl", ROWS[:50])
    write_jsonl(folder / "in" / "b.jsonl", ROWS[50:])
    run(config(folder / "in", folder / "out"))
    return folder / "out"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what is written -------------------------------------------------------------------------------


def test_parquet_has_the_rows_of_the_shards_in_groups_of_its_own(
    finished: Path, tmp_path: Path
) -> None:
    done = export(finished, tmp_path / "all.parquet", row_group_size=40)
    wanted = read_output(finished)
    assert pq.read_table(tmp_path / "all.parquet").equals(wanted)
    file = pq.ParquetFile(tmp_path / "all.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [40, 40, 15]
    assert (done.num_rows, done.num_left_out) == (95, 0)
    assert done.num_bytes == (tmp_path / "all.parquet").stat().st_size


def test_a_row_group_ends_early_where_rows_are_large(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_ROW_GROUP_BYTES", 1)
    export(finished, tmp_path / "all.parquet")
    assert pq.ParquetFile(tmp_path / "all.parquet").num_row_groups == 10  # one for each table
    assert pq.read_table(tmp_path / "all.parquet").equals(read_output(finished))


@pytest.mark.parametrize("codec", files.CODECS)
def test_the_codec_is_the_one_that_was_named(finished: Path, tmp_path: Path, codec: str) -> None:
    export(finished, tmp_path / "all.parquet", codec=codec)
    column = pq.ParquetFile(tmp_path / "all.parquet").metadata.row_group(0).column(0)
    assert column.compression == {"none": "uncompressed"}.get(codec, codec).upper()


def test_parquet_says_where_its_rows_come_from(finished: Path, tmp_path: Path) -> None:
    export(finished, tmp_path / "all.parquet", errors="drop")
    metadata = pq.read_schema(tmp_path / "all.parquet").metadata
    plan = json.loads((finished / "_batchinfer" / "plan.json").read_text())
    assert metadata[b"batchinfer.errors"] == b"drop"
    assert metadata[b"batchinfer.task"] == b"classify"
    assert metadata[b"batchinfer.plan_id"].decode() in json.dumps(plan) + read_plan_id(finished)
    assert b"batchinfer" not in metadata  # that is what tells a shard


def read_plan_id(output: Path) -> str:
    shard = next((output / "data").glob("*.parquet"))
    return str(json.loads(pq.read_schema(shard).metadata[b"batchinfer"])["plan_id"])


@pytest.mark.parametrize("ending", [*FORMATS, "jsonl.gz", "csv.zst", "jsonl.bz2", "tsv.xz"])
def test_two_exports_are_the_same_bytes(finished: Path, tmp_path: Path, ending: str) -> None:
    export(finished, tmp_path / f"one.{ending}")
    export(finished, tmp_path / f"other.{ending}")
    one, other = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "other"))
    assert one == other


def test_jsonl_is_an_object_a_line(finished: Path, tmp_path: Path) -> None:
    export(finished, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for one, wanted in zip(found, read_output(finished).to_pylist(), strict=True):
        one["predicted_score"] = pytest.approx(one["predicted_score"])
        assert wanted == one


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_csv_is_a_row_a_record_with_a_header(
    finished: Path, tmp_path: Path, ending: str, delimiter: str
) -> None:
    export(finished, tmp_path / f"all.{ending}")
    with (tmp_path / f"all.{ending}").open(newline="") as file:
        header, *records = csv.reader(file, delimiter=delimiter)
    wanted = read_output(finished)
    assert header == wanted.column_names
    assert [record[header.index("id")] for record in records] == [str(row["id"]) for row in ROWS]
    texts = [text or "" for text in wanted["text"].to_pylist()]
    assert [record[header.index("text")] for record in records] == texts


@pytest.mark.parametrize(
    "ending", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.xz", "tsv.bz2"]
)
def test_an_export_is_an_input_for_the_next_run(
    finished: Path, tmp_path: Path, ending: str
) -> None:
    columns = ["id", "text", "predicted_label"]
    export(finished, tmp_path / f"all.{ending}", columns=columns, errors="drop")
    run(config(tmp_path / f"all.{ending}", tmp_path / "out", output_prefix="again_"))
    again, wanted = read_output(tmp_path / "out"), read_output(finished)
    wanted = wanted.filter(wanted["_error"].is_null())
    assert [int(number) for number in again["id"].to_pylist()] == wanted["id"].to_pylist()
    assert again["again_predicted_label"].equals(wanted["predicted_label"])


# -- which rows and columns ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_errors_are_kept_dropped_or_all_there_is(
    finished: Path, tmp_path: Path, ending: str
) -> None:
    found = {}
    for errors in ("keep", "drop", "only"):
        done = export(finished, tmp_path / f"{errors}.{ending}", columns=["id"], errors=errors)  # type: ignore[arg-type]
        read = pq.read_table if ending == "parquet" else read_jsonl
        found[errors] = [row["id"] for row in read(tmp_path / f"{errors}.{ending}").to_pylist()]
        assert done.num_rows + done.num_left_out == 95
    assert found["keep"] == list(range(95))
    assert found["only"] == list(range(0, 95, 10))
    assert found["drop"] == [id for id in range(95) if id % 10]


def read_jsonl(path: Path) -> pa.Table:
    return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])


def test_columns_come_in_the_order_in_which_they_are_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(finished), "--to", "a.csv", "--columns", "text,id"]) == 0
    assert (
        main(["export", str(finished), "--to", "b.csv", "--columns", "text", "--columns", "id"])
        == 0
    )
    assert Path("a.csv").read_text().startswith("text,id\n")
    assert Path("a.csv").read_text() == Path("b.csv").read_text()


def test_a_run_without_rows_gives_a_header(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("text\n")
    run(config(tmp_path / "none.csv", tmp_path / "out"))
    for ending in FORMATS:
        assert export(tmp_path / "out", tmp_path / f"all.{ending}").num_rows == 0
    assert (tmp_path / "all.jsonl").read_bytes() == b""
    assert (tmp_path / "all.csv").read_text().startswith("_source,_row,text,")
    assert pq.read_table(tmp_path / "all.parquet").schema.equals(
        read_output(tmp_path / "out").schema
    )


# -- values ----------------------------------------------------------------------------------------

UTC = datetime.UTC
VALUES: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    # type, values, what JSON says
    "text": (
        pa.string(),
        ['a "b" \\ c', "line\nbreak\r\ttab", "\x00\x1f\x7f", "äß😀\u2028", "", None],
        ['a "b" \\ c', "line\nbreak\r\ttab", "\x00\x1f\x7f", "äß😀\u2028", "", None],
    ),
    "int64": (pa.int64(), [2**63 - 1, -(2**63), 0, None], [2**63 - 1, -(2**63), 0, None]),
    "uint64": (pa.uint64(), [2**64 - 1, None], [2**64 - 1, None]),
    "bool": (pa.bool_(), [True, False, None], [True, False, None]),
    "float32": (pa.float32(), [0.1, 1.0, -0.0, 1e20, None], [0.1, 1.0, -0.0, 1e20, None]),
    "float64": (
        pa.float64(),
        [1 / 3, 1e300, 5e-324, float("nan"), float("inf"), None],
        [1 / 3, 1e300, 5e-324, None, None, None],
    ),
    "decimal": (
        pa.decimal128(20, 3),
        [decimal.Decimal("12345678901234567.890"), None],
        ["12345678901234567.890", None],
    ),
    "day": (pa.date32(), [datetime.date(2024, 2, 29), None], ["2024-02-29", None]),
    "clock": (pa.time64("us"), [datetime.time(1, 2, 3, 4), None], ["01:02:03.000004", None]),
    "naive": (
        pa.timestamp("ms"),
        [datetime.datetime(2024, 1, 2, 3, 4, 5, 6000), None],
        ["2024-01-02T03:04:05.006", None],
    ),
    "zoned": (
        pa.timestamp("s", "Europe/Paris"),
        [datetime.datetime(2024, 7, 1, 12, tzinfo=UTC), None],
        ["2024-07-01T12:00:00Z", None],
    ),
    "bytes": (pa.binary(), [b"\x00\xff", b"", None], ["AP8=", "", None]),
    "fixed": (pa.binary(2), [b"\x00\xff", None], ["AP8=", None]),
    "code": (pa.dictionary(pa.int8(), pa.string()), ['"', "b", None], ['"', "b", None]),
    "nothing": (pa.null(), [None], [None]),
    "list": (
        pa.list_(pa.float32()),
        [[0.1, None, float("nan")], [], None, [2.0]],
        [[0.1, None, None], [], None, [2.0]],
    ),
    "vector": (pa.list_(pa.float16(), 2), [[1.0, 0.5], None], [[1.0, 0.5], None]),
    "struct": (
        pa.struct({'odd "key"': pa.string(), "n": pa.list_(pa.int8())}),
        [{'odd "key"': "x\n", "n": [1, None]}, {'odd "key"': None, "n": None}, None],
        [{'odd "key"': "x\n", "n": [1, None]}, {'odd "key"': None, "n": None}, None],
    ),
    "nested": (
        pa.list_(pa.struct({"label": pa.string(), "when": pa.date32()})),
        [[{"label": "a", "when": datetime.date(2024, 1, 1)}, None], None],
        [[{"label": "a", "when": "2024-01-01"}, None], None],
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_as_json(name: str) -> None:
    kind, values, wanted = VALUES[name]
    column = pa.array([None, *values], kind).slice(1)  # as a part of a longer one
    lines = bytes(Texts().json_lines(pa.record_batch([column], names=["x"]))).decode()
    found = [json.loads(line, parse_constant=pytest.fail)["x"] for line in lines.split("\n")[:-1]]
    assert found == wanted
    assert [type(value) for value in found] == [type(value) for value in wanted]


@pytest.mark.parametrize("name", VALUES)
def test_values_as_csv(name: str) -> None:
    """Those of JSON without its quotes; nested ones as JSON; null is nothing, an empty text two quotes."""
    kind, values, wanted = VALUES[name]
    column, other = pa.array([None, *values], kind).slice(1), pa.array(range(len(values)))
    batch = pa.record_batch([column, other], names=["x", "y"])
    text = bytes(Texts().csv_lines(batch, ",")).decode()
    cells = [record[0] for record in csv.reader(io.StringIO(text, newline=""), strict=True)]
    for cell, value, said in zip(cells, values, wanted, strict=True):
        if value is None or isinstance(said, str):
            assert cell == (said or "")
        elif isinstance(said, list | dict):
            assert json.loads(cell) == said
        elif isinstance(value, float):
            assert float(cell) == pytest.approx(value, rel=1e-7, nan_ok=True)
        else:
            assert cell == str(said).lower()
    if "" in values:
        assert text.split("\n")[-3].startswith('"",')


def test_numbers_that_json_has_no_word_for_are_counted(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "x": [float("nan"), 1.5], "v": [[float("inf")], [0.5]]})
    pq.write_table(table, tmp_path / "in.parquet")
    run(config(tmp_path / "in.parquet", tmp_path / "out"))
    done = export(tmp_path / "out", tmp_path / "all.jsonl")
    assert done.num_nulled == 2
    assert "2 numbers" in done.to_text()
    assert export(tmp_path / "out", tmp_path / "all.csv", columns=["x"]).num_nulled == 0
    assert (tmp_path / "all.csv").read_text() == "x\nnan\n1.5\n"


def test_a_single_column_has_no_empty_line() -> None:
    batch = pa.record_batch([pa.array(["a", None, ""])], names=["x"])
    assert bytes(Texts().csv_lines(batch, ",")) == b'a\n""\n""\n'


@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.lists(st.none() | st.text()))))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_from_json_and_csv(values: list[tuple[Any, Any]]) -> None:
    kinds = [("a", pa.string()), ("b", pa.list_(pa.string()))]
    pairs = [(name, pa.array([v[i] for v in values], kind)) for i, (name, kind) in enumerate(kinds)]
    batch = pa.record_batch([array for _, array in pairs], names=[name for name, _ in pairs])
    lines = bytes(Texts().json_lines(batch)).decode().split("\n")
    assert [tuple(json.loads(line).values()) for line in lines[:-1]] == values
    for delimiter in ",\t":
        text = bytes(Texts().csv_lines(batch, delimiter)).decode()
        read = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        texts = [(a, json.loads(b) if b else None) for a, b in read]
        assert texts == [(a or "", b) for a, b in values]


@pytest.mark.parametrize("kind", [pa.duration("s"), pa.map_(pa.string(), pa.int8())])
def test_what_has_no_text_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, kind: pa.DataType
) -> None:
    odd = pa.array([None], kind)
    pq.write_table(pa.table({"text": ["a"], "odd": odd}), tmp_path / "in.parquet")
    run(config(tmp_path / "in.parquet", tmp_path / "out"))
    (tmp_path / "to").mkdir()
    for ending in ("jsonl", "csv"):
        with pytest.raises(UsageError, match=r"column odd: .* leave it out with --columns"):
            export(tmp_path / "out", tmp_path / "to" / f"all.{ending}")
    assert names_in(tmp_path / "to") == []
    export(tmp_path / "out", tmp_path / "to" / "all.csv", columns=["text"])
    export(tmp_path / "out", tmp_path / "to" / "all.parquet")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "all.xls"], "all.xls: the name says the format; end it in one of .jsonl"),
        (["--to", "all.json"], "the name says the format"),
        (["--to", "all.parquet.gz"], "compressed inside"),
        (["--to", "postgresql://host/table"], "only files on a disk"),
        (["--to", "nowhere/all.csv"], "there is no folder nowhere; create it"),
        (["--to", "."], "the name says the format"),
        (["--to", "all.csv", "--codec", "zstd"], "are of .parquet"),
        (["--to", "all.parquet", "--codec", "lzo"], "choose one of zstd, snappy"),
        (["--to", "all.csv", "--columns", "id,nonsense"], "nonsense: no such column; there are _s"),
        (["--to", "all.csv", "--columns", "id,id"], "name each column once"),
        (["--to", "all.csv", "--errors", "hide"], "--errors hide: choose one of keep, drop, only"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(finished), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("batchinfer: ") and said in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert names_in(tmp_path) == []


def test_a_file_that_is_there_stays_unless_told(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("mine")
    with pytest.raises(UsageError, match="exists; --overwrite replaces it"):
        export(finished, tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == "mine"
    export(finished, tmp_path / "all.csv", overwrite=True)
    assert (tmp_path / "all.csv").read_text().startswith("_source,")
    assert names_in(tmp_path) == ["all.csv"]


def test_a_file_that_appears_meanwhile_stays(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> None:
        (tmp_path / "all.jsonl").write_text("another's")

    monkeypatch.setattr(files._TextSheet, "write", meanwhile)
    with pytest.raises(UsageError, match="exists"):
        export(finished, tmp_path / "all.jsonl")
    assert (tmp_path / "all.jsonl").read_text() == "another's"
    assert names_in(tmp_path) == ["all.jsonl"]


def test_the_run_and_its_inputs_are_no_targets(finished: Path) -> None:
    source = finished.parent / "in" / "a.jsonl"
    before = source.read_bytes()
    with pytest.raises(UsageError, match="is an input of the job"):
        export(finished, source, overwrite=True)
    assert source.read_bytes() == before
    for folder in ("data", "_batchinfer"):
        with pytest.raises(UsageError, match="only the run writes there"):
            export(finished, finished / folder / "all.parquet")


def test_an_unfinished_run_is_exported_only_on_demand(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    run_partly(config(tmp_path / "in.jsonl", tmp_path / "out"), 30)
    with pytest.raises(Interrupted, match=r"unfinished, .* --partial exports what is there"):
        export(tmp_path / "out", tmp_path / "all.csv")
    done = export(tmp_path / "out", tmp_path / "all.parquet", partial=True)
    assert 0 < done.num_rows < 95
    assert pq.read_table(tmp_path / "all.parquet").equals(read_output(tmp_path / "out"))


def test_no_row_is_exported_twice(tmp_path: Path) -> None:
    """A shard that stands under a second name, and one that is none of its segment."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    run(config(tmp_path / "in.jsonl", tmp_path / "out"))
    data = tmp_path / "out" / "data"
    copy = data / "part-000000-000010.parquet"
    copy.write_bytes((data / "part-000000-000009.parquet").read_bytes())
    with pytest.raises(JobMismatchError, match=copy.name):
        export(tmp_path / "out", tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_no_row_is_left_out_silently(tmp_path: Path) -> None:
    """A finished folder that has lost a shard, or has a damaged one, or another job's."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    run(config(tmp_path / "in.jsonl", tmp_path / "out"))
    run(config(tmp_path / "in.jsonl", tmp_path / "other", max_length=7))
    shard = tmp_path / "out" / "data" / "part-000000-000003.parquet"
    whole = shard.read_bytes()

    shard.unlink()
    with pytest.raises(StorageError, match="part-000000-000003.parquet is missing"):
        export(tmp_path / "out", tmp_path / "all.parquet")
    shard.write_bytes(whole[:-20])
    for partial in (False, True):
        with pytest.raises(StorageError, match="part-000000-000003.parquet: is damaged"):
            export(tmp_path / "out", tmp_path / "all.parquet", partial=partial)
    middle = bytearray(whole)
    middle[100] ^= 0xFF
    shard.write_bytes(middle)
    with pytest.raises(StorageError, match="part-000000-000003.parquet: damaged"):
        export(tmp_path / "out", tmp_path / "all.parquet")
    shard.write_bytes((tmp_path / "other" / "data" / shard.name).read_bytes())
    with pytest.raises(JobMismatchError, match="belongs to another job"):
        export(tmp_path / "out", tmp_path / "all.parquet")
    assert names_in(tmp_path) == ["in.jsonl", "other", "out"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        export(tmp_path, tmp_path / "all.csv")


# -- whole or not at all ---------------------------------------------------------------------------


def test_the_file_is_synced_before_it_has_its_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def recorded(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*arguments: Any) -> None:
            there = (tmp_path / "all.jsonl").exists()
            calls.append(f"{name}{' behind' if there else ''}")
            real(*arguments)

        return call

    for name in ("fsync", "link"):
        monkeypatch.setattr(os, name, recorded(name))
    export(finished, tmp_path / "all.jsonl")
    assert calls == ["fsync", "link", "fsync behind"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv.gz"])
def test_a_full_disk_leaves_what_was_there(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    target = tmp_path / f"all.{ending}"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Interrupted, match="no space left; nothing was exported"):
        export(finished, target, overwrite=True)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == [target.name]


@pytest.mark.parametrize("failing", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2])
def test_whichever_call_fails_the_file_is_the_old_one_or_the_new_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, number: int
) -> None:
    target = tmp_path / "all.jsonl"
    export(finished, target)
    whole = target.read_bytes()
    target.write_text("old")
    real, calls = getattr(os, failing), []

    def fail(*arguments: Any, **named: Any) -> Any:
        if str(tmp_path) in str(arguments[0]) or isinstance(arguments[0], int):
            calls.append(arguments)
            if len(calls) == number:
                raise OSError(errno.EIO, "Input/output error", str(target))
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        if (failing, number) == ("replace", 2):  # there is one
            export(finished, target, overwrite=True)
        else:
            with pytest.raises(StorageError, match="Input/output error"):
                export(finished, target, overwrite=True)
    assert names_in(tmp_path) == ["all.jsonl"]
    # The second to be opened and synced is the folder, when the file has its name.
    assert target.read_bytes() == (whole if number == 2 else b"old")


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_stop_leaves_nothing(finished: Path, tmp_path: Path, ending: str) -> None:
    stop = StopSignal()
    stop.set()
    with pytest.raises(Interrupted, match="stopped; nothing was exported"):
        export(finished, tmp_path / f"all.{ending}", stop=stop)
    assert names_in(tmp_path) == []


def test_what_a_killed_export_left_goes_with_the_next(finished: Path, tmp_path: Path) -> None:
    """One that is alive keeps its file."""
    script = (
        "import sys; from pathlib import Path; from batchinfer.writers.streamed import created\n"
        "with created(Path(sys.argv[1])) as file:\n    file.write(b'half'); print(flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "all.csv")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    [begun] = names_in(tmp_path)
    export(finished, tmp_path / "all.csv")
    assert names_in(tmp_path) == [begun, "all.csv"]
    process.kill()
    process.communicate()
    export(finished, tmp_path / "all.csv", overwrite=True)
    assert names_in(tmp_path) == ["all.csv"]


# -- the command -----------------------------------------------------------------------------------


def test_one_line_or_one_object_is_printed(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", str(finished), "--errors", "drop", "--overwrite", "--to", "all.csv"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("all.csv: 85 rows, ") and shown.out.count("\n") == 1
    assert shown.out.rstrip().endswith("10 rows left out by --errors")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_rows"], found["num_left_out"]) == (85, 10)
    assert found["num_bytes"] == Path("all.csv").stat().st_size
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
