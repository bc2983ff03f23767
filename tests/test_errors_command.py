"""errors: the rows that failed and why, from the shards, also while a run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchinfer import run
from batchinfer.cli import main
from batchinfer.reporting import failures
from batchinfer.reporting.failures import Failure, read_failures, summarize
from batchinfer.writers.run_folder import RunFolder
from tests.test_run import config, run_partly

HINT = "batchinfer: failed rows: 6; `batchinfer resume out --retry-errors` tries them again\n"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files; the second to fourth row of each fail, for two reasons."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        lines = ['{"id": 1, "text": "good"}', '{"id"', "{", '{"id": 3}', *['{"text": ""}'] * 21]
        path = tmp_path / "in" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    run(config(tmp_path / "in", Path("out")))
    return tmp_path / "out"


def test_every_failed_row_is_a_line_in_input_order(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["errors", "out"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        *(f"a.jsonl:{row}" for row in (1, 2, 3)),
        *(f"b.jsonl:{row}" for row in (1, 2, 3)),
    ]
    assert lines[2].startswith("a.jsonl:3  line 4: no text: column 'text' is null or missing")
    assert shown.err == HINT


def test_jsonl_is_one_object_a_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "out", "--jsonl"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(record) for record in records] == [{"file", "row", "error"}] * 6
    assert (records[3]["file"], records[3]["row"]) == ("b.jsonl", 1)
    assert records[3]["error"].startswith("line 2: not valid JSON")


def test_summary_counts_reasons_the_most_frequent_first(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["errors", "out", "--summary"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[::2]] == ["4", "2"]
    assert lines[0].startswith("4  line N: not valid JSON: ")
    assert lines[1].startswith("    such as a.jsonl:1  line 2: not valid JSON: ")
    assert main(["errors", "out", "--summary", "--jsonl", "--limit", "1"]) == 0
    [record] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (record["count"], record["example"]["row"]) == (4, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("line 12: bad", "line 99: bad"),
        ("has 1,024 bytes", "has 7 bytes"),
        ("score -1.5", "score -20.25"),
        ("(column 3)", "(column 44)"),
    ],
)
def test_numbers_do_not_tell_two_reasons_apart(one: str, other: str) -> None:
    [reason] = summarize([Failure("a", 0, one), Failure("a", 1, other)])
    assert (reason.count, reason.example.error) == (2, one)


@pytest.mark.parametrize(
    ("one", "other"), [("not int32", "not int64"), ("UTF-8", "UTF-16"), ("col_1", "col_2")]
)
def test_numbers_in_names_do(one: str, other: str) -> None:
    assert len(summarize([Failure("a", 0, one), Failure("a", 1, other)])) == 2


def test_limit_shows_the_first_and_the_hint_counts_all(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["errors", "out", "--limit", "2"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert shown.err == HINT
    assert main(["errors", "out", "--limit", "0"]) == 2
    assert "--limit" in capsys.readouterr().err


def test_only_shards_with_errors_are_read(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = failures.read_columns

    def watching(path: Path, names: list[str]) -> object:
        read.append(path.name)
        assert names == ["_source", "_row", "_error"]
        return real(path, names)

    monkeypatch.setattr(failures, "read_columns", watching)
    assert len(list(read_failures(str(output)))) == 6
    assert read == ["part-000000-000000.parquet", "part-000000-000002.parquet"]


def test_no_failed_row_is_said_and_nothing_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text('{"text": "good"}\n')
    run(config(tmp_path / "good.jsonl", Path("out")))
    assert main(["errors", "out"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "batchinfer: failed rows: none\n")


def test_a_live_or_stopped_run_is_listed_as_far_as_it_is(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(output):
        assert main(["errors", "out"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    run_partly(config(tmp_path / "in", tmp_path / "partly"), 15)
    assert main(["errors", "partly"]) == 0
    assert len(capsys.readouterr().out.splitlines()) in (3, 6)


def test_a_file_name_cannot_break_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two\nlines.jsonl").write_text("no json\n")
    run(config("two\nlines.jsonl", Path("out")))
    main(["errors", "out"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(r"two\nlines.jsonl:0  ")


def test_a_damaged_shard_is_one_line_and_exit_74(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = output / "data" / "part-000000-000000.parquet"
    column = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
    path.write_bytes(content)
    assert main(["errors", "out"]) == 74
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert "part-000000-000000.parquet: damaged" in line


def test_what_is_no_run_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["errors", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_closed_pipe_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("no json\n" * 5000)
    run(config(tmp_path / "bad.jsonl", tmp_path / "out", chunk_rows=1000))
    command = f"({sys.executable} -m batchinfer errors out; echo $? >&2) | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("bad.jsonl:0  line 1: ")
    assert done.stderr.splitlines() == ["0"]


def test_help_says_from_where_rows_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "--help"]) == 0
    assert "rows count from 0" in " ".join(capsys.readouterr().out.split())
