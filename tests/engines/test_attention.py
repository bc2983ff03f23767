"""Packed attention: rows one behind the other answer as rows alone do, or are not packed at all."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from batchinfer.batching import make_batches
from batchinfer.core import BatchBudget
from batchinfer.engines import attention
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import Made, ask
from tests.engines.test_models import as_sentence_transformer
from tests.engines.test_parity import (
    HEAD,
    assert_labels_differ,
    assert_rows_differ,
    assert_same_vectors,
    one_by_one,
    reference_probabilities,
    reference_vectors,
)

EMBEDDERS = [kind for kind, tasks in attention._TASKS.items() if "embed" in tasks]
CLASSIFIERS = [kind for kind, tasks in attention._TASKS.items() if "classify" in tasks]
TEXTS = made.texts(90, seed=11)
BUDGET = BatchBudget(900, 40)


def engine_of(folder: Path, task: str = "embed", **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task=task)
    return LocalEngine(create_task(spec, "text", None), place, dtype="float32", **options)


@pytest.mark.parametrize("architecture", EMBEDDERS)
def test_packed_embeddings_are_those_of_transformers_one_row_at_a_time(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture)
    expected = reference_vectors(folder, TEXTS)
    common = expected.mean(axis=0)  # ALBERT's rows, say, have much in common
    assert_rows_differ(expected - common)
    found = ask(folder, TEXTS, task="embed", attention="packed", budget=BUDGET)
    assert not found.errors
    assert_same_vectors(found.values["embedding"] - common, expected - common)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_packed_labels_and_scores_are_those_of_transformers_one_row_at_a_time(
    made_model: Made, architecture: str
) -> None:
    config = {"classifier_pooling": "bos"} if architecture == "eurobert" else {}
    folder = made_model(architecture, HEAD, num_labels=3, **config)
    expected = reference_probabilities(folder, TEXTS)
    assert_labels_differ(expected.argmax(axis=1))
    found = ask(folder, TEXTS, attention="packed", budget=BUDGET).values
    np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))
    np.testing.assert_allclose(found["score"], expected.max(axis=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["modernbert", "eurobert"])
def test_packed_classifiers_that_look_at_the_mean_get_the_mean(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture, HEAD, num_labels=3, classifier_pooling="mean")
    expected = reference_probabilities(folder, TEXTS)
    assert_labels_differ(expected.argmax(axis=1))
    found = ask(folder, TEXTS, attention="packed", budget=BUDGET).values
    np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))


def test_packed_pairs_keep_their_type_ids(made_model: Made) -> None:
    folder = made_model("bert", HEAD, num_labels=3)
    firsts, seconds = made.texts(40, seed=5), made.texts(40, seed=6)
    expected = ask(folder, firsts, seconds).values
    found = ask(folder, firsts, seconds, attention="packed", budget=BUDGET).values
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-4)
    alone = ask(folder, firsts, attention="packed").values["score"]
    assert np.abs(alone - found["score"]).max() > 0.01, "the second text makes no difference"


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("lasttoken", -1)])
def test_packed_poolings_take_the_first_or_the_last_token(
    made_model: Made, tmp_path: Path, pooling: str, place: int
) -> None:
    folder = as_sentence_transformer(made_model("roberta"), tmp_path, pooling)
    model = AutoModel.from_pretrained(folder).eval()
    outputs = one_by_one(model, folder, TEXTS)
    states = torch.stack([out.last_hidden_state[0, place] for out in outputs])
    found = ask(folder, TEXTS, attention="packed", budget=BUDGET).values["embedding"]
    assert_same_vectors(found, states.numpy())


def test_the_neighbours_of_a_row_do_not_change_its_answer(made_model: Made) -> None:
    folder = made_model("modernbert")
    together = ask(folder, TEXTS, task="embed", attention="packed", budget=BUDGET)
    alone = ask(folder, TEXTS, task="embed", attention="packed", budget=BatchBudget(1, 1))
    np.testing.assert_allclose(
        together.values["embedding"], alone.values["embedding"], rtol=0, atol=1e-4
    )


def test_a_packed_batch_holds_no_padding_and_says_where_rows_begin(made_model: Made) -> None:
    from tests.engines.test_local import batch_of

    inputs = engine_of(made_model("roberta"), attention="packed", device="cpu")._inputs(
        batch_of(3, 2, 1)
    )
    assert inputs["input_ids"].tolist() == [[6, 7, 8, 9, 10, 11]]
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 2, 3, 2]]  # behind RoBERTa's padding
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5, 6]
    assert inputs["max_length_q"] == 3
    assert "attention_mask" not in inputs


def test_a_cpu_pads_unless_told_otherwise(made_model: Made) -> None:
    engine = engine_of(made_model("bert"), device="cpu")
    assert not engine.is_packed
    assert engine.model.config._attn_implementation != attention.PACKED


@pytest.mark.parametrize(
    ("architecture", "task", "config", "why"),
    [
        ("gpt2", "embed", {}, "there is no packed embed for GPT2Model"),
        ("qwen3", "classify", {"num_labels": 3}, "no packed classify for Qwen3For"),
        ("eurobert", "classify", {"classifier_pooling": "late"}, "classifier_pooling is late"),
        ("bert", "embed", {"is_decoder": True}, "configured as a decoder"),
    ],
)
def test_packing_that_is_impossible_is_a_usage_error_of_one_line(
    made_model: Made, architecture: str, task: str, config: dict[str, Any], why: str
) -> None:
    folder = made_model(architecture, "Model" if task == "embed" else HEAD, **config)
    with pytest.raises(UsageError, match=f"--attention packed: .*{why}") as error:
        engine_of(folder, task, attention="packed", device="cpu")
    assert "\n" not in str(error.value)


def no_neighbourhood(*tensors: Any) -> torch.Tensor:
    """Attention without bounds: every row sees the whole batch."""
    q, k, v = (x.transpose(0, 1)[None] for x in tensors[:3])
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return found[0].transpose(0, 1)


@pytest.mark.parametrize("head", ["Model", HEAD])
def test_a_model_that_sees_across_rows_is_caught_at_the_start_and_padded(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    folder = made_model("bert", head)
    task = "embed" if head == "Model" else "classify"
    expected = ask(folder, TEXTS, task=task)
    monkeypatch.setattr(attention, "_by_row", no_neighbourhood)
    with pytest.raises(UsageError, match="packed answers differ by"):
        engine_of(folder, task, attention="packed", device="cpu")
    engine = engine_of(folder, task, device="cpu")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        engine._pack(is_wish=False)
    assert not engine.is_packed
    assert "rows are padded, not packed: packed answers differ by" in caplog.text
    # and it answers as ever: the hook and the implementation of the attempt do no harm
    requests = engine.task.encode(expected.chunk, make_encoder(folder, engine.task.spec))
    [batch] = make_batches(expected.chunk.id, requests, BatchBudget(10**6, 10**4))
    for name, values in engine.answer(batch).values.items():
        np.testing.assert_allclose(values, expected.values[name][batch.indices], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fault", ["window", "position", "first state"])
def test_other_ways_to_be_wrong_are_caught_too(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    task = "embed"
    folder = made_model("modernbert")
    if fault == "window":
        real = attention._by_row
        monkeypatch.setattr(attention, "_by_row", lambda *a: real(*a[:-1], (-1, -1)))
    elif fault == "position":
        folder = made_model("roberta")
        monkeypatch.setattr(attention, "first_position", lambda config: 0)
    else:
        task, folder = "classify", made_model("bert", HEAD, num_labels=3)
        monkeypatch.setattr(attention, "_hand_one_state_a_row", lambda *a: None)
    with pytest.raises(UsageError, match="packed (answers differ by|attention fails)"):
        engine_of(folder, task, attention="packed", device="cpu")


def test_an_architecture_that_ignores_the_interface_is_caught_should_it_get_on_the_list(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    monkeypatch.setitem(attention._TASKS, "mpnet", ("embed",))
    monkeypatch.setattr(attention, "_POSITIONS_BEHIND_PADDING", ("mpnet",))
    tokens = json.loads((made_model("bert") / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        vocab_size=len(tokens), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=130, initializer_range=0.4,
    )  # fmt: skip
    transformers.MPNetModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((made_model("bert") / name).read_text())
    with pytest.raises(UsageError, match="packed"):
        engine_of(tmp_path, attention="packed", device="cpu")


def test_attention_without_bounds_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="without the bounds"):
        attention.attend(torch.nn.Module(), states, states, states, None)


def test_a_causal_row_sees_only_what_stands_before_it() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    bounds = torch.tensor([0, 4, 6], dtype=torch.int32)
    found, _ = attention.attend(
        torch.nn.Module(), q, k, v, None, is_causal=True, cu_seq_lens_q=bounds, max_length_q=4
    )
    for start, end in [(0, 4), (4, 6)]:
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (q, k, v)), is_causal=True
        )
        torch.testing.assert_close(found[:, start:end], expected.transpose(1, 2))
