"""The engines by name. Only the one that is asked for is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.core import ModelSpec
from batchinfer.engines import modules, placement
from batchinfer.engines.base import Engine
from batchinfer.errors import UsageError
from batchinfer.tasks.base import OnePass, Task
from batchinfer.tasks.features import as_tensors
from batchinfer.tasks.generation import Generation
from batchinfer.tasks.module import Module
from batchinfer.tokenization import Encoder, NoEncoder

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

__all__ = [
    "Engine",
    "create_encoder",
    "create_engine",
    "describe_model",
    "kind_of_device",
    "prepare_to_decode",
    "require_fit",
    "resolve_dtype",
]


#: Settings of answers that are text, which a model's own settings complete.
_WRITING = (
    "max_new_tokens", "temperature", "top_k", "top_p", "stop", "generation_config", "chat",
)  # fmt: skip


def describe_model(
    config: RunConfig, schema: pa.Schema | None = None, widths: Mapping[str, int] | None = None
) -> tuple[ModelSpec, Path | None]:
    """What the job's model is, and the folder that holds it; no weights are loaded, but of a module.

    `schema`: the columns of the input, and `widths` the numbers in a row of those that hold lists: they
    matter to --task module. Raises ModelError where it cannot be had or does not fit the task, UsageError
    where it does not go with what is asked of it.
    """
    columns = schema or pa.schema([])
    if config.engine == "fake":
        from batchinfer.engines import fake

        features = config.features if config.task == "module" else ()
        inputs = as_tensors(features, columns, widths or {})
        spec = fake.describe(
            config.task, config.max_length, config.max_new_tokens, config.chat, inputs
        )
        return spec, None
    require_fit(config)
    if config.task == "module":
        return modules.describe(config, columns, widths or {})
    from batchinfer.engines import models

    spec, folder = models.describe(
        config.model,
        revision=config.revision,
        task=config.task,
        max_length=config.max_length,
        pairs=config.text_pair_column is not None or config.task == "zero-shot",
        writing={name: getattr(config, name) for name in _WRITING},
        windows=config.long == "stride",
        stride=config.stride,
        adapter=config.adapter,
        device=config.main_device,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    if config.engine == "openvino" and spec.generation:
        raise UsageError(f"--engine openvino: not with --task {spec.task}; leave it out")
    return spec, folder


def resolve_dtype(config: RunConfig, spec: ModelSpec) -> str:
    """The precision that `auto` stands for on this machine; a quantised model has its own.

    Raises UsageError where the engine or the device is not there, and for another precision than that.
    """
    if config.engine == "fake":
        return "float32"
    require_fit(config)
    from batchinfer.engines import devices, quantised

    if spec.task == "module" and config.dtype == "auto":
        # A risk model's scores are not rounded unasked.
        devices.resolve_device(config.main_device)
        return "float32"
    quantised.require_precision(spec, config.engine, config.dtype)
    return spec.dtype or devices.resolve_dtype(
        config.dtype, "cpu" if config.engine == "openvino" else config.main_device
    )


def kind_of_device(config: RunConfig) -> str:
    """What kind of device the job computes on; jobs on the same kind share budgets and profiles.

    Raises UsageError where the device is not there.
    """
    if config.engine in ("fake", "openvino"):
        return "cpu"
    from batchinfer.engines import devices

    return devices.device_kind(config.main_device)


def devices_of(config: RunConfig) -> list[str]:
    """The devices that the job computes on, one of them as often as it has processes.

    Raises UsageError where one of them is not there.
    """
    if config.devices is None:
        return [config.device]
    if config.device != "auto":
        raise UsageError(f"--devices {config.devices}: not with --device {config.device}")
    kind, _, count = config.devices.partition(":")
    if kind == "cpu":
        return [kind] * int(count)
    if config.engine == "fake":
        return ["auto"] * len(config.devices.split(","))
    if config.engine == "openvino" and config.devices == "auto":
        return ["cpu"]
    from batchinfer.engines import devices

    return devices.resolve_devices(config.devices)


def create_encoder(config: RunConfig, spec: ModelSpec, folder: Path | None) -> Encoder:
    """What turns text into the engine's tokens; it pickles."""
    if spec.task == "module":
        return NoEncoder()
    if folder is None:
        from batchinfer.engines.fake import FakeEncoder

        return FakeEncoder(
            spec.max_length,
            notes_places=spec.task == "token-classify",
            windows=config.long == "stride",
            stride=config.stride,
            mask_token=spec.mask_token,
        )
    from batchinfer.engines import models

    return models.make_encoder(
        folder,
        spec,
        trust_remote_code=config.trust_remote_code,
        windows=config.long == "stride",
        stride=config.stride,
    )


def prepare_to_decode(task: Task, config: RunConfig, folder: Path | None) -> None:
    """Give a task what its `decode` needs of the model's files; no weights are loaded."""
    if not task.writes_tokens or task.detokenizer is not None:
        return
    if folder is None:
        from batchinfer.engines.fake import FakeDetokenizer

        task.detokenizer = FakeDetokenizer()
    else:
        from batchinfer.engines import models

        task.detokenizer = models.make_detokenizer(
            folder, task.spec, trust_remote_code=config.trust_remote_code
        )


def create_engine(
    config: RunConfig, task: Task, folder: Path | None, *, plain: bool = False
) -> Engine:
    """Load the model onto the device. Raises ModelError, or UsageError for a device that is not there.

    `plain`: of the local engine, the model as transformers has it: what other answers are judged by.
    """
    if folder is None:
        from batchinfer.engines.fake import FakeEngine

        return FakeEngine(task)
    if isinstance(task, Module):
        from batchinfer.engines.tabular import ModuleEngine

        return ModuleEngine(task, config)
    from batchinfer.engines import files, quantised

    quantised.require_precision(task.spec, config.engine, config.dtype)
    adapter = None
    if config.adapter is not None:
        adapter = files.find_again(config.adapter, task.spec.identity)
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "attention": config.attention,
        "threads": config.threads,
        "streams": config.streams,
        "compile": config.compile,
        "adapter": adapter,
        "trust_remote_code": config.trust_remote_code,
        "allow_pickle": config.allow_pickle,
    }
    if (placed := placement.Placement.of(config)) is not None:
        options["placement"] = placed
    if isinstance(task, Generation):
        from batchinfer.engines.continuous import ContinuousEngine

        return ContinuousEngine(task, folder, plain=plain, **options)
    assert isinstance(task, OnePass)
    if config.engine == "openvino":
        from batchinfer.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(task, folder, **options)
    from batchinfer.engines.local import LocalEngine

    return LocalEngine(task, folder, plain=plain, **options)


def require_fit(config: RunConfig) -> None:
    """See that the engine can do what is asked of it, where it cannot do all. Raises UsageError."""
    if config.engine != "fake":
        placement.require(config)
        if config.devices is not None:
            devices_of(config)
    if config.task == "module" and config.engine != "fake":
        modules.require(config)
    if config.engine == "openvino":
        from batchinfer.engines import openvino

        openvino.require(
            device=config.main_device,
            dtype=config.dtype,
            attention=config.attention,
            compile=config.compile,
        )
