"""The report as one page: HTML that needs nothing else, and runs nothing.

Every value is cleaned where it is printed, whatever it is, and escaped; the page's own policy forbids
scripts and anything from elsewhere.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from batchinfer.errors import JobMismatchError, StorageError, UsageError
from batchinfer.reporting.overview.charts import draw
from batchinfer.reporting.overview.drawing import clean
from batchinfer.reporting.overview.facts import Facts
from batchinfer.reporting.progress import duration
from batchinfer.storage import RemotePath, place_of_output

NAME = "report.html"
#: Runs that the table shows; the last ones.
_MAX_RUNS = 20


def require_matplotlib() -> None:
    """See that charts can be drawn, before anything is read. Raises UsageError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "report: charts need matplotlib: pip install 'batchinfer[report]'; or take --json, which "
            "prints the figures without it"
        ) from None


def default_place(output: str) -> Path:
    """Where the page of a run folder is written, if not said: beside its state, and of a store, here."""
    place = place_of_output(output)
    if isinstance(place, RemotePath):
        stem = place.url.rstrip("/").rpartition("/")[2]
        return Path(f"{stem or 'batchinfer'}-{NAME}")
    state = place / "_batchinfer"
    if state.is_symlink():
        raise JobMismatchError(
            f"{state}: a link, which may lead out of the run folder; put what it points to in its "
            "place, or name a file with --to"
        )
    return state / NAME


def write_page(page: str, path: Path) -> None:
    """Put the page in place, whole; over a file of that name. Raises StorageError.

    No lock is held, as a run may be at work: nothing else writes this name, and nothing reads it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "is a folder")
        with temporary.open("x", encoding="utf-8") as file:  # never through a link
            file.write(page)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the report cannot be written: {error.strerror or error}",
            file=str(path),
            advice="name another place with --to",
        ) from None


def render(facts: Facts) -> str:
    """The page of these facts."""
    import jinja2
    from markupsafe import Markup

    def shown(value: object) -> object:
        return value if isinstance(value, Markup) else clean(value, 1000)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batchinfer.reporting.overview", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, size=size, moment=moment, count=count)
    charts = {
        section: [(chart, Markup(chart.svg)) for chart in several]
        for section, several in draw(facts).items()
    }
    last = facts.runs[-1] if facts.runs else None
    versions = {"batchinfer": last.version, **last.versions} if last else {}
    return environment.get_template("page.html").render(
        facts=facts,
        charts=charts,
        runs=facts.runs[-_MAX_RUNS:],
        last=last,
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version),
    )


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit, letter in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {letter}"
    return f"{num_bytes:,.0f} bytes"


def moment(seconds: float) -> str:
    """A time since 1970 for people, in UTC."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "unknown"


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,.0f}"
