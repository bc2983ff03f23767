"""Attention on a CPU: rows of a packed batch in groups of one width, without a token of padding outside.

Rows come sorted by length, so there are few groups. A group is as wide as its rows are long. With a matrix
unit (AMX) it is a multiple of 16 tokens wide instead: there a row of 127 tokens takes more than twice the
time of one of 128, and hiding a token takes none. What is padded are query, key and value, within the
attention of one layer; nobody else sees it.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from batchinfer.engines.cpu import has_matrix_unit

#: Tokens that a tile of AMX holds. Rows below it take less time as plain products.
_TILE = 16
#: Attention by products holds all scores of a batch: 2 bytes a pair of tokens and head, twice.
_LONGEST_PRODUCTS = 1024

#: Tokens that a token sees to its left and to its right; -1: all of them.
Window = tuple[int, int]


def attend_in_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scaling: float | None,
    window: Window,
) -> torch.Tensor:
    """Attend within each row: query [t, heads, d], key and value alike, to [t, heads, d].

    `bounds` int32[rows + 1]: where rows begin, and the end. `scaling` of the scores; None: 1 / sqrt(d).
    """
    tokens, heads, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    attended = query.new_empty(tokens, heads * size)
    tile = _TILE if query.dtype == torch.bfloat16 and has_matrix_unit() else 1
    for group in _groups_of(bounds, tile):
        q, k, v = (group.take(x) for x in (query, key, value))
        if (times := heads // k.shape[1]) > 1:  # the CPU's kernel knows no groups of heads
            k, v = (x.repeat_interleave(times, dim=1) for x in (k, v))
        group.put(_attend_alike(q, k, v, scaling, window, group), attended)
    return attended.view(tokens, heads, size)


@dataclass
class _Group:
    """Neighbouring rows as a block: tokens `start` to `end` of a batch, `rows` of them, each of `width`.

    Where rows are shorter than that: `source` int64[rows * width], the token of each place (of a place
    behind the end, the row's last one), `place` int64[end - start], where each token is, and `is_token`
    bool[rows, 1, 1, width]. All count from `start`.
    """

    start: int
    end: int
    rows: int
    width: int
    source: torch.Tensor | None = None
    place: torch.Tensor | None = None
    is_token: torch.Tensor | None = None
    #: By window: which keys a query sees.
    _seen: dict[Window, torch.Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, start: int, lengths: list[int], width: int) -> _Group:
        rows, end = len(lengths), start + sum(lengths)
        if end - start == rows * width:
            return cls(start, end, rows, width)
        sizes = np.array(lengths)[:, None]
        places = np.arange(width)
        is_token = places < sizes
        source = (sizes.cumsum() - sizes[:, 0])[:, None] + np.minimum(places, sizes - 1)
        return cls(
            start, end, rows, width,
            torch.from_numpy(source.ravel()), torch.from_numpy(np.flatnonzero(is_token)),
            torch.from_numpy(is_token)[:, None, None],
        )  # fmt: skip

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """Of the batch's states [t, heads, d] the group's: [rows, heads, width, d]."""
        own = states[self.start : self.end]
        if self.source is not None:
            own = own.index_select(0, self.source)
        return own.view(self.rows, self.width, *own.shape[1:]).transpose(1, 2)

    def put(self, found: torch.Tensor, attended: torch.Tensor) -> None:
        """Write the group's answers [rows, heads, width, d] to the batch's [t, heads * d]."""
        own = attended[self.start : self.end]
        flat = found.transpose(1, 2).reshape(self.rows * self.width, -1)
        if self.place is None:
            own.copy_(flat)
        else:
            torch.index_select(flat, 0, self.place, out=own)

    def seen(self, window: Window) -> torch.Tensor | None:
        """Which keys a query sees, bool[rows or 1, 1, width or 1, width]; None: all of them."""
        if window not in self._seen:
            self._seen[window] = self._look(window)
        return self._seen[window]

    def _look(self, window: Window) -> torch.Tensor | None:
        left, right = (side if 0 <= side < self.width - 1 else self.width for side in window)
        if min(left, right) >= self.width:
            return self.is_token
        place = torch.arange(self.width, dtype=torch.int32)
        offset = place - place[:, None]  # of a key from a query
        near = ((offset >= -left) & (offset <= right))[None, None]
        return near if self.is_token is None else near & self.is_token


class _Recent(threading.local):
    """The groups of the batch that a thread answers: every layer asks for the same ones."""

    bounds: torch.Tensor | None = None
    tile = 0
    groups: tuple[_Group, ...] = ()


_recent = _Recent()


def _groups_of(bounds: torch.Tensor, tile: int) -> tuple[_Group, ...]:
    if _recent.bounds is not bounds or _recent.tile != tile:
        _recent.bounds, _recent.tile, _recent.groups = bounds, tile, tuple(_divide(bounds, tile))
    return _recent.groups


def _divide(bounds: torch.Tensor, tile: int) -> list[_Group]:
    groups, start = [], 0

    def width_of(length: int) -> int:
        return length if length < tile else -(-length // tile) * tile

    for width, rows in itertools.groupby(bounds.diff().tolist(), width_of):
        groups.append(_Group.of(start, list(rows), width))
        start = groups[-1].end
    return groups


def _attend_alike(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: Window,
    group: _Group,
) -> torch.Tensor:
    """Attention of the rows of a group: three times [rows, heads, width, d] to the same."""
    if window == (-1, 0):  # what is behind a row's end is also behind each of its tokens
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=group.width > 1, scale=scaling
        )
    seen = group.seen(window)
    if query.dtype == torch.bfloat16 and _prefers_products(group.width):
        return _by_products(query, key, value, scaling, seen)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling
    )


def _prefers_products(width: int) -> bool:
    """Whether two products and a softmax take less time than PyTorch's kernel, in bfloat16.

    On CPUs with AVX-512 and without AMX, between a third and two thirds of it; with AMX up to twice as
    much, but for rows that fill no tile (0.65 of it).
    """
    return width < _TILE if has_matrix_unit() else width <= _LONGEST_PRODUCTS


def _by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    rows, heads, width, size = query.shape
    q, k, v = (x.reshape(rows * heads, width, size) for x in (query, key, value))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scaling)
    if seen is not None:
        scores.view(rows, heads, width, width).masked_fill_(~seen, -torch.inf)
    return torch.bmm(scores.softmax(dim=-1), v).view(rows, heads, width, size)
