"""`plan`, and `run --dry-run`, which is the same."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from batchinfer.commands.console import (
    ConfigFile,
    Json,
    NoProgress,
    Quiet,
    Verbose,
    print_out,
    set_up_logging,
    to_json,
)
from batchinfer.commands.flags import RESUME_FLAGS, RUN_FLAGS
from batchinfer.config import RunConfig, flag_name, seconds_of
from batchinfer.errors import UsageError
from batchinfer.lean import spare_pandas
from batchinfer.options import options_of

MaxSeconds = Annotated[
    str | None,
    typer.Option(
        "--max-seconds",
        metavar="TIME",
        help="Of a plan or dry run: the time to measure in, without planning and loading [default: 20]",
    ),
]
Price = Annotated[
    str | None,
    typer.Option(
        "--price-per-hour",
        metavar="AMOUNT",
        help="Of a plan or dry run: what the machine costs an hour; says what the run will cost",
    ),
]


@options_of(RUN_FLAGS)
def plan_command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Files, globs, folders or addresses (s3://…)"),
    ] = None,
    *,
    flags: Mapping[str, Any],
    config: ConfigFile = None,
    max_seconds: MaxSeconds = None,
    price_per_hour: Price = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="As for `run`; a folder that holds the job goes on anyway"),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Plan to replace the job that the run folder holds")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Say what a run will take, from a sample of its rows; writes nothing."""
    foretell(
        (inputs or [], flags, config),
        overwrite=overwrite,
        max_seconds=max_seconds,
        price_per_hour=price_per_hour,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )


def foretell(
    command: tuple[list[str], Mapping[str, Any], str | None],
    *,
    overwrite: bool,
    max_seconds: str | None,
    price_per_hour: str | None,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Make the forecast of a job and print it; `command`: inputs, flags and file, as given."""
    inputs, flags, file = command
    job = RunConfig.load({**flags, **({"inputs": tuple(inputs)} if inputs else {})}, file)
    price = None if price_per_hour is None else _amount("--price-per-hour", price_per_hour)
    set_up_logging(quiet, verbose)
    spare_pandas()
    from batchinfer.forecasting.forecast import MAX_SECONDS, forecast
    from batchinfer.tuning.result import next_command

    seconds = MAX_SECONDS if max_seconds is None else seconds_of("--max-seconds", max_seconds)
    found = forecast(job, overwrite=overwrite, max_seconds=seconds, price_per_hour=price)
    if found.action in ("", "begin", "replace", "join"):
        given = {**flags, **({"overwrite": True} if found.action == "replace" else {})}
        found = dataclasses.replace(found, next_command=next_command(inputs, given, file, job))
    elif found.action == "resume":
        found = dataclasses.replace(found, next_command=_resume_command(found.output, flags))
    if json:
        print_out(to_json(found.to_dict()))
    elif not quiet:
        encoding = (sys.stdout and sys.stdout.encoding) or "ascii"
        print_out(found.to_text(ascii_only=not encoding.lower().startswith("utf")))


def _resume_command(output: str, flags: Mapping[str, Any]) -> str:
    """What to type to have the rest answered as it was foretold."""
    words = ["batchinfer", "resume", output]
    for name, value in flags.items():
        if name not in RESUME_FLAGS:
            continue
        if isinstance(value, bool):
            words.append(flag_name(name) if value else f"--no-{flag_name(name)[2:]}")
        else:
            words += [flag_name(name), str(value)]
    return shlex.join(words)


def _amount(flag: str, value: str) -> float:
    """A sum of money. Raises UsageError for what is none."""
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount >= 0):
        raise UsageError(f"{flag}: should be a number that is not negative, got '{value[:40]}'")
    return amount
