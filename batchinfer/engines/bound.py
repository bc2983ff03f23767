"""A module bound to the columns that it takes: a batch's arrays in, tensors by name out, a row each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from batchinfer.core import TensorSpec
from batchinfer.engines.signature import Match, Signature, match
from batchinfer.errors import ModelError
from batchinfer.tasks.features import STACKED

#: What is written of a tensor's type; of the halves, which few readers know, the next larger one.
_WRITTEN = {"bfloat16": "float32", "float16": "float32"} | {
    name: name
    for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
}
#: Rows of zeros that a module is asked for to see what it gives; of one row it may drop an axis.
_LOOK_ROWS = 3


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module on its device.

    `identity`: a digest of its code and weights. `precision` of its floating inputs, where the signature
    does not say it. It takes `least` to `most` rows (None: any number). `is_pure`: it keeps nothing from
    one call to the next, so that several may be under way.
    """

    call: Any
    kind: str
    signature: Signature
    identity: str
    precision: torch.dtype = torch.float32
    least: int = 1
    most: int | None = None
    is_pure: bool = False


class Bound:
    """A loaded module, which takes these columns. Raises UsageError where it does not.

    Called with tensors by name, or one of all columns side by side, as `features.encode_features` makes
    them, each [b, ...], or lists of b texts.
    """

    def __init__(self, loaded: Loaded, columns: Sequence[TensorSpec]) -> None:
        self.loaded = loaded
        precision = "float64" if loaded.precision == torch.float64 else "float32"
        self.match: Match = match(loaded.signature, columns, precision)
        self._call = loaded.call

    def __call__(self, fields: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The module's tensors by name, each [b, ...]."""
        found = self.match
        names = [STACKED] if found.is_stacked else [one.name for one in found.inputs]
        values = [self._typed(fields[name], i) for i, name in enumerate(names)]
        rows = len(values[0])
        parts = [self._ask([one[s:e] for one in values], e - s) for s, e in self._pieces(rows)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def compile(self) -> None:
        """Compile the module for batches of any size."""
        self._call = torch.compile(self.loaded.call, dynamic=True)

    def outputs(self, device: torch.device) -> tuple[TensorSpec, ...]:
        """What the module gives, found out with rows of zeros. Raises ModelError where it is no table."""
        fields: dict[str, Any] = {}
        width = sum(one.shape[0] if one.shape else 1 for one in self.match.inputs)
        for one in self.match.inputs:
            if one.dtype == "string":
                fields[one.name] = [""] * _LOOK_ROWS
                continue
            name, shape = (STACKED, (width,)) if self.match.is_stacked else (one.name, one.shape)
            dtype = getattr(torch, one.dtype)
            fields[name] = torch.zeros((_LOOK_ROWS, *shape), dtype=dtype, device=device)
        with torch.inference_mode():
            found = self(fields)
        return tuple(self._written(name, value) for name, value in found.items())

    def _written(self, name: str, value: torch.Tensor) -> TensorSpec:
        """The column that a tensor becomes."""
        model, dtype = self.loaded.signature.model, str(value.dtype).removeprefix("torch.")
        if dtype not in _WRITTEN:
            raise ModelError(f"{model} gives '{name}' as {dtype}, which no column holds")
        shape = tuple(value.shape[1:])
        if 0 in shape:
            raise ModelError(f"{model} gives '{name}' with no numbers a row: {list(value.shape)}")
        return TensorSpec(name, _WRITTEN[dtype], () if shape == (1,) else shape)

    def _typed(self, value: Any, index: int) -> Any:
        """Floating numbers in the precision that the parameter wants."""
        if isinstance(value, list) or not value.is_floating_point():
            return value
        wanted = self.match.parameters[index].dtype
        return value.to(getattr(torch, wanted) if wanted else self.loaded.precision)

    def _pieces(self, rows: int) -> Iterator[tuple[int, int]]:
        """Where to cut a batch into what the module takes."""
        size = self.loaded.most or rows
        for start in range(0, rows, size):
            yield start, min(start + size, rows)

    def _ask(self, values: list[Any], rows: int) -> dict[str, torch.Tensor]:
        """Ask for so many rows; where the module wants more of them, the last one is repeated."""
        asked = max(rows, self.loaded.least)
        if asked > rows:
            values = [_repeated(one, asked - rows) for one in values]
        positional, named = [], {}
        for parameter, value in zip(self.match.parameters, values, strict=True):
            if parameter.is_keyword:
                named[parameter.name] = value
            else:
                positional.append(value)
        found = _by_name(self._call(*positional, **named))
        return {name: _rows_of(name, value, asked)[:rows] for name, value in found.items()}


def _repeated(value: Any, times: int) -> Any:
    """A batch with its last row so many times more."""
    if isinstance(value, list):
        return value + value[-1:] * times
    return torch.cat([value, value[-1:].expand(times, *value.shape[1:])])


def _by_name(found: Any) -> dict[str, Any]:
    """What a module gave, by name: prediction; the keys or fields that it has; else numbered."""
    if isinstance(found, Mapping):
        named = {str(name): value for name, value in found.items()}
    elif isinstance(found, tuple) and hasattr(found, "_fields"):
        named = dict(zip(found._fields, found, strict=True))
    elif isinstance(found, tuple | list):
        named = {f"prediction_{i}": value for i, value in enumerate(found)}
    else:
        named = {"prediction": found}
    return {name: value for name, value in named.items() if value is not None}


def _rows_of(name: str, value: Any, rows: int) -> torch.Tensor:
    """A tensor whose first axis is so many rows; of a single row, that axis may have been dropped."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the module gives '{name}' as {type(value).__name__}, not as a tensor")
    if rows == 1 and (value.dim() == 0 or value.shape[0] != 1):
        return value[None]
    if value.dim() == 0 or value.shape[0] != rows:
        raise ValueError(
            f"the module gives '{name}' in shape {list(value.shape)} for {rows} rows: its first axis "
            "should be the rows"
        )
    return value
