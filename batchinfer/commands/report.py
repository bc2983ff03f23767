"""The command that shows a run folder as one page: `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchinfer.commands.console import Json, Output, print_out, to_json
from batchinfer.lean import spare_pandas


def report_command(
    output: Output,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Where the page is written [default: OUT/_batchinfer/report.html; of a store, here]",
        ),
    ] = "",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure how fast this machine multiplies, and how near the run came to it",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show a run folder as one HTML page: figures, charts, errors, what to do next.

    Works while a run is going on. With --json, all figures on stdout, and a page only with --to.
    """
    spare_pandas()
    from batchinfer.reporting.overview.gather import gather
    from batchinfer.reporting.overview.page import (
        default_place,
        render,
        require_matplotlib,
        write_page,
    )

    writes_page = bool(to) or not json
    if writes_page:
        require_matplotlib()
    place = Path(to) if to else default_place(output)
    facts = gather(output, measure=measure)
    if writes_page:
        write_page(render(facts), place)
    print_out(to_json(facts.to_dict()) if json else f"{facts.headline}\n{place}")
