"""What a task is: rows in, arrays through the model, typed columns out.

A task supplies `columns`, `answers` and `decode`, and `outputs` and `reduce` where one pass through the
model is the answer; encoding text is shared. The module imports no torch: loader processes and the fake
engine use tasks too.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.config import RunConfig, flag_name, knob_of
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests, Unit, Windows
from batchinfer.detokenization import Detokenizer
from batchinfer.errors import UsageError
from batchinfer.knobs import TASK
from batchinfer.readers.columns import is_list
from batchinfer.template import render_texts
from batchinfer.tokenization import Encoder, encode_texts
from batchinfer.windows import mean, whole

if TYPE_CHECKING:
    import torch

#: What a head looks at: nothing (the states are the answer), one state of a row, every token, or the mask
#: tokens alone.
Head = Literal["none", "row", "tokens", "masks"]

_KNOBS = tuple(name for name in RunConfig.model_fields if knob_of(name)["panel"] == TASK)


@dataclass(frozen=True, slots=True)
class AnswerField:
    """One array of a task's answers: `shape` a `unit`, and for integers the values [0, `high`).

    `counted_by`: `shape` is that of one item, of which a request has as many as another field of this name
    says, one request's behind the other's.
    """

    dtype: type[np.generic]
    shape: tuple[int, ...] = ()
    high: int = 0
    unit: Unit = "request"
    counted_by: str = ""


class Task(ABC):
    """One kind of question put to a model.

    Raises UsageError for a setting that the task or its model cannot follow.
    """

    name: ClassVar[str]
    #: Settings of `--help`'s panel "Task" that mean something here.
    knobs: ClassVar[frozenset[str]] = frozenset()
    #: Whether rows are texts, which a tokenizer encodes.
    takes_text: ClassVar[bool] = True
    #: Whether `decode` makes text of token ids: then it needs a `detokenizer`.
    writes_tokens: ClassVar[bool] = False
    #: Columns of lists that belong together, item by item: labels and their scores.
    parallel_lists: ClassVar[tuple[str, ...]] = ()
    #: Columns that say which tokens of a whole vocabulary were chosen, a text first: two are often near
    #: ties, and what follows one follows from it.
    word_columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        self.spec = spec
        self.config = config = config or RunConfig()
        #: The input's columns, as far as they are known: of what is not, it holds texts.
        self.schema = schema or pa.schema([])
        #: Set by whoever is going to call `decode`.
        self.detokenizer: Detokenizer | None = None
        for name in _KNOBS:
            default = RunConfig.model_fields[name].default
            if name not in self.knobs and getattr(config, name) != default:
                raise UsageError(
                    f"{flag_name(name)}: means nothing to --task {self.name}; leave it out"
                )
        if config.stride is not None and config.long != "stride":
            raise UsageError("--stride: add --long stride, or leave it out")
        if (config.stride or 0) >= spec.max_length:
            raise UsageError(
                f"--stride {config.stride}: should be less than a window of {spec.max_length} tokens"
            )
        for column in config.text_columns:
            if self.holds_list(column) and not self.takes_list(column):
                raise UsageError(
                    f"column '{column}' holds {self.schema.field(column).type}, not text: --task "
                    f"{self.name} takes one text a row"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Processes that load or answer make no texts; a tokenizer is some megabytes.
        return {**self.__dict__, "detokenizer": None}

    @property
    def list_columns(self) -> frozenset[str]:
        """Columns that may hold several texts a row."""
        return frozenset()

    def takes_list(self, name: str) -> bool:
        """Whether the task can do something with the lists that a column holds."""
        kind: Any = self.schema.field(name).type
        return name in self.list_columns and not pa.types.is_struct(kind.value_type)

    def holds_list(self, name: str) -> bool:
        """Whether a column of the input holds lists."""
        index = self.schema.get_field_index(name)
        return index >= 0 and is_list(self.schema.field(index).type)

    @property
    def obstacle_to_audit(self) -> str:
        """Why its answers cannot be computed again and compared, in a few words; "" where they can."""
        return ""

    #: Whether inputs recur often enough to look for it unasked.
    recurs: ClassVar[bool] = True

    @property
    def obstacle_to_sharing(self) -> str:
        """Why the answer to an input is not that of every row with the same one; "" where it is."""
        return ""

    @property
    def obstacle_to_caching(self) -> str:
        """Why no answers are kept for other runs, in a few words; "" where they can be."""
        return self.obstacle_to_sharing

    @property
    def shares_answers(self) -> bool:
        """Whether rows of one input in a chunk are asked about once, as `--dedup` says."""
        if self.config.dedup != "auto":
            return self.config.dedup == "chunk"
        return self.recurs and not self.obstacle_to_sharing

    @property
    def takes_pairs(self) -> bool:
        """Whether a request is a pair of texts."""
        return self.text_pair_column is not None

    @property
    def tokens_ahead(self) -> int:
        """Tokens by which each request may grow while it is answered."""
        return 0

    @property
    def text_column(self) -> str:
        return self.config.text_column

    @property
    def text_pair_column(self) -> str | None:
        return self.config.text_pair_column

    @property
    def prompt(self) -> str:
        """What is put before each text."""
        return ""

    @property
    @abstractmethod
    def columns(self) -> list[pa.Field[Any]]:
        """The columns that the task adds to the output."""

    @property
    @abstractmethod
    def answers(self) -> Mapping[str, AnswerField]:
        """The arrays that the engine returns, each of a request, a token or a mask token."""

    def merge(
        self, values: Mapping[str, npt.NDArray[Any]], windows: Windows, cost: npt.NDArray[np.int32]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """The answers of texts out of those of their windows, of `cost` tokens each: here, the mean."""
        return {name: mean(array, windows) for name, array in values.items()}

    def merged(self, answered: AnsweredChunk) -> AnsweredChunk:
        """One answer a text, also where long texts were asked about in windows."""
        requests = answered.requests
        if requests.windows is None:
            return answered
        values = self.merge(answered.values, requests.windows, requests.cost)
        return dataclasses.replace(answered, requests=whole(requests, {}), values=values)

    @abstractmethod
    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        """Turn a chunk's answers into `columns`, one value a row; null for rows in `answered.errors`.

        They are `merged`: of each text there is one answer.
        """

    def texts(self, chunk: Chunk) -> tuple[pa.ChunkedArray[Any], Mapping[int, str]]:
        """The first text of each row: a column, or what the template makes of several.

        Also, by row, why it has none, beside the rows of `chunk.errors`: those are not looked at.
        """
        if self.config.template is None:
            return chunk.table.column(self.text_column), {}
        return render_texts(self.config.template, chunk.table, chunk.errors)

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        """Tokenize a chunk: one request for each row that has no error."""
        pair = self.text_pair_column
        texts, errors = self.texts(chunk)
        requests = encode_texts(
            encoder,
            texts,
            chunk.table.column(pair) if pair else None,
            errors={**chunk.errors, **errors},
            prompt=self.prompt,
        )
        return requests.with_errors(errors)


class OnePass(Task):
    """A task that is answered by putting a batch through a transformers model once."""

    #: The transformers class that loads the model.
    auto_class: ClassVar[str]
    head: ClassVar[Head]

    def prepare(self, model: Any) -> None:
        """Change a model once it is loaded, before it is asked anything."""

    @abstractmethod
    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Put a batch through the model, on its device; what answers are made of, as float32.

        `inputs`: `input_ids`, `attention_mask` (and `token_type_ids`), int64[b, t], padded on the right;
        or, packed, `input_ids` and `position_ids` (and `token_type_ids`), int64[1, t], with
        `cu_seq_lens_q` int32[b + 1] saying where rows begin and the last one ends. The first axis is
        the rows, or, of a `head` that looks at tokens, all of those, one row's behind the other's. A head
        that looks at mask tokens is told where they are: `mask_places` int64[m] count in the flat batch.
        """

    @abstractmethod
    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arrays named in `answers`, first axis as in `outputs`, of bounded width."""

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer a batch on the device."""
        return self.reduce(self.outputs(model, inputs))


def flattened(
    column: pa.ChunkedArray[Any], rows: npt.NDArray[np.int32], name: str
) -> tuple[npt.NDArray[np.int32], pa.Array[Any], dict[int, str]]:
    """The texts in the lists of these rows: of which row each is, the texts, and rows with a null in them.

    Rows with an error own no texts.
    """
    lists: Any = column.take(rows).combine_chunks()
    texts: Any = lists.flatten().cast(pa.large_string())
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(rows, counts)
    errors = {}
    if texts.null_count:
        wrong = np.unique(row[texts.is_null().to_numpy(zero_copy_only=False)])
        errors = {int(one): f"a text in the list of column '{name}' is null" for one in wrong}
        good = ~np.isin(row, wrong)
        row, texts = row[good], texts.filter(pa.array(good))
    return row, texts, errors


def every_token(states: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """States [b, t, n] of padded rows, or [1, t, n] of packed ones, as [tokens, n] in order of the rows."""
    if "cu_seq_lens_q" in inputs:
        return states[0]
    # On a GPU this waits for the number of tokens: only padded models come here.
    return states[inputs["attention_mask"].bool()]


def valid_rows(answered: AnsweredChunk) -> npt.NDArray[np.bool_]:
    """Which rows of the chunk have an answer."""
    valid = np.zeros(answered.chunk.num_rows, dtype=np.bool_)
    valid[answered.requests.row] = True
    if answered.errors:
        valid[np.fromiter(answered.errors, dtype=np.int64)] = False
    return valid


def missing_rows(answered: AnsweredChunk) -> npt.NDArray[np.bool_]:
    """Which rows have no answer, where a row may make several requests, or none and still be right.

    Those that were not asked for this time are missing too.
    """
    missing = np.zeros(answered.chunk.num_rows, dtype=np.bool_)
    if answered.rows is not None:
        missing[:] = True
        missing[np.array(answered.rows, dtype=np.int64)] = False
    if answered.errors:
        missing[np.fromiter(answered.errors, dtype=np.int64)] = True
    return missing


def scatter(answered: AnsweredChunk, name: str) -> npt.NDArray[Any]:
    """An answer by row of the chunk rather than by request; zeros where a row has none."""
    values = answered.values[name]
    rows = np.zeros((answered.chunk.num_rows, *values.shape[1:]), dtype=values.dtype)
    rows[answered.requests.row] = values
    return rows


def lists(
    counts: npt.NDArray[Any], items: pa.Array[Any], missing: npt.NDArray[np.bool_]
) -> pa.Array[Any]:
    """Lists of items, `counts` int[rows] of them each; null where a row is missing (its count is 0)."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    kind: Any = pa.list_(items.type)
    made: Any = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), items, type=kind, mask=pa.array(missing, pa.bool_())
    )
    return made  # type: ignore[no-any-return]


def ranked(
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    names: tuple[str, ...],
    missing: npt.NDArray[np.bool_],
) -> pa.Array[Any]:
    """Labels and scores [rows, k], best first, as lists of structs; null where a row is missing."""
    there = ~missing
    codes = pa.array(labels[there].ravel())
    named = pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string())
    fields = [RANKED.value_type.field(i) for i in range(2)]
    items = pa.StructArray.from_arrays([named, pa.array(scores[there].ravel())], fields=fields)
    return lists(there * labels.shape[1], items, missing)


#: Labels with their scores, best first.
RANKED = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
