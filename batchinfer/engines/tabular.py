"""The engine of --task module: any `nn.Module` on this machine's CPU or GPU.

A row costs one; batches hold columns, not tokens. On a CPU rows are read and made into tensors while a
batch is under way; several are where the module is known to keep nothing between calls.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from batchinfer.core import Batch, BatchBudget, ChunkId, TensorSpec
from batchinfer.engines import cpu, modules
from batchinfer.engines.base import reason
from batchinfer.engines.canary import distance
from batchinfer.engines.streams import Streams, share
from batchinfer.engines.torch_engine import PassEngine
from batchinfer.errors import ModelError, UsageError
from batchinfer.tasks.features import STACKED, as_tensors
from batchinfer.tasks.module import Module

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

log = logging.getLogger("batchinfer")

#: Rows of a batch where neither the user nor a profile says it; but no more than so many numbers.
_ROWS = {"cpu": 8192, "mps": 65536, "cuda": 65536}
_NUMBERS = 16 << 20
#: Made-up rows that a module answers alone and together, before rows of the input.
_CANARY_ROWS = 8
#: Answers to a row alone and among others may differ by this share: other sizes, other kernels.
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-3, 0.03


class ModuleEngine(PassEngine):
    """Answers with the module that a job names.

    Raises UsageError for a device that is not there, for columns that the module does not take, and for
    compiling where it changes answers; ModelError where the module cannot be had, or is another than the
    planned one.
    """

    def __init__(self, task: Module, config: RunConfig) -> None:
        super().__init__(task, config.device)
        self.task: Module = task
        self.dtype = "float32" if config.dtype == "auto" else config.dtype
        columns = as_tensors(config.features, task.schema, task.spec.widths)
        bound, _ = modules.open_module(config, columns, self.device)
        if bound.loaded.identity != task.spec.identity:
            raise ModelError(
                f"{task.spec.name}: its code or weights are others than when the job was planned; a "
                "factory must make the same weights at each call: load them, or seed them"
            )
        self.model = bound
        width = sum(int(np.prod(one.shape)) for one in task.spec.inputs)
        rows = min(_ROWS[self.device.type], max(1, _NUMBERS // width))
        self.default_budget = BatchBudget(max_batch_tokens=rows, max_batch_rows=rows)
        try:
            self._prepare(config)
        except BaseException:
            self.close()  # threads are the whole process's
            raise

    def _prepare(self, config: RunConfig) -> None:
        if self.device.type == "cpu":
            cpu.tune_allocator()
            self._take_threads(config.threads)
        self._try_out()
        if config.compile:
            self._compile()
        if self.threads is not None:
            self._share(self.threads, config.streams)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {
            name: values.tolist() if values.dtype == object else self._to_device(values)
            for name, values in batch.fields.items()
        }

    def _values(self, inputs: Any) -> dict[str, torch.Tensor]:
        return self.task.forward(self.model, inputs)

    def _share(self, threads: int, streams: int | None) -> None:
        """Divide a CPU's threads among streams; a module that may keep something has one."""
        streams, each = share(threads, streams if self.model.loaded.is_pure else streams or 1)
        torch.set_num_threads(each)
        # Also a single one: rows are read while it works.
        self._streams = Streams(streams, partial(torch.set_num_threads, each))
        log.debug(f"batches at a time: {streams}, on {each} threads each")

    def _try_out(self) -> None:
        """Say where a row's answer depends on the rows beside it, or fails on made-up ones."""
        rows = _made_up(self.task.spec.inputs, is_stacked=self.task.spec.is_stacked)
        try:
            together = self._forward(rows)
            alone = [self._forward(row) for row in _each(rows)]
        except Exception as error:
            self._refuse_to_judge(error)
            log.debug(f"the module fails on made-up rows ({reason(error)}), and is not tried out")
            return
        joined = {name: torch.cat([one[name] for one in alone]) for name in together}
        if why := self._difference(together, joined):
            log.warning(
                f"{self.task.spec.name}: a row's answer depends on the rows beside it, or on chance: "
                f"{why}; is a layer in training mode in it (BatchNorm, Dropout)?"
            )

    def _compile(self) -> None:
        """Compile the module. Raises UsageError where it does not answer as before: it was asked for."""
        started = time.monotonic()
        rows = _made_up(self.task.spec.inputs, is_stacked=self.task.spec.is_stacked)
        try:
            before = self._forward(rows)
            self.model.compile()
            self._forward(next(_each(rows)))
            why = self._difference(self._forward(rows), before)
        except Exception as error:
            self._refuse_to_judge(error)
            why = reason(error)
        if why:
            raise UsageError(f"--compile: the compiled module is not used: {why}")
        log.debug(f"compiled the module in {time.monotonic() - started:.0f} s")

    def _difference(self, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
        """Where answers differ by more than rounding; "" where they do not."""
        tolerance = _TOLERANCE if self.dtype == "float32" else _TOLERANCE_OF_HALVES
        for name, value in found.items():
            known = torch.isfinite(expected[name])
            if not torch.equal(known, torch.isfinite(value)):
                return f"'{name}' is a number one time, and NaN or infinite the other"
            share = distance(value[known], expected[name][known])
            if share > tolerance:
                return f"'{name}' differs by {share:.2g}"
        return ""


def _made_up(inputs: tuple[TensorSpec, ...], *, is_stacked: bool) -> Batch:
    """Rows of random numbers, the same ones each time: normal ones, and integers of 0 and 1."""
    draw, rows = np.random.default_rng(0), _CANARY_ROWS
    fields: dict[str, Any] = {}
    for one in inputs:
        if one.dtype == "string":
            fields[one.name] = np.array([f"text {i}" for i in range(rows)], dtype=object)
        elif one.dtype.startswith("float"):
            fields[one.name] = draw.standard_normal((rows, *one.shape)).astype(one.dtype)
        else:
            fields[one.name] = draw.integers(0, 2, (rows, *one.shape)).astype(one.dtype)
    if is_stacked:
        parts = [values.reshape(rows, -1) for values in fields.values()]
        fields = {STACKED: np.concatenate(parts, axis=1)}
    return Batch(ChunkId(0, 0), np.arange(rows), np.ones(rows, np.int32), fields)


def _each(batch: Batch) -> Any:
    """The rows of a batch, each as a batch of its own."""
    for row in range(len(batch)):
        fields = {name: values[row : row + 1] for name, values in batch.fields.items()}
        yield Batch(batch.chunk, batch.indices[row : row + 1], batch.lengths[:1], fields)
