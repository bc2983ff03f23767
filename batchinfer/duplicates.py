"""Requests of the same input within a chunk: one of them is asked, the others get its answer.

Inputs are compared byte by byte, not by a hash: Arrow's dictionary encoding takes each request's tokens
for one value, without a Python object for any. benchmarks/dedup.py measures what that costs where there is
nothing to find.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.core import Int64Array, Requests


def without_duplicates(requests: Requests) -> Requests:
    """The requests, with `same_as` naming for each the first one whose fields are all the same.

    They come back as they are where no two are alike.
    """
    found: tuple[Int64Array, int] | None = None
    for values in requests.fields.values():
        own = _coded(_as_values(values, requests.offsets))
        found = own if found is None else _coded(pa.array(found[0] * own[1] + own[0]))
        if found[1] == len(requests):
            return requests
    if found is None or not len(requests):
        return requests
    codes, number = found
    first = np.empty(number, np.int64)
    backwards = np.arange(len(requests), dtype=np.int64)[::-1]
    first[codes[backwards]] = backwards  # where a code stands several times, what is put last stays
    return dataclasses.replace(requests, same_as=first[codes])


def _coded(values: Any) -> tuple[Int64Array, int]:
    """A number for each value, the same for equal ones, int64[n]; and how many different ones there are."""
    encoded = values.dictionary_encode()
    codes: Int64Array = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, len(encoded.dictionary)


def _as_values(values: npt.NDArray[Any], offsets: Int64Array) -> pa.Array[Any]:
    """What each request owns of a field as one binary value; of a field of texts, its text."""
    if values.dtype == object:
        return pa.array(values, pa.large_string())
    width = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    buffer: Any = pa.py_buffer  # its stubs do not know that arrays are buffers
    buffers = [None, buffer(offsets * width), buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
