"""`demo`: a first run, on reviews and with a small model that come along."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from batchinfer.commands.console import print_out
from batchinfer.errors import StorageError, UsageError
from batchinfer.lean import spare_pandas

_INPUT, _MODEL = "reviews.jsonl", "tiny-sentiment"
#: The broken line among the sample reviews; a run of your own would exit with 65 to tell you.
_ROW_ERRORS = "1"
_COLUMNS = ["_row", "text", "predicted_label", "predicted_score", "_error"]
_SHOWN = 8


def demo_command(
    folder: Annotated[
        str, typer.Argument(metavar="[FOLDER]", help="A new one; the sample is copied into it")
    ] = "batchinfer-demo",
) -> None:
    """Classify 1,000 sample reviews with a small model; both come along, nothing is fetched."""
    place = Path(folder)
    _provide(place)
    output = str(place / "out")
    command = [
        "batchinfer", "run", str(place / _INPUT), "--model", str(place / _MODEL),
        "--output", output, "--max-errors", _ROW_ERRORS, "--overwrite",
    ]  # fmt: skip
    print_out(f"$ {shlex.join(command)}")
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode:
        raise typer.Exit(done.returncode)
    print_out(_rows(place / "out" / "data"))
    print_out(_next(shlex.quote(folder)))


def _provide(place: Path) -> None:
    """Copy the sample into a new folder; what an earlier demo copied stays."""
    try:
        if place.exists() and not (place / _MODEL).is_dir() and any(place.iterdir()):
            raise UsageError(f"{place}: is there and holds other files; name a new folder")
        if not (place / _MODEL).is_dir():
            sample = _sample()
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample / _INPUT, place / _INPUT)
            shutil.copytree(sample / _MODEL, place / _MODEL)
    except OSError as error:
        raise StorageError(f"{error.filename or place}: {error.strerror or error}") from error


def _sample() -> Path:
    """Where the sample lies: in an installed package beside the code, in a checkout in its root."""
    package = Path(__file__).parent.parent
    places = (package / "sample_data", package.parent / "sample_data")
    return next(place for place in places if (place / _MODEL).is_dir())


def _rows(data: Path) -> str:
    """The first rows, and those that could not be read, a line each."""
    spare_pandas()
    import pyarrow.parquet as pq

    rows = pq.read_table(data, columns=_COLUMNS).to_pylist()
    lines = ["", f"The first rows of {data}, and the one that could not be read:"]
    for row in [*rows[:_SHOWN], *(row for row in rows if row["_error"])]:
        text = " ".join((row["text"] or "").split())
        answer = row["_error"] or f"{row['predicted_label']} {row['predicted_score']:.2f}"
        lines.append(f"  {row['_row']:>4}  {text[:60]:<60}  {answer[:70]}")
    return "\n".join(lines)


def _next(folder: str) -> str:
    return f"""
What to try next:
  batchinfer status {folder}/out
  batchinfer export {folder}/out --to reviews.csv
  batchinfer run YOUR_FILE.jsonl -m YOUR_MODEL -o out --text-column YOUR_COLUMN
Kill a run, then: batchinfer resume OUT"""
