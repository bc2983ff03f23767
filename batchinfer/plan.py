"""The frozen job: what a shard's bytes depend on, and how it is written down in plan.json."""

from __future__ import annotations

import base64
import bisect
import dataclasses
import functools
import hashlib
import json
import math
import os
import reprlib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from batchinfer.config import RunConfig, knob_of
from batchinfer.core import (
    BOOKKEEPING,
    TENSOR_DTYPES,
    ChunkId,
    Increment,
    InputFile,
    ModelSpec,
    Position,
    Segment,
    Shard,
    TensorSpec,
)
from batchinfer.errors import JobMismatchError, StorageError, UsageError, one_line
from batchinfer.profiles import Tuned
from batchinfer.readers.base import ReadOptions
from batchinfer.readers.listing import COMPRESSIONS, FORMATS
from batchinfer.storage import SCHEMES

FORMAT = 1

#: Said elsewhere in the identity: the inputs by file, the model by its files' digest or commit.
_NOT_IDENTITY = {
    "inputs", "output", "model", "revision", "adapter", "trust_remote_code", "allow_pickle",
}  # fmt: skip
_TASKS = set(typing.get_args(RunConfig.model_fields["task"].annotation)) - {"auto"}
IDENTITY_KNOBS = tuple(
    name
    for name in RunConfig.model_fields
    if name not in _NOT_IDENTITY and not knob_of(name)["free"]
)


@dataclass(frozen=True)
class Plan:
    """A job as planned. `config` has every `auto` resolved that the answers depend on.

    `input_schema`: the columns that are read, and their types. `output_schema`: those of every shard.
    `row_bytes` (mean, of the decompressed input) and `num_rows_estimate` come from a sample; they size
    buffers and progress, nothing that is written. `tuned`: settings that `batchinfer tune` found, if
    any; they do not belong to the identity, but a resumed run keeps them. `increments`: what was added to
    the job since it was begun; their segments are the last ones (see increments.py).
    """

    config: RunConfig
    model: ModelSpec
    segments: tuple[Segment, ...]
    input_schema: pa.Schema
    output_schema: pa.Schema
    row_bytes: float
    num_rows_estimate: int
    tuned: Tuned | None = None
    increments: tuple[Increment, ...] = ()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on: no time, no absolute path, no hardware.

        The inputs are those that the job was begun with.
        """
        return {
            "plan_format": FORMAT,
            **{name: _plain(getattr(self.config, name)) for name in IDENTITY_KNOBS},
            "model": dataclasses.asdict(dataclasses.replace(self.model, name="")),
            **_inputs(self.segments[: self._firsts[1]]),
            "input columns": _columns(self.input_schema),
            "output columns": _columns(self.output_schema),
        }

    @property
    def id(self) -> str:
        """Names the job."""
        return self.ids[0]

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Names the job as it was begun, and as each increment has made it."""
        ids = [_digest(self.identity)]
        for first, following in pairwise(self._firsts[1:]):
            ids.append(_digest({"after": ids[-1], **_inputs(self.segments[first:following])}))
        return tuple(ids)

    def id_of(self, segment: int) -> str:
        """The job as it was when a segment was added: so it stands in the footers of its shards."""
        return self.ids[max(0, bisect.bisect_right(self._firsts, segment, hi=len(self.ids)) - 1)]

    @functools.cached_property
    def _firsts(self) -> tuple[int, ...]:
        """The first segment of the job as it was begun and of each increment, and the end of them all."""
        return (0, *(one.first for one in self.increments), len(self.segments))

    def rows_expected(self, unfinished: Collection[int], shards: Mapping[ChunkId, Shard]) -> int:
        """About how many rows there are: of finished segments it is known, of others told by their size."""
        known: int = sum(s.num_rows for id, s in shards.items() if id.segment not in unfinished)
        added: list[int] = [one.num_rows for one in self.increments]
        guesses = [self.num_rows_estimate - sum(added), *added]
        for guess, (first, following) in zip(guesses, pairwise(self._firsts), strict=True):
            sizes = {one.index: one.size for one in self.segments[first:following]}
            left = sum(size for index, size in sizes.items() if index in unfinished)
            known += round(guess * left / max(1, sum(sizes.values())))
        return known

    @functools.cached_property
    def gone(self) -> frozenset[str]:
        """The inputs, by source, that need not be there any more."""
        return frozenset(source for one in self.increments for source in one.gone)

    def as_held(self, held: Plan) -> Plan:
        """This plan, with what a run folder's plan has noted beside the job.

        That is, the inputs' modification times, and what was estimated. The two are the same job, so their
        segments are the same files, wherever they lie now.
        """
        segments = []
        for mine, theirs in zip(self.segments, held.segments, strict=True):
            pairs = zip(mine.files, theirs.files, strict=True)
            files = tuple(
                dataclasses.replace(a, mtime_ns=b.mtime_ns, version=b.version) for a, b in pairs
            )
            segments.append(dataclasses.replace(mine, files=files))
        return dataclasses.replace(
            self,
            segments=tuple(segments),
            row_bytes=held.row_bytes,
            num_rows_estimate=held.num_rows_estimate,
        )

    def with_changes(self, *, output: str, **changes: Any) -> Plan:
        """This plan, run otherwise. Raises UsageError for what would change the answers."""
        for name in changes:
            if name not in RunConfig.model_fields or not knob_of(name)["free"]:
                free = [n for n in RunConfig.model_fields if knob_of(n)["free"]]
                raise UsageError(f"resume cannot change '{name}'; it can change {', '.join(free)}")
        given = RunConfig.load(changes, environ={})
        update = {"output": output, **{name: getattr(given, name) for name in changes}}
        return dataclasses.replace(self, config=self.config.model_copy(update=update))

    @property
    def chunk_rows(self) -> int:
        assert self.config.chunk_rows is not None
        return self.config.chunk_rows

    @property
    def read_options(self) -> ReadOptions:
        config = self.config
        return ReadOptions(
            text_columns=config.text_columns,
            value_columns=config.value_columns(self.input_schema.names),
            filled_columns=config.features if config.task == "module" else (),
            schema=self.input_schema,
            rescue_unknown=config.keep is None,
            encoding=config.encoding,
            delimiter=config.delimiter,
            header=config.header,
            max_line_bytes=config.max_line_bytes,
        )

    def to_json(self) -> bytes:
        """plan.json."""
        assert not self.increments, "they have files of their own"
        document = {
            "format": FORMAT,
            "plan_id": self.id,
            "config": self.config.model_dump(mode="json"),
            "model": dataclasses.asdict(self.model),
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "input_schema": _schema_to_json(self.input_schema),
            "output_schema": _schema_to_json(self.output_schema),
            "row_bytes": self.row_bytes,
            "num_rows_estimate": self.num_rows_estimate,
            "tuned": None if self.tuned is None else dataclasses.asdict(self.tuned),
        }
        document["checksum"] = checksum_of(document)
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, path: str) -> Plan:
        """Read plan.json back.

        Raises StorageError where it was damaged. The checksum keeps no one from writing a plan by hand:
        JobMismatchError where it holds what batchinfer never writes.
        """
        document = read_document(content, path)
        with strangers_refused(path):
            plan = cls(
                config=_config_from_json(document["config"]),
                model=_model_from_json(document["model"]),
                segments=segments_from_json(document["segments"]),
                input_schema=_schema_from_json(document["input_schema"]),
                output_schema=_schema_from_json(document["output_schema"]),
                row_bytes=_number(document["row_bytes"]),
                num_rows_estimate=whole_number(document["num_rows_estimate"]),
                tuned=_tuned_from_json(document.get("tuned")),
            )
            _require_columns(plan)
            plan_id = plan.id
        if plan_id != document.get("plan_id"):
            raise JobMismatchError(
                f"{path}: written by another version of batchinfer; resume with that version"
            )
        return plan


def _inputs(segments: Sequence[Segment]) -> dict[str, Any]:
    """What the answers depend on of the inputs."""
    files = [file for segment in segments for file in segment.files]
    return {
        "inputs": [
            {
                "source": file.source,
                "format": file.format,
                "compression": file.compression,
                "size": file.size,
                **({"start": file.start} if file.start != Position() else {}),
            }
            for file in files
        ],
        "segments": [[len(segment.files), segment.max_rows] for segment in segments],
    }


def _digest(identity: Mapping[str, Any]) -> str:
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def first_difference(planned: Plan, asked: Plan) -> str:
    """Say in a few words where two jobs differ, what the user set first; "" if nowhere."""
    for name, there in planned.identity.items():
        here = asked.identity[name]
        if there == here:
            continue
        if name == "inputs":
            return _input_difference(there, here)
        if name == "model":
            return _model_difference(planned.model, asked.model)
        if name.endswith("columns"):
            changed = [c for c in here if c not in there] or [c for c in there if c not in here]
            return f"the {name} differ ({changed[0] if changed else 'order'})"
        return f"{name} was {_in_line(there)}, now {_in_line(here)}"
    return ""


def _model_difference(planned: ModelSpec, asked: ModelSpec) -> str:
    """What a user can name (labels, prompt, length) before the digest that differs with it."""
    there, here = (dataclasses.asdict(dataclasses.replace(m, name="")) for m in (planned, asked))
    differing = [field for field in there if there[field] != here[field]]
    field = next((field for field in differing if field != "identity"), "identity")
    if field != "identity":
        return f"the model's {field} was {_short(there[field])}, now {_short(here[field])}"
    then, now = planned.identity, asked.identity
    if planned.task == "module":
        if planned.name != asked.name:
            return f"the module differs ({planned.name} then, {asked.name} now)"
        return f"the code or the weights of {asked.name} differ"
    if then.partition("+")[0] == now.partition("+")[0]:
        return f"the adapter differs ({planned.name} then, {asked.name} now)"
    if then.startswith("sha256:") or now.startswith("sha256:"):
        return f"the model's files differ ({planned.name} then, {asked.name} now)"
    return f"the model's revision was {then[:12]}, now {now[:12]}"


def _short(value: Any) -> str:
    return reprlib.repr(list(value)) if isinstance(value, tuple) else str(value)[:100]


def _in_line(value: Any) -> str:
    """A setting in one line: a template has several."""
    text = str(value)
    return text if text.isprintable() else reprlib.repr(text)


def _input_difference(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    old = {file["source"]: file for file in there}
    new = {file["source"]: file for file in here}
    for source in new:
        if source not in old:
            return f"input {source} was not there when the job was planned"
    for source, file in old.items():
        if source not in new:
            return f"input {source} is missing"
        if file != new[source]:
            return f"input {source} had {file['size']:,} bytes, now {new[source]['size']:,}"
    return "the inputs stand in another order"


def _columns(schema: pa.Schema) -> list[str]:
    # As plan.json brings it back: a map type's own text loses the names of its parts on the way.
    written = pa.ipc.read_schema(schema.serialize())
    return [f"{field.name}: {field.type}" for field in written]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def checksum_of(document: Mapping[str, Any]) -> str:
    """What stands in a plan's document beside all else that it says."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _schema_to_json(schema: pa.Schema) -> dict[str, Any]:
    """The exact schema for the program, and a legible one for people."""
    ipc = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return {"columns": _columns(schema), "arrow_ipc": ipc}


def read_document(content: bytes, path: str) -> dict[str, Any]:
    """The document in a plan's file. Raises StorageError where it is damaged, and JobMismatchError where
    another version of batchinfer wrote it.
    """
    try:
        document: dict[str, Any] = json.loads(content)
        checksum = document.pop("checksum")
        intact = checksum == checksum_of(document)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise StorageError(
            "damaged: it is not what batchinfer wrote",
            file=path,
            advice="restore it, or start again with `batchinfer run` in another folder",
        )
    written = document.get("format")
    if type(written) is int and written != FORMAT:
        raise JobMismatchError(
            f"{path}: written by another version of batchinfer (plan format "
            f"{written}, this one has {FORMAT}); resume with that version"
        )
    return document


@contextmanager
def strangers_refused(path: str) -> Iterator[None]:
    """Say of a document that holds what batchinfer never writes that it is not this version's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {one_line(error, 100)}"
        raise JobMismatchError(
            f"{path}: not written by this version of batchinfer ({reason}); "
            "resume with that version, or start anew with another --output"
        ) from None


# -- what a plan.json may hold; each raises ValueError, TypeError or KeyError for anything else -----


def _schema_from_json(document: dict[str, Any]) -> pa.Schema:
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["arrow_ipc"])))
    _require(document["columns"] == _columns(schema), "its schemas differ from their descriptions")
    _require(len(set(schema.names)) == len(schema.names), "it has a column twice")
    return schema


def _config_from_json(document: dict[str, Any]) -> RunConfig:
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        detail = error.errors()[0]
        raise ValueError(f"config {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None
    _require(config.engine in ("local", "openvino", "fake"), "config engine: not resolved")
    _require(config.dtype != "auto", "config dtype: not resolved")
    _require(config.dedup != "auto", "config dedup: not resolved")
    _require(config.max_length is not None, "config max_length: not resolved")
    _require(config.chunk_rows is not None, "config chunk_rows: not resolved")
    return config


def _model_from_json(document: dict[str, Any]) -> ModelSpec:
    tensors = {
        name: tuple(map(_tensor_from_json, document.get(name, ())))
        for name in ("inputs", "outputs")
    }
    labels = tuple(map(_text, document["labels"]))
    spec = ModelSpec(**{**document, **tensors, "labels": labels})
    texts = ("name", "identity", "architecture", "prompt", "mask_token", "generation")
    for name in (*texts, "quantization", "dtype"):
        _text(getattr(spec, name))
    _require(spec.task in _TASKS, "model task: unknown")
    _require(spec.activation in ("softmax", "sigmoid", "none"), "model activation: unknown")
    _require(spec.pooling in ("mean", "cls", "last"), "model pooling: unknown")
    _require(type(spec.normalize) is bool, "model normalize: neither true nor false")
    _require(type(spec.is_stacked) is bool, "model is_stacked: neither true nor false")
    _require(0 < whole_number(spec.max_length) <= 1 << 30, "model max_length: out of range")
    _require(whole_number(spec.dimension) <= 1 << 30, "model dimension: out of range")
    _require(whole_number(spec.vocab_size) <= 1 << 30, "model vocab_size: out of range")
    return spec


def _tensor_from_json(document: dict[str, Any]) -> TensorSpec:
    shape = document["shape"]
    _require(type(shape) is list and len(shape) <= 8, "the shape of a tensor is none")
    _require(
        all(0 < whole_number(size) <= 1 << 30 for size in shape), "the shape of a tensor is none"
    )
    tensor = TensorSpec(**{**document, "shape": tuple(shape)})
    _text(tensor.name).encode()
    _require(tensor.dtype in TENSOR_DTYPES, "the type of a tensor is unknown")
    return tensor


def segments_from_json(document: list[dict[str, Any]], first: int = 0) -> tuple[Segment, ...]:
    """The segments that a document has, from number `first` on; only an increment may have none."""
    _require(type(document) is list and len(document) + first > 0, "it has no segments")
    segments = []
    for index, segment in enumerate(document, first):
        _require(segment["index"] == index, "segments are out of order")
        _require(type(segment["files"]) is list and len(segment["files"]) > 0, "a segment is empty")
        limit = segment["max_rows"]
        files = tuple(_file_from_json(file) for file in segment["files"])
        segments.append(Segment(index, files, None if limit is None else whole_number(limit)))
    return tuple(segments)


def _file_from_json(document: dict[str, Any]) -> InputFile:
    start = Position(*map(whole_number, document.get("start", ())))
    file = InputFile(**{**document, "start": start})
    _require(
        start.file == 0 and start.offset <= whole_number(file.size), "the place of a part is none"
    )
    _require(type(file.grows) is bool, "an input neither grows nor does not")
    whole_number(file.excess)
    _text(file.digest)
    has_path = os.path.isabs(_text(file.path)) or file.path.partition("://")[0] in SCHEMES
    _require(has_path and "\0" not in file.path, "an input has no path")
    _text(file.version).encode()
    _text(file.source).encode()
    _require(file.format in FORMATS, "the format of an input is unknown")
    _require(
        file.compression in ("", *COMPRESSIONS.values())
        and not (file.compression and file.format == "parquet"),
        "the compression of an input is unknown",
    )
    _require(
        type(file.mtime_ns) is int and abs(file.mtime_ns) < 1 << 63, "the time of an input is none"
    )
    return file


def _tuned_from_json(document: object) -> Tuned | None:
    """Plans that were written before there were profiles have none."""
    return None if document is None else Tuned.from_json(document)


def _require_columns(plan: Plan) -> None:
    names = plan.input_schema.names
    for name in plan.read_options.answering:
        _require(name in names, "it does not read the columns that rows are answered by")
    _require(not set(names) & set(BOOKKEEPING), "it reads a column of batchinfer's own")
    _require(plan.config.task == plan.model.task, "config and model name two tasks")


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"a {type(value).__name__} where a string should stand")
    return value


def whole_number(value: object) -> int:
    """A count or a size. Raises ValueError where it is none."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a count or size is no whole number, or out of range")
    return value


def _number(value: object) -> float:
    _require(type(value) in (int, float), "a number is none")
    number = float(value)  # type: ignore[arg-type]
    _require(math.isfinite(number) and 0 <= number < 1 << 62, "a number is out of range")
    return number


def _require(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise ValueError(otherwise)
