"""The OpenVINO engine answers as the local one does, exports a model once, and says nothing to anyone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from batchinfer import RunConfig, infer, resume, run
from batchinfer.batching import make_batches
from batchinfer.core import AnsweredChunk, Batch, BatchBudget, Chunk, ChunkId, Position
from batchinfer.engines import exports
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import Interrupted, ModelError, UsageError
from batchinfer.reporting.progress import Silent
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from tests.conftest import ROOT, Cli, read_output, shard_bytes
from tests.engines import made
from tests.engines.conftest import Made, ask
from tests.engines.test_models import as_sentence_transformer

if importlib.util.find_spec("openvino") is None:
    pytest.skip("needs pip install 'batchinfer[openvino]'", allow_module_level=True)

from batchinfer.engines import openvino

HEAD = "ForSequenceClassification"
TEXTS = [*made.texts(60, seed=3), "", " a  b "]
MODEL = ROOT / "sample_data" / "tiny-sentiment"
REVIEWS = ROOT / "sample_data" / "reviews.jsonl"

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def common_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(common_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept in the user's own cache; tests share what others exported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(common_cache))
    return common_cache


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchinfer" / "openvino"


def engine_of(folder: Path, *, task: str = "auto", pairs: bool = False, **settings: Any) -> Any:
    spec, place = describe(str(folder), task=task)
    chosen = create_task(spec, RunConfig(text_pair_column="pair" if pairs else None))
    return openvino.OpenVinoEngine(chosen, place, **{"dtype": "float32", "threads": 1, **settings})


def ask_openvino(
    folder: Path,
    texts: list[str],
    pairs: list[str] | None = None,
    *,
    task: str = "auto",
    budget: BatchBudget | None = None,
    **settings: Any,
) -> AnsweredChunk:
    """As `ask`, by OpenVINO."""
    engine = engine_of(folder, task=task, pairs=pairs is not None, **settings)
    columns = {"text": texts} if pairs is None else {"text": texts, "pair": pairs}
    chunk = Chunk(ChunkId(0, 0), pa.table(columns), {}, Position(), Position(), True, "")
    requests = engine.task.encode(chunk, make_encoder(folder, engine.task.spec))
    values = {
        name: np.zeros((len(requests), *field.shape), field.dtype)
        for name, field in engine.task.answers.items()
    }
    batches = make_batches(chunk.id, requests, budget or BatchBudget(1024, 64))
    for batch, answers in engine.stream(batches):
        assert answers.error is None
        for name, value in answers.values.items():
            assert value.dtype == values[name].dtype
            values[name][batch.indices] = value
    engine.close()
    return AnsweredChunk(chunk, requests, values, {})


def assert_same(found: AnsweredChunk, expected: AnsweredChunk) -> None:
    for name, values in expected.values.items():
        if name == "label":
            assert len(set(values.tolist())) > 1, "one label is always right"
            np.testing.assert_array_equal(found.values[name], values)
        else:
            assert np.std(values, axis=0).max() > 0.01, "the model answers the same to every row"
            np.testing.assert_allclose(found.values[name], values, rtol=0, atol=1e-3)


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, 300, sum(lengths)).astype(np.int32)
    indices = np.arange(len(lengths), dtype=np.int64)
    return Batch(ChunkId(0, 0), indices, np.array(lengths, np.int32), {"input_ids": tokens})


# -- the answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["Model", HEAD])
@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "gpt2"]
)
def test_the_answers_are_those_of_the_local_engine(
    made_model: Made, architecture: str, head: str
) -> None:
    folder = made_model(architecture, head, **({"num_labels": 3} if head == HEAD else {}))
    task = "embed" if head == "Model" else "classify"
    texts = [text for text in TEXTS if text] if architecture == "gpt2" else TEXTS
    expected = ask(folder, texts, task=task, attention="sdpa")
    assert_same(ask_openvino(folder, texts, task=task), expected)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_other_poolings_are_those_of_the_local_engine(
    made_model: Made, tmp_path: Path, pooling: str
) -> None:
    folder = as_sentence_transformer(made_model("roberta"), tmp_path / "model", pooling)
    assert_same(ask_openvino(folder, TEXTS), ask(folder, TEXTS, attention="sdpa"))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_pairs_are_those_of_the_local_engine(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture, HEAD, num_labels=3)
    firsts, seconds = made.texts(40, seed=5), made.texts(40, seed=6)
    found = ask_openvino(folder, firsts, seconds)
    assert ("token_type_ids" in found.requests.fields) == (architecture != "roberta")
    assert_same(found, ask(folder, firsts, seconds, attention="sdpa"))


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
    ],
    ids=lambda config: config["problem_type"],
)
def test_other_heads_are_those_of_the_local_engine(
    made_model: Made, config: dict[str, Any]
) -> None:
    folder = made_model("bert", HEAD, **config)
    found = ask_openvino(folder, TEXTS).values
    expected = ask(folder, TEXTS, attention="sdpa").values
    np.testing.assert_array_equal(found["label"], expected["label"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("budget", [BatchBudget(1, 1), BatchBudget(10**6, 10**4)])
def test_the_budget_does_not_change_the_answers(made_model: Made, budget: BatchBudget) -> None:
    folder = made_model("modernbert")
    expected = ask_openvino(folder, TEXTS, task="embed")
    assert_same(ask_openvino(folder, TEXTS, task="embed", budget=budget), expected)


def test_answers_stay_when_the_next_batch_comes(made_model: Made) -> None:
    engine = engine_of(made_model("bert"), task="embed")
    first = engine.answer(batch_of([9, 5])).values["embedding"]
    held = first.copy()
    engine.answer(batch_of([9, 5], seed=1))
    np.testing.assert_array_equal(first, held)


def test_batches_of_one_and_of_none_are_answered(made_model: Made) -> None:
    engine = engine_of(made_model("bert"), task="embed")
    batches = [batch_of([1]), batch_of([]), batch_of([128])]
    shapes = [answers.values["embedding"].shape for _, answers in engine.stream(batches)]
    assert shapes == [(1, 64), (0, 64), (1, 64)]


def test_rows_are_padded_to_sixteens_and_never_beyond_the_limit(made_model: Made) -> None:
    graph = engine_of(made_model("roberta"), task="embed")._graph
    lengths = (1, 12, 13, 17, 26, 97, 112, 113, 125)
    widths = [graph.padded(batch_of([n, 1]), widest=125)[0].shape[1] for n in lengths]
    assert widths == [1, 12, 16, 17, 32, 112, 112, 113, 125]
    mask, tokens = graph.padded(batch_of([3, 1]), widest=125)
    assert mask.sum(axis=1).tolist() == [3, 1]
    assert (tokens[mask == 0] == 1).all()


@pytest.mark.parametrize("head", ["Model", HEAD])
def test_a_row_whose_answer_is_nan_says_so_and_no_other(
    made_model: Made, tmp_path: Path, head: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(made_model("bert", head), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name][299] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = engine_of(folder, task="embed" if head == "Model" else "classify")
    batch = batch_of([7, 7, 7])
    batch.fields["input_ids"][:] = np.where(
        batch.fields["input_ids"] == 299, 5, batch.fields["input_ids"]
    )
    batch.fields["input_ids"][9] = 299
    values = engine.answer(batch).values["embedding" if head == "Model" else "score"]
    assert np.isfinite(values.reshape(3, -1)).all(axis=1).tolist() == [True, False, True]


def test_an_infinite_logit_is_not_made_a_score(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(made_model("bert", HEAD, num_labels=3))
    graph_says = openvino._ask

    def ask_and_break_one(*arguments: Any) -> Any:
        label, score, logits = graph_says(*arguments)
        logits = logits.copy()
        logits[1, 2] = np.inf
        return [label, np.zeros_like(score), logits]

    monkeypatch.setattr(openvino, "_ask", ask_and_break_one)
    scores = engine.answer(batch_of([5, 5])).values["score"]
    assert np.isnan(scores).tolist() == [False, True]


def test_minilm_in_bfloat16_stays_close(minilm: Path, questions: list[str]) -> None:
    if not openvino_has_bfloat16(minilm):
        pytest.skip("this CPU has no bfloat16")
    texts = questions[:60]
    expected = ask(minilm, texts, attention="sdpa").values["embedding"]
    exact = ask_openvino(minilm, texts, threads=None).values["embedding"]
    found = ask_openvino(minilm, texts, dtype="bfloat16", threads=None).values["embedding"]
    assert (exact * expected).sum(axis=1).min() > 0.99999
    assert (found * expected).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)  # pooled in float32


def openvino_has_bfloat16(folder: Path) -> bool:
    try:
        engine_of(folder, dtype="bfloat16").close()
    except UsageError:
        return False
    return True


def test_scores_in_bfloat16_are_not_rounded_to_few_values() -> None:
    if not openvino_has_bfloat16(MODEL):
        pytest.skip("this CPU has no bfloat16")
    texts = [json.loads(line)["text"] for line in REVIEWS.read_text().splitlines()[:200]]
    exact = ask_openvino(MODEL, [t or "-" for t in texts]).values
    found = ask_openvino(MODEL, [t or "-" for t in texts], dtype="bfloat16").values
    assert len(np.unique(found["score"])) > 0.9 * len(np.unique(exact["score"]))
    np.testing.assert_allclose(found["score"], exact["score"], rtol=0, atol=0.05)


# -- the export ------------------------------------------------------------------------------------


def test_a_model_is_exported_once(
    made_model: Made, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_model("bert", HEAD, num_labels=3)
    first = ask_openvino(folder, TEXTS)
    [place] = own_cache.iterdir()
    assert sorted(file.name for file in place.iterdir()) == [
        "export.json", "model.bin", "model.xml",
    ]  # fmt: skip

    def fail(*_: Any) -> None:
        raise AssertionError("it is exported again")

    monkeypatch.setattr(openvino, "_export", fail)
    again = ask_openvino(folder, TEXTS)
    np.testing.assert_array_equal(first.values["score"], again.values["score"])
    with pytest.raises(AssertionError, match="exported again"):  # other inputs: another graph
        ask_openvino(folder, TEXTS, TEXTS)
    with pytest.raises(AssertionError, match="exported again"):
        ask_openvino(folder, TEXTS, task="embed")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest", "nonsense", "file gone"])
def test_a_damaged_export_is_made_again(made_model: Made, own_cache: Path, damage: str) -> None:
    folder = made_model("bert")
    engine_of(folder, task="embed").close()
    [place] = own_cache.iterdir()
    weights, manifest = place / "model.bin", place / "export.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "flipped":
        weights.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "nonsense":
        manifest.write_text('{"files": 3}')
    else:
        weights.unlink()
    engine_of(folder, task="embed").close()
    assert list(own_cache.iterdir()) == [place]
    assert weights.read_bytes() == content
    assert exports.find(json.loads(manifest.read_text())["facts"]) is not None


def test_an_export_that_answers_otherwise_is_refused(
    made_model: Made, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = openvino._trace

    class Blind(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, mask: torch.Tensor, tokens: torch.Tensor) -> Any:
            return self.module(torch.ones_like(mask), tokens)

    monkeypatch.setattr(
        openvino, "_trace", lambda module, example: trace(Blind(module).eval(), example)
    )
    with pytest.raises(ModelError, match=r"its answers differ by .*; use --engine local"):
        engine_of(made_model("bert"), task="embed")
    assert not own_cache.exists()


def test_a_model_that_cannot_be_traced_is_refused(
    made_model: Made, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(openvino, "_trace", fail)
    with pytest.raises(ModelError, match=r"it cannot be exported: RuntimeError: no such operator"):
        engine_of(made_model("bert"), task="embed")


def test_an_export_that_cannot_be_kept_is_used_all_the_same(
    made_model: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = made_model("bert", HEAD, num_labels=3)
    with caplog.at_level("INFO", "batchinfer"):
        found = ask_openvino(folder, TEXTS)
    assert "the exported model is not kept for the next run: " in caplog.text
    assert_same(found, ask(folder, TEXTS, attention="sdpa"))


def test_what_is_not_whole_is_not_found(own_cache: Path) -> None:
    facts = {"model": "m"}

    def save(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"weights")
        assert exports.find(facts) is None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exports.keep(facts, {}, save)
    assert exports.find(facts) is None
    assert not list(own_cache.iterdir())


def test_of_two_processes_that_export_at_once_either_wins(own_cache: Path) -> None:
    facts = {"model": "m"}

    def save(content: bytes) -> Any:
        return lambda folder: (folder / "model.bin").write_bytes(content)

    def save_while_another_does(folder: Path) -> None:
        assert exports.keep(facts, {"who": 1}, save(b"first"))
        (folder / "model.bin").write_bytes(b"second")

    found = exports.keep(facts, {"who": 2}, save_while_another_does)
    assert found is not None
    place, notes = found
    assert (notes, (place / "model.bin").read_bytes()) == ({"who": 1}, b"first")
    assert list(own_cache.iterdir()) == [place]


def test_what_a_killed_process_left_is_removed_after_a_day(own_cache: Path) -> None:
    old, new = own_cache / "making-old", own_cache / "making-new"
    for folder in (old, new):
        (folder / "export").mkdir(parents=True)
    os.utime(old, (0, 0))
    exports.keep({}, {}, lambda folder: None)
    assert not old.exists() and new.exists()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda"}, "--device cuda: with --engine openvino it should be auto or cpu"),
        ({"dtype": "float16"}, "--dtype float16: with --engine openvino it should be float32 or"),
        ({"attention": "packed"}, "--attention packed is of --engine local"),
        ({"compile": True}, "--compile is of --engine local"),
    ],
    ids=lambda asked: next(iter(asked)) if isinstance(asked, dict) else "",
)
def test_what_openvino_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    config = RunConfig(
        inputs=(str(REVIEWS),), model=str(MODEL), output=str(tmp_path / "out"), engine="openvino",
        **asked,
    )  # fmt: skip
    with pytest.raises(UsageError, match=message):
        run(config)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'batchinfer\[openvino\]'$"):
        infer(["a"], model=str(MODEL), engine="openvino")


def test_a_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model: name one with --model"):
        run(RunConfig(inputs=(str(REVIEWS),), output=str(tmp_path / "out"), engine="openvino"))


def test_threads_are_those_asked_for(made_model: Made) -> None:
    for threads in (1, 2):
        engine = engine_of(made_model("bert"), task="embed", threads=threads)
        compiled = engine._compiled
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(threads, os.cpu_count() or 1)


# -- in a run --------------------------------------------------------------------------------------


class StopAfter(Silent):
    """Asks for a stop when so many rows were answered."""

    def __init__(self, rows: int) -> None:
        self.rows_left, self.stop = rows, StopSignal()

    def answered(self, rows: int, tokens: int) -> None:
        self.rows_left -= rows
        if self.rows_left <= 0:
            self.stop.set()


def job(output: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "inputs": (str(REVIEWS),), "model": str(MODEL), "output": str(output), "engine": "openvino",
        "workers": 0, "chunk_rows": 200, "max_errors": "100%", "threads": 1, **changes,
    }  # fmt: skip
    return RunConfig(**settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, common_cache: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(common_cache))
        output = tmp_path_factory.mktemp("whole") / "out"
        assert run(job(output)).exit_code == 0
        yield output


def test_a_stopped_run_is_resumed_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    progress = StopAfter(300)
    with pytest.raises(Interrupted):
        run(job(tmp_path / "out"), progress=progress, stop=progress.stop)
    assert 0 < len(shard_bytes(tmp_path / "out")) < len(shard_bytes(whole))
    resume(tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == shard_bytes(whole)


def test_it_answers_in_a_process_of_its_own_too(whole: Path, tmp_path: Path) -> None:
    run(job(tmp_path / "out", batch_timeout=100))
    assert shard_bytes(tmp_path / "out") == shard_bytes(whole)


def test_its_rows_are_those_of_the_local_engine(whole: Path, tmp_path: Path) -> None:
    run(job(tmp_path / "out", engine="local", dtype="float32"))
    local, found = read_output(tmp_path / "out"), read_output(whole)
    assert found.schema.equals(local.schema)
    same = [
        a == b
        for a, b in zip(*(t["predicted_label"].to_pylist() for t in (found, local)), strict=True)
    ]
    assert np.mean(same) > 0.98  # bfloat16, where the CPU has it
    for name in ("_source", "_row", "text", "_num_tokens", "_error"):
        assert found[name].equals(local[name])


def test_the_command_line_prints_its_summary_alone(cli: Cli, cache: Path) -> None:
    done = cli(
        "run", str(REVIEWS), "-m", str(MODEL), "-o", "out", "--engine", "openvino", "--limit", "20",
        "--json", "--verbose", "--workers", "0", "--max-errors", "100%",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_rows"] == 20
    assert "Warning" not in done.stderr


def test_nothing_is_told_to_openvinos_telemetry(cli: Cli, tmp_path: Path) -> None:
    package = tmp_path / "path" / "openvino_telemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"open({str(tmp_path / 'told')!r}, 'w').close()\nraise ImportError\n"
    )
    done = cli(
        "run", str(REVIEWS), "-m", str(MODEL), "-o", "out", "--engine", "openvino", "--limit", "5",
        "--workers", "0", "--max-errors", "100%",
        PYTHONPATH=str(tmp_path / "path"), XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache" / "batchinfer" / "openvino").is_dir()
    assert not (tmp_path / "told").exists()
    alone = f"import sys; sys.path.insert(0, {str(tmp_path / 'path')!r}); import openvino"
    subprocess.run([sys.executable, "-c", alone], check=True)
    assert (tmp_path / "told").exists(), "OpenVINO alone would have imported it"


def test_an_export_for_short_rows_is_not_one_for_rows_beyond_what_is_compared(
    made_model: Made,
) -> None:
    spec, _ = describe(str(made_model("bert")), task="embed")
    facts = [
        openvino._facts(create_task(replace(spec, max_length=length)), False)
        for length in (64, 1024, 1025, 8192)
    ]
    assert facts[0] != facts[1] != facts[2]
    assert facts[2] == facts[3]


def test_memory_that_runs_out_decides_nothing_about_an_export(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> Any:
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(openvino, "_trace", run_out)
    with pytest.raises(ModelError, match="out of memory while it was exported"):
        engine_of(made_model("bert", hidden_size=128), task="embed")
