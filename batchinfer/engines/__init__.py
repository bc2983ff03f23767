"""The engines by name. Only the one that is asked for is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchinfer.core import ModelSpec
from batchinfer.engines.base import Engine
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Encoder

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

__all__ = ["Engine", "create_encoder", "create_engine", "describe_model", "resolve_dtype"]


def describe_model(config: RunConfig) -> tuple[ModelSpec, Path | None]:
    """What the job's model is, and the folder that holds it; no weights are loaded.

    Raises ModelError where it cannot be had or does not fit the task.
    """
    if config.engine == "fake":
        from batchinfer.engines import fake

        return fake.describe(config.task, config.max_length), None
    from batchinfer.engines import models

    return models.describe(
        config.model,
        revision=config.revision,
        task=config.task,
        max_length=config.max_length,
        pairs=config.text_pair_column is not None,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )


def resolve_dtype(config: RunConfig) -> str:
    """The precision that `auto` stands for on this machine."""
    if config.engine == "fake":
        return "float32"
    from batchinfer.engines import devices

    return devices.resolve_dtype(config.dtype, config.device)


def create_encoder(config: RunConfig, spec: ModelSpec, folder: Path | None) -> Encoder:
    """What turns text into the engine's tokens; it pickles."""
    if folder is None:
        from batchinfer.engines.fake import FakeEncoder

        return FakeEncoder(spec.max_length)
    from batchinfer.engines import models

    return models.make_encoder(folder, spec, trust_remote_code=config.trust_remote_code)


def create_engine(config: RunConfig, task: Task, folder: Path | None) -> Engine:
    """Load the model onto the device. Raises ModelError, or UsageError for a device that is not there."""
    if folder is None:
        from batchinfer.engines.fake import FakeEngine

        return FakeEngine(task)
    from batchinfer.engines.local import LocalEngine

    return LocalEngine(
        task,
        folder,
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
        threads=config.threads,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
