"""Scores of query and document, as a cross-encoder gives them: for reranking, or similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests, Windows
from batchinfer.errors import ModelError, UsageError
from batchinfer.tasks.base import (
    AnswerField,
    Head,
    OnePass,
    flattened,
    lists,
    missing_rows,
    scatter,
    valid_rows,
)
from batchinfer.tokenization import Encoder, choose, encode_requests, rows_without

if TYPE_CHECKING:
    import torch

#: A document by its place in the row's list, with its score.
PLACED = pa.struct([("index", pa.int32()), ("score", pa.float32())])


class Score(OnePass):
    """A score of the texts in `--text-column` (the query) and `--text-pair-column` (documents).

    Where the documents are a list, so are the scores, in the same order; with `--top-k` the best
    documents' places and scores instead, best first. The activation is that of sentence-transformers'
    CrossEncoder. A document in windows is worth its best one (MaxP): what answers the query may stand in
    any part of it.
    """

    name: ClassVar[str] = "score"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[Head] = "row"
    knobs: ClassVar[frozenset[str]] = frozenset({"top_k", "long", "stride"})

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        if self.text_pair_column is None:
            raise UsageError(
                "--task score needs two columns: --text-column (the query) and --text-pair-column (a "
                "document, or a list of documents)"
            )
        if len(spec.labels) != 1:
            raise ModelError(
                f"{spec.name} has {len(spec.labels)} labels, so its scores are no single number; take "
                "--task classify"
            )
        self.is_listed = self.holds_list(self.text_pair_column)
        if self.config.top_k is not None and not self.is_listed:
            raise UsageError(
                f"--top-k {self.config.top_k}: column '{self.text_pair_column}' holds one document a "
                "row; leave it out"
            )

    @property
    def list_columns(self) -> frozenset[str]:
        return frozenset({self.text_pair_column} if self.text_pair_column else ())

    @property
    def columns(self) -> list[pa.Field[Any]]:
        if self.config.top_k is not None:
            return [pa.field("scores", pa.list_(PLACED))]
        if self.is_listed:
            return [pa.field("scores", pa.list_(pa.float32()))]
        return [pa.field("score", pa.float32())]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        return {"score": AnswerField(np.float32)}

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        if not self.is_listed:
            return super().encode(chunk, encoder)
        assert self.text_pair_column is not None
        column = chunk.table.column(self.text_pair_column)
        texts, failed = self.texts(chunk)
        rows = rows_without({**chunk.errors, **failed}, chunk.num_rows)
        row, documents, errors = flattened(column, rows, self.text_pair_column)
        requests = encode_requests(encoder, row, choose(texts, row), documents)
        return requests.with_errors({**errors, **failed})

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs).logits.float()
        return logits

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = outputs.sigmoid() if self.spec.activation == "sigmoid" else outputs
        return {"score": scores[:, 0]}

    def merge(
        self, values: Mapping[str, npt.NDArray[Any]], windows: Windows, cost: npt.NDArray[np.int32]
    ) -> Mapping[str, npt.NDArray[Any]]:
        return {"score": np.maximum.reduceat(values["score"], windows.starts)}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        if not self.is_listed:
            missing = ~valid_rows(answered)
            return [pa.array(scatter(answered, "score"), mask=missing)]
        rows, score = answered.requests.row, answered.values["score"]
        missing = missing_rows(answered)
        there = ~missing[rows]
        rows, score = rows[there], score[there]
        counts = np.bincount(rows, minlength=len(missing))
        if self.config.top_k is None:
            return [lists(counts, pa.array(score), missing)]
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        best = np.lexsort((place, -score, rows))  # of equals the first one
        kept = best[place < self.config.top_k]  # after sorting, places count by rank
        items = pa.StructArray.from_arrays(
            [pa.array(place[kept], pa.int32()), pa.array(score[kept])], fields=list(PLACED)
        )
        return [lists(np.minimum(counts, self.config.top_k), items, missing)]
