"""The digest of typed columns: equal for equal values, however they were read and cut."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from batchinfer.readers.columns import is_list


def digest_of(table: pa.Table) -> bytes:
    """SHA-256 of the values alone: not of what lies in the slots of nulls, nor of how it was cut."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode())
        _update(digest, table.column(name).chunk(0))
    return digest.digest()


def _update(digest: Any, array: Any) -> None:
    digest.update(f"{array.type}:{len(array)}".encode())
    if array.null_count:
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        array = array.drop_null()
    if not len(array):
        return
    kind = array.type
    if pat.is_struct(kind):
        for child in array.flatten():
            _update(digest, child)
    elif pat.is_map(kind):
        _update(digest, array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    elif is_list(kind):
        digest.update(pc.list_value_length(array).to_numpy().tobytes())
        _update(digest, array.flatten())
    elif pat.is_boolean(kind):
        digest.update(np.packbits(array.to_numpy(zero_copy_only=False)).tobytes())
    else:
        batch = pa.RecordBatch.from_arrays([array], ["values"])
        digest.update(memoryview(batch.serialize()))
