"""`tune`."""

from __future__ import annotations

import shutil
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
    is_terminal,
    print_out,
    set_up_logging,
    to_json,
    warn_of_variables,
)
from batchinfer.commands.flags import NOT_TUNED, TUNE_FLAGS
from batchinfer.commands.logfile import open_log_file, open_named
from batchinfer.config import RunConfig, seconds_of
from batchinfer.lean import spare_pandas
from batchinfer.options import options_of


@options_of(TUNE_FLAGS, hidden=NOT_TUNED)
def tune_command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Files, globs, folders or addresses (s3://…)"),
    ] = None,
    *,
    flags: Mapping[str, Any],
    config: ConfigFile = None,
    max_seconds: Annotated[
        str, typer.Option("--max-seconds", metavar="TIME", help="What takes longer is not tried")
    ] = "90",
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="FILE", help="Write here [default: the user's cache]"),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Also draw the plot, as .png or .svg"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", hidden=True)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", hidden=True)] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Find out what runs the model fastest on this input; `run` picks it up."""
    given = {**flags, **({"inputs": tuple(inputs)} if inputs else {})}
    open_named(flags)
    job = RunConfig.load({**given, **({"profile": profile} if profile else {})}, config)
    open_log_file(job.log_file)
    set_up_logging(quiet, verbose)
    warn_of_variables()
    spare_pandas()
    from batchinfer.tuning.command import run_tune

    others = {"profile": profile, "resume": resume, "overwrite": overwrite}
    report = run_tune(
        job,
        max_seconds=seconds_of("--max-seconds", max_seconds),
        plot=plot,
        shows_table=not (quiet or no_progress or json) and is_terminal(sys.stderr),
        shows_lines=not (quiet or no_progress),
        command=(inputs or [], {**flags, **{n: v for n, v in others.items() if v}}, config),
    )
    if json:
        print_out(to_json(report.to_dict()))
    elif not quiet:
        encoding = (sys.stdout and sys.stdout.encoding) or "ascii"
        width = shutil.get_terminal_size().columns
        print_out(report.to_text(width, ascii_only=not encoding.lower().startswith("utf")))
