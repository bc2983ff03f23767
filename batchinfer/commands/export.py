"""`export`: the rows of a run as one file."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from batchinfer.commands.console import Conduct, Json, Output, Quiet, print_out, to_json


def export_command(
    output: Output,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Write here; .parquet, .jsonl, .csv or .tsv, text also with .gz .zst .bz2 .xz",
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="A,B", help="Only these, in this order [default: all]"),
    ] = None,
    errors: Annotated[
        str,
        typer.Option("--errors", metavar="keep|drop|only", help="What becomes of rows that failed"),
    ] = "keep",
    partial: Annotated[
        bool, typer.Option("--partial", help="Also of an unfinished run: what is there so far")
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            metavar="NAME",
            help="Of .parquet: zstd, snappy, gzip, lz4, none [default: zstd]",
        ),
    ] = None,
    row_group_size: Annotated[
        int | None,
        typer.Option(
            "--row-group-size", min=1, metavar="ROWS", help="Of .parquet [default: 131072]"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the rows of a run into one file, in input order."""
    with Conduct(quiet, verbose=False, progress="none") as (_, stop):
        from batchinfer.exporting import export
        from batchinfer.exporting.source import Errors

        done = export(
            output,
            to,
            columns=_names(columns),
            errors=cast(Errors, errors),
            partial=partial,
            overwrite=overwrite,
            codec=codec,
            row_group_size=row_group_size,
            stop=stop,
        )
    if json:
        print_out(to_json(done.to_dict()))
    elif not quiet:
        print_out(done.to_text())


def _names(columns: list[str] | None) -> list[str] | None:
    """`--columns a,b` and `--columns a --columns b` alike."""
    if columns is None:
        return None
    return [name for value in columns for name in value.split(",")]
