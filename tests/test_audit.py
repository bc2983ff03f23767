"""audit: rows computed again, each alone in float32, beside what was written."""

from __future__ import annotations

import gzip
import itertools
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

from batchinfer import RunConfig, audit, run
from batchinfer.auditing.differences import Difference, difference
from batchinfer.auditing.sampling import choose_rows
from batchinfer.batching import make_batches
from batchinfer.core import BatchBudget, Chunk, ChunkId, Position
from batchinfer.engines import create_encoder, create_engine, describe_model
from batchinfer.engines.cpu import PrepackedLinear
from batchinfer.engines.fake import FakeDetokenizer, FakeEngine
from batchinfer.engines.kv_cache import RoomyLayer
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from batchinfer.tasks.classify import Classify
from batchinfer.tuning import accuracy
from batchinfer.writers.committed import committed_shards
from batchinfer.writers.run_folder import RunFolder, require_plan
from tests.conftest import Cli, read_output
from tests.engines import made
from tests.test_run import config, rows, run_partly, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", rows())


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    run(config(source, tmp_path / "out"))
    return tmp_path / "out"


def moved(
    monkeypatch: pytest.MonkeyPatch, job: RunConfig, *, flips: int = 0, shift: float = 0.0
) -> None:
    """A run whose engine flips the labels of its first rows, and shifts every score."""
    answer, left = FakeEngine.answer, [flips]

    def wrong(self: FakeEngine, batch: Any) -> Any:
        answers = answer(self, batch)
        count = min(left[0], len(batch))
        answers.values["label"][:count] = 1 - answers.values["label"][:count]
        answers.values["score"][:] += np.float32(shift)
        left[0] -= count
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "answer", wrong)
        run(job)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- what holds ------------------------------------------------------------------------------------


def test_a_run_that_answered_as_one_row_alone_is_the_same_to_the_last_bit(output: Path) -> None:
    before = contents(output)
    found = audit(output)
    assert (found.num_rows, found.num_answered, found.num_changed) == (45, 45, 0)
    assert (found.exit_code, found.complaints, found.worst) == (0, [], ())
    assert [column.column for column in found.columns] == ["predicted_label", "predicted_score"]
    label, score = found.columns
    assert (label.flips, label.largest_difference) == (0, None)
    assert (score.flips, score.largest_difference, score.largest_relative) == (None, 0.0, 0.0)
    assert found.to_text().endswith("they are the same to the last bit")
    assert contents(output) == before, "an audit changes nothing"


PAIRS = [
    {"text": f"row {i} [MASK]", "other": f"{i}", "many": ["a", "b", str(i)][: i % 4]}
    for i in range(40)
]
JOBS: dict[str, dict[str, Any]] = {
    "classify": {"task": "classify", "all_scores": True},
    "embed": {"task": "embed", "embedding_dtype": "float16"},
    "token-classify": {"task": "token-classify"},
    "score": {"task": "score", "text_pair_column": "other"},
    "score of lists": {"task": "score", "text_pair_column": "many", "top_k": 2},
    "fill-mask": {"task": "fill-mask"},
    "generate": {"task": "generate"},
    "seq2seq": {"task": "seq2seq"},
    "zero-shot": {"task": "zero-shot", "labels": ("x", "y", "z"), "output_prefix": "its_"},
}


@pytest.mark.parametrize("job", JOBS)
def test_every_task_is_compared_by_the_types_of_its_columns(job: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in" / "rows.jsonl", PAIRS)
    run(config(source, tmp_path / "out", **JOBS[job]))
    found = audit(tmp_path / "out", sample=25)
    assert (found.num_rows, found.num_changed, found.exit_code) == (25, 0, 0)
    compared = {name for column in found.columns for name in column.column.split(", ")}
    answers = [f.name for f in require_plan(tmp_path / "out").output_schema]
    assert compared == {n for n in answers if not n.startswith("_")} - set(PAIRS[0])


def test_labels_and_their_scores_are_compared_together(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in" / "rows.jsonl", PAIRS)
    run(config(source, tmp_path / "out", **JOBS["zero-shot"]))
    names = [column.column for column in audit(tmp_path / "out").columns]
    assert names == ["its_predicted_label", "its_predicted_score", "its_labels, its_scores"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_an_unfinished_run_is_audited_as_far_as_it_is(ending: str, tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows(200)).encode()
    source = tmp_path / f"rows{ending}"
    source.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    run_partly(config(source, tmp_path / "out"), 40)
    done = read_output(tmp_path / "out").num_rows
    found = audit(tmp_path / "out")
    assert 0 < found.num_rows == found.num_answered == done < 200
    assert found.exit_code == 0


# -- which rows ------------------------------------------------------------------------------------


def test_the_sample_is_of_all_shards_and_the_same_for_the_same_seed(output: Path) -> None:
    shards = committed_shards(output, require_plan(output))
    chosen = choose_rows(shards, 9, seed=3)
    assert sorted(chosen) == [ChunkId(0, i) for i in range(5)]
    assert sum(map(len, chosen.values())) == 9
    assert chosen == choose_rows(shards, 9, seed=3) != choose_rows(shards, 9, seed=4)
    everything = choose_rows(shards, 10**6, seed=0)
    assert {c: len(r) for c, r in everything.items()} == {c: s.num_rows for c, s in shards.items()}
    assert all(rows == tuple(range(len(rows))) for rows in everything.values())


def test_rows_without_an_answer_are_not_drawn(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {i}"}) if i % 3 else '{"text"' for i in range(45)]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines) + "\n")
    run(config(source, tmp_path / "out"))
    chosen = choose_rows(committed_shards(tmp_path / "out", require_plan(tmp_path / "out")), 99, 0)
    assert {10 * chunk.chunk + row for chunk, rows in chosen.items() for row in rows} == {
        i for i in range(45) if i % 3
    }
    found = audit(tmp_path / "out")
    assert (found.num_rows, found.num_answered, found.num_failed) == (30, 30, 0)


def test_where_no_row_has_an_answer_there_is_nothing_to_audit(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text"\n' * 5)
    run(config(tmp_path / "rows.jsonl", tmp_path / "out"))
    with pytest.raises(UsageError, match="no row has an answer yet"):
        audit(tmp_path / "out")


# -- what does not hold ----------------------------------------------------------------------------


def test_flipped_labels_and_moved_scores_are_found_with_their_rows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(monkeypatch, config(source, tmp_path / "out"), flips=3, shift=0.01)
    found = audit(tmp_path / "out")
    label, score = found.columns
    assert (label.flips, found.num_changed, found.exit_code) == (3, 45, 65)
    assert label.complaint == "3 of 45 rows differ, more than 0.5%"
    assert score.largest_difference == pytest.approx(0.01, abs=1e-6)
    assert not score.complaint
    clean = {row["_row"]: row for row in _answers_of(source, tmp_path / "clean")}
    flipped = found.worst[:3]
    for one in flipped:
        change = one.changes[0]
        assert (one.file, change.column) == ("rows.jsonl", "predicted_label")
        assert change.after == clean[one.row]["predicted_label"] != change.before
    assert all(row.changes[0].column == "predicted_score" for row in found.worst[3:])
    assert f"rows.jsonl:{flipped[0].row}  predicted_label: {flipped[0].changes[0].before} -> " in (
        found.to_text()
    )


def _answers_of(source: Path, output: Path) -> list[dict[str, Any]]:
    run(config(source, output))
    return read_output(output).to_pylist()


def test_the_limits_are_those_of_tune_and_can_be_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(monkeypatch, config(source, tmp_path / "out"), flips=1, shift=0.01)
    assert audit(tmp_path / "out", max_flips=1 / 45).exit_code == 0
    assert audit(tmp_path / "out", max_flips=1 / 46).exit_code == 65
    assert audit(tmp_path / "out", max_flips=1, max_difference=0.009).exit_code == 65
    limits = audit(tmp_path / "out").limits
    assert (limits.max_flips, limits.max_difference, limits.min_cosine) == (
        accuracy.MAX_FLIPS, accuracy.MAX_MOVEMENT, accuracy.MIN_COSINE,
    )  # fmt: skip


def test_vectors_are_judged_by_their_cosine(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeEngine.answer

    def turned(self: FakeEngine, batch: Any) -> Any:
        answers = answer(self, batch)
        answers.values["embedding"][:, 0] *= np.float32(1.2)
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "answer", turned)
        run(config(source, tmp_path / "out", task="embed"))
    found = audit(tmp_path / "out")
    [column] = found.columns
    assert (column.flips, found.exit_code) == (None, 65)
    assert column.smallest_cosine is not None and 0.9 < column.smallest_cosine < 0.999
    assert "smallest cosine" in column.complaint
    assert "one at a cosine of" in str(found.worst[0])
    assert audit(tmp_path / "out", min_cosine=0.9).exit_code == 0


def rewritten(
    monkeypatch: pytest.MonkeyPatch, job: RunConfig, change: Callable[[int, str], str]
) -> None:
    """A run that writes other texts: what `change` makes of a row's number and its text."""
    decode, seen = FakeDetokenizer.decode, itertools.count()

    def wrong(self: FakeDetokenizer, ids: Any, **how: Any) -> list[str]:
        return [change(next(seen), text) for text in decode(self, ids, **how)]

    with monkeypatch.context() as patch:
        patch.setattr(FakeDetokenizer, "decode", wrong)
        run(job)


def test_of_a_text_that_is_written_the_beginning_is_judged(
    source: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(row: int, text: str) -> str:
        if row < 9:
            return "another " + text
        return text + " \x1b\nand more" if len(text) > 24 else text

    rewritten(monkeypatch, config(source, tmp_path / "out", task="generate"), change)
    found = audit(tmp_path / "out")
    text, *others = found.columns
    assert text.other_words == 9 and text.flips is not None and text.flips > 10
    assert [column.other_words for column in others] == [None, None]
    assert (found.num_changed, found.complaints) == (text.flips, []), "9 of 45 are 20 %"
    assert all(": another " in str(row) for row in found.worst[:9]), "those first"
    change_of_last = found.worst[9].changes[0]
    assert change_of_last.before == change_of_last.after + " \\x1b\\nand more"
    assert change_of_last.after.startswith("…") and len(change_of_last.after) == 21
    found = audit(tmp_path / "out", max_other_words=0.19)
    assert found.exit_code == 65
    assert found.complaints == [
        "generated_text: 9 of 45 rows begin with another word, more than 19.0%"
    ]
    done = cli("audit", "out", "--max-other-words", "0.19")
    heading, line, *_ = done.stdout.splitlines()
    assert done.returncode == 65 and heading.endswith("  other words")
    assert line.endswith("  9 (20.0%)")


def test_words_that_fill_a_mask_are_judged_as_those_that_begin_a_text(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in" / "gaps.jsonl", PAIRS)
    rewritten(
        monkeypatch,
        config(source, tmp_path / "out", task="fill-mask", top_k=1, chunk_rows=1),
        lambda row, text: text if row >= 8 else "another",
    )
    found = audit(tmp_path / "out")
    assert found.columns[0].other_words == found.columns[0].flips == 8 and not found.complaints
    assert audit(tmp_path / "out", max_other_words=0.19).exit_code == 65


def test_a_row_that_can_no_longer_be_answered_is_told(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeEngine.answer

    def without_one(self: FakeEngine, batch: Any) -> Any:
        answers = answer(self, batch)
        if batch.max_length > 6:
            answers.values["score"][:] = np.nan
        return answers

    monkeypatch.setattr(FakeEngine, "answer", without_one)
    found = audit(output)
    assert found.num_failed > 0
    assert found.complaints == [
        f"rows that have an answer and cannot be answered again: {found.num_failed}"
    ]
    assert "_error: none -> the model's answer is NaN or infinite" in str(found.worst[0])


# -- how values are compared -----------------------------------------------------------------------

RANKED = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
VECTOR = pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(
    ("kind", "before", "after", "expected"),
    [
        (pa.string(), "a", "a", Difference()),
        (pa.string(), "a", "b", Difference(flipped=True)),
        (pa.int64(), 7, 8, Difference(flipped=True)),
        (pa.string(), None, None, Difference()),
        (pa.string(), "a", None, Difference(flipped=True)),
        (pa.float64(), 2.0, 1.0, Difference(moved=1.0, relative=0.5, size=1.0)),
        (pa.float64(), 0.0, 0.0, Difference()),
        (pa.float64(), float("nan"), float("nan"), Difference()),
        (pa.float64(), float("inf"), 1.0, Difference(flipped=True)),
        (VECTOR, [3.0, 4.0], [3.0, 4.0], Difference(size=4.0, cosine=1.0)),
        (VECTOR, [1.0, 0.0], [0.0, 1.0], Difference(False, 1.0, 2**0.5, 1.0, 0.0)),
        (VECTOR, [0.0, 0.0], [0.0, 0.0], Difference(cosine=1.0)),
        (VECTOR, [0.0, 0.0], [1.0, 0.0], Difference(False, 1.0, 1.0, 1.0, 0.0)),
        # Numbers whose squares are 0.
        (VECTOR, [1e-200, 0.0], [0.0, 1e-200], Difference(False, 1e-200, 2**0.5, 1e-200, 0.0)),
        (VECTOR, [1e-200, 0.0], [2.0, 0.0], Difference(False, 2.0, 1.0, 2.0, 1.0)),
        (pa.list_(pa.float32()), [1.0, 2.0], [1.0], Difference(flipped=True)),
        (pa.list_(pa.float32()), [1.0, 2.0], [1.0, 4.0], Difference(False, 2.0, 0.5, 4.0)),
        (pa.list_(pa.string()), ["a", "b"], ["b", "a"], Difference(flipped=True)),
        (pa.list_(pa.string()), [], [], Difference()),
        (pa.bool_(), True, False, Difference(flipped=True)),
    ],
)  # fmt: skip
def test_a_value_is_compared_by_its_type(
    kind: Any, before: Any, after: Any, expected: Difference
) -> None:
    found = difference(kind, before, after)
    assert found.flipped == expected.flipped and found.cosine == expected.cosine
    for name in ("moved", "relative", "size"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_of_equally_good_labels_any_may_stand_first() -> None:
    one, other = {"label": "a", "score": 0.4}, {"label": "b", "score": 0.375}
    swapped = [{"label": "b", "score": 0.4375}, {"label": "a", "score": 0.4}]
    assert difference(RANKED, [one, other], swapped) == Difference(
        moved=0.0625, relative=0.0625 / 0.4375, size=0.4375
    )
    assert difference(RANKED, [one, other], [one, {"label": "c", "score": 0.3}]).flipped
    assert difference(RANKED, [one], [one, other]).flipped


# -- what is refused -------------------------------------------------------------------------------


def test_an_input_that_changed_is_refused(output: Path, source: Path, tmp_path: Path) -> None:
    kept = source.read_bytes()
    os.utime(source, (1, 1))
    assert audit(output).exit_code == 0, "merely touched"
    source.write_bytes(kept.replace(b"row 11", b"row 99"))
    with pytest.raises(
        JobMismatchError, match="rows.jsonl: changed since rows of it were answered"
    ):
        audit(output)
    source.write_bytes(kept + b'{"text": "more"}\n')
    with pytest.raises(JobMismatchError, match="rows.jsonl: changed since the job was planned"):
        audit(output)
    source.unlink()
    with pytest.raises(JobMismatchError, match="rows.jsonl: was there when the job was planned"):
        audit(output)


def test_a_damaged_shard_and_one_of_another_job_are_refused(output: Path, tmp_path: Path) -> None:
    path = output / "data" / "part-000000-000001.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept[:-20])
    with pytest.raises(StorageError, match=r"part-000000-000001.parquet: is damaged.*resume"):
        audit(output)
    other = write_jsonl(tmp_path / "other" / "rows.jsonl", rows(30))
    run(config(other, tmp_path / "second"))
    shutil.copy(tmp_path / "second" / "data" / path.name, path)
    with pytest.raises(JobMismatchError, match="belongs to another job"):
        audit(output)


def test_what_a_job_trusts_must_be_trusted_again(source: Path, tmp_path: Path) -> None:
    run(config(source, tmp_path / "out", trust_remote_code=True, allow_pickle=True))
    with pytest.raises(UsageError, match=r"batchinfer audit .*out --trust-remote-code"):
        audit(tmp_path / "out")
    with pytest.raises(UsageError, match=r"batchinfer audit .*out --allow-pickle"):
        audit(tmp_path / "out", trust_remote_code=True)
    assert audit(tmp_path / "out", trust_remote_code=True, allow_pickle=True).exit_code == 0


def test_a_live_run_is_not_disturbed(output: Path) -> None:
    with (
        RunFolder(output),
        pytest.raises(Interrupted, match="a run is at work here.*audit it when"),
    ):
        audit(output)
    assert audit(output).exit_code == 0


def test_a_task_that_cannot_be_audited_says_so(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classify, "obstacle_to_audit", "it draws its answers by lot")
    with pytest.raises(UsageError, match="--task classify cannot be audited: it draws its answers"):
        audit(output)


def test_an_audit_that_is_stopped_says_so(output: Path) -> None:
    stop = StopSignal()
    stop.set()
    with pytest.raises(Interrupted, match="the audit was stopped; nothing was changed"):
        audit(output, stop=stop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": 0}, "--sample: should be 1 or more"),
        ({"seed": -1}, "--seed: should be 0 or more"),
        ({"max_flips": 1.5}, "--max-flips: should be from 0 to 1, got 1.5"),
        ({"max_difference": float("nan")}, "--max-difference: should be 0 or more, got nan"),
        ({"min_cosine": -0.5}, "--min-cosine: should be from 0 to 1"),
        ({"max_other_words": 2}, "--max-other-words: should be from 0 to 1"),
    ],
)
def test_a_setting_that_is_none_is_told(
    arguments: dict[str, Any], message: str, output: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        audit(output, **arguments)


# -- real models -----------------------------------------------------------------------------------

HEAD = "ForSequenceClassification"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_model(tmp_path_factory.mktemp("bert"), "bert", HEAD, num_labels=3)


def real(model: Path, folder: Path, **settings: Any) -> RunConfig:
    texts = [{"text": text} for text in made.texts(60, seed=8)]
    source = write_jsonl(folder / "texts.jsonl", texts)
    job = {"engine": "local", "model": str(model), "device": "cpu", "max_batch_tokens": 512}
    return config(source, folder / "out", **{**job, "chunk_rows": 25, **settings})


def test_packed_rows_of_float32_hold_and_those_of_bfloat16_are_seen(
    model: Path, tmp_path: Path
) -> None:
    run(real(model, tmp_path / "a", dtype="float32"))
    found = audit(tmp_path / "a" / "out", device="cpu")
    score = found.columns[1].largest_difference
    assert (found.reference, found.device, found.exit_code) == ("float32", "cpu", 0)
    assert score is not None and score < 1e-5
    run(real(model, tmp_path / "b", dtype="bfloat16"))
    rounded = audit(tmp_path / "b" / "out", device="cpu", max_flips=1, max_difference=1)
    assert (rounded.reference, rounded.dtype, rounded.exit_code) == ("float32", "bfloat16", 0)
    assert rounded.columns[1].largest_difference > 100 * score  # type: ignore[operator]


def test_rows_are_computed_again_by_the_plain_model_alone(model: Path, tmp_path: Path) -> None:
    job = real(model, tmp_path, dtype="float32", task="classify")
    spec, folder = describe_model(job)
    engine: Any = create_engine(job, create_task(spec), folder, plain=True)
    assert (engine.is_packed, engine.streams) == (False, 1)
    layers = [type(module).__name__ for module in engine.model.modules()]
    assert "Linear" in layers and PrepackedLinear.__name__ not in layers
    assert engine.model.config._attn_implementation == "sdpa"
    engine.close()


@pytest.mark.parametrize(
    ("architecture", "temperature"), [("llama", 0.0), ("llama", 2.0), ("t5", 2.0)]
)
def test_texts_are_written_again_and_draws_drawn_again(
    architecture: str, temperature: float, tmp_path: Path
) -> None:
    model = made.make_writer(tmp_path / "model", architecture)
    writing = {"temperature": temperature, "max_new_tokens": 8, "max_batch_rows": 8}
    run(real(model, tmp_path, dtype="float32", **writing))
    found = audit(tmp_path / "out", device="cpu", sample=12)
    assert (found.num_rows, found.num_failed, found.columns[0].flips) == (12, 0, 0)
    texts = read_output(tmp_path / "out").column("generated_text").to_pylist()
    assert len(set(texts)) > 25


def test_masks_are_filled_again(tmp_path: Path) -> None:
    model = made.make_model(tmp_path / "model", "bert", "ForMaskedLM")
    template = "[MASK] {{ text[:99] }}"
    run(real(model, tmp_path, dtype="float32", task="fill-mask", template=template))
    found = audit(tmp_path / "out", device="cpu", sample=20)
    assert [column.flips for column in found.columns] == [0, None, 0, None]
    assert found.exit_code == 0


@pytest.mark.parametrize("plain", [True, False])
def test_texts_are_written_again_by_the_plain_model(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = []
    update = RoomyLayer.update

    def watch(layer: RoomyLayer, *args: Any) -> Any:
        roomy.append(layer)
        return update(layer, *args)

    monkeypatch.setattr(RoomyLayer, "update", watch)
    job = real(made.make_writer(tmp_path / "model", "llama"), tmp_path, dtype="float32")
    spec, folder = describe_model(job)
    task = create_task(spec, job)
    engine: Any = create_engine(job, task, folder, plain=plain)
    layers = {type(module).__name__ for module in engine.model.modules()}
    assert (PrepackedLinear.__name__ in layers) is not plain
    table = pa.table({"text": ["bade lo"]})
    chunk = Chunk(ChunkId(0, 0), table, {}, Position(), Position(), True, "")
    requests = task.encode(chunk, create_encoder(job, spec, folder))
    [batch] = make_batches(ChunkId(0, 0), requests, BatchBudget(1, 1))
    engine.answer(batch)
    assert bool(roomy) is not plain
    engine.close()


def test_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    run(real(copy, tmp_path, dtype="float32"))
    made.make_model(copy, "bert", HEAD, num_labels=3, seed=1)
    with pytest.raises(JobMismatchError, match="the model's files differ.*put it back"):
        audit(tmp_path / "out", device="cpu")
    shutil.rmtree(copy)
    with pytest.raises(Exception, match="no such model folder") as error:
        audit(tmp_path / "out", device="cpu")
    assert error.value.exit_code == 69  # type: ignore[attr-defined]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_exits_by_the_limits(
    source: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(monkeypatch, config(source, tmp_path / "out"), flips=1)
    done = cli("audit", "out", "--sample", "45")
    assert done.returncode == 65
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "column", "flips", "largest", "difference", "relative", "smallest", "cosine",
    ]  # fmt: skip
    assert lines[1].split() == ["predicted_label", "1", "(2.2%)", "-", "-", "-"]
    assert "they do not hold" in lines[-1]
    assert "predicted_label: 1 of 45 rows differ" in done.stdout
    fine = cli("audit", "out", "--max-flips", "0.1", "--quiet")
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")


def test_json_has_all_of_it(
    source: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(monkeypatch, config(source, tmp_path / "out"), flips=1)
    done = cli("audit", "out", "--json", "--quiet")
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_code"], report["num_changed"]) == (65, 65, 1)
    assert report["columns"][0]["flips"] == 1
    [worst] = report["worst"]
    assert (worst["file"], worst["changes"][0]["column"]) == ("rows.jsonl", "predicted_label")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "not a run folder"),
        (["out", "--sample", "0"], 2, "--sample"),
        (["out", "--max-flips", "x"], 2, "--max-flips"),
        (["out", "--max-flips", "2"], 2, "from 0 to 1"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], code: int, words: str, output: Path, cli: Cli
) -> None:
    done = cli("audit", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert words in line


def test_names_from_outside_cannot_write_to_the_terminal(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in" / "a\x1b[31m.jsonl", rows(5))
    moved(monkeypatch, config(source, tmp_path / "out"), flips=1)
    done = cli("audit", "out")
    assert "\x1b" not in done.stdout and "a\\x1b[31m.jsonl:" in done.stdout


def test_parquet_is_read_again_too(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {i}" for i in range(33)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    run(config(tmp_path / "a.parquet", tmp_path / "out"))
    assert audit(tmp_path / "out").num_changed == 0
