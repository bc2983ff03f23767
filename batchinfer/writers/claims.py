"""Whether a job may have a run folder: what `run` asks before it writes, and `plan` in its place."""

from __future__ import annotations

from batchinfer.errors import JobMismatchError, UsageError
from batchinfer.plan import Plan, first_difference
from batchinfer.sharing import Part
from batchinfer.storage import RemotePath, list_names, place_of_output
from batchinfer.writers.run_folder import has_plan


def refuse_foreign_folder(path: str) -> None:
    """Raise JobMismatchError for a folder with other things in it: it is not ours to write into."""
    if not path or has_plan(path):
        return
    place = place_of_output(path)
    try:
        names = set(list_names(place))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise JobMismatchError(f"{path}: not a folder; name one with --output") from None
    data = place / "data"
    holds_data = isinstance(data, RemotePath) or data.is_dir()
    is_other = names - {"data", "_batchinfer"} or (holds_data and list_names(data))
    if is_other and not has_plan(path):  # asked again: another run may have begun in between
        raise JobMismatchError(
            f"{path}: holds other files and no run of batchinfer; name a new or empty folder with "
            "--output"
        )


def refuse_other_job(held: Plan, plan: Plan) -> None:
    """Raise JobMismatchError where the folder that `plan` names holds another job."""
    if difference := first_difference(held, plan):
        raise JobMismatchError(
            f"{plan.config.output}: holds another job: {difference}; give another --output, or "
            "--overwrite to replace it"
        )


def refuse_increments(held: Plan, output: str) -> None:
    """Raise JobMismatchError where an incremental run has added to the job: a plain one would lack that."""
    if held.increments:
        raise JobMismatchError(
            f"{output}: holds a job that --incremental has added to; say --incremental again, or go on "
            f"with `batchinfer resume {output}`"
        )


def refuse_part_that_overwrites(part: Part | None, overwrite: bool) -> None:
    """Raise UsageError for one part of a job that would replace all of another."""
    if part is not None and overwrite:
        raise UsageError("--shard: not with --overwrite, which needs the folder for itself")
