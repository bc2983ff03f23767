"""A model's weights, from a folder with safetensors onto a device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from batchinfer.engines import adapters, placement
from batchinfer.engines.models import quiet
from batchinfer.errors import BatchInferError, ModelError, one_line
from batchinfer.tasks.base import OnePass
from batchinfer.tasks.generation import Generation

log = logging.getLogger("batchinfer")

#: With peft installed, transformers would put an adapter that lies beside a model on it, unasked; a
#: folder that is not there holds none.
_NO_ADAPTER = {"subfolder": "no-adapter"}

#: What mostly helps where files do not hold what they should.
_AGAIN = "if its files are damaged, fetch or save them again"


def load(
    task: OnePass | Generation,
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    attention: str,
    adapter: Path | None = None,
    spread: Mapping[str, Any] | None = None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Any:
    """The model on its device, for inference; `attention` "" is the model's own. Raises ModelError.

    `adapter`: a folder with one of PEFT, which is merged into the weights. `spread`: what has
    `from_pretrained` spread the model over several devices.
    """
    quiet()
    name = task.spec.name
    read = partial(
        _read,
        task,
        folder,
        attention=attention,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    try:
        if spread:
            model = read(dtype, **spread)
            log.debug(placement.described(model))
        elif task.spec.quantization:
            # Onto the device at once: not every quantised layer can be moved there.
            model = read(dtype, device_map={"": device})
        elif adapter is not None:
            model = _merged(read, adapter, dtype, name).to(device)
        else:
            model = read(dtype).to(device)
        model.eval()
        if isinstance(task, OnePass):
            _settle(model, task)
    except BatchInferError:
        raise
    except torch.OutOfMemoryError:
        advice = (
            "; free some, or let --max-memory use less"
            if spread
            else "; --device-map auto spreads it"
        )
        raise ModelError(
            f"{name}: does not fit into the memory of {device} in {dtype}{advice}"
        ) from None
    except Exception as error:  # OSError, SafetensorError, RuntimeError, ImportError, …
        said = str(error)  # torch's own advice is to run what is pickled, or to ask for it
        if "Weights only load failed" in said or "weights_only" in said:
            raise ModelError(
                f"{name}: its pickled weights hold more than tensors, or are damaged, and are not loaded; "
                "take a model with safetensors, or fetch it again"
            ) from None
        advice = "" if "install" in str(error) else f"; {_AGAIN}"
        raise ModelError(
            f"{name}: the weights cannot be loaded: {one_line(error).rstrip('.')}{advice}"
        ) from None
    return model


def _settle(model: Any, task: OnePass) -> None:
    """Leave out what one pass does not need, and put in what the task wants."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # nothing is generated: no keys and values to keep
    if task.head in ("row", "tokens"):
        _widen_head(model)
    task.prepare(model)


def _read(
    task: OnePass | Generation,
    folder: Path,
    dtype: str,
    *,
    attention: str,
    trust_remote_code: bool,
    allow_pickle: bool,
    supplied: frozenset[str] = frozenset(),
    **options: Any,
) -> Any:
    """The model as transformers loads it; `supplied`: weights that need not be in the folder, or fit.

    Raises ModelError where others are missing, and whatever transformers raises.
    """
    import transformers

    if attention:
        options["attn_implementation"] = attention
    if supplied and task.spec.labels:
        options.update(num_labels=len(task.spec.labels), ignore_mismatched_sizes=True)
    model, report = getattr(transformers, task.auto_class).from_pretrained(
        folder,
        use_safetensors=None if allow_pickle else True,
        dtype=getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        adapter_kwargs=_NO_ADAPTER,
        **options,
    )
    # BERT's pooler is not in checkpoints of language models, and no pooling of ours uses it.
    has_head = task.head != "none"
    absent = {key for key in report["missing_keys"] if has_head or "pooler" not in key}
    if "offload_folder" in options and any("pooler" in key for key in report["missing_keys"]):
        model.pooler = None  # weights that are in no file could not be fetched
    absent |= {key for key, *_ in report["mismatched_keys"]}
    if missing := sorted(absent - supplied):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{task.spec.name}: the weights lack {missing[0]}{more}:"
            f" they are not those of a model for --task {task.name}; name another task or model"
        )
    return model


def _merged(read: Callable[..., Any], adapter: Path, dtype: str, name: str) -> Any:
    """The model with an adapter in its weights, in `dtype`.

    They are added in float32, and rounded once. The weights go into a model that was loaded in `dtype`:
    a cast of the whole would round its buffers too, and those of rotary positions must not be.
    """
    supplied = adapters.supplied(adapter)
    exact = adapters.merge(read("float32", supplied=supplied), adapter, name)
    if dtype == "float32":
        return exact
    rounded = read(dtype, supplied=supplied)
    weights = dict(exact.named_parameters())
    with torch.no_grad():
        for key, parameter in rounded.named_parameters():
            parameter.copy_(weights[key])
    return rounded


def _widen_head(model: Any) -> None:
    """Compute the logits in float32: in bfloat16 neighbouring scores would round to the same."""
    labels = model.config.num_labels  # BART's and T5's classifiers have no attribute of this name
    for name, module in model.named_modules():
        # "score" is a decoder's head, which looks at every token: too many to widen.
        is_last = _is_plain(module) and module.out_features == labels
        if is_last and not name.startswith(model.base_model_prefix + ".") and name != "score":
            module.float().register_forward_pre_hook(lambda _, states: (states[0].float(),))


def _is_plain(module: Any) -> bool:
    """Whether it is a linear layer and no more: a quantised one has another class, weight or forward."""
    weight = getattr(module, "weight", None)
    return (
        type(module) is torch.nn.Linear
        and type(weight) is torch.nn.Parameter
        and weight.is_floating_point()
        and "forward" not in vars(module)
    )


def pad_token_id(config: Any, folder: Path, trust_remote_code: bool) -> int:
    """The token that pads; set in the configuration too: decoders that classify look there."""
    text = config.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id >= 0:
        return int(text.pad_token_id)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if token is not None:
            break
    text.pad_token_id = int(token)
    return int(token)
