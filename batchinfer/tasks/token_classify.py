"""Token classification: the entities of a row, with the characters that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests, Windows
from batchinfer.errors import UsageError
from batchinfer.tasks.base import (
    AnswerField,
    Head,
    OnePass,
    every_token,
    flattened,
    lists,
    valid_rows,
)
from batchinfer.tokenization import Encoder, Role, encode_requests, rows_without
from batchinfer.windows import whole

if TYPE_CHECKING:
    import torch

#: Positions count characters (Unicode code points), as in Python: `text[start:end]`.
ENTITY = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.string()),
    ]
)
#: The label of tokens that belong to no entity.
_NOTHING = "O"
_SPACE = ord(" ")


class TokenClassify(OnePass):
    """Entities by the rules of transformers' token-classification pipeline.

    `--aggregation`: none is an entity a token; simple joins neighbours of one label (B-X begins a new
    one, I-X goes on); first, max and average let each word have one label before that, by its first
    token, its surest token, or the mean of its tokens' scores. Of a text in windows, each token is answered
    by the window in which it stands farther from the edge; entities are then those of the whole text.

    Where the text column holds lists, they are texts that are split into words already: the tokenizer
    parts them further, and joins nothing across them. Places count in the words joined by one space, and
    `text` is taken from there.
    """

    name: ClassVar[str] = "token-classify"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    head: ClassVar[Head] = "tokens"
    knobs: ClassVar[frozenset[str]] = frozenset({"aggregation", "long", "stride"})

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        if self.text_pair_column is not None:
            raise UsageError(
                "--text-pair-column: means nothing to --task token-classify; leave it out"
            )
        self.takes_words = self.config.template is None and self.holds_list(self.text_column)

    @property
    def list_columns(self) -> frozenset[str]:
        return frozenset({self.text_column})

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [pa.field("entities", pa.list_(ENTITY))]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        labels = len(self.spec.labels)
        if self.config.aggregation == "average":
            return {"scores": AnswerField(np.float32, (labels,), unit="token")}
        return {
            "label": AnswerField(np.int32, high=labels, unit="token"),
            "score": AnswerField(np.float32, unit="token"),
        }

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        if not self.takes_words:
            return super().encode(chunk, encoder)
        column = chunk.table.column(self.text_column)
        rows = rows_without(chunk.errors, chunk.num_rows)
        _, _, errors = flattened(column, rows, self.text_column)
        rows = rows[~np.isin(rows, list(errors))]
        words: Any = column.take(rows).combine_chunks().cast(pa.list_(pa.large_string()))
        return encode_requests(encoder, rows, words, None).with_errors(errors)

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return every_token(model(**inputs).logits, inputs).float()

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = outputs.softmax(dim=-1)
        if self.config.aggregation == "average":
            return {"scores": scores}
        score, label = scores.max(dim=-1)
        return {"label": label.int(), "score": score}

    def merged(self, answered: AnsweredChunk) -> AnsweredChunk:
        requests = answered.requests
        if requests.windows is None:
            return answered
        kept = _farther_from_the_edge(requests, requests.windows)
        notes = {name: array[kept] for name, array in requests.notes.items()}
        values = {name: array[kept] for name, array in answered.values.items()}
        return dataclasses.replace(answered, requests=whole(requests, notes), values=values)

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        valid = valid_rows(answered)
        texts, _ = self.texts(answered.chunk)
        pieces = _Pieces.of(answered, valid)
        if self.config.aggregation in ("first", "average", "max"):
            pieces = pieces.words(self._goes_on(texts, pieces), self.config.aggregation)
        if self.config.aggregation == "none":
            names = self.spec.labels
            found = pieces.where(np.array([name != _NOTHING for name in names])[pieces.label])
        else:
            names, found = self._entities(pieces)
        return [self._column(texts, valid, names, found)]

    def _goes_on(self, texts: pa.ChunkedArray[Any], pieces: _Pieces) -> npt.NDArray[np.bool_]:
        """Which pieces belong to the word of the piece before them.

        A vocabulary with a sign for that (WordPiece's ##) says so. Elsewhere a piece goes on where
        there is no space before it, which takes punctuation for a part of the word.
        """
        goes_on: npt.NDArray[np.bool_] = pieces.role == Role.GOES_ON
        unknown = np.flatnonzero(pieces.role == Role.UNKNOWN)
        row, spaces = -1, np.zeros(0, np.bool_)
        for index in unknown:
            if pieces.row[index] != row:
                row = int(pieces.row[index])
                text = self._text(texts, row)
                letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
                spaces = np.append(letters == _SPACE, False)
            start = pieces.start[index]
            goes_on[index] = start > 0 and not (spaces[start - 1] or spaces[start])
        return goes_on

    def _text(self, texts: pa.ChunkedArray[Any], row: int) -> str:
        """What the places of entities count in."""
        found = texts[row].as_py()
        return " ".join(found) if self.takes_words else str(found)

    def _entities(self, pieces: _Pieces) -> tuple[tuple[str, ...], _Pieces]:
        """Neighbours of one label as one piece each; the labels' names are then those of entities."""
        labels = [_parted(name) for name in self.spec.labels]
        tags = sorted({tag for tag, _ in labels})
        tag = np.array([tags.index(name) for name, _ in labels])[pieces.label]
        begins = np.array([is_first for _, is_first in labels])[pieces.label]
        is_new = begins | pieces.begins_row
        is_new[1:] |= tag[1:] != tag[:-1]
        # An entity is called what stands behind its first label's first hyphen.
        names = tuple(name.split("-", 1)[-1] for name in self.spec.labels)
        found = pieces.joined(np.flatnonzero(is_new))
        return names, found.where(np.array([name != _NOTHING for name in names])[found.label])

    def _column(
        self,
        texts: pa.ChunkedArray[Any],
        valid: npt.NDArray[np.bool_],
        names: tuple[str, ...],
        found: _Pieces,
    ) -> pa.Array[Any]:
        row, text, parts = -1, "", []
        for index, start, end in zip(found.row, found.start, found.end, strict=True):
            if index != row:
                row, text = index, self._text(texts, int(index))
            parts.append(text[start:end])
        codes = pa.DictionaryArray.from_arrays(pa.array(found.label), pa.array(names, pa.string()))
        arrays = [
            codes.cast(pa.string()), pa.array(found.score, pa.float32()), pa.array(found.start),
            pa.array(found.end), pa.array(parts, pa.string()),
        ]  # fmt: skip
        items = pa.StructArray.from_arrays(arrays, fields=list(ENTITY))
        counts = np.bincount(found.row, minlength=len(valid))
        return lists(counts, items, ~valid)


@dataclass(frozen=True)
class _Pieces:
    """Tokens, words or entities in the order of the text: arrays of one length.

    `scores` float32[n, labels] is there where all of a token's are needed.
    """

    row: npt.NDArray[Any]
    start: npt.NDArray[Any]
    end: npt.NDArray[Any]
    role: npt.NDArray[Any]
    label: npt.NDArray[Any]
    score: npt.NDArray[Any]
    scores: npt.NDArray[Any] | None = None

    @classmethod
    def of(cls, answered: AnsweredChunk, valid: npt.NDArray[np.bool_]) -> _Pieces:
        """The tokens of all rows that have an answer, in order of the rows, without special ones."""
        requests, values = answered.requests, answered.values
        row = np.repeat(requests.row, requests.cost)
        notes = requests.notes
        wanted = np.flatnonzero(valid[row] & (notes["role"] != Role.SPECIAL))
        scores = values["scores"][wanted] if "scores" in values else None
        if scores is None:
            label, score = values["label"][wanted], values["score"][wanted]
        else:
            label, score = scores.argmax(axis=1).astype(np.int32), scores.max(axis=1, initial=0)
        start, end, role = (notes[name][wanted] for name in ("start", "end", "role"))
        return cls(row[wanted], start, end, role, label, score, scores)

    @property
    def begins_row(self) -> npt.NDArray[np.bool_]:
        begins = np.ones(len(self.row), dtype=np.bool_)
        begins[1:] = self.row[1:] != self.row[:-1]
        return begins

    def where(self, wanted: npt.NDArray[np.bool_]) -> _Pieces:
        """These of the pieces."""
        return _Pieces(
            row=self.row[wanted],
            start=self.start[wanted],
            end=self.end[wanted],
            role=self.role[wanted],
            label=self.label[wanted],
            score=self.score[wanted],
        )

    def joined(self, first: npt.NDArray[Any]) -> _Pieces:
        """Runs of pieces as one each: `first` are where they begin; the label is the first one's."""
        if not len(self.row):
            return self
        last = np.append(first[1:], len(self.row)) - 1
        sums = np.add.reduceat(self.score.astype(np.float64), first)
        mean = (sums / (last - first + 1)).astype(np.float32)
        return _Pieces(
            self.row[first],
            self.start[first],
            self.end[last],
            self.role[first],
            self.label[first],
            mean,
        )

    def words(self, goes_on: npt.NDArray[np.bool_], how: str) -> _Pieces:
        """The words, with a label for each: of the first token, the surest one, or by mean scores."""
        if not len(self.row):
            return self
        first = np.flatnonzero(self.begins_row | ~goes_on)
        last = np.append(first[1:], len(self.row)) - 1
        label, score = self.label[first], self.score[first]
        if how == "max":
            word = np.repeat(np.arange(len(first)), last - first + 1)
            order = np.lexsort((-self.score, word))  # stable: of equals the first one
            best = order[first]
            label, score = self.label[best], self.score[best]
        elif self.scores is not None:
            sums = np.add.reduceat(self.scores, first, axis=0)
            means = sums / (last - first + 1)[:, None].astype(np.float32)
            label, score = means.argmax(axis=1).astype(np.int32), means.max(axis=1)
        return _Pieces(
            self.row[first], self.start[first], self.end[last], self.role[first], label, score
        )


def _farther_from_the_edge(requests: Requests, windows: Windows) -> npt.NDArray[np.bool_]:
    """Which tokens of windows are kept: each of a text once, in its order; of equals the earlier one.

    Where two windows share tokens, the first half of them is farther from the edge in the earlier one. The
    beginning and the end of the text are no edges.
    """
    place, begins = requests.notes["place"], requests.offsets[:-1]
    nowhere = np.iinfo(place.dtype).max
    is_text = requests.notes["role"] != Role.SPECIAL
    first = np.minimum.reduceat(np.where(is_text, place, nowhere), begins)
    last = np.maximum.reduceat(np.where(is_text, place, -1), begins)
    until = np.full(len(first), nowhere)
    goes_on = np.diff(windows.text) == 0  # the next window is of the same text
    until[:-1][goes_on] = ((first[1:] + last[:-1]) // 2)[goes_on]
    behind = np.full(len(first), -1)
    behind[1:][goes_on] = until[:-1][goes_on]
    behind, until = (np.repeat(bound, requests.cost) for bound in (behind, until))
    return (place > behind) & (place <= until)


def _parted(name: str) -> tuple[str, bool]:
    """A label's kind, and whether it begins a new entity: B-PER, I-PER, PER."""
    return (name[2:], name[0] == "B") if name.startswith(("B-", "I-")) else (name, False)
