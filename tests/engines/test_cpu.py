"""The CPU recipe: faster layers say what a model's own say, or are not put in their place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from batchinfer.engines import attention, cpu
from batchinfer.engines.canary import distance
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe
from batchinfer.errors import ModelError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import Made, ask
from tests.engines.test_parity import one_by_one


def states_of(model: Any, folder: Path) -> torch.Tensor:
    outputs = one_by_one(model, folder, made.texts(12, seed=3))
    return torch.cat([out.last_hidden_state[0] for out in outputs])


@pytest.mark.parametrize("architecture", sorted({*attention._HEADS, "gpt2"}))
def test_an_optimized_model_answers_as_before_in_float32(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture)
    model = AutoModel.from_pretrained(folder).eval()
    expected = states_of(model, folder)
    cpu.optimize(model, fuses=attention.is_listed(model))
    assert (
        any(isinstance(m, cpu.PrepackedLinear) for m in model.modules()) or architecture == "gpt2"
    )
    torch.testing.assert_close(states_of(model, folder), expected, rtol=1e-4, atol=1e-4)


def test_berts_layers_are_all_replaced(made_model: Made) -> None:
    model = AutoModel.from_pretrained(made_model("bert")).eval()
    layers = model.config.num_hidden_layers
    done = cpu.optimize(model, fuses=True)
    assert f"activations ({layers})" in done
    assert f"joined projections ({layers})" in done
    assert f"residuals ({2 * layers})" in done
    assert not any(isinstance(m, nn.Linear) for m in model.encoder.modules())
    assert isinstance(model.encoder.layer[0].intermediate.intermediate_act_fn, nn.Identity)


def test_projections_of_a_decoder_are_joined_without_all_else(tmp_path: Path) -> None:
    folder = made.make_writer(tmp_path, "llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(30).view(2, 15)
    with torch.inference_mode():
        expected = model(ids).logits
        done = cpu.optimize(model, joins=True)
        found = model(ids).logits
    layers = model.config.num_hidden_layers
    assert f"joined projections ({layers})" in done and "activations" not in done
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_answers_are_no_further_from_float32_than_before(made_model: Made) -> None:
    folder = made_model("bert")
    exact = states_of(AutoModel.from_pretrained(folder).eval(), folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    before = distance(states_of(model, folder), exact)
    assert "joined projections" in cpu.optimize(model, fuses=True)
    after = distance(states_of(model, folder), exact)
    assert 0 < after < 1.2 * before


def test_a_layer_that_says_something_else_stays_out(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_model("bert")
    model = AutoModel.from_pretrained(folder).eval()
    expected = states_of(model, folder)
    monkeypatch.setattr(cpu, "_is_supported", lambda dtype: True)
    real = cpu.PrepackedLinear.forward
    monkeypatch.setattr(cpu.PrepackedLinear, "forward", lambda self, x: real(self, x) * 1.01)
    monkeypatch.setattr(cpu.PrepackedLinear, "plus", lambda self, x, y: real(self, x) - y)
    assert cpu.optimize(model, fuses=True) == "none"
    assert torch.equal(states_of(model, folder), expected)


def test_a_release_without_the_operators_keeps_the_models_own_layers(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModel.from_pretrained(made_model("bert")).eval()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None, raising=False)
    assert cpu.optimize(model, fuses=True) == "plain layers in float32"
    assert not any(isinstance(m, cpu.PrepackedLinear) for m in model.modules())


def test_float16_is_left_alone(made_model: Made) -> None:
    model = AutoModel.from_pretrained(made_model("bert"), dtype=torch.float16).eval()
    assert cpu.optimize(model, fuses=True) == "plain layers in float16"


class Adapted(nn.Linear):
    """As adapters and quantisers do: a linear layer that is more than one."""


def test_only_plain_layers_are_replaced() -> None:
    embedding = nn.Embedding(80, 64)
    tied = nn.Linear(64, 80, bias=False)
    tied.weight = embedding.weight
    hooked = nn.Linear(64, 64)
    hooked.register_forward_pre_hook(lambda _, states: states)
    model = nn.ModuleDict(
        {
            "embedding": embedding, "tied": tied, "hooked": hooked, "adapted": Adapted(64, 64),
            "small": nn.Linear(64, 3), "other": nn.Linear(64, 64, dtype=torch.float16),
            "plain": nn.Linear(64, 64),
        }
    )  # fmt: skip
    assert cpu.optimize(model, fuses=True) == "prepacked layers (1)"
    assert isinstance(model["plain"], cpu.PrepackedLinear)
    assert model["tied"] is tied


def test_joined_projections_serve_each_input_and_keep_nothing() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, size) for size in (64, 32, 32)]
    joined = cpu.JoinedProjections(layers)
    parts = [cpu.Projection(joined, i, layer) for i, layer in enumerate(layers)]
    first, second = torch.randn(2, 5, 64)
    for states in (first, second, first):
        for part, layer in zip(parts, layers, strict=True):
            torch.testing.assert_close(part(states), layer(states), rtol=1e-4, atol=1e-5)
    assert joined._kept.states is None and not joined._kept.parts
    # asked in another order, or for the same one twice, they still answer for their own input
    torch.testing.assert_close(parts[2](first), layers[2](first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[2](first), layers[2](first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[0](second), layers[0](second), rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_is_the_users(made_model: Made) -> None:
    before, every = torch.get_num_threads(), min(cpu._USUAL_THREADS, cpu.usable_cores())
    spec, folder = describe(str(made_model("bert")), task="embed")
    try:
        task = create_task(spec)
        for threads, streams, each in (
            (1, None, 1), (1, 3, 1), (4, None, 1), (4, 2, 2), (4, 1, 4), (12, None, 2), (None, 1, every)
        ):  # fmt: skip
            engine = LocalEngine(
                task, folder, dtype="float32", device="cpu", threads=threads, streams=streams
            )
            assert torch.get_num_threads() == each
            assert engine.threads == (threads or every)
    finally:
        torch.set_num_threads(before)


def test_verbose_says_what_was_done(made_model: Made, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="batchinfer"):
        ask(made_model("bert"), ["one text"], task="embed")
    assert "joined projections" in caplog.text and "threads" in caplog.text


def test_a_model_that_looks_at_its_weights_keeps_its_layers(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer may be used otherwise than by calling it: then the whole model is the judge."""
    folder = made_model("bert")
    expected = ask(folder, ["one text", "another"], task="embed").values["embedding"]
    monkeypatch.setattr(
        cpu.PrepackedLinear, "plus", lambda self, x, y: x @ self.weight.T + self.bias + y
    )
    monkeypatch.setattr(cpu, "_is_supported", lambda dtype: True)
    monkeypatch.setattr(cpu, "_agree", lambda found, expected: True)
    monkeypatch.setattr(
        cpu.ResidualLinear, "forward", lambda self, x, y: self.LayerNorm(self.dense.weight @ x + y)
    )
    with caplog.at_level(logging.WARNING, logger="batchinfer"):
        found = ask(folder, ["one text", "another"], task="embed").values["embedding"]
    assert "the model's own layers are used: putting in faster layers fails" in caplog.text
    assert abs(found - expected).max() < 1e-4


def test_memory_that_runs_out_at_the_start_decides_nothing(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded rows in this run and packed ones in its resume would be two ways to compute a job."""

    def run_out(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(attention, "attend_in_groups", run_out)
    with pytest.raises(ModelError, match="cpu: out of memory for a few rows"):
        ask(made_model("bert"), ["one text"], task="embed")
