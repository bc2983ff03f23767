"""The tasks by name; each is one module, imported when it is asked for."""

from __future__ import annotations

import importlib

from batchinfer.core import ModelSpec
from batchinfer.tasks.base import AnswerField, Task

__all__ = ["TASKS", "AnswerField", "ModelSpec", "Task", "create_task"]

TASKS = {"classify": "Classify", "embed": "Embed"}


def create_task(spec: ModelSpec, text_column: str, text_pair_column: str | None) -> Task:
    """Make the task that a model's spec names."""
    module = importlib.import_module(f"batchinfer.tasks.{spec.task}")
    task: Task = getattr(module, TASKS[spec.task])(spec, text_column, text_pair_column)
    return task
