"""The nouns. Everything else in batchinfer makes one of these out of another.

    InputFile ∈ Segment ─reader─▶ Chunk ─encode─▶ Requests ─plan─▶ Batch ─engine─▶ Answers ─▶ Shard

A chunk is the unit of work, of output and of resume: its rows become one shard, and the shard's
existence is the record that the work is done. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.stages import StageSeconds
from batchinfer.storage import FileStatus

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

#: What an answer is of: a whole request, each of its tokens, or each of its mask tokens.
Unit = Literal["request", "token", "mask"]

#: Columns that batchinfer itself writes; they are dropped when an output is used as an input.
SOURCE, ROW = "_source", "_row"
NUM_TOKENS, TRUNCATED, ERROR, RESCUED = "_num_tokens", "_truncated", "_error", "_rescued_data"
BOOKKEEPING = (SOURCE, ROW, NUM_TOKENS, TRUNCATED, ERROR, RESCUED)

#: What a tensor of a table may hold; "string": texts, of which no tensor is made.
TENSOR_DTYPES = (
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "string",
)  # fmt: skip


class Position(NamedTuple):
    """Where the next row of a segment starts.

    `file` counts within the segment. `offset` is in bytes of the decompressed UTF-8 text, or in rows
    for Parquet. `line` (0-based, physical) and `row` (0-based) count within that file.
    """

    file: int = 0
    offset: int = 0
    line: int = 0
    row: int = 0


BEGINNING = Position()


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file as it was when the job was planned; or a part of it, where it has grown since.

    `source` is what the output's `_source` says: the path below the common folder of all inputs, so
    that shards do not depend on where the data happens to lie. `compression` is "gz", "zst", "bz2",
    "xz" or "". The rows are those of the bytes from `start` up to `size`.
    """

    path: str
    source: str
    format: str
    compression: str
    size: int
    mtime_ns: int
    #: What a store says of it, where that is not on a disk.
    version: str = ""
    start: Position = BEGINNING
    #: Bytes behind `size`: they belong to a later segment, or are no whole row yet.
    excess: int = 0
    #: Whether more may be appended to it while the job goes on.
    grows: bool = False
    #: SHA-256 of the part's bytes, of small files that may grow: they share chunks with others.
    digest: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of the rows that are read."""
        return self.size - self.start.offset

    @property
    def is_bounded(self) -> bool:
        """Whether there may be bytes behind `size`, which are not to be read."""
        return self.grows or self.excess > 0

    def is_as(self, status: FileStatus) -> bool:
        """Whether the file is the one that was planned, as far as one sees without reading it."""
        size = self.size + self.excess
        if self.grows and status.size > size:
            return True
        now = (status.size, status.mtime_ns, status.version)
        return now == (size, self.mtime_ns, self.version)


@dataclass(frozen=True, slots=True)
class Segment:
    """A file, or several small ones in a row. Chunks never cross a segment.

    `max_rows`: the segment ends after so many rows, where the job has a limit.
    """

    index: int
    files: tuple[InputFile, ...]
    max_rows: int | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.num_bytes for file in self.files)

    @property
    def start(self) -> Position:
        """Where its first row starts."""
        return self.start_of(0) if self.files else BEGINNING

    def start_of(self, file: int) -> Position:
        """Where the first row of one of its files starts."""
        return self.files[file].start._replace(file=file)


@dataclass(frozen=True, slots=True)
class Increment:
    """What an incremental run has added to a job: the segments from `first` on.

    `num_rows`: about so many. `gone`: inputs, by their source, that are not there any more; all of their
    rows were answered.
    """

    first: int
    num_rows: int
    gone: tuple[str, ...] = ()


class ChunkId(NamedTuple):
    """Names a chunk: which segment, and which run of `chunk_rows` rows in it."""

    segment: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks [first, stop) of a segment that are to be answered; `stop` None: to the segment's end.

    `rows`: by chunk number, the only rows (counted in the chunk) that are to be answered; chunks that
    it does not name are passed over. None: all rows of all chunks. So many chunks at its beginning are
    `passed` over too, without being read more than it takes to find the next one.
    """

    segment: Segment
    first: int
    start: Position
    stop: int | None
    rows: Mapping[int, tuple[int, ...]] | None = None
    passed: int = 0

    @property
    def begin(self) -> int:
        """The first chunk that is to be answered."""
        return self.first + self.passed


@dataclass(frozen=True, slots=True)
class Chunk:
    """A fixed run of input rows.

    `table` holds `_source`, `_row`, the columns that were read, and `_rescued_data`. `errors` says, by
    row of the chunk, why a row cannot be put through the model. `digest` is of the input as read.
    """

    id: ChunkId
    table: pa.Table
    errors: Mapping[int, str]
    start: Position
    next: Position
    ends_segment: bool
    digest: str

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a module takes or gives, by name; `shape` is that of a row, without the axis of rows.

    `dtype` is one of TENSOR_DTYPES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a job must know of its model, read without loading weights; frozen in the plan.

    `identity` is the hub commit, or a digest of the files of a local folder: two equal ones give equal
    answers; with an adapter, its own follows a "+". `max_length` counts special tokens. `activation`
    (softmax, sigmoid, none) and `labels` are a classifier's; `dimension`, `pooling` (mean, cls, last),
    `normalize` and `prompt` an embedder's; `generation` (the settings of transformers' GenerationConfig, as
    JSON) and `chat` (whether prompts go through the chat template) a generator's; `inputs` and `outputs` a
    module's: the columns in the order in which it takes them (`is_stacked`: side by side, as one tensor),
    and the columns that it gives; `mask_token` ("[MASK]") and `vocab_size` those of one that fills gaps.
    `quantization`: how its weights were quantised ("" where they were not), and `dtype` what it then
    computes in.
    """

    name: str
    identity: str
    architecture: str
    task: str
    max_length: int
    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    dimension: int = 0
    pooling: str = "mean"
    normalize: bool = False
    prompt: str = ""
    mask_token: str = ""
    vocab_size: int = 0
    generation: str = ""
    chat: bool = False
    inputs: tuple[TensorSpec, ...] = ()
    is_stacked: bool = False
    outputs: tuple[TensorSpec, ...] = ()
    quantization: str = ""
    dtype: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers a module takes of each column that has several a row."""
        return {one.name: one.shape[0] for one in self.inputs if one.shape}


def runs(first: Int64Array, lengths: Int64Array) -> Int64Array:
    """The places `first[i]`, `first[i] + 1`, …, `lengths[i]` of them, of one i behind the other's."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    places: Int64Array = np.arange(total, dtype=np.int64)
    places += np.repeat(first - (ends - lengths), lengths)
    return places


@dataclass(frozen=True, slots=True)
class Windows:
    """Of requests that are windows of texts, those of a text one behind the other.

    `text` int32[n], rising: which text each is of. `fresh` int32[n]: its tokens that no window before it
    has.
    """

    text: Int32Array
    fresh: Int32Array

    @property
    def starts(self) -> Int64Array:
        """Each text's first window."""
        return np.flatnonzero(np.diff(self.text, prepend=-1))

    @property
    def counts(self) -> Int64Array:
        """How many windows each text has."""
        return np.diff(np.append(self.starts, len(self.text)))


@dataclass(frozen=True, slots=True)
class Requests:
    """The model inputs of a chunk as flat arrays; never a Python object a row.

    `row` int32[n]: the row of the chunk that request i belongs to. `cost` int32[n]: its tokens.
    `truncated` bool[n]: whether tokens were cut to the model's limit. `fields`: flat arrays of
    `offsets[-1]` items each ("input_ids", "token_type_ids"); request i owns [offsets[i], offsets[i+1]).
    A row of a table costs one, and its item may have several numbers: a field is then [n, k].
    `errors`: rows of the chunk that could not be encoded, and why. `notes`: arrays of as many items that
    only decoding needs (where in the text a token stands); they do not go to the device. `windows`: where
    long texts are several requests each. `masks` int32[n]: mask
    tokens of each, where a task fills them. `same_as` int64[n]: the request of the same input that is
    asked in place of each, itself or one before it; None: each is asked itself.
    """

    row: Int32Array
    cost: Int32Array
    truncated: npt.NDArray[np.bool_]
    offsets: Int64Array
    fields: Mapping[str, Int32Array]
    errors: Mapping[int, str] = field(default_factory=dict)
    notes: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    windows: Windows | None = None
    masks: Int32Array | None = None
    same_as: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def asked(self) -> Int64Array:
        """The requests whose answers are those of all, int64[m]."""
        places = np.arange(len(self), dtype=np.int64)
        return places if self.same_as is None else places[self.same_as == places]

    @property
    def num_tokens(self) -> int:
        """Tokens of the texts; what windows share counts once."""
        return int(self.tokens.sum())

    @property
    def tokens(self) -> Int32Array:
        """The tokens of each, int32[n]; what windows share counts once."""
        return self.cost if self.windows is None else self.windows.fresh

    def with_errors(self, errors: Mapping[int, str]) -> Requests:
        """These requests, with further rows that could not be encoded."""
        return dataclasses.replace(self, errors={**errors, **self.errors}) if errors else self

    def with_field(self, name: str, values: Int32Array) -> Requests:
        """These requests, with a further field."""
        return dataclasses.replace(self, fields={**self.fields, name: values})

    def keep(self, kept: npt.NDArray[np.bool_]) -> Requests:
        """The requests that bool[n] names, with their tokens; none is a window."""
        assert self.windows is None, "windows of a text stay together"
        assert self.same_as is None, "what is kept is known before duplicates are looked for"
        if kept.all():
            return self
        indices = np.flatnonzero(kept)
        source = self.places(indices, "token")
        cost = self.cost[kept]
        return Requests(
            row=self.row[kept],
            cost=cost,
            truncated=self.truncated[kept],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(cost, dtype=np.int64)]),
            fields={name: values[source] for name, values in self.fields.items()},
            errors=self.errors,
            notes={name: values[source] for name, values in self.notes.items()},
            masks=None if self.masks is None else self.masks[kept],
        )

    def select(self, indices: Int64Array) -> dict[str, Int32Array]:
        """The fields of these requests, packed one behind the other in this order."""
        source = self.places(indices, "token")
        return {name: values[source] for name, values in self.fields.items()}

    def counts(self, unit: Unit) -> Int32Array:
        """How many of a unit each request has, int32[n]."""
        if unit == "request":
            return np.ones(len(self), dtype=np.int32)
        if unit == "token":
            return self.cost
        assert self.masks is not None, "only a task that fills masks has answers to them"
        return self.masks

    def places(self, indices: Int64Array, unit: Unit) -> Int64Array:
        """The places of these requests' units among those of all requests, in this order."""
        if unit == "request":
            return indices
        counts = self.counts(unit).astype(np.int64)
        return runs((np.cumsum(counts) - counts)[indices], counts[indices])


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """How much goes through the model at once: rows times the longest row's tokens, and rows."""

    max_batch_tokens: int
    max_batch_rows: int

    def override(self, max_batch_tokens: int | None, max_batch_rows: int | None) -> BatchBudget:
        """This budget, but for what is given."""
        return BatchBudget(
            max_batch_tokens or self.max_batch_tokens, max_batch_rows or self.max_batch_rows
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that go through the model together, packed: no padding.

    `indices` int64[b]: which of the chunk's requests. `lengths` int32[b]: tokens of each, longest
    first. `fields`: arrays of sum(lengths) items, as of Requests; numpy, or pinned torch tensors once
    `pin_memory()` was called.
    """

    chunk: ChunkId
    indices: Int64Array
    lengths: Int32Array
    fields: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def max_length(self) -> int:
        return int(self.lengths[0]) if len(self.lengths) else 0

    def halves(self) -> tuple[Batch, Batch]:
        """The longer and the shorter half of the rows."""
        rows = len(self) // 2
        tokens = int(self.lengths[:rows].sum())
        return (
            Batch(
                self.chunk,
                self.indices[:rows],
                self.lengths[:rows],
                {name: values[:tokens] for name, values in self.fields.items()},
            ),
            Batch(
                self.chunk,
                self.indices[rows:],
                self.lengths[rows:],
                {name: values[tokens:] for name, values in self.fields.items()},
            ),
        )

    def keep(self, kept: npt.NDArray[np.bool_]) -> Batch:
        """The rows that bool[b] names, with their tokens."""
        tokens = np.repeat(kept, self.lengths)
        return Batch(
            self.chunk,
            self.indices[kept],
            self.lengths[kept],
            {name: np.asarray(values)[tokens] for name, values in self.fields.items()},
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU run asynchronously."""
        import torch

        pinned = {
            name: v if v.dtype == object else torch.from_numpy(v).pin_memory()  # texts stay here
            for name, v in self.fields.items()
        }
        return Batch(self.chunk, self.indices, self.lengths, pinned)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said to a batch: arrays whose first axis is the batch's rows.

    `error` is set instead where a single request failed on its own.
    """

    values: Mapping[str, npt.NDArray[Any]]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Cached:
    """What a cache has of a chunk's requests.

    `indices` int64[m]: those that it was asked for, and `keys`, what their answers are called in it.
    `found` bool[m]: whether it has them. `answers`: of those that it has, in this order.
    """

    indices: Int64Array
    keys: Sequence[bytes]
    found: npt.NDArray[np.bool_]
    answers: Answers


@dataclass(frozen=True, slots=True)
class LoadedChunk:
    """A chunk with its batches, ready for the device. There is always at least one batch.

    `rows`: the rows that the requests are of, where the others have answers already; None: all.
    `seconds`: what it took to load, in whichever process. `cached`: what a cache has of it, and is in no
    batch; None: none was asked.
    """

    chunk: Chunk
    requests: Requests
    batches: Sequence[Batch]
    rows: tuple[int, ...] | None = None
    seconds: StageSeconds = field(default_factory=StageSeconds)
    cached: Cached | None = None

    @property
    def num_rows(self) -> int:
        """The rows that are to be answered."""
        return self.chunk.num_rows if self.rows is None else len(self.rows)

    def pin_memory(self) -> LoadedChunk:
        return dataclasses.replace(self, batches=[batch.pin_memory() for batch in self.batches])


class Spared(NamedTuple):
    """What of a chunk the model was not asked for: rows, by where their answers come from, and tokens.

    From a row of the same input in the chunk, from a cache, or from the journal that an earlier run of the
    job had left. A row that makes several requests counts where all of them were spared.
    """

    duplicate_rows: int = 0
    cached_rows: int = 0
    recalled_rows: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AnsweredChunk:
    """A chunk with all its answers, in request order; `rows` and `cached` as in LoadedChunk."""

    chunk: Chunk
    requests: Requests
    values: Mapping[str, npt.NDArray[Any]]
    errors: Mapping[int, str]
    rows: tuple[int, ...] | None = None
    cached: Cached | None = None
    spared: Spared = field(default_factory=Spared)

    @property
    def num_rows(self) -> int:
        """The rows that were to be answered."""
        return self.chunk.num_rows if self.rows is None else len(self.rows)


@dataclass(frozen=True, slots=True)
class Shard:
    """A committed file of the output, as its footer describes it.

    `start` is where its rows begin in the segment's input, `next` where the rows behind them do.
    `rescued` counts, by column, the values that did not fit the column's type. `revision` rises each
    time that failed rows were tried again and the file was replaced.
    """

    id: ChunkId
    path: str
    num_rows: int
    num_errors: int
    num_tokens: int
    num_truncated: int
    rescued: Mapping[str, int]
    num_bytes: int
    start: Position
    next: Position
    ends_segment: bool
    digest: str
    revision: int = 0


def ordinal(number: int) -> str:
    """Write a number so that names sort in numeric order at any size: 000042, 999999, a1000000.

    Six digits; each further digit is announced by the next letter, which sorts behind every digit.
    """
    digits = str(number)
    if len(digits) <= 6:
        return digits.zfill(6)
    return chr(ord("a") + len(digits) - 7) + digits


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shard_name(chunk: ChunkId) -> str:
    """The file name of a chunk's shard; names sort in input order."""
    return f"part-{ordinal(chunk.segment)}-{ordinal(chunk.chunk)}.parquet"


def parse_shard_name(name: str) -> ChunkId | None:
    """The chunk that a file name stands for, or None where it is no shard's name."""
    stem, dot, extension = name.partition(".")
    parts = stem.split("-")
    if dot + extension != ".parquet" or len(parts) != 3 or parts[0] != "part":
        return None
    try:
        chunk = ChunkId(int(parts[1].lstrip("abcdefghijkl")), int(parts[2].lstrip("abcdefghijkl")))
    except ValueError:
        return None
    return chunk if shard_name(chunk) == name else None


def pending_spans(segments: Iterable[Segment], shards: Mapping[ChunkId, Shard]) -> Iterator[Span]:
    """Yield the gaps between committed chunks, in input order.

    Every gap starts where a committed chunk ends (or at the segment's start), so its position is known
    without reading what stands before it.
    """
    committed: dict[int, list[ChunkId]] = {}
    for id in sorted(shards):
        committed.setdefault(id.segment, []).append(id)
    for segment in segments:
        first, last = 0, None
        for id in committed.get(segment.index, ()):
            if id.chunk > first:
                yield Span(segment, first, _end_of(segment, last, shards), id.chunk)
            first, last = id.chunk + 1, id
        if last is None or not shards[last].ends_segment:
            yield Span(segment, first, _end_of(segment, last, shards), None)


def _end_of(segment: Segment, chunk: ChunkId | None, shards: Mapping[ChunkId, Shard]) -> Position:
    """Where a chunk ends; None stands in front of a segment's first."""
    return segment.start if chunk is None else shards[chunk].next


def without_chunks(span: Span, done: Container[int]) -> Iterator[Span]:
    """Yield what is left of a span whose `stop` is known when these chunks (by number) are done."""
    assert span.stop is not None, "where a span ends is known when it has been read"
    first: int | None = None
    for chunk in range(span.begin, span.stop + 1):
        is_left = (
            chunk < span.stop and chunk not in done and (span.rows is None or chunk in span.rows)
        )
        if is_left and first is None:
            first = chunk
        elif not is_left and first is not None:
            yield dataclasses.replace(span, passed=first - span.first, stop=chunk)
            first = None


def retry_spans(
    segments: Sequence[Segment],
    shards: Mapping[ChunkId, Shard],
    failed: Mapping[ChunkId, tuple[int, ...]],
) -> Iterator[Span]:
    """Yield the failed rows (by chunk; counted in it), in input order.

    A chunk is a span of its own, as its shard says where it starts. But a compressed file is
    decompressed up to there: those of one segment are a single span.
    """
    last: Span | None = None
    for chunk in sorted(failed):
        segment, rows = segments[chunk.segment], {chunk.chunk: failed[chunk]}
        if (
            last is not None
            and last.segment.index == segment.index
            and any(file.compression for file in segment.files)
        ):
            rows = {**(last.rows or {}), **rows}
            last = Span(segment, last.first, last.start, chunk.chunk + 1, rows)
            continue
        if last is not None:
            yield last
        last = Span(segment, chunk.chunk, shards[chunk].start, chunk.chunk + 1, rows)
    if last is not None:
        yield last
