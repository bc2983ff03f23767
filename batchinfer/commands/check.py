"""The commands that examine: `doctor` a machine, `verify` the rows, `audit` the answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from batchinfer.commands.console import (
    Conduct,
    Json,
    NoProgress,
    Output,
    Quiet,
    Verbose,
    print_out,
    to_json,
)
from batchinfer.commands.flags import AUDIT_FLAGS
from batchinfer.config import RunConfig
from batchinfer.lean import spare_pandas
from batchinfer.options import options_of


def doctor_command(
    output: Annotated[
        str, typer.Argument(metavar="[OUT]", help="A run folder, or where one is to be")
    ] = "",
    *,
    json: Json = False,
) -> None:
    """Show what is here to work with, what is missing for what, and whether a folder can take a job."""
    spare_pandas()
    from batchinfer.doctor import examine

    found = examine(output)
    print_out(to_json(found.to_dict()) if json else found.to_text())
    raise typer.Exit(found.exit_code)


def verify_command(
    output: Output,
    *,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs/--no-inputs", help="Read the inputs again too, and compare row by row"
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Prove that every input row stands in the output exactly once; changes nothing."""
    spare_pandas()
    from batchinfer.verification import verify

    found = verify(output, inputs=inputs)
    print_out(to_json(found.to_dict()) if json else found.to_text())
    raise typer.Exit(found.exit_code)


@options_of(AUDIT_FLAGS)
def audit_command(
    output: Output,
    *,
    flags: Mapping[str, Any],
    sample: Annotated[
        int, typer.Option("--sample", min=1, metavar="N", help="Rows that are computed again")
    ] = 200,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, metavar="N", help="Draws the rows: the same ones each time"),
    ] = 0,
    max_flips: Annotated[
        float | None,
        typer.Option(
            "--max-flips",
            metavar="SHARE",
            help="Share of rows whose label may differ [default: 0.005]",
        ),
    ] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(
            "--max-difference", metavar="X", help="How far a score may be off [default: 0.02]"
        ),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", metavar="X", help="How near vectors must be [default: 0.999]"),
    ] = None,
    max_other_words: Annotated[
        float | None,
        typer.Option(
            "--max-other-words",
            metavar="SHARE",
            help="Share of written texts that may begin with another word [default: 0.2]",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Compute some rows again, each alone in float32, and say how far off the answers are."""
    given = RunConfig.load(flags, environ=os.environ)
    limits = {
        "max_flips": max_flips,
        "max_difference": max_difference,
        "min_cosine": min_cosine,
        "max_other_words": max_other_words,
    }
    more: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    more.update({name: getattr(given, name) for name in AUDIT_FLAGS})
    with Conduct(quiet, verbose, "none" if no_progress else "auto") as (displays, stop):
        from batchinfer.auditing import audit

        found = audit(output, sample=sample, seed=seed, displays=displays, stop=stop, **more)
    if json:
        print_out(to_json(found.to_dict()))
    elif not quiet or found.complaints:
        print_out(found.to_text())
    raise typer.Exit(found.exit_code)
