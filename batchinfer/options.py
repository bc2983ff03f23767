"""Command-line options out of RunConfig: a command names the fields that it takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Literal

import typer

from batchinfer.config import RunConfig, flag_name, knob_of, parts_of
from batchinfer.knobs import columns_of


def options_of(
    names: Sequence[str], hidden: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each of these fields of RunConfig; `hidden` ones its help leaves out.

    The command receives those that were given as the mapping `flags`; values stay strings, so that
    one place, the model, validates flags, environment and YAML alike.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for n, p in inspect.signature(command, eval_str=True).parameters.items()
            if n != "flags"
        ]
        arguments = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        options = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]

        def call(**values: Any) -> None:
            flags = {n: _merged(n, values.pop(n)) for n in names}
            command(**values, flags={n: v for n, v in flags.items() if v is not None and v != []})

        parameters = [*arguments, *(_option(n, n in hidden) for n in names), *options]
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        vars(call)["__signature__"] = inspect.Signature(parameters)
        return call

    return decorate


def _merged(name: str, value: Any) -> Any:
    """Flags that name columns as one text: in a list, a comma would be of a name."""
    separates = any(
        getattr(part, "func", None) is columns_of for part in RunConfig.model_fields[name].metadata
    )
    return ",".join(value) if separates and value else value


def _option(name: str, is_hidden: bool) -> inspect.Parameter:
    field, knob = RunConfig.model_fields[name], knob_of(name)
    flag = flag_name(name)
    annotation: Any = str | None
    declarations = [flag]
    parts = parts_of(name)
    metavar = "N" if int in parts else "TEXT"
    if field.annotation is bool:
        annotation = bool | None
        declarations = [f"{flag}/--no-{flag[2:]}"] if field.default else [flag]
    elif bool in parts:  # or auto
        annotation = bool | None
        declarations = [f"{flag}/--no-{flag[2:]}"]
    elif tuple in parts or dict in parts:
        annotation = list[str] | None
        metavar = "NAME=TYPE" if dict in parts else "NAME"
    elif typing.get_origin(field.annotation) is Literal:
        metavar = "|".join(typing.get_args(field.annotation))
    if knob["flag"] and not knob["flag"].startswith("--"):
        declarations.append(knob["flag"])
    help_text = field.description or ""
    if (
        "[default" not in help_text
        and field.default not in ("", None, (), False)
        and field.default != {}
    ):
        shown = "on" if field.default is True else field.default
        help_text += f" [default: {shown}]"
    option = typer.Option(
        *declarations,
        help=help_text,
        show_default=False,
        metavar=metavar,
        rich_help_panel=knob["panel"],
        hidden=is_hidden,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )
