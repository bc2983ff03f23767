"""Long texts as overlapping windows, and the answers of windows as those of their texts: no torch.

    [CLS] a b c d e f g [SEP]  ──cut──▶  [CLS] a b c d [SEP]
                                               [CLS] d e f g [SEP]

A text is tokenized whole, and windows are cut from its tokens, so a window has just the tokens that the
text has there. What stands around it (special tokens, the other text of a pair) stands in every window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.core import Int64Array, Requests, Windows

#: Neighbours share this part of a window, where nobody says how many tokens.
_SHARE = 4


@dataclass(frozen=True, slots=True)
class Cuts:
    """n texts as m >= n windows, those of a text one behind the other.

    `windows`: which text each is of, and its fresh tokens. `offsets` int64[m + 1]: where each begins among
    the tokens of all windows. `source` int64[offsets[m]]: where each of those tokens stands among the
    tokens of all texts; `place` int32[offsets[m]]: the same, counted in its own text. `errors`: texts that
    leave no room for windows, and why; they have one window, without tokens.
    """

    windows: Windows
    offsets: Int64Array
    source: Int64Array
    place: npt.NDArray[np.int32]
    errors: Mapping[int, str]


def cut(
    offsets: Int64Array,
    begin: Int64Array,
    end: Int64Array,
    max_length: int,
    stride: int | None,
) -> Cuts:
    """Cut texts of more than `max_length` tokens into windows of so many, the last one of fewer.

    `offsets` int64[n + 1]: where each text begins among the tokens of all. Of those that are cut, tokens
    `begin` to `end` (int64[n], counted in the text) slide, the others stay. `stride`: tokens that
    neighbours share; None: a quarter of those that slide.
    """
    lengths = np.diff(offsets)
    is_long = lengths > max_length
    begin, end = np.where(is_long, begin, 0), np.where(is_long, end, lengths)
    fixed = lengths - (end - begin)
    room = np.where(is_long, max_length - fixed, lengths)
    shared = room // _SHARE if stride is None else np.full(len(room), stride, np.int64)
    is_full = is_long & (room <= np.maximum(shared, 0))
    step = np.where(is_long & ~is_full, room - shared, 1)
    count = np.where(is_long & ~is_full, 1 - (-(end - begin - room) // step), 1)
    errors = {
        int(
            i
        ): f"no room for windows: {fixed[i]:,} of {max_length:,} tokens are taken by what stands in "
        f"each of them{'' if stride is None else f', and neighbours share {stride:,}'}"
        for i in np.flatnonzero(is_full)
    }

    text = np.repeat(np.arange(len(lengths)), count)
    index = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)
    first = begin[text] + index * step[text]
    last = np.minimum(first + room[text], end[text])
    # A window is three runs of its text's tokens: those before what slides, what slides, those behind it.
    runs = np.stack([np.zeros_like(first), first, end[text]], axis=1).ravel()
    sizes = np.stack([begin[text], last - first, lengths[text] - end[text]], axis=1)
    sizes[is_full[text]] = 0
    cost = sizes.sum(axis=1)
    sizes = sizes.ravel()
    ends = np.cumsum(sizes)
    place = np.arange(int(cost.sum())) + np.repeat(runs - (ends - sizes), sizes)
    fresh = np.where(index == 0, cost, last - first - shared[text])
    return Cuts(
        windows=Windows(text.astype(np.int32), fresh.astype(np.int32)),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(cost)]),
        source=place + np.repeat(offsets[:-1][text], cost),
        place=place.astype(np.int32),
        errors=errors,
    )


def whole(requests: Requests, notes: Mapping[str, npt.NDArray[Any]]) -> Requests:
    """One request a text instead of one a window, with each token counted once; `notes` of those tokens."""
    assert requests.windows is not None
    starts = requests.windows.starts
    cost = np.add.reduceat(requests.windows.fresh, starts)
    return Requests(
        row=requests.row[starts],
        cost=cost,
        truncated=np.zeros(len(starts), np.bool_),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(cost, dtype=np.int64)]),
        fields={},
        errors=requests.errors,
        notes=notes,
    )


def mean(
    values: npt.NDArray[Any], windows: Windows, weights: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """The mean of each text's windows: values [m, …], weights [m] (None: all alike) → [texts, …].

    In float64 on the way, so that a text of one window has just its values.
    """
    weights = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    per_window = weights.reshape(-1, *[1] * (values.ndim - 1))
    sums = np.add.reduceat(values * per_window, windows.starts, axis=0)
    means: npt.NDArray[Any] = sums / np.add.reduceat(per_window, windows.starts, axis=0)
    return means.astype(values.dtype)
