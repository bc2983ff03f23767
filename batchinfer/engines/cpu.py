"""What makes a transformers model fast on a CPU, at the same answers.

Measured on two cores with AMX, and on two with AVX-512 bf16: a linear layer whose weights lie in the
order that oneDNN's kernels want takes half the time in float32 on the latter, and a tenth less in
bfloat16 on both. Where the kernel also adds the residual, or applies the activation, one pass over
the states falls away, and one rounding; the three projections of an attention are one product.

Nothing here is decided by a stopwatch: a job that is resumed must choose as it chose before, or the
last bits of its answers would differ. Every layer that is put in place of another is asked first
whether it gives the same answer, and stays out where it does not.

The operators are PyTorch's own, made for its compiler, and private: they may change with any release.
"""

from __future__ import annotations

import ctypes
import inspect
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import nn

from batchinfer.engines.quantised import is_quantised
from batchinfer.machine import usable_cores

log = logging.getLogger("batchinfer")

#: Below this many inputs or outputs (heads, mostly) a layer takes no time to speak of.
_SMALLEST_LAYER = 64
#: Rows for which the order of the weights is chosen: about a batch's tokens.
_EXPECTED_ROWS = 4096
#: The new layer may differ from the old one by this share; both round, in bfloat16 at other places.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
#: What PyTorch would compute with: one thread a core, or what OMP_NUM_THREADS says.
_USUAL_THREADS = torch.get_num_threads()
#: Projections of one input, by the names that models give them.
_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
#: A linear layer, and the activation behind it.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"))


def tune_allocator() -> bool:
    """Have the C library keep memory that was freed; returns whether it could be told.

    Large tensors are otherwise given back to the system after each layer, and every page of the next
    one is cleared again: 1.1-1.4 times the time, for tensors beyond 32 MiB.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
    if mallopt is None:
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20))
    return all([bool(mallopt(name, value)) for name, value in settings])


def usual_threads() -> int:
    """As many as there are cores to use, or what OMP_NUM_THREADS says."""
    return min(_USUAL_THREADS, usable_cores())


def has_matrix_unit() -> bool:
    """Whether this CPU has AMX, for which PyTorch's own attention is the faster one."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask())


def optimize(model: nn.Module, *, fuses: bool = False, joins: bool = False) -> str:
    """Put faster layers in place of a model's own; return what was done, in a few words.

    `joins`: also projections of the same states, as in models without attention to other states. `fuses`:
    all layers that belong together, which asks that the model calls them as it is known to (the
    architectures of engines/attention.py). Only for float32 and bfloat16; elsewhere nothing is done.
    """
    if is_quantised(model):
        return "its own, which are quantised"
    dtype = next(model.parameters()).dtype
    if dtype not in _TOLERANCE or not _is_supported(dtype):
        return f"plain layers in {str(dtype).removeprefix('torch.')}"
    done: Counter[str] = Counter()
    with torch.inference_mode():
        for module in list(model.modules()):
            if fuses or joins:
                done["joined projections"] += _join_projections(module)
            if fuses:
                done["residuals"] += _join_residual(model, module)
                done["activations"] += _join_activation(module)
        # A head that shares its weights with the embedding would need them twice.
        tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if _is_plain(child, dtype) and id(child.weight) not in tied:
                    new = PrepackedLinear(child.weight, child.bias)
                    done["prepacked layers"] += _put(module, name, new, child)
    return ", ".join(f"{what} ({count})" for what, count in sorted(done.items()) if count) or "none"


class PrepackedLinear(nn.Module):
    """A linear layer, and perhaps the activation behind it, by oneDNN: [..., in] to [..., out].

    `activation`: "none", "relu", or "gelu" with `form` "none" (exact) or "tanh".
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str = "none",
        form: str = "",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        #: Empty; some models look at the type of their weights before they call a layer.
        self.weight = weight.new_empty(0)
        self.bias = None if bias is None else bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), _EXPECTED_ROWS
        )
        self._activation, self._form = activation, form

    @classmethod
    def of(cls, linear: nn.Linear, activation: str = "none", form: str = "") -> PrepackedLinear:
        return cls(linear.weight, linear.bias, activation, form)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self.bias, self._activation, [], self._form
        )
        return answer

    def plus(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The layer's answer and the residual, added before they are rounded."""
        answer: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, residual, self._packed, self.bias, "add"
        )
        return answer


class _Kept(threading.local):
    """Projections of some states that were not asked for yet, for each stream its own."""

    def __init__(self) -> None:
        self.states: torch.Tensor | None = None
        self.parts: dict[int, torch.Tensor] = {}


class JoinedProjections(nn.Module):
    """Several projections of the same states as one product; each is handed out by a `Projection`."""

    def __init__(self, layers: Iterable[nn.Linear]) -> None:
        super().__init__()
        layers = list(layers)
        biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.sizes = [layer.out_features for layer in layers]
        self._product = PrepackedLinear(
            torch.cat([layer.weight.detach() for layer in layers]),
            torch.cat(biases) if biases else None,
        )
        self._kept = _Kept()

    def part(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """One of the projections; all are computed when the first one is asked for."""
        kept = self._kept
        if kept.states is not states or index not in kept.parts:
            kept.states = states
            kept.parts = dict(enumerate(self._product(states).split(self.sizes, dim=-1)))
        found = kept.parts.pop(index)
        if not kept.parts:  # nothing is kept from one batch to the next
            kept.states = None
        return found


class Projection(nn.Module):
    """One of the projections that are joined: [..., in] to [..., out]."""

    def __init__(self, joined: JoinedProjections, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.new_empty(0)
        self._joined, self._index = joined, index

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._joined.part(self._index, states)


class ResidualLinear(nn.Module):
    """A linear layer, a residual and a layer norm, as they stand behind BERT's attention and its MLP."""

    def __init__(self, linear: nn.Linear, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.dense = PrepackedLinear.of(linear)
        self.LayerNorm = norm

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.LayerNorm(self.dense.plus(hidden_states, input_tensor))
        return answer


def _is_supported(dtype: torch.dtype) -> bool:
    """Whether this release of PyTorch has the operators, and this CPU runs them."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    try:
        linear = nn.Linear(_SMALLEST_LAYER, _SMALLEST_LAYER, dtype=dtype)
        states = _states(linear)
        with torch.inference_mode():
            layer = PrepackedLinear.of(linear, "gelu", "none")
            layer.plus(states, states)
            return _agree(layer(states), nn.functional.gelu(linear(states)))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _is_plain(module: Any, dtype: torch.dtype) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer and no more: no adapter, no quantised one, no hooks."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and min(module.weight.shape) >= _SMALLEST_LAYER
        and module.weight.dtype == dtype
        and (module.bias is None or module.bias.dtype == dtype)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )


def _join_projections(module: nn.Module) -> int:
    done = 0
    for names in _PROJECTIONS:
        layers = [getattr(module, name, None) for name in names]
        dtype = getattr(getattr(layers[0], "weight", None), "dtype", torch.float32)
        if not all(_is_plain(layer, dtype) for layer in layers):
            continue
        plain: list[Any] = layers
        if len({(layer.in_features, layer.bias is None) for layer in plain}) > 1:
            continue
        states = _states(plain[0])
        joined = JoinedProjections(plain)
        new = [Projection(joined, index, layer) for index, layer in enumerate(plain)]
        if all(_agree(a(states), b(states)) for a, b in zip(new, plain, strict=True)):
            for name, layer in zip(names, new, strict=True):
                setattr(module, name, layer)
            done += 1
    return done


def _join_residual(model: nn.Module, module: nn.Module) -> int:
    """Replace children of a module that are a linear layer, a residual and a norm."""
    done = 0
    for name, child in list(module.named_children()):
        if {n for n, _ in child.named_children()} != {"dense", "dropout", "LayerNorm"}:
            continue
        linear, norm = child.dense, child.LayerNorm
        if (
            list(inspect.signature(child.forward).parameters) == ["hidden_states", "input_tensor"]
            and isinstance(norm, nn.LayerNorm)
            and isinstance(linear, nn.Linear)
            and _is_plain(linear, linear.weight.dtype)
        ):
            new = ResidualLinear(linear, norm)
            states, residual = _states(linear), _states(linear, linear.out_features)
            if _agree(new(states, residual), child(states, residual)):
                setattr(module, name, new)
                done += 1
    return done


def _join_activation(module: nn.Module) -> int:
    for layer_name, activation_name in _ACTIVATED:
        linear, activation = (getattr(module, n, None) for n in (layer_name, activation_name))
        kind = _KNOWN_ACTIVATIONS.get(type(activation).__name__)
        if (
            kind is None
            or not isinstance(linear, nn.Linear)
            or not isinstance(activation, nn.Module)
        ):
            continue
        if _is_plain(linear, linear.weight.dtype):
            new = PrepackedLinear.of(linear, *kind)
            if _put(module, layer_name, new, nn.Sequential(linear, activation)):
                setattr(module, activation_name, nn.Identity())
                return 1
    return 0


#: Class of an activation in transformers or torch → oneDNN's name and form of it.
_KNOWN_ACTIVATIONS = {
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
    "NewGELUActivation": ("gelu", "tanh"),
    "ReLU": ("relu", ""),
}


def _put(module: nn.Module, name: str, new: PrepackedLinear, old: nn.Module) -> int:
    """Put a layer in the place of another, where both say the same; returns how many were put."""
    states = _states(new)
    if not _agree(new(states), old(states)):
        return 0
    setattr(module, name, new)
    return 1


def _states(layer: Any, features: int = 0) -> torch.Tensor:
    """A few states to try a layer with: [1, 5, in], the same ones each time."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(1, 5, features or layer.in_features, generator=draw)
    return states.to(layer.weight.dtype)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    share = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
    return bool(share <= _TOLERANCE[expected.dtype])
