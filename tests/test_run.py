"""run and resume as a user meets them, with the fake engine."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, resume, run
from batchinfer.core import ChunkId
from batchinfer.errors import (
    InputError,
    Interrupted,
    JobMismatchError,
    ModelError,
    StorageError,
    UsageError,
)
from batchinfer.reporting.progress import Rates
from batchinfer.reporting.status import read_status
from batchinfer.stop import StopSignal
from batchinfer.writers.footer import read_footer
from batchinfer.writers.run_folder import RunFolder
from tests.conftest import ROOT, read_output, shard_bytes

NUM_ROWS = 45


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def rows(count: int = NUM_ROWS, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"row {i} " * (i % 7)} for i in range(start, start + count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", rows())


def config(source: Path | str, output: Path, **settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "inputs": (str(source),),
        "output": str(output),
        "engine": "fake",
        "workers": 0,
        "chunk_rows": 10,
        "max_batch_tokens": 64,
    }
    return RunConfig(**{**defaults, **settings})


class StopAfter(Rates):
    """Asks for a stop when so many rows were answered."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.stop = StopSignal()
        self.limit = num_rows

    def answered(self, num_rows: int, num_tokens: int) -> None:
        super().answered(num_rows, num_tokens)
        if self.num_rows >= self.limit:
            self.stop.set()


def run_partly(job: RunConfig, num_rows: int) -> None:
    """Run a job and stop it after about so many rows."""
    progress = StopAfter(num_rows)
    with pytest.raises(Interrupted, match="batchinfer resume"):
        run(job, progress=progress, stop=progress.stop)


# -- what a run leaves -----------------------------------------------------------------------------


def test_every_row_stands_once_in_input_order(source: Path, tmp_path: Path) -> None:
    report = run(config(source, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(NUM_ROWS))
    assert table["_row"].to_pylist() == list(range(NUM_ROWS))
    assert set(table["_source"].to_pylist()) == {"rows.jsonl"}
    assert (report.num_rows, report.num_errors, report.num_shards) == (NUM_ROWS, 0, 5)
    assert report.exit_code == 0


def test_the_answers_do_not_depend_on_chunks_or_batches(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "a"))
    run(config(source, tmp_path / "b", chunk_rows=1000, max_batch_tokens=7, max_batch_rows=3))
    assert read_output(tmp_path / "a").equals(read_output(tmp_path / "b"))


def test_the_folder_holds_shards_and_success_and_its_state_beside_them(
    source: Path, tmp_path: Path
) -> None:
    run(config(source, tmp_path / "out"))
    names = sorted(os.listdir(tmp_path / "out" / "data"))
    assert names == ["_SUCCESS", *(f"part-000000-{k:06d}.parquet" for k in range(5))]
    assert sorted(os.listdir(tmp_path / "out")) == ["_batchinfer", "data"]
    assert not list((tmp_path / "out" / "_batchinfer" / "tmp").iterdir())


def test_shards_depend_on_the_job_alone(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "rows.jsonl"
    elsewhere.parent.mkdir()
    shutil.copy(source, elsewhere)
    run(config(source, tmp_path / "a"))
    run(config(elsewhere, tmp_path / "b"))
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")


def test_a_footer_says_which_rows_it_holds_and_where_the_next_begin(
    source: Path, tmp_path: Path
) -> None:
    run(config(source, tmp_path / "out"))
    data = tmp_path / "out" / "data"
    first, _ = read_footer(data / "part-000000-000000.parquet")
    last, _ = read_footer(data / "part-000000-000004.parquet")
    lines = source.read_bytes().splitlines(keepends=True)
    assert first.next.offset == sum(map(len, lines[:10]))
    assert (first.next.line, first.next.row, first.ends_segment) == (10, 10, False)
    assert (last.num_rows, last.ends_segment) == (5, True)


def test_page_checksums_are_written(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    shard = tmp_path / "out" / "data" / "part-000000-000000.parquet"
    content = bytearray(shard.read_bytes())
    column = pq.read_metadata(shard).row_group(0).column(3)  # the text: one page, no dictionary
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.ParquetFile(shard, page_checksum_verification=True).read()


def test_embeddings_are_lists_of_fixed_size(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out", task="embed"))
    table = read_output(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert table["embedding"].null_count == 0


def test_bad_rows_are_rows_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"id": 1, "text": "good"}\n{"id": 2, "text":\n\n[1]\n{"id": 3}\n{"id": 4, "text": 5}\n'
        b'{"id": 5, "text": "\xff"}\n{"id": 6, "text": ""}\n'
    )
    report = run(config(path, tmp_path / "out", chunk_rows=3))
    table = read_output(tmp_path / "out")
    errors = table["_error"].to_pylist()
    assert table["_row"].to_pylist() == list(range(7))
    assert [error is None for error in errors] == [True, *[False] * 5, True]
    for error, line in zip(errors[1:6], (2, 4, 5, 6, 7), strict=True):
        assert error.startswith(f"line {line}: "), error
    assert table["id"].to_pylist() == [1, None, None, 3, 4, None, 6]
    assert table["predicted_label"].null_count == 5
    assert report.num_errors == 5
    assert report.exit_code == 65


def test_row_errors_within_the_allowance_are_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text"\n')
    assert run(config(path, tmp_path / "a")).exit_code == 65
    assert run(config(path, tmp_path / "b", max_errors="1")).exit_code == 0
    assert run(config(path, tmp_path / "c", max_errors="34%")).exit_code == 0


def test_a_value_that_fits_no_column_is_rescued(tmp_path: Path) -> None:
    many = [{"text": "a", "n": i} for i in range(3000)]
    path = write_jsonl(tmp_path / "in.jsonl", [*many, {"text": "b", "n": "ten", "new": [1]}, *many])
    report = run(config(path, tmp_path / "out", chunk_rows=1000))
    row = read_output(tmp_path / "out").slice(3000, 1).to_pylist()[0]
    assert row["n"] is None
    assert row["_error"] is None
    assert json.loads(row["_rescued_data"]) == {"n": "ten", "new": [1]}
    assert report.rescued == {"n": 1, "new": 1}
    assert "n (1), new (1)" in report.to_text()


def test_nested_columns_pass_through_typed(tmp_path: Path) -> None:
    data = [{"text": str(i), "meta": {"a": i, "tags": ["x", "y"]}} for i in range(5)]
    run(config(write_jsonl(tmp_path / "in.jsonl", data), tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["meta"].to_pylist() == [row["meta"] for row in data]
    assert table.schema.field("meta").type == pa.struct(
        [("a", pa.int64()), ("tags", pa.list_(pa.string()))]
    )


def test_columns_can_be_chosen_and_prefixed(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "a", keep=("id",), output_prefix="my_"))
    names = read_output(tmp_path / "a").schema.names
    assert names[:5] == ["_source", "_row", "id", "my_predicted_label", "my_predicted_score"]
    run(config(source, tmp_path / "b", keep=("none",)))
    assert "text" not in read_output(tmp_path / "b").schema.names


def test_runs_chain(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "first", output_prefix="first_"))
    run(config(tmp_path / "first", tmp_path / "second", task="embed"))
    table = read_output(tmp_path / "second")
    assert table["id"].to_pylist() == list(range(NUM_ROWS))
    assert "first_predicted_label" in table.schema.names
    assert "embedding" in table.schema.names


def test_a_limit_takes_the_first_rows_over_all_files(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 30), ("c", 60)):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows(30, start))
    run(config(tmp_path / "in", tmp_path / "out", limit=47))
    assert read_output(tmp_path / "out")["id"].to_pylist() == list(range(47))


def test_files_of_all_formats_stand_in_order(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(12))
    folder = tmp_path / "in"
    folder.mkdir()
    frame.iloc[:4].to_json(folder / "a.jsonl", orient="records", lines=True)
    frame.iloc[4:8].to_csv(folder / "b.csv", index=False)
    frame.iloc[8:].to_parquet(folder / "c.parquet")
    run(config(folder, tmp_path / "out", types={"id": "int64"}))
    table = read_output(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(12))
    assert sorted(set(table["_source"].to_pylist())) == ["a.jsonl", "b.csv", "c.parquet"]
    assert table["_row"].to_pylist() == [0, 1, 2, 3] * 3


def test_an_empty_input_is_a_finished_run_of_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    report = run(config(path, tmp_path / "out"))
    assert (report.finished, report.num_rows) == (True, 0)
    assert read_output(tmp_path / "out").num_rows == 0


# -- stopping and going on -------------------------------------------------------------------------


def test_a_stopped_run_is_resumed_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "whole"))
    run_partly(config(source, tmp_path / "out"), 15)
    assert read_status(str(tmp_path / "out")).state == "stopped"
    report = resume(tmp_path / "out")
    assert 0 < report.new_rows < NUM_ROWS
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_resume_does_the_missing_chunks_and_no_others(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    data = tmp_path / "out" / "data"
    before = shard_bytes(tmp_path / "out")
    for k in (0, 2, 4):
        (data / f"part-000000-{k:06d}.parquet").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in data.glob("*.parquet")}
    assert read_status(str(tmp_path / "out")).state == "stopped"
    report = resume(tmp_path / "out")
    assert report.new_rows == 25
    assert shard_bytes(tmp_path / "out") == before
    assert {name: (data / name).stat().st_mtime_ns for name in kept} == kept


def test_resume_of_a_finished_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    before = shard_bytes(tmp_path / "out")
    source.unlink()  # nor does it need the input any more
    report = resume(tmp_path / "out")
    assert (report.new_rows, report.exit_code) == (0, 0)
    assert shard_bytes(tmp_path / "out") == before


def test_a_finished_run_gives_its_exit_code_each_time(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text"\n')
    job = config(path, tmp_path / "out")
    assert [run(job).exit_code, run(job).exit_code, resume(tmp_path / "out").exit_code] == [65] * 3


def test_run_on_an_unfinished_folder_names_resume(source: Path, tmp_path: Path) -> None:
    job = config(source, tmp_path / "out")
    run_partly(job, 15)
    with pytest.raises(JobMismatchError, match="batchinfer resume"):
        run(job)
    assert run(job, resume=True).num_rows == NUM_ROWS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_length": 100}, "max_length"),
        ({"task": "embed"}, "task"),
        ({"keep": ("id",)}, "keep"),
        ({"chunk_rows": 11}, "chunk_rows"),
        ({"output_prefix": "x_"}, "output_prefix"),
        ({"limit": 3}, "limit"),
        ({"types": {"id": "string"}}, "types"),
    ],
)
def test_another_job_is_refused_by_the_first_difference(
    change: dict[str, Any], named: str, source: Path, tmp_path: Path
) -> None:
    run(config(source, tmp_path / "out"))
    with pytest.raises(JobMismatchError, match=named):
        run(config(source, tmp_path / "out", **change))


def test_what_does_not_change_answers_may_change(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    resume(tmp_path / "out", max_batch_tokens=500, max_batch_rows=3, workers=0, device="cpu")
    run(config(source, tmp_path / "whole"))
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "whole"))


def test_overwrite_replaces_another_job(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    run(config(source, tmp_path / "out", max_length=3, chunk_rows=20), overwrite=True)
    run(config(source, tmp_path / "fresh", max_length=3, chunk_rows=20))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "fresh")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_refused(
    overwrite: bool, source: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "out" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(JobMismatchError, match="other files"):
        run(config(source, tmp_path / "out"), overwrite=overwrite)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_success_is_taken_back_before_anything_is_done_again(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()

    class Looks(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            assert not (tmp_path / "out" / "data" / "_SUCCESS").exists()

    assert resume(tmp_path / "out", progress=Looks()).finished


def test_an_output_is_not_its_own_input(source: Path, tmp_path: Path) -> None:
    output = source.parent / "out"
    run(config(source.parent, output))
    before = shard_bytes(output)
    run(config(source.parent, output))
    run(config(source.parent, output, output_prefix="z_"), overwrite=True)
    assert read_output(output)["id"].to_pylist() == list(range(NUM_ROWS))
    assert shard_bytes(output).keys() == before.keys()
    with pytest.raises(UsageError, match="its own input"):
        run(config(output / "data", output, output_prefix="z_"), overwrite=True)
    assert read_output(output).num_rows == NUM_ROWS


def test_overwrite_touches_nothing_where_a_strange_file_stands(
    source: Path, tmp_path: Path
) -> None:
    run(config(source, tmp_path / "out"))
    (tmp_path / "out" / "data" / "part-zz.txt").touch()
    before = shard_bytes(tmp_path / "out")
    with pytest.raises(JobMismatchError, match="part-zz"):
        run(config(source, tmp_path / "out", max_length=3), overwrite=True)
    assert shard_bytes(tmp_path / "out") == before


def test_overwrite_replaces_a_damaged_plan(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    (tmp_path / "out" / "_batchinfer" / "plan.json").write_text("[1]")
    with pytest.raises(StorageError, match="damaged"):
        resume(tmp_path / "out")
    assert run(config(source, tmp_path / "out"), overwrite=True).finished


@pytest.mark.parametrize("changes", [{"chunk_rows": 7}, {"foo": 1}, {"model": "x"}])
def test_resume_refuses_what_would_change_the_job(
    changes: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    with pytest.raises(UsageError, match=next(iter(changes))):
        resume(tmp_path / "out", **changes)


def test_a_model_that_cannot_be_loaded_leaves_no_job_behind(source: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ROOT / "sample_data" / "tiny-sentiment", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    job = config(source, tmp_path / "out", engine="local", model=str(model))
    with pytest.raises(ModelError, match="weights"):
        run(job)
    shutil.copy(ROOT / "sample_data" / "tiny-sentiment" / "model.safetensors", weights)
    assert run(job).finished


def test_a_folder_is_held_once_within_a_process(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    with RunFolder(tmp_path / "out"):
        assert read_status(str(tmp_path / "out")).state == "running"
        with pytest.raises(Interrupted, match="at work here"):
            resume(tmp_path / "out")
        assert read_status(str(tmp_path / "out")).state == "running"
    assert read_status(str(tmp_path / "out")).state == "finished"


# -- a changed world -------------------------------------------------------------------------------


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"id": 99, "text": "late"}\n')


def blanked_end(path: Path) -> None:
    """The last rows turn into blank lines: as many bytes, fewer rows."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], *(" " * len(line) for line in lines[5:])]) + "\n")


def same_size_edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"id": 3,', '"id": 4,'))


@pytest.mark.parametrize("change", [append, same_size_edit, blanked_end, Path.unlink])
def test_a_changed_input_is_refused(
    change: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    job = config(source, tmp_path / "out")
    run_partly(job, 15)
    change(source)
    with pytest.raises(JobMismatchError, match=r"rows\.jsonl"):
        resume(tmp_path / "out")
    with pytest.raises((JobMismatchError, InputError), match=r"rows\.jsonl"):
        run(job, resume=True)


def test_a_touched_input_goes_on(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    os.utime(source, (1, 1))
    assert resume(tmp_path / "out").num_rows == NUM_ROWS


def test_an_input_that_changes_under_way_stops_the_run(source: Path, tmp_path: Path) -> None:
    class TouchesUnderWay(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            os.utime(source, (1, 1))

    with pytest.raises(JobMismatchError, match=r"rows\.jsonl"):
        run(config(source, tmp_path / "out"), progress=TouchesUnderWay())
    assert not (tmp_path / "out" / "data" / "_SUCCESS").exists()


def test_a_torn_shard_is_recomputed(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    before = shard_bytes(tmp_path / "out")
    for k, size in ((1, 0), (3, 500)):
        os.truncate(tmp_path / "out" / "data" / f"part-000000-{k:06d}.parquet", size)
    resume(tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == before
    assert len(list((tmp_path / "out" / "_batchinfer" / "quarantine").iterdir())) == 2


def test_a_shard_of_another_job_stops_resume(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out"))
    run(config(source, tmp_path / "other", max_length=3))
    name = "part-000000-000001.parquet"
    shutil.copy(tmp_path / "other" / "data" / name, tmp_path / "out" / "data" / name)
    with pytest.raises(JobMismatchError, match=name):
        resume(tmp_path / "out")


def test_a_strange_file_in_data_stops_resume(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    (tmp_path / "out" / "data" / "notes.txt").touch()
    with pytest.raises(JobMismatchError, match=r"notes\.txt"):
        resume(tmp_path / "out")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b.replace(b"fake", b"fbke", 1)]
)
def test_a_damaged_plan_stops_resume(
    damage: Callable[[bytes], bytes], source: Path, tmp_path: Path
) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    plan = tmp_path / "out" / "_batchinfer" / "plan.json"
    plan.write_bytes(damage(plan.read_bytes()))
    with pytest.raises(StorageError, match=r"plan\.json: damaged"):
        resume(tmp_path / "out")


# -- two at once -----------------------------------------------------------------------------------


def _hold(output: str, held: Any, release: Any) -> None:
    with RunFolder(output):
        held.set()
        release.wait(30)


def test_a_live_run_is_not_disturbed(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "out"), held, release))
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(Interrupted, match=f"pid {holder.pid}"):
            resume(tmp_path / "out")
        assert read_status(str(tmp_path / "out")).state == "running"
    finally:
        release.set()
        holder.join()
    assert resume(tmp_path / "out").finished


def test_a_killed_holder_leaves_no_lock(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "out"), held, release))
    holder.start()
    assert held.wait(30)
    holder.kill()
    holder.join()
    assert resume(tmp_path / "out").finished


# -- readers of the output -------------------------------------------------------------------------


def test_data_is_readable_at_any_moment_with_one_schema(source: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "out" / "data")
    seen: list[int] = []

    class Reads(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            shards = [name for name in os.listdir(data) if name.endswith(".parquet")]
            if not shards:
                return
            counts = [
                ds.dataset(data, format="parquet").to_table().num_rows,
                len(pd.read_parquet(data)),
                duckdb.sql(f"select count(*) from '{data}/*.parquet'").fetchall()[0][0],
                pl.read_parquet(f"{data}/*.parquet").height,
            ]
            assert counts == sorted(counts), "a later reader saw less"
            schemas = {str(pq.read_schema(f"{data}/{name}").remove_metadata()) for name in shards}
            assert len(schemas) == 1
            seen.append(min(counts))

    run(config(source, tmp_path / "out"), progress=Reads())
    assert seen and seen == sorted(seen)
    assert min(seen) < NUM_ROWS


# -- mistakes --------------------------------------------------------------------------------------


def test_a_missing_file_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        run(config(tmp_path / "nowhere.jsonl", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_column_is_told_with_those_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'txt'.*id, text.*did you mean --text-column text"):
        run(config(source, tmp_path / "out", text_column="txt"))
    with pytest.raises(UsageError, match="'idd'.*did you mean --keep id"):
        run(config(source, tmp_path / "out", keep=("idd",)))


def test_a_column_that_is_no_text_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'id' holds int64"):
        run(config(source, tmp_path / "out", text_column="id"))


def test_a_clash_of_columns_names_the_flag(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "a", "predicted_label": "x"}])
    with pytest.raises(UsageError, match="predicted_label.*--output-prefix"):
        run(config(path, tmp_path / "out"))


def test_a_full_disk_is_a_stop_and_not_a_loss(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) == 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Interrupted, match="no space left"):
        run(config(source, tmp_path / "out"))
    assert next(calls) > 20, "the fault did not fire"
    assert resume(tmp_path / "out").num_rows == NUM_ROWS


def test_the_budget_of_a_device_is_frozen_once(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out", max_batch_tokens=None), 15)
    path = tmp_path / "out" / "_batchinfer" / "budget-cpu.json"
    path.write_text('{"max_batch_tokens": 99, "max_batch_rows": 7}')
    report = resume(tmp_path / "out")
    assert report.max_batch_tokens == 99


def test_chunks_are_named_in_the_plan_by_segment(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows(3))
    run(config(tmp_path / "in", tmp_path / "out", chunk_rows=4))
    # small files share a segment; a chunk may span them
    shards = [read_footer(p)[0].id for p in sorted((tmp_path / "out" / "data").glob("*.parquet"))]
    assert shards == [ChunkId(0, 0), ChunkId(0, 1)]
    assert read_output(tmp_path / "out")["_row"].to_pylist() == [0, 1, 2, 0, 1, 2]
