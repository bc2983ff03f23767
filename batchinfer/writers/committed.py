"""The shards of a job, read without its lock by who must have all of them whole."""

from __future__ import annotations

from batchinfer.core import ChunkId, Shard, parse_shard_name
from batchinfer.errors import JobMismatchError, StorageError
from batchinfer.plan import Plan
from batchinfer.storage import Place, list_names
from batchinfer.writers.footer import FooterError, read_footers


def committed_shards(output: Place, plan: Plan) -> dict[ChunkId, Shard]:
    """The shards of a run folder, by chunk.

    Raises StorageError for a damaged one, JobMismatchError for one of another job.
    """
    shards = {}
    data = output / "data"
    try:
        names = sorted(filter(parse_shard_name, list_names(data)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for name, found in zip(names, read_footers(data, names), strict=True):
        path = data / name
        if isinstance(found, FooterError):
            advice = f"`batchinfer resume {output} --verify` makes it again"
            raise StorageError(f"is damaged: {found.what}", file=str(path), advice=advice)
        if isinstance(found, Exception):
            raise found
        shard, plan_id = found
        is_known = shard.id.segment < len(plan.segments)
        if (
            plan_id != plan.id_of(shard.id.segment)
            or shard.id != parse_shard_name(name)
            or not is_known
        ):
            raise JobMismatchError(
                "belongs to another job", file=str(path), advice="move it out of the run folder"
            )
        shards[shard.id] = shard
    return shards
