"""The commands before a job: `init` writes its configuration file, `schema` helps an editor with it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from batchinfer.commands.console import is_terminal, print_out, print_to_stderr
from batchinfer.errors import StorageError, UsageError
from batchinfer.hints import did_you_mean
from batchinfer.lean import spare_pandas


def init_command(
    task: Annotated[
        str, typer.Argument(metavar="[TASK]", help="classify, embed, token-classify, …")
    ] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Its columns are looked up and filled in"),
    ] = None,
    *,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here; -: to stdout [default: TASK.yaml]"
        ),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id or local folder")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there")] = False,
) -> None:
    """Write a first configuration file for a task, with every setting explained."""
    spare_pandas()
    from batchinfer.scaffold import SCHEMA_FILE, STARTERS, configuration

    if not task:
        task = _ask({name: starter.about for name, starter in STARTERS.items()})
    if task not in STARTERS:
        raise UsageError(_no_task(task, list(STARTERS)))
    file = output or f"{task}.yaml"
    has_schema = file != "-" and (Path(file).parent / SCHEMA_FILE).is_file()
    text = configuration(task, file, inputs=inputs or (), model=model, has_schema=has_schema)
    if file == "-":
        print_out(text.rstrip("\n"))
        return
    _write(Path(file), text, replaces=force)
    left = [name for name, given in (("inputs", inputs), ("model", model)) if not given]
    look = f"look at {' and '.join(left)} in it, then" if left else "then"
    print_out(f"wrote {file}; {look}\n  batchinfer run --config {shlex.quote(file)}")


def schema_command() -> None:
    """Print the JSON schema of configuration files, by which editors complete and check them."""
    from batchinfer.schema import json_schema

    print_out(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _ask(tasks: dict[str, str]) -> str:
    """The task that somebody at a terminal chooses. Raises UsageError where nobody is there."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise UsageError(f"init: name a task: {', '.join(tasks)}")
    width = max(map(len, tasks))
    print_to_stderr("\n".join(f"  {name:<{width}}  {about}" for name, about in tasks.items()))
    answer: str = typer.prompt("Which task?", err=True)
    return answer.strip()


def _no_task(word: str, tasks: list[str]) -> str:
    if Path(word).exists():
        return f"init {word}: name the task first, as in `batchinfer init classify {word}`"
    hint = did_you_mean(word, tasks)
    return f"init: no task '{word}'; there are: {', '.join(tasks)}{hint}"


def _write(path: Path, text: str, *, replaces: bool) -> None:
    try:
        with path.open("w" if replaces else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path}: is there already; write another with --output, or replace it with --force"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror}; name another with --output"
        ) from None
