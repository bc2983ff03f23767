"""The frozen job: what a shard's bytes depend on, and how it is written down in plan.json."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchinfer.config import RunConfig, knob_of
from batchinfer.core import InputFile, ModelSpec, Segment
from batchinfer.errors import JobMismatchError, StorageError, UsageError
from batchinfer.readers.base import ReadOptions

FORMAT = 1

#: Said elsewhere in the identity: the inputs by file, the model by its files' digest or commit.
_NOT_IDENTITY = {"inputs", "output", "model", "revision", "trust_remote_code"}
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
    buffers and progress, nothing that is written.
    """

    config: RunConfig
    model: ModelSpec
    segments: tuple[Segment, ...]
    input_schema: pa.Schema
    output_schema: pa.Schema
    row_bytes: float
    num_rows_estimate: int

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on: no time, no absolute path, no hardware."""
        return {
            "plan_format": FORMAT,
            **{name: _plain(getattr(self.config, name)) for name in IDENTITY_KNOBS},
            "model": dataclasses.asdict(dataclasses.replace(self.model, name="")),
            "inputs": [
                {
                    "source": f.source,
                    "format": f.format,
                    "compression": f.compression,
                    "size": f.size,
                }
                for segment in self.segments
                for f in segment.files
            ],
            "segments": [[len(s.files), s.max_rows] for s in self.segments],
            "input columns": _columns(self.input_schema),
            "output columns": _columns(self.output_schema),
        }

    @functools.cached_property
    def id(self) -> str:
        """Names the job; stands in the footer of each of its shards."""
        canonical = json.dumps(self.identity, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def with_times_of(self, held: Plan) -> Plan:
        """This plan, with the inputs' modification times as they were when `held` was made.

        The two are the same job, so their segments are the same files, wherever they lie now.
        """
        segments = []
        for mine, theirs in zip(self.segments, held.segments, strict=True):
            pairs = zip(mine.files, theirs.files, strict=True)
            files = tuple(dataclasses.replace(a, mtime_ns=b.mtime_ns) for a, b in pairs)
            segments.append(dataclasses.replace(mine, files=files))
        return dataclasses.replace(self, segments=tuple(segments))

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
        pair = (config.text_pair_column,) if config.text_pair_column else ()
        return ReadOptions(
            text_columns=(config.text_column, *pair),
            schema=self.input_schema,
            rescue_unknown=config.keep is None,
            encoding=config.encoding,
            delimiter=config.delimiter,
            header=config.header,
            max_line_bytes=config.max_line_bytes,
        )

    def to_json(self) -> bytes:
        """plan.json."""
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
        }
        document["checksum"] = _checksum(document)
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, path: str) -> Plan:
        """Read plan.json back. Raises StorageError where it was damaged."""
        try:
            document = json.loads(content)
            checksum = document.pop("checksum")
            intact = checksum == _checksum(document)
        except (ValueError, KeyError, AttributeError, TypeError):
            intact = False
        if not intact:
            raise StorageError(
                f"{path}: damaged: it is not what batchinfer wrote; restore it, or start again with "
                "`batchinfer run` in another folder"
            )
        if document["format"] != FORMAT:
            raise JobMismatchError(
                f"{path}: written by another version of batchinfer (plan format "
                f"{document['format']}, this one has {FORMAT}); resume with that version"
            )
        segments = tuple(
            Segment(s["index"], tuple(InputFile(**f) for f in s["files"]), s["max_rows"])
            for s in document["segments"]
        )
        model = {**document["model"], "labels": tuple(document["model"]["labels"])}
        plan = cls(
            config=RunConfig.model_validate(document["config"]),
            model=ModelSpec(**model),
            segments=segments,
            input_schema=_schema_from_json(document["input_schema"]),
            output_schema=_schema_from_json(document["output_schema"]),
            row_bytes=document["row_bytes"],
            num_rows_estimate=document["num_rows_estimate"],
        )
        if plan.id != document["plan_id"]:
            raise JobMismatchError(
                f"{path}: written by another version of batchinfer; resume with that version"
            )
        return plan


def first_difference(planned: Plan, asked: Plan) -> str:
    """Say in a few words where two jobs differ, what the user set first; "" if nowhere."""
    for name, there in planned.identity.items():
        here = asked.identity[name]
        if there == here:
            continue
        if name == "inputs":
            return _input_difference(there, here)
        if name == "model":
            field = next(key for key in there if there[key] != here[key])
            if field == "identity":
                return (
                    f"the model's files differ ({planned.model.name} then, {asked.model.name} now)"
                )
            return f"the model's {field} was {there[field]}, now {here[field]}"
        if name.endswith("columns"):
            changed = [c for c in here if c not in there] or [c for c in there if c not in here]
            return f"the {name} differ ({changed[0] if changed else 'order'})"
        return f"{name} was {there}, now {here}"
    return ""


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
    return [f"{field.name}: {field.type}" for field in schema]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _schema_to_json(schema: pa.Schema) -> dict[str, Any]:
    """The exact schema for the program, and a legible one for people."""
    ipc = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return {"columns": _columns(schema), "arrow_ipc": ipc}


def _schema_from_json(document: dict[str, Any]) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["arrow_ipc"])))
