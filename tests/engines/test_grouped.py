"""Attention in groups of rows of one width says what each row's own attention says."""

from __future__ import annotations

import pytest
import torch

from batchinfer.engines import grouped
from batchinfer.engines.canary import distance
from batchinfer.engines.grouped import attend_in_groups

#: As batches come: longest first. Some fill a tile of 16, some miss it by one, some are shorter.
LENGTHS = (48, 47, 33, 32, 32, 31, 17, 16, 16, 15, 9, 2, 1, 1)
BOUNDS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def states(heads: int, heads_of_keys: int, size: int = 16) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    joined = torch.randn(total, (heads + 2 * heads_of_keys) * size)  # as a joined product has them
    parts = joined.split([heads * size, heads_of_keys * size, heads_of_keys * size], dim=-1)
    return tuple(part.view(total, -1, size) for part in parts)


def row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: tuple[int, int]
) -> torch.Tensor:
    """In float64, with a mask for each row."""
    times = query.shape[1] // key.shape[1]
    found, start = [], 0
    for length in LENGTHS:
        q, k, v = (x[start : start + length].double().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(times, dim=0) for x in (k, v))
        offset = torch.arange(length) - torch.arange(length)[:, None]
        left, right = (length if side < 0 else side for side in window)
        scores = (q @ k.transpose(1, 2)) * 0.2
        scores.masked_fill_((offset < -left) | (offset > right), -torch.inf)
        found.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(found)


@pytest.mark.parametrize("has_tiles", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads_of_keys", [2, 4])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 2), (20, 20), (3, 0)])
def test_every_row_attends_to_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
    has_tiles: bool,
    dtype: torch.dtype,
    heads_of_keys: int,
    window: tuple[int, int],
) -> None:
    monkeypatch.setattr(grouped, "has_matrix_unit", lambda: has_tiles)
    query, key, value = (x.to(dtype) for x in states(4, heads_of_keys))
    found = attend_in_groups(query, key, value, BOUNDS.clone(), 0.2, window)
    assert found.shape == query.shape and found.dtype == dtype
    expected = row_by_row(query, key, value, window)
    start = 0
    for length in LENGTHS:  # each one: a wrong short row would be lost among the long ones
        row = slice(start, start + length)
        assert distance(found[row].float(), expected[row].float()) < TOLERANCE[dtype], length
        start += length


@pytest.mark.parametrize(
    ("dtype", "has_tiles", "widths"),
    [
        (torch.bfloat16, True, [48, 48, 48, 32, 32, 32, 32, 16, 16, 15, 9, 2, 1, 1]),
        (torch.bfloat16, False, LENGTHS),
        (torch.float32, True, LENGTHS),
    ],
)
def test_rows_are_as_wide_as_the_hardware_likes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, has_tiles: bool, widths: list[int]
) -> None:
    monkeypatch.setattr(grouped, "has_matrix_unit", lambda: has_tiles)
    asked: list[tuple[int, int]] = []
    real = grouped._attend_alike

    def attend(query: torch.Tensor, *others: object) -> torch.Tensor:
        asked.append((query.shape[0], query.shape[2]))
        return real(query, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(grouped, "_attend_alike", attend)
    attend_in_groups(*(x.to(dtype) for x in states(4, 4)), BOUNDS.clone(), None, (-1, -1))  # type: ignore[call-arg]
    assert [width for rows, width in asked for _ in range(rows)] == list(widths)
    assert len(asked) == len(set(widths)), "rows of one width are one group"


def test_groups_are_made_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = grouped._divide
    monkeypatch.setattr(grouped, "_divide", lambda *a: made.append(a) or real(*a))
    q, k, v = states(4, 4)
    first, second = BOUNDS.clone(), BOUNDS.clone()
    for edges in (first, first, second, second):
        attend_in_groups(q, k, v, edges, None, (-1, -1))
    assert len(made) == 2


def test_products_stand_in_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = grouped._by_products

    def by_products(query: torch.Tensor, *others: object) -> torch.Tensor:
        asked.append(query.shape[2])
        return real(query, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(grouped, "_by_products", by_products)
    q, k, v = (x.bfloat16() for x in states(4, 4))
    for has_tiles, widths in ((True, [15, 9, 2, 1]), (False, list(dict.fromkeys(LENGTHS)))):
        asked.clear()
        monkeypatch.setattr(grouped, "has_matrix_unit", lambda found=has_tiles: found)
        attend_in_groups(q, k, v, BOUNDS.clone(), None, (-1, -1))
        assert asked == widths
