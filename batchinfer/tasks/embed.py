"""Embeddings: one vector a row, pooled and normalised in float32 whatever the model's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, ModelSpec, Windows
from batchinfer.errors import UsageError
from batchinfer.tasks.base import AnswerField, Head, OnePass, scatter, valid_rows
from batchinfer.windows import mean

if TYPE_CHECKING:
    import torch


class Embed(OnePass):
    """A vector of fixed size a row, as sentence-transformers makes it of the same model.

    `--truncate-dim` keeps the first dimensions only, before vectors are normalised (again). The vector of a
    text in windows is the mean of the windows' vectors, each counted by its tokens, and normalised again
    where those are.
    """

    name: ClassVar[str] = "embed"
    auto_class: ClassVar[str] = "AutoModel"
    head: ClassVar[Head] = "none"
    knobs: ClassVar[frozenset[str]] = frozenset(
        {"pooling", "normalize", "prompt", "truncate_dim", "embedding_dtype", "long", "stride"}
    )

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        own = self.config
        self.dimension = own.truncate_dim or spec.dimension
        if self.dimension > spec.dimension:
            raise UsageError(
                f"--truncate-dim {own.truncate_dim}: {spec.name} has {spec.dimension} dimensions; give "
                "fewer"
            )
        self.pooling = spec.pooling if own.pooling == "auto" else own.pooling
        self.normalize = spec.normalize if own.normalize is None else own.normalize
        is_half = own.embedding_dtype == "float16"
        self.dtype: type[np.floating[Any]] = np.float16 if is_half else np.float32

    @property
    def prompt(self) -> str:
        return self.spec.prompt if self.config.prompt is None else self.config.prompt

    @property
    def columns(self) -> list[pa.Field[Any]]:
        value = pa.float16() if self.dtype is np.float16 else pa.float32()
        return [pa.field("embedding", pa.list_(value, self.dimension))]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        return {"embedding": AnswerField(np.float32, shape=(self.dimension,))}

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        states = model(**inputs).last_hidden_state
        if "cu_seq_lens_q" in inputs:
            return PACKED_POOLINGS[self.pooling](states[0], inputs["cu_seq_lens_q"])
        return POOLINGS[self.pooling](states, inputs["attention_mask"])

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        from torch.nn.functional import normalize

        vectors = outputs
        if self.dimension < self.spec.dimension:
            vectors = vectors[:, : self.dimension]
        return {"embedding": normalize(vectors, dim=-1) if self.normalize else vectors}

    def merge(
        self, values: Mapping[str, npt.NDArray[Any]], windows: Windows, cost: npt.NDArray[np.int32]
    ) -> Mapping[str, npt.NDArray[Any]]:
        vectors = mean(values["embedding"], windows, weights=cost)
        if self.normalize:
            several = windows.counts > 1  # the others are as they were
            lengths = np.linalg.norm(vectors[several].astype(np.float64), axis=1, keepdims=True)
            vectors[several] /= np.maximum(lengths, 1e-12)
        return {"embedding": vectors}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        vectors = pa.array(
            scatter(answered, "embedding").reshape(-1).astype(self.dtype, copy=False)
        )
        missing = pa.array(~valid_rows(answered))
        return [pa.FixedSizeListArray.from_arrays(vectors, self.dimension, mask=missing)]


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _cls(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[:, 0].float()


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.sum(dim=1).long() - 1
    index = last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1).float()


#: states [b, t, h], mask [b, t] → float32 [b, h]
POOLINGS = {"mean": _mean, "cls": _cls, "last": _last}


def _packed_mean(states: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    import torch

    # One thread adds up one dimension of a row, in order: no atomic additions, so the same sums each
    # time. `unsafe` leaves out a check of the bounds that would wait for the device.
    return torch.segment_reduce(states.float(), "mean", offsets=bounds, axis=0, unsafe=True)


def _packed_cls(states: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return states[bounds[:-1]].float()


def _packed_last(states: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return states[bounds[1:] - 1].float()


#: states [t, h], bounds int32[b + 1] (where rows begin, and the end) → float32 [b, h]
PACKED_POOLINGS = {"mean": _packed_mean, "cls": _packed_cls, "last": _packed_last}
