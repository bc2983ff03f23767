"""Rows of the same input: one is asked, all of them are answered, and the output is what it was without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer import RunConfig, infer, resume, run
from batchinfer.auditing import audit
from batchinfer.batching import make_batches
from batchinfer.core import Answers, Batch, BatchBudget, ChunkId, Requests
from batchinfer.duplicates import OncePerText, without_duplicates
from batchinfer.engines.fake import FakeEncoder, FakeEngine
from batchinfer.errors import Interrupted, JobMismatchError, UsageError
from batchinfer.reporting.progress import Rates
from batchinfer.stop import StopSignal
from batchinfer.tokenization import Encoder, Tokens
from batchinfer.writers.run_folder import require_plan
from tests.conftest import ROOT, read_output, shard_bytes

#: The tasks, and what each of them needs to be asked; texts of ten words or more take several windows.
TASKS: dict[str, dict[str, Any]] = {
    "classify": {"all_scores": True},
    "embed": {},
    "token-classify": {},
    "score": {"text_pair_column": "pair"},
    "zero-shot": {"labels": ("sport", "news")},
    "fill-mask": {},
    "generate": {},
    "seq2seq": {},
    "module": {"features": ("number", "word")},
    "classify in windows": {"long": "stride", "max_length": 5, "stride": 1},
    "token-classify in windows": {"long": "stride", "max_length": 5, "stride": 1},
}


class Asked:
    """What the fake engine was asked for; `fails` says which rows it cannot answer."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.calls = 0
        self.fails: Callable[[Batch], bool] = lambda batch: False
        self.before: Callable[[], None] = lambda: None


@contextmanager
def counted() -> Iterator[Asked]:
    asked, answer = Asked(), FakeEngine.answer

    def counting(engine: FakeEngine, batch: Batch) -> Answers:
        asked.before()
        asked.calls += 1
        if asked.fails(batch):
            raise RuntimeError("ill")
        asked.rows += len(batch)
        asked.tokens += batch.num_tokens
        return answer(engine, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "answer", counting)
        yield asked


def frame_of(texts: list[str]) -> pd.DataFrame:
    texts = [f"{text} [MASK]" for text in texts]
    return pd.DataFrame(
        {
            "text": texts,
            "pair": [text[:7] for text in texts],
            "number": [float(len(text) % 3) for text in texts],
            "word": [text[:5] for text in texts],
        }
    )


def write(folder: Path, texts: list[str]) -> str:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def job(tmp_path: Path, texts: list[str], name: str = "out", **others: Any) -> RunConfig:
    chosen: dict[str, Any] = {"engine": "fake", "chunk_rows": 8, "max_batch_rows": 3, **others}
    return RunConfig(inputs=(write(tmp_path, texts),), output=str(tmp_path / name), **chosen)


# -- which requests are the same -------------------------------------------------------------------


def requests_of(inputs: list[list[int]], **others: list[list[int]]) -> Requests:
    cost = np.array([len(one) for one in inputs], np.int32)
    fields = {"input_ids": inputs, **others}
    return Requests(
        row=np.arange(len(inputs), dtype=np.int32),
        cost=cost,
        truncated=cost < 0,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(cost, dtype=np.int64)]),
        fields={
            name: np.array([one for run in values for one in run], np.int32)
            for name, values in fields.items()
        },
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 1)),
        max_size=30,
    )
)
def test_each_request_is_answered_by_the_first_of_its_tokens_and_fields(
    inputs: list[tuple[list[int], int]],
) -> None:
    tokens = [ids for ids, _ in inputs]
    kinds = [[kind] * len(ids) for ids, kind in inputs]
    found = without_duplicates(requests_of(tokens, token_type_ids=kinds))
    wanted = [tuple((*ids, -1, *kind)) for ids, kind in zip(tokens, kinds, strict=True)]
    expected = [wanted.index(one) for one in wanted]
    if len(set(wanted)) == len(wanted):
        assert found.same_as is None
        assert found.asked.tolist() == expected
    else:
        assert found.same_as is not None
        assert found.same_as.tolist() == expected
        assert found.asked.tolist() == sorted(set(expected))


def test_tokens_that_only_run_on_alike_are_not_the_same() -> None:
    assert without_duplicates(requests_of([[1, 2], [3], [1], [2, 3]])).same_as is None


def test_what_is_not_asked_is_in_no_batch() -> None:
    requests = without_duplicates(requests_of([[1], [2, 2], [1], [3, 3], [2, 2]]))
    batches = make_batches(ChunkId(0, 0), requests, BatchBudget(4, 4), asked=requests.asked)
    assert [batch.indices.tolist() for batch in batches] == [[1, 3], [0]]
    assert [batch.fields["input_ids"].tolist() for batch in batches] == [[2, 2, 3, 3], [1]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_of_many_texts_a_sample_says_whether_to_compare_them(share: float) -> None:
    number = 8192
    different = round(number * (1 - share))
    places = np.random.default_rng(1).permutation(np.arange(number) % different)
    texts: Any = pa.array([f"text {place}" for place in places.tolist()], pa.large_string())
    heard = Heard(FakeEncoder(7))
    found, expected = OncePerText(heard).encode(texts, None), FakeEncoder(7).encode(texts, None)
    assert len(heard.texts) == different
    np.testing.assert_array_equal(found.fields["input_ids"], expected.fields["input_ids"])


class Heard:
    """An encoder that notes what it is asked to encode."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.texts: list[str] = []

    def encode(self, texts: Any, pairs: Any) -> Tokens:
        self.texts += texts.to_pylist()
        return self.encoder.encode(texts, pairs)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("windows", [False, True])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_each_text_is_encoded_once_into_the_tokens_it_has(
    paired: bool, windows: bool, data: st.DataObject
) -> None:
    drawn = st.sampled_from(["", "a", "ab cd ef gh", "long " * 20, "[MASK] " * 9])
    rows = data.draw(st.lists(st.tuples(drawn, drawn), max_size=12))
    texts: Any = pa.array([text for text, _ in rows], pa.large_string())
    pairs: Any = pa.array([pair for _, pair in rows], pa.large_string()) if paired else None
    mask = "" if windows else "[MASK]"  # what has no mask is an error of the encoder's
    plain = FakeEncoder(7, notes_places=windows, windows=windows, stride=1, mask_token=mask)
    heard = Heard(plain)
    expected, found = plain.encode(texts, pairs), OncePerText(heard).encode(texts, pairs)
    assert len(heard.texts) == len(set(rows if paired else [text for text, _ in rows]))
    assert found.errors == expected.errors
    for name in ("offsets", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for mine, theirs in ((found.fields, expected.fields), (found.notes, expected.notes)):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(mine[name], values)
    assert (found.windows is None) == (expected.windows is None)
    if found.windows is not None and expected.windows is not None:
        np.testing.assert_array_equal(found.windows.text, expected.windows.text)
        np.testing.assert_array_equal(found.windows.fresh, expected.windows.fresh)


# -- the answers are the same ----------------------------------------------------------------------


@pytest.mark.parametrize("case", TASKS)
@settings(deadline=None, max_examples=12)
@given(
    texts=st.lists(
        st.sampled_from(["", "a", "b b b b b", "long " * 12, "c", "d d " * 9]),
        min_size=1,
        max_size=20,
    )
)
def test_every_task_answers_as_without(case: str, texts: list[str]) -> None:
    task, chosen = case.split(" ")[0], TASKS[case]
    frame = frame_of(texts)
    with counted() as each:
        expected = infer(frame, engine="fake", task=task, dedup="off", **chosen)
    with counted() as once:
        found = infer(frame, engine="fake", task=task, dedup="chunk", **chosen)
    pd.testing.assert_frame_equal(found, expected)
    if len(set(texts)) < len(texts):
        assert once.rows < each.rows


MODELS = {
    "tiny-sentiment": {"task": "classify", "all_scores": True},
    "tiny-entities": {"task": "token-classify"},
    "tiny-entailment": {"task": "zero-shot", "labels": ("sport", "food")},
    "tiny-reranker": {"task": "score", "text_pair_column": "pair"},
    "tiny-gaps": {"task": "fill-mask"},
    "tiny-writer": {"task": "generate", "max_new_tokens": 5, "temperature": 0.0},
    "tiny-translator": {"task": "seq2seq", "max_new_tokens": 5},
}


@pytest.mark.parametrize("model", MODELS)
def test_models_answer_as_without(model: str) -> None:
    texts = [f"The {word} [MASK] was good" for word in ("train", "cheap hotel", "book", "meal")]
    frame = pd.DataFrame({"text": texts * 3, "pair": [text[:12] for text in texts] * 3})
    place, chosen = str(ROOT / "sample_data" / model), {"dtype": "float32", **MODELS[model]}
    expected = infer(frame, place, dedup="off", **chosen)
    found = infer(frame, place, dedup="chunk", **chosen)
    assert not found["_error"].any()
    for name in expected.columns.drop("_error"):
        for one, other in zip(found[name], expected[name], strict=True):
            assert alike(one, other), name


def alike(one: Any, other: Any) -> bool:
    """Whether two cells are the same, but for the last digits of a float."""
    if isinstance(one, dict):
        return all(alike(one[name], other[name]) for name in other)
    if isinstance(one, (list, np.ndarray)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, (float, np.floating)):
        return abs(one - other) < 1e-5
    return bool(one == other)


# -- what goes wrong with one goes wrong with all of them ------------------------------------------


def ill_and_well(batch: Batch) -> bool:
    return 3 in batch.lengths  # "ill ill": a start token and two


def test_the_error_of_an_input_is_that_of_all_its_rows(tmp_path: Path) -> None:
    texts = ["a", "ill ill", "b", "ill ill", "c", "a", "ill ill", "d"]
    with counted() as asked:
        asked.fails = ill_and_well
        report = run(job(tmp_path, texts))
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert [why is not None for why in errors] == [text == "ill ill" for text in texts]
    assert (report.num_errors, report.duplicate_rows, asked.rows) == (3, 3, 4)


def test_failed_rows_are_tried_again_once_an_input(tmp_path: Path) -> None:
    texts = ["a", "ill ill", "b", "ill ill", "c", "a", "ill ill", "d"]
    with counted() as asked:
        asked.fails = ill_and_well
        run(job(tmp_path, texts))
    with counted() as asked:
        report = resume(tmp_path / "out", retry_errors=True)
    assert (asked.rows, report.num_errors, report.cured_rows) == (1, 0, 3)
    run(job(tmp_path, texts, "whole", dedup="off"))
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "whole"))


def test_an_answer_that_is_no_number_is_the_error_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeEngine.answer

    def broken(engine: FakeEngine, batch: Batch) -> Answers:
        values = dict(answer(engine, batch).values)
        values["embedding"][batch.lengths == 3] = np.nan
        return Answers(values)

    monkeypatch.setattr(FakeEngine, "answer", broken)
    run(job(tmp_path, ["a", "ill ill", "b", "ill ill"], task="embed"))
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert [why is not None for why in errors] == [False, True, False, True]


# -- the books are right ---------------------------------------------------------------------------


def test_rows_count_when_they_are_answered_and_tokens_when_they_are_computed(
    tmp_path: Path,
) -> None:
    texts = [f"row {i % 5}" for i in range(40)]
    progress = Rates()
    with counted() as asked:
        report = run(job(tmp_path, texts), progress=progress)
    assert asked.rows == 5 * 5, "five chunks of eight rows, five inputs in each"
    assert (report.new_rows, report.duplicate_rows, report.cached_rows) == (40, 15, 0)
    assert report.new_tokens == asked.tokens < report.num_tokens
    assert (progress.num_rows, progress.num_tokens) == (40, asked.tokens)
    assert "15 have the answer of a row with the same input" in report.to_text()
    assert read_output(tmp_path / "out")["_num_tokens"].to_pylist() == [3] * 40


def test_a_row_of_several_requests_counts_where_none_was_asked(tmp_path: Path) -> None:
    progress = Rates()
    chosen = {"task": "zero-shot", "labels": ("sport", "news"), "chunk_rows": 4}
    report = run(job(tmp_path, ["a", "b", "a", "a"], **chosen), progress=progress)
    assert (report.new_rows, report.duplicate_rows, progress.num_rows) == (4, 2, 4)


def test_without_duplicates_all_stays_as_it_was(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(20)]
    for name in ("chunk", "off"):
        report = run(job(tmp_path, texts, name, dedup=name))
        assert report.duplicate_rows == 0 and report.new_tokens == report.num_tokens
        assert "same input" not in report.to_text()
    assert read_output(tmp_path / "chunk").equals(read_output(tmp_path / "off"))


def test_a_stopped_run_goes_on_with_what_its_journal_has(tmp_path: Path) -> None:
    texts = [f"row {i % 9} " * (i % 9) + "." for i in range(48)]
    config = job(tmp_path, texts, task="generate", chunk_rows=24)
    run(config.model_copy(update={"output": str(tmp_path / "whole")}))
    stop = StopSignal()
    with counted() as asked:

        def end() -> None:
            if asked.calls == 4:  # in the second chunk
                stop.set_by(0)
                stop._grace_ends = 0.0

        asked.before = end
        with pytest.raises(Interrupted):
            run(config, stop=stop)
    progress = Rates()
    with counted() as left:
        report = resume(config.output, progress=progress)
    assert 0 < left.rows < 9, "the journal had the others"
    assert asked.rows + left.rows == 18
    assert progress.rows_done + progress.num_rows == 48
    assert report.new_tokens == progress.num_tokens == left.tokens
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_an_audit_asks_about_every_row(tmp_path: Path) -> None:
    run(job(tmp_path, ["a", "b"] * 8))
    with counted() as asked:
        assert audit(tmp_path / "out", sample=16).num_changed == 0
    assert asked.rows == 16


# -- the setting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "resolved"),
    [
        ({}, "chunk"),
        ({"dedup": "off"}, "off"),
        ({"task": "generate"}, "chunk"),
    ],
)
def test_what_auto_means_stands_in_the_plan(
    tmp_path: Path, chosen: dict[str, Any], resolved: str
) -> None:
    run(job(tmp_path, ["a"], **chosen))
    assert require_plan(tmp_path / "out").config.dedup == resolved


def test_it_cannot_change_within_a_job(tmp_path: Path) -> None:
    run(job(tmp_path, ["a"]))
    with pytest.raises(JobMismatchError, match="dedup was chunk, now off"):
        run(job(tmp_path, ["a"], dedup="off"), resume=True)
    with pytest.raises(UsageError, match="cannot change 'dedup'"):
        resume(tmp_path / "out", dedup="off")


def test_rows_that_draw_have_answers_of_their_own() -> None:
    place = str(ROOT / "sample_data" / "tiny-writer")
    drawn = infer(["The hotel"] * 6, place, max_new_tokens=8, temperature=2.0, dtype="float32")
    assert drawn["generated_text"].nunique() > 1
    with pytest.raises(UsageError, match="--dedup chunk: each row draws its own answer"):
        infer(["The hotel"], place, temperature=2.0, dedup="chunk")


def test_tables_are_looked_through_where_that_is_asked_for() -> None:
    frame = pd.DataFrame({"a": [1.0, 1.0, np.nan, np.nan, -0.0, 0.0], "b": list("xxyyzz")})
    chosen: dict[str, Any] = {"engine": "fake", "task": "module", "features": ("a", "b")}
    for dedup, rows in (("auto", 6), ("chunk", 4)):
        with counted() as asked:
            infer(frame, dedup=dedup, **chosen)
        assert asked.rows == rows


@pytest.mark.parametrize(("written", "value"), [("off", "off"), ("chunk", "chunk")])
def test_yaml_may_say_off_without_quotes(tmp_path: Path, written: str, value: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"dedup: {written}\n")
    assert RunConfig.load({}, path, environ={}).dedup == value


def test_columns_of_a_table_are_compared_by_their_bytes() -> None:
    values = np.array([[1, 2], [1, 2], [2, 1]], np.float32)
    requests = requests_of([[0], [0], [0]])
    table = Requests(
        requests.row, requests.cost, requests.truncated, requests.offsets, {"features": values}
    )
    found = without_duplicates(table)
    assert found.same_as is not None and found.same_as.tolist() == [0, 0, 2]
    words: Any = np.array(["x", "y", "x"], dtype=object)
    both = without_duplicates(table.with_field("word", words))
    assert both.same_as is None
