"""Continuous batching: token for token what `generate` makes of each row alone, whatever happens."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from batchinfer import RunConfig, resume, run
from batchinfer.batching import make_batches
from batchinfer.core import Answers, Batch, BatchBudget, ChunkId, Requests
from batchinfer.engines import continuous, manager
from batchinfer.engines.base import DeviceLostError
from batchinfer.engines.continuous import ContinuousEngine
from batchinfer.engines.manager import Manager, obstacle
from batchinfer.engines.models import describe, make_encoder
from batchinfer.tasks import create_task
from batchinfer.tasks.generation import LENGTH, STOP, Generation
from batchinfer.tuning.accuracy import answers_of
from batchinfer.tuning.sample import Sample
from tests.engines import made

NEW_TOKENS = 12
#: Of a chunk, and of a batch.
CHUNK_ROWS, BATCH_ROWS = 32, 8
Found = dict[tuple[int, int], tuple[list[int], int]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in known:
            known[architecture] = made.make_writer(
                tmp_path_factory.mktemp(architecture), architecture
            )
        return known[architecture]

    return folder


def open_engine(folder: Path, **options: Any) -> ContinuousEngine:
    spec, place = describe(str(folder), writing={"max_new_tokens": NEW_TOKENS})
    chosen: dict[str, Any] = {"dtype": "float32", "device": "cpu", "threads": 1, "force": True}
    return ContinuousEngine(create_task(spec), place, **{**chosen, **options})


@pytest.fixture
def others() -> set[threading.Thread]:
    """The threads that are there without the engine: other tests may have left some."""
    return set(threading.enumerate())


@pytest.fixture
def engine(folders: Callable[[str], Path]) -> Iterator[ContinuousEngine]:
    opened = open_engine(folders("llama"))
    assert opened.is_continuous
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def prompts(folders: Callable[[str], Path]) -> list[list[int]]:
    return prompts_of(folders("llama"))


@pytest.fixture(scope="module")
def expected(folders: Callable[[str], Path], prompts: list[list[int]]) -> Found:
    return alone(folders("llama"), prompts)


def prompts_of(folder: Path, count: int = 76) -> list[list[int]]:
    """Prompts of 1 to about 200 tokens."""
    spec, place = describe(str(folder), writing={"max_new_tokens": NEW_TOKENS})
    texts: Any = pa.array(made.texts(count, longest=60), pa.large_string())
    tokens = make_encoder(place, spec).encode(texts, None)
    return [ids.tolist() for ids in np.split(tokens.fields["input_ids"], tokens.offsets[1:-1])]


def place_of(number: int) -> tuple[int, int]:
    return number // CHUNK_ROWS, number % CHUNK_ROWS


def batches_of(prompts: list[list[int]], rows: int = BATCH_ROWS) -> list[Batch]:
    """The batches of several chunks, as the loader makes them."""
    batches = []
    for chunk, begin in enumerate(range(0, len(prompts), CHUNK_ROWS)):
        part = prompts[begin : begin + CHUNK_ROWS]
        cost = np.array([len(ids) for ids in part], np.int32)
        requests = Requests(
            np.arange(len(part), dtype=np.int32), cost, np.zeros(len(part), np.bool_),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(cost, dtype=np.int64)]),
            {"input_ids": np.array([token for ids in part for token in ids], np.int32)},
        )  # fmt: skip
        batches += make_batches(ChunkId(0, chunk), requests, BatchBudget(1 << 20, rows), NEW_TOKENS)
    return batches


def alone(folder: Path, prompts: list[list[int]]) -> Found:
    """The tokens that transformers makes of each prompt alone, and how they end, by chunk and row."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    found = {}
    for number, ids in enumerate(prompts):
        told = model.eval().generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, pad_token_id=1, do_sample=False
        )
        tokens = told[0, len(ids) :].tolist()
        found[place_of(number)] = tokens, STOP if tokens[-1] in ends else LENGTH
    return found


def gathered(streamed: Iterable[tuple[Batch, Answers]]) -> tuple[Found, dict[tuple[int, int], str]]:
    """Answers by chunk and row, and errors; each row once."""
    found: Found = {}
    errors: dict[tuple[int, int], str] = {}
    for batch, answers in streamed:
        places = [(batch.chunk.chunk, int(index)) for index in batch.indices]
        assert not set(places) & (set(found) | set(errors)), "a row was answered twice"
        if answers.error is not None:
            errors |= dict.fromkeys(places, answers.error)
            continue
        ends = np.cumsum(answers.values["count"])[:-1]
        tokens = np.split(answers.values["tokens"], ends)
        for place, ids, finish in zip(places, tokens, answers.values["finish"], strict=True):
            found[place] = ids.tolist(), int(finish)
    return found, errors


def in_thread(engine: ContinuousEngine, raised: Callable[[], Exception | None]) -> None:
    """Have the model fail in the manager's thread with what `raised` says; elsewhere it works."""

    def fail(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and (error := raised()):
            raise error

    engine.model.register_forward_pre_hook(fail)


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_every_row_is_what_generate_makes_of_it_alone(
    folders: Callable[[str], Path], architecture: str
) -> None:
    folder = folders(architecture)
    prompts = prompts_of(folder)
    expected = alone(folder, prompts)
    engine = open_engine(folder)
    batches = batches_of(prompts)
    streamed = list(engine.stream(batches))
    assert engine.is_continuous
    found, errors = gathered(streamed)
    assert found == expected and not errors
    for batch, answers in streamed:
        task = engine.task.answers
        assert {name: v.dtype for name, v in answers.values.items()} == {
            name: np.dtype(field.dtype) for name, field in task.items()
        }
        assert len(answers.values["tokens"]) == answers.values["count"].sum()
        assert len(batch) == len(answers.values["count"])
    # What makes that worth something: rows differ in length and in how they end.
    assert len({len(ids) for ids in prompts}) > 20 and len({len(t) for t, _ in found.values()}) > 5
    assert {finish for _, finish in found.values()} == {STOP, LENGTH}
    # As a process that isolates rows, or a trial of a setting, asks: a batch at a time, again and again.
    first, second = batches[0], batches[-1]
    again, _ = gathered(
        [*engine.stream([first]), (second, engine.answer(second)), *engine.stream([])]
    )
    assert again == {place: expected[place] for place in again} and len(again) > BATCH_ROWS
    engine.close()


def test_rows_that_begin_alike_share_pages_and_are_the_same(
    engine: ContinuousEngine, folders: Callable[[str], Path]
) -> None:
    common = np.random.default_rng(0).integers(6, 800, 300).tolist()
    prompts = [[*common, 7 + row] for row in range(20)] + [common[:280]] * 4
    found, errors = gathered(engine.stream(batches_of(prompts, rows=3)))
    assert found == alone(folders("llama"), prompts) and not errors


def test_a_run_writes_what_it_writes_batch_by_batch(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    texts = [*made.texts(50, longest=40), "", None]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def rows(name: str) -> list[dict[str, Any]]:
        job = RunConfig(
            inputs=(str(source),), model=str(folders("llama")), output=str(tmp_path / name),
            dtype="float32", max_new_tokens=NEW_TOKENS, chunk_rows=16, max_batch_rows=4, threads=1,
            max_errors="100%",
        )  # fmt: skip
        run(job)
        return pq.read_table(tmp_path / name / "data").to_pylist()

    usual = rows("usual")
    forced = force(monkeypatch)
    assert rows("continuous") == usual
    assert [engine.is_continuous for engine in forced] == [True]


def force(monkeypatch: pytest.MonkeyPatch) -> list[ContinuousEngine]:
    """Have jobs batch continuously here, too; the engines that they open."""
    opened = []

    def create(*arguments: Any, **options: Any) -> ContinuousEngine:
        opened.append(ContinuousEngine(*arguments, **options, force=True))
        return opened[-1]

    monkeypatch.setattr(continuous, "ContinuousEngine", create)
    return opened


def test_what_a_run_has_finished_outlives_its_end(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch)
    monkeypatch.setattr(continuous, "ROWS_UNDER_WAY", 8)
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    texts = made.texts(40, longest=30)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    job = RunConfig(
        inputs=(str(source),), model=str(folders("llama")), output=str(output), dtype="float32",
        max_new_tokens=NEW_TOKENS, chunk_rows=40, max_batch_rows=4, threads=1,
    )  # fmt: skip
    asked: list[int] = []
    add, wait = Manager.add, Manager.wait

    def count(self: Manager, number: int, tokens: list[int], most: int) -> None:
        asked.append(number)
        add(self, number, tokens, most)

    def interrupt(self: Manager, seconds: float) -> Any:
        if len(asked) > 28:
            raise KeyboardInterrupt
        return wait(self, seconds)

    monkeypatch.setattr(Manager, "add", count)
    monkeypatch.setattr(Manager, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(Manager, "wait", wait)
    asked.clear()
    resume(str(output))
    assert 8 + 12 <= len(asked) <= 8 + 28, (
        "of 40 rows and 8 of the canary, some were answered before"
    )
    resumed = pq.read_table(output / "data").to_pylist()
    run(job.model_copy(update={"output": str(tmp_path / "whole")}))
    assert resumed == pq.read_table(tmp_path / "whole" / "data").to_pylist()


def test_a_trial_of_a_setting_gets_each_row_s_answer(
    engine: ContinuousEngine, prompts: list[list[int]], expected: Found
) -> None:
    cost = np.array([len(ids) for ids in prompts], np.int32)
    flat = np.array([token for ids in prompts for token in ids], np.int32)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(cost, dtype=np.int64)])
    requests = Requests(
        np.arange(len(prompts), dtype=np.int32), cost, np.zeros(len(prompts), np.bool_), bounds,
        {"input_ids": flat},
    )  # fmt: skip
    rows = np.argsort(-cost, kind="stable")
    values = answers_of(engine, Sample(requests, rows, 1.0), rows, BatchBudget(1 << 20, 16))
    answers = [expected[place_of(row)][0] for row in rows.tolist()]
    assert values["tokens"].tolist() == [tokens[0] for tokens in answers]
    assert values["count"].tolist() == [len(tokens) for tokens in answers]


def test_few_rows_are_under_way_and_leave_as_they_end(
    engine: ContinuousEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "ROWS_UNDER_WAY", 20)
    taken = left = most = 0
    batches = batches_of(prompts, rows=4)

    def feed() -> Iterator[Batch]:
        nonlocal taken, most
        for batch in batches:
            taken += len(batch)
            most = max(most, taken - left)
            yield batch

    first = None
    for batch, _ in engine.stream(feed()):
        left += len(batch)
        first = first or taken
    assert left == len(prompts)
    assert 20 <= most < 20 + 4
    assert first is not None and first <= 24, "the first rows waited for the last ones"
    # Whoever does not take answers is asked for nothing: the next batch is not even read.
    taken = left = 0
    stream = engine.stream(feed())
    next(stream)
    before = taken
    time.sleep(0.3)
    assert taken == before
    stream.close()


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_row_that_fails_takes_no_other_along(
    engine: ContinuousEngine,
    prompts: list[list[int]],
    expected: Found,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(continuous, "ROWS_UNDER_WAY", 16)
    ill = [*prompts]
    ill[40] = [7, 8, 100_000]  # no token of this model
    found, errors = gathered(engine.stream(batches_of(ill, rows=4)))
    sick = place_of(40)
    assert list(errors) == [sick] and "index out of range" in errors[sick]
    assert found == {place: answer for place, answer in expected.items() if place != sick}
    assert engine.is_continuous, "another manager answers what follows"
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1 and "IndexError: index out of range in self" in warned[0]


def test_a_row_without_numbers_takes_no_other_along(
    engine: ContinuousEngine, prompts: list[list[int]], expected: Found, caplog: Any
) -> None:
    used = {token for ids in [*prompts, *(ids for ids, _ in expected.values())] for token in ids}
    [poison, *_] = set(range(900)) - used
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[poison] = torch.nan
    ill = [*prompts]
    ill[40] = [7, 8, poison]
    streamed = list(engine.stream(batches_of(ill)))
    found, errors = gathered(streamed)
    wrong = {
        (batch.chunk.chunk, int(index))
        for batch, answers in streamed
        for index in batch.indices[np.isnan(answers.values["check"])]
    }
    assert wrong == {place_of(40)} and not errors
    assert {**found, place_of(40): None} == {**expected, place_of(40): None}
    assert "a row has scores that are no numbers" in caplog.text


def test_a_manager_that_dies_again_and_again_is_given_up(
    engine: ContinuousEngine,
    prompts: list[list[int]],
    expected: Found,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(continuous, "ROWS_UNDER_WAY", 16)
    in_thread(engine, lambda: torch.OutOfMemoryError("CUDA out of memory."))
    share, began = engine._share, time.monotonic()
    found, errors = gathered(engine.stream(batches_of(prompts)))
    assert found == expected and not errors
    assert not engine.is_continuous and time.monotonic() - began < 60
    assert engine._share < share, "the next one took less memory"
    assert engine.ceiling_tokens is None, "no batch was too large"
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message.endswith("and so is all that follows") for message in warned] == [
        False, False, True,
    ]  # fmt: skip
    # Where one batch is asked for, its error is the batch's, and then it is answered otherwise.
    assert gathered(engine.stream(batches_of(prompts[:4])))[0].items() <= expected.items()


def test_a_batch_that_is_asked_for_alone_raises_what_was_raised(
    engine: ContinuousEngine, prompts: list[list[int]], expected: Found
) -> None:
    [batch] = batches_of(prompts[:4])
    failures = iter([ValueError("ill")])
    in_thread(engine, lambda: next(failures, None))
    with pytest.raises(ValueError, match="ill"):
        engine.answer(batch)
    assert gathered([(batch, engine.answer(batch))])[0].items() <= expected.items()


def test_a_thread_that_is_gone_without_a_word_is_noticed(
    engine: ContinuousEngine,
    prompts: list[list[int]],
    expected: Found,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert engine._manager is not None
    theirs = engine._manager._manager
    theirs.stop(block=True, timeout=30)
    found, errors = gathered(engine.stream(batches_of(prompts)))
    assert found == expected and not errors
    assert "its thread has ended" in caplog.text and engine.is_continuous


def test_a_row_that_comes_back_cut_is_answered_again(
    engine: ContinuousEngine, prompts: list[list[int]], expected: Found, caplog: Any
) -> None:
    assert engine._manager is not None
    theirs = engine._manager._manager
    get = theirs.get_result

    def cut(timeout: float) -> Any:
        result = get(timeout=timeout)
        if result is not None and len(result.generated_tokens) == NEW_TOKENS:
            result.generated_tokens = result.generated_tokens[:1]
        return result

    theirs.get_result = cut
    found, errors = gathered(engine.stream(batches_of(prompts)))
    assert found == expected and not errors
    assert "a row came back after 1 tokens, without an end" in caplog.text


def test_a_lost_device_ends_the_run(
    engine: ContinuousEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_thread(engine, lambda: RuntimeError("CUDA error: an illegal memory access"))
    monkeypatch.setattr(engine, "is_fatal", lambda error: "illegal" in str(error))
    with pytest.raises(DeviceLostError, match="cpu failed: RuntimeError: CUDA error: an illegal"):
        list(engine.stream(batches_of(prompts)))


def test_a_stop_ends_the_stream_with_rows_under_way(
    engine: ContinuousEngine, prompts: list[list[int]]
) -> None:
    found = 0
    for part, _ in engine.stream(batches_of(prompts)):
        found += len(part)
        engine.stopped = lambda: True
    assert 0 < found < len(prompts)
    assert engine._manager is None, "what is under way is dropped"


def test_whoever_stops_leaves_nothing_behind(
    others: set[threading.Thread],
    engine: ContinuousEngine,
    prompts: list[list[int]],
    expected: Found,
) -> None:
    [thread] = set(threading.enumerate()) - others
    assert thread.daemon, "a process would not end without close"
    stream = engine.stream(batches_of(prompts))
    next(stream)
    began = time.monotonic()
    stream.close()
    assert not set(threading.enumerate()) - others and time.monotonic() - began < 30
    assert engine.model.config._attn_implementation == "sdpa"
    found, _ = gathered(engine.stream(batches_of(prompts)))
    assert found == expected, "answers of rows that nobody waits for reach nobody"
    stream = engine.stream(batches_of(prompts))
    next(stream)
    engine.close()
    stream.close()
    assert not set(threading.enumerate()) - others


# -- when it is chosen -----------------------------------------------------------------------------


def test_a_manager_that_writes_otherwise_is_not_used(
    folders: Callable[[str], Path],
    prompts: list[list[int]],
    expected: Found,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wait = Manager.wait

    def other(self: Manager, seconds: float) -> Any:
        # Ends of answers are every twentieth token from 20 on: the next one is none.
        return [(row, [(t + 1) % 900 for t in ids], ends) for row, ids, ends in wait(self, seconds)]

    with monkeypatch.context() as patched:
        patched.setattr(Manager, "wait", other)
        engine = open_engine(folders("llama"))
    assert not engine.is_continuous
    assert "no continuous batching: it takes another token" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    found, _ = gathered(engine.stream(batches_of(prompts[:20])))
    assert found.items() <= expected.items() and len(found) == 20
    engine.close()


def test_only_a_tie_may_be_broken_otherwise(engine: ContinuousEngine) -> None:
    scores = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    best = scores[0].argsort(descending=True).tolist()
    second = scores[1].argmax().item()
    scores[0, best[1]] = scores[0, best[0]] - 1e-4
    judge = partial(engine._difference, [best[0], second], scores)
    assert not judge([best[0], second])
    assert not judge([best[1], 3]), "behind a tie everything differs"
    assert "it takes another token" in judge([best[0], 3])
    assert "it takes another token" in judge([best[2], second])
    assert judge([best[0]]) == "it ends answers elsewhere"


def test_releases_without_it_or_with_another_do_without(
    folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from transformers.generation.continuous_batching.continuous_api import (
        ContinuousBatchingManager,
        ContinuousMixin,
    )

    def another(self: Any, config: Any) -> Any:
        raise AssertionError("is never called so")

    monkeypatch.setattr(ContinuousMixin, "init_continuous_batching", another)
    assert not open_engine(folders("llama")).is_continuous
    assert "no continuous batching: it fails here (TypeError: " in caplog.text
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    monkeypatch.delattr(ContinuousMixin, "init_continuous_batching")
    task, model = loaded(folders("llama"))
    assert "this release of transformers has none" in obstacle(task, model)
    monkeypatch.undo()
    assert not obstacle(task, model)
    monkeypatch.setattr(ContinuousBatchingManager, "stop", lambda self, block, timeout: None)
    assert not open_engine(folders("llama")).is_continuous
    assert "none that can be stopped at once" in caplog.text
    known = manager._configuration({"max_requests_per_batch": 3, "of_another_release": 1})
    assert known.max_requests_per_batch == 3


def loaded(folder: Path) -> tuple[Generation, Any]:
    """A task of a model, and the model."""
    import transformers

    spec, place = describe(str(folder), writing={"max_new_tokens": NEW_TOKENS})
    task = create_task(spec)
    assert isinstance(task, Generation)
    return task, transformers.AutoModelForCausalLM.from_pretrained(place)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, ""),
        ({"repetition_penalty": 1.0, "num_beams": 1, "min_new_tokens": 0}, ""),
        ({"repetition_penalty": 1.3}, "it does not know the setting repetition_penalty"),
        ({"min_new_tokens": 3}, "it does not know the setting min_new_tokens"),
        ({"num_beams": 2}, "it does not know the setting num_beams"),
        ({"stop_strings": ["a"]}, "it does not know the setting stop_strings"),
        ({"do_sample": True}, "tokens are drawn"),
    ],
)
def test_jobs_that_it_would_answer_otherwise_are_not_its_own(
    folders: Callable[[str], Path], settings: dict[str, Any], why: str
) -> None:
    task, model = loaded(folders("llama"))
    task.settings = {**task.settings, **settings}
    said = obstacle(task, model)
    assert said == why or (why and said.startswith(why))


def test_models_that_it_does_not_fit_are_not_its_own(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = loaded(folders("llama"))
    for owner, name, value, why in (
        (model, "_supports_attention_backend", False, "does its attention by itself"),
        (model, "hf_quantizer", object(), "quantised"),
        (model.config, "layer_types", ["linear_attention"], "layers of other kinds"),
        (model.config, "rope_parameters", {"rope_type": "dynamic"}, "the longest row"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, value, raising=False)
            assert why in obstacle(task, model), name
    assert not obstacle(task, model)
    spec, folder = describe(str(folders("marian")), writing={"max_new_tokens": 4})
    encoder_decoder = ContinuousEngine(create_task(spec), folder, device="cpu", force=True)
    assert not encoder_decoder.is_continuous
    encoder_decoder.close()


def test_machines_that_it_does_not_pay_on_are_told(
    folders: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = open_engine(folders("llama"), force=False)
    assert not engine.is_continuous and type(engine).answer(engine, batches_of([[7, 8]])[0])
    assert "no continuous batching: it is slower on this device (cpu)" in caplog.text
    assert caplog.records[-1].levelno == logging.DEBUG, "on a CPU nobody expects it"
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    assert "flash-attn" in engine._drawback("auto")
    assert engine._drawback("sdpa") == "--attention sdpa"
    monkeypatch.setattr(engine, "_flash", "flash_attention_2")
    assert not engine._drawback("auto")
    assert engine._drawback("sdpa") == "--attention sdpa"
    monkeypatch.undo()
    engine.close()
    plain = open_engine(folders("llama"), plain=True)
    assert not plain.is_continuous, "what others are judged by is no candidate itself"
    plain.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu_it_writes_what_generate_writes(folders: Callable[[str], Path]) -> None:
    folder = folders("llama")
    prompts = prompts_of(folder)
    engine = open_engine(folder, device="cuda")
    assert engine.is_continuous
    found, errors = gathered(engine.stream(batches_of(prompts)))
    assert found == alone(folder, prompts) and not errors
    engine.close()
    half = open_engine(folder, device="cuda", dtype="bfloat16", force=False)
    assert half.is_continuous == bool(half._flash)
    found, errors = gathered(half.stream(batches_of(prompts)))
    assert len(found) == len(prompts) and not errors
    half.close()
