"""--compile: a compiled model is trusted after it answered as before, and is for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from batchinfer.engines import local
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from tests.engines.conftest import Made

Compile = Callable[..., None]


def compiled(made_model: Made, monkeypatch: pytest.MonkeyPatch, compile: Compile) -> LocalEngine:
    """An engine whose model was compiled by a stand-in for the compiler."""
    monkeypatch.setattr(local, "_COMPILES", ("cpu",))
    monkeypatch.setattr(nn.Module, "compile", compile)
    spec, folder = describe(str(made_model("bert")), task="embed")
    task = create_task(spec)
    return LocalEngine(task, folder, dtype="float32", device="cpu", compile=True)


def test_a_cpu_is_not_compiled_for(made_model: Made) -> None:
    spec, folder = describe(str(made_model("bert")), task="embed")
    task = create_task(spec)
    with pytest.raises(UsageError, match="--compile: is for CUDA devices, not cpu"):
        LocalEngine(task, folder, dtype="float32", device="cpu", compile=True)


def test_a_compiled_model_that_answers_as_before_is_kept(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    engine = compiled(made_model, monkeypatch, lambda model, **options: calls.append(options))
    assert calls == [{"dynamic": True}], "sizes change from batch to batch"
    assert engine.is_packed


def test_a_compiled_model_that_answers_otherwise_is_refused(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscompile(model: nn.Module, **options: Any) -> None:
        last = model.get_submodule("encoder.layer.1.output.LayerNorm")
        assert isinstance(last.weight, torch.Tensor)
        last.weight.data[0] *= 2

    with pytest.raises(UsageError, match=r"the compiled model changes the answers by 0\.\d+"):
        compiled(made_model, monkeypatch, miscompile)


def test_a_compiled_model_that_answers_nan_is_refused(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscompile(model: nn.Module, **options: Any) -> None:
        last = model.get_submodule("encoder.layer.1.output.LayerNorm")
        assert isinstance(last.weight, torch.Tensor)
        last.weight.data[0] = torch.nan

    with pytest.raises(UsageError, match="the compiled model changes the answers by nan"):
        compiled(made_model, monkeypatch, miscompile)


def test_a_compiler_that_fails_is_told_in_one_line(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: nn.Module, **options: Any) -> None:
        model.forward = lambda **inputs: 1 / 0

    with pytest.raises(UsageError, match="--compile: the compiled model fails: Zero") as error:
        compiled(made_model, monkeypatch, fail)
    assert "\n" not in str(error.value)
