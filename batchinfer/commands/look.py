"""The commands that look at a run folder and change nothing: `status` and `errors`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.commands.console import (
    Json,
    Output,
    print_out,
    print_to_stderr,
    safe,
    to_json,
)
from batchinfer.lean import spare_pandas

if TYPE_CHECKING:
    from batchinfer.reporting.failures import Failure, Reason


def status_command(output: Output, *, json: Json = False) -> None:
    """Say how far a run is; works while it is going on."""
    from batchinfer.reporting.status import read_status

    status = read_status(output)
    print_out(to_json(status.to_dict()) if json else status.to_text())


def errors_command(
    output: Output,
    *,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object a line: file, row, error")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Count the reasons; numbers in them are masked")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N lines")
    ] = None,
) -> None:
    """List the rows that failed, as `file:row  reason`; rows count from 0, as `_row` does.

    Works while a run is going on.
    """
    spare_pandas()
    from batchinfer.reporting.failures import count_failures, read_failures, summarize

    count = count_failures(output)
    failures = read_failures(output)
    items: Iterable[Failure | Reason] = summarize(failures) if summary else failures
    lines = (to_json(asdict(item)) if jsonl else str(item) for item in islice(items, limit))
    while block := list(islice(lines, 1000)):
        if not print_out("\n".join(block)):
            return
    if count:
        advice = f"`batchinfer resume {output} --retry-errors` tries them again"
        print_to_stderr(safe(f"batchinfer: failed rows: {count:,}; {advice}"))
    else:
        print_to_stderr("batchinfer: failed rows: none")
