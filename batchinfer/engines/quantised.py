"""Checkpoints whose weights were quantised before they were saved: loaded as transformers loads them.

What quantised a model (bitsandbytes, GPTQ, AWQ, torchao, compressed-tensors, …) stands in its
config.json. transformers makes its layers, and needs the library that they are from. They stay as they
are: nothing is cast, no faster layer takes their place, and no two batches go through them at a time.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from batchinfer.core import ModelSpec
from batchinfer.engines.files import read_json
from batchinfer.errors import BatchInferError, ModelError, UsageError, one_line
from batchinfer.readers.base import shown

#: The precisions of what is not quantised: the states, and layers that were left out.
_DTYPES = ("float32", "bfloat16", "float16")


def noted(spec: ModelSpec, folder: Path, model: str, device: str) -> ModelSpec:
    """The spec with how the model's weights are quantised and what it computes in, if they are.

    Raises ModelError where it cannot be loaded onto this device, or a library is missing.
    """
    config = read_json(folder / "config.json", model)
    stated = _stated(config)
    if not stated:
        return spec
    in_bits = stated.get("load_in_8bit") or stated.get("load_in_4bit")
    method = str(stated.get("quant_method") or ("bitsandbytes" if in_bits else "unknown"))
    if "+" in spec.identity:
        raise ModelError(
            f"{model}: its weights are quantised ({shown(method)}), and an adapter cannot be merged into "
            "them; give the model that it was quantised from"
        )
    _require_quantizer(stated, model, method, device)
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return dataclasses.replace(
        spec, quantization=method, dtype=dtype if dtype in _DTYPES else _DTYPES[0]
    )


def require_precision(spec: ModelSpec, engine: str, dtype: str) -> None:
    """See that a quantised model is asked for nothing but what it is. Raises UsageError."""
    if not spec.quantization:
        return
    if engine == "openvino":
        raise UsageError(
            f"--engine openvino: {spec.name} is quantised ({spec.quantization}), which cannot be exported; "
            "use --engine local"
        )
    if dtype not in ("auto", spec.dtype):
        raise UsageError(
            f"--dtype {dtype}: {spec.name} is quantised ({spec.quantization}) and computes in "
            f"{spec.dtype}; leave --dtype out"
        )


def is_quantised(model: Any) -> bool:
    """Whether a model has quantised layers; where a device has no use for them, transformers undoes it."""
    return getattr(model, "hf_quantizer", None) is not None


def _stated(config: Any) -> dict[str, Any]:
    """What a config.json says of quantisation; {} where it says nothing."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(found := part.get("quantization_config"), dict):
            return found
    return {}


def _require_quantizer(stated: dict[str, Any], model: str, method: str, device: str) -> None:
    """Ask transformers whether it can load such weights here. Raises ModelError."""
    from transformers.quantizers.auto import AutoHfQuantizer

    from batchinfer.engines.devices import resolve_device

    known: Any = AutoHfQuantizer
    what = f"{model}: its weights are quantised ({shown(method)})"
    try:
        if not known.supports_quant_method(stated):
            raise ModelError(f"{what}, in a way that this release of transformers does not know")
        quantizer = known.from_config(copy.deepcopy(stated), pre_quantized=True)
        quantizer.validate_environment(device_map={"": resolve_device(device)})
    except BatchInferError:
        raise
    except (
        Exception
    ) as error:  # ImportError names the library; RuntimeError and ValueError the device
        raise ModelError(f"{what}, and cannot be loaded here: {one_line(error)}") from None
