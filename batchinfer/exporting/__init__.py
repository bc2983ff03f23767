"""export(): the rows of a run as one file, for whoever wants a file.

    OUT/data ─source─▶ tables, in input order ─targets─▶ Target ─┬─ ParquetFile: row groups
                       (columns, errors)                         └─ TextFile: lines, by texts.py

A source gives what a shard holds, a target takes tables of one schema, and neither knows the other: a
further kind of target is one more entry of `targets.TARGETS`. No more than a few shards are in memory.
"""

from batchinfer.exporting.job import Export, export

__all__ = ["Export", "export"]
