"""The engines by name. Only the one that is asked for is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.core import ModelSpec
from batchinfer.engines.base import Engine
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

__all__ = [
    "Engine",
    "create_encoder",
    "create_engine",
    "describe_model",
    "kind_of_device",
    "require_fit",
    "resolve_dtype",
]


def describe_model(config: RunConfig) -> tuple[ModelSpec, Path | None]:
    """What the job's model is, and the folder that holds it; no weights are loaded.

    Raises ModelError where it cannot be had or does not fit the task.
    """
    if config.engine == "fake":
        from batchinfer.engines import fake

        return fake.describe(config.task, config.max_length), None
    require_fit(config)
    from batchinfer.engines import models

    return models.describe(
        config.model,
        revision=config.revision,
        task=config.task,
        max_length=config.max_length,
        pairs=config.text_pair_column is not None or config.task == "zero-shot",
        adapter=config.adapter,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )


def resolve_dtype(config: RunConfig, spec: ModelSpec) -> str:
    """The precision that `auto` stands for on this machine; a quantised model has its own.

    Raises UsageError where the engine or the device is not there, and for another precision than that.
    """
    if config.engine == "fake":
        return "float32"
    require_fit(config)
    from batchinfer.engines import devices, quantised

    quantised.require_precision(spec, config.engine, config.dtype)
    return spec.dtype or devices.resolve_dtype(
        config.dtype, "cpu" if config.engine == "openvino" else config.device
    )


def kind_of_device(config: RunConfig) -> str:
    """What kind of device the job computes on; jobs on the same kind share budgets and profiles.

    Raises UsageError where the device is not there.
    """
    if config.engine in ("fake", "openvino"):
        return "cpu"
    from batchinfer.engines import devices

    return devices.device_kind(config.device)


def create_encoder(config: RunConfig, spec: ModelSpec, folder: Path | None) -> Encoder:
    """What turns text into the engine's tokens; it pickles."""
    if folder is None:
        from batchinfer.engines.fake import FakeEncoder

        return FakeEncoder(spec.max_length, notes_places=spec.task == "token-classify")
    from batchinfer.engines import models

    return models.make_encoder(folder, spec, trust_remote_code=config.trust_remote_code)


def create_engine(
    config: RunConfig, task: Task, folder: Path | None, *, plain: bool = False
) -> Engine:
    """Load the model onto the device. Raises ModelError, or UsageError for a device that is not there.

    `plain`: of the local engine, what other answers are judged by.
    """
    if folder is None:
        from batchinfer.engines.fake import FakeEngine

        return FakeEngine(task)
    from batchinfer.engines import files, quantised

    quantised.require_precision(task.spec, config.engine, config.dtype)
    adapter = None
    if config.adapter is not None:
        adapter = files.find_again(config.adapter, task.spec.identity)
    kind: Callable[..., Engine]
    more: dict[str, Any] = {}
    if config.engine == "openvino":
        from batchinfer.engines.openvino import OpenVinoEngine

        kind = OpenVinoEngine
    else:
        from batchinfer.engines.local import LocalEngine

        kind = LocalEngine
        more = {"plain": plain}
    return kind(
        task,
        folder,
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
        threads=config.threads,
        streams=config.streams,
        compile=config.compile,
        adapter=adapter,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        **more,
    )


def require_fit(config: RunConfig) -> None:
    """See that the engine can do what is asked of it, where it cannot do all. Raises UsageError."""
    if config.engine == "openvino":
        from batchinfer.engines import openvino

        openvino.require(
            device=config.device,
            dtype=config.dtype,
            attention=config.attention,
            compile=config.compile,
        )
