"""The command line: parse, call, print. The only place that exits.

Nothing heavy is imported until a command needs it: `--help` stays under 0.3 s.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from batchinfer import __version__
from batchinfer.config import RunConfig, knob_of, seconds_of
from batchinfer.errors import BatchInferError, without_secrets
from batchinfer.lean import spare_pandas
from batchinfer.options import options_of

if TYPE_CHECKING:
    from batchinfer.reporting.failures import Failure, Reason
    from batchinfer.reporting.progress import Progress
    from batchinfer.reporting.report import RunReport
    from batchinfer.stop import StopSignal

log = logging.getLogger("batchinfer")

app = typer.Typer(
    name="batchinfer",
    invoke_without_command=True,
    rich_markup_mode=None,  # rich would swallow the [default: …] of the help texts
    pretty_exceptions_enable=False,
    help="Offline batch inference: every row through a model, every row exactly once.",
)

ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file with the same keys as the flags")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON summary, alone, on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen, and why")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress")]
Output = Annotated[str, typer.Argument(metavar="OUT", help="Run folder")]


_RUN_FLAGS = [name for name in RunConfig.model_fields if name != "inputs"]
#: A plan cannot give these: whoever wrote it may be another than who resumes it.
_CONSENTS = ("trust_remote_code", "allow_pickle")
_RESUME_FLAGS = [name for name in _RUN_FLAGS if knob_of(name)["free"] or name in _CONSENTS]
_AUDIT_FLAGS = ["device", *_CONSENTS]
#: `tune` has an option of its own for the profile.
_TUNE_FLAGS = [name for name in _RUN_FLAGS if name != "profile"]
#: What a run writes, and when it stops, is no matter of its speed: `tune` takes these, so that it can
#: stand in the place of `run`, and hands them on to the command that it ends with.
_NOT_TUNED = (
    "output", "keep", "output_prefix", "chunk_rows", "max_errors", "deadline", "batch_timeout",
)  # fmt: skip


@app.command("run")
@options_of(_RUN_FLAGS)
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
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Answer every row of the inputs, and write sharded Parquet."""
    job = RunConfig.load({**flags, **({"inputs": tuple(inputs)} if inputs else {})}, config)
    with _Conduct(quiet, verbose, no_progress) as (progress, stop):
        from batchinfer.runner import run

        report = run(job, resume=resume, overwrite=overwrite, progress=progress, stop=stop)
    _finish(report, as_json=json, quiet=quiet)


@app.command("resume")
@options_of(_RESUME_FLAGS)
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
    variables = {n: v for n, v in RunConfig.variables(os.environ).items() if n in _RESUME_FLAGS}
    changes = {**variables, **flags}
    given = RunConfig.load(flags, environ=os.environ)  # what is wrong is told before all else
    changes.update({name: getattr(given, name) for name in _CONSENTS})
    with _Conduct(quiet, verbose, no_progress) as (progress, stop):
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


@app.command("tune")
@options_of(_TUNE_FLAGS, hidden=_NOT_TUNED)
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
    job = RunConfig.load({**given, **({"profile": profile} if profile else {})}, config)
    _set_up_logging(quiet, verbose)
    spare_pandas()
    from batchinfer.tuning.command import run_tune

    others = {"profile": profile, "resume": resume, "overwrite": overwrite}
    report = run_tune(
        job,
        max_seconds=seconds_of("--max-seconds", max_seconds),
        plot=plot,
        shows_table=not (quiet or no_progress or json) and _is_terminal(sys.stderr),
        shows_lines=not (quiet or no_progress),
        command=(inputs or [], {**flags, **{n: v for n, v in others.items() if v}}, config),
    )
    if json:
        _print(_to_json(report.to_dict()))
    elif not quiet:
        encoding = (sys.stdout and sys.stdout.encoding) or "ascii"
        width = shutil.get_terminal_size().columns
        _print(report.to_text(width, ascii_only=not encoding.lower().startswith("utf")))


@app.command("status")
def status_command(output: Output, *, json: Json = False) -> None:
    """Say how far a run is; works while it is going on."""
    from batchinfer.reporting.status import read_status

    status = read_status(output)
    _print(_to_json(status.to_dict()) if json else status.to_text())


@app.command("doctor")
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
    _print(_to_json(found.to_dict()) if json else found.to_text())
    raise typer.Exit(found.exit_code)


@app.command("verify")
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
    _print(_to_json(found.to_dict()) if json else found.to_text())
    raise typer.Exit(found.exit_code)


@app.command("audit")
@options_of(_AUDIT_FLAGS)
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
    more.update({name: getattr(given, name) for name in _AUDIT_FLAGS})
    with _Conduct(quiet, verbose, no_progress) as (progress, stop):
        from batchinfer.auditing import audit

        found = audit(output, sample=sample, seed=seed, progress=progress, stop=stop, **more)
    if json:
        _print(_to_json(found.to_dict()))
    elif not quiet or found.complaints:
        _print(found.to_text())
    raise typer.Exit(found.exit_code)


@app.command("errors")
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
    lines = (_to_json(asdict(item)) if jsonl else str(item) for item in islice(items, limit))
    while block := list(islice(lines, 1000)):
        if not _print("\n".join(block)):
            return
    if count:
        advice = f"`batchinfer resume {output} --retry-errors` tries them again"
        _print_to_stderr(_safe(f"batchinfer: failed rows: {count:,}; {advice}"))
    else:
        _print_to_stderr("batchinfer: failed rows: none")


class _Conduct:
    """Signals, logging and progress around a run."""

    def __init__(self, quiet: bool, verbose: bool, no_progress: bool) -> None:
        _set_up_logging(quiet, verbose)
        self.shows = not (quiet or no_progress)
        self.before: dict[int, Any] = {}

    def __enter__(self) -> tuple[Progress, StopSignal]:
        spare_pandas()
        from batchinfer.reporting.progress import BarProgress, LogProgress, Silent
        from batchinfer.stop import StopSignal

        stop = StopSignal()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if stop.is_set:
                if _is_terminal(sys.stderr):
                    os.write(2, b"\x1b[?25h\n")  # the bar hid the cursor
                os._exit(128 + number)
            stop.set()
            name = signal.Signals(number).name
            log.warning(f"{name}: finishing what is begun; once more to leave at once")

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and `&` in scripts ignore some
                self.before[number] = signal.signal(number, on_signal)
        if not self.shows:
            return Silent(), stop
        return BarProgress() if _is_terminal(sys.stderr) else LogProgress(), stop

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _set_up_logging(quiet: bool, verbose: bool) -> None:
    logging.raiseExceptions = False  # a closed terminal is no reason to stop
    handler = logging.StreamHandler(sys.stderr) if sys.stderr else logging.NullHandler()
    stamp = "" if _is_terminal(sys.stderr) else "%(asctime)s "
    handler.setFormatter(_SafeFormatter(f"{stamp}batchinfer: %(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


class _SafeFormatter(logging.Formatter):
    """One line a record, without secrets and without codes that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return _safe(super().format(record))


def _finish(report: RunReport, *, as_json: bool, quiet: bool) -> None:
    """Print the summary and exit with the report's code."""
    if as_json:
        _print(_to_json(report.to_dict()))
    elif quiet:
        for line in report.warnings():
            log.warning(line)
    else:
        _print(report.to_text())
    raise typer.Exit(report.exit_code)


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value)  # in ASCII: any name, on any stdout


def _print(text: str) -> bool:
    """Print to stdout; return whether anybody is there to read on."""
    if sys.stdout is None:
        return False
    text = "\n".join(map(_safe, text.split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:  # the reader has gone, or its disk is full; what was done is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            log.warning(f"stdout: {error.strerror}: the summary could not be printed")
        return False
    return True


def _safe(text: str) -> str:
    """A line to show: names in it are other people's, and may hold line breaks or terminal codes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return without_secrets(shown)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _show_version(wanted: bool) -> None:
    if wanted:
        _print(f"batchinfer {__version__}")
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
        _print(context.get_help())
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
    try:
        result = app(args=arguments, standalone_mode=False)
    except BatchInferError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(_one_line(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Exception:
        _print_to_stderr(without_secrets(traceback.format_exc().rstrip()))
        return _fail("internal error: this is a bug in batchinfer, please report it", 1)
    return result if isinstance(result, int) else 0


def _one_line(error: typer.TyperException) -> str:
    """A wrong command line in one line, with where to look."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see `{context.command_path} --help`)" if context else message


def _fail(message: str, code: int) -> int:
    _print_to_stderr(_safe(f"batchinfer: {message}"))
    return code


def _print_to_stderr(text: str) -> None:
    if sys.stderr is not None:  # print() would take stdout instead
        with suppress(OSError):  # a terminal that is gone can be told nothing
            print(text, file=sys.stderr, flush=True)


def _fill_standard_streams() -> None:
    """Open what the caller closed (`2>&-`), or the next file that is opened takes its number.

    Then whatever a library prints to stderr would be written into a shard.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
