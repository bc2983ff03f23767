"""Packed attention: rows one behind the other answer as rows alone do, or are not packed at all."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from batchinfer.batching import make_batches
from batchinfer.core import BatchBudget
from batchinfer.engines import attention, cpu
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import Made, ask
from tests.engines.test_local import batch_of
from tests.engines.test_models import as_sentence_transformer
from tests.engines.test_parity import (
    HEAD,
    assert_labels_differ,
    assert_rows_differ,
    assert_same_vectors,
    cosine,
    one_by_one,
    reference_probabilities,
    reference_vectors,
)

EMBEDDERS = [kind for kind, heads in attention._HEADS.items() if "none" in heads]
CLASSIFIERS = [kind for kind, heads in attention._HEADS.items() if "row" in heads]
TEXTS = made.texts(90, seed=11)
BUDGET = BatchBudget(900, 40)


def engine_of(folder: Path, task: str = "embed", **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task=task)
    return LocalEngine(create_task(spec), place, dtype="float32", **options)


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
    expected = ask(folder, firsts, seconds, attention="sdpa").values
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


@pytest.mark.parametrize("architecture", attention._POSITIONS_BEHIND_PADDING)
def test_a_padding_token_in_a_text_takes_no_position(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture)
    texts = [f"{text[:40]} <pad> {text[40:]}" for text in TEXTS[:20]] + TEXTS[:5]
    expected = reference_vectors(folder, texts)
    found = ask(folder, texts, task="embed", attention="packed", budget=BUDGET)
    assert_same_vectors(found.values["embedding"], expected)
    alone = ask(folder, [text.replace("<pad> ", "") for text in texts], task="embed")
    assert cosine(alone.values["embedding"], expected)[:20].max() < 0.9999, "it says nothing"


def test_the_neighbours_of_a_row_do_not_change_its_answer(made_model: Made) -> None:
    folder = made_model("modernbert")
    together = ask(folder, TEXTS, task="embed", attention="packed", budget=BUDGET)
    alone = ask(folder, TEXTS, task="embed", attention="packed", budget=BatchBudget(1, 1))
    np.testing.assert_allclose(
        together.values["embedding"], alone.values["embedding"], rtol=0, atol=1e-4
    )


def test_a_packed_batch_says_where_rows_begin_and_is_filled_up_to_a_number_that_recurs(
    made_model: Made,
) -> None:
    engine = engine_of(made_model("roberta"), attention="packed", device="cpu")
    inputs = engine._inputs(batch_of(3, 2, 1))
    assert inputs["input_ids"].tolist() == [[6, 7, 8, 9, 10, 11, *[engine.pad_token_id] * 58]]
    # behind RoBERTa's padding, which has the same position wherever it stands
    assert inputs["position_ids"][0, :8].tolist() == [2, 3, 4, 2, 3, 2, 1, 1]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 64]
    assert inputs["max_length_q"] == 58
    assert "attention_mask" not in inputs
    full = engine._inputs(batch_of(40, 24))
    assert full["cu_seq_lens_q"].tolist() == [0, 40, 64]
    assert full["max_length_q"] == 40


def test_what_fills_a_batch_is_in_no_answer(made_model: Made) -> None:
    for head, task in (("Model", "embed"), (HEAD, "classify")):
        engine = engine_of(made_model("bert", head), task, attention="packed", device="cpu")
        for value in engine._forward(batch_of(3, 2, 1)).values():
            assert len(value) == 3
        assert len(engine._outputs(batch_of(3, 2, 1))) == 3


def test_the_canary_has_rows_of_one_length(made_model: Made) -> None:
    lengths = [len(row.fields["input_ids"]) for row in engine_of(made_model("bert"))._sample_rows()]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) < len(lengths), "groups of one length are what a CPU attends to"


def test_a_cpu_packs_where_it_can_unless_told_otherwise(
    made_model: Made, caplog: pytest.LogCaptureFixture
) -> None:
    assert engine_of(made_model("bert"), device="cpu").is_packed
    with caplog.at_level(logging.INFO):
        engine = engine_of(made_model("gpt2"), device="cpu")
    assert not engine.is_packed
    assert "rows are padded, not packed: there is no packed embed for GPT2Model" in caplog.text
    for own in ("sdpa", "eager"):
        engine = engine_of(made_model("bert"), device="cpu", attention=own)
        assert not engine.is_packed
        assert engine.model.config._attn_implementation == own


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
    expected = ask(folder, TEXTS, task=task, attention="sdpa")
    monkeypatch.setattr(attention, "attend_in_groups", no_neighbourhood)
    with pytest.raises(UsageError, match="packed attention changes the answers by"):
        engine_of(folder, task, attention="packed", device="cpu")
    with caplog.at_level(logging.WARNING):
        engine = engine_of(folder, task, device="cpu")
    assert not engine.is_packed
    assert "rows are padded, not packed: packed attention changes the answers by" in caplog.text
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
        real = attention.attend_in_groups
        monkeypatch.setattr(attention, "attend_in_groups", lambda *a: real(*a[:-1], (-1, -1)))
    elif fault == "position":
        folder = made_model("roberta")
        monkeypatch.setattr(
            attention, "positions", lambda config, ids, starts: torch.arange(len(ids)) - starts
        )
    else:
        task, folder = "classify", made_model("bert", HEAD, num_labels=3)
        monkeypatch.setattr(attention, "_hand_one_state_a_row", lambda *a: None)
    with pytest.raises(UsageError, match="packed attention (changes the answers by|fails)"):
        engine_of(folder, task, attention="packed", device="cpu")


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("mpnet", "packed attention changes the answers by"),
        ("deberta-v2", "packed attention changes the answers by"),
        ("t5", "takes no position_ids"),
    ],
)
def test_an_architecture_that_ignores_the_interface_is_caught_should_it_get_on_the_list(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, architecture: str, why: str
) -> None:
    folder = made_model(architecture, "ForTokenClassification", num_labels=3)
    with pytest.raises(UsageError, match="there is no packed token-classify for"):
        engine_of(folder, "token-classify", attention="packed", device="cpu")
    monkeypatch.setitem(attention._HEADS, architecture, ("tokens",))
    monkeypatch.setattr(attention, "_POSITIONS_BEHIND_PADDING", ("mpnet",))
    with pytest.raises(UsageError, match=why):
        engine_of(folder, "token-classify", attention="packed", device="cpu")
    assert not engine_of(folder, "token-classify", device="cpu").is_packed


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


@pytest.mark.parametrize("task", ["embed", "classify"])
@pytest.mark.parametrize("architecture", attention._HEADS)
def test_a_packed_forward_asks_the_device_for_nothing(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, architecture: str, task: str
) -> None:
    """A meta tensor has no values: whatever would wait for one raises."""
    if {"embed": "none", "classify": "row"}[task] not in attention._HEADS[architecture]:
        pytest.skip("not packed")
    config = {"classifier_pooling": "mean"} if architecture in ("modernbert", "eurobert") else {}
    if task == "embed":
        folder = made_model(architecture)
    else:
        folder = made_model(architecture, HEAD, num_labels=3, **config)
    monkeypatch.setattr(cpu, "optimize", lambda model, fuses: "")  # its weights are of a CPU alone
    engine = engine_of(folder, task, attention="packed", device="cpu")
    engine.device, engine.model = torch.device("meta"), engine.model.to("meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the rows' bounds, as a list
        engine._forward(batch_of(7, 5, 2))
    monkeypatch.setattr(attention, "attend_in_groups", lambda query, *_: torch.empty_like(query))
    for name, value in engine._forward(batch_of(7, 5, 2)).items():
        assert value.is_meta
        assert tuple(value.shape) == (3, *engine.task.answers[name].shape)


def of_release(release: str) -> Any:
    """A stand-in for `varlen_attn` with the keywords that a release of torch has."""

    def windowed(q: Any, k: Any, v: Any, bounds: Any, scale: Any, window: Any, gqa: bool) -> Any:
        assert gqa or q.shape[1] == k.shape[1], (
            "the kernel wants as many heads of keys as of queries"
        )
        return attention.attend_in_groups(q, k, v, bounds, scale, window)

    def varlen_2_10(
        q: Any,
        k: Any,
        v: Any,
        cu_q: Any,
        cu_k: Any,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
    ) -> Any:
        return windowed(q, k, v, cu_q, None, (-1, 0) if is_causal else (-1, -1), False)

    def varlen_2_11(
        q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *,
        return_aux: Any = None, scale: float | None = None, window_size: Any = (-1, -1),
    ) -> Any:  # fmt: skip
        return windowed(q, k, v, cu_q, scale, window_size, False)

    def varlen_2_12(
        q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        return windowed(q, k, v, cu_q, scale, window_size, enable_gqa)

    return {"2.10": varlen_2_10, "2.11": varlen_2_11, "2.12": varlen_2_12}[release]


@pytest.mark.parametrize("release", ["2.10", "2.11", "2.12"])
@pytest.mark.parametrize("heads_of_keys", [2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 2)])
def test_the_kernel_is_called_as_each_release_of_torch_wants_it(
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    heads_of_keys: int,
    scaling: float | None,
    window: tuple[int, int],
) -> None:
    if release == "2.10" and window == (2, 2):
        pytest.skip("it has no windows; `obstacle` says so")
    kernel = of_release(release)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_KEYWORDS", frozenset(inspect.signature(kernel).parameters))
    torch.manual_seed(0)
    q, (k, v) = torch.randn(9, 4, 8), torch.randn(2, 9, heads_of_keys, 8)
    bounds = torch.tensor([0, 6, 9], dtype=torch.int32)
    expected = attention.attend_in_groups(q, k, v, bounds, scaling, window)
    found = attention._by_kernel(q, k, v, bounds, 6, scaling, window)
    torch.testing.assert_close(found, expected)


def test_the_kernel_of_this_release_has_the_keywords_that_it_is_given() -> None:
    from torch.nn.attention.varlen import varlen_attn

    parameters = list(inspect.signature(varlen_attn).parameters)
    assert len(parameters[:7]) == 7, "three tensors, two bounds, two longest rows"
    assert {"scale", "window_size", "is_causal"} & set(parameters)


@pytest.mark.parametrize(
    ("dtype", "capability", "config", "why"),
    [
        (torch.bfloat16, (9, 0), {}, ""),
        (torch.float16, (8, 0), {}, ""),
        (torch.float32, (9, 0), {}, "it needs bfloat16 or float16, not float32"),
        (torch.bfloat16, (7, 5), {}, "it needs compute capability 8.0, some GPU has less"),
        (torch.bfloat16, (9, 0), {"num_attention_heads": 16}, "its heads are of 4, not"),
    ],
)
def test_what_a_gpu_cannot_pack_is_known_before_it_is_tried(
    made_model: Made,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    capability: tuple[int, int],
    config: dict[str, Any],
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    model = AutoModel.from_pretrained(made_model("bert", **config))
    task = create_task(describe(str(made_model("bert", **config)), task="embed")[0])
    found = attention.obstacle(model, task, dtype, torch.device("cuda"))
    assert found.startswith(why) and bool(found) == bool(why)
