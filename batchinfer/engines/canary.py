"""A few rows that a model answers in two ways, before one of them is trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from batchinfer.core import Batch, ChunkId

#: Longest first: beyond every usual window of attention, down to the shortest there is; some twice, as
#: rows of one length are attended to together.
_LENGTHS = (300, 130, 33, 33, 7, 7, 7, 2)
#: Every so many tokens are taken for mask tokens, where a head asks which ones are.
_MASK_EVERY = 16


class Canary:
    """Rows with the answers that a model gives to each of them alone.

    `padded`: how far from them those are that it gives to all rows in one batch, as a share.
    """

    def __init__(self, rows: list[Batch], ask: Callable[[Batch], torch.Tensor]) -> None:
        self._together = joined(rows)
        self._alone = torch.cat([ask(row) for row in rows])
        self.padded = self.difference(ask)

    def difference(self, ask: Callable[[Batch], torch.Tensor]) -> float:
        """How far the answers to all rows in one batch are from those to rows alone, as a share."""
        return distance(ask(self._together), self._alone)


def sample_rows(vocab_size: int, max_length: int, pad_token_id: int) -> list[Batch]:
    """Rows of random tokens, the same ones each time, each a batch of its own; longest first."""
    draw = np.random.default_rng(0)
    rows = []
    for length in (min(length, max_length) for length in _LENGTHS):
        tokens = draw.integers(0, vocab_size - 1, length, dtype=np.int32)
        tokens += tokens >= pad_token_id  # RoBERTa takes padding out of the positions
        lengths = np.array([length], dtype=np.int32)
        is_mask = (np.arange(length) % _MASK_EVERY == 0).astype(np.int32)
        fields = {"input_ids": tokens, "is_mask": is_mask}
        rows.append(Batch(ChunkId(0, 0), np.zeros(1, np.int64), lengths, fields))
    return rows


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far apart two answers are: the norm of their difference, as a share of the expected one's."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def joined(rows: list[Batch]) -> Batch:
    """Rows that are batches of their own, longest first, as one batch."""
    return Batch(
        rows[0].chunk,
        np.arange(len(rows), dtype=np.int64),
        np.concatenate([row.lengths for row in rows]),
        {name: np.concatenate([row.fields[name] for row in rows]) for name in rows[0].fields},
    )
