"""The tasks by name; each is one module, imported when it is asked for."""

from __future__ import annotations

import importlib

import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import ModelSpec
from batchinfer.tasks.base import AnswerField, Task

__all__ = ["TASKS", "AnswerField", "ModelSpec", "Task", "create_task"]

#: By name: the class, in a module that is named like the task.
TASKS = {
    "classify": "Classify",
    "embed": "Embed",
    "generate": "Generate",
    "module": "Module",
    "fill-mask": "FillMask",
    "score": "Score",
    "seq2seq": "Seq2Seq",
    "token-classify": "TokenClassify",
    "zero-shot": "ZeroShot",
}


def create_task(
    spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
) -> Task:
    """Make the task that a model's spec names; `schema` has the input's columns.

    Raises UsageError for settings, and for columns, that do not go with it.
    """
    module = importlib.import_module(f"batchinfer.tasks.{spec.task.replace('-', '_')}")
    task: Task = getattr(module, TASKS[spec.task])(spec, config, schema)
    return task
