"""The command line: parse, call, print. The only place that exits.

Nothing heavy is imported until a command needs it: `--help` stays under 0.3 s.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchinfer import __version__
from batchinfer.commands.begin import init_command, schema_command
from batchinfer.commands.check import audit_command, doctor_command, verify_command
from batchinfer.commands.console import complain, print_out, print_to_stderr
from batchinfer.commands.demo import demo_command
from batchinfer.commands.export import export_command
from batchinfer.commands.logfile import close_log_file, note
from batchinfer.commands.look import errors_command, status_command
from batchinfer.commands.mistakes import unknown_command, wrong_command_line
from batchinfer.commands.plan import plan_command
from batchinfer.commands.report import report_command
from batchinfer.commands.run import resume_command, run_command
from batchinfer.commands.tune import tune_command
from batchinfer.errors import BatchInferError, UsageError, without_secrets


class _Commands(TyperGroup):
    """The commands; one that there is not is told with those that there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(unknown_command(args[0], self.commands))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="batchinfer",
    cls=_Commands,
    invoke_without_command=True,
    rich_markup_mode=None,  # rich would swallow the [default: …] of the help texts
    pretty_exceptions_enable=False,
    help="Offline batch inference: every row through a model, every row exactly once.",
)

COMMANDS: Mapping[str, Callable[..., None]] = {
    "run": run_command,
    "resume": resume_command,
    "plan": plan_command,
    "tune": tune_command,
    "status": status_command,
    "doctor": doctor_command,
    "verify": verify_command,
    "audit": audit_command,
    "errors": errors_command,
    "report": report_command,
    "export": export_command,
    "demo": demo_command,
    "init": init_command,
    "schema": schema_command,
}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_out(f"batchinfer {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version"),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print_out(context.get_help())
        raise typer.Exit(2)


def command() -> None:
    """The console command: `main`, and then the end of the process with its exit code.

    It ends once Python has joined threads and children and called what is to be called at exit, and
    before it takes libraries down: where threads of Arrow's are still starting then, they abort the
    process, and its exit code is that of a crash (under load, 1 of 40 commands that had done their work).
    """
    codes: list[int] = []

    def leave() -> None:
        if not codes:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
                stream.flush()
        os._exit(codes[0])

    atexit.register(leave)  # the first to be registered is the last to be called
    codes.append(main())
    sys.exit(codes[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Every error that a user can cause is one line."""
    _fill_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    close_log_file()
    try:
        result = app(args=arguments, prog_name="batchinfer", standalone_mode=False)
    except BatchInferError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(wrong_command_line(error, arguments), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Exception:
        print_to_stderr(without_secrets(traceback.format_exc().rstrip()))
        note(logging.ERROR, traceback.format_exc())
        return _fail("internal error: this is a bug in batchinfer, please report it", 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    complain(message)
    note(logging.ERROR, f"{message} (exit code {code})")
    return code


def _fill_standard_streams() -> None:
    """Open what the caller closed (`2>&-`), or the next file that is opened takes its number.

    Then whatever a library prints to stderr would be written into a shard.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
