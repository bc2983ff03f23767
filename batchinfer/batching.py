"""Which requests go through the model together: pure decisions, no torch.

A chunk is sorted by token length, longest first, and cut into runs that fit the budget. Neighbours are
then of nearly equal length: within a chunk of 16,384 rows a padded batch computes 0.1-0.5 % more
tokens than it was given, against 142 % in input order (GSM8K-like texts, batches of 4,096 tokens).
Longest first, so that memory is asked for at its peak at once, not at the end of the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from batchinfer.core import Batch, BatchBudget, ChunkId, Int32Array, Int64Array, Requests


def plan_batches(
    cost: Int32Array, budget: BatchBudget, tokens_ahead: int = 0
) -> Iterator[Int64Array]:
    """Yield the indices of each batch; every request once, the same for the same input.

    `cost` int32[n] is each request's tokens. In a batch, rows times the longest row's tokens stay
    within the budget: that is what a padded forward computes, and an upper bound of what a packed one
    does. A request that alone exceeds the budget gets a batch of its own. Where requests grow, by up to
    `tokens_ahead`, that counts too.
    """
    order = np.argsort(-cost, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(cost[order[start]]) + tokens_ahead)
        rows = min(budget.max_batch_rows, max(1, budget.max_batch_tokens // longest))
        yield order[start : start + rows]
        start += rows


def make_batches(
    chunk: ChunkId,
    requests: Requests,
    budget: BatchBudget,
    tokens_ahead: int = 0,
    asked: Int64Array | None = None,
) -> list[Batch]:
    """Cut a chunk's requests into batches; a chunk without requests gets one empty batch.

    `asked` int64[m]: the only ones that are to be answered, rising; None: all of them.

    The empty batch carries the chunk through the engine like any other, so that a file full of bad
    rows is committed as it is read and never piles up.
    """
    cost = requests.cost if asked is None else requests.cost[asked]
    plan = list(plan_batches(cost, budget, tokens_ahead)) or [np.zeros(0, dtype=np.int64)]
    if asked is not None:
        plan = [asked[indices] for indices in plan]
    return [Batch(chunk, i, requests.cost[i], requests.select(i)) for i in plan]
