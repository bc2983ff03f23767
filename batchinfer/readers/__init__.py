"""Readers: from the files a user names to chunks of typed rows.

    names ─list_inputs─▶ InputFile ─group_segments─▶ Segment ─read_chunks─▶ Chunk
                             └─inspect_inputs─▶ InputSummary (the schema to read with)

A format supplies a `Reader`: how to take rows from a position in one file. Nothing here needs torch.
"""

from batchinfer.readers.base import Reader, ReadOptions, Rows
from batchinfer.readers.chunking import cut_span, open_reader, read_chunks
from batchinfer.readers.inspection import InputSummary, inspect_inputs
from batchinfer.readers.listing import group_segments, list_inputs
from batchinfer.readers.offsets import OffsetIndex

__all__ = [
    "InputSummary",
    "OffsetIndex",
    "ReadOptions",
    "Reader",
    "Rows",
    "cut_span",
    "group_segments",
    "inspect_inputs",
    "list_inputs",
    "open_reader",
    "read_chunks",
]
