"""A model's weights, from a folder with safetensors onto a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from batchinfer.engines.models import quiet
from batchinfer.errors import ModelError, one_line
from batchinfer.tasks.base import Task


def load(
    task: Task,
    folder: Path,
    *,
    dtype: str,
    device: torch.device,
    attention: str,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Any:
    """The model on its device, for inference; `attention` "" is the model's own. Raises ModelError."""
    import transformers

    quiet()
    options = {"attn_implementation": attention} if attention else {}
    name = task.spec.name
    try:
        model, report = getattr(transformers, task.auto_class).from_pretrained(
            folder,
            use_safetensors=None if allow_pickle else True,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
        model = model.to(device).eval()
        task.prepare(model)
    except torch.OutOfMemoryError:
        raise ModelError(f"{name}: does not fit into the memory of {device} in {dtype}") from None
    except Exception as error:  # OSError, SafetensorError, RuntimeError, ImportError, …
        raise ModelError(f"{name}: the weights cannot be loaded: {one_line(error)}") from None
    # BERT's pooler is not in checkpoints of language models, and no pooling of ours uses it.
    has_head = task.head != "none"
    missing = sorted(key for key in report["missing_keys"] if has_head or "pooler" not in key)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{name}: the weights lack {missing[0]}{more}:"
            f" they are not those of a model for --task {task.name}"
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # nothing is generated: no keys and values to keep
    if task.head in ("row", "tokens"):
        _widen_head(model)
    return model


def _widen_head(model: Any) -> None:
    """Compute the logits in float32: in bfloat16 neighbouring scores would round to the same."""
    for name, module in model.named_modules():
        # "score" is a decoder's head, which looks at every token: too many to widen.
        is_last = isinstance(module, torch.nn.Linear) and module.out_features == model.num_labels
        if is_last and not name.startswith(model.base_model_prefix + ".") and name != "score":
            module.float().register_forward_pre_hook(lambda _, states: (states[0].float(),))


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
