"""Damage of every kind: verify names it, and no resume loses or doubles a row.

One finished folder is made for all tests; each damages a copy of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, Verification, resume, run, verify
from batchinfer.errors import BatchInferError, JobMismatchError
from batchinfer.plan import Plan
from batchinfer.writers.footer import KEY, FooterError, read_footer, read_pages, seal
from tests.conftest import read_output, shard_bytes

NUM_SHARDS = 5
#: The third shard: its rows are the last five of a.jsonl and the first five of b.jsonl.
MIDDLE = 2


def shard_path(output: Path, chunk: int) -> Path:
    return output / "data" / f"part-000000-{chunk:06d}.parquet"


def plan_path(output: Path) -> Path:
    return output / "_batchinfer" / "plan.json"


def job(inputs: Path, output: Path, **settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "inputs": (str(inputs),),
        "output": str(output),
        "engine": "fake",
        "workers": 0,
        "chunk_rows": 10,
        "max_length": 8,
        "types": {"id": "int64"},
    }
    return RunConfig(**{**defaults, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over two files, with failed, cut and rescued rows in every other shard."""
    folder = tmp_path_factory.mktemp("whole")
    for name, count in (("a", 25), ("b", 20)):
        lines = [json.dumps({"id": i, "text": f"{name} {i} " * (i % 11)}) for i in range(count)]
        lines[1] = '{"id": "one", "text": "rescued"}'
        lines[-2] = "{broken"
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    report = run(job(folder / "in", folder / "out"))
    assert (report.num_rows, report.num_shards, report.num_errors) == (45, NUM_SHARDS, 2)
    assert report.num_truncated
    assert verify(folder / "out").findings == ()
    return folder


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder, to be damaged."""
    shutil.copytree(whole / "out", tmp_path / "out")
    return tmp_path / "out"


def flip(path: Path, position: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def files_of(found: Verification) -> set[str]:
    return {Path(finding.file).name for finding in found.findings}


def mend(output: Path) -> None:
    """Do what the findings say: what cannot be believed goes, and resume makes it again."""
    for finding in verify(output).findings:
        path = Path(finding.file)
        if path.parent.name == "data" and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resume(output)


# -- plan.json -------------------------------------------------------------------------------------


def assert_plan_is_found(output: Path) -> None:
    found = verify(output)
    assert [Path(finding.file).name for finding in found.findings] == ["plan.json"]
    assert found.exit_code == 65
    assert "damaged" in str(found.findings[0])
    before = shard_bytes(output)
    with pytest.raises(BatchInferError, match=r"plan\.json: damaged"):
        resume(output)
    assert shard_bytes(output) == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_plan_is_one_finding(share: float, output: Path) -> None:
    os.truncate(plan_path(output), int(plan_path(output).stat().st_size * share))
    assert_plan_is_found(output)


@pytest.mark.parametrize("content", [b"[1]", b"{}", b"null", b"\xff\xfe", b'{"checksum": "0"}'])
def test_what_is_no_plan_is_one_finding(content: bytes, output: Path) -> None:
    plan_path(output).write_bytes(content)
    assert_plan_is_found(output)


def test_a_flip_of_any_byte_of_the_plan_is_seen(output: Path) -> None:
    content = plan_path(output).read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(BatchInferError, match="damaged"):
            Plan.from_json(bytes(damaged), "plan.json")
    for position in range(0, len(content), 997):
        flip(plan_path(output), position)
        assert_plan_is_found(output)
        flip(plan_path(output), position)
    assert verify(output).findings == ()


def test_the_plan_of_another_job_is_one_finding(whole: Path, output: Path, tmp_path: Path) -> None:
    run(job(whole / "in", tmp_path / "other", max_length=7))
    shutil.copy(plan_path(tmp_path / "other"), plan_path(output))
    [finding] = verify(output).findings
    assert "another job than the 5 shards" in finding.what
    before = shard_bytes(output)
    with pytest.raises(JobMismatchError):
        resume(output)
    assert shard_bytes(output) == before


# -- the bytes of a shard --------------------------------------------------------------------------


def test_a_flip_of_any_byte_of_a_shard_is_seen(output: Path) -> None:
    path = shard_path(output, MIDDLE)
    content = path.read_bytes()
    unseen = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read_footer(path)
            read_pages(path)
        except FooterError:
            continue
        unseen.append(position)
    assert unseen == []


def test_verify_names_the_shard_in_which_a_byte_was_flipped(output: Path) -> None:
    path = shard_path(output, MIDDLE)
    for position in range(0, path.stat().st_size, 173):
        flip(path, position, 0x10)
        found = verify(output, inputs=False)
        assert files_of(found) == {path.name}, position
        assert "damaged" in found.findings[0].what
        flip(path, position, 0x10)


def test_resume_behind_a_flipped_byte_loses_and_doubles_nothing(
    whole: Path, tmp_path: Path
) -> None:
    """The shard behind the damaged one is missing: where it begins is what the damaged one says."""
    intact = shard_bytes(whole / "out")
    length = shard_path(whole / "out", 1).stat().st_size
    footer = shard_path(whole / "out", 1).read_bytes().index(b'"next": ')
    for position in [*range(0, length, length // 12), *range(footer + 8, footer + 24)]:
        output = tmp_path / str(position)
        shutil.copytree(whole / "out", output)
        flip(shard_path(output, 1), position)
        shard_path(output, MIDDLE).unlink()
        resume(output)
        left = shard_bytes(output)
        assert {n: c for n, c in left.items() if n != shard_path(output, 1).name} == {
            n: c for n, c in intact.items() if n != shard_path(output, 1).name
        }, position
        mend(output)
        assert shard_bytes(output) == intact, position


@pytest.mark.parametrize("size", [1, 4, 7, 8, 12, 100, -1, -4, -8, -9, -300])
def test_a_truncated_shard_is_found_and_made_again(size: int, whole: Path, output: Path) -> None:
    path = shard_path(output, MIDDLE)
    os.truncate(path, size if size > 0 else path.stat().st_size + size)
    assert files_of(verify(output)) == {path.name}
    resume(output)
    assert shard_bytes(output) == shard_bytes(whole / "out")


def test_bytes_behind_the_end_of_a_shard_are_found(whole: Path, output: Path) -> None:
    with shard_path(output, MIDDLE).open("ab") as file:
        file.write(b"\0" * 10)
    assert files_of(verify(output)) == {shard_path(output, MIDDLE).name}
    resume(output)
    assert shard_bytes(output) == shard_bytes(whole / "out")


def test_a_text_that_looks_like_the_digests_of_a_footer_is_a_text(tmp_path: Path) -> None:
    forged = f'"body": "{"0" * 64}", "seal": "{"1" * 64}"}}'
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": forged, "id": 1}) + "\n")
    run(job(tmp_path / "in.jsonl", tmp_path / "out"))
    assert forged.encode() in shard_path(tmp_path / "out", 0).read_bytes()
    assert verify(tmp_path / "out").findings == ()


# -- whole files -----------------------------------------------------------------------------------


def emptied(output: Path) -> None:
    os.truncate(shard_path(output, MIDDLE), 0)


def deleted(output: Path) -> None:
    shard_path(output, MIDDLE).unlink()


def last_deleted(output: Path) -> None:
    shard_path(output, NUM_SHARDS - 1).unlink()


def swapped(output: Path) -> None:
    one, other = shard_path(output, 1), shard_path(output, 3)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def copied_over_another(output: Path) -> None:
    shutil.copy(shard_path(output, 1), shard_path(output, MIDDLE))


def copied_behind_the_end(output: Path) -> None:
    shutil.copy(shard_path(output, 1), shard_path(output, 7))


def copied_to_another_segment(output: Path) -> None:
    shutil.copy(shard_path(output, 1), output / "data" / "part-000001-000000.parquet")


def foreign_parquet_as_a_shard(output: Path) -> None:
    pq.write_table(pa.table({"text": ["not ours"]}), shard_path(output, MIDDLE))


def foreign_parquet_beside(output: Path) -> None:
    pq.write_table(pa.table({"text": ["not ours"]}), output / "data" / "extra.parquet")


def a_text_beside(output: Path) -> None:
    (output / "data" / "notes.txt").write_text("mine")


def a_folder_as_a_shard(output: Path) -> None:
    shard_path(output, 9).mkdir()


def another_jobs_shard(output: Path) -> None:
    inputs = Path(json.loads(plan_path(output).read_bytes())["config"]["inputs"][0])
    run(job(inputs, output.parent / "other", max_length=7))
    shutil.copy(shard_path(output.parent / "other", MIDDLE), shard_path(output, MIDDLE))


def written_by_another_version(output: Path) -> None:
    rewrite(shard_path(output, MIDDLE), lambda table: table, segment=None, next=None)


def part(chunk: int) -> str:
    return f"part-000000-{chunk:06d}.parquet"


@pytest.mark.parametrize(
    ("damage", "named", "words"),
    [
        (emptied, {part(2)}, "torn"),
        (deleted, {part(2)}, "missing, though _SUCCESS"),
        (last_deleted, {part(4)}, "missing, though _SUCCESS"),
        (swapped, {part(1), part(3)}, "under another name"),
        (copied_over_another, {part(2)}, f"is {part(1)} under another name"),
        (copied_behind_the_end, {part(7)}, f"is {part(1)} under another name"),
        (copied_to_another_segment, {"part-000001-000000.parquet"}, "the job does not have"),
        (foreign_parquet_as_a_shard, {part(2)}, "not written by this version of batchinfer"),
        (foreign_parquet_beside, {"extra.parquet"}, "not written by batchinfer"),
        (a_text_beside, {"notes.txt"}, "not written by batchinfer"),
        (a_folder_as_a_shard, {part(9)}, "no regular file"),
        (another_jobs_shard, {part(2)}, "another job"),
        (written_by_another_version, {part(2)}, "not written by this version"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_is_not_the_shard_it_should_be_is_found(
    damage: Callable[[Path], None], named: set[str], words: str, whole: Path, output: Path
) -> None:
    damage(output)
    found = verify(output)
    assert (files_of(found), found.exit_code) == (named, 65)
    assert all(words in finding.what for finding in found.findings)
    assert all(finding.advice for finding in found.findings)
    before = files_in(output)
    try:
        resume(output)
    except BatchInferError:
        assert files_in(output) == before, "what is refused stays as it is"
        mend(output)
    assert shard_bytes(output) == shard_bytes(whole / "out")
    assert verify(output).findings == ()


def files_in(output: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (output / "data").iterdir() if p.is_file()}


# -- rows that were tampered with, under checksums that are right ----------------------------------


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **footer: Any) -> None:
    """Write a shard anew with other rows, with page checksums and a seal that fit them."""
    table = change(pq.read_table(path, partitioning=None))
    document = json.loads(table.schema.metadata[KEY]) if table.schema.metadata else {}
    zeros = {"body": "0" * 64, "seal": "0" * 64}
    document = {k: v for k, v in {**document, **footer, **zeros}.items() if v is not None}
    sink = pa.BufferOutputStream()
    metadata = {KEY: json.dumps(document).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    path.write_bytes(seal(sink.getvalue()))


def rows_at(*rows: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.take(pa.array(rows, pa.int64()))


def with_values(name: str, **values: Any) -> Callable[[pa.Table], pa.Table]:
    """Other values in one column, by row: with_values("id", r3=7)."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).to_pylist()
        for row, value in values.items():
            column[int(row[1:])] = value
        index = table.schema.get_field_index(name)
        return table.set_column(
            index, table.schema.field(name), pa.array(column, table.schema.field(name).type)
        )

    return change


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


def in_another_order(table: pa.Table) -> pa.Table:
    return table.select(table.column_names[::-1])


def as_another_type(table: pa.Table) -> pa.Table:
    field = table.schema.get_field_index("id")
    return table.set_column(field, "id", table.column("id").cast(pa.int32()))


def with_one_more(table: pa.Table) -> pa.Table:
    return table.append_column("more", pa.array(np.arange(table.num_rows)))


def unchanged(table: pa.Table) -> pa.Table:
    return table


#: What was done to which shard, and what is said. Shard 1 is rows 10 to 19 of a.jsonl, all sound.
TAMPERED: list[tuple[str, int, Callable[[pa.Table], pa.Table], dict[str, Any], str]] = [
    ("doubled", 1, rows_at(0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9), {}, "holds 11 rows, says 10"),
    ("doubled, said", 1, rows_at(*range(10), 9), {"num_rows": 11}, "11 rows, where 10 were due"),
    ("dropped", 1, rows_at(*range(9)), {}, "holds 9 rows, says 10"),
    ("dropped, said", 1, rows_at(*range(9)), {"num_rows": 9}, "9 rows, where 10 were due"),
    ("last dropped", 4, rows_at(0, 1, 2, 3), {"num_rows": 4}, "comes next"),
    ("all of the last dropped", 4, rows_at(), {"num_rows": 0}, "holds no row"),
    ("doubled for another", 1, rows_at(0, 1, 2, 2, *range(4, 10)), {}, "a.jsonl:12, where a.jsonl:13"),
    ("two exchanged", 1, rows_at(1, 0, *range(2, 10)), {}, "a.jsonl:11, where a.jsonl:10 was due"),
    ("reversed", 1, rows_at(*range(9, -1, -1)), {}, "a.jsonl:19, where a.jsonl:10 was due"),
    ("files exchanged", 2, rows_at(5, 6, 7, 8, 9, 0, 1, 2, 3, 4), {}, "a.jsonl:20, where b.jsonl:5"),
    ("all moved by one", 1, lambda t: renumbered(t, 1), {}, "a.jsonl:11, where a.jsonl:10 was due"),
    ("from another file", 1, with_values("_source", r4="b.jsonl"), {}, "b.jsonl:14, where a.jsonl:14"),
    ("from no input", 1, with_values("_source", r4="c.jsonl"), {}, "c.jsonl:14, where a.jsonl:14"),
    ("without a source", 1, with_values("_source", r4=None), {}, "rows without _source or _row"),
    ("without a number", 1, with_values("_row", r0=None), {}, "rows without _source or _row"),
    ("a number changed", 1, with_values("_row", r9=20), {}, "a.jsonl:20, where a.jsonl:19 was due"),
    ("another text", 1, with_values("text", r6="forged"), {}, "'text' is not the input's from a.jsonl:16"),
    ("a text lost", 1, with_values("text", r9=None), {}, "'text' is not the input's from a.jsonl:19"),
    ("another value", 1, with_values("id", r0=-1), {}, "'id' is not the input's from a.jsonl:10"),
    ("an error hidden", 2, with_values("_error", r3=None), {}, "0 rows with an error"),
    ("an error made up", 1, with_values("_error", r3="no"), {}, "1 rows with an error"),
    ("tokens changed", 1, with_values("_num_tokens", r3=99), {}, "tokens, where its footer says"),
    ("cut or not", 1, with_values("_truncated", r0=False), {}, "truncated rows, where its footer"),
    ("rescued made up", 1, with_values("_rescued_data", r0='{"x": 1}'), {}, "rescued values"),
    ("rescued no JSON", 1, with_values("_rescued_data", r0="x"), {}, "rescued values"),
    ("rescued changed", 0, with_values("_rescued_data", r1='{"id": "two"}'), {}, "column '_rescued_data'"),
    ("a column lost", 1, without("predicted_label"), {}, "predicted_label is missing"),
    ("a column more", 1, with_one_more, {}, "more is one more"),
    ("columns moved", 1, in_another_order, {}, "another order"),
    ("another type", 1, as_another_type, {}, "id is int32, not int64"),
    ("footer: first row", 1, unchanged, {"first_row": 11}, "wrong number to its first row"),
    ("footer: start", 1, unchanged, {"start": [0, 1, 2, 10]}, "but the shard before it ends at"),
    ("footer: next", 4, unchanged, {"next": [1, 1, 20, 20]}, "made from other rows than stand there"),
    ("footer: next in front", 4, unchanged, {"next": [1, 0, 0, 0]}, "b.jsonl:0 comes next"),
    ("footer: file", 4, unchanged, {"next": [7, 0, 0, 20]}, "a file that the job does not have"),
    ("footer: digest", 1, unchanged, {"digest": "0" * 64}, "made from other rows than stand there"),
    ("footer: end too early", 1, unchanged, {"ends_segment": True}, "behind the last rows of a.jsonl"),
    ("footer: no end", 4, unchanged, {"ends_segment": False}, "5 rows, where 10 were due"),
]  # fmt: skip


def renumbered(table: pa.Table, by: int) -> pa.Table:
    numbers = pa.array(np.asarray(table.column("_row")) + by)
    return table.set_column(1, table.schema.field("_row"), numbers)


@pytest.mark.parametrize(
    ("chunk", "change", "footer", "words"),
    [case[1:] for case in TAMPERED],
    ids=[case[0] for case in TAMPERED],
)
def test_tampered_rows_are_found_though_every_checksum_is_right(
    chunk: int,
    change: Callable[[pa.Table], pa.Table],
    footer: dict[str, Any],
    words: str,
    whole: Path,
    output: Path,
) -> None:
    rewrite(shard_path(output, chunk), change, **footer)
    found = verify(output)
    assert found.exit_code == 65
    assert words in found.to_text()
    shard_path(output, chunk).unlink()
    resume(output)
    assert shard_bytes(output) == shard_bytes(whole / "out")


def test_a_rewrite_that_changes_no_row_is_no_finding(output: Path) -> None:
    rewrite(shard_path(output, 1), unchanged)
    assert verify(output).findings == ()
    assert read_output(output).num_rows == 45


def test_a_shard_that_was_written_again_without_its_seal_is_found(output: Path) -> None:
    path = shard_path(output, 1)
    pq.write_table(pq.read_table(path, partitioning=None), path)
    assert files_of(verify(output)) == {path.name}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_errors", "x"), ("num_rows", -1), ("start", [0, "a", 0, 0]), ("next", [0, 1]),
        ("next", 7), ("rescued", {"text": "many"}), ("rescued", []), ("ends_segment", 1),
        ("digest", None), ("chunk", 1.5), ("revision", True), ("segment", 10**30),
    ],
)  # fmt: skip
def test_a_forged_footer_is_one_line_and_never_believed(
    field: str, value: Any, output: Path
) -> None:
    """A seal has no key, so that anybody can make one."""
    shard = shard_path(output, 0)
    file = pq.ParquetFile(shard)
    document = json.loads(file.metadata.metadata[KEY])
    document[field] = value
    document["body"] = document["seal"] = "0" * 64
    table = file.read().replace_schema_metadata({KEY: json.dumps(document).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    shard.write_bytes(seal(sink.getvalue()))
    with pytest.raises(JobMismatchError, match="not written by this version"):
        resume(output)
