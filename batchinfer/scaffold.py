"""A first configuration file for a task: what matters on top, every other setting below it as a comment.

It is made of RunConfig, so a new setting appears in it by itself. Where an input is named, a sample of it
says which columns there are, and which of them the task probably reads.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from batchinfer.config import RunConfig, flag_name, knob_of
from batchinfer.hints import listed
from batchinfer.knobs import CONDUCT, INPUT, MODEL, OUTPUT, SPEED, TASK
from batchinfer.readers import ReadOptions, inspect_inputs, list_inputs, open_reader
from batchinfer.readers.columns import is_list
from batchinfer.tasks import TASKS

#: Where the schema for editors is looked for, beside the configuration.
SCHEMA_FILE = "batchinfer.schema.json"
_SAMPLE_ROWS = 200
#: The column in which the comments begin.
_COMMENTS = 40
#: In flow style, a text is on one line however long it is.
_ENDLESS = 1 << 30


@dataclass(frozen=True, slots=True)
class Starter:
    """What a task begins with: `first` are settings to look at before the others.

    `model` is one that many use, `given` what the task cannot do without.
    """

    about: str
    model: str
    first: tuple[str, ...] = ()
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)


STARTERS: Mapping[str, Starter] = {
    "classify": Starter(
        "one label and its score for each text",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        ("top_k", "all_scores"),
    ),
    "embed": Starter(
        "one vector for each text",
        "sentence-transformers/all-MiniLM-L6-v2",
        ("normalize", "prompt", "embedding_dtype"),
    ),
    "token-classify": Starter(
        "the entities in each text: names, places and their kind",
        "dslim/bert-base-NER",
        ("aggregation",),
    ),
    "score": Starter(
        "how well documents answer a query: one score, or one for each of a list",
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        ("top_k",),
        {"text_column": "query", "text_pair_column": "document"},
    ),
    "zero-shot": Starter(
        "which of these labels fits each text, by a model that was trained for none of them",
        "facebook/bart-large-mnli",
        ("hypothesis", "multi_label"),
        {"labels": ("first label", "second label")},
    ),
    "fill-mask": Starter(
        "the likeliest words for the gap in each text",
        "google-bert/bert-base-uncased",
        ("top_k",),
    ),
    "generate": Starter(
        "what a language model writes to each prompt",
        "Qwen/Qwen2.5-0.5B-Instruct",
        ("template", "system", "max_new_tokens", "temperature", "stop"),
        {"text_column": "prompt"},
    ),
    "seq2seq": Starter(
        "what an encoder-decoder writes to each text: a translation, a summary",
        "google-t5/t5-small",
        ("template", "max_new_tokens"),
    ),
    "module": Starter(
        "what a module of your own says to the columns of each row",
        "my_package.my_module:make_model",
        (),
        {"features": ("first_column", "second_column")},
    ),
}
#: Columns that are mostly meant, by what a task reads; the first that is there.
_QUERIES = ("query", "question", "search", "query_text", "prompt")
_DOCUMENTS = (
    "documents",
    "document",
    "passages",
    "passage",
    "candidates",
    "context",
    "answer",
    "doc",
)
_TEXTS = ("text", "body", "content", "review", "comment", "message", "sentence", "document", "passage",
          "description", "abstract", "article", "tweet", "summary", "title")  # fmt: skip
_PROMPTS = ("prompt", "messages", "conversation", "instruction", "question", "input")
#: Columns that say which row it is, or what the answer should be, are no features.
_NO_FEATURE = re.compile(r"(.*_)?(id|key|uuid|index|label|target|y)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Columns:
    """A sample of the inputs: their columns, and what was guessed of them, by setting."""

    names: tuple[str, ...]
    guessed: Mapping[str, Any]


def look_at(inputs: Sequence[str], task: str) -> Columns:
    """The columns of inputs, and those that the task probably reads.

    Raises InputError or UsageError for inputs that no job could read.
    """
    files = list_inputs(inputs, "auto", exclude="")
    found = inspect_inputs(files, ReadOptions(), {}).schema.remove_metadata()
    reader = open_reader(files[0], dataclasses.replace(ReadOptions(), schema=found))
    try:
        sample = reader.take(_SAMPLE_ROWS).table.select(found.names)
    finally:
        reader.close()
    return Columns(tuple(found.names), _guessed(sample, task))


def _guessed(sample: pa.Table, task: str) -> dict[str, Any]:
    if task == "module":
        return _features(sample)
    lengths = {name: _mean_length(sample.column(name)) for name in sample.column_names}
    texts = sorted((name for name in lengths if lengths[name]), key=lambda n: -lengths[n])
    lists = [field.name for field in sample.schema if is_list(field.type)]
    if task == "score":
        documents = _first_of(_DOCUMENTS, [*texts, *lists]) or next(iter(texts), "")
        rest = [name for name in texts if name != documents]
        query = _first_of(_QUERIES, rest) or next(reversed(rest), "")
        pair = {"text_column": query, "text_pair_column": documents}
        return {name: column for name, column in pair.items() if column}
    if task in ("generate", "seq2seq"):
        column = _first_of(_PROMPTS, [*texts, *lists]) or _first_of(_TEXTS, texts)
    else:
        column = _first_of(_TEXTS, texts)
    guessed = {"text_column": column or next(iter([*texts, *lists]), "")}
    if task == "zero-shot" and (labels := _first_of(("labels", "candidate_labels"), lists)):
        guessed["labels_column"] = labels
    return {name: column for name, column in guessed.items() if column}


def _mean_length(column: pa.ChunkedArray[Any]) -> float:
    """Characters of a text in the mean; 0 where the column holds no texts."""
    if not (pat.is_string(column.type) or pat.is_large_string(column.type)):
        return 0.0
    values = [value for value in column.to_pylist() if value]
    return sum(map(len, values)) / len(values) if values else 0.0


def _first_of(wanted: Sequence[str], there: Sequence[str]) -> str:
    plain = {name.lower(): name for name in there}
    return next((plain[name] for name in wanted if name in plain), "")


def _features(sample: pa.Table) -> dict[str, Any]:
    """The columns of numbers; those of a CSV file are texts until their type is stated."""
    features, types = [], {}
    for field in sample.schema:
        if _NO_FEATURE.fullmatch(field.name):
            continue
        kind: Any = field.type.value_type if is_list(field.type) else field.type
        if pat.is_integer(kind) or pat.is_floating(kind) or pat.is_boolean(kind):
            features.append(field.name)
        elif pat.is_string(kind) and _are_numbers(sample.column(field.name)):
            features.append(field.name)
            types[field.name] = "float64"
    guessed: dict[str, Any] = {"features": tuple(features)} if features else {}
    return {**guessed, "types": types} if types else guessed


def _are_numbers(column: pa.ChunkedArray[Any]) -> bool:
    values = [value for value in column.to_pylist() if value]
    try:
        return bool(values) and all(float(value) == float(value) for value in values)
    except (TypeError, ValueError):
        return False


def configuration(
    task: str, file: str, *, inputs: Sequence[str] = (), model: str = "", has_schema: bool = False
) -> str:
    """The text of a configuration file for a task, which is to be called `file`.

    `has_schema`: whether the schema for editors lies beside it. Raises what `look_at` does.
    """
    starter = STARTERS[task]
    columns = look_at(inputs, task) if inputs else None
    values: dict[str, Any] = {
        "inputs": tuple(inputs) or ("data/*.jsonl",),
        "model": model or starter.model,
        "task": task,
        "output": f"out/{Path(file).stem if file != '-' else task}",
        **({"text_column": "text"} if task != "module" else {}),
        **starter.given,
        **(columns.guessed if columns else {}),
    }
    if "labels_column" in values:
        values.pop("labels", None)
    return "\n".join(_lines(task, file, values, columns, has_schema)) + "\n"


def _lines(
    task: str, file: str, values: Mapping[str, Any], columns: Columns | None, has_schema: bool
) -> Iterator[str]:
    if has_schema:
        yield f"# yaml-language-server: $schema={SCHEMA_FILE}"
    yield f"# {task}: {STARTERS[task].about}."
    yield f"#   batchinfer run --config {file if file != '-' else 'FILE'}"
    if columns:
        yield f"# Columns of the input: {listed(columns.names)}"
    yield ""
    for name, value in values.items():
        yield _line(name, value, task)
    first = [*(name for name in STARTERS[task].first if name not in values), "keep", "max_errors"]
    for name in first:
        yield _comment(name, task)
    yield ""
    yield "# Everything else, as it is where nothing is said; take the # away to change it."
    done = {*values, *first}
    for panel in (TASK, MODEL, INPUT, OUTPUT, CONDUCT, SPEED):
        names = [name for name in _settings_of(panel, task) if name not in done]
        if names:
            yield f"# -- {panel.lower()}"
        for name in names:
            yield _comment(name, task)


def _settings_of(panel: str, task: str) -> Iterator[str]:
    """The settings of a panel that mean something to the task."""
    module = importlib.import_module(f"batchinfer.tasks.{task.replace('-', '_')}")
    meant = getattr(module, TASKS[task]).knobs
    for name in RunConfig.model_fields:
        if knob_of(name)["panel"] == panel and (panel != TASK or name in meant):
            yield name


def _comment(name: str, task: str) -> str:
    """A setting as it is where nothing is said, commented out."""
    return _line(name, RunConfig.model_fields[name].default, task, mark="# ")


def _line(name: str, value: Any, task: str, *, mark: str = "") -> str:
    written = f"{mark}{name}: {_yaml(value)}".rstrip()
    return f"{written:<{_COMMENTS}}  # {_help(name, task)}"


def _yaml(value: Any) -> str:
    import yaml

    if value is None:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    elif isinstance(value, str) and value.isdecimal():
        value = int(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=_ENDLESS, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _help(name: str, task: str) -> str:
    """The help of a setting, of one for several tasks the part that is of this one."""
    text = RunConfig.model_fields[name].description or flag_name(name)
    task_name = "|".join(map(re.escape, TASKS))
    parts = re.split(rf"; (?=(?:(?:{task_name}), )*(?:{task_name}): )", text)
    for part in parts:
        of, colon, rest = part.partition(": ")
        if colon and task in of.split(", "):
            return rest
    return text
