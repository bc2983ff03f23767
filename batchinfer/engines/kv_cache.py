"""Keys and values of a batch that is being written: memory that is there from the start."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def make_cache(model: Any, capacity: int) -> DynamicCache | None:
    """A cache for as many tokens a row; None for a model that keeps something else than those of each.

    The states of layers without attention cannot be parted by rows.
    """
    if model.config.is_encoder_decoder or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [
        RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache if cache.layers else None


def bytes_a_token(model: Any) -> int:
    """Memory for the keys and values of a token, as far as the configuration tells."""
    config = model.config.get_text_config(decoder=True)
    layers = getattr(config, "num_hidden_layers", 32) * (
        2 if model.config.is_encoder_decoder else 1
    )
    heads = getattr(config, "num_attention_heads", 32)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = next(model.parameters()).element_size()
    return int(2 * layers * kept * width * size)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer, in memory for as many tokens as there can be.

    transformers' own layer makes a copy of all that it holds for each new token.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take [b, heads, t, d] in, and return all that is held, as views."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self._capacity:
            held: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states)
            return held
        if self._memory is None:
            self.lazy_initialization(key_states, value_states)
            self._memory = tuple(  # type: ignore[assignment]
                states.new_empty((*states.shape[:2], self._capacity, states.shape[-1]))
                for states in (key_states, value_states)
            )
        assert self._memory is not None
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, begin:end] = states
        self.keys, self.values = (memory[:, :, :end] for memory in self._memory)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone, in this order."""
        end = self.get_seq_length()
        if self._memory is None or end > self._capacity:  # what is held is no view of it
            super().batch_select_indices(indices)
            return
        keys, values = self._memory
        self._memory = keys[indices], values[indices]
        self.keys, self.values = (memory[:, :, :end] for memory in self._memory)
