"""Any `nn.Module` over the columns of a table: what it gives is what is written, with its types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests, TensorSpec
from batchinfer.errors import UsageError
from batchinfer.tasks.base import AnswerField, Task, scatter, valid_rows
from batchinfer.tasks.features import encode_features
from batchinfer.tokenization import Encoder

if TYPE_CHECKING:
    import torch


class Module(Task):
    """A column for each tensor that the module gives: numbers, or lists of a fixed size of them.

    The module takes `--features`; a row costs one, as a token does elsewhere.
    """

    name: ClassVar[str] = "module"
    knobs: ClassVar[frozenset[str]] = frozenset({"features"})
    takes_text: ClassVar[bool] = False
    recurs: ClassVar[bool] = False

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        own = self.config
        usual = RunConfig.model_fields["text_column"].default
        for flag, given in (
            ("--text-column", own.text_column != usual),
            ("--text-pair-column", own.text_pair_column is not None),
            ("--template", own.template is not None),
        ):
            if given:
                raise UsageError(f"{flag}: means nothing to --task module, which reads --features")

    @property
    def obstacle_to_caching(self) -> str:
        return "rows of a table are mostly answered sooner than they are looked up"

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [pa.field(one.name, _kind(one)) for one in self.spec.outputs]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        return {
            one.name: AnswerField(np.dtype(one.dtype).type, one.shape) for one in self.spec.outputs
        }

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        """Make tensors of a chunk's columns: one request for each row that has no error."""
        return encode_features(chunk, self.spec)

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer a batch on the device; `model` gives tensors [b, ...] by name."""
        import torch

        found = model(inputs)
        return {
            one.name: found[one.name]
            .reshape(len(found[one.name]), *one.shape)
            .to(getattr(torch, one.dtype))
            for one in self.spec.outputs
        }

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        missing = ~valid_rows(answered)
        return [_array(scatter(answered, one.name), missing) for one in self.spec.outputs]


def _kind(one: TensorSpec) -> pa.DataType:
    kind: Any = pa.from_numpy_dtype(np.dtype(one.dtype))
    for size in reversed(one.shape):
        kind = pa.list_(kind, size)
    return kind  # type: ignore[no-any-return]


def _array(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> pa.Array[Any]:
    """Numbers [rows, *shape] as a column, null where a row is missing."""
    if values.ndim == 1:
        return pa.array(values, mask=missing)  # type: ignore[no-any-return]
    made: Any = pa.array(values.reshape(-1))
    for size in reversed(values.shape[2:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    listed: pa.Array[Any] = pa.FixedSizeListArray.from_arrays(
        made, values.shape[1], mask=pa.array(missing)
    )
    return listed
