"""The commands that look at a run folder and change nothing: `status` and `errors`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.commands.console import (
    Json,
    Output,
    is_terminal,
    print_out,
    print_to_stderr,
    safe,
    safe_lines,
    to_json,
)
from batchinfer.errors import Interrupted
from batchinfer.lean import spare_pandas

if TYPE_CHECKING:
    from batchinfer.reporting.failures import Failure, Reason
    from batchinfer.reporting.status import Status


def status_command(
    output: Output,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until no run is at work")
    ] = False,
    every: Annotated[
        float,
        typer.Option("--every", min=0.1, metavar="SECONDS", help="--watch: how often to look"),
    ] = 2.0,
    json: Json = False,
) -> None:
    """Say how far a run is; works while it is going on."""
    spare_pandas()
    from batchinfer.reporting.status import read_status

    def shown(status: Status) -> str:
        return to_json(status.to_dict()) if json else status.to_text()

    def look() -> Status:
        while True:
            try:
                return read_status(output)
            except Interrupted:  # it has no plan yet
                if not watch:
                    raise
                time.sleep(every)

    status = look()
    if watch and not json and is_terminal(sys.stdout):
        from rich.live import Live
        from rich.text import Text

        with Live(Text(safe_lines(shown(status))), auto_refresh=False, transient=True) as live:
            while status.state == "running":
                time.sleep(every)
                status = look()
                live.update(Text(safe_lines(shown(status))), refresh=True)
    while watch and status.state == "running" and print_out(shown(status)):
        time.sleep(every)
        status = look()
    print_out(shown(status))


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
