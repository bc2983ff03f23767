"""Zero-shot classification: any labels, by a model that was trained to tell what follows from a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests
from batchinfer.errors import UsageError
from batchinfer.tasks.base import AnswerField, Head, OnePass, flattened, lists, missing_rows
from batchinfer.tokenization import Encoder, choose, encode_requests, rows_without

if TYPE_CHECKING:
    import torch


class ZeroShot(OnePass):
    """Labels with their scores, best first, by the rules of transformers' zero-shot pipeline.

    Each label is a request of its own: does the hypothesis ("This example is sports.") follow from the
    text? Scores of a row add up to one; with `--multi-label` each label stands for itself. Of a text in
    windows, the model's word on a label (its logits) is the mean of the windows': how many there are
    depends on the length of the hypothesis, so they cannot be compared one by one.
    """

    name: ClassVar[str] = "zero-shot"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[Head] = "row"
    knobs: ClassVar[frozenset[str]] = frozenset(
        {"labels", "labels_column", "hypothesis", "multi_label", "long", "stride"}
    )
    parallel_lists: ClassVar[tuple[str, ...]] = ("labels", "scores")

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        own = self.config
        if bool(own.labels) == bool(own.labels_column):
            raise UsageError(
                "--task zero-shot needs labels: --labels for all rows, or --labels-column with a list "
                "in each row; one of the two"
            )
        if own.hypothesis.count("{}") != 1:
            raise UsageError(
                f"--hypothesis: should hold {{}} once, where the label goes, got '{own.hypothesis}'"
            )
        if own.labels_column and self.schema.names and not self.holds_list(own.labels_column):
            raise UsageError(
                f"--labels-column {own.labels_column}: should hold lists of texts, such as "
                '["sports", "politics"]'
            )
        if self.text_pair_column is not None:
            raise UsageError("--text-pair-column: means nothing to --task zero-shot; leave it out")

    @property
    def takes_pairs(self) -> bool:
        return True  # the text and its hypothesis

    @property
    def list_columns(self) -> frozenset[str]:
        return frozenset({self.config.labels_column} if self.config.labels_column else ())

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [
            pa.field("predicted_label", pa.string()),
            pa.field("predicted_score", pa.float32()),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
        ]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        return {"logits": AnswerField(np.float32, (2,))}

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        texts, failed = self.texts(chunk)
        rows = rows_without({**chunk.errors, **failed}, chunk.num_rows)
        row, labels, errors = self._labels(chunk, rows)
        before, after = self.config.hypothesis.split("{}")
        hypotheses = pa.array(
            [f"{before}{label}{after}" for label in labels.to_pylist()], pa.large_string()
        )
        requests = encode_requests(encoder, row, choose(texts, row), hypotheses)
        return requests.with_errors({**errors, **failed})

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs).logits.float()
        return logits

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        follows = self._entailment
        against = -1 if follows == 0 else 0
        return {"logits": outputs[:, [against, follows]]}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        missing = missing_rows(answered)
        rows_left = np.flatnonzero(~missing).astype(np.int32)
        row, labels, _ = self._labels(answered.chunk, rows_left)
        there = ~missing[answered.requests.row]
        logits = answered.values["logits"][there].astype(np.float64)
        assert len(logits) == len(row), "every label of a row without an error has an answer"
        counts = np.bincount(row, minlength=len(missing))
        scores = self._scores(logits, row, counts)
        order = np.lexsort((-np.arange(len(row)), -scores, row))
        scores, labels = scores[order].astype(np.float32), labels.take(order)
        first = (np.cumsum(counts) - counts)[counts > 0]
        nothing = counts == 0
        best = np.zeros(len(missing), np.int64)
        best[counts > 0] = first
        chosen: Any = pa.array(best, mask=nothing)
        names = labels.cast(pa.string())
        return [
            names.take(chosen), pa.array(scores).take(chosen), lists(counts, names, missing),
            lists(counts, pa.array(scores), missing),
        ]  # fmt: skip

    def _labels(
        self, chunk: Chunk, rows: np.ndarray[Any, np.dtype[np.int32]]
    ) -> tuple[np.ndarray[Any, np.dtype[np.int32]], pa.Array[Any], dict[int, str]]:
        """Of which row each label is, the labels, and rows whose labels are wrong."""
        if self.config.labels_column:
            column = chunk.table.column(self.config.labels_column)
            return flattened(column, rows, self.config.labels_column)
        names = pa.array(self.config.labels, pa.large_string())
        places = np.tile(np.arange(len(names)), len(rows))
        return np.repeat(rows, len(names)), names.take(places), {}

    def _scores(
        self,
        logits: np.ndarray[Any, np.dtype[np.float64]],
        row: np.ndarray[Any, np.dtype[np.int32]],
        counts: np.ndarray[Any, np.dtype[np.int64]],
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Softmax over the labels of a row; or, of each label alone, over for and against it."""
        pairs = np.exp(logits - logits.max(axis=1, keepdims=True))
        alone: np.ndarray[Any, np.dtype[np.float64]] = pairs[:, 1] / pairs.sum(axis=1)
        if self.config.multi_label or not len(row):
            return alone
        starts = (np.cumsum(counts) - counts)[counts > 0]
        sizes = counts[counts > 0]
        largest = np.repeat(np.maximum.reduceat(logits[:, 1], starts), sizes)
        powers = np.exp(logits[:, 1] - largest)
        together = powers / np.repeat(np.add.reduceat(powers, starts), sizes)
        scores: np.ndarray[Any, np.dtype[np.float64]] = together
        scores = np.where(np.repeat(sizes, sizes) == 1, alone, scores)
        return scores

    @property
    def _entailment(self) -> int:
        """The label that says that a hypothesis follows from the text; where none does, the last one."""
        names = [name.lower().startswith("entail") for name in self.spec.labels]
        return names.index(True) if any(names) else len(names) - 1
