"""The local engine itself: devices, precisions, weights, padding and failures."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer.core import Batch, BatchBudget, ChunkId
from batchinfer.engines import attention, devices, torch_engine
from batchinfer.engines.base import DeviceLostError
from batchinfer.engines.devices import resolve_device, resolve_dtype
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe
from batchinfer.errors import ModelError, UsageError
from batchinfer.stages import StageSeconds, Stopwatch
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import REPOSITORY, Made, ask

HEAD = "ForSequenceClassification"


def engine_of(folder: Path, task: str = "auto", **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task=task)
    return LocalEngine(create_task(spec), place, dtype="float32", **options)


def batch_of(*lengths: int, first: int = 6, **fields: Any) -> Batch:
    tokens = np.arange(first, first + sum(lengths), dtype=np.int32)
    return Batch(
        ChunkId(0, 0),
        np.arange(len(lengths), dtype=np.int64),
        np.array(lengths, dtype=np.int32),
        {"input_ids": tokens, **fields},
    )


def test_packed_tokens_are_padded_on_the_right(made_model: Made) -> None:
    engine = engine_of(made_model("roberta"), "embed", device="cpu")
    inputs = engine._padded(batch_of(3, 2, 1))
    assert inputs["input_ids"].tolist() == [[6, 7, 8], [9, 10, 1], [11, 1, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


def test_type_ids_go_only_to_models_that_take_them(made_model: Made) -> None:
    batch = batch_of(2, 1, token_type_ids=np.array([1, 1, 1], dtype=np.int32))
    bert = engine_of(made_model("bert"), "embed", device="cpu")
    assert bert._padded(batch)["token_type_ids"].tolist() == [[1, 1], [1, 0]]
    distilbert = engine_of(made_model("distilbert"), "embed", device="cpu")
    assert "token_type_ids" not in distilbert._padded(batch)


def test_read_only_arrays_are_taken_without_a_warning(made_model: Made) -> None:
    batch = batch_of(2, 1)
    batch.fields["input_ids"].flags.writeable = False
    assert len(engine_of(made_model("bert"), "embed").answer(batch).values["embedding"]) == 2


def test_a_decoder_without_a_padding_token_gets_one(made_model: Made) -> None:
    engine = engine_of(made_model("gpt2", HEAD, num_labels=3), device="cpu")
    assert engine.pad_token_id == engine.model.config.pad_token_id == 5
    assert engine.model.config.use_cache is False


def test_answers_have_the_shapes_and_types_that_the_task_names(made_model: Made) -> None:
    for folder, task in [(made_model("bert"), "embed"), (made_model("bert", HEAD), "classify")]:
        engine = engine_of(folder, task, device="cpu")
        values = engine.answer(batch_of(4, 3)).values
        assert set(values) == set(engine.task.answers)
        for name, field in engine.task.answers.items():
            assert values[name].shape == (2, *field.shape)
            assert values[name].dtype == field.dtype


def test_a_request_that_fails_alone_leaves_the_others_untouched(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cpu")
    whole = engine.answer(batch_of(5, 4, 3, 2)).values["embedding"]
    forward = engine.task.forward

    def fail(model: Any, inputs: Any) -> Any:
        if (inputs["input_ids"] == 12).any():  # a token of the second row
            raise RuntimeError("the model stumbled\nbadly")
        return forward(model, inputs)

    monkeypatch.setattr(engine.task, "forward", fail)
    answered = {
        int(b.indices[0]): a for b, a in engine.stream([batch_of(5, 4, 3, 2)]) if len(b) == 1
    }
    assert answered[1].error == "RuntimeError: the model stumbled badly"
    np.testing.assert_allclose(answered[0].values["embedding"][0], whole[0], atol=1e-5)


def test_an_empty_batch_passes_through(made_model: Made) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cpu")
    [(batch, answers)] = engine.stream([batch_of()])
    assert len(batch) == 0
    assert answers.values["embedding"].shape == (0, 64)


def test_a_device_that_is_not_there_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for device in ("cuda", "cuda:0", "cuda:7", "mps"):
        with pytest.raises(UsageError, match=f"--device {device}: not available"):
            resolve_device(device)
    for device in ("tpu", "cpu:1", "cuda:x", "cuda:", ""):
        if device == "cuda:":
            continue
        with pytest.raises(UsageError, match="should be auto, cpu, cuda"):
            resolve_device(device)


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, dtype in [(True, "bfloat16"), (False, "float32")]:
        monkeypatch.setattr(devices, "_cpu_is_fast_in_bfloat16", lambda fast=fast: fast)
        assert resolve_dtype("auto", "cpu") == dtype
        assert resolve_dtype("float16", "cpu") == "float16"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability, dtype in [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert resolve_dtype("auto", "cuda:0") == dtype


def test_the_weights_run_in_the_precision_asked_for(made_model: Made) -> None:
    spec, folder = describe(str(made_model("bert")), task="embed")
    engine = LocalEngine(create_task(spec), folder, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
    assert (engine.dtype, engine.device_kind, engine.pins_memory) == ("bfloat16", "cpu", False)
    assert engine.default_budget.max_batch_tokens == 2048
    assert not engine.model.training


def test_broken_weights_are_said_in_one_line(made_model: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made_model("bert"), tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="weights cannot be loaded") as error:
        engine_of(folder, "embed")
    assert "\n" not in str(error.value)


def test_a_missing_part_of_the_weights_is_said_in_one_line(
    made_model: Made, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made_model("bert"), tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = '{"metadata": {}, "weight_map": {"x": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="weights cannot be loaded") as error:
        engine_of(folder, "embed")
    assert "\n" not in str(error.value)


def test_a_head_without_trained_weights_is_refused(made_model: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made_model("bert"), tmp_path / "model"))
    config = folder / "config.json"
    config.write_text(config.read_text().replace("BertModel", "BertForSequenceClassification"))
    with pytest.raises(ModelError, match=r"the weights lack classifier\.bias and 1 more"):
        engine_of(folder, "classify")


def test_a_language_model_embeds_without_its_pooler(made_model: Made) -> None:
    folder = made_model("bert", "ForMaskedLM")
    assert ask(folder, made.texts(3), task="embed").values["embedding"].std() > 0.1


def test_nothing_is_printed_on_the_way(
    made_model: Made, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = made_model("bert", HEAD, num_labels=3)
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        ask(folder, made.texts(3), task="embed")
    assert capfd.readouterr() == ("", "")
    assert [r.name for r in caplog.records] == ["batchinfer"]  # the lost head


def test_a_batch_too_large_for_memory_is_split_and_the_size_is_remembered(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cpu", attention="sdpa")
    whole = engine.answer(batch_of(*[4] * 16)).values["embedding"]
    sizes, forward = [], engine.task.forward

    def fit(model: Any, inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, inputs)

    monkeypatch.setattr(engine.task, "forward", fit)
    batches = [batch_of(*[4] * 16) for _ in range(3)]
    answered = list(engine.stream(batches))
    assert sizes.count(64) == 1, "what did not fit once is not tried again"
    found = np.concatenate([answers.values["embedding"] for _, answers in answered])
    np.testing.assert_allclose(found, np.concatenate([whole] * 3), atol=1e-5)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("made up"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("the size of tensor a (3) must match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_memory_are_known(
    made_model: Made, error: Exception, is_memory: bool
) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cpu")
    assert engine.is_out_of_memory(error) is is_memory
    assert not engine.is_fatal(error)


def test_the_head_computes_its_logits_in_float32(made_model: Made) -> None:
    spec, folder = describe(str(made_model("roberta", HEAD, num_labels=3)))
    engine = LocalEngine(create_task(spec), folder, dtype="bfloat16", device="cpu")
    head = engine.model.classifier
    assert (head.dense.weight.dtype, head.out_proj.weight.dtype) == (torch.bfloat16, torch.float32)
    logits = engine._outputs(batch_of(9, 5))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float()), "they were rounded on the way"


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_time_of_a_cpu_is_the_mean_of_its_streams(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cpu", threads=1, streams=streams)
    inputs = engine._inputs
    monkeypatch.setattr(engine, "_inputs", lambda batch: (time.sleep(0.1), inputs(batch))[1])
    began = time.perf_counter()
    assert len(list(engine.stream([batch_of(5, 4)] * 4))) == 4
    measured, wall = engine.watch.seconds, time.perf_counter() - began
    assert 0.4 / streams <= measured.forward <= wall
    assert measured == StageSeconds(forward=measured.forward)


# The loop of a GPU, on a CPU that stands in for one --------------------------------------------


class Mark:
    """An event that has happened when it is waited for; or that reports what failed after the launch."""

    def __init__(self, milliseconds: float, error: Exception | None = None) -> None:
        self.milliseconds, self.error = milliseconds, error

    def elapsed_time(self, later: Mark) -> float:
        return later.milliseconds - self.milliseconds

    def synchronize(self) -> None:
        if self.error is not None:
            raise self.error


def marks(error: Exception | None = None) -> Any:
    return Mark(0), Mark(1), Mark(8), Mark(10, error)


@pytest.fixture
def stand_in(made_model: Made, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine that takes itself to be on a GPU; `launched` and `landed` tell what happened when."""
    engine: Any = engine_of(made_model("bert", HEAD, num_labels=3), device="cpu")
    engine.log, engine.limit, engine.late_error = [], 10**9, None
    engine.device_kind = "stand-in"

    def launch(batch: Batch) -> Any:
        engine.log.append(("launch", len(batch)))
        if len(batch) * batch.max_length > engine.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        engine.device = torch.device("cpu")
        answers, fields = torch_engine.as_bytes(engine._forward(batch))
        engine.device = torch.device("cuda")
        return torch_engine.Flight(batch, answers.clone(), fields, marks(engine.late_error))

    engine.device = torch.device("cuda")
    monkeypatch.setattr(engine, "_launch", launch)
    monkeypatch.setattr(engine, "recover", lambda: engine.log.append(("recover", 0)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return engine


def test_answers_travel_as_bytes_and_land_as_they_were() -> None:
    values = {
        "label": torch.tensor([3, 1, 2], dtype=torch.int32),
        "vector": torch.arange(6, dtype=torch.float32).view(3, 2).t().contiguous().t(),
        "score": torch.tensor([0.5, 0.25, 1.0]),
    }
    with torch.inference_mode():
        data, fields = torch_engine.as_bytes(
            {name: value.clone() for name, value in values.items()}
        )
    landed = torch.empty(data.shape, dtype=torch.uint8).copy_(data)
    found = torch_engine.Flight(batch_of(1), landed, fields, marks()).land().values
    assert list(found) == list(values)
    for name, value in values.items():
        assert found[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(found[name], value.numpy())


def test_the_next_batches_are_launched_before_one_is_landed(stand_in: Any) -> None:
    batches = [batch_of(*[6 - i] * (6 - i)) for i in range(6)]
    expected = [stand_in._launch(batch).land().values for batch in batches]
    stand_in.log.clear()
    order = []
    for batch, answers in stand_in.stream(batches):
        order.append((len(batch), len(stand_in.log)))
        for name, value in answers.values.items():
            np.testing.assert_array_equal(value, expected[6 - len(batch)][name])
    assert order == [(6, 3), (5, 4), (4, 5), (3, 6), (2, 6), (1, 6)]


def test_an_empty_batch_passes_through_a_gpu_in_its_turn(stand_in: Any) -> None:
    answered = list(stand_in.stream([batch_of(4, 3), batch_of(), batch_of(2)]))
    assert [len(batch) for batch, _ in answered] == [2, 0, 1]
    assert answered[1][1].values["label"].shape == (0,)


def test_the_time_of_a_gpu_is_its_own_and_not_that_of_the_thread(stand_in: Any) -> None:
    stand_in.watch = Stopwatch()
    assert list(stand_in.stream([batch_of(5, 4), batch_of(3), batch_of(2)]))
    assert stand_in.watch.seconds.forward == pytest.approx(3 * 0.007)
    assert stand_in.watch.seconds.copy >= 3 * 0.003


def test_a_gpu_short_of_memory_lands_what_flies_and_then_splits(stand_in: Any) -> None:
    batches = [batch_of(2, 2), *(batch_of(*[4] * 8) for _ in range(3))]
    expected = [stand_in._launch(batch).land().values["score"] for batch in batches]
    stand_in.log.clear()
    stand_in.limit = 16
    answered = list(stand_in.stream(batches))
    sizes = [size for what, size in stand_in.log if what == "launch"]
    assert sizes[:3] == [2, 8, 8], "launched, and once more with the GPU to itself"
    assert sizes.count(8) == 2, "what did not fit is not tried again"
    assert len(answered[0][0]) == 2, "what was under way came in first"
    found = np.concatenate([answers.values["score"] for _, answers in answered])
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
    split = [index for index, (batch, _) in enumerate(answered) if batch.max_length == 4]
    assert len(split) >= 6 and all(answers.error is None for _, answers in answered)


def test_a_row_too_large_for_the_memory_gets_the_error_and_its_neighbours_answers(
    stand_in: Any,
) -> None:
    stand_in.limit = 8
    answered = list(stand_in.stream([batch_of(9, 2, 2), batch_of(3)]))
    errors = {batch.max_length: answers.error for batch, answers in answered}
    assert errors[9].startswith("OutOfMemoryError: CUDA out of memory")
    assert errors[2] is None and errors[3] is None


def test_an_error_that_shows_after_the_launch_means_that_the_gpu_is_lost(stand_in: Any) -> None:
    stand_in.late_error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLostError, match="stand-in failed: .*illegal memory access"):
        list(stand_in.stream([batch_of(4, 3), batch_of(2)]))


def test_an_error_at_the_launch_is_a_rows_fault_only_while_the_gpu_answers(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = stand_in._launch

    def stumble(batch: Batch) -> Any:
        if (batch.fields["input_ids"] == 9).any():
            raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")
        return launch(batch)

    monkeypatch.setattr(stand_in, "_launch", stumble)
    answered = list(stand_in.stream([batch_of(3, 2, 2), batch_of(2, first=30)]))
    assert [answers.error is not None for _, answers in answered].count(True) == 1

    def lost(device: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(DeviceLostError, match="CUBLAS_STATUS_EXECUTION_FAILED"):
        list(stand_in.stream([batch_of(3, 2, 2)]))


# On a GPU --------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def gpu_engine(folder: Path, task: str = "auto", **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task=task)
    return LocalEngine(create_task(spec), place, dtype="bfloat16", device="cuda", **options)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_answers_like_the_cpu(made_model: Made) -> None:
    texts = made.texts(300, seed=4)
    for architecture in made.ARCHITECTURES:
        folder = made_model(architecture)
        budget = BatchBudget(500, 8)
        expected = ask(folder, texts, task="embed", budget=budget)
        found = ask(folder, texts, task="embed", budget=budget, device="cuda")
        assert not found.errors
        np.testing.assert_allclose(
            found.values["embedding"], expected.values["embedding"], rtol=1e-2, atol=1e-2
        )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("architecture", attention._HEADS)
def test_a_gpu_packs_and_answers_like_rows_alone(made_model: Made, architecture: str) -> None:
    texts = made.texts(200, seed=4)
    folder = made_model(architecture)
    assert gpu_engine(folder, "embed").is_packed
    alone = ask(folder, texts, task="embed")
    padded = ask(folder, texts, task="embed", device="cuda", dtype="bfloat16", attention="sdpa")
    packed = ask(folder, texts, task="embed", device="cuda", dtype="bfloat16")
    assert not packed.errors
    far = [
        np.linalg.norm(found.values["embedding"] - alone.values["embedding"], axis=1)
        / np.linalg.norm(alone.values["embedding"], axis=1)
        for found in (padded, packed)
    ]
    assert far[1].mean() < 1.3 * far[0].mean() + 0.01, "packing adds to bfloat16's rounding"
    assert far[1].max() < 2 * far[0].max() + 0.02


@pytest.mark.gpu
@needs_gpu
def test_the_loop_of_a_gpu_never_waits_for_it(made_model: Made) -> None:
    for folder, task in [
        (made_model("bert"), "embed"),
        (made_model("modernbert"), "embed"),
        (made_model("roberta", HEAD, num_labels=3), "classify"),
    ]:
        engine = gpu_engine(folder, task, attention="packed")
        batches = [batch_of(*[9] * 8, 5, 4, 3).pin_memory() for _ in range(6)]
        list(engine.stream(batches))  # the first call of a kernel may set things up
        torch.cuda.set_sync_debug_mode("error")
        try:
            flights = [engine._launch(batch) for batch in batches]
            answered = list(engine.stream(batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(answers.error is None for _, answers in answered), "a wait was an error"
        for flight, (_, answers) in zip(flights, answered, strict=True):
            for name, value in flight.land().values.items():
                np.testing.assert_array_equal(value, answers.values[name])


@pytest.mark.gpu
@needs_gpu
def test_the_time_of_a_gpu_is_measured_on_it(made_model: Made) -> None:
    engine = gpu_engine(made_model("bert"), "embed")
    batches = [batch_of(*[9] * 8, 5, 4, 3).pin_memory() for _ in range(6)]
    list(engine.stream(batches))
    engine.watch = Stopwatch()
    began = time.perf_counter()
    list(engine.stream(batches))
    wall, measured = time.perf_counter() - began, engine.watch.seconds
    assert 0 < measured.copy < measured.on_device
    assert measured.forward > 0
    assert measured.on_device <= wall


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_given_batches_ahead_and_answers_all_in_order(made_model: Made) -> None:
    engine = gpu_engine(made_model("bert"), "embed")
    taken: list[int] = []

    def batches() -> Any:
        for size in (5, 4, 3, 2, 1):
            taken.append(size)
            yield batch_of(*[size] * size).pin_memory()

    ahead, order = [], []
    for batch, answers in engine.stream(batches()):
        order.append(len(batch))
        ahead.append(len(taken) - len(order))
        assert answers.values["embedding"].shape == (len(batch), 64)
    assert order == [5, 4, 3, 2, 1]
    assert max(ahead) == 2


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_halves_what_fails_and_keeps_the_order(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(made_model("bert"), "embed", device="cuda")
    forward = engine.task.forward

    def fail(model: Any, inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 1 and bool((inputs["input_ids"] == 12).any()):
            raise torch.OutOfMemoryError("made up")
        return forward(model, inputs)

    monkeypatch.setattr(engine.task, "forward", fail)
    batches = [batch_of(5, 4, 3, 2), batch_of(), batch_of(3, 2, first=30)]
    answered = list(engine.stream(batches))
    assert sum(len(batch) for batch, _ in answered) == 6
    assert all(answers.error is None for _, answers in answered)
    assert engine.device_kind == torch.cuda.get_device_name()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_without_the_memory_for_a_batch_splits_it(
    made_model: Made, caplog: pytest.LogCaptureFixture
) -> None:
    engine = gpu_engine(made_model("bert"), "embed")
    batches = [batch_of(*[100] * 4000, first=0) for _ in range(3)]
    for batch in batches:
        batch.fields["input_ids"][:] %= 600
    expected = [answers.values["embedding"] for _, answers in engine.stream(batches)]
    torch.cuda.synchronize()
    engine.recover()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 150 * 2**20) / total, 0
    )
    try:
        with caplog.at_level("WARNING"):
            answered = list(engine.stream(batches))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert "out of memory with 4,000 rows" in caplog.text
    assert len(answered) > 3, "the limit was not felt"
    assert all(answers.error is None for _, answers in answered)
    found = np.concatenate([answers.values["embedding"] for _, answers in answered])
    np.testing.assert_allclose(found, np.concatenate(expected), atol=0.05)


_LOSES_ITS_DEVICE = """
import sys
from pathlib import Path
import torch
from batchinfer.engines.base import DeviceLostError
from tests.engines.test_local import batch_of, gpu_engine

engine = gpu_engine(Path(sys.argv[1]), "embed")
forward = engine.task.forward

def lose(model, inputs):
    if inputs["max_length_q"] == 3:
        table = torch.zeros(4, device="cuda")
        table[torch.full((8,), 10**6, device="cuda")]  # beyond its end: known on the GPU alone
    return forward(model, inputs)

engine.task.forward = lose
answered = 0
try:
    for batch, answers in engine.stream([batch_of(5, 4), batch_of(3, 2), batch_of(5, 1)]):
        assert answers.error is None, answers.error
        answered += 1
except DeviceLostError as error:
    print("lost after", answered, error)
"""


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_that_is_lost_after_the_launch_stops_the_run(made_model: Made) -> None:
    found = subprocess.run(
        [sys.executable, "-c", _LOSES_ITS_DEVICE, str(made_model("bert"))],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.match(r"lost after [01] NVIDIA.* failed: .*(assert|CUDA)", found.stdout), (
        found.stdout + found.stderr[-2000:]
    )
