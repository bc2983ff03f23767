"""The planner: every request once, within the budget, the same every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.batching import make_batches, plan_batches
from batchinfer.core import BatchBudget, ChunkId, Requests

costs = st.lists(st.integers(1, 600), max_size=200).map(lambda c: np.array(c, dtype=np.int32))
budgets = st.builds(BatchBudget, st.integers(1, 5000), st.integers(1, 64))


def requests_of(cost: np.ndarray) -> Requests:
    """Requests whose tokens say which request they belong to, and where they stand in it."""
    offsets = np.concatenate([[0], np.cumsum(cost)]).astype(np.int64)
    tokens = [1000 * i + place for i, length in enumerate(cost) for place in range(length)]
    return Requests(
        row=np.arange(len(cost), dtype=np.int32),
        cost=cost,
        truncated=np.zeros(len(cost), dtype=np.bool_),
        offsets=offsets,
        fields={"input_ids": np.array(tokens, dtype=np.int32)},
    )


@given(costs, budgets)
def test_every_request_is_in_exactly_one_batch(cost: np.ndarray, budget: BatchBudget) -> None:
    planned = np.concatenate([np.zeros(0, np.int64), *plan_batches(cost, budget)])
    assert sorted(planned.tolist()) == list(range(len(cost)))


@given(costs, budgets)
def test_no_batch_is_over_budget_but_for_a_single_request(
    cost: np.ndarray, budget: BatchBudget
) -> None:
    for indices in plan_batches(cost, budget):
        assert 1 <= len(indices) <= budget.max_batch_rows
        if len(indices) > 1:
            assert len(indices) * cost[indices].max() <= budget.max_batch_tokens


@given(costs, budgets)
def test_the_plan_is_the_same_for_the_same_input(cost: np.ndarray, budget: BatchBudget) -> None:
    first, second = list(plan_batches(cost, budget)), list(plan_batches(cost.copy(), budget))
    assert [a.tolist() for a in first] == [b.tolist() for b in second]


def test_longest_come_first_and_equal_ones_stay_in_input_order() -> None:
    cost = np.array([3, 9, 3, 9], dtype=np.int32)
    [batch] = plan_batches(cost, BatchBudget(1000, 1000))
    assert batch.tolist() == [1, 3, 0, 2]


def test_sorting_a_chunk_leaves_almost_no_padding() -> None:
    lengths = np.clip(np.random.default_rng(7).lognormal(4.6, 0.8, 16384), 5, 512).astype(np.int32)
    computed = sum(
        len(i) * int(lengths[i].max()) for i in plan_batches(lengths, BatchBudget(4096, 4096))
    )
    assert computed / lengths.sum() < 1.01


@given(costs, budgets)
def test_packed_batches_hold_the_tokens_of_their_requests(
    cost: np.ndarray, budget: BatchBudget
) -> None:
    for batch in make_batches(ChunkId(0, 0), requests_of(cost), budget):
        expected = [1000 * i + place for i in batch.indices for place in range(cost[i])]
        assert batch.fields["input_ids"].tolist() == expected
        assert batch.lengths.tolist() == cost[batch.indices].tolist()


@given(costs.filter(lambda c: len(c) > 1))
def test_halves_hold_what_the_batch_held(cost: np.ndarray) -> None:
    [batch] = make_batches(ChunkId(0, 0), requests_of(cost), BatchBudget(10**6, 10**6))
    longer, shorter = batch.halves()
    assert [*longer.indices, *shorter.indices] == batch.indices.tolist()
    for half in (longer, shorter):
        expected = [1000 * i + place for i in half.indices for place in range(cost[i])]
        assert half.fields["input_ids"].tolist() == expected


def test_a_chunk_without_requests_still_has_a_batch() -> None:
    [batch] = make_batches(ChunkId(0, 3), requests_of(np.zeros(0, np.int32)), BatchBudget(8, 8))
    assert (len(batch), batch.chunk, batch.num_tokens) == (0, ChunkId(0, 3), 0)
