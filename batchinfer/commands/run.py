"""`run` and `resume`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchinfer.commands.console import (
    Conduct,
    ConfigFile,
    Json,
    NoProgress,
    Output,
    Quiet,
    Verbose,
    print_out,
    to_json,
)
from batchinfer.commands.flags import CONSENTS, RESUME_FLAGS, RUN_FLAGS
from batchinfer.commands.logfile import note, open_log_file, open_named
from batchinfer.config import RunConfig
from batchinfer.options import options_of

if TYPE_CHECKING:
    from batchinfer.reporting.report import RunReport

log = logging.getLogger("batchinfer")


@options_of(RUN_FLAGS)
def run_command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Files, globs, folders or addresses (s3://…)"),
    ] = None,
    *,
    flags: Mapping[str, Any],
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on if the same job is there")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the job that the run folder holds")
    ] = False,
    incremental: Annotated[
        bool,
        typer.Option(
            "--incremental", help="Go on, and also answer what was added to the inputs since"
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Answer every row of the inputs, and write sharded Parquet."""
    open_named(flags)
    job = RunConfig.load({**flags, **({"inputs": tuple(inputs)} if inputs else {})}, config)
    open_log_file(job.log_file)
    with Conduct(quiet, verbose, no_progress) as (progress, stop):
        from batchinfer.runner import run

        report = run(
            job,
            resume=resume,
            overwrite=overwrite,
            incremental=incremental,
            progress=progress,
            stop=stop,
        )
    _finish(report, as_json=json, quiet=quiet)


@options_of(RESUME_FLAGS)
def resume_command(
    output: Output,
    *,
    flags: Mapping[str, Any],
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Also try the rows again that have errors")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every page first; make damaged shards again"),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Go on after any failure; the run folder knows its job."""
    open_named(flags)
    variables = {n: v for n, v in RunConfig.variables(os.environ).items() if n in RESUME_FLAGS}
    changes = {**variables, **flags}
    given = RunConfig.load(flags, environ=os.environ)  # what is wrong is told before all else
    changes.update({name: getattr(given, name) for name in CONSENTS})
    with Conduct(quiet, verbose, no_progress) as (progress, stop):
        from batchinfer.runner import resume

        report = resume(
            output,
            retry_errors=retry_errors,
            verify=verify,
            progress=progress,
            stop=stop,
            **changes,
        )
    _finish(report, as_json=json, quiet=quiet)


def _finish(report: RunReport, *, as_json: bool, quiet: bool) -> None:
    """Print the summary and exit with the report's code."""
    note(logging.INFO, report.to_text())
    if as_json:
        print_out(to_json(report.to_dict()))
    elif quiet:
        for line in report.warnings():
            log.warning(line)
    else:
        print_out(report.to_text())
    raise typer.Exit(report.exit_code)
