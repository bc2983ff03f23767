"""What a task is: text in, arrays through the model, typed columns out.

A task supplies `columns`, `answers`, `forward` and `decode`; encoding text is shared. The module
imports no torch: loader processes and the fake engine use tasks too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests
from batchinfer.tokenization import Encoder, encode_texts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AnswerField:
    """One array of a task's answers: `shape` a request, and for integers the values [0, `high`)."""

    dtype: type[np.generic]
    shape: tuple[int, ...] = ()
    high: int = 0


class Task(ABC):
    """One kind of question put to a model."""

    name: ClassVar[str]
    #: The transformers class that loads the model.
    auto_class: ClassVar[str]

    def __init__(
        self, spec: ModelSpec, text_column: str = "text", text_pair_column: str | None = None
    ) -> None:
        self.spec = spec
        self.text_column = text_column
        self.text_pair_column = text_pair_column

    @property
    @abstractmethod
    def columns(self) -> list[pa.Field[Any]]:
        """The columns that the task adds to the output."""

    @property
    @abstractmethod
    def answers(self) -> Mapping[str, AnswerField]:
        """The arrays that the engine returns a request."""

    @abstractmethod
    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer a batch on the device.

        `inputs`: `input_ids`, `attention_mask` (and `token_type_ids`), int64[b, t], padded on the right;
        or, packed, `input_ids` and `position_ids` (and `token_type_ids`), int64[1, t], with
        `cu_seq_lens_q` int32[b + 1] saying where rows begin and the last one ends.
        Returns the arrays named in `answers`, first axis b, reduced on the device (never full hidden
        states or logits of unbounded width).
        """

    @abstractmethod
    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        """Turn a chunk's answers into `columns`, one value a row; null for rows in `answered.errors`."""

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        """Tokenize a chunk: one request for each row that has no error."""
        pair = self.text_pair_column
        return encode_texts(
            encoder,
            chunk.table.column(self.text_column),
            chunk.table.column(pair) if pair else None,
            errors=chunk.errors,
            prompt=self.spec.prompt,
        )


def valid_rows(answered: AnsweredChunk) -> npt.NDArray[np.bool_]:
    """Which rows of the chunk have an answer."""
    valid = np.zeros(answered.chunk.num_rows, dtype=np.bool_)
    valid[answered.requests.row] = True
    if answered.errors:
        valid[np.fromiter(answered.errors, dtype=np.int64)] = False
    return valid


def scatter(answered: AnsweredChunk, name: str) -> npt.NDArray[Any]:
    """An answer by row of the chunk rather than by request; zeros where a row has none."""
    values = answered.values[name]
    rows = np.zeros((answered.chunk.num_rows, *values.shape[1:]), dtype=values.dtype)
    rows[answered.requests.row] = values
    return rows
