"""The fake engine: a deterministic answer from the tokens, without a model, torch or a download.

It is for tests (yours too), for trying a job's input before renting a GPU, and for measuring the
pipeline without a model. Every answer depends on every token of its row and on their order, and on
nothing else, so that a scrambled or doubled row shows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.core import (
    Answers,
    Batch,
    BatchBudget,
    Int32Array,
    Int64Array,
    ModelSpec,
    TensorSpec,
    Unit,
)
from batchinfer.engines.base import Engine
from batchinfer.readers.columns import is_list
from batchinfer.tokenization import Role, Tokens, mask_problem

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads neighbouring integers
_MASK = "[MASK]"


def describe(
    task: str,
    max_length: int | None,
    max_new_tokens: int | None = None,
    chat: bool | None = None,
    inputs: Sequence[TensorSpec] = (),
) -> ModelSpec:
    """The fake model's spec: two labels, eight dimensions, 512 tokens of four bytes each; answers of 8.

    As a module it takes `inputs`, whatever they are, and gives one number.
    """
    is_module, writes = task == "module", task in ("generate", "seq2seq")
    return ModelSpec(
        name="fake",
        identity="fake-1",
        architecture="Fake",
        task="classify" if task == "auto" else task,
        max_length=1 if is_module else max_length or 512,
        labels=("relevance",) if task == "score" else ("negative", "positive"),
        dimension=8,
        chat=task == "generate" and chat is not False,
        generation=json.dumps({"max_new_tokens": max_new_tokens or 8}) if writes else "",
        inputs=tuple(inputs),
        outputs=(TensorSpec("prediction", "float32"),) if is_module else (),
        mask_token=_MASK if task == "fill-mask" else "",
        vocab_size=1000 if task == "fill-mask" else 0,
    )


@dataclass(frozen=True, slots=True)
class FakeEncoder:
    """Every four bytes of UTF-8 are a token (about as long as a real one), after one start token.

    With `windows`, texts of more than `max_length` become windows; of a pair, both texts slide as one.
    `mask_token`: as of a TextEncoder; its first byte makes a token a mask token.
    """

    max_length: int
    notes_places: bool = False
    windows: bool = False
    stride: int | None = None
    mask_token: str = ""

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        if pairs is not None:
            separator = pa.scalar("\x1f", pa.large_string())
            texts = pc.binary_join_element_wise(texts, pairs, separator)  # type: ignore[call-overload]
        if is_list(texts.type):  # words
            texts = pc.binary_join(texts, pa.scalar(" ", pa.large_string()))  # type: ignore[assignment]
        starts: Any
        characters: Any
        _, starts, characters = texts.buffers()
        offsets = np.frombuffer(starts or bytes(8), np.int64)[texts.offset :][: len(texts) + 1]
        data = np.frombuffer(characters or b"", np.uint8)
        size = np.diff(offsets)
        full = (size + 3) // 4 + 1
        cost = full if self.windows else np.minimum(full, self.max_length)
        ends = np.cumsum(cost)
        kept = np.minimum(size, (cost - 1) * 4)
        # Scatter the kept bytes of each text behind its start token, which is four zero bytes.
        begin = (ends - cost + 1) * 4
        place = np.arange(int(kept.sum()), dtype=np.int64)
        within = np.cumsum(kept) - kept
        tokens = np.zeros(int(ends[-1]) * 4 if len(ends) else 0, np.uint8)
        tokens[place + np.repeat(begin - within, kept)] = data[
            place + np.repeat(offsets[:-1] - within, kept)
        ]
        found = Tokens(
            offsets=np.concatenate([np.zeros(1, np.int64), ends]),
            fields={"input_ids": tokens.view(np.int32)},
            truncated=full > cost,
            errors={},
            notes=_places(size, cost) if self.notes_places else {},
        )
        if self.mask_token:
            return self._with_masks(found, texts)
        if not (cost > self.max_length).any():
            return found
        return found.in_windows(np.ones_like(cost), cost, self.max_length, self.stride)

    def _with_masks(self, tokens: Tokens, texts: pa.Array[Any]) -> Tokens:
        """The tokens, and which of them are masks; a text without one, or that loses one, has none."""
        ids = tokens.fields["input_ids"]
        is_mask = _find(ids, self.mask_token)
        cost = np.diff(tokens.offsets)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_mask, dtype=np.int64)])
        kept = ends[tokens.offsets[1:]] - ends[tokens.offsets[:-1]]
        compute: Any = pc
        there = compute.count_substring(texts, self.mask_token)
        errors = {}
        for index, (left, all_) in enumerate(zip(kept.tolist(), there.to_pylist(), strict=True)):
            if why := mask_problem(self.mask_token, left, all_ - left, self.max_length):
                errors[index] = why
                cost[index] = 0
        stays = np.repeat(cost > 0, np.diff(tokens.offsets))
        return Tokens(
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(cost)]),
            fields={"input_ids": ids[stays], "is_mask": is_mask[stays].astype(np.int32)},
            truncated=tokens.truncated,
            errors=errors,
        )


def _places(size: npt.NDArray[Any], cost: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Where the tokens of texts of so many bytes stand, as if each byte were a character."""
    first = np.repeat(np.cumsum(cost) - cost, cost)
    index = np.arange(len(first), dtype=np.int64) - first  # of a token in its text
    start = np.maximum(0, 4 * (index - 1)).astype(np.int32)
    return {
        "start": start,
        "end": np.minimum(start + 4, np.repeat(size, cost)).astype(np.int32),
        "role": np.where(index, Role.BEGINS, Role.SPECIAL).astype(np.int8),
    }


class FakeDetokenizer:
    """Every token is called by its number: w17."""

    def decode(self, ids: Sequence[Sequence[int]], *, skips_special: bool = False) -> list[str]:
        """The text of each run of token ids."""
        return [" ".join(f"w{id}" for id in row) for row in ids]


def _find(tokens: Int32Array, text: str) -> npt.NDArray[np.bool_]:
    """Which tokens hold the first byte of a text that stands whole in one row's tokens."""
    data, wanted = tokens.view(np.uint8), np.frombuffer(text.encode(), np.uint8)
    found = np.zeros(len(data), np.bool_)
    if len(data) >= len(wanted):  # rows are parted by the zeros of a start token
        windows = np.lib.stride_tricks.sliding_window_view(data, len(wanted))
        found[: len(windows)] = (windows == wanted).all(axis=1)
    return np.logical_or.reduce(found.reshape(-1, 4), axis=1)  # type: ignore[no-any-return]


class FakeEngine(Engine):
    """Answers from a hash of each request's tokens."""

    device_kind = "cpu"
    dtype = "float32"
    default_budget = BatchBudget(max_batch_tokens=16384, max_batch_rows=4096)

    def answer(self, batch: Batch) -> Answers:
        hashes = hash_tokens(*_tokens_of(batch))
        values: dict[str, npt.NDArray[np.generic]] = {}
        for salt, (name, answer) in enumerate(self.task.answers.items(), start=1):
            width = int(np.prod(answer.shape))
            seeds = hashes
            if answer.counted_by:
                counts: Any = values[answer.counted_by]
                place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                seeds = _mix(np.repeat(hashes, counts) + place.astype(np.uint64))
            noise = _mix(
                seeds[:, None] + np.arange(salt, salt + width, dtype=np.uint64) * _MULTIPLIER
            )
            if answer.high:
                drawn = (noise % np.uint64(answer.high)).astype(answer.dtype)
            else:  # 24 bits: exact in float32, in [0, 1)
                drawn = ((noise >> np.uint64(40)).astype(np.float64) / (1 << 24)).astype(
                    answer.dtype
                )
            drawn = drawn.reshape(len(seeds), *answer.shape)
            is_counted = answer.counted_by or answer.unit == "request"
            counts = _counts(batch, answer.unit)
            values[name] = drawn if is_counted else np.repeat(drawn, counts, axis=0)
        return Answers(values)


def _tokens_of(batch: Batch) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """What a hash is made of, and how much of it each row has: tokens, or the bytes of its columns."""
    if "input_ids" in batch.fields:
        return batch.fields["input_ids"], batch.lengths
    parts = []
    for values in batch.fields.values():
        if values.dtype == object:
            values = np.array([zlib.crc32(text.encode()) for text in values], np.uint32)
        parts.append(np.ascontiguousarray(values).reshape(len(batch), -1).view(np.uint8))
    rows = np.concatenate(parts, axis=1).astype(np.int32)
    return rows.reshape(-1), np.full(len(batch), rows.shape[1], np.int32)


def _counts(batch: Batch, unit: Unit) -> Int64Array:
    """How many of a unit each request of a batch has."""
    lengths = batch.lengths.astype(np.int64)
    if unit == "mask":
        masks: Int64Array = np.add.reduceat(batch.fields["is_mask"], np.cumsum(lengths) - lengths)
        return masks
    return lengths if unit == "token" else np.ones_like(lengths)


def hash_tokens(
    tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint64]:
    """Hash each run of `lengths[i]` >= 1 tokens; int32[sum(lengths)] to uint64[n]."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    place = np.arange(len(tokens), dtype=np.int64) - np.repeat(starts, lengths)
    weighted = (tokens.astype(np.uint64) + np.uint64(1)) * (
        place.astype(np.uint64) * _MULTIPLIER | np.uint64(1)
    )
    return _mix(np.add.reduceat(weighted, starts))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(31))) * _MULTIPLIER
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(29))
    return mixed
