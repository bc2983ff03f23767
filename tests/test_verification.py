"""verify: what it proves of a sound folder, and what it says of one that is not finished or sound."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import inputs, resume, run, verify
from batchinfer.errors import Interrupted, StorageError, UsageError
from batchinfer.readers import listing
from batchinfer.verification import chain
from batchinfer.writers import holders
from batchinfer.writers.run_folder import RunFolder
from tests.conftest import Cli, shard_bytes
from tests.test_run import config, rows, run_partly, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", rows())


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    run(config(source, tmp_path / "out"))
    return tmp_path / "out"


def shard(output: Path, chunk: int, segment: int = 0) -> Path:
    return output / "data" / f"part-{segment:06d}-{chunk:06d}.parquet"


# -- what is sound ---------------------------------------------------------------------------------


def test_a_finished_run_is_sound(output: Path) -> None:
    found = verify(output)
    assert found.findings == ()
    assert (found.num_input_rows, found.num_rows, found.num_shards) == (45, 45, 5)
    assert (found.exit_code, found.to_text()) == (0, "45 rows in, 45 rows out, each once: OK")


def several_files(folder: Path) -> dict[str, Any]:
    """Empty files first, last and between; chunks that span several."""
    for name, count in (("a", 0), ("b", 7), ("c", 0), ("d", 0), ("e", 1), ("f", 25), ("g", 0)):
        write_jsonl(folder / f"{name}.jsonl", rows(count))
    return {}


def a_limit(folder: Path) -> dict[str, Any]:
    for name in "abc":
        write_jsonl(folder / f"{name}.jsonl", rows(15))
    return {"limit": 20}


def no_rows(folder: Path) -> dict[str, Any]:
    write_jsonl(folder / "a.jsonl", [])
    return {}


def a_full_last_chunk(folder: Path) -> dict[str, Any]:
    write_jsonl(folder / "a.jsonl", rows(20))
    return {}


def bad_rows(folder: Path) -> dict[str, Any]:
    (folder / "a.jsonl").write_bytes(
        b'{"id": 1, "text": "a"}\n{"id"\n\n[1]\n{"id": 3}\n{"id": "x", "text": "y"}\n\xff\n' * 4
    )
    return {"types": {"id": "int64"}}


def csv_with_quoted_line_breaks(folder: Path) -> dict[str, Any]:
    lines = [f'{i},"text {i}\nover two lines, ""quoted"""\r\n' for i in range(23)]
    (folder / "a.csv").write_text("id,text\r\n" + "".join(lines) + "1,2,3,4\r\n", newline="")
    return {}


def compressed_csv(folder: Path) -> dict[str, Any]:
    pd.DataFrame(rows(25)).to_csv(folder / "a.csv.gz", index=False)
    return {}


def parquet_of_many_types(folder: Path) -> dict[str, Any]:
    """Types that Parquet gives back as others, and values that are not equal to themselves."""
    count = 25
    times = np.arange(count) * 86_400
    table = pa.table(
        {
            "text": [f"row {i}" for i in range(count)],
            "seconds": pa.array(times, pa.timestamp("s")),
            "nanoseconds": pa.array(times, pa.timestamp("ns", "Europe/Madrid")),
            "date": pa.array(times * 1000, pa.date64()),
            "time": pa.array((times % 1000).tolist(), pa.time32("s")),
            "float": pa.array([float("nan") if i % 3 else -0.0 for i in range(count)]),
            "nested": pa.array([{"a": [float("nan"), None], "b": None if i % 2 else "x"}
                                for i in range(count)]),
            "bytes": pa.array([b"\xff\0"] * count),
            "category": pa.array(["x", "y", None, "x", "y"] * 5).dictionary_encode(),
            "large": pa.array(["x"] * count, pa.large_string()),
            "none": pa.nulls(count),
            "fixed": pa.array([[1.0, 2.0]] * count, pa.list_(pa.float32(), 2)),
        }
    )  # fmt: skip
    pq.write_table(table, folder / "a.parquet", row_group_size=7)
    return {}


def parquet_with_a_map(folder: Path) -> dict[str, Any]:
    maps = pa.array([[("key", i)] for i in range(25)], pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table({"text": ["a"] * 25, "map": maps}), folder / "a.parquet")
    return {}


def an_answer_named_like_a_column_that_is_not_kept(folder: Path) -> dict[str, Any]:
    data = [{"predicted_label": f"text {i}", "id": i} for i in range(25)]
    write_jsonl(folder / "a.jsonl", data)
    return {"text_column": "predicted_label", "keep": ("id",)}


def nothing_kept(folder: Path) -> dict[str, Any]:
    write_jsonl(folder / "a.jsonl", rows(25))
    return {"keep": ("none",), "task": "embed", "output_prefix": "my_", "max_length": 2}


@pytest.mark.parametrize("segments", ["grouped", "apart"])
@pytest.mark.parametrize(
    "kind",
    [
        several_files, a_limit, no_rows, a_full_last_chunk, bad_rows, csv_with_quoted_line_breaks,
        compressed_csv, parquet_of_many_types,
        parquet_with_a_map,
        an_answer_named_like_a_column_that_is_not_kept,
        nothing_kept,
    ],
)  # fmt: skip
def test_any_run_is_sound(
    kind: Callable[[Path], dict[str, Any]],
    segments: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if segments == "apart":
        monkeypatch.setattr(listing, "MAX_SMALL_FILE_BYTES", 0)
    (tmp_path / "in").mkdir()
    settings = kind(tmp_path / "in")
    report = run(config(tmp_path / "in", tmp_path / "out", **settings))
    for read in (True, False):
        found = verify(tmp_path / "out", inputs=read)
        assert found.findings == ()
        assert found.num_rows == report.num_rows
        assert found.num_input_rows == (report.num_rows if read else None)


def test_a_run_that_was_stopped_and_resumed_is_sound(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    resume(tmp_path / "out")
    assert verify(tmp_path / "out").findings == ()


def test_a_touched_input_is_compared_and_accepted(source: Path, output: Path) -> None:
    os.utime(source, (1, 1))
    assert verify(output).num_input_rows == 45


def test_hidden_files_are_the_file_systems_own(output: Path) -> None:
    (output / "data" / ".nfs000001").touch()
    assert verify(output).findings == ()


def test_nothing_is_changed(output: Path) -> None:
    shard(output, 1).unlink()
    before = {path: path.stat() for path in output.rglob("*")}
    for path in (output, *before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        verify(output)
        after = {path: path.stat() for path in output.rglob("*")}
    finally:
        for path in (output, *before):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in before.items()
    }


def test_no_more_than_a_chunk_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(write_jsonl(tmp_path / "in.jsonl", rows(200)), tmp_path / "out"))
    held = []
    real = chain.read_pages

    def counting(path: Path) -> pa.Table:
        table = real(path)
        held.append(pa.total_allocated_bytes())
        return table

    monkeypatch.setattr(chain, "read_pages", counting)
    assert verify(tmp_path / "out").num_shards == 20
    assert max(held[3:]) < 2 * min(held[3:])


# -- what is not finished --------------------------------------------------------------------------


def test_an_unfinished_folder_names_resume(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    [finding] = verify(tmp_path / "out").findings
    assert finding.what.startswith("unfinished: ")
    assert "more are missing" in finding.what
    assert finding.advice == f"go on with `batchinfer resume {tmp_path / 'out'}`"


def test_a_folder_that_only_lacks_success_is_unfinished(output: Path) -> None:
    (output / "data" / "_SUCCESS").unlink()
    found = verify(output)
    assert "5 shards with 45 rows are there, but _SUCCESS is missing" in found.to_text()
    (output / "data" / "notes.txt").touch()
    assert len(verify(output).findings) == 2
    (output / "data" / "notes.txt").unlink()
    resume(output)
    assert verify(output).findings == ()


def test_a_folder_without_any_shard_is_unfinished(output: Path) -> None:
    for path in (output / "data").iterdir():
        path.unlink()
    [finding] = verify(output).findings
    assert "unfinished: 0 shards with 0 rows" in finding.what


def test_an_unfinished_folder_is_read_no_further_than_its_shards(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [output / "data" / "_SUCCESS", *(shard(output, k) for k in (2, 3, 4))]:
        path.unlink()
    stops = []
    real = inputs.read_chunks

    def watching(span: Any, *arguments: Any, **options: Any) -> Any:
        stops.append(span.stop)
        return real(span, *arguments, **options)

    monkeypatch.setattr(inputs, "read_chunks", watching)
    verify(output)
    assert stops == [2]


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ((0,), [("000000", "is missing")]),
        ((1, 2), [("000001", "and 1 more are missing")]),
        ((0, 2, 4), [("000000", "is missing"), ("000002", "is missing"), ("000004", "and those")]),
        ((0, 1, 2, 3, 4), [("000000", "and those behind it are missing")]),
    ],
)
def test_missing_shards_while_success_stands_are_findings(
    gone: tuple[int, ...], named: list[tuple[str, str]], output: Path
) -> None:
    for chunk in gone:
        shard(output, chunk).unlink()
    findings = verify(output).findings
    for finding, (number, words) in zip(findings, named, strict=True):
        assert finding.file.endswith(f"part-000000-{number}.parquet")
        assert words in finding.what
        assert "_SUCCESS" in finding.what
    resume(output)
    assert verify(output).findings == ()


# -- the inputs ------------------------------------------------------------------------------------


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"id": 99, "text": "late"}\n')


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"id": 23,', '"id": 24,'))


def blanked(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:20], *(" " * len(line) for line in lines[20:])]) + "\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "cannot be read now (No such file"),
        (appended, "changed since the job was planned (1,"),
        (edited, "000002.parquet was made from other rows than stand there from row 20 on"),
        (blanked, "changed since rows of it were answered"),
    ],
)
def test_a_changed_input_is_one_finding_that_names_no_inputs(
    change: Callable[[Path], None], words: str, source: Path, output: Path
) -> None:
    change(source)
    found = verify(output)
    [finding] = found.findings
    assert (finding.file, found.exit_code) == (str(source), 65)
    assert words in finding.what
    assert "--no-inputs" in finding.advice
    alone = verify(output, inputs=False)
    assert alone.exit_code == 0
    assert alone.to_text() == "45 rows out, each once: OK (the inputs were not read)"


def test_a_truncated_compressed_input_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    pd.DataFrame(rows(45)).to_json(path, orient="records", lines=True)
    run(config(path, tmp_path / "out"))
    content = bytearray(path.read_bytes())
    content[-20:] = bytes(20)
    path.write_bytes(content)
    [finding] = verify(tmp_path / "out").findings
    assert finding.file == str(path)
    assert "--no-inputs" in finding.advice


def test_the_reason_why_an_input_cannot_be_read_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows(15))
    run(config(tmp_path / "in", tmp_path / "out"))
    path = str(tmp_path / "in" / "b.jsonl")

    def reading(*arguments: Any, **options: Any) -> Iterator[Any]:
        raise StorageError(f"{path}: torn; twice", file=path, advice="run again")
        yield

    monkeypatch.setattr(inputs, "read_chunks", reading)
    [finding] = verify(tmp_path / "out").findings
    assert (finding.file, finding.what) == (path, f"{path}: torn; twice")
    assert finding.advice.endswith("--no-inputs")


def test_an_error_of_a_loader_process_keeps_its_parts() -> None:
    error = pickle.loads(pickle.dumps(StorageError("torn", file="a.jsonl", advice="mend it")))
    assert str(error) == "a.jsonl: torn; mend it"
    assert (error.file, error.what, error.advice) == ("a.jsonl", "torn", "mend it")


def test_each_segment_is_compared_though_an_input_of_another_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SMALL_FILE_BYTES", 0)
    for name in "abc":
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows(15))
    run(config(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "in" / "a.jsonl").unlink()
    edited_file = tmp_path / "in" / "c.jsonl"
    edited_file.write_text(edited_file.read_text().replace('"id": 3,', '"id": 4,'))
    names = [Path(finding.file).name for finding in verify(tmp_path / "out").findings]
    assert names == ["a.jsonl", "c.jsonl"]


# -- a live run ------------------------------------------------------------------------------------


def test_a_live_run_is_not_disturbed(output: Path) -> None:
    with RunFolder(output), pytest.raises(Interrupted, match="a run is at work here"):
        verify(output)
    assert verify(output).findings == ()


def test_what_a_run_has_begun_to_mend_is_no_finding(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(output, 1).unlink()
    answers = iter([False, True])
    monkeypatch.setattr(holders, "is_locked", lambda path: next(answers))
    with pytest.raises(Interrupted):
        verify(output)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_a_line_a_finding_and_exits_65(cli: Cli, output: Path) -> None:
    done = cli("verify", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "45 rows in, 45 rows out, each once: OK\n"
    shard(output, 1).unlink()
    (output / "data" / "notes.txt").touch()
    done = cli("verify", "out")
    assert done.returncode == 65
    assert done.stdout.splitlines() == [
        "out/data/notes.txt: was not written by batchinfer; move it out of the run folder: what reads "
        "data/ takes it for a shard",
        "out/data/part-000000-000001.parquet: is missing, though _SUCCESS says that every row is "
        "there; `batchinfer resume out` makes what is missing",
        "2 findings",
    ]


def test_json_is_one_object_with_every_finding(cli: Cli, output: Path) -> None:
    (output / "data" / "notes.txt").touch()
    done = cli("verify", "out", "--json", "--no-inputs")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["num_input_rows"]) == (65, 65, None)
    assert found["findings"][0]["file"] == "out/data/notes.txt"
    assert set(found["findings"][0]) == {"file", "what", "advice"}


def test_twenty_findings_are_printed_and_the_rest_counted(output: Path) -> None:
    for number in range(23):
        (output / "data" / f"notes{number:02d}.txt").touch()
    found = verify(output)
    lines = found.to_text().splitlines()
    assert len(lines) == 22
    assert lines[-2:] == ["… and 3 more (--json has them all)", "23 findings"]
    assert len(found.to_dict()["findings"]) == 23


def test_a_file_name_cannot_break_a_line(output: Path) -> None:
    (output / "data" / "two\nlines\x1b[31m").touch()
    assert r"two\nlines\x1b[31m: was not written" in verify(output).to_text()


def test_what_is_no_run_folder_is_refused(cli: Cli, output: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        verify(output.parent)
    done = cli("verify", "nowhere")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_live_run_exits_75_in_one_line(cli: Cli, output: Path) -> None:
    with RunFolder(output):
        done = cli("verify", "out")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (75, "", 1)
    assert f"pid {os.getpid()}" in done.stderr


@pytest.mark.parametrize("command", ["verify", "errors"])
def test_nothing_heavy_is_imported(command: str, output: Path) -> None:
    trace = (
        "import sys; from batchinfer.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or [n for n in ('torch', 'pandas', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", trace, command, str(output)], capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1:] in (["[]"], ["batchinfer: failed rows: none"]), done.stderr


def test_help_names_the_commands(cli: Cli) -> None:
    done = cli("--help", COLUMNS="100")
    assert " verify " in done.stdout
    assert " errors " in done.stdout


def test_a_sound_folder_has_the_bytes_that_its_job_gives(source: Path, output: Path) -> None:
    """What verify vouches for is what a run from nothing writes."""
    run(config(source, output.parent / "again"))
    assert verify(output).findings == ()
    assert shard_bytes(output) == shard_bytes(output.parent / "again")
