"""`run` and `resume`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from batchinfer.commands.plan import MaxSeconds, Price, foretell
from batchinfer.config import RunConfig
from batchinfer.errors import Interrupted, UsageError
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run will take, as `plan` does")
    ] = False,
    max_seconds: MaxSeconds = None,
    price_per_hour: Price = None,
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
    if dry_run and incremental:
        raise UsageError(
            "--dry-run: not with --incremental; what is new is known when it is answered"
        )
    if dry_run:
        foretell(
            (inputs or [], flags, config),
            overwrite=overwrite,
            max_seconds=max_seconds,
            price_per_hour=price_per_hour,
            json=json,
            quiet=quiet,
            verbose=verbose,
        )
        return
    for flag, given in (("--max-seconds", max_seconds), ("--price-per-hour", price_per_hour)):
        if given is not None:
            raise UsageError(f"{flag}: only with --dry-run, or `batchinfer plan`")
    open_named(flags)
    job = RunConfig.load({**flags, **({"inputs": tuple(inputs)} if inputs else {})}, config)
    open_log_file(job.log_file)
    progress = "none" if no_progress else job.progress
    with Conduct(quiet, verbose, progress) as (displays, stop), _told_in_json(json):
        from batchinfer.runner import run

        report = run(
            job,
            resume=resume,
            overwrite=overwrite,
            incremental=incremental,
            displays=displays,
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
    progress = "none" if no_progress else given.progress
    with Conduct(quiet, verbose, progress) as (displays, stop), _told_in_json(json):
        from batchinfer.runner import resume

        report = resume(
            output,
            retry_errors=retry_errors,
            verify=verify,
            displays=displays,
            stop=stop,
            **changes,
        )
    _finish(report, as_json=json, quiet=quiet)


@contextmanager
def _told_in_json(wanted: bool) -> Iterator[None]:
    """Print the summary of a run that was stopped, too."""
    try:
        yield
    except Interrupted as error:
        if wanted and error.report is not None:
            print_out(to_json(error.report.to_dict()))
        raise


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
