"""Which columns a module takes for which of its inputs: pure decisions, no torch.

A module of one input gets all columns side by side; one of several gets a column for each: by name, where
the names are the same, else in the order in which they were given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from batchinfer.core import TensorSpec
from batchinfer.errors import UsageError
from batchinfer.readers.base import shown

#: Types that numpy has not, and what a batch holds in their place.
_HALVES = {"bfloat16": "float32", "float16": "float32"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input of a module: what `forward` calls it.

    `dtype` (by torch's name) and `shape` (of a row; None: any size) are known of exported programs; ""
    and None of others. `is_keyword`: it is given by name.
    """

    name: str
    dtype: str = ""
    shape: tuple[int | None, ...] | None = None
    is_required: bool = True
    is_keyword: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """What the module `model` takes; `takes_any`: as many inputs as it is given, in order."""

    model: str
    parameters: tuple[Parameter, ...]
    takes_any: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The columns as tensors, in the order in which a module takes them, and its parameters for them.

    `is_stacked`: all of them for one parameter, side by side.
    """

    inputs: tuple[TensorSpec, ...]
    parameters: tuple[Parameter, ...]
    is_stacked: bool = False


def match(signature: Signature, columns: Sequence[TensorSpec], precision: str) -> Match:
    """Give each column its place. Raises UsageError where they do not go with what the module takes.

    `precision`: of numbers that are no integers, where the signature does not say it.
    """
    by_name = {column.name: column for column in columns}
    named = [one for one in signature.parameters if one.name in by_name]
    required = [one for one in signature.parameters if one.is_required]
    if len(columns) > 1 and len(named) == len(columns) and set(required) <= set(named):
        if named != list(signature.parameters[: len(named)]):  # something in between is left out
            named = [dataclasses.replace(one, is_keyword=True) for one in named]
        pairs = [(one, by_name[one.name]) for one in named]
    elif signature.takes_any and not required:
        pairs = [(Parameter(column.name), column) for column in columns]
    elif len(required) <= 1 and signature.parameters:
        only = required[0] if required else signature.parameters[0]
        return _together(signature.model, only, columns, precision)
    elif len(required) == len(columns):
        pairs = list(zip(required, columns, strict=True))
    else:
        wanted = ", ".join(shown(one.name) for one in required) or "none"
        raise UsageError(
            f"{signature.model} takes {len(required)} inputs ({wanted}), and --features names "
            f"{len(columns)} columns: name one for each, in that order"
        )
    inputs = tuple(_alone(signature.model, one, column, precision) for one, column in pairs)
    return Match(inputs, tuple(one for one, _ in pairs))


def _together(
    model: str, parameter: Parameter, columns: Sequence[TensorSpec], precision: str
) -> Match:
    """All columns for one parameter."""
    if len(columns) == 1 and (columns[0].dtype == "string" or parameter.shape == ()):
        return Match((_alone(model, parameter, columns[0], precision),), (parameter,))
    for column in columns:
        _refuse_text(model, column)
    width = sum(column.shape[0] if column.shape else 1 for column in columns)
    shape = (None,) if parameter.shape is None else parameter.shape
    if len(shape) != 1 or shape[0] not in (None, width):
        raise UsageError(
            f"{model} takes {_described(parameter)}, and --features names {width} numbers a row"
        )
    dtype = parameter.dtype or precision
    inputs = [TensorSpec(one.name, _HALVES.get(dtype, dtype), one.shape) for one in columns]
    return Match(tuple(inputs), (parameter,), is_stacked=True)


def _alone(model: str, parameter: Parameter, column: TensorSpec, precision: str) -> TensorSpec:
    """A column for a parameter of its own: integers stay what they are, unless the parameter is typed."""
    if column.dtype == "string" and not parameter.dtype:
        return column
    _refuse_text(model, column)
    dtype = parameter.dtype or (precision if column.dtype == "float32" else column.dtype)
    dtype = _HALVES.get(dtype, dtype)
    wanted, shape = parameter.shape, column.shape
    if wanted is not None and len(wanted) == 1 and not shape:
        shape = (1,)  # [b, 1] takes a number a row as well
    if wanted is not None and (
        len(wanted) != len(shape)
        or any(size not in (None, found) for size, found in zip(wanted, shape, strict=True))
    ):
        holds = f"lists of {column.shape[0]} numbers" if column.shape else "one number a row"
        raise UsageError(
            f"{model} takes {_described(parameter)}, and column '{shown(column.name)}' holds {holds}"
        )
    return TensorSpec(column.name, dtype, shape)


def _refuse_text(model: str, column: TensorSpec) -> None:
    if column.dtype == "string":
        name = shown(column.name)
        raise UsageError(
            f"column '{name}' holds text, and {model} takes numbers there: read it as numbers with "
            f"--schema {name}=float64, or leave it out of --features"
        )


def _described(parameter: Parameter) -> str:
    """A parameter's name, with its type and shape where they are known."""
    if parameter.shape is None:
        return parameter.name
    sizes = ["rows", *("any" if size is None else str(size) for size in parameter.shape)]
    return f"{parameter.name}: {parameter.dtype}[{', '.join(sizes)}]"
