"""Packed attention: the rows of a batch one behind the other, without a token of padding.

transformers calls `attend` where a model would call its own attention. It is registered without a
mask function, so that the model builds no mask at all, and learns from keywords of the forward where
rows begin: on a GPU through PyTorch's own variable-length kernel, on a CPU in groups of rows of about the
same length (engines/grouped.py). What else of a model asks where a row begins is its positions, which are
given, and its classification head, which is handed one state a row.

A model that does not do its attention through this interface would answer nonsense and say nothing.
Hence three nets: a list of architectures that were compared, conditions on the configuration, and a
few rows answered both ways each time a model is loaded (engines/canary.py).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from batchinfer.engines.grouped import attend_in_groups
from batchinfer.engines.quantised import is_quantised
from batchinfer.tasks.base import Head, OnePass
from batchinfer.tasks.embed import PACKED_POOLINGS

#: The name of `attend` among transformers' attention implementations.
PACKED = "batchinfer_packed"

#: What heads an architecture may have, by the `model_type` of its configuration; each was compared
#: with one row at a time. NomicBERT's pooler and Qwen3's classifier look for the row's first or last
#: token on their own, where no hook reaches.
_HEADS: dict[str, tuple[Head, ...]] = {
    "albert": ("none", "row", "tokens", "masks"),
    "bert": ("none", "row", "tokens", "masks"),
    "camembert": ("none", "row", "tokens", "masks"),
    "distilbert": ("none", "row", "tokens", "masks"),
    "electra": ("none", "row", "tokens", "masks"),
    "eurobert": ("none", "row", "tokens", "masks"),
    "modernbert": ("none", "row", "tokens", "masks"),
    "nomic_bert": ("none", "masks"),
    "qwen3": ("none",),
    "roberta": ("none", "row", "tokens", "masks"),
    "xlm-roberta": ("none", "row", "tokens", "masks"),
}
#: Their first position is the one behind the padding token's.
_POSITIONS_BEHIND_PADDING = ("camembert", "roberta", "xlm-roberta")
#: Which states of a row a classifier looks at, by `classifier_pooling`; the others have no such key.
_HEAD_POOLINGS = {"cls": "cls", "bos": "cls", "mean": "mean"}

#: torch 2.10 takes is_causal, 2.11 scale and window_size instead, 2.12 enable_gqa too.
_KEYWORDS = frozenset(inspect.signature(varlen_attn).parameters)


def is_listed(model: Any) -> bool:
    """Whether a model is of an architecture that was compared, and transformers' own."""
    is_own = type(model).__module__.startswith("transformers.")
    return is_own and model.config.model_type in _HEADS


def obstacle(model: Any, task: OnePass, dtype: torch.dtype, device: torch.device) -> str:
    """Why a model cannot run packed, in a few words; "" where it can."""
    config = model.config
    kind = config.model_type
    if not is_listed(model) or task.head not in _HEADS[kind]:
        return f"there is no packed {task.name} for {type(model).__name__}"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"this release's {type(model).__name__} takes no position_ids"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}"
    if getattr(config, "is_decoder", False) or getattr(config, "use_sliding_window", False):
        return "it is configured as a decoder, or with a sliding window"
    if task.head == "row" and getattr(config, "classifier_pooling", "cls") not in _HEAD_POOLINGS:
        return f"its classifier_pooling is {config.classifier_pooling}"
    if kind == "modernbert" and "window_size" not in _KEYWORDS and device.type == "cuda":
        return f"torch {torch.__version__} has no windows in its packed attention"
    if device.type != "cuda":
        return "" if device.type == "cpu" else f"there is none on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 8 or size > 256:
        return f"its heads are of {size}, not of a multiple of 8 up to 256"
    return ""


def obstacle_to_streams(model: Any, *, is_packed: bool) -> str:
    """Why a model cannot answer several batches at a time, in a few words; "" where it can.

    A forward that keeps something in its module would mix them up, and say nothing. Those of the
    architectures that are listed keep nothing, but for positions that follow the longest row so far.
    """
    if not is_packed:
        return f"{type(model).__name__} answers one batch at a time where its rows are padded"
    if is_quantised(model):
        return f"{type(model).__name__} answers one batch at a time: it is quantised"
    names = ("rope_parameters", "rope_scaling")
    rope = str([getattr(model.config, name, None) for name in names])
    if "dynamic" in rope or "longrope" in rope:
        return f"{type(model).__name__} answers one batch at a time: its positions depend on it"
    return ""


def enable(model: Any, head: Head) -> None:
    """Have a model take packed rows from here on. Only where `obstacle` finds none."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, attend)
    model.set_attn_implementation(PACKED)
    if head == "row":
        pooling = _HEAD_POOLINGS[getattr(model.config, "classifier_pooling", "cls")]
        _hand_one_state_a_row(model.base_model, pooling)


def positions(config: Any, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The position of each token in its row: `ids` int64[t], `starts` int64[t] where its row begins.

    Where positions begin behind the padding token's, that token has none of its own, wherever it
    stands: a text that says "<pad>" holds one, too.
    """
    if config.model_type not in _POSITIONS_BEHIND_PADDING:
        return torch.arange(len(ids), device=ids.device) - starts
    padding = int(config.pad_token_id)
    counts = (ids != padding).long()
    so_far = counts.cumsum(0)
    before = (so_far - counts)[starts]
    return (so_far - before) * counts + padding


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row: query [1, heads, t, d], key and value alike, to [1, t, heads, d].

    `cu_seq_lens_q` int32[rows + 1] is where rows begin, and the end; `max_length_q` the longest row.
    `sliding_window` w: a token sees w - 1 to each side (transformers counts the token itself).
    """
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise ValueError("packed attention was called without the bounds of rows, or with a mask")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    reach = sliding_window - 1 if sliding_window else -1
    window = (reach, 0 if is_causal else reach)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if query.is_cuda:
        return _by_kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[None], None
    return attend_in_groups(q, k, v, cu_seq_lens_q, scaling, window)[None], None


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    options: dict[str, Any] = {}
    if "scale" in _KEYWORDS:
        options["scale"] = scaling
    elif scaling is not None:  # the kernel's own is 1 / sqrt(d)
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "window_size" in _KEYWORDS:
        options["window_size"] = window
    else:
        options["is_causal"] = window == (-1, 0)
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in _KEYWORDS:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    attended: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    return attended  # type: ignore[no-any-return]


def _hand_one_state_a_row(base: Any, pooling: str) -> None:
    """Replace the states that a head will look at: [1, t, h] become [rows, 1, h].

    Heads take the first state of a row, or the mean of all: both are then what they find. BERT's and
    ALBERT's pooler stands between encoder and head, and must be given the same.
    """

    def pool(module: Any, args: Any, keywords: dict[str, Any], output: Any) -> Any:
        bounds = keywords.get("cu_seq_lens_q")
        if bounds is not None:
            states = output.last_hidden_state
            rows = PACKED_POOLINGS[pooling](states[0], bounds)
            output["last_hidden_state"] = rows[:, None].to(states.dtype)
        return output

    source = getattr(base, "encoder", base)
    source.register_forward_hook(pool, with_kwargs=True)
