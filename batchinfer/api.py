"""infer(): the same engine, batching and tasks, for texts that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import (
    BOOKKEEPING,
    ERROR,
    NUM_TOKENS,
    RESCUED,
    ROW,
    SOURCE,
    TRUNCATED,
    Chunk,
    ChunkId,
    Position,
    is_unicode,
)
from batchinfer.engines import (
    create_encoder,
    create_engine,
    describe_model,
    prepare_to_decode,
    resolve_dtype,
)
from batchinfer.engines.modules import names_module
from batchinfer.errors import UsageError, one_line
from batchinfer.gathering import answer
from batchinfer.loader import Loader
from batchinfer.planning import with_features
from batchinfer.readers import ReadOptions
from batchinfer.readers.columns import is_list
from batchinfer.reporting.displays import Notebook
from batchinfer.reporting.monitor import Monitor
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from batchinfer.tasks.features import width_of
from batchinfer.tasks.generation import with_settings
from batchinfer.template import settled
from batchinfer.writers.shard import assemble, output_schema

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 16384


def infer(
    texts: Sequence[str] | pd.Series[Any] | pd.DataFrame, model: str = "", **settings: Any
) -> pd.DataFrame:
    """Return the texts with the model's answers beside them, a row each, in their order.

    `texts`: a list or Series of n strings, or a DataFrame with a text column (`text_column`, default
    "text"; or those that a `template` names), whose columns and index are kept. Where a task takes lists
    (words, documents, messages with "role" and "content"), a text may be one. `settings` are fields of
    RunConfig (task, engine, dtype, device, max_length, max_batch_tokens, output_prefix, …). The answers
    are the columns of the task, `predicted_label` and `predicted_score`, say (docs/tasks.md); then
    `_num_tokens`, `_truncated`, and `_error`: null, or why a row (one that holds no string) has no answer.

    Raises UsageError for a column that is missing, in the way, or of several types where a template takes
    it, and ModelError for the model.
    """
    import pandas as pd

    if isinstance(texts, str):
        raise UsageError("infer() takes a list of texts: write infer([text])")
    config = _settle(model, settings)
    if isinstance(texts, pd.DataFrame):
        frame = texts
    else:
        frame = pd.DataFrame({config.text_column: texts}, dtype=object)
    there = [n for n in frame.columns if isinstance(n, str) and n not in BOOKKEEPING]
    values = config.value_columns(there)
    for name in (*config.text_columns, *values):
        if name not in there:
            raise UsageError(
                f"no column '{name}' in the DataFrame; it has: {', '.join(map(str, frame.columns))}"
            )
    table = _values(frame, config)
    lists = _lists(frame, config.text_columns)
    kinds = pa.schema([*table.schema, *((name, kind) for name, kind in lists.items())])
    widths = {f.name: width_of(table.column(f.name)) for f in table.schema if is_list(f.type)}
    spec, folder = describe_model(config, kinds, widths)
    config = config.model_copy(update={"dtype": resolve_dtype(config, spec)})
    task = create_task(spec, config, kinds)
    prepare_to_decode(task, config, folder)
    schema = output_schema([], [f.with_name(config.output_prefix + f.name) for f in task.columns])
    names = [name for name in schema.names if name not in (SOURCE, ROW, RESCUED)]
    if taken := [name for name in names if name in frame.columns and name not in BOOKKEEPING]:
        raise UsageError(f"the DataFrame has a column '{taken[0]}' already; set output_prefix")

    monitor = Monitor([Notebook()], tokens_ahead=task.tokens_ahead)
    with monitor, closing(create_engine(config, task, folder)) as engine:
        budget = engine.default_budget.override(config.max_batch_tokens, config.max_batch_rows)
        encoder = create_encoder(config, spec, folder)
        loader = Loader(
            task,
            encoder,
            budget,
            CHUNK_ROWS,
            ReadOptions(),
            shares_answers=task.shares_answers,
        )
        monitor.begin(rows_done=0, rows_expected=len(frame))
        monitor.open({})
        source = (
            _slices(table)
            if task.name == "module"
            else _chunks(frame, config.text_columns, lists, values)
        )
        chunks = map(loader.prepare, source)
        answered = sorted(
            answer(chunks, engine, monitor, StopSignal()), key=lambda done: done.chunk.id
        )
    tables = [assemble(part, task, schema, config.output_prefix) for part in answered]
    table = pa.concat_tables([schema.empty_table(), *tables]).select(names)
    answers = table.to_pandas()
    answers.index = frame.index
    kept = frame.drop(columns=[n for n in (NUM_TOKENS, TRUNCATED, ERROR) if n in frame.columns])
    return pd.concat([kept, answers], axis=1)


#: Settings of RunConfig that mean something for texts in memory.
SETTINGS = (
    "revision", "adapter", "trust_remote_code", "allow_pickle", "task", "engine", "dtype", "max_length",
    "long", "stride", "top_k", "all_scores", "pooling", "normalize", "prompt", "truncate_dim",
    "embedding_dtype", "aggregation", "labels", "labels_column", "hypothesis", "multi_label", "features",
    "max_new_tokens", "temperature", "top_p", "stop",
    "seed", "generation_config", "chat", "system", "text_column", "text_pair_column", "template",
    "output_prefix", "device", "attention", "max_batch_tokens", "max_batch_rows", "dedup",
)  # fmt: skip


def _settle(model: str, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with its engine, as planning resolves it for files."""
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise UsageError(f"infer() takes no '{unknown[0]}'; it takes {', '.join(SETTINGS)}")
    config = RunConfig.load({"model": model, **settings}, environ={})
    if config.task == "auto" and names_module(config.model):
        config = config.model_copy(update={"task": "module"})
    if config.engine == "auto":
        config = config.model_copy(update={"engine": "local"})
    if config.engine != "fake" and not config.model:
        raise UsageError("no model: name a hub id or a local folder")
    return with_settings(settled(config))


def _lists(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, pa.DataType]:
    """The types of the text columns that hold lists rather than text: of words, of documents, of messages.

    Raises UsageError where the lists of one are not of one type.
    """
    kinds = {}
    for name in names:
        values: Any = frame[name]
        held = [list(value) for value in values if _is_list(value)]
        if len(held) > sum(isinstance(value, str) for value in values):
            try:
                kinds[name] = pa.array(held, from_pandas=True).type
            except (pa.ArrowException, UnicodeError, OverflowError) as error:
                raise UsageError(f"column '{name}': {one_line(error)}") from None
    return kinds


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _chunks(
    frame: pd.DataFrame,
    texts: Sequence[str],
    lists: Mapping[str, pa.DataType],
    others: Sequence[str],
) -> Iterator[Chunk]:
    """The text columns in chunks, where a cell that holds no string is its row's error, and the others.

    `lists`: of which the cells are to hold lists. Raises UsageError for one of the others whose values are
    not of one type.
    """
    for index, start in enumerate(range(0, len(frame), CHUNK_ROWS)):
        part = frame.iloc[start : start + CHUNK_ROWS]
        errors: dict[int, str] = {}
        arrays: list[Any] = [
            pa.nulls(len(part), pa.string()),
            pa.array(range(start, start + len(part))),
        ]
        for name in texts:
            values = part[name].tolist()
            for row, value in enumerate(values):
                if name in lists and _is_list(value):
                    values[row] = list(value)
                elif name in lists or not isinstance(value, str):
                    errors.setdefault(row, f"no text: column '{name}' holds {type(value).__name__}")
                    values[row] = None
                elif not is_unicode(value):
                    errors.setdefault(row, f"column '{name}' holds half a surrogate pair")
                    values[row] = None
            arrays.append(pa.array(values, lists.get(name, pa.large_string())))
        further = [name for name in others if name not in texts]
        for name in further:
            try:
                arrays.append(pa.array(part[name], from_pandas=True))
            except (pa.ArrowException, UnicodeError, OverflowError) as error:
                raise UsageError(f"column '{name}': {one_line(error)}") from None
        arrays.append(pa.nulls(len(part), pa.string()))
        table = pa.table(arrays, names=[SOURCE, ROW, *texts, *further, RESCUED])
        yield Chunk(ChunkId(0, index), table, errors, Position(), Position(), False, "")


def _values(frame: pd.DataFrame, config: RunConfig) -> pa.Table:
    """The columns that a module takes. Raises UsageError where they hold anything else than it may."""
    columns: dict[str, Any] = {}
    for name in config.features if config.task == "module" else ():
        values: Any = frame[name].to_numpy()
        try:  # NaN is a value of its own among numbers; elsewhere pandas means nothing by it
            columns[name] = pa.array(values, from_pandas=values.dtype == object)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UsageError(f"column '{name}' cannot be read: {one_line(error)}") from None
    table = pa.table(columns)
    if config.task == "module":
        with_features(table.schema, config)
    return table


def _slices(table: pa.Table) -> Iterator[Chunk]:
    """A table in chunks; a null is its row's error."""
    for index, start in enumerate(range(0, table.num_rows, CHUNK_ROWS)):
        part = table.slice(start, CHUNK_ROWS)
        errors: dict[int, str] = {}
        for name in part.column_names:
            for row in np.flatnonzero(part.column(name).is_null().to_numpy()):
                errors.setdefault(int(row), f"column '{name}' is null or missing")
        rows = np.arange(start, start + part.num_rows)
        none = pa.nulls(part.num_rows, pa.string())
        full = part.append_column(SOURCE, none).append_column(ROW, pa.array(rows))
        full = full.append_column(RESCUED, none)
        yield Chunk(ChunkId(0, index), full, errors, Position(), Position(), False, "")
