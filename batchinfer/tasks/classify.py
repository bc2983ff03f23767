"""Text classification: one label and its score a row; also multi-label and regression heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, ModelSpec
from batchinfer.errors import UsageError
from batchinfer.tasks.base import RANKED, AnswerField, Head, OnePass, ranked, scatter, valid_rows

if TYPE_CHECKING:
    import torch


class Classify(OnePass):
    """The best label and its score, by the rules of transformers' text-classification pipeline.

    Single-label heads give the softmax score, multi-label heads and heads of one label the sigmoid
    score, regression heads the value itself. With `--top-k` or `--all-scores` the best ones are listed
    too, best first. Of a text in windows, the scores of each label are the mean of the windows'.
    """

    name: ClassVar[str] = "classify"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    head: ClassVar[Head] = "row"
    knobs: ClassVar[frozenset[str]] = frozenset({"top_k", "all_scores", "long", "stride"})

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        many = len(spec.labels)
        if self.config.all_scores and self.config.top_k is not None:
            raise UsageError("--top-k and --all-scores: give one of them")
        if (self.config.top_k or 1) > many:
            raise UsageError(
                f"--top-k {self.config.top_k}: {spec.name} has {many} labels; give {many} or less"
            )
        #: How many labels are listed; 0: only the best one, in columns of its own.
        self.num_listed = many if self.config.all_scores else self.config.top_k or 0

    @property
    def columns(self) -> list[pa.Field[Any]]:
        best: list[pa.Field[Any]] = [
            pa.field("predicted_label", pa.string()),
            pa.field("predicted_score", pa.float32()),
        ]
        return [*best, pa.field("predictions", RANKED)] if self.num_listed else best

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        if self.config.long == "stride":  # which label is best is known when all windows are in
            return {"scores": AnswerField(np.float32, (len(self.spec.labels),))}
        shape = (self.num_listed,) if self.num_listed else ()
        return {
            "label": AnswerField(np.int32, shape, high=len(self.spec.labels)),
            "score": AnswerField(np.float32, shape),
        }

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs).logits.float()
        return logits

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = outputs
        if self.spec.activation == "softmax":
            scores = outputs.softmax(dim=-1)
        elif self.spec.activation == "sigmoid":
            scores = outputs.sigmoid()
        if self.config.long == "stride":
            return {"scores": scores}
        if self.num_listed:
            score, label = scores.topk(self.num_listed, dim=-1)
        else:
            score, label = scores.max(dim=-1)
        return {"label": label.int(), "score": score}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        missing = ~valid_rows(answered)
        rows = len(missing)
        shape = (rows, max(1, self.num_listed))
        label: npt.NDArray[Any]
        score: npt.NDArray[Any]
        if self.config.long == "stride":
            scores = scatter(answered, "scores")
            label = np.argsort(-scores, axis=1, kind="stable")[:, : shape[1]].astype(np.int32)
            score = np.take_along_axis(scores, label, axis=1)
        else:
            label, score = (scatter(answered, name).reshape(shape) for name in ("label", "score"))
        codes = pa.array(label[:, 0], mask=missing)
        names = pa.DictionaryArray.from_arrays(codes, pa.array(self.spec.labels, pa.string()))
        best = [names.cast(pa.string()), pa.array(score[:, 0], mask=missing)]
        if not self.num_listed:
            return best
        return [*best, ranked(label, score, self.spec.labels, missing)]
