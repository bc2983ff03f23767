"""From a configuration to a plan: everything that can be wrong is found before the first row is read.

Planning reads the listing, a sample of each input and the model's description; it writes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.config import RunConfig, flag_name
from batchinfer.core import BOOKKEEPING, InputFile, ModelSpec, Position, Segment
from batchinfer.engines import describe_model, kind_of_device, require_fit, resolve_dtype
from batchinfer.engines.modules import names_module
from batchinfer.errors import InputError, JobMismatchError, UsageError, one_line
from batchinfer.hints import listed, unknown_column
from batchinfer.plan import Plan
from batchinfer.profiles import Profile, Tuned, kept_profile, key_of, named_profile
from batchinfer.readers import (
    ReadOptions,
    group_segments,
    inspect_inputs,
    list_inputs,
    open_reader,
)
from batchinfer.readers.base import shown
from batchinfer.readers.columns import is_list
from batchinfer.readers.growing import as_growing
from batchinfer.tasks import create_task
from batchinfer.tasks.features import is_feature, width_of
from batchinfer.tasks.generation import with_settings
from batchinfer.template import settled
from batchinfer.writers.shard import output_schema

log = logging.getLogger("batchinfer")

#: A chunk is what a kill costs at most and what the length sort sees: 16 k rows sort as well as all.
MAX_CHUNK_ROWS = 16384
#: Answers that are written take a hundred times as long.
MAX_WRITTEN_ROWS = 1024
#: Rows of a table are answered much faster, and are not sorted: a shard should hold more of them.
MAX_TABLE_ROWS = 65536
_MAX_ROWS_OF = {
    "module": MAX_TABLE_ROWS, "generate": MAX_WRITTEN_ROWS, "seq2seq": MAX_WRITTEN_ROWS,
}  # fmt: skip
#: A chunk's input stays near this, by the largest rows that the sample saw.
MAX_CHUNK_BYTES = 32 << 20
#: What a profile chooses of what the answers depend on.
_CHOSEN = ("engine", "dtype")
#: How long lists are is looked up in so many rows of so many files.
_LOOK_ROWS, _MAX_LOOKS = 64, 64


def make_plan(
    config: RunConfig,
    previous: Plan | None = None,
    *,
    is_rehearsal: bool = False,
    incremental: bool = False,
) -> tuple[Plan, Path | None]:
    """Resolve a configuration; return the plan and the model's folder (None: the engine needs none).

    Where `previous` is given (the plan that the run folder holds), every `auto` resolves as it did
    then, and the settings stay. A rehearsal (`batchinfer tune`) writes no output, so it needs no run
    folder; where one is named, what lies in it is no input. `incremental`: what is no whole row yet is left
    for the run that finds its end. Raises UsageError, InputError or ModelError.
    """
    if not (config.output or is_rehearsal):
        raise UsageError("no run folder: name one with --output")
    asked = config = with_settings(settled(config))
    config = _resolve_engine(config, previous)
    files = list_inputs(config.inputs, config.format, exclude=config.output)
    options = ReadOptions(
        encoding=config.encoding,
        delimiter=config.delimiter,
        header=config.header,
        max_line_bytes=config.max_line_bytes,
    )
    if incremental:
        files = [as_growing(file, options) for file in files]
    summary = inspect_inputs(files, options, config.types)
    if incremental and not summary.schema.names:
        raise InputError(
            f"{shown(files[0].path)}: no whole row yet, and the first run fixes the columns; start it when "
            "there is one"
        )
    found = _with_columns(summary.schema.remove_metadata(), config)
    answering = (*config.text_columns, *config.value_columns(found.names))
    kept = _kept_columns(config, found)

    spec, folder = describe_model(config, found, _widths(files, options, found, config))
    config, tuned = _tuned(asked, config, spec, previous)
    config = _resolved(config, spec, summary.row_bytes, found)
    segments = group_segments(files)
    num_rows = summary.num_rows_estimate
    if config.limit is not None:
        counting = dataclasses.replace(options, schema=pa.schema([found.field(answering[0])]))
        segments = _limit(segments, config.limit, counting)
        num_rows = min(num_rows, config.limit)
    plan = Plan(
        config=config,
        model=spec,
        segments=segments,
        input_schema=pa.schema([field for field in found if field.name in {*kept, *answering}]),
        output_schema=_output_schema(config, spec, [found.field(name) for name in kept], found),
        row_bytes=summary.row_bytes,
        num_rows_estimate=num_rows,
        tuned=tuned,
    )
    return plan, folder


def plan_again(config: RunConfig, held: Plan) -> tuple[Plan, Path | None]:
    """The plan `held` as this configuration asks for it; what differs is `first_difference`'s to tell.

    Its inputs and columns stay: nothing is listed, and nothing sampled. Returns and raises what `make_plan`
    does.
    """
    asked = config = with_settings(settled(config))
    config = _resolve_engine(config, held)
    spec, folder = describe_model(config, held.input_schema, held.model.widths)
    config, tuned = _tuned(asked, config, spec, held)
    config = _resolved(config, spec, held.row_bytes, held.input_schema)
    return dataclasses.replace(held, config=config, model=spec, tuned=tuned), folder


def _resolved(config: RunConfig, spec: ModelSpec, row_bytes: float, found: pa.Schema) -> RunConfig:
    """The configuration with each `auto` resolved that the answers depend on."""
    resolved = {
        "task": spec.task,
        "max_length": spec.max_length,
        "dtype": resolve_dtype(config, spec),
        "chunk_rows": config.chunk_rows or _chunk_rows(row_bytes, spec.task),
    }
    config = config.model_copy(update=resolved)
    shares_answers = create_task(spec, config, found).shares_answers
    return config.model_copy(update={"dedup": "chunk" if shares_answers else "off"})


def with_profile(plan: Plan, held: Plan) -> Plan:
    """`plan`, which is `held` resumed with changes, with the settings that its `--profile` names.

    Raises UsageError for a profile that is none, or of another model or task.
    """
    _, tuned = _tuned(plan.config, plan.config, plan.model, held)
    return dataclasses.replace(plan, tuned=tuned)


def _tuned(
    asked: RunConfig, config: RunConfig, spec: ModelSpec, previous: Plan | None
) -> tuple[RunConfig, Tuned | None]:
    """`config` with the engine and the precision of the profile that is asked for, and its settings.

    All of it or nothing: settings are worth something with what they were measured with only. A plan
    that was made before keeps its own. The log says why a profile is left out.
    """
    if (
        asked.profile == "none" or asked.device_map is not None
    ):  # none was measured on a spread model
        return config, None
    if previous is not None and asked.profile in ("auto", previous.config.profile):
        return config, previous.tuned
    is_named = asked.profile != "auto"
    key = key_of(asked, spec, kind_of_device(asked))
    profile = named_profile(asked.profile, spec) if is_named else kept_profile(key)
    if profile is None:
        return config, None
    path = asked.profile if is_named else str(key.path)
    is_open = {name: previous is None and getattr(asked, name) == "auto" for name in _CHOSEN}
    update = {name: getattr(profile, name) for name in _CHOSEN if is_open[name]}
    chosen = config.model_copy(update=update)
    if why := _misfit(profile, chosen):
        log.warning(f"{path}: chose {profile.engine} in {profile.dtype}, {why}; it is not used")
        return config, None
    kind = kind_of_device(chosen)
    if found := profile.key.differences(key_of(asked, spec, kind)):
        log.warning(f"{path}: made for another kind of job, used as told: {'; '.join(found)}")
    tuned = Tuned(
        device_kind=kind,
        engine=profile.engine,
        dtype=profile.dtype,
        settings=profile.settings,
        path=path,
        created=profile.created,
    )
    return chosen, tuned


def _misfit(profile: Profile, config: RunConfig) -> str:
    """Why a job of this configuration cannot run what a profile chose: "" where it can."""
    told = [here for n in _CHOSEN if (here := getattr(config, n)) != getattr(profile, n)]
    if told:
        return f"and this job runs {' in '.join(told)}"
    try:
        require_fit(config)
    except UsageError as error:
        return f"which this job cannot run ({error})"
    return ""


def check_schemas(plan: Plan) -> None:
    """See that a plan's schemas are those that its configuration gives.

    Raises JobMismatchError for a plan that was not made by `make_plan`.
    """
    try:
        kept = _kept_columns(plan.config, plan.input_schema)
        fields = [plan.input_schema.field(name) for name in kept]
        expected = _output_schema(plan.config, plan.model, fields, plan.input_schema)
    except UsageError:
        expected = None
    if expected is None or not plan.output_schema.equals(expected):
        raise JobMismatchError(
            f"{plan.config.output}: its plan.json contradicts itself: not written by batchinfer; start "
            "anew with another --output"
        )


def _resolve_engine(config: RunConfig, previous: Plan | None) -> RunConfig:
    """Take every `auto` that was resolved before; what is left open is resolved while planning."""
    if not config.inputs:
        raise UsageError("no input: name files, globs or folders")
    if own := [name for name in config.types if name in BOOKKEEPING]:
        raise UsageError(f"--schema {own[0]}: batchinfer's own column; its type is fixed")
    if previous is not None:
        then = previous.config
        # A module among models, or the other way round, is another job: nothing of this one goes with it.
        is_open = config.task == "auto"
        asks_module = config.task == "module" or (is_open and names_module(config.model))
        is_alike = asks_module == (then.task == "module") or (is_open and not config.model)
        update = {
            name: getattr(then, name)
            for name in ("engine", "task", "dtype", "max_length", "chunk_rows", "dedup")
            if is_alike and getattr(config, name) in ("auto", None)
        }
        config = config.model_copy(update=update)
    if config.task == "auto" and names_module(config.model):
        config = config.model_copy(update={"task": "module"})
    if config.engine == "auto":
        config = config.model_copy(update={"engine": "local"})
    if config.engine != "fake" and not config.model:
        raise UsageError("no model: name one with --model (or try the input with --engine fake)")
    return config


def _with_columns(found: pa.Schema, config: RunConfig) -> pa.Schema:
    """The schema with the columns in it that rows are answered by.

    Raises UsageError where they are not there, or hold no text and should.
    """
    if config.task == "module":
        return with_features(found, config)
    texts, values = config.text_columns, config.value_columns(found.names)
    if not found.names:  # no record could be read: each row will say why
        names = dict.fromkeys((*texts, *values)) or ("text",)
        return pa.schema([pa.field(name, pa.string()) for name in names])
    for name in (*texts, *values):
        if name not in found.names:
            raise UsageError(unknown_column(name, found.names, _flag_of_column(name, config)))
    for name in texts:
        if not _is_text(found.field(name).type):
            raise UsageError(
                f"column '{name}' holds {found.field(name).type}, not text; choose another with "
                f"{_flag_of_column(name, config)}, or read it as text with --schema {name}=string"
            )
    return found


def _flag_of_column(name: str, config: RunConfig) -> str:
    """The flag that names a column which rows are answered by."""
    for field in ("text_column", "text_pair_column", "labels_column"):
        is_asked = field != "text_column" or config.template is None
        if is_asked and getattr(config, field) == name:
            return flag_name(field)
    return "--template"


def with_features(found: pa.Schema, config: RunConfig) -> pa.Schema:
    """The schema with the features in it. Raises UsageError where they are not there or of no use."""
    names = config.features
    if not names:
        raise UsageError(
            "--task module needs --features, the columns that the module takes; the input has: "
            f"{listed(found.names)}"
        )
    if not found.names:  # no record could be read: each row will say why
        found = pa.schema([pa.field(name, pa.float64()) for name in dict.fromkeys(names)])
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--features: '{name}' stands twice; name it once")
        if name not in found.names:
            raise UsageError(unknown_column(name, found.names, "--features"))
        kind = found.field(name).type
        if not is_feature(kind):
            raise UsageError(
                f"column '{name}' holds {kind}; --features takes numbers, lists of numbers, and texts"
            )
    return found


def _widths(
    files: Sequence[InputFile], options: ReadOptions, found: pa.Schema, config: RunConfig
) -> dict[str, int]:
    """The numbers in a row of the features that hold lists: of most among the first rows that have some.

    Raises UsageError where no list is found.
    """
    if config.task != "module":
        return {}
    kinds: dict[str, Any] = {name: found.field(name).type for name in config.features}
    fixed = pa.types.is_fixed_size_list
    widths = {name: int(kind.list_size) for name, kind in kinds.items() if fixed(kind)}
    left = [name for name, kind in kinds.items() if is_list(kind) and name not in widths]
    for file in files[:_MAX_LOOKS]:
        if not left:
            break
        schema = pa.schema([found.field(name) for name in left])
        reader = open_reader(
            file, dataclasses.replace(options, schema=schema, rescue_unknown=False)
        )
        try:
            table = reader.take(_LOOK_ROWS).table
        finally:
            reader.close()
        widths |= {name: width for name in left if (width := width_of(table.column(name)))}
        left = [name for name in left if name not in widths]
    if left:
        raise UsageError(
            f"column '{left[0]}' has no list with a number in its first rows, which would say how many the "
            "module gets of it"
        )
    return widths


def _is_text(kind: Any) -> bool:
    """Whether it is text, or lists of texts or messages: tasks that take none refuse them themselves."""
    if is_list(kind):
        kind = kind.value_type
        if pa.types.is_struct(kind):
            return True
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _kept_columns(config: RunConfig, found: pa.Schema) -> list[str]:
    if config.keep is None:
        return list(found.names)
    if config.keep == ("none",):
        return []
    for name in config.keep:
        if name not in found.names:
            parts = [part.strip() for part in name.split(",")]
            if len(parts) > 1 and set(parts) <= set(found.names):  # a name may hold a comma
                again = " ".join(f"--keep {part}" for part in parts)
                raise UsageError(f"--keep {name}: no such column; for several, write {again}")
            raise UsageError(unknown_column(name, found.names, "--keep"))
    return [name for name in found.names if name in config.keep]


def _output_schema(
    config: RunConfig, spec: ModelSpec, kept: list[pa.Field[Any]], found: pa.Schema
) -> pa.Schema:
    """The schema of the shards. Raises UsageError where Parquet or a clash of names forbids it."""
    task = create_task(spec, config, found)
    added = [field.with_name(config.output_prefix + field.name) for field in task.columns]
    names = {field.name for field in kept}
    for field in added:
        if field.name in names or field.name in BOOKKEEPING:
            raise UsageError(
                f"the task's column '{field.name}' is there already; rename it with "
                "--output-prefix, or choose with --keep what is carried through"
            )
    kept = [field.with_nullable(True) for field in kept]
    for field in kept:
        try:
            pq.write_table(pa.schema([field]).empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise UsageError(
                f"column '{field.name}' ({field.type}) cannot be written to Parquet "
                f"({one_line(error)}); leave it out with --keep"
            ) from None
    return output_schema(kept, added)


def _chunk_rows(row_bytes: float, task: str) -> int:
    """As many rows as fit in MAX_CHUNK_BYTES, a power of two."""
    most = _MAX_ROWS_OF.get(task, MAX_CHUNK_ROWS)
    rows = int(MAX_CHUNK_BYTES / max(1.0, row_bytes))
    return min(most, 1 << max(0, rows.bit_length() - 1))


def _limit(segments: Sequence[Segment], limit: int, options: ReadOptions) -> tuple[Segment, ...]:
    """The segments that hold the first `limit` rows; the last of them ends where the limit does."""
    limited: list[Segment] = []
    for segment in segments:
        rows = 0
        for index, file in enumerate(segment.files):
            reader = open_reader(file, options, Position(file=index))
            try:
                while rows < limit and (
                    taken := reader.take(min(8192, limit - rows)).table.num_rows
                ):
                    rows += taken
            finally:
                reader.close()
        limit -= rows
        limited.append(dataclasses.replace(segment, max_rows=rows))
        if limit == 0:
            break
    return tuple(limited)
