"""Inputs that a chunk has several times: one is tokenized and asked about, the others get its answer.

Twice it is looked for them: among texts, so that each is tokenized once, and among their tokens, as texts
that differ may be the same to the model (in capitals, or behind its limit). Inputs are compared byte by
byte, not by a hash: Arrow's dictionary encoding takes each for one value, without a Python object for any.
benchmarks/dedup.py measures what that costs where there is nothing to find.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.core import Int64Array, Requests, Windows, runs
from batchinfer.readers.columns import is_list
from batchinfer.tokenization import Encoder, Tokens

#: Of more texts than so many, a sample of so many says whether comparing all of them can pay.
_FEW, _SAMPLE = 4096, 1024


@dataclass(frozen=True, slots=True)
class OncePerText:
    """An encoder that has another one encode each text, or pair of texts, once.

    But for chunks where no two texts of a sample are alike: a few duplicates cost less than to find them.
    Their tokens are the same either way.
    """

    encoder: Encoder

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode as the other one would; lists of words are left to it as they come."""
        if is_list(texts.type):
            return self.encoder.encode(texts, pairs)
        if len(texts) > _FEW and _coded(texts.take(_sample(len(texts))))[1] == _SAMPLE:
            return self.encoder.encode(texts, pairs)
        codes, number = _coded(texts)
        if pairs is not None and number < len(texts):
            codes, number = _together((codes, number), _coded(pairs))
        if number == len(texts):
            return self.encoder.encode(texts, pairs)
        first: Any = pa.array(_first(codes, number))
        some = None if pairs is None else pairs.take(first)
        return _repeated(self.encoder.encode(texts.take(first), some), codes)


def without_duplicates(requests: Requests) -> Requests:
    """The requests, with `same_as` naming for each the first one whose fields are all the same.

    They come back as they are where no two are alike.
    """
    found: tuple[Int64Array, int] | None = None
    for values in requests.fields.values():
        own = _coded(_as_values(values, requests.offsets))
        found = own if found is None else _together(found, own)
        if found[1] == len(requests):
            return requests
    if found is None or not len(requests):
        return requests
    codes, number = found
    return dataclasses.replace(requests, same_as=_first(codes, number)[codes])


def _coded(values: Any) -> tuple[Int64Array, int]:
    """A number for each value, the same for equal ones, int64[n]; and how many different ones there are."""
    encoded = values.dictionary_encode()
    codes: Int64Array = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, len(encoded.dictionary)


def _sample(number: int) -> Any:
    """Places of a sample, the same each time."""
    return pa.array(np.sort(np.random.default_rng(0).permutation(number)[:_SAMPLE]))


def _together(one: tuple[Int64Array, int], other: tuple[Int64Array, int]) -> tuple[Int64Array, int]:
    """The numbers of values that have two parts."""
    return _coded(pa.array(one[0] * other[1] + other[0]))


def _first(codes: Int64Array, number: int) -> Int64Array:
    """Where each of so many codes stands first."""
    first = np.empty(number, np.int64)
    backwards = np.arange(len(codes), dtype=np.int64)[::-1]
    first[codes[backwards]] = backwards  # where a code stands several times, what is put last stays
    return first


def _as_values(values: npt.NDArray[Any], offsets: Int64Array) -> pa.Array[Any]:
    """What each request owns of a field as one binary value; of a field of texts, its text."""
    if values.dtype == object:
        return pa.array(values, pa.large_string())
    width = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    buffer: Any = pa.py_buffer  # its stubs do not know that arrays are buffers
    buffers = [None, buffer(offsets * width), buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _repeated(tokens: Tokens, texts: Int64Array) -> Tokens:
    """The tokens of these texts, in this order and as often."""
    chosen, windows = texts, tokens.windows
    if windows is not None:
        counts = windows.counts[texts]
        chosen = runs(windows.starts[texts], counts)
        number = np.repeat(np.arange(len(texts), dtype=np.int32), counts)
        windows = Windows(number, windows.fresh[chosen])
    lengths = np.diff(tokens.offsets)[chosen]
    source = runs(tokens.offsets[chosen], lengths)
    errors = {}
    if tokens.errors:
        wrong = np.isin(texts, np.fromiter(tokens.errors, np.int64))
        errors = {int(i): tokens.errors[int(texts[i])] for i in np.flatnonzero(wrong)}
    return Tokens(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        fields={name: values[source] for name, values in tokens.fields.items()},
        truncated=tokens.truncated[chosen],
        errors=errors,
        notes={name: values[source] for name, values in tokens.notes.items()},
        windows=windows,
    )
