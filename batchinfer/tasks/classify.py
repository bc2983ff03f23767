"""Text classification: one label and its score a row; also multi-label and regression heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer.core import AnsweredChunk
from batchinfer.tasks.base import AnswerField, Task, scatter, valid_rows

if TYPE_CHECKING:
    import torch


class Classify(Task):
    """The best label and its score, by the rules of transformers' text-classification pipeline.

    Single-label heads give the softmax score, multi-label heads and heads of one label the sigmoid
    score, regression heads the value itself.
    """

    name: ClassVar[str] = "classify"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [pa.field("predicted_label", pa.string()), pa.field("predicted_score", pa.float32())]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        return {
            "label": AnswerField(np.int32, high=len(self.spec.labels)),
            "score": AnswerField(np.float32),
        }

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = model(**inputs).logits.float()
        if self.spec.activation == "softmax":
            logits = logits.softmax(dim=-1)
        elif self.spec.activation == "sigmoid":
            logits = logits.sigmoid()
        score, label = logits.max(dim=-1)
        return {"label": label.int(), "score": score}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        missing = ~valid_rows(answered)
        codes = pa.array(scatter(answered, "label"), mask=missing)
        labels = pa.DictionaryArray.from_arrays(codes, pa.array(self.spec.labels, pa.string()))
        return [labels.cast(pa.string()), pa.array(scatter(answered, "score"), mask=missing)]
