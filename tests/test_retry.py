"""`resume --retry-errors`: only the failed rows are answered again, and only their shards change."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, resume, run, verify
from batchinfer.core import ERROR, Answers, Batch, Shard
from batchinfer.engines.base import HOPELESS
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import Interrupted, JobMismatchError, StorageError
from batchinfer.stop import StopSignal
from batchinfer.writers.footer import read_footer
from tests.conftest import Cli, read_output, shard_bytes

NUM_ROWS = 45
ILL = "illness"


@pytest.fixture
def ill(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An engine that raises where a text holds `ILL`; undo it for one that is cured."""
    healthy = FakeEngine.answer

    def answer(self: FakeEngine, batch: Batch) -> Answers:
        if ILL.encode() in batch.fields["input_ids"].tobytes():
            raise ValueError("ill")
        return healthy(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "answer", answer)
        yield patch


def write_rows(path: Path, ill: tuple[int, ...]) -> Path:
    rows = [
        {
            "id": i,
            "tags": [{"n": i}] * (i % 3),
            "score": None if i % 5 == 0 else i / 7,
            "text": f"row {i} " * (i % 7) + (ILL if i in ill else ""),
        }
        for i in range(NUM_ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(source: Path, output: Path, **settings: Any) -> RunConfig:
    return RunConfig(
        inputs=(str(source),), output=str(output), engine="fake", workers=0,
        **{"chunk_rows": 10, "max_batch_tokens": 64, **settings},
    )  # fmt: skip


def footers(output: Path) -> dict[int, Shard]:
    shards = [read_footer(path)[0] for path in sorted((output / "data").glob("*.parquet"))]
    return {shard.id.chunk: shard for shard in shards}


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_cured_rows_get_their_answers_where_they_stand(
    task: str, ill: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", ill=(3, 24, 29))
    run(config(source, tmp_path / "out", task=task))
    before = shard_bytes(tmp_path / "out")
    ill.undo()
    report = resume(tmp_path / "out", retry_errors=True)
    assert (report.retried_rows, report.cured_rows, report.num_errors) == (3, 3, 0)
    assert report.new_rows == 3

    run(config(source, tmp_path / "healthy", task=task))
    table, healthy = read_output(tmp_path / "out"), read_output(tmp_path / "healthy")
    assert table.equals(healthy)
    after = shard_bytes(tmp_path / "out")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"part-000000-000000.parquet", "part-000000-000002.parquet"}
    found = footers(tmp_path / "out")
    assert {k: shard.revision for k, shard in found.items()} == {0: 1, 1: 0, 2: 1, 3: 0, 4: 0}
    whole = footers(tmp_path / "healthy")
    assert [found[k].num_tokens for k in range(5)] == [whole[k].num_tokens for k in range(5)]


def test_failed_rows_of_a_compressed_file_are_tried_again(
    ill: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = write_rows(tmp_path / "in.jsonl", ill=(3, 24, 29, 44))
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(plain.read_bytes()))
    run(config(source, tmp_path / "out"))
    ill.undo()
    report = resume(tmp_path / "out", retry_errors=True)
    assert (report.retried_rows, report.cured_rows, report.new_rows) == (4, 4, 4)
    run(config(source, tmp_path / "healthy"))
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "healthy"))


def test_only_the_failed_rows_are_put_through_the_model(
    ill: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3, 24, 29)), tmp_path / "out"))
    ill.undo()
    seen: list[int] = []
    healthy = FakeEngine.answer

    def answer(self: FakeEngine, batch: Batch) -> Answers:
        seen.append(len(batch))
        return healthy(self, batch)

    monkeypatch.setattr(FakeEngine, "answer", answer)
    resume(tmp_path / "out", retry_errors=True)
    assert sum(seen) == 3


def test_rows_that_fail_again_leave_every_byte_as_it_was(
    ill: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sick = tuple(range(0, NUM_ROWS, 2))
    assert len(sick) > HOPELESS  # not the model's fault: other rows have answers
    run(config(write_rows(tmp_path / "in.jsonl", ill=sick), tmp_path / "out"))
    before = shard_bytes(tmp_path / "out")
    report = resume(tmp_path / "out", retry_errors=True)
    assert (report.retried_rows, report.cured_rows) == (len(sick), 0)
    assert shard_bytes(tmp_path / "out") == before


def test_bad_input_stays_an_error_beside_a_cured_row(
    ill: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", ill=(3,))
    lines = source.read_text().splitlines()
    lines[4] = "{broken"
    source.write_text("\n".join(lines) + "\n")
    run(config(source, tmp_path / "out"))
    ill.undo()
    report = resume(tmp_path / "out", retry_errors=True)
    assert (report.retried_rows, report.cured_rows, report.num_errors) == (2, 1, 1)
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert [row for row, why in enumerate(errors) if why] == [4]


def test_missing_chunks_and_failed_rows_are_done_in_one_go(
    ill: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3, 24)), tmp_path / "out"))
    (tmp_path / "out" / "data" / "part-000000-000002.parquet").unlink()
    ill.undo()
    report = resume(tmp_path / "out", retry_errors=True)
    assert (report.retried_rows, report.cured_rows, report.new_rows) == (1, 1, 11)
    assert read_output(tmp_path / "out")["_row"].to_pylist() == list(range(NUM_ROWS))
    assert report.num_errors == 0


def test_without_failed_rows_nothing_happens(tmp_path: Path) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=()), tmp_path / "out"))
    before = shard_bytes(tmp_path / "out")
    assert "nothing was left to do" in resume(tmp_path / "out", retry_errors=True).to_text()
    assert shard_bytes(tmp_path / "out") == before


def test_a_retry_that_is_stopped_says_how_to_go_on(ill: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3, 24)), tmp_path / "out"))
    ill.undo()
    stop = StopSignal()
    stop.set()
    with pytest.raises(Interrupted, match="--retry-errors"):
        resume(tmp_path / "out", retry_errors=True, stop=stop)
    assert (tmp_path / "out" / "data" / "_SUCCESS").exists()  # every row is durable, as before


def test_success_is_taken_back_while_shards_are_replaced(
    ill: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3,)), tmp_path / "out"))
    ill.undo()
    success = tmp_path / "out" / "data" / "_SUCCESS"
    seen = []
    healthy = FakeEngine.answer

    def answer(self: FakeEngine, batch: Batch) -> Answers:
        seen.append(success.exists())
        return healthy(self, batch)

    monkeypatch.setattr(FakeEngine, "answer", answer)
    resume(tmp_path / "out", retry_errors=True)
    assert seen == [False]
    assert success.exists()


def test_an_input_that_was_edited_is_refused(ill: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ill=(3,))
    run(config(source, tmp_path / "out"))
    ill.undo()
    source.write_text(source.read_text().replace("row 5", "row X"))
    with pytest.raises(JobMismatchError, match="changed since rows of it were answered"):
        resume(tmp_path / "out", retry_errors=True)


def test_a_damaged_shard_names_the_way_out(
    ill: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3,)), tmp_path / "out"))
    shard = tmp_path / "out" / "data" / "part-000000-000000.parquet"
    before = shard_bytes(tmp_path / "out")
    content = bytearray(shard.read_bytes())
    group = pq.read_metadata(shard).row_group(0)
    [page] = [
        group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == ERROR
    ]
    content[page.data_page_offset + page.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StorageError, match="resume --verify"):
        resume(tmp_path / "out", retry_errors=True)
    resume(tmp_path / "out", verify=True)
    assert shard_bytes(tmp_path / "out") == before
    assert list((tmp_path / "out" / "_batchinfer" / "quarantine").iterdir())


def test_a_folder_with_replaced_shards_is_sound(ill: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(config(write_rows(tmp_path / "in.jsonl", ill=(3, 24)), tmp_path / "out"))
    ill.undo()
    resume(tmp_path / "out", retry_errors=True)
    found = verify(str(tmp_path / "out"))
    assert not found.findings
    assert found.exit_code == 0
