"""What is wrong with a command line, in one line: what, and what was probably meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from batchinfer.hints import did_you_mean


def unknown_command(name: str, commands: Iterable[str]) -> str:
    """That there is no such command; a file in its place is an input of `run`."""
    names = list(commands)
    if os.path.exists(name):
        hint = f"; to answer its rows: `batchinfer run {name} -m MODEL -o OUT`"
    else:
        hint = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
    return f"no command '{name}'{hint} (see `batchinfer --help`)"


def wrong_command_line(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """What typer found wrong, with where to look."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else _path(arguments)
    message = " ".join(error.format_message().split()).rstrip(".")
    option = getattr(error, "option_name", "")
    if option and hasattr(error, "possibilities"):
        message = _unknown_option(option, context)
    elif option and message.endswith("requires an argument"):
        message = f"{option} needs a value behind it"
    message = message.replace("Input should be", "should be")  # it has named the flag already
    return f"{message} (see `{path} --help`)"


def _unknown_option(option: str, context: Any) -> str:
    """That a command has no such flag: the one that was meant, or the commands that have it."""
    if context is None:
        return f"no flag {option}"
    own = _options(context.command)
    root = context.find_root().command
    others: Mapping[str, Any] = getattr(root, "commands", {})
    having = [name for name, command in others.items() if option in _options(command)]
    if option in ("--input", "--inputs", "-i") and "--text-column" in own:
        return f"inputs stand without a flag: `{context.command_path} FILE`, not {option} FILE"
    if having:
        return f"`{context.command_path}` has no flag {option}, which is one of {', '.join(having)}"
    hint = did_you_mean(option, (name for name in own if name.startswith("--")))
    return f"`{context.command_path}` has no flag {option}{hint}"


def _options(command: Any) -> list[str]:
    return [
        name
        for one in command.params
        if not getattr(one, "hidden", False)
        for name in (*one.opts, *one.secondary_opts)
        if name.startswith("-")
    ]


def _path(arguments: Sequence[str]) -> str:
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    return f"batchinfer {command}".rstrip()
