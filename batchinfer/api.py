"""infer(): the same engine, batching and tasks, for texts that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

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
from batchinfer.engines import create_encoder, create_engine, describe_model, resolve_dtype
from batchinfer.errors import UsageError
from batchinfer.loader import Loader
from batchinfer.readers import ReadOptions
from batchinfer.reporting.progress import TqdmProgress
from batchinfer.tasks import create_task
from batchinfer.worker import StopSignal, answer
from batchinfer.writers.shard import assemble, output_schema

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 16384


def infer(
    texts: Sequence[str] | pd.Series[Any] | pd.DataFrame, model: str = "", **settings: Any
) -> pd.DataFrame:
    """Return the texts with the model's answers beside them, a row each, in their order.

    `texts`: a list or Series of n strings, or a DataFrame with a text column (`text_column`, default
    "text"), whose columns and index are kept. `settings` are fields of RunConfig (task, engine, dtype,
    device, max_length, max_batch_tokens, output_prefix, …). The answers are `predicted_label` and
    `predicted_score`, or `embedding`; then `_num_tokens`, `_truncated`, and `_error`: null, or why a
    row (one that holds no string, say) has no answer.

    Raises UsageError for a column that is missing or in the way, ModelError for the model.
    """
    import pandas as pd

    if isinstance(texts, str):
        raise UsageError("infer() takes a list of texts: write infer([text])")
    config = _settle(model, settings)
    column, pair = config.text_column, config.text_pair_column
    frame = (
        texts if isinstance(texts, pd.DataFrame) else pd.DataFrame({column: texts}, dtype=object)
    )
    for name in (column, *([pair] if pair else [])):
        if name not in frame.columns:
            raise UsageError(
                f"no column '{name}' in the DataFrame; it has: {', '.join(map(str, frame.columns))}"
            )
    spec, folder = describe_model(config)
    config = config.model_copy(update={"dtype": resolve_dtype(config, spec)})
    task = create_task(spec, config)
    schema = output_schema([], [f.with_name(config.output_prefix + f.name) for f in task.columns])
    names = [name for name in schema.names if name not in (SOURCE, ROW, RESCUED)]
    if taken := [name for name in names if name in frame.columns and name not in BOOKKEEPING]:
        raise UsageError(f"the DataFrame has a column '{taken[0]}' already; set output_prefix")

    progress = TqdmProgress()
    with closing(create_engine(config, task, folder)) as engine:
        budget = engine.default_budget.override(config.max_batch_tokens, config.max_batch_rows)
        encoder = create_encoder(config, spec, folder)
        loader = Loader(task, encoder, budget, CHUNK_ROWS, ReadOptions())
        progress.begin(rows_done=0, rows_expected=len(frame))
        try:
            chunks = (
                loader.prepare(chunk)
                for chunk in _chunks(frame, [column, *([pair] if pair else [])])
            )
            answered = sorted(
                answer(chunks, engine, progress, StopSignal()), key=lambda done: done.chunk.id
            )
        finally:
            progress.end()
    tables = [assemble(part, task, schema, config.output_prefix) for part in answered]
    table = pa.concat_tables([schema.empty_table(), *tables]).select(names)
    answers = table.to_pandas()
    answers.index = frame.index
    kept = frame.drop(columns=[n for n in (NUM_TOKENS, TRUNCATED, ERROR) if n in frame.columns])
    return pd.concat([kept, answers], axis=1)


#: Settings of RunConfig that mean something for texts in memory.
SETTINGS = (
    "revision", "adapter", "trust_remote_code", "allow_pickle", "task", "engine", "dtype", "max_length",
    "top_k", "all_scores", "pooling", "normalize", "prompt", "truncate_dim", "embedding_dtype",
    "aggregation", "text_column", "text_pair_column", "output_prefix", "device", "attention",
    "max_batch_tokens", "max_batch_rows",
)  # fmt: skip


def _settle(model: str, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with its engine, as planning resolves it for files."""
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise UsageError(f"infer() takes no '{unknown[0]}'; it takes {', '.join(SETTINGS)}")
    config = RunConfig.load({"model": model, **settings}, environ={})
    if config.engine == "auto":
        config = config.model_copy(update={"engine": "local"})
    if config.engine != "fake" and not config.model:
        raise UsageError("no model: name a hub id or a local folder")
    return config


def _chunks(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[Chunk]:
    """The text columns in chunks; a cell that holds no string is its row's error."""
    for index, start in enumerate(range(0, len(frame), CHUNK_ROWS)):
        part = frame.iloc[start : start + CHUNK_ROWS]
        errors: dict[int, str] = {}
        arrays: list[Any] = [
            pa.nulls(len(part), pa.string()),
            pa.array(range(start, start + len(part))),
        ]
        for name in columns:
            values = part[name].tolist()
            for row, value in enumerate(values):
                if not isinstance(value, str):
                    errors.setdefault(row, f"no text: column '{name}' holds {type(value).__name__}")
                    values[row] = None
                elif not is_unicode(value):
                    errors.setdefault(row, f"column '{name}' holds half a surrogate pair")
                    values[row] = None
            arrays.append(pa.array(values, pa.large_string()))
        arrays.append(pa.nulls(len(part), pa.string()))
        table = pa.table(arrays, names=[SOURCE, ROW, *columns, RESCUED])
        yield Chunk(ChunkId(0, index), table, errors, Position(), Position(), False, "")
